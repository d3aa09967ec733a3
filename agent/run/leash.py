"""Stands between the launcher and the trainer for one exec: ties the trainer's life to the agent's.

Run as a file, `python -I -S leash.py AGENT_PID NICENESS COMMAND...`, so that it costs some 15 ms. On Linux the
kernel sends the trainer SIGTERM when the agent dies in any way, SIGKILL included (prctl(2), PR_SET_PDEATHSIG,
kept across exec), so that nobody trains on unattended. No core files: a crash of a training with 60 GB of
memory would fill the disk. The kernel's memory killer is asked to take the trainer and what it starts before anything
else of the user's (proc(5), oom_score_adj; a process may raise its own score). It imports nothing of ours and replaces
itself by COMMAND, so the id stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127
OOM_SCORE = 500
"""Of -1000 to 1000. Services of a desktop session have 100 or 200 (OOMScoreAdjust of systemd's user@.service)."""
OOM_SCORE_FILE = "/proc/self/oom_score_adj"


def main() -> None:
    agent, niceness, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != agent:
            sys.exit(NOT_STARTED)  # the agent died before the leash was on
        offer_to_memory_killer()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if niceness:
        with contextlib.suppress(OSError):
            os.nice(niceness)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"raft-agent: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)


def offer_to_memory_killer() -> None:
    """Raise the score of this process; what it starts and becomes inherits it. Where that is refused, it stays."""
    try:
        file = os.open(OOM_SCORE_FILE, os.O_RDWR)
    except OSError:
        return
    with contextlib.suppress(OSError, ValueError):
        if int(os.read(file, 16)) < OOM_SCORE:
            os.pwrite(file, str(OOM_SCORE).encode(), 0)
    os.close(file)


if __name__ == "__main__":
    main()
