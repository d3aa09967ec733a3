from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.contract import CycleRow, Seconds
from agent.report.cycles import SHOWN, chosen, cycles_table
from agent.report.numbers import Numbers


def lines(cycles: list[CycleRow], *, delivered: int | None, metric: str = "pass_rate") -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=80).print(cycles_table(cycles, delivered=delivered, numbers=Numbers(metric)))
    return [line.split() for line in out.getvalue().splitlines() if line.strip() and "─" not in line]


def test_a_line_says_what_the_rate_did_and_what_became_of_the_samples() -> None:
    trained = CycleRow(
        cycle=3,
        learning_rate=4.25e-5,
        pass_rate=0.5,
        kept=12,
        loss=0.25,
        entropy=1.5,
        unique_share=0.75,
        truncation_rate=0.1,
        select_metric=0.625,
        seconds=Seconds(generate=61.0, verify=1.0, train=8.0, evaluate=2.0),
    )
    header, untrained, third = lines([CycleRow(cycle=0, pass_rate=0.25), trained], delivered=3)
    assert header[:4] == ["cycle", "rate", "passed", "kept"]
    assert untrained == ["0", "25%", "0.0s"]  # nothing was trained, and what is not known is left empty
    assert third == ["3*", "4.3e-05", "50%", "12", "0.250", "1.50", "75%", "10%", "62.5%", "1m", "12s"]
    _, _, rewarded = lines([CycleRow(cycle=0, pass_rate=0.25), trained], delivered=3, metric="mean_reward")
    assert rewarded == [*third[:8], "0.625", *third[9:]]


@pytest.mark.parametrize("width", [80])
def test_it_fits_a_narrow_terminal(width: int) -> None:
    largest = {"cycle": 100, "kept": 10_000, "loss": 10.123, "entropy": 10.12, "seconds": Seconds(generate=36000.0)}
    shares = dict.fromkeys(("pass_rate", "unique_share", "truncation_rate", "select_metric"), 1.0)
    full = CycleRow(**{**largest, **shares, "learning_rate": 1.23e-5})
    out = io.StringIO()
    Console(file=out, width=width).print(cycles_table([full], delivered=100, numbers=Numbers("pass_rate")))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width


@given(st.integers(0, 400), st.integers(0, 400))
def test_of_many_cycles_the_first_the_last_and_the_delivered_are_shown(last: int, delivered: int) -> None:
    cycles = [CycleRow(cycle=number) for number in range(last + 1)]
    shown = [row.cycle for row in chosen(cycles, delivered=delivered)]
    assert shown == sorted(set(shown))
    assert (shown[0], shown[-1]) == (0, last)
    assert delivered in shown or delivered > last
    assert len(shown) <= SHOWN + 1
