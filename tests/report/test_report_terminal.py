from __future__ import annotations

import io
from dataclasses import dataclass, replace

import pytest
from rich.console import Console

from agent.campaign.observer import Activity, Board, Pulse
from agent.report.terminal import TerminalObserver, board_line, console_for, rows_table
from agent.report.words import duration, percent, points

BOARD = Board(campaign="2026-01-02-main", left_s=7200.0, consumed_s=60.0, ideas=3, kept=1, metric="pass_rate", best=0.5)
ROW = {"index": "4", "status": "keep", "metric_value": "0.5", "delta": "0.1", "ci_low": "-0.0", "ci_high": "0.2"}


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def text_of(renderable: object, *, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(renderable)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def test_the_live_lines_say_what_runs_how_far_time_left_and_the_best_so_far() -> None:
    clock = Clock()
    observer = TerminalObserver(Console(file=io.StringIO()), clock=clock)
    observer.board(BOARD)
    observer.started(Activity("#4 learning-rate: learning rate, 2e-05 -> 4e-05", "seed 4000", 300.0))
    observer.pulse(Pulse("train", 10.0, budget_spent=0.5, metric=0.625))
    clock.now += 65
    top, now, bar = text_of(observer._lines())
    assert top == "1h 58m left | 3 ideas, 1 kept | best 50.0% (baseline) | 2026-01-02-main"
    assert now == "now   #4 learning-rate: learning rate, 2e-05 -> 4e-05, seed 4000"
    assert bar.endswith("train 65s, select 62.5%")


def test_what_leads_unconfirmed_is_said_beside_the_best() -> None:
    line = board_line(replace(BOARD, lead=0.541, lead_is="#12"), left_s=60.0)
    assert "best 50.0% (baseline) | leads 54.1% (#12, unconfirmed)" in line


def test_the_time_left_runs_down_while_a_run_goes_on_and_a_new_board_sets_it() -> None:
    clock = Clock()
    observer = TerminalObserver(Console(file=io.StringIO()), clock=clock)
    observer.board(BOARD)
    clock.now += 3600
    assert text_of(observer._lines())[0].startswith("1h 00m left")
    observer.board(replace(BOARD, left_s=1800.0))
    assert text_of(observer._lines())[0].startswith("30m 00s left")
    clock.now += 3600
    assert text_of(observer._lines())[0].startswith("0s left")


def test_a_narrow_terminal_cuts_lines_and_breaks_none() -> None:
    observer = TerminalObserver(Console(file=io.StringIO()), clock=Clock())
    observer.board(BOARD)
    observer.started(Activity("#4 prompt: " + "a very long instruction " * 5, "seed 4000"))
    assert len(text_of(observer._lines(), width=40)) == 3


def test_piped_output_is_plain_lines_one_an_event() -> None:
    stream = io.StringIO()
    with TerminalObserver(console_for(stream), clock=Clock()) as observer:
        observer.board(BOARD)
        observer.say("keep #3: gain +3.1pp")
        observer.started(Activity("#4 " + "long " * 40, "seed 4000"))
        observer.ended("12 cycles, search 50.0% in 30s")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()
    assert lines[0].endswith("keep #3: gain +3.1pp")
    assert lines[1].endswith("(seed 4000)")


def test_the_table_leaves_unknown_cells_empty_and_fits_80_columns() -> None:
    rows = [
        {**ROW, "description": "learning-rate: learning rate, 2e-05 -> 4e-05", "reason": "gain " + "words " * 30},
        {"index": "5", "status": "crash", "description": "batch: prompts a cycle, 24 -> 48", "reason": "oom: killed"},
    ]
    lines = text_of(rows_table(rows, width=80))
    assert lines[0].split() == ["#", "status", "metric", "delta", "[95%]", "description"]
    assert lines[1].startswith("4  keep     50.0%  +10.0 [+0.0,+20.0]  learning-rate:")
    assert next(line for line in lines if line.startswith("5")).split()[:3] == ["5", "crash", "batch:"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45s"), (59.6, "1m 00s"), (750, "12m 30s"), (25500, "7h 05m"), (-3, "0s")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rates_and_their_differences() -> None:
    assert [percent(rate) for rate in (0.5234, 0.0, None)] == ["52.3%", "0.0%", ""]
    assert [points(value) for value in (0.0312, -0.0, -0.0004, -0.5)] == ["+3.1pp", "+0.0pp", "+0.0pp", "-50.0pp"]
