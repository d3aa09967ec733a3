"""One agent at a time in a workspace, and in a repository: workspaces of one repository (sub-folders, linked worktrees)
share branches and notes.

The lock is the kernel's (`flock` on `.raft/lock`, and on `raft-agent/lock` in the git folder that the worktrees share).
It ends with the process, however that ends, so there never is a stale one; child processes do not inherit it, so a
training that outlives a killed agent does not keep it. The text in the file only tells people who holds it.

A file system that cannot lock (some network file systems) gets a file instead that is there as long as the lock is held
(link(2) is atomic there too). A killed agent leaves it behind: it is stale where the machine has booted since, or the
process has gone or is another one by now. That of another machine is never judged from here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from agent.errors import AgentError, Busy
from agent.ledger.disk import disk_errors
from agent.ledger.objects import common_folder
from agent.ledger.workspace import Workspace
from agent.proc import kernel_boot_id, start_ticks

CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""What flock(2) answers on file systems without locks."""
BEYOND_NAMES = "an unknown host"


CAMPAIGN = "campaign "
"""How the words begin that a campaign leaves at the lock; its name follows."""


@dataclass(frozen=True)
class Holder:
    """Who works in a workspace. `since` is Unix seconds."""

    pid: int
    host: str
    since: float
    what: str = ""
    where: str = ""
    """Its workspace."""
    started: int | None = None
    """Of the process, clock ticks since boot: a number alone is given to others later."""
    boot: str | None = None
    namespace: str | None = None
    """Of process ids: another container on the same machine has numbers of its own."""

    @classmethod
    def here(cls, what: str, where: Path, now: float) -> Holder:
        pid = os.getpid()
        return cls(pid, socket.gethostname(), now, what, str(where), start_ticks(pid), kernel_boot_id(), _namespace())

    def describe(self, now: float) -> str:
        began = datetime.fromtimestamp(self.since).astimezone().isoformat(sep=" ", timespec="seconds")
        minutes = max(0, round((now - self.since) / 60))
        what = f" ({self.what})" if self.what else ""
        return f"process {self.pid} on {self.host}{what}, since {began}, {minutes} min ago"

    def works_on(self, campaign: str) -> bool:
        return self.what == f"{CAMPAIGN}{campaign}"

    def has_gone(self) -> bool:
        """Surely: the same machine has booted since, or has no such process any more."""
        if self.host != socket.gethostname():
            return False
        if self.boot is not None and self.boot != kernel_boot_id():
            return True
        if self.namespace != _namespace():
            return False
        return start_ticks(self.pid) != self.started if self.started is not None else not _exists(self.pid)


@contextmanager
def hold(
    workspace: Workspace,
    *,
    what: str = "",
    clock: Callable[[], float] = time.time,
    patience_s: float = 0.3,
) -> Iterator[Holder]:
    """Hold the workspace and its repository for as long as the block runs. Raises Busy, naming who holds it.

    `what` tells people what for (the campaign's name). `patience_s` bridges the instant in which `holder_of` looks.
    Detach or fork first: a forked copy of this process would share the lock.
    """
    workspace.prepare()
    holder = Holder.here(what, workspace.root, clock())
    with contextlib.ExitStack() as locks:
        locks.enter_context(_held(workspace.lock_path, holder, "workspace", patience_s))
        shared = _repository_lock(workspace)
        if shared is not None:
            locks.enter_context(_held(shared, holder, "repository", patience_s))
        yield holder


def holder_of(workspace: Workspace) -> Holder | None:
    """Who holds the workspace just now, or None. What a killed process left in the file does not count."""
    return _holder(workspace.lock_path)


def campaign_holder(workspace: Workspace, name: str) -> Holder | None:
    """The process that runs this campaign, or None: whoever holds the workspace for something else runs none."""
    holder = holder_of(workspace)
    return holder if holder is not None and holder.works_on(name) else None


def running_campaign(workspace: Workspace) -> str | None:
    """The campaign that runs in this workspace, by name."""
    holder = holder_of(workspace)
    return holder.what.removeprefix(CAMPAIGN) if holder and holder.what.startswith(CAMPAIGN) else None


