"""How a trainer process is started: what is fixed at its start, and the process itself.

Whether it gets its arguments at once or waits for them (`agent.run.standby`) makes no difference here: same leash,
same environment, same folder, same priority.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from agent.contract import STOP_GRACE_SECONDS
from agent.package import package_path
from agent.run.leash import PR_SET_CHILD_SUBREAPER, set_process_control
from agent.run.processes import MARK, ProcessIdentity, identify, trainer_identity
from agent.text import passed_on

TRAINER: tuple[str, ...] = (sys.executable, "-m", "agent.raft.worker")
LOW_NICENESS = 10
LEASH_GRACE_S = STOP_GRACE_SECONDS
"""What a trainer gets to finish its step once its agent has died."""
PATIENCE_S = 30.0
"""For the interpreter of the leash to start on a machine that has no time for it."""


class TrainerProcess:
    """A trainer on its leash. It is waited for like a `subprocess.Popen`, whose return codes it gives."""

    def __init__(self, leash: subprocess.Popen[bytes], identity: ProcessIdentity, channel: int) -> None:
        self.leash = leash
        self.identity = identity
        self._channel = channel
        self._code: int | None = None

    def poll(self) -> int | None:
        """How the trainer ended, whatever it has left behind; None while it runs."""
        if self._code is None and self._channel >= 0 and _can_be_read(self._channel, 0.0):
            told = os.read(self._channel, 64)
            self.close()
            self._code = int(told) if told.strip() else None
        if self._code is None and self._channel < 0:
            # The leash was killed, or has become the trainer, as it does outside Linux.
            self._code = self.leash.poll()
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Until the leash has gone, and with it everything below. Raises subprocess.TimeoutExpired."""
        code = self.leash.wait(timeout)
        known = self.poll()
        return code if known is None else known

    def close(self) -> None:
        """Nobody will ask any more."""
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1


@dataclass(frozen=True)
class Start:
    """Everything about a trainer process that can no longer be changed once it runs."""

    command: tuple[str, ...]
    """The trainer's command line without the arguments of `agent.contract`."""
    workspace: Path
    """Current folder."""
    environment: Mapping[str, str]
    """Complete, the mark of the run excepted."""
    low_priority: bool

    @classmethod
    def of(
        cls,
        command: Sequence[str],
        *,
        workspace: Path,
        variables: Mapping[str, str],
        low_priority: bool,
        inherited: Mapping[str, str] | None = None,
    ) -> Start:
        """`variables` come over the inherited environment and over what we need for ourselves. What is inherited is
        this process's environment without its secrets where not given."""
        inherited = passed_on(os.environ) if inherited is None else inherited
        environment = {**inherited, **_own_variables(command), **variables}
        return cls(tuple(command), workspace, environment, low_priority)

    def process(
        self, command: Sequence[str], *, mark: str, stdin: IO[bytes] | int, output: IO[bytes]
    ) -> TrainerProcess:
        """Start `command` on a leash that is tied to this process, in a session of its own. Raises OSError."""
        hears, tells = os.pipe()
        leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py")), str(os.getpid())]
        leash += [str(LOW_NICENESS if self.low_priority else 0), f"{LEASH_GRACE_S:g}", str(tells)]
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, hears)
            try:
                process = subprocess.Popen(
                    [*leash, *command],
                    stdin=stdin,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.workspace,
                    env={**self.environment, MARK: mark},
                    start_new_session=True,
                    pass_fds=(tells,),
                )
            finally:
                os.close(tells)
            ours.callback(_end_at_once, process)
            trainer = TrainerProcess(process, _told_identity(process, hears, mark), hears)
            ours.pop_all()
        if self.low_priority:
            _lower_io_priority(trainer.identity.pid)
        return trainer


def _told_identity(leash: subprocess.Popen[bytes], channel: int, mark: str) -> ProcessIdentity:
    """By the first line of the leash. Raises OSError where it could not start anything."""
    told, until = b"", time.monotonic() + PATIENCE_S
    while not told.endswith(b"\n"):
        if not _can_be_read(channel, max(0.0, until - time.monotonic())):
            raise OSError(errno.ETIMEDOUT, "no process could be started in time")
        piece = os.read(channel, 1)
        if not piece:
            raise OSError(errno.EAGAIN, "no process could be started")
        told += piece
    pid, ticks = map(int, told.split())
    if pid == leash.pid:  # no such parents on this system
        return identify(pid, mark=mark)
    return trainer_identity(pid, ticks, leash=identify(leash.pid), mark=mark)


def _can_be_read(descriptor: int, within_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * within_s))


def _end_at_once(leash: subprocess.Popen[bytes]) -> None:
    leash.kill()
    leash.wait()


_adopting = threading.Lock()
_runs = 0


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Within the block, what runs below a leash that is killed becomes a child of this process, and so is found."""
    global _runs
    if not sys.platform.startswith("linux"):
        yield
        return
    with _adopting:
        _runs += 1
        set_process_control(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        with _adopting:
            _runs -= 1
            if _runs == 0:
                set_process_control(PR_SET_CHILD_SUBREAPER, 0)


def _own_variables(command: Sequence[str]) -> dict[str, str]:
    """What we need for ourselves: logs without buffering, a stack on a fatal signal, our own package.

    Another trainer may need its own folder on the module path, so PYTHONSAFEPATH is set for ours only
    (`agent.package`).
    """
    variables = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": package_path(os.environ.get("PYTHONPATH")),
    }
    if tuple(command[1:3]) == TRAINER[1:]:
        variables["PYTHONSAFEPATH"] = "1"
    return variables


def _lower_io_priority(pid: int) -> None:
    """Disk access only when nobody else wants it, where the system knows such a class (ioprio_set(2))."""
    idle = getattr(psutil, "IOPRIO_CLASS_IDLE", None)
    if idle is not None and hasattr(psutil.Process, "ionice"):
        try:
            psutil.Process(pid).ionice(idle)
        except psutil.Error:
            pass  # it has ended already, or the system does not allow it: a courtesy, not a condition
