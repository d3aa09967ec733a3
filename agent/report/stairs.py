"""The staircase as text: every idea at its metric, and the line of the best so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.report.glyphs import Glyphs, Line, cut
from agent.report.numbers import Numbers
from agent.report.snapshot import Mark

LABEL = 7
"""Columns of the metric on the left."""
FEWEST_COLUMNS = 8
SPREAD = 4
"""Columns that an idea gets at most."""
BELOW = 2.0
"""What is worse than the baseline by this many times the best gain stands on the lowest row: one ruined training
would press all others into one row."""
RANK = {"keep": 5, "crash": 4, "lead": 3, "discard": 2, "open": 1}


def strip(marks: Sequence[Mark], width: int, glyphs: Glyphs) -> Line:
    """One character an idea, the last ones where not all fit."""
    shown = marks[-width:] if width > 0 else []
    return [(glyphs.of(mark.outcome, mark.kind), _style(mark)) for mark in shown]


def stairs(
    marks: Sequence[Mark],
    baseline: float | None,
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    numbers: Numbers,
    minimize: bool = False,
) -> list[Line]:
    """At most `height` lines: a chart where there is room for one, else `strip`. Better is up."""
    columns = width - LABEL - 1
    if not marks or height < 1:
        return []
    known = [mark.value for mark in marks if mark.value is not None]
    if height < 4 or columns < FEWEST_COLUMNS or baseline is None or not known:
        return [cut(strip(marks, width, glyphs), width, glyphs)]
    sign = -1.0 if minimize else 1.0
    rows, chart = height - 1, _Chart(columns, height - 1, len(marks))
    low, high = _range([sign * value for value in known], _bests(marks, baseline, sign))

    def row_of(value: float) -> int:
        share = (sign * value - low) / (high - low)
        return max(0, min(rows - 1, rows - 1 - math.floor(share * (rows - 1) + 0.5)))

    before = row_of(baseline)
    for index, mark in enumerate(marks):
        best = row_of(mark.best) if mark.best is not None else before
        chart.line(index, before, best, glyphs)
        before = best
    for index, mark in enumerate(marks):
        # what has no metric stands below the chart
        row = row_of(mark.value) if mark.value is not None else rows
        chart.put(index, row, glyphs.of(mark.outcome, mark.kind), _style(mark), _rank(mark))
    labels = {row_of(value): numbers.value(value) for value in (sign * low, sign * high, baseline)}
    last = next((mark.best for mark in reversed(marks) if mark.best is not None), None)
    if last is not None:
        labels[row_of(last)] = numbers.value(last)
    lines = [_labelled(labels.get(row, ""), chart.row(row), glyphs) for row in range(rows)]
    return [*lines, _labelled("none" if chart.row(rows) else "", chart.row(rows), glyphs)]


def _bests(marks: Sequence[Mark], baseline: float, sign: float) -> list[float]:
    return [sign * baseline, *(sign * mark.best for mark in marks if mark.best is not None)]


def _range(values: Sequence[float], bests: Sequence[float]) -> tuple[float, float]:
    high = max(*values, *bests)
    worst = min(bests)
    low = max(min(*values, worst), worst - max(BELOW * (high - worst), 0.02))
    return (low, high) if high > low else (low - 0.01, high + 0.01)


class _Chart:
    """Characters by row and column; the idea with the higher rank wins a place."""

    def __init__(self, columns: int, rows: int, ideas: int) -> None:
        self._columns = columns
        self._each = max(1, math.ceil(ideas / columns))
        """Ideas that share a column."""
        self._wide = max(1, min(SPREAD, columns // ideas)) if self._each == 1 else 1
        self._cells: list[dict[int, tuple[int, str, str]]] = [{} for _ in range(rows + 1)]

    def _column(self, index: int) -> int:
        return index // self._each * self._wide + self._wide - 1

    def line(self, index: int, before: int, after: int, glyphs: Glyphs) -> None:
        """The best so far, from the idea before to this one."""
        last = self._column(index)
        for column in range(last - self._wide + 1, last):
            self._set(before, column, glyphs.best, "best", 0)
        for row in range(min(before, after) + 1, max(before, after)):
            self._set(row, last, glyphs.up, "best", 0)
        self._set(before if before == after else after, last, glyphs.best, "best", 0)

    def put(self, index: int, row: int, glyph: str, style: str, rank: int) -> None:
        self._set(row, self._column(index), glyph, style, rank)

    def _set(self, row: int, column: int, glyph: str, style: str, rank: int) -> None:
        known = self._cells[row].get(column)
        if column < self._columns and (known is None or known[0] <= rank):
            self._cells[row][column] = (rank, glyph, style)

    def row(self, number: int) -> Line:
        cells = self._cells[number]
        if not cells:
            return []
        empty = (0, " ", "")
        return [(glyph, style) for _, glyph, style in (cells.get(at, empty) for at in range(max(cells) + 1))]


def _labelled(label: str, row: Line, glyphs: Glyphs) -> Line:
    return [(f"{label[:LABEL]:>{LABEL}}", "dim"), ("|" if glyphs.up == "|" else "│", "dim"), *row]


def _rank(mark: Mark) -> int:
    return RANK["lead" if mark.kind == "lead" else mark.outcome if mark.outcome in RANK else "open"]


def _style(mark: Mark) -> str:
    return "lead" if mark.kind == "lead" else mark.outcome
