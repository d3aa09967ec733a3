"""Limits by phase, with every time given."""

from __future__ import annotations

import math

import pytest

from agent.contract import Heartbeat
from agent.run.watchdog import Limits, Watchdog

LIMITS = Limits(
    fixed={"start": 50.0, "load": 200.0, "compile": 300.0, "save": 60.0},
    floors={"generate": 10.0, "verify": 20.0, "train": 10.0, "evaluate": 15.0},
    factor=30.0,
    first_step=100.0,
    own_stall=1000.0,
)


def beat(phase: str, step: int, *, time: float = 0.0, cycle: int | None = 1, note: str | None = None) -> Heartbeat:
    return Heartbeat(phase=phase, step=step, cycle=cycle, pid=1, time=time, note=note)  # type: ignore[arg-type]  # a str


def stepped(watchdog: Watchdog, phase: str, *, steps: int, seconds: float) -> float:
    """Feed `steps` steps of `seconds` each; the time of the last one."""
    for step in range(steps + 1):
        assert watchdog.observe(beat(phase, step, time=step * seconds), now=step * seconds) is None
    return steps * seconds


def test_before_the_first_heartbeat_the_limit_of_the_start_holds() -> None:
    watchdog = Watchdog(LIMITS)
    assert watchdog.observe(None, now=1000.0) is None
    assert watchdog.observe(None, now=1050.0) is None
    stalled = watchdog.observe(None, now=1051.0)
    assert stalled is not None
    assert stalled.kind == "hang"
    assert stalled.reason.startswith("no heartbeat in 51 s after the start (limit 50 s); ")


@pytest.mark.parametrize(("phase", "limit"), [("load", 200.0), ("compile", 300.0), ("save", 60.0)])
def test_phases_without_steps_have_limits_of_their_own(phase: str, limit: float) -> None:
    watchdog = Watchdog(LIMITS)
    assert watchdog.observe(beat(phase, 0), now=0.0) is None
    assert watchdog.observe(beat(phase, 0), now=limit) is None
    assert watchdog.observe(beat(phase, 0), now=limit + 0.1) is not None


def test_a_stepping_phase_may_pause_for_thirty_median_steps_with_a_floor() -> None:
    fast, slow = Watchdog(LIMITS), Watchdog(LIMITS)
    at = stepped(fast, "generate", steps=6, seconds=0.1)  # 30 x 0.1 = 3 s, under the floor of 10 s
    assert fast.limit()[0] == 10.0
    assert fast.observe(beat("generate", 6, time=0.1 * 6), now=at + 10.0) is None
    assert fast.observe(beat("generate", 6, time=0.1 * 6), now=at + 10.1) is not None
    at = stepped(slow, "generate", steps=6, seconds=2.0)  # 30 x 2 = 60 s
    assert slow.limit()[0] == pytest.approx(60.0)
    assert slow.observe(beat("generate", 6, time=12.0), now=at + 60.0) is None
    stalled = slow.observe(beat("generate", 6, time=12.0), now=at + 60.5)
    assert stalled is not None
    assert stalled.reason.startswith(
        "no heartbeat for 60.5 s in generate, step 6 of cycle 1 (limit 60 s: 30 times the median step of 2 s); "
    )


def test_the_first_steps_of_a_phase_get_longer_because_kernels_are_built() -> None:
    watchdog = Watchdog(LIMITS)
    at = stepped(watchdog, "train", steps=4, seconds=0.1)
    assert watchdog.observe(beat("train", 4, time=0.1 * 4), now=at + 99.0) is None
    assert watchdog.observe(beat("train", 4, time=0.1 * 4), now=at + 101.0) is not None


def test_several_steps_between_two_readings_are_divided() -> None:
    watchdog = Watchdog(LIMITS)
    watchdog.observe(beat("generate", 0, time=0.0), now=0.0)
    watchdog.observe(beat("generate", 10, time=20.0), now=20.0)
    assert watchdog.limit()[0] == pytest.approx(60.0)  # 2 s a step


def test_one_slow_step_does_not_move_the_median() -> None:
    watchdog = Watchdog(LIMITS)
    stepped(watchdog, "generate", steps=9, seconds=1.0)
    watchdog.observe(beat("generate", 10, time=509.0), now=509.0)
    assert watchdog.limit()[0] == pytest.approx(30.0)


def test_a_note_or_a_new_phase_is_a_sign_of_life() -> None:
    watchdog = Watchdog(LIMITS)
    for second in range(0, 1000, 150):
        assert watchdog.observe(beat("load", 0, note=f"bootstrap {second}"), now=float(second)) is None


def test_nonsense_in_the_heartbeat_is_no_sign_of_life_and_raises_no_limit() -> None:
    watchdog = Watchdog(LIMITS)
    for now in range(5):  # NaN is not equal to itself: compared as a value it would look new every time
        watchdog.observe(beat("save", 0, time=math.nan), now=float(now))
    assert watchdog.observe(beat("save", 0, time=math.nan), now=61.0) is not None
    wild = Watchdog(LIMITS)
    for step in range(10):
        wild.observe(beat("generate", step, time=step * 1e9), now=float(step))
    assert wild.limit()[0] == pytest.approx(60.0)  # 2 s a step are the most that can have passed, and not 30 years


def test_a_heartbeat_that_is_only_renewed_gets_three_times_the_limit() -> None:
    """As a thread writes it that knows nothing of the training; the share of the budget is a clock's too."""
    watchdog = Watchdog(LIMITS)
    at = stepped(watchdog, "train", steps=6, seconds=0.1)
    ended = None
    while ended is None:
        at += 1.0
        assert at < 100
        told = beat("train", 6, time=at).model_copy(update={"budget_spent": at / 100})
        ended = watchdog.observe(told, now=at)
    assert ended.kind == "hang"
    assert at == pytest.approx(0.6 + 3 * 10.0, abs=1.1)
    assert "no heartbeat for" not in ended.reason
    assert ended.reason.endswith("it renews its heartbeat and makes no step")
    loads = Watchdog(LIMITS)
    for second in range(0, 1000, 100):  # a phase without steps can tell of nothing else
        assert loads.observe(beat("load", 0, time=float(second)), now=float(second)) is None


def test_time_in_which_the_agent_itself_was_stopped_is_not_held_against_the_run() -> None:
    watchdog = Watchdog(Limits(fixed={**LIMITS.fixed}, floors=LIMITS.floors, own_stall=15.0))
    watchdog.observe(beat("save", 0), now=0.0)
    assert watchdog.observe(beat("save", 0), now=5000.0) is None
    assert watchdog.observe(beat("save", 0), now=5010.0) is None
    hung = [watchdog.observe(beat("save", 0), now=5010.0 + second) for second in range(10, 70, 10)]
    assert hung[-1] is not None
