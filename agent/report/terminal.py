"""The campaign on a terminal: live where there is one, plain lines where output is piped. Fits 80 columns.

It is told things (see the observer in `campaign/`), keeps no state that matters, and decides nothing.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from agent.report.words import duration, percent, points
from agent.text import clean, one_line, visible

STYLES = {"keep": "bold green", "discard": "yellow", "crash": "bold red", "warning": "bold yellow"}


class PlainConsole(Console):
    """A console that takes text for text: no markup, no emoji codes, and no control character gets out of a text.

    Whoever gives it text from outside cleans it first (`agent.text.clean`), so that widths are right and secrets whole.
    """

    def __init__(self, **keys: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **keys)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


def console_for(stream: TextIO | None = None) -> Console:
    """Colours and width only on a terminal; 80 columns and no wrapping of words into nowhere where piped."""
    stream = stream or sys.stdout
    stream = getattr(stream, "beneath", stream)  # rich's own escape sequences have to come through
    if stream.isatty():
        return PlainConsole(file=stream)
    return PlainConsole(file=stream, width=100, no_color=True, soft_wrap=True)


class TerminalObserver:
    """Prints events as they come; on a terminal three live lines below them say what runs, how far, and best so far."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.time):
        self.console = console
        self.clock = clock
        self._live: Live | None = None
        self._board: Any = None
        self._board_at = clock()
        self._activity: Any = None
        self._pulse: Any = None
        self._began = clock()

    def __enter__(self) -> TerminalObserver:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True, get_renderable=self._lines)
            self._live.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- what is told ---------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        for line in clean(text).split("\n"):
            self.console.print(Text(f"{self._stamp()} {line}", style=_style_of(line)))

    def warn(self, text: str) -> None:
        self.console.print(Text(f"{self._stamp()} warning: {clean(text)}", style=STYLES["warning"]))

    def board(self, board: Any) -> None:
        self._board, self._board_at = board, self.clock()

    def started(self, activity: Any) -> None:
        self._activity, self._pulse, self._began = activity, None, self.clock()
        if self._live is None:
            self.console.print(Text(f"{self._stamp()}   run {clean(activity.what)} ({clean(activity.run)})"))

    def pulse(self, pulse: Any) -> None:
        self._pulse = pulse

    def ended(self, text: str) -> None:
        what = f"{self._activity.what} ({self._activity.run}): " if self._live and self._activity else ""
        self._activity = None
        self.console.print(Text(f"{self._stamp()}     {clean(what + text)}", style="dim"))

    def recorded(self, row: dict[str, Any]) -> None:
        """The loop says the outcome itself."""

    # --- live lines -----------------------------------------------------------------------------------------

    def _stamp(self) -> str:
        return datetime.datetime.fromtimestamp(self.clock()).strftime("%H:%M:%S")

    def _lines(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, overflow="ellipsis")
        if self._board is not None:
            left = self._board.left_s - (self.clock() - self._board_at)
            grid.add_row(Text(clean(board_line(self._board, left_s=left)), style="bold"))
        if self._activity is not None:
            now = one_line(f"now {self._activity.what}, {self._activity.run}")
            grid.add_row(Text(f"now   {now[4:]}", overflow="ellipsis"))
            grid.add_row(self._bar())
        return grid

    def _bar(self) -> Table:
        pulse = self._pulse
        elapsed = self.clock() - self._began
        share = pulse.budget_spent if pulse is not None else None
        words = f"{pulse.phase if pulse else 'starting'} {elapsed:.0f}s"
        if pulse is not None and pulse.note:
            words += f" {one_line(pulse.note)}"
        elif pulse is not None and pulse.metric is not None:
            words += f", select {percent(pulse.metric)}"
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=1.0, completed=share or 0.0, width=30, pulse=share is None), Text(words))
        return row


def board_line(board: Any, *, left_s: float) -> str:
    """One line: time left, ideas, best so far, campaign (last, where a narrow terminal cuts)."""
    parts = [f"{duration(left_s)} left", f"{board.ideas} ideas, {board.kept} kept"]
    if board.best is not None:
        parts.append(f"best {percent(board.best)} ({board.best_is})")
    if board.lead is not None:
        parts.append(f"leads {percent(board.lead)} ({board.lead_is}, unconfirmed)")
    return " | ".join([*parts, board.campaign])


def _style_of(line: str) -> str:
    first = line.strip().split(" ", 1)[0].rstrip(":")
    return STYLES.get(first, "")


def rows_table(rows: list[dict[str, str]], *, width: int) -> Table:
    """The results table for people: an idea and below it the reason of its outcome; fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False, width=min(width, 120))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("metric", justify="right", no_wrap=True)
    table.add_column("delta [95%]", justify="right", no_wrap=True)
    table.add_column("description", ratio=1, overflow="fold")
    for row in rows:
        status = one_line(row.get("status", ""))
        table.add_row(
            row.get("index", ""),
            Text(status, style=STYLES.get(status, "")),
            percent(_number(row.get("metric_value"))),
            _interval(row),
            Text.assemble(clean(row.get("description", "")), (f"\n{clean(row.get('reason', ''))}".rstrip(), "dim")),
        )
    return table


def rows_lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The same for a pipe, an idea on one line however long, so that `grep` finds an idea and not a part of one."""
    head = ("#", "status", "metric", "delta [95%]", "description | reason")
    table = [head, *(_in_cells(row) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(4)]
    for number, status, metric, delta, words in table:
        yield (
            f"{number:>{widths[0]}}  {status:<{widths[1]}}  {metric:>{widths[2]}}  {delta:>{widths[3]}}  {words}"
        ).rstrip()


def _in_cells(row: Mapping[str, str]) -> tuple[str, str, str, str, str]:
    """Secrets are for whoever prints them to look for, in all of them at once."""
    index, status, *words = (
        " ".join(visible(row.get(name, "")).split()) for name in ("index", "status", "description", "reason")
    )
    return index, status, percent(_number(row.get("metric_value"))), _interval(row), " | ".join(filter(None, words))


def _number(cell: str | None) -> float | None:
    """A cell of the table; None where it is empty."""
    try:
        return float(cell or "")
    except ValueError:
        return None


def _interval(row: Mapping[str, str]) -> str:
    known = [value for key in ("delta", "ci_low", "ci_high") if (value := _number(row.get(key))) is not None]
    if len(known) < 3:
        return ""
    delta, low, high = (points(value).removesuffix("pp") for value in known)
    return f"{delta} [{low},{high}]"
