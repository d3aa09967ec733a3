"""Which process is which, and how to end one together with everything that it started.

A process id alone proves nothing: ids are used again. A process is named here by id, start time and boot, and
one whose three do not match is never signalled. What a training started is found in four ways, because each
misses something: the process group, the session, the descendants seen while it ran, and a mark in the
environment that children inherit (it also finds a child that made a session of its own and lost its parent).
A child that leaves all four on purpose, by clearing its environment as well, is not found.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "RAFT_AGENT_RUN"
"""Environment variable that every process of a run carries; its value is unique to one start of a trainer."""

STRAY_GRACE_S = 2.0
"""What is still there after the trainer itself has gone gets this long after SIGTERM."""
KILL_PATIENCE_S = 10.0
"""A killed process that the kernel holds in a driver call is waited for this long, then named in the report."""
_STEP_S = 0.02


@dataclass(frozen=True)
class ProcessIdentity:
    pid: int
    started: float
    """Seconds since boot on Linux (setting the clock does not move it), since 1970 elsewhere."""
    boot_id: str
    mark: str = ""
    """Value of the variable MARK in its environment and in that of everything it starts."""


def new_mark() -> str:
    return secrets.token_hex(8)


@functools.cache
def boot_id() -> str:
    """Differs after every boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def start_time(pid: int) -> float | None:
    """When the process started, in the unit of `ProcessIdentity.started`; None where there is none."""
    if not sys.platform.startswith("linux"):
        try:
            return psutil.Process(pid).create_time()
        except psutil.Error:
            return None
    fields = _stat(pid)
    return int(fields[19]) / _TICKS if fields else None


def identify(pid: int, *, mark: str = "") -> ProcessIdentity:
    """Raises ProcessLookupError where there is no such process."""
    started = start_time(pid)
    if started is None:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
    return ProcessIdentity(pid=pid, started=started, boot_id=boot_id(), mark=mark)


def is_alive(identity: ProcessIdentity) -> bool:
    """The very process runs; a zombie does not, nor does another process that has its number now."""
    if identity.boot_id != boot_id():
        return False
    if sys.platform.startswith("linux"):  # one look, and not two: this is asked twenty times a second
        fields = _stat(identity.pid)
        return bool(fields) and fields[0] not in ("Z", "X") and int(fields[19]) / _TICKS == identity.started
    return start_time(identity.pid) == identity.started and not _is_zombie(identity.pid)


def family(leader: ProcessIdentity, *, known: Iterable[ProcessIdentity] = ()) -> list[ProcessIdentity]:
    """Every living process of the run: its group, its session, those `known` from before, those that carry its mark.

    Never this process or one it descends from. Group and session count only while the leader's number still is
    the leader's, or a member carries the mark: an empty group's number is free for others.
    """
    ours = _self_and_ancestors()
    same_leader = _number_is_still(leader)
    remembered = {(one.pid, one.started) for one in known}
    found = []
    for pid in psutil.pids():
        started = start_time(pid)
        if pid in ours or started is None or _is_zombie(pid):
            continue
        belongs = (
            (pid == leader.pid and started == leader.started)
            or (pid, started) in remembered
            or (same_leader and leader.pid in _group_and_session(pid))
            or (leader.mark != "" and _has_mark(pid, leader.mark))
        )
        if belongs:
            found.append(ProcessIdentity(pid, started, leader.boot_id, leader.mark))
    return found


def descendants(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """Children, children's children and so on that are alive now."""
    found = []
    for pid in _descendant_pids(leader.pid):
        started = start_time(pid)
        if started is not None:
            found.append(ProcessIdentity(pid, started, leader.boot_id, leader.mark))
    return found


def _descendant_pids(pid: int) -> list[int]:
    """By the kernel's own list of each thread's children where it keeps one (proc(5), /proc/PID/task/TID/children):
    a walk through the whole process table takes some 10 ms on a desktop, and this is asked every second."""
    if not Path(f"/proc/{pid}/task/{pid}/children").exists():
        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = [child for child in _children(waiting.pop()) if child not in found]
        found += children
        waiting += children
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError, ValueError):
            text = (thread / "children").read_text()
            found += [int(word) for word in text.split()]
    return found


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
    fields = _stat(process.pid)
    if len(fields) < 22 or int(fields[19]) / _TICKS != process.started:
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


# --- ending ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    words: str
    """How it ended, for people."""
    forced: bool
    """SIGKILL was needed for the leader."""
    left: tuple[int, ...]
    """Process ids that do not die: the kernel holds them in a call."""


