"""Schedules against the values of the research notes: rate 5e-5 over 8 cycles, decay 0.95, 0.85, 0.7."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recipe.files import recipe_from
from agent.recipe.schedules import learning_rate, lr_factor, temperature, threshold, warmup_factor
from agent.recipe.schema import LrSchedule, TemperatureSchedule, ThresholdSchedule


def by_cycle(kind: str, **keys: object) -> list[float]:
    schedule = LrSchedule.model_validate({"kind": kind, "by": "cycle", **keys})
    return [lr_factor(schedule, cycle=cycle, spent=0.0) for cycle in range(1, 9)]


@pytest.mark.parametrize(("decay", "last"), [(0.95, 0.95**7), (0.85, 0.320577), (0.7, 0.0823543)])
def test_exponential_decay_a_cycle(decay: float, last: float) -> None:
    factors = by_cycle("exponential", decay=decay)
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(decay)
    assert factors[7] == pytest.approx(last, rel=1e-5)


def test_the_three_schedules_of_the_notes_in_learning_rates() -> None:
    def rates(**schedule: object) -> list[float]:
        recipe = recipe_from(
            {
                "model": {"source": "builtin:tiny"},
                "task": {"dataset": "builtin:addition"},
                "budget": {"cycles": 8},
                "learner": {"learning_rate": 5e-5, "lr_schedule": {"by": "cycle", **schedule}},
            },
            where="t",
        )
        return [learning_rate(recipe, cycle=cycle, spent=(cycle - 1) / 8) for cycle in range(1, 9)]

    assert rates(kind="constant") == [5e-5] * 8
    # 5e-5 * 0.85^(n-1), to three digits
    decayed = rates(kind="exponential", decay=0.85)
    assert [f"{rate:.3g}" for rate in decayed] == [
        "5e-05", "4.25e-05", "3.61e-05", "3.07e-05", "2.61e-05", "2.22e-05", "1.89e-05", "1.6e-05",
    ]  # fmt: skip
    assert rates(kind="exponential", decay=0.7)[7] == pytest.approx(4.12e-6, rel=1e-3)


def test_the_other_shapes() -> None:
    assert by_cycle("step", decay=0.5, step_every=2) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert by_cycle("linear") == pytest.approx([1 - n / 8 for n in range(8)])
    assert by_cycle("cosine")[4] == pytest.approx(0.5)
    assert by_cycle("wsd", decay_share=0.25) == [1, 1, 1, 1, 1, 1, 1, 0.5]
    assert by_cycle("list", values=[1, 0.5, 0.1]) == [1, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert by_cycle("exponential", decay=0.5, floor=0.2)[5] == 0.2


def test_by_budget_the_share_spent_stands_in_for_the_cycle() -> None:
    schedule = LrSchedule(kind="exponential", by="budget", decay=0.85, horizon=8)
    assert lr_factor(schedule, cycle=400, spent=0.0) == 1.0
    assert lr_factor(schedule, cycle=1, spent=0.5) == pytest.approx(0.85**4)
    assert lr_factor(schedule, cycle=1, spent=1.0) == pytest.approx(0.85**8)


@given(
    kind=st.sampled_from(["constant", "exponential", "step", "wsd", "linear", "cosine"]),
    by=st.sampled_from(["cycle", "budget"]),
    cycle=st.integers(1, 500),
    spent=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_a_factor_stays_between_floor_and_one(kind: str, by: str, cycle: int, spent: float, floor: float) -> None:
    schedule = LrSchedule.model_validate({"kind": kind, "by": by, "floor": floor})
    assert floor <= lr_factor(schedule, cycle=cycle, spent=spent) <= 1.0


def test_warmup_is_a_share_of_the_budget_and_never_zero() -> None:
    assert warmup_factor(0.0, 0.0) == 1.0
    assert warmup_factor(0.1, 0.05) == pytest.approx(0.5)
    assert warmup_factor(0.1, 0.1) == 1.0
    assert 0 < warmup_factor(0.1, 0.0) <= 0.01


def test_the_first_samples_are_not_in_the_warmup() -> None:
    """A fifth of the budget went into them: it rises over a tenth of the other four fifths."""
    assert warmup_factor(0.1, 0.2, first=0.2) == 0.01
    assert warmup_factor(0.1, 0.24, first=0.2) == pytest.approx(0.5)
    assert warmup_factor(0.1, 0.28, first=0.2) == pytest.approx(1.0)
    assert warmup_factor(0.1, 1.0, first=1.0) == 1.0


def test_temperature_moves_to_its_end() -> None:
    assert temperature(1.0, None, 0.7) == 1.0
    assert temperature(1.0, TemperatureSchedule(kind="linear", end=0.5), 0.5) == pytest.approx(0.75)
    assert temperature(1.0, TemperatureSchedule(kind="exponential", end=0.25), 0.5) == pytest.approx(0.5)


def test_the_threshold_moves_in_a_straight_line() -> None:
    rising = ThresholdSchedule(end=1.0)
    assert [threshold(0.5, rising, spent) for spent in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]
    # Before the start and past the end it stays.
    assert [threshold(0.5, rising, spent) for spent in (-0.1, 1.7)] == [0.5, 1.0]
    assert threshold(0.5, ThresholdSchedule(end=-1.5), 0.25) == 0.0
    assert threshold(0.7, None, 0.3) == 0.7


@given(st.floats(-1000, 1000), st.floats(-1000, 1000), st.floats(0, 1))
def test_the_threshold_stays_between_its_ends(start: float, end: float, spent: float) -> None:
    """Not past them by rounding either: a reward of exactly 1 must reach a threshold of 1."""
    schedule = ThresholdSchedule(end=end)
    assert min(start, end) <= threshold(start, schedule, spent) <= max(start, end)
    assert (threshold(start, schedule, 0.0), threshold(start, schedule, 1.0)) == (start, end)
