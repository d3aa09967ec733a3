"""One agent at a time in a workspace.

The lock is the kernel's (`flock` on `.raft/lock`). It ends with the process, however that ends, so there never is
a stale one; child processes do not inherit it, so a training that outlives a killed agent does not keep it. The
text in the file only tells people who holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime

from agent.errors import Busy, WorkspaceError
from agent.ledger.disk import disk_errors
from agent.ledger.workspace import Workspace


@dataclass(frozen=True)
class Holder:
    """Who works in a workspace. `since` is Unix seconds."""

    pid: int
    host: str
    since: float
    what: str = ""

    def describe(self, now: float) -> str:
        began = datetime.fromtimestamp(self.since).astimezone().isoformat(sep=" ", timespec="seconds")
        minutes = max(0, round((now - self.since) / 60))
        what = f" ({self.what})" if self.what else ""
        return f"process {self.pid} on {self.host}{what}, since {began}, {minutes} min ago"


@contextmanager
def hold(
    workspace: Workspace,
    *,
    what: str = "",
    clock: Callable[[], float] = time.time,
    patience_s: float = 0.3,
) -> Iterator[Holder]:
    """Hold the workspace for as long as the block runs. Raises Busy, naming who holds it.

    `what` tells people what for (the campaign's name). `patience_s` bridges the instant in which `holder_of` looks.
    Detach or fork first: a forked copy of this process would share the lock.
    """
    workspace.prepare()
    with disk_errors(workspace.lock_path):
        descriptor = os.open(workspace.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _lock(descriptor, patience_s, workspace):
            raise _busy(_read_holder(descriptor), clock())
        holder = Holder(os.getpid(), socket.gethostname(), clock(), what)
        with disk_errors(workspace.lock_path):
            _write(descriptor, json.dumps(asdict(holder)))
        try:
            yield holder
        finally:
            _write(descriptor, "")
    finally:
        os.close(descriptor)


def holder_of(workspace: Workspace) -> Holder | None:
    """Who holds the workspace just now, or None. What a killed process left in the file does not count."""
    try:
        descriptor = os.open(workspace.lock_path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _lock(descriptor, 0.0, workspace):
            return None
        return _read_holder(descriptor) or Holder(0, "an unknown host", time.time())
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience_s: float, workspace: Workspace) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            raise WorkspaceError(
                f"this file system cannot lock files ({error.strerror})",
                where=str(workspace.lock_path),
                hint="put the workspace on a local disk",
            ) from error


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _busy(holder: Holder | None, now: float) -> Busy:
    who = holder.describe(now) if holder else "a process that has not left its name yet"
    return Busy(
        f"another run holds this workspace: {who}",
        hint="`raft-agent status` shows what it does; wait for it, or end it with Ctrl-C there",
    )
