from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
from rich.console import Console
from rich.text import Text

from agent.campaign.observer import Activity, Board, Pulse
from agent.report.snapshot import Arms, MachineNow, Running, Snapshot
from agent.report.terminal import Panel, PlainConsole, TerminalObserver, console_for, rows_lines, rows_table
from agent.report.words import duration, percent, points

BOARD = Board(campaign="2026-01-02-main", left_s=7200.0, consumed_s=60.0, ideas=3, kept=1, metric="pass_rate")
ROW = {"index": "4", "status": "keep", "metric_value": "0.5", "delta": "0.1", "ci_low": "-0.0", "ci_high": "0.2"}


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


SNAPSHOT = Snapshot(1_000_000.0, "2026-01-02-main", "running", arms=Arms(baseline=0.5), left_s=7200.0, used_s=60.0)


def text_of(renderable: object, *, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(renderable)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def observer_at(clock: Clock, *, width: int = 80, height: int = 24) -> TerminalObserver:
    return TerminalObserver(Console(file=io.StringIO(), width=width, height=height), clock=clock)


def test_the_panel_says_what_runs_how_far_time_left_and_the_best_so_far() -> None:
    clock = Clock()
    observer = observer_at(clock)
    observer.board(replace(BOARD, snapshot=SNAPSHOT))
    observer.started(Activity("#4 learning-rate: learning rate, 2e-05 -> 4e-05", "seed 4000", 300.0))
    observer.pulse(Pulse("train", 10.0, budget_spent=0.5, metric=0.625))
    clock.now += 65
    lines = text_of(observer._panel())
    assert len(lines) <= 12
    text = "\n".join(lines)
    assert lines[0].startswith("2026-01-02-main running")
    assert "1h 58m left" in text
    assert "on search: baseline 50.0%" in text
    assert "now      #4 learning-rate: learning rate, 2e-05 -> 4e-05, seed 4000" in text
    assert "train 50%" in text
    assert "select   62.5%" in text


def test_the_panel_shows_what_the_run_says_of_itself_at_that_moment() -> None:
    observer = observer_at(Clock())
    observer.board(replace(BOARD, snapshot=SNAPSHOT))
    now = Running("4-s1", "#4 x", 4000, 4, "evaluate", 3.0, 9.0), MachineNow(available_gb=3.0, total_gb=8.0)
    observer.started(Activity("#4 x", "seed 4000", 9.0, look=lambda: now))
    text = "\n".join(text_of(observer._panel()))
    assert "evaluate" in text
    assert "3.0 of 8 GiB free" in text
    observer.ended("search 50.0% in 9s")
    assert "between two runs" in "\n".join(text_of(observer._panel()))


def test_the_time_left_runs_down_while_a_run_goes_on_and_a_new_board_sets_it() -> None:
    clock = Clock()
    observer = observer_at(clock)
    observer.board(replace(BOARD, snapshot=SNAPSHOT))
    clock.now += 3600
    assert observer.snapshot().left_s == 3600
    observer.board(replace(BOARD, snapshot=replace(SNAPSHOT, left_s=1800.0)))
    assert observer.snapshot().left_s == 1800
    clock.now += 3600
    assert observer.snapshot().left_s == 0


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 10), (80, 24), (120, 60)])
def test_the_panel_leaves_room_for_the_events_above_it(width: int, height: int) -> None:
    observer = observer_at(Clock(), width=width, height=height)
    observer.board(replace(BOARD, snapshot=SNAPSHOT))
    observer.started(Activity("#4 prompt: " + "a very long instruction " * 5, "seed 4000"))
    lines = text_of(observer._panel(), width=width)
    assert 1 <= len(lines) <= max(1, height // 2)
    assert height != 24 or len(lines) <= 12


def test_the_panel_is_found_again_after_the_terminal_was_made_narrower() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, width=60, height=20, _environ={"TERM": "xterm"})
    panel = Panel(console, lambda: Text("x" * 50 + "\n" + "y" * 10))
    panel.start()
    panel.refresh()
    console.width = 30
    panel.refresh()
    panel.stop()
    ups = [written.count("\x1b[1A") for written in stream.getvalue().split("y" * 10)]
    assert ups[1] == 2, "the first line takes two rows of 30 columns, so the panel begins two rows above its last"


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


def test_a_reward_in_the_table_is_no_percentage() -> None:
    row = {**ROW, "metric_name": "mean_reward", "metric_value": "1.3"}
    cells = ["4", "keep", "1.300", "+0.100", "[+0.000,+0.200]"]
    assert text_of(rows_table([row], width=80))[1].split() == cells
    assert list(rows_lines([row]))[1].split() == cells
    assert list(rows_lines([ROW]))[1].split() == ["4", "keep", "50.0%", "+10.0", "[+0.0,+20.0]"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45s"), (59.6, "1m 00s"), (750, "12m 30s"), (25500, "7h 05m"), (-3, "0s")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rates_and_their_differences() -> None:
    assert [percent(rate) for rate in (0.5234, 0.0, None)] == ["52.3%", "0.0%", ""]
    assert [points(value) for value in (0.0312, -0.0, -0.0004, -0.5)] == ["+3.1pp", "+0.0pp", "+0.0pp", "-50.0pp"]


def test_a_reader_that_has_gone_is_no_failure() -> None:
    """`raft-agent show 1 | head`: rich would end the process with 1."""
    program = "from agent.cli.main import main; import sys; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "lr", "--compare"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.close()
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, b"")
