"""Which process is which, what it has started, and what they use (`agent.run.ending` ends them).

A process id alone proves nothing: ids are used again. A process is named here by id, start time and boot, and
one whose three do not match is never signalled. On Linux everything that a training starts stays below its leash
(`leash.py`), whatever it does to its environment, group, session and parent, and is found there. Where there is no
leash, or somebody killed it, it is found in what ways are left, because each misses something: the process group, the
session, the descendants seen while it ran, a mark in the environment that children inherit, and, among the orphans that
came to this process, the memory killer's score that the leash gave and that none but a privileged one can take back.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agent.proc import descendant_pids, has_ended, kernel_boot_id, stat_of
from agent.run.leash import OOM_SCORE

MARK = "RAFT_AGENT_RUN"
"""Environment variable that every process of a run carries; its value is unique to one start of a trainer."""


@dataclass(frozen=True)
class ProcessIdentity:
    pid: int
    started: float
    """Seconds since boot on Linux (setting the clock does not move it), since 1970 elsewhere."""
    boot_id: str
    mark: str = ""
    """Value of the variable MARK in its environment and in that of everything it starts."""
    leash: tuple[int, float] | None = None
    """Id and start time of the process below which everything that it starts stays; None where there is none."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ProcessIdentity:
        """As `json.loads` gives what `json.dumps(identity.__dict__)` wrote. Raises TypeError, ValueError."""
        leash = fields.get("leash")
        return cls(**{**fields, "leash": (int(leash[0]), float(leash[1])) if leash else None})

    @property
    def root(self) -> ProcessIdentity | None:
        """The leash, where there is one and it lives."""
        if self.leash is None:
            return None
        leash = ProcessIdentity(*self.leash, self.boot_id)
        return leash if is_alive(leash) else None


def new_mark() -> str:
    return secrets.token_hex(8)


@functools.cache
def boot_id() -> str:
    """Differs after every boot of the machine."""
    return kernel_boot_id() or f"boot-{psutil.boot_time():.0f}"


def start_time(pid: int) -> float | None:
    """When the process started, in the unit of `ProcessIdentity.started`; None where there is none."""
    if not sys.platform.startswith("linux"):
        try:
            return psutil.Process(pid).create_time()
        except psutil.Error:
            return None
    fields = stat_of(pid)
    return started_of(fields) if fields else None


def started_of(fields: list[str]) -> float:
    """What `start_time` tells on Linux, by the fields of `stat_of`."""
    return int(fields[19]) / _TICKS


def identify(pid: int, *, mark: str = "") -> ProcessIdentity:
    """Raises ProcessLookupError where there is no such process."""
    started = start_time(pid)
    if started is None:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
    return ProcessIdentity(pid=pid, started=started, boot_id=boot_id(), mark=mark)


def trainer_identity(pid: int, ticks: int, *, leash: ProcessIdentity, mark: str) -> ProcessIdentity:
    """A trainer by what its leash has told: id and start time in the kernel's ticks since boot."""
    return ProcessIdentity(pid, ticks / _TICKS, boot_id(), mark, (leash.pid, leash.started))


def is_alive(identity: ProcessIdentity) -> bool:
    """The very process runs; a zombie does not, nor does another process that has its number now."""
    if identity.boot_id != boot_id():
        return False
    if sys.platform.startswith("linux"):  # one look, and not two: this is asked twenty times a second
        fields = stat_of(identity.pid)
        return bool(fields) and not has_ended(fields) and started_of(fields) == identity.started
    return start_time(identity.pid) == identity.started and not is_zombie(identity.pid)


def family(leader: ProcessIdentity, *, known: Iterable[ProcessIdentity] = ()) -> list[ProcessIdentity]:
    """Every living process of the run: what is below its leash, its group, its session, those `known` from before,
    those that carry its mark, and orphans of a leash that was killed.

    Never this process or one it descends from, nor the leash. Group and session count only while the leader's number
    still is the leader's, or a member carries the mark: an empty group's number is free for others.
    """
    ours = _self_and_ancestors()
    if leader.leash is not None:
        ours.add(leader.leash[0])
    same_leader = _number_is_still(leader)
    remembered = {(one.pid, one.started) for one in known}
    below = {(one.pid, one.started) for one in [*descendants(leader), *orphans_of(leader)]}
    found = []
    for pid in psutil.pids():
        started = start_time(pid)
        if pid in ours or started is None or is_zombie(pid):
            continue
        belongs = (
            (pid == leader.pid and started == leader.started)
            or (pid, started) in below
            or (pid, started) in remembered
            or (same_leader and leader.pid in group_and_session(pid))
            or (leader.mark != "" and _has_mark(pid, leader.mark))
        )
        if belongs:
            found.append(ProcessIdentity(pid, started, leader.boot_id, leader.mark))
    return found


