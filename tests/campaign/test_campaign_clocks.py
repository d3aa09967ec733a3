"""Budgets and deadlines while the clock is set, the machine is suspended, and the campaign is resumed in the past."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.campaign.budget import BudgetClock, last_moment

NOON = datetime.datetime(2026, 1, 2, 12, 0, tzinfo=datetime.UTC)
HOUR, YEAR = 3600.0, 365 * 86400.0


@dataclass
class Machine:
    """Three clocks that only `runs`, `sleeps` and `is_set` move, as Linux's do."""

    monotonic_s: float = 5000.0
    boottime_s: float = 9000.0
    wall_s: float = 0.0
    """Of what the wall clock shows, since NOON."""
    true_s: float = 0.0

    def runs(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.sleeps(seconds)

    def sleeps(self, seconds: float) -> None:
        self.boottime_s += seconds
        self.wall_s += seconds
        self.true_s += seconds

    def is_set(self, by: float) -> None:
        self.wall_s += by

    def wall(self) -> datetime.datetime:
        return NOON + datetime.timedelta(seconds=self.wall_s)

    def clock(self, budget_s: float | None = None, **options: object) -> BudgetClock:
        return BudgetClock(
            budget_s,
            monotonic=lambda: self.monotonic_s,
            boottime=lambda: self.boottime_s,
            wall=self.wall,
            **options,  # type: ignore[arg-type]  # passed on
        )


def in_s(seconds: float) -> datetime.datetime:
    return NOON + datetime.timedelta(seconds=seconds)


@pytest.mark.parametrize("by", [-3 * HOUR, 3 * HOUR, -30 * YEAR, 30 * YEAR, -1.0, 1.0])
def test_a_clock_that_is_set_moves_no_budget(by: float) -> None:
    machine = Machine()
    clock = machine.clock(1000.0)
    machine.runs(100)
    machine.is_set(by)
    assert (clock.consumed_s, clock.left_s) == (100.0, 900.0)
    machine.runs(900)
    assert clock.left_s == 0.0


def test_a_suspended_machine_consumes_nothing_and_the_deadline_comes_nearer() -> None:
    machine = Machine()
    clock = machine.clock(4 * HOUR, deadline=in_s(8 * HOUR))
    machine.runs(HOUR)
    machine.sleeps(5 * HOUR)
    assert clock.consumed_s == HOUR
    assert clock.left_s == 2 * HOUR  # the deadline; the budget has three
    machine.sleeps(3 * HOUR)
    assert clock.left_s == -HOUR


def test_a_deadline_holds_when_the_clock_is_set_back() -> None:
    machine = Machine()
    clock = machine.clock(deadline=in_s(2 * HOUR))
    assert clock.left_s == 2 * HOUR
    machine.runs(0.5 * HOUR)
    machine.is_set(-6 * HOUR)
    assert clock.left_s == 1.5 * HOUR
    machine.sleeps(1.0 * HOUR)
    machine.runs(0.5 * HOUR)
    assert clock.left_s == 0.0


def test_a_deadline_is_a_time_of_day_when_the_clock_was_late() -> None:
    """Set forward by NTP: the people who want their machine back go by that clock."""
    machine = Machine()
    clock = machine.clock(deadline=in_s(2 * HOUR))
    machine.runs(0.25 * HOUR)
    machine.is_set(HOUR)
    assert clock.left_s == 0.75 * HOUR
    machine.is_set(-HOUR)  # and back again: no further away
    assert clock.left_s == 0.75 * HOUR


def test_a_campaign_that_is_resumed_in_the_past_has_no_more_time_than_when_it_stopped() -> None:
    machine = Machine()
    stopped = machine.wall() + datetime.timedelta(hours=5)
    machine.is_set(-10 * HOUR)
    clock = machine.clock(deadline=in_s(8 * HOUR), latest=stopped)
    assert clock.left_s == 3 * HOUR
    machine.runs(HOUR)
    assert clock.left_s == 2 * HOUR
    machine.is_set(+16 * HOUR)  # right again, and later than what we could know
    assert clock.left_s == 1 * HOUR


def test_the_last_moment_of_a_journal_may_hold_nonsense() -> None:
    assert last_moment([]) is None
    assert last_moment([float("nan"), -1.0, 1e300]) is None
    told = last_moment([100.0, 2e9, 1e300, 5.0])
    assert told is not None
    assert told.timestamp() == 2e9


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("runs"), st.floats(0, 50_000)),
        st.tuples(st.just("sleeps"), st.floats(0, 500_000)),
        st.tuples(st.just("is_set"), st.floats(-50 * YEAR, 50 * YEAR)),
    ),
    max_size=30,
)


@dataclass
class Told:
    consumed: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, budget=st.one_of(st.none(), st.floats(1, 1e6)), until=st.floats(60, 1e6))
def test_whatever_the_clocks_do(steps: list[tuple[str, float]], budget: float | None, until: float) -> None:
    machine = Machine()
    clock = machine.clock(budget, deadline=in_s(until))
    ran, told = 0.0, Told()
    told.consumed.append(clock.consumed_s)
    told.left.append(clock.left_s)
    for what, seconds in steps:
        getattr(machine, what)(seconds)
        ran += seconds if what == "runs" else 0.0
        told.consumed.append(clock.consumed_s)
        told.left.append(clock.left_s)
        assert clock.consumed_s == pytest.approx(ran, abs=1e-3)  # neither a suspend nor a set clock is in it
        assert clock.left_s <= until - machine.true_s + 1e-3  # the deadline as it was far away at the start
    assert told.consumed == sorted(told.consumed)
    assert all(after <= before + 1e-3 for before, after in zip(told.left, told.left[1:], strict=False))


@settings(max_examples=100, deadline=None)
@given(sessions=st.lists(st.tuples(STEPS, st.floats(-YEAR, YEAR)), min_size=1, max_size=4), until=st.floats(60, 1e6))
def test_over_several_sessions(sessions: list[tuple[list[tuple[str, float]], float]], until: float) -> None:
    """Between two, the machine may boot and its clock be set; each session goes by what the journal told last."""
    machine, consumed, latest, left = Machine(), 0.0, None, until
    for steps, moved in sessions:
        clock = machine.clock(1e7, consumed_s=consumed, deadline=in_s(until), latest=latest)
        journal = [machine.wall()]  # a line at the start, and one at each step
        left = min(left, clock.left_s)
        for what, seconds in steps:
            getattr(machine, what)(seconds)
            assert clock.left_s <= left + 1e-3
            left = min(left, clock.left_s)
            journal.append(machine.wall())
        assert clock.consumed_s >= consumed
        consumed = clock.consumed_s
        latest = max([*journal, *([latest] if latest else [])])
        left = max(left, (in_s(until) - latest).total_seconds())  # what was seen after the last line is not known
        machine.is_set(moved)
        machine.boottime_s = machine.monotonic_s = 3.0
