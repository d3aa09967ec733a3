from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract import EvalRow
from agent.raft.early_stop import Decline, prompt_scores
from agent.recipe.schema import EarlyStop


def measured(passed: list[list[bool]]) -> list[EvalRow]:
    """By prompt and sample."""
    return [
        EvalRow(split="select", id=str(p), sample=s, reward=2.0 * one, passed=one, tokens=1, finish_reason="stop")
        for p, group in enumerate(passed)
        for s, one in enumerate(group)
    ]


def level(share: float, prompts: int = 64, seed: int = 0) -> list[EvalRow]:
    source = random.Random(seed)
    return measured([[source.random() < share] for _ in range(prompts)])


def decline(**over: Any) -> Decline:
    return Decline(EarlyStop(**{"patience": 1, **over}), metric="pass_rate", maximize=True)


def test_a_clear_fall_ends_the_training_and_says_how_far_it_fell() -> None:
    watch = decline()
    good = measured([[True]] * 60 + [[False]] * 4)
    assert [watch.add(good) for _ in range(3)] == [None, None, None]
    why = watch.add(measured([[True]] * 30 + [[False]] * 34))
    assert why is not None
    assert why.startswith("46.9pp worse than the 3 measurements before (p = 0.000")


def test_a_collapse_of_every_prompt_at_once_is_a_fall() -> None:
    """There is no spread then, which a t-test divides by; the chance is that of so many coins."""
    watch = decline()
    assert [watch.add(measured([[True]] * 24)) for _ in range(3)] == [None] * 3
    why = watch.add(measured([[False]] * 24))
    assert why is not None
    assert why.startswith("100.0pp worse")
    few = decline()
    assert [few.add(measured([[True]] * 4)) for _ in range(3)] == [None] * 3
    assert few.add(measured([[False]] * 4)) is None, "one in sixteen is not beyond noise"


def test_nothing_is_said_before_the_window_is_full_nor_of_a_rise() -> None:
    watch = decline(window=2)
    assert watch.add(level(0.9)) is None
    assert watch.add(level(0.1)) is None
    assert watch.add(level(0.95)) is None


def test_where_less_is_better_a_rise_is_a_fall() -> None:
    watch = Decline(EarlyStop(window=1, patience=1), metric="mean_reward", maximize=False)
    assert watch.add(measured([[True]] * 8 + [[False]] * 56)) is None
    why = watch.add(measured([[True]] * 40 + [[False]] * 24))
    assert why is not None
    assert why.startswith("1.000 worse than the 1 measurements before"), "a reward has no percentage points"


def test_patience_asks_for_several_in_a_row() -> None:
    watch = decline(window=1, patience=2)
    high, middle, low = (measured([[i < n] for i in range(64)]) for n in (60, 40, 20))
    assert watch.add(high) is None
    assert watch.add(middle) is None
    assert watch.add(high) is None
    assert watch.add(middle) is None
    assert watch.add(low) is not None


def test_a_policy_that_goes_up_and_down_is_not_stopped_unless_somebody_asks_for_it() -> None:
    """Each second measurement is worse than those before it, and not by chance."""
    courses = [measured([[i < n] for i in range(64)]) for n in (40, 44, 20, 46, 24, 48, 22, 50)]
    usual = Decline(EarlyStop(window=1), metric="pass_rate", maximize=True)
    assert [usual.add(rows) for rows in courses] == [None] * len(courses)
    hasty = decline(window=1)
    assert [hasty.add(rows) is not None for rows in courses[:3]] == [False, False, True]


def test_a_training_that_stays_level_is_stopped_about_as_often_as_the_level_says() -> None:
    """400 trainings of one comparison each with noise alone: 5% of them, give or take three standard errors."""
    stopped = 0
    for trial in range(400):
        watch = decline()
        found = [watch.add(level(0.6, seed=4 * trial + i)) for i in range(4)]
        stopped += found[-1] is not None
    assert 0.05 - 0.033 <= stopped / 400 <= 0.05 + 0.033


def test_off_never_stops() -> None:
    watch = Decline(None, metric="pass_rate", maximize=True)
    assert [watch.add(level(share)) for share in (0.9, 0.9, 0.9, 0.0)] == [None] * 4


@pytest.mark.parametrize(("metric", "expected"), [("pass_rate", 0.5), ("pass_at_k", 1.0), ("mean_reward", 1.0)])
def test_the_score_of_a_prompt_is_what_the_metric_averages(metric: str, expected: float) -> None:
    assert prompt_scores(measured([[True, False]]), metric) == {"0": expected}


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=6), st.integers(1, 4))
def test_a_restored_watch_goes_on_as_if_nothing_had_happened(shares: list[list[bool]], cut: int) -> None:
    straight, first, second = (decline(window=1) for _ in range(3))
    rows = [measured([[one] for one in passed]) for passed in shares]
    answers = [straight.add(one) for one in rows]
    begun = [first.add(one) for one in rows[:cut]]
    second.restore(first.state())
    assert begun + [second.add(one) for one in rows[cut:]] == answers