def descendants(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """Children, children's children and so on that are alive now, and on a leash all that ever were and still live."""
    root = leader.root or leader
    return [one for one in _identities(descendant_pids(root.pid), leader) if one.pid != leader.pid]


def orphans_of(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """What came to this process when the leash was killed (`agent.run.start.adopting_orphans`), and what is below it.

    Told from children of our own by the memory killer's score: theirs is ours, and the leash raised the run's.
    """
    own = _oom_score(os.getpid())
    if leader.leash is None or leader.root is not None or own is None or own >= OOM_SCORE:
        return []
    adopted = [
        one
        for one in _identities(_children_of_ours(), leader)
        if one.started >= leader.leash[1] and (_oom_score(one.pid) or 0) >= OOM_SCORE
    ]
    below = [pid for one in adopted for pid in descendant_pids(one.pid)]
    return [*adopted, *_identities(below, leader)]


def collect_orphans(leader: ProcessIdentity) -> None:
    """What came to us when the leash was killed, and has ended since, is ours to wait for."""
    own = _oom_score(os.getpid())
    if leader.leash is None or own is None or own >= OOM_SCORE:
        return
    for pid in _children_of_ours():
        if (_oom_score(pid) or 0) >= OOM_SCORE and is_zombie(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _children_of_ours() -> list[int]:
    return [pid for pid in descendant_pids(os.getpid()) if (fields := stat_of(pid)) and int(fields[1]) == os.getpid()]


def _identities(pids: Iterable[int], leader: ProcessIdentity) -> list[ProcessIdentity]:
    found = []
    for pid in pids:
        started = start_time(pid)
        if started is not None:
            found.append(ProcessIdentity(pid, started, leader.boot_id, leader.mark))
    return found


def _oom_score(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Use:
    """What the processes of a run hold now, and what they have used since they were first measured."""

    resident_bytes: int
    """Pages that members share are counted once for each."""
    cpu_s: float
    """Processor seconds."""
    read_bytes: int | None
    written_bytes: int | None
    """From and to disks, page cache not counted; None where the system does not tell."""


class Meter:
    """Adds up over the processes of a run. What one has used stays counted when it has gone."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, float], tuple[float, int | None, int | None]] = {}
        self._cpu_s = 0.0
        self._read: int | None = None
        self._written: int | None = None

    def read(self, members: Iterable[ProcessIdentity]) -> Use:
        """Processes that have ended since are passed over."""
        resident = 0
        for member in members:
            now = _usage(member)
            if now is None:
                continue
            size, cpu_s, read, written = now
            before = self._last.get((member.pid, member.started), (0.0, 0, 0))
            self._last[member.pid, member.started] = cpu_s, read, written
            resident += size
            self._cpu_s += max(0.0, cpu_s - before[0])
            self._read = _grown(self._read, before[1], read)
            self._written = _grown(self._written, before[2], written)
        return Use(resident, self._cpu_s, self._read, self._written)


def _grown(total: int | None, before: int | None, now: int | None) -> int | None:
    return total if now is None else (total or 0) + max(0, now - (before or 0))


def _usage(process: ProcessIdentity) -> tuple[int, float, int | None, int | None] | None:
    """(resident bytes, processor seconds, bytes read, bytes written); None where the process has gone."""
    if not sys.platform.startswith("linux"):
        try:
            known = psutil.Process(process.pid)
            times = known.cpu_times()
            return known.memory_info().rss, times.user + times.system, None, None
        except psutil.Error:
            return None
    fields = stat_of(process.pid)
    if len(fields) < 22 or started_of(fields) != process.started:
        return None
    read, written = _disk_bytes(process.pid)
    return int(fields[21]) * _PAGE, (int(fields[11]) + int(fields[12])) / _TICKS, read, written


def _disk_bytes(pid: int) -> tuple[int | None, int | None]:
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return None, None
    known = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    try:
        return int(known["read_bytes"]), int(known["write_bytes"])
    except (KeyError, ValueError):
        return None, None


_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


# --- reading the process table -----------------------------------------------------------------------------


def is_zombie(pid: int) -> bool:
    if sys.platform.startswith("linux"):
        fields = stat_of(pid)
        return not fields or has_ended(fields)
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def group_and_session(pid: int) -> tuple[int, int]:
    try:
        return os.getpgid(pid), os.getsid(pid)
    except OSError:
        return 0, 0


def _number_is_still(leader: ProcessIdentity) -> bool:
    """The leader, or its zombie, has the number. Without either, the number may be another group's by now."""
    return leader.boot_id == boot_id() and start_time(leader.pid) == leader.started


def _has_mark(pid: int, mark: str) -> bool:
    if sys.platform.startswith("linux"):
        try:
            return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
    try:
        return psutil.Process(pid).environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _self_and_ancestors() -> set[int]:
    return {os.getpid(), *_ancestors()}


def _ancestors() -> Iterator[int]:
    with contextlib.suppress(psutil.Error):
        yield from (parent.pid for parent in psutil.Process().parents())
