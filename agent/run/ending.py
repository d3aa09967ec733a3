"""End a process together with everything that it started: ask, wait, kill, until nothing is left.

Nothing is signalled that is not, at that moment, the very process that is meant (`agent.run.processes`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.proc import descendant_pids, has_ended, stat_of
from agent.run.processes import (
    ProcessIdentity,
    boot_id,
    collect_orphans,
    descendants,
    family,
    group_and_session,
    is_alive,
    is_zombie,
    start_time,
    started_of,
)

STRAY_GRACE_S = 2.0
"""What is still there after the trainer itself has gone gets this long after SIGTERM."""
KILL_PATIENCE_S = 10.0
"""A killed process that the kernel holds in a driver call is waited for this long, then named in the report."""
BURST_S = 0.5
"""Killing goes on without a pause for this long where new processes keep coming up."""
_STEP_S = 0.02


class AtOnce(KeyboardInterrupt):
    """A person asks a second time: what runs gets no more time to leave in good order."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    group, session = group_and_session(member.pid)
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
                one = (pid, started_of(fields))
                fresh = fresh or one not in killed
                killed.add(one)
                _send(pid, handle, signal.SIGKILL)
        if not fresh:
            if all(is_zombie(pid) for pid in pids):
                break
            sleep(0.001)
    return killed


def _take_off_leash(
    leader: ProcessIdentity, *, clock: Callable[[], float], sleep: Callable[[float], None], patience_s: float = 1.0
) -> None:
    """It ends by itself once nothing is left below it, unless somebody has stopped it."""
    root = leader.root
    if root is None:
        collect_orphans(leader)
        return
    _signal(root, signal.SIGCONT)
    deadline = clock() + patience_s
    while is_alive(root) and clock() < deadline:
        sleep(0.002)
    _signal(root, signal.SIGKILL)


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
