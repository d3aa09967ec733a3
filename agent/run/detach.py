"""Let a campaign outlive its terminal: start it detached, or go on in place when the terminal hangs up."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from agent.errors import ResourceError, TrainingFailed, Unavailable


def detach(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    settle_s: float = 0.5,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Start `command` in a session of its own, without a terminal, output appended to `log`; its process id.

    Returns once it has lived for `settle_s`, or has ended in good order before. A command that fails within that
    time raises TrainingFailed with the end of its output; one that cannot be started raises Unavailable, a log
    that cannot be written ResourceError. `env` is the whole environment; None inherits.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"\n=== {datetime.now().astimezone().isoformat(timespec='seconds')} detached ===\n".encode())
            output.flush()
            begin = output.tell()
            child = _spawn(command, output=output.fileno(), cwd=cwd, env=env)
    except OSError as error:
        hint = "check free space and permissions there"
        raise ResourceError(f"cannot be written: {error.strerror}", where=str(log), hint=hint) from error
    steps = max(1, round(settle_s / 0.05))
    for _ in range(steps):
        if child.poll() is not None:
            break
        sleep(settle_s / steps)
    if child.returncode:
        said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
        raise TrainingFailed(
            f"the detached command ended at once (exit code {child.returncode}): {said[-1] if said else 'no output'}",
            where=str(log),
        )
    # It is meant to outlive us: nobody here waits for it, and the interpreter must not warn of that.
    child.returncode = child.returncode or 0
    return child.pid


def _spawn(
    command: Sequence[str], *, output: int, cwd: Path | None, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise Unavailable(f"cannot start {command[0]}: {error.strerror}") from error


def _is_file(descriptor: int) -> bool:
    """After a hang-up a terminal says that it is none: only a file can be told for sure."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def survive_hangup(log: Path) -> Iterator[Callable[[int], None]]:
    """Within the block, SIGHUP (the terminal or the ssh connection has gone) sends output to `log` and ends nothing.
    What goes to a file already, goes on to that.

    Without the redirection the next write to the vanished terminal would raise and end the campaign after all.
    Only the main thread can set this up; elsewhere it does nothing. The block gets what sends one descriptor there: for
    a pipe whose reader has gone.
    """

    def to_log(*descriptors: int) -> None:
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for descriptor in descriptors:
                os.dup2(target, descriptor)
            os.close(target)

    def hung_up(number: int, frame: FrameType | None) -> None:
        to_log(*(descriptor for descriptor in (1, 2) if not _is_file(descriptor)))
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)

    try:
        before = signal.signal(signal.SIGHUP, hung_up)
    except ValueError:
        yield to_log
        return
    try:
        yield to_log
    finally:
        signal.signal(signal.SIGHUP, before)
