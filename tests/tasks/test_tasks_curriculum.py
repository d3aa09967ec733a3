"""The curriculum: which prompts a source prefers by what was measured, and that none is starved."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DataError
from agent.recipe.schema import Curriculum
from agent.tasks.curriculum import PassRates
from agent.tasks.example import Example
from agent.tasks.tasks import PromptSource


def rows(count: int, tag: str = "a") -> list[Example]:
    return [Example(id=f"{tag}{number}", question=f"{tag} {number}", answer="1", tag=tag) for number in range(count)]


def source(train: list[Example], *, seed: int = 0, mix: dict[str, float] | None = None, **keys: float) -> PromptSource:
    return PromptSource(train, mix=mix, curriculum=Curriculum.model_validate(keys), seed=seed)


@pytest.mark.parametrize(
    ("target", "passed", "interest"),
    # Below the target rate / target, above it (1 - rate) / (1 - target): 1/4 / 1/2, 1/4 / 1/2, 1/4 / 1/4, 1/4 / 3/4.
    [(0.5, 0, 0.0), (0.5, 1, 0.5), (0.5, 2, 1.0), (0.5, 3, 0.5), (0.5, 4, 0.0), (0.25, 1, 1.0), (0.25, 3, 1 / 3)],
)
def test_interest_is_one_at_the_target_and_zero_where_nothing_is_to_learn(
    target: float, passed: int, interest: float
) -> None:
    rates = PassRates(target=target, seed=0)
    assert rates.interest("x") == 1.0
    rates.record("x", passed, 4)
    assert rates.interest("x") == pytest.approx(interest)


def test_newer_measurements_count_more() -> None:
    rates = PassRates(target=0.5, seed=0)
    rates.record("x", 0, 4)
    rates.record("x", 4, 4)
    # (0 / 2 + 4) of (4 / 2 + 4) is 2/3, so (1 - 2/3) / (1/2).
    assert rates.interest("x") == pytest.approx(2 / 3)


def test_a_prompt_that_could_not_be_asked_is_of_no_interest() -> None:
    rates = PassRates(target=0.5, seed=0)
    rates.record("x", 0, 0)
    assert rates.interest("x") == 0.0


def test_prompts_near_the_target_are_drawn_more_often_and_solved_ones_rest() -> None:
    train = rows(30)
    prompts = source(train, floor=0.1)
    for number, row in enumerate(train):
        # Ten solved, ten never passed, ten half passed.
        prompts.record(row.id, (8, 0, 4)[number % 3], 8)
    counts = Counter(int(row.id[1:]) % 3 for _ in range(100) for row in prompts.draw(10))
    # One of ten comes round over all rows (a third each), nine of ten are of interest.
    assert sum(counts.values()) == 1000
    assert (counts[0], counts[1]) == (pytest.approx(33, abs=2), pytest.approx(33, abs=2))


def test_prompts_that_were_never_tried_are_drawn_like_those_at_the_target() -> None:
    train = rows(40)
    prompts = source(train, floor=0.01)
    for row in train[:20]:
        prompts.record(row.id, 4, 8)
    tried = sum(int(row.id[1:]) < 20 for _ in range(400) for row in prompts.draw(5))
    # 2,000 draws, half of them; five standard errors of a fair coin are 112.
    assert abs(tried - 1000) < 112


def test_the_mix_multiplies_the_interest() -> None:
    train = [*rows(20, "hard"), *rows(20, "easy"), *rows(20, "never")]
    prompts = source(train, floor=0.01, mix={"hard": 3.0, "never": 0.0})
    counts = Counter(row.tag for _ in range(500) for row in prompts.draw(2))
    # One of the two comes round, 3 to 1; the other is drawn 3 to 1 at random: five standard errors are 48.
    assert abs(counts["hard"] - 750) < 60
    assert counts["never"] == 0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 25),
    st.integers(1, 12),
    st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    st.lists(st.integers(0, 4), min_size=25, max_size=25),
    st.integers(0, 3),
)
def test_the_floor_brings_every_prompt_round(size: int, count: int, floor: float, passed: list[int], seed: int) -> None:
    train = rows(size)
    prompts = source(train, floor=floor, seed=seed)
    steady = max(1, math.ceil(floor * count - 1e-9))
    # Two epochs of the steady part hold every row.
    for _ in range(3):
        seen: set[str] = set()
        for _ in range(math.ceil(2 * size / steady)):
            drawn = [row.id for row in prompts.draw(count)]
            assert len(drawn) == count
            assert len(set(drawn)) == min(count, size)
            for name in drawn:
                prompts.record(name, passed[int(name[1:])], 4)
            seen.update(drawn)
        assert len(seen) == size


cycles = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8)


def played(prompts: PromptSource, history: list[tuple[int, int]]) -> list[list[str]]:
    """Draws, each followed by records of its prompts."""
    drawn = []
    for count, passed in history:
        drawn.append([row.id for row in prompts.draw(count)])
        for place, name in enumerate(drawn[-1]):
            prompts.record(name, (passed + place) % 5, 4)
    return drawn


@settings(max_examples=40, deadline=None)
@given(cycles, cycles, st.integers(0, 3))
def test_the_same_seed_and_records_give_the_same_draws_and_so_does_going_on(
    before: list[tuple[int, int]], after: list[tuple[int, int]], seed: int
) -> None:
    def fresh() -> PromptSource:
        return source([*rows(9), *rows(6, "b")], floor=0.3, mix={"b": 2.5}, seed=seed)

    whole = fresh()
    expected = played(whole, [*before, *after])
    assert played(fresh(), [*before, *after]) == expected
    stopped = fresh()
    played(stopped, before)
    resumed = fresh()
    resumed.restore(json.loads(json.dumps(stopped.state())))
    assert played(resumed, after) == expected[len(before) :]
    assert resumed.state() == whole.state()


def test_seeds_differ() -> None:
    assert source(rows(50), seed=1).draw(20) != source(rows(50), seed=2).draw(20)


@settings(max_examples=30, deadline=None)
@given(cycles)
def test_without_a_curriculum_records_change_nothing(history: list[tuple[int, int]]) -> None:
    train = rows(12)
    plain, recorded = PromptSource(train, seed=3), PromptSource(train, seed=3)
    assert [[row.id for row in plain.draw(count)] for count, _ in history] == played(recorded, history)
    assert plain.state() == recorded.state()


def test_a_floor_of_one_is_plain_epochs() -> None:
    plain, all_steady = PromptSource(rows(12), seed=3), source(rows(12), floor=1.0, seed=3)
    for _ in range(5):
        drawn = plain.draw(7)
        assert all_steady.draw(7) == drawn
        all_steady.record(drawn[0].id, 4, 4)


def test_draws_of_before_the_curriculum_stand() -> None:
    """Recorded from the source as it was without one: a recipe that runs today must go on drawing the same."""
    drawn = PromptSource([*rows(9), *rows(6, "b")], mix={"b": 2.0}, seed=5)
    assert [[row.id for row in drawn.draw(4)] for _ in range(3)] == EXPECTED


EXPECTED = [["b5", "a4", "b3", "a3"], ["b0", "a8", "b1", "b4"], ["a2", "b2", "a1", "b5"]]


def test_records_that_cannot_be() -> None:
    prompts = source(rows(3))
    for passed, samples in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="cannot have passed"):
            prompts.record("a0", passed, samples)
    with pytest.raises(ValueError, match="no training prompt"):
        prompts.record("b0", 1, 4)


def test_a_position_with_another_curriculum_is_refused() -> None:
    state = source(rows(5), target=0.5).state()
    for other in (source(rows(5), target=0.4), PromptSource(rows(5))):
        with pytest.raises(DataError, match=r"task\.curriculum"):
            other.restore(state)
