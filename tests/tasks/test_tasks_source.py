"""PromptSource: epochs, weights, and going on where it stopped."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DataError, RecipeError
from agent.tasks.example import Example
from agent.tasks.tasks import PromptSource, weight_of


def rows(**count_by_tag: int) -> list[Example]:
    return [
        Example(id=f"{tag}{number}", question=f"{tag} {number}", answer="1", tag=tag)
        for tag, count in count_by_tag.items()
        for number in range(count)
    ]


def test_an_epoch_holds_every_row_once_and_the_next_is_shuffled_anew() -> None:
    source = PromptSource(rows(a=10), mix={}, seed=0)
    first, second = source.draw(10), source.draw(10)
    assert {row.id for row in first} == {row.id for row in second} == {f"a{number}" for number in range(10)}
    assert first != second


def test_seeds_differ_and_repeat() -> None:
    def drawn(seed: int) -> list[Example]:
        return PromptSource(rows(a=50), mix={}, seed=seed).draw(50)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 3))
def test_no_prompt_repeats_in_a_draw_while_there_is_another(size: int, draws: list[int], seed: int) -> None:
    source = PromptSource(rows(a=size), mix={}, seed=seed)
    total: Counter[str] = Counter()
    for count in draws:
        drawn = [row.id for row in source.draw(count)]
        assert len(drawn) == count
        assert len(set(drawn)) == min(count, size)
        total.update(drawn)
    # Epochs: nobody is ever two draws of the whole ahead of another.
    assert max(total.values()) - min(total[f"a{number}"] for number in range(size)) <= 2


def test_shares_follow_the_weights_exactly() -> None:
    # Weight times rows: 3 * 20 + 1 * 40 = 100, so 60 and 40 of every 100.
    source = PromptSource(rows(mul=20, add=40), mix={"mul": 3.0}, seed=0)
    counts = Counter(row.tag for _ in range(10) for row in source.draw(10))
    assert counts == {"mul": 60, "add": 40}


def test_rows_of_a_weighted_tag_are_drawn_in_epochs_too() -> None:
    source = PromptSource(rows(mul=20, add=40), mix={"mul": 3.0}, seed=0)
    counts = Counter(row.id for _ in range(10) for row in source.draw(10))
    assert {counts[f"mul{number}"] for number in range(20)} == {3}
    assert {counts[f"add{number}"] for number in range(40)} == {1}


def test_a_level_inherits_the_weight_of_its_operation() -> None:
    assert weight_of("mul/3", {"mul": 2.0, "mul/1": 5.0}) == 2.0
    assert weight_of("mul/1", {"mul": 2.0, "mul/1": 5.0}) == 5.0
    assert weight_of("add/1", {"mul": 2.0}) == 1.0
    assert weight_of(None, {"mul": 2.0}) == 1.0


def test_weight_zero_is_never_drawn_even_when_rows_run_out() -> None:
    source = PromptSource(rows(mul=3, add=40), mix={"add": 0.0}, seed=0)
    assert Counter(row.tag for row in source.draw(12)) == {"mul": 12}


def test_a_heavy_tag_with_few_rows_does_not_repeat_within_a_draw() -> None:
    source = PromptSource(rows(mul=4, add=40), mix={"mul": 1000.0}, seed=0)
    drawn = [row.id for row in source.draw(30)]
    assert len(set(drawn)) == 30


def test_shares_are_right_again_after_a_tag_ran_out_of_rows_in_a_draw() -> None:
    # Half and half, but the first draw finds only four `mul`.
    source = PromptSource(rows(mul=4, add=40), mix={"mul": 10.0}, seed=0)
    assert Counter(row.tag for row in source.draw(30)) == {"mul": 4, "add": 26}
    assert Counter(row.tag for _ in range(20) for row in source.draw(2)) == {"mul": 20, "add": 20}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=6), st.integers(1, 25), st.booleans())
def test_a_restored_source_goes_on_as_if_never_stopped(before: list[int], after: int, weighted: bool) -> None:
    train, mix = rows(mul=9, add=14), {"mul": 2.5} if weighted else {}
    source = PromptSource(train, mix=mix, seed=4)
    for count in before:
        source.draw(count)
    state = json.loads(json.dumps(source.state()))
    resumed = PromptSource(train, mix=mix, seed=4)
    resumed.restore(state)
    for count in (after, 3, 30):
        assert resumed.draw(count) == source.draw(count)


def test_a_position_in_other_rows_is_refused() -> None:
    state = PromptSource(rows(a=5), mix={}, seed=0).state()
    for other in (PromptSource(rows(a=6), mix={}, seed=0), PromptSource(rows(a=5), mix={}, seed=1)):
        with pytest.raises(DataError, match="other training rows"):
            other.restore(state)


def test_bad_mixes() -> None:
    with pytest.raises(RecipeError) as caught:
        PromptSource(rows(mul=3, add=4), mix={"mull": 2.0}, seed=0)
    assert (caught.value.key, caught.value.suggestion) == ("task.mix.mull", "mul")
    with pytest.raises(RecipeError, match="weight 0"):
        PromptSource(rows(mul=3), mix={"mul": 0.0}, seed=0)
    with pytest.raises(DataError, match="no training prompts"):
        PromptSource([], mix={}, seed=0)
