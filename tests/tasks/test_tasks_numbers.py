"""Numbers in text: what counts as one, where it begins, and exact comparison."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tasks.numbers import as_number, numbers_in, same_number


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("The answer is 56.", "56"),
        ("7 * 8 = 56", "56"),
        ("it costs $1,234.50.", "1234.50"),
        ("1,234,567", "1234567"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("x = -3", "-3"),
        ("x = −3", "-3"),
        ("-$5", "-5"),
        ("5-3", "3"),
        ("10 - 3", "3"),
        ("f(2)-4", "4"),
        (".5", "0.5"),
        ("pi is 3.14.", "3.14"),
        ("1e3", "1000"),
        ("2.5e-1 s", "0.25"),
        ("3em", "3"),
        ("50%", "50"),
        ("007", "7"),
        ("+7", "7"),
        ("\\boxed{42}", "42"),
        ("<answer>42</answer>", "42"),
        (r"\boxed{1{,}234}", "1234"),
        (r"1\,234\,567", "1234567"),
        (r"1,\!234", "1234"),
        (r"f(2\,3)", "3"),
        (r"-\$5", "-5"),
        (r"it costs \$1{,}234.50 in all", "1234.50"),
    ],
)
def test_last_number(text: str, last: str) -> None:
    assert numbers_in(text)[-1][1] == Decimal(last)


@pytest.mark.parametrize("text", ["", "none", "-", ".", ",", "٣"])
def test_no_number(text: str) -> None:
    assert numbers_in(text) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("56", "56"), (" 56. ", "56"), ("-1,000.0", "-1000"), ("$3", "3"), ("56 apples", None), ("", None), ("1 2", None),
     ("$12$", "12"), ("$ -1{,}200 $.", "-1200"), (r"\$12", "12"), ("$1$2$", None), ("$", None), ("$$", None)],
)  # fmt: skip
def test_a_text_that_is_one_number(text: str, value: str | None) -> None:
    assert as_number(text) == (None if value is None else Decimal(value))


def test_comparison_is_exact_and_tolerance_is_inclusive() -> None:
    assert not same_number(Decimal("100000000000000000001"), Decimal("100000000000000000002"))
    assert same_number(Decimal("0.1") + Decimal("0.2"), Decimal("0.3"))
    assert same_number(Decimal("1.1"), Decimal("1.0"), tolerance=0.1)
    assert not same_number(Decimal("1.11"), Decimal("1.0"), tolerance=0.1)
    # Relative to the right one, which is the second: 5% of 200 is 10, and of 190 it is 9.5.
    assert same_number(Decimal("190"), Decimal("200"), relative=0.05)
    assert not same_number(Decimal("200"), Decimal("190"), relative=0.05)
    assert same_number(Decimal("-95"), Decimal("-100"), relative=0.05)
    # The wider of the two holds.
    assert same_number(Decimal("0.01"), Decimal("0"), tolerance=0.01, relative=0.5)
    assert same_number(Decimal("150"), Decimal("100"), tolerance=0.01, relative=0.5)
    assert not same_number(Decimal("0.01"), Decimal("0"), relative=0.5)


def test_absurd_exponents_neither_hang_nor_raise() -> None:
    assert numbers_in("1e9999")[-1][1] == Decimal("1e9999")
    assert not same_number(Decimal("1e9999"), Decimal("5"), tolerance=1.0)
    assert [text for text, _ in numbers_in("1e99999999999")] == ["1", "99999999999"]


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["", "The total is ", "so a = "]),
    st.sampled_from(["", ".", "\n", " kg"]),
)
def test_an_integer_is_found_with_and_without_commas(value: int, before: str, after: str) -> None:
    for written in (str(value), f"{value:,}"):
        assert numbers_in(before + written + after)[-1][1] == value
        assert as_number(written) == value


@given(st.text(max_size=200))
def test_any_text_can_be_searched(text: str) -> None:
    for written, value in numbers_in(text):
        assert written in text
        assert value.is_finite()
