"""Built-in data sets: every answer is right, nothing repeats, and the parameters say what they do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import RecipeError
from agent.tasks.arithmetic import addition_rows, arithmetic_rows


def test_addition_lists_every_ordered_pair_of_two_digit_numbers() -> None:
    rows = addition_rows({})
    assert len(rows) == 90 * 90
    by_question = {row.question: row.answer for row in rows}
    assert len(by_question) == 8100
    assert by_question["12+34="] == "46"
    assert by_question["99+99="] == "198"
    assert all(
        sum(map(int, question.rstrip("=").split("+"))) == int(answer) for question, answer in by_question.items()
    )


def test_addition_tags_count_the_carries() -> None:
    tags = {row.id: row.tag for row in addition_rows({})}
    assert (tags["12+34"], tags["19+34"], tags["91+34"], tags["99+11"]) == ("carry0", "carry1", "carry1", "carry2")


def test_products_of_2_to_12() -> None:
    rows = arithmetic_rows({"operations": ["mul"], "low": 2, "high": 12})
    assert len(rows) == 11 * 11
    by_id = {row.id: row for row in rows}
    assert by_id["7*8"].question == "What is 7 * 8?"
    assert by_id["7*8"].answer == "56"
    # A third of 2..12 is 3.67 wide: 5 is in the first, 6 in the second, 9 is the last of it, 10 in the third.
    assert [by_id[name].tag for name in ("2*5", "2*6", "9*3", "10*3")] == ["mul/1", "mul/2", "mul/2", "mul/3"]


def test_words_and_own_wording() -> None:
    rows = arithmetic_rows(
        {"operations": ["sub"], "low": 3, "high": 3, "style": "words", "question": "Compute {expression} {now}."}
    )
    assert [(row.question, row.answer) for row in rows] == [("Compute 3 minus 3 {now}.", "0")]


def test_three_terms_follow_precedence_and_mixed_questions_are_tagged_so() -> None:
    rows = {row.id: row for row in arithmetic_rows({"low": 2, "high": 4, "terms": 3})}
    assert len(rows) == 3**3 * 3**2
    assert rows["2+3*4"].answer == "14"
    assert rows["2*3-4"].answer == "2"
    assert rows["2-3-4"].answer == "-5"
    assert rows["2+3*4"].tag == "mixed/3"
    assert rows["2+2+2"].tag == "add/1"
    assert all(eval(name) == int(row.answer) for name, row in rows.items())


def test_a_large_space_is_sampled_with_the_seed() -> None:
    large: dict[str, Any] = {"low": 0, "high": 10**6, "terms": 5, "count": 300}
    rows = arithmetic_rows(large)
    assert len({row.id for row in rows}) == 300
    assert rows == arithmetic_rows(large)
    assert rows != arithmetic_rows(large | {"seed": 1})
    assert all(eval(row.id) == int(row.answer) for row in rows)
    assert Counter(len(row.tag or "") > 0 for row in rows) == {True: 300}


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.sampled_from(["add", "sub", "mul"]), min_size=1),
    st.integers(0, 20),
    st.integers(0, 15),
    st.integers(2, 3),
    st.integers(1, 60),
)
def test_rows_are_distinct_in_range_and_exact(
    operations: set[str], low: int, width: int, terms: int, count: int
) -> None:
    rows = arithmetic_rows(
        {"operations": sorted(operations), "low": low, "high": low + width, "terms": terms, "count": count}
    )
    space = (width + 1) ** terms * len(operations) ** (terms - 1)
    assert len(rows) == len({row.id for row in rows}) == len({row.question for row in rows}) == min(count, space)
    for row in rows:
        assert eval(row.id) == int(row.answer)
        assert row.tag is not None
        assert row.tag.split("/")[1] in "123"


@pytest.mark.parametrize(
    ("parameters", "key", "words"),
    [
        ({"lo": 3}, "task.parameters.lo", "'low'"),
        ({"low": 9, "high": 3}, "task.parameters", "low must be at most high"),
        ({"operations": ["add", "div"]}, "task.parameters.operations.1", "'mul'"),
        ({"operations": []}, "task.parameters.operations", "at least 1"),
        ({"question": "How much?"}, "task.parameters", "{expression}"),
        ({"terms": 1}, "task.parameters.terms", "greater than or equal to 2"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        arithmetic_rows(parameters)
    assert caught.value.key == key
    assert words in str(caught.value)


def test_too_many_sums_are_refused() -> None:
    with pytest.raises(RecipeError, match="more than 200,000"):
        addition_rows({"low": 0, "high": 9999})
