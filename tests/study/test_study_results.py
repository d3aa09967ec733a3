"""What is kept of a run: small, and exactly what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.contract import CycleRow, SelectRow
from agent.study.results import SERIES, Passes, Unmeasured, measured, series_of


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(2, 8), st.integers(1, 20)), elements=st.integers(0, 35)))
def test_passes_come_back_as_they_were(counts: np.ndarray) -> None:
    text = Passes(counts).text()
    assert text.isascii()
    assert "\n" not in text
    back = Passes.of(text, prompts=counts.shape[1], cycles=counts.shape[0] - 1)
    assert (back.counts == counts).all()


@pytest.mark.parametrize("text", ["", "AAAA", "no base 64!", Passes(np.ones((3, 4), dtype=np.int64)).text()])
def test_a_text_that_is_not_of_this_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="passes"):
        Passes.of(text, prompts=5, cycles=2)


def row(cycle: int, **scores: list[float]) -> SelectRow:
    return SelectRow(cycle=cycle, scores=scores)


def test_measurements_are_counted_in_the_order_of_the_ids() -> None:
    ids, samples, passes = measured([row(0, b=[1.0, 0.0], a=[0.0, 0.0]), row(1, a=[1.0, 1.0], b=[1.0, 1.0])], cycles=1)
    assert (ids, samples) == (["a", "b"], 2)
    assert passes.counts.tolist() == [[0, 1], [2, 2]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0, a=[1.0])], "measured after 1 of 2 cycles"),
        ([row(0, a=[1.0]), row(1, b=[1.0])], "not of the same prompts"),
        ([row(0, a=[1.0]), row(1, a=[1.0, 0.0])], "same number of samples"),
        ([row(0, a=[1.0]), row(1, a=[0.5])], "pass or do not"),
        ([row(0), row(1)], "not of the same prompts"),
    ],
)
def test_a_run_that_was_not_measured_as_it_should_be_says_so(rows: list[SelectRow], said: str) -> None:
    with pytest.raises(Unmeasured, match=said):
        measured(rows, cycles=1)


def test_series_have_few_figures_and_no_invented_zeros() -> None:
    rows = [CycleRow(cycle=0, entropy=0.123456), CycleRow(cycle=1, loss=float("nan"), kept=1234567, learning_rate=1e-4)]
    series = series_of(rows, cycles=1)
    assert set(series) == set(SERIES)
    assert series["entropy"] == [0.1235, None]
    assert series["loss"] == [None, None]
    assert series["learning_rate"] == [None, 1e-4]
    with pytest.raises(Unmeasured):
        series_of(rows[:1], cycles=1)
