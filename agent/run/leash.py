"""Stands between the agent and a trainer as long as that runs: nothing that the trainer starts can get away from it.

Run as a file, `python -I -S leash.py AGENT_PID NICENESS GRACE_S CHANNEL COMMAND...`, so that it costs some 15 ms and
7 MB; of ours it imports `agent.proc` alone. On Linux it is the trainer's parent and adopts every process below it that
loses its own (prctl(2), PR_SET_CHILD_SUBREAPER): one that cleared its environment and left group, session and parent is
still found, as a descendant of this one. When the agent dies in any way, SIGKILL included, the kernel sends SIGTERM
(PR_SET_PDEATHSIG); the trainer is then asked to leave, and killed with all that it started after GRACE_S.

The trainer leads a session of its own and writes no core file: a crash of a training with 60 GB of memory would fill
the disk. The kernel's memory killer is asked to take the trainer and what it starts before anything else of the user's
(proc(5), oom_score_adj; a process may raise its own score, and only a privileged one may lower it again).

To the file descriptor CHANNEL it writes two lines: `PID TICKS` (id and start time of the trainer) and how it ended, as
subprocess has it. It ends as the trainer did, but not before everything below it has ended. Where the system has no
such parents, it becomes the trainer instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable

if __name__ == "__main__":
    # A Python in isolation looks for modules nowhere but in its standard library; ours are looked for after that.
    sys.path.append(__file__.rsplit("/", 3)[0])

from agent.proc import MOST_NICE, descendant_pids, group_nice, set_group_nice, stat_of

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
NOT_STARTED = 127
OOM_SCORE = 500
"""Of -1000 to 1000. Services of a desktop session have 100 or 200 (OOMScoreAdjust of systemd's user@.service)."""
OOM_SCORE_FILE = "/proc/self/oom_score_adj"
HEARD = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOOK_EVERY_S = 5.0
STRAYS_S = 2.0
"""What the trainer left behind gets this long once both it and the agent have gone."""
KILLING_S = 30.0


def main() -> None:
    agent, niceness, grace_s, channel = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    command = sys.argv[5:]
    if not sys.platform.startswith("linux"):
        os.set_inheritable(channel, False)
        os.write(channel, f"{os.getpid()} 0\n".encode())
        become(command, niceness)
    set_process_control(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != agent:
        sys.exit(NOT_STARTED)  # the agent died before the leash was on
    set_process_control(PR_SET_CHILD_SUBREAPER, 1)
    os.set_inheritable(channel, False)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    trainer = fork_trainer(command, niceness, mask)
    os.write(channel, f"{trainer} {stat_of(trainer)[19]}\n".encode())
    let_go_of_streams()
    end_like(Watch(agent, trainer, grace_s, channel).until_all_have_gone())


def set_process_control(option: int, value: int) -> None:
    """prctl(2) with one argument; without effect where the kernel does not know the option."""
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


# --- the trainer -------------------------------------------------------------------------------------------


def fork_trainer(command: list[str], niceness: int, mask: Iterable[int]) -> int:
    """Its id. It gets SIGTERM when this process dies."""
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        print(f"raft-agent: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)
    if pid:
        return pid
    set_process_control(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(NOT_STARTED)
    os.setsid()
    offer_to_memory_killer()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    become(command, niceness)
    return 0


def become(command: list[str], niceness: int) -> None:
    """Replace this process by the trainer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if niceness:
        be_nice(niceness)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"raft-agent: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(NOT_STARTED)


def be_nice(niceness: int) -> None:
    """By so much below the agent. Where sessions are grouped, only the value of the trainer's own session counts for
    the user's other programs; what it starts is in that session too. A courtesy: refused, it stays as it is."""
    with contextlib.suppress(OSError):
        os.nice(niceness)
    group = group_nice()
    if group is not None:
        set_group_nice(min(MOST_NICE, group + niceness), most_s=0.5)


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


# --- watching ----------------------------------------------------------------------------------------------


class Watch:
    """Waits for everything below, and ends it once nobody waits for it any more."""

    def __init__(self, agent: int, trainer: int, grace_s: float, channel: int) -> None:
        self.agent, self.trainer, self.grace_s, self.channel = agent, trainer, grace_s, channel
        self.code: int | None = None
        """Of the trainer; None while it runs."""
        self.kill_at = self.give_up_at = float("inf")

    def until_all_have_gone(self) -> int:
        """How the trainer ended."""
        while self.reap():
            if os.getppid() != self.agent:
                self.alone()
            pause = min(LOOK_EVERY_S, max(0.01, self.kill_at - time.monotonic()))
            heard = signal.sigtimedwait(HEARD, pause)
            if heard is not None and heard.si_signo == signal.SIGTERM and os.getppid() == self.agent:
                self.ask_to_leave()  # the thread that started us has ended, or somebody means the trainer
        return self.code if self.code is not None else NOT_STARTED

    def reap(self) -> bool:
        """Collect whatever has ended; False once nothing is left below."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return False
            if ended is None:
                return True
            if ended.si_pid == self.trainer and self.code is None:
                self.code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                with contextlib.suppress(OSError):
                    os.write(self.channel, f"{self.code}\n".encode())

    def alone(self) -> None:
        """The agent has gone: nobody would end what runs on."""
        now = time.monotonic()
        if self.kill_at == float("inf"):
            self.kill_at = now + self.grace_s
            self.ask_to_leave()
        if self.code is not None:
            self.kill_at = min(self.kill_at, now + STRAYS_S)
        if now >= self.kill_at:
            for pid in descendant_pids(os.getpid()):
                send(pid, signal.SIGKILL)
            self.kill_at = now + 0.01
            self.give_up_at = min(self.give_up_at, now + KILLING_S)
            if now >= self.give_up_at:
                os._exit(NOT_STARTED)  # the kernel holds them in a call

    def ask_to_leave(self) -> None:
        """The trainer alone: it may need what it started to finish its step."""
        if self.code is None:
            send(self.trainer, signal.SIGTERM)
            send(self.trainer, signal.SIGCONT)  # one that was stopped hears nothing


def send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def let_go_of_streams() -> None:
    """The trainer's input and log are its own: whoever waits for its end by them must not wait for ours."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def end_like(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else NOT_STARTED)


if __name__ == "__main__":
    main()
