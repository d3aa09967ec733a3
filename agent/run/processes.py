"""Which process is which, and how to end one together with everything that it started.

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
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agent.proc import descendant_pids, has_ended, kernel_boot_id, stat_of
from agent.run.leash import OOM_SCORE

MARK = "RAFT_AGENT_RUN"
"""Environment variable that every process of a run carries; its value is unique to one start of a trainer."""

STRAY_GRACE_S = 2.0
"""What is still there after the trainer itself has gone gets this long after SIGTERM."""
KILL_PATIENCE_S = 10.0
"""A killed process that the kernel holds in a driver call is waited for this long, then named in the report."""
BURST_S = 0.5
"""Killing goes on without a pause for this long where new processes keep coming up."""
_STEP_S = 0.02


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
    return int(fields[19]) / _TICKS if fields else None


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
        return bool(fields) and not has_ended(fields) and int(fields[19]) / _TICKS == identity.started
    return start_time(identity.pid) == identity.started and not _is_zombie(identity.pid)


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
        if pid in ours or started is None or _is_zombie(pid):
            continue
        belongs = (
            (pid == leader.pid and started == leader.started)
            or (pid, started) in below
            or (pid, started) in remembered
            or (same_leader and leader.pid in _group_and_session(pid))
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
    """SIGTERM to the group, SIGKILL to whatever is left after `grace_s`, until nothing is left; the leash last.

    `dump_stack` sends SIGABRT before SIGKILL to a leader that did not leave: Python's fault handler then writes
    where it hung into the log. The caller that started the leader must reap it.
    """
    known = list(known)
    began = clock()
    was_alive = is_alive(leader)
    if was_alive:
        _signal_group(leader, signal.SIGTERM)
        _signal_group(leader, signal.SIGCONT)  # one that was stopped hears nothing else
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
    _take_off_leash(leader, clock=clock, sleep=sleep)
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
    remembered = {(one.pid, one.started): one for one in known}
    while members and clock() < deadline:  # a member may fork while we look, hence until none is found
        fresh = [one for one in members if (one.pid, one.started) not in remembered]
        seen |= {(one.pid, one.started) for one in members if one.pid != leader.pid}
        remembered.update({(one.pid, one.started): one for one in members})
        for member in members:
            _kill_with_group(leader, member)
        seen |= _burst(leader, clock=clock, sleep=sleep)
        if not fresh:
            sleep(_STEP_S)
        members = family(leader, known=remembered.values())
    return len(seen - {(leader.pid, leader.started)}), tuple(sorted(one.pid for one in members))


def _kill_with_group(leader: ProcessIdentity, member: ProcessIdentity) -> None:
    """The whole group in one step where it is the run's own: between two steps a member could fork.

    What is on a leash has a session that the run made, as nobody can join another (setsid(2), setpgid(2)).
    """
    group, session = _group_and_session(member.pid)
    if leader.leash is not None and group > 1 and session != os.getsid(0) and is_alive(member):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    _signal(member, signal.SIGKILL)


def _burst(
    leader: ProcessIdentity, *, clock: Callable[[], float], sleep: Callable[[float], None]
) -> set[tuple[int, float]]:
    """Kill what is below the leash as fast as it can be listed: one that forks and leaves, again and again, has a new
    number each time, and no slow look would ever meet it."""
    root = leader.root
    killed: set[tuple[int, float]] = set()
    until = clock() + BURST_S
    while root is not None and clock() < until:
        pids = descendant_pids(root.pid)
        fresh = False
        for pid in pids:
            with _handle(pid) as handle:
                fields = stat_of(pid)
                if not fields or has_ended(fields) or int(fields[1]) not in (root.pid, *pids):
                    continue
                one = (pid, int(fields[19]) / _TICKS)
                fresh = fresh or one not in killed
                killed.add(one)
                _send(pid, handle, signal.SIGKILL)
        if not fresh:
            if not any(_runs(pid) for pid in pids):
                break
            sleep(0.001)
    return killed


def _take_off_leash(
    leader: ProcessIdentity, *, clock: Callable[[], float], sleep: Callable[[float], None], patience_s: float = 1.0
) -> None:
    """It ends by itself once nothing is left below it, unless somebody has stopped it."""
    root = leader.root
    if root is None:
        _collect_orphans(leader)
        return
    _signal(root, signal.SIGCONT)
    deadline = clock() + patience_s
    while is_alive(root) and clock() < deadline:
        sleep(0.002)
    _signal(root, signal.SIGKILL)


def _collect_orphans(leader: ProcessIdentity) -> None:
    """What came to us when the leash was killed, and has ended since, is ours to wait for."""
    own = _oom_score(os.getpid())
    if leader.leash is None or own is None or own >= OOM_SCORE:
        return
    for pid in _children_of_ours():
        if (_oom_score(pid) or 0) >= OOM_SCORE and _is_zombie(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


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
    with _handle(process.pid) as handle:
        if is_alive(process):
            _send(process.pid, handle, number)


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[int | None]:
    """Means this process whoever gets its number later (pidfd_open(2), Linux 5.3); None where there is none."""
    try:
        handle = os.pidfd_open(pid)
    except (OSError, AttributeError):
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _send(pid: int, handle: int | None, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)


def _runs(pid: int) -> bool:
    return not _is_zombie(pid)


# --- reading the process table -----------------------------------------------------------------------------


def _is_zombie(pid: int) -> bool:
    if sys.platform.startswith("linux"):
        fields = stat_of(pid)
        return not fields or has_ended(fields)
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