def refuse_if_held(workspace: Workspace, *, clock: Callable[[], float] = time.time) -> None:
    """Raises Busy where the workspace or its repository is held now, for those who leave the holding to another."""
    shared = _repository_lock(workspace)
    for path, of in ((workspace.lock_path, "workspace"), (shared, "repository")):
        holder = _holder(path) if path is not None else None
        if holder is not None and path is not None:
            raise _busy(holder, clock(), of=of, path=path)


def _repository_lock(workspace: Workspace) -> Path | None:
    """None where there is no repository: whoever needs one says so."""
    try:
        return common_folder(workspace.root) / "raft-agent" / "lock"
    except AgentError:
        return None


# ---- one lock


@contextmanager
def _held(path: Path, holder: Holder, of: str, patience_s: float) -> Iterator[None]:
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        locked = _lock(descriptor, patience_s)
        if locked is None:
            with _claimed(path, holder, of):
                yield
            return
        if not locked:
            raise _busy(_read_holder(path), holder.since, of=of, path=path)
        with disk_errors(path):
            _write(descriptor, json.dumps(asdict(holder)))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                _write(descriptor, "")
    finally:
        os.close(descriptor)


def _holder(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # shared, so that two who look at the same time do not take each other for a holder
        locked = _lock(descriptor, 0.0, fcntl.LOCK_SH)
        if locked is None:
            claimed = _read_holder(_claim_of(path))
            return None if claimed is None or claimed.has_gone() else claimed
        if locked:
            return None
        return _read_holder(path) or Holder(0, BEYOND_NAMES, time.time())
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience_s: float, how: int = fcntl.LOCK_EX) -> bool | None:
    """Whether the kernel's lock is ours now; None where this file system has none."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            if error.errno in CANNOT_LOCK:
                return None
            raise


# ---- where the file system cannot lock


def _claim_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


@contextmanager
def _claimed(path: Path, holder: Holder, of: str) -> Iterator[None]:
    """A file that says who, made in one step, and removed at the end."""
    claim = _claim_of(path)
    mine = claim.with_name(f"{claim.name}.{secrets.token_hex(6)}")
    with disk_errors(path):
        mine.write_text(json.dumps(asdict(holder)))
    try:
        for _ in range(5):
            try:
                claim.hardlink_to(mine)
                break
            except FileExistsError:
                known = _read_holder(claim)
                if known is None or not known.has_gone():
                    raise _busy(known, holder.since, of=of, path=claim, by_file=True) from None
                _remove_stale(claim, mine)
        else:
            raise _busy(_read_holder(claim), holder.since, of=of, path=claim, by_file=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if _read_holder(claim) == holder:
                    claim.unlink()
    finally:
        mine.unlink(missing_ok=True)


def _remove_stale(claim: Path, mine: Path) -> None:
    """One of several at a time, so that none removes what another has put there meanwhile: only these here remove what
    is not their own."""
    breaking = claim.with_name(f"{claim.name}.breaking")
    try:
        breaking.hardlink_to(mine)
    except FileExistsError:
        other = _read_holder(breaking)
        if other is not None and other.has_gone():
            breaking.unlink(missing_ok=True)
        time.sleep(0.05)
        return
    try:
        known = _read_holder(claim)
        if known is not None and known.has_gone():
            claim.unlink(missing_ok=True)
    finally:
        breaking.unlink(missing_ok=True)


# ---- words


def _read_holder(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()[:4096]))
    except (OSError, ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _busy(holder: Holder | None, now: float, *, of: str, path: Path, by_file: bool = False) -> Busy:
    who = holder.describe(now) if holder else "a process that has not left its name yet"
    place = f", in {holder.where}" if holder and holder.where and of == "repository" else ""
    hint = "`raft-agent status` shows what it does; wait for it, or end it with Ctrl-C there"
    if by_file:
        hint += f"; this file system has no locks, so if you are sure that it has gone: rm {path}"
    return Busy(f"another run holds this {of}: {who}{place}", hint=hint)
