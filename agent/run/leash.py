"""Stands between the launcher and the trainer for one exec: ties the trainer's life to the agent's.

Run as a file, `python -I -S leash.py AGENT_PID NICENESS COMMAND...`, so that it costs some 15 ms. On Linux the
kernel sends the trainer SIGTERM when the agent dies in any way, SIGKILL included (prctl(2), PR_SET_PDEATHSIG,
kept across exec), so that nobody trains on unattended. No core files: a crash of a training with 60 GB of
memory would fill the disk. It imports nothing of ours and replaces itself by COMMAND, so the id stays.
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


def main() -> None:
    agent, niceness, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != agent:
            sys.exit(NOT_STARTED)  # the agent died before the leash was on
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if niceness:
        with contextlib.suppress(OSError):
            os.nice(niceness)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"raft-agent: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
