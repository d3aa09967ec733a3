"""Budgets: what can be written, what is charged, what may be started."""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.campaign.budget import BudgetClock, RunCost, parse_deadline, parse_duration, plan_night
from agent.campaign.calibration import plan_first
from agent.campaign.session import evaluation_alone
from agent.errors import BudgetError, UsageError
from agent.recipe.schema import Budget, Evaluation


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), (" 2D ", 172800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("0", "8h, 90m"),
        ("0s", "8h, 90m"),
        ("-5m", "8h, 90m"),
        ("8 hours", "like 8h"),
        ("90", "90m or 90s"),
        ("1e9h", "8h, 90m"),
        ("", "8h, 90m"),
        ("h", "8h, 90m"),
        ("99999h", "several campaigns"),
        ("nan", "8h, 90m"),
    ],
)
def test_what_is_no_duration_says_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        parse_duration(text)


NOW = datetime.datetime(2026, 1, 2, 23, 0, tzinfo=datetime.UTC)


def test_a_clock_time_is_the_next_one() -> None:
    assert parse_deadline("07:30", NOW) == datetime.datetime(2026, 1, 3, 7, 30, tzinfo=datetime.UTC)
    assert parse_deadline("23:30", NOW) == datetime.datetime(2026, 1, 2, 23, 30, tzinfo=datetime.UTC)
    assert parse_deadline("2026-01-03T08:00", NOW).day == 3


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system's zone cannot be set")
def test_a_deadline_is_by_the_clock_that_hangs_there_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the two nights in which the clocks are changed too. Of a zone that is not the system's only the offset is
    known."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        spring, autumn = (datetime.datetime(2027, *day, 22, 0).astimezone() for day in ((3, 27), (10, 30)))
        assert parse_deadline("07:30", spring).isoformat() == "2027-03-28T07:30:00+02:00"
        assert parse_deadline("07:30", autumn).isoformat() == "2027-10-31T07:30:00+01:00"
        assert parse_deadline("2027-03-28T07:30", spring).isoformat() == "2027-03-28T07:30:00+02:00"
        assert parse_deadline("2027-03-28T07:30Z", spring).isoformat() == "2027-03-28T07:30:00+00:00"
        assert parse_deadline("21:30", spring).isoformat() == "2027-03-28T21:30:00+02:00"
        assert parse_deadline("07:30", NOW).isoformat() == "2026-01-03T07:30:00+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["25:00", "soon", "2026-01-01T00:00"])
def test_a_bad_deadline(text: str) -> None:
    with pytest.raises(UsageError):
        parse_deadline(text, NOW)


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> datetime.datetime:
        return NOW + datetime.timedelta(seconds=self.seconds - 100)


def test_downtime_is_not_charged_and_the_nearer_limit_counts() -> None:
    time = FakeTime()
    clock = BudgetClock(1000, consumed_s=300, monotonic=time.monotonic, wall=time.wall)
    time.seconds += 50
    assert clock.consumed_s == 350
    assert clock.left_s == 650
    assert clock.affords(600, reserve_s=50)
    assert not clock.affords(601, reserve_s=50)
    deadline = NOW + datetime.timedelta(seconds=170)
    nearer = BudgetClock(1000, deadline=deadline, monotonic=time.monotonic, wall=time.wall, boottime=time.monotonic)
    assert nearer.left_s == 120


COST = RunCost(overhead_s=5, train_s=13, evaluate_s=2)


def test_a_night_is_divided_by_hand() -> None:
    # run 20 s. calibration 3*20 + untrained 7 = 67; reserve = 4*20 + 5*7 = 115; (600 - 67 - 115) / 20 = 20.9
    night = plan_night(600, COST, baseline_seeds=3, allow_fewer_seeds=True)
    assert (night.calibration_s, night.reserve_s, night.ideas) == (67, 115, 20)


def test_a_tight_budget_gives_up_a_baseline_seed_before_the_idea() -> None:
    # with three seeds one idea needs 9 * 80 + 6 * 20 - 80 = 760 s, with two 680 s
    assert plan_night(760, RunCost(10, 60, 10), baseline_seeds=3, allow_fewer_seeds=True).baseline_seeds == 3
    assert plan_night(759, RunCost(10, 60, 10), baseline_seeds=3, allow_fewer_seeds=True).baseline_seeds == 2
    with pytest.raises(BudgetError):
        plan_night(759, RunCost(10, 60, 10), baseline_seeds=3, allow_fewer_seeds=False)


def test_a_budget_that_affords_no_idea_names_the_train_seconds_that_would() -> None:
    with pytest.raises(BudgetError, match=r"affords no idea.*\n.*budget\.train_seconds to (\d+)") as caught:
        plan_night(300, RunCost(5, 120, 5), baseline_seeds=3, allow_fewer_seeds=True)
    assert caught.value.hint is not None
    seconds = int(caught.value.hint.split("train_seconds to ")[1].split(" ")[0])
    assert plan_night(300, RunCost(5, seconds, 5), baseline_seeds=3, allow_fewer_seeds=True).ideas >= 1
    with pytest.raises(BudgetError):
        plan_night(300, RunCost(5, seconds + 3, 5), baseline_seeds=2, allow_fewer_seeds=True)


def test_a_guess_of_what_starting_takes_refuses_no_night_that_could_fit() -> None:
    """7 runs and 6 evaluations: 7 x 41.5 + 6 x 31.5 = 479.5 s by the guess, 7 x 20 + 6 x 10 = 200 s for sure."""
    cost = RunCost(overhead_s=30, train_s=10, evaluate_s=1.5)

    def night(budget_s: float, train_seconds: float | None) -> Any:
        clock = SimpleNamespace(consumed_s=0.0, left_s=budget_s)
        per_run = Budget(train_seconds=train_seconds) if train_seconds else Budget(train_seconds=None, tokens=1000)
        lab = SimpleNamespace(cost=lambda _: cost, clock=clock, budget=per_run, baseline_seeds=3)
        return plan_first(cast("Any", lab))

    assert night(480, 10).ideas == 1
    guessed = night(200, 10)
    assert guessed.ideas == 0
    assert guessed.words() == "no idea fits if a run takes 42s; the first run will tell"
    with pytest.raises(BudgetError, match="affords no idea"):
        night(199, 10)
    assert night(150, None).ideas == 0  # how long so many tokens take is not known either


def test_an_evaluation_alone_costs_what_others_took_and_a_larger_split_more() -> None:
    evaluation = Evaluation(search_prompts=50, holdout_prompts=100)
    runs = [(10.0, {"evaluate_s": 4.0}), (12.0, {"evaluate_s": 4.0}), (11.0, {"evaluate_s": 5.0})]
    assert evaluation_alone(evaluation, runs, most_s=60.0) == 6.0 + 2 * 4.0
    assert evaluation_alone(evaluation, [], most_s=60.0) is None


def test_a_bootstrap_in_the_first_evaluation_is_not_held_against_later_ones() -> None:
    """39 seconds with the model made on the way; a training takes 6 beside training and evaluation."""
    assert evaluation_alone(Evaluation(), [(39.0, {"evaluate_s": 1.0})], most_s=6.0) == 7.0
