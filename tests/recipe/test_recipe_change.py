"""What a change may do to a recipe, and what is refused by code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.recipe.change import Change, ChangeRefused
from agent.recipe.files import bounds_of, get_key, recipe_from, with_keys
from agent.recipe.schema import Recipe, Reward, leaf_keys

RECIPE = recipe_from(
    {"model": {"source": "builtin:tiny"}, "task": {"dataset": "builtin:addition"}, "budget": {"cycles": 3}}, where="t"
)


@pytest.mark.parametrize("key", [key for key, locked in leaf_keys().items() if locked])
def test_no_change_reaches_a_locked_key(key: str) -> None:
    with pytest.raises(ChangeRefused, match="locked"):
        Change(set={key: 1}).apply(RECIPE)


@pytest.mark.parametrize("key", ["evaluation", "budget", "task.verifier", "task", "task.parameters.low"])
def test_nor_by_its_section_or_from_below(key: str) -> None:
    with pytest.raises(ChangeRefused, match="locked"):
        Change(set={key: {}}).apply(RECIPE)


@pytest.mark.parametrize("rate", ["learner.learning_rate", "learner.lr_schedule.decay", "learner.warmup"])
def test_rate_and_temperature_never_move_together(rate: str) -> None:
    with pytest.raises(ChangeRefused, match="together"):
        Change(set={rate: 0.1, "rollout.temperature": 0.5}).apply(RECIPE)


def test_the_reward_is_locked_where_it_is_what_is_measured() -> None:
    """Twice the reward for the same answers would be twice the metric."""
    scaled = Change(scale={"task.reward.scale": 2.0})
    assert scaled.apply(RECIPE).task.reward.scale == 2.0
    guard = {"metric": "mean_reward", "direction": "maximize"}
    for evaluation in ({"evaluation.metric": "mean_reward"}, {"evaluation.guards": [guard]}):
        measured = with_keys(RECIPE, evaluation)
        with pytest.raises(ChangeRefused, match=r"task\.reward\.scale is locked: evaluation measures mean_reward"):
            scaled.apply(measured)
        assert Change(scale={"learner.learning_rate": 2.0}).apply(measured)


def test_the_range_of_a_reward() -> None:
    for shape, expected in (
        ({}, (0.0, 1.0)),
        ({"scale": 2.0, "format_bonus": 0.5, "length_penalty": 0.25}, (-0.25, 2.5)),
        ({"scale": 2.0, "clip": [-0.1, 1.5]}, (0.0, 1.5)),
        ({"length_penalty": 1.0, "clip": [-0.1, 5.0]}, (-0.1, 1.0)),
        ({"clip": [0.2, 1.0]}, (0.0, 1.0)),
    ):
        assert Reward.model_validate(shape).range() == expected


def test_an_unknown_key_or_an_invalid_result_is_refused() -> None:
    with pytest.raises(ChangeRefused, match="unknown key"):
        Change(set={"rollout.temprature": 1}).apply(RECIPE)
    with pytest.raises(ChangeRefused, match="valid recipe"):
        Change(set={"rollout.max_new_tokens": 5000}).apply(RECIPE)


def test_a_change_of_nothing_or_of_one_key_twice_is_no_change() -> None:
    with pytest.raises(ValidationError):
        Change()
    with pytest.raises(ValidationError):
        Change(set={"seed": 1}, scale={"seed": 2})


def test_set_scale_toggle_and_their_words() -> None:
    change = Change(
        set={"learner.lr_schedule.kind": "cosine"},
        scale={"rollout.samples_per_prompt": 2, "learner.learning_rate": 0.5},
        toggle=["learner.packing"],
    )
    changed = change.apply(RECIPE)
    assert changed.rollout.samples_per_prompt == 16
    assert changed.learner.learning_rate == 2.5e-5
    assert changed.learner.packing is False
    assert change.describe(RECIPE) == (
        "learner.lr_schedule.kind 'constant' -> 'cosine', rollout.samples_per_prompt 8 -> 16, "
        "learner.learning_rate 5e-05 -> 2.5e-05, learner.packing True -> False"
    )


def test_keys_that_do_not_move_are_left_out() -> None:
    assert Change(set={"rollout.temperature": 1.0}).values(RECIPE) == {}


numbers = [
    key
    for key, locked in leaf_keys().items()
    if not locked and isinstance(_v := get_key(RECIPE, key), int | float) and not isinstance(_v, bool)
]


@given(key=st.sampled_from(numbers), factor=st.floats(0.01, 100))
def test_scaling_keeps_type_and_range(key: str, factor: float) -> None:
    moves: dict[str, tuple[Any, Any]] = Change(scale={key: factor}).values(RECIPE)
    for old, new in moves.values():
        assert type(new) is type(old)
        limits = bounds_of(key)
        assert limits.get("ge", new) <= new <= limits.get("le", new)


def _rate_after(rate: float, factors: Sequence[float]) -> float:
    recipe = Change(set={"learner.learning_rate": rate}).apply(RECIPE)
    for factor in factors:
        recipe = Change(scale={"learner.learning_rate": factor}).apply(recipe)
    return recipe.learner.learning_rate


@given(
    digits=st.integers(100, 999),
    power=st.integers(-8, -7),
    steps=st.lists(st.sampled_from([math.sqrt(2), math.sqrt(10), 1.5, 2.0, 10.0]), min_size=1, max_size=3),
)
def test_steps_there_and_back_end_where_they_began(digits: int, power: int, steps: list[float]) -> None:
    """To the last digit, so that a recipe which was tried is known again."""
    rate = float(f"{digits}e{power}")
    there, back = [float(f"{step:.6g}") for step in steps], [float(f"{1 / step:.6g}") for step in reversed(steps)]
    assert _rate_after(rate, [*there, *back]) == rate


@pytest.mark.parametrize(
    ("rate", "factors", "then"),
    [
        (1e-4, [1.41421, 1.41421], 2e-4),
        (1e-4, [3.16228, 3.16228], 1e-3),
        (2e-4, [0.707107, 0.707107], 1e-4),
        (1e-4, [1.41421], 1.41421e-4),
        (5e-5, [0.7], 3.5e-5),
        (1.23456e-4, [2.0], 2.46912e-4),
    ],
)
def test_half_steps_make_whole_ones(rate: float, factors: list[float], then: float) -> None:
    assert _rate_after(rate, factors) == then


def test_an_optional_section_is_created() -> None:
    changed: Recipe = Change(set={"model.lora": {"rank": 8}}).apply(RECIPE)
    assert changed.model.lora is not None
    assert changed.model.lora.rank == 8