def end_family(
    leader: ProcessIdentity,
    *,
    known: Iterable[ProcessIdentity] = (),
    grace_s: float,
    dump_stack: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Ending:
    """SIGTERM to the group, SIGKILL to whatever is left after `grace_s`, until nothing is left.

    `dump_stack` sends SIGABRT before SIGKILL to a leader that did not leave: Python's fault handler then writes
    where it hung into the log. The caller that started the leader must reap it.
    """
    known = list(known)
    began = clock()
    was_alive = is_alive(leader)
    if was_alive:
        _signal_group(leader, signal.SIGTERM)
    while is_alive(leader) and clock() - began < grace_s:
        sleep(_STEP_S)
    forced = is_alive(leader)
    took = clock() - began
    if forced and dump_stack:
        _signal(leader, signal.SIGABRT)
        deadline = clock() + 1.0
        while is_alive(leader) and clock() < deadline:
            sleep(_STEP_S)
    strays, left = _sweep(leader, known, polite=grace_s > 0 and not forced, clock=clock, sleep=sleep)
    return Ending(_words(was_alive, forced=forced, took=took, strays=strays, left=left), forced, left)


def _sweep(
    leader: ProcessIdentity,
    known: list[ProcessIdentity],
    *,
    polite: bool,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[int, tuple[int, ...]]:
    """End what is left of the run; (how many there were besides the leader, ids of those that do not die)."""
    members = family(leader, known=known)
    seen = {(one.pid, one.started) for one in members if one.pid != leader.pid}
    if polite and members:
        _signal_all(members, signal.SIGTERM)
        deadline = clock() + STRAY_GRACE_S
        while any(is_alive(one) for one in members) and clock() < deadline:
            sleep(_STEP_S)
        members = family(leader, known=known)
    deadline = clock() + KILL_PATIENCE_S
    while members and clock() < deadline:  # a member may fork while we look, hence until none is found
        seen |= {(one.pid, one.started) for one in members if one.pid != leader.pid}
        known.extend(members)
        _signal_all(members, signal.SIGKILL)
        sleep(_STEP_S)
        members = family(leader, known=known)
    return len(seen), tuple(sorted(one.pid for one in members))


def _words(was_alive: bool, *, forced: bool, took: float, strays: int, left: tuple[int, ...]) -> str:
    if not was_alive:
        words = "had already ended"
    elif forced:
        words = f"did not leave within {took:.1f} s of SIGTERM and was killed"
    else:
        words = f"left {took:.1f} s after SIGTERM"
    if strays:
        words += f"; {strays} more that it had started ended too"
    if left:
        numbers = ", ".join(map(str, left))
        words += f"; process {numbers} does not die even of SIGKILL (held by the kernel, often by a driver)"
    return words


def end_process_group(
    identity: ProcessIdentity,
    grace_s: float = 20.0,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """End a training that an earlier, killed agent has left behind. What happened, or why nothing was done, in words.

    Refuses unless id, start time and boot match. What that training started and left behind is ended by its mark
    even where it has itself gone.
    """
    if identity.boot_id != boot_id():
        return f"process {identity.pid}: nothing to end, the machine has been started again since"
    if is_alive(identity):
        ending = end_family(identity, known=descendants(identity), grace_s=grace_s, clock=clock, sleep=sleep)
        return f"process {identity.pid} {ending.words}"
    left = family(identity)
    if left:
        ending = end_family(identity, known=left, grace_s=min(grace_s, STRAY_GRACE_S), clock=clock, sleep=sleep)
        return f"process {identity.pid} {ending.words}"
    if start_time(identity.pid) not in (None, identity.started):
        return f"process {identity.pid}: refused, that number belongs to another process now"
    return f"process {identity.pid}: nothing to end, it has gone"


def _signal_group(leader: ProcessIdentity, number: signal.Signals) -> None:
    """To the whole group at once where the leader has its own, else to the leader alone."""
    if not is_alive(leader):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(leader.pid) == leader.pid and leader.pid != os.getpgrp():
            os.killpg(leader.pid, number)
        else:
            os.kill(leader.pid, number)


def _signal_all(members: Iterable[ProcessIdentity], number: signal.Signals) -> None:
    for member in members:
        _signal(member, number)


def _signal(process: ProcessIdentity, number: signal.Signals) -> None:
    """Only if it still is that very process."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


# --- reading the process table -----------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may hold blanks and brackets."""
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = os.read(file, 4096).decode(errors="replace")
    except OSError:  # it has gone between the two
        return []
    finally:
        os.close(file)
    return text.rpartition(")")[2].split()


def _is_zombie(pid: int) -> bool:
    if sys.platform.startswith("linux"):
        return _stat(pid)[:1] in ([], ["Z"], ["X"])
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _group_and_session(pid: int) -> tuple[int, int]:
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
