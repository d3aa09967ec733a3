"""The cycles of one training as a table: what the learning rate did, and what became of the samples."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from agent.contract import CycleRow
from agent.report.numbers import Numbers
from agent.report.words import duration

SHOWN = 16
"""Cycles that are shown one by one; of more, the first, the last, the delivered and others evenly spread."""


def cycles_table(cycles: Sequence[CycleRow], *, delivered: int | None, numbers: Numbers) -> Table:
    """One line a cycle. `*` marks the delivered one; unknown is left empty. `numbers`: of the metric on `select`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("cycle", "rate", "passed", "kept", "loss", "entropy", "unique", "cut", "select", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in chosen(cycles, delivered=delivered):
        table.add_row(
            f"{row.cycle}{'*' if row.cycle == delivered else ''}",
            _number(row.learning_rate, ".1e"),
            _number(row.pass_rate, ".0%"),
            str(row.kept) if row.cycle else "",
            _number(row.loss, ".3f"),
            _number(row.entropy, ".2f"),
            _number(row.unique_share, ".0%"),
            _number(row.truncation_rate, ".0%"),
            numbers.value(row.select_metric),
            _time(row.seconds.total),
        )
    return table


def chosen(cycles: Sequence[CycleRow], *, delivered: int | None) -> list[CycleRow]:
    """All cycles, or about `SHOWN` of them."""
    if len(cycles) <= SHOWN:
        return list(cycles)
    places = {round(i * (len(cycles) - 1) / (SHOWN - 1)) for i in range(SHOWN)}
    return [row for place, row in enumerate(cycles) if place in places or row.cycle == delivered]


def _time(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
