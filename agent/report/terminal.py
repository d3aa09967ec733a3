"""The campaign on a terminal: live where there is one, plain lines where output is piped. Fits 80 columns.

It is told things (see the observer in `campaign/`), keeps no state that matters, and decides nothing.
"""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.live_render import LiveRender
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from agent.report.glyphs import glyphs_for
from agent.report.live import View, live_lines
from agent.report.numbers import Numbers
from agent.report.screen import STYLES, is_screen, text_of
from agent.report.snapshot import MachineNow, Running, Snapshot
from agent.text import clean, one_line, visible

PANEL_LINES = 12
"""Of the live view below the events, on a terminal of up to 32 lines; a taller one gives it half, less some."""
PANEL_MARGIN = 4


class PlainConsole(Console):
    """A console that takes text for text: no markup, no emoji codes, and no control character gets out of a text.

    Whoever gives it text from outside cleans it first (`agent.text.clean`), so that widths are right and secrets whole.
    """

    def __init__(self, **keys: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **keys)
        self.without_reader: Callable[[int], None] | None = None
        """Gives the descriptor another place, for what has to go on when nobody reads what it prints."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Whoever reads may stop reading: `main` ends the command then, as for any other print."""
        if self.without_reader is None:
            raise BrokenPipeError
        self.without_reader(self.file.fileno())


def console_for(stream: TextIO | None = None) -> PlainConsole:
    """Colours and width only on a terminal; 80 columns and no wrapping of words into nowhere where piped."""
    stream = stream or sys.stdout
    stream = getattr(stream, "beneath", stream)  # rich's own escape sequences have to come through
    if stream.isatty():
        return PlainConsole(file=stream)
    return PlainConsole(file=stream, width=100, no_color=True, soft_wrap=True)


class Panel(Live):
    """Lines below what is printed. They are found again after the terminal has been made narrower, too."""

    def __init__(self, console: Console, panel: Callable[[], Text]) -> None:
        super().__init__(console=console, refresh_per_second=1, transient=True, get_renderable=panel)
        self._live_render = _Reflowing(console, self.get_renderable(), vertical_overflow="crop")


class _Reflowing(LiveRender):
    """Goes up by as many rows as the last lines take at the present width: terminals break them anew."""

    def __init__(self, console: Console, *arguments: Any, **keys: Any) -> None:
        super().__init__(*arguments, **keys)
        self._console = console
        self._widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [0]
        for segment in super().__rich_console__(console, options):
            assert isinstance(segment, Segment)
            if segment.text == "\n":
                widths.append(0)
            else:
                widths[-1] += segment.cell_length
            yield segment
        self._widths = widths

    def position_cursor(self) -> Control:
        if self._shape is not None:
            width = max(1, self._console.width)
            rows = sum(max(1, math.ceil(cells / width)) for cells in self._widths)
            self._shape = (self._shape[0], min(max(self._shape[1], rows), self._console.height))
        return super().position_cursor()


class TerminalObserver:
    """Prints events as they come; on a terminal a live view below them says what runs, how far, and best so far."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.time):
        self.console = console
        self.clock = clock
        self._live: Live | None = None
        self._glyphs = glyphs_for(console.encoding)
        self._board: Any = None
        self._board_at = clock()
        self._activity: Any = None
        self._pulse: Any = None
        self._machine: MachineNow | None = None
        """As it was seen last; a run that starts has not sampled yet."""
        self._began = clock()

    def __enter__(self) -> TerminalObserver:
        if is_screen(self.console):
            self._live = Panel(self.console, self._panel)
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

    def closing(self, closing: Any) -> None:
        """The command says the end itself."""

    # --- live lines -----------------------------------------------------------------------------------------

    def _stamp(self) -> str:
        return datetime.datetime.fromtimestamp(self.clock()).strftime("%H:%M:%S")

    def _panel(self) -> Text:
        """Asked once a second, from a thread of the live display. A panel that is as high as the terminal would leave
        nothing for the events above it."""
        width, height = self.console.size
        view = View(
            width, max(1, min(PANEL_LINES, height // 2), height // 2 - PANEL_MARGIN), self._glyphs, outcomes=False
        )
        lines = live_lines(self.snapshot(), view) if self._board is not None else []
        return Text("\n").join(text_of(line) for line in lines)

    def snapshot(self) -> Snapshot:
        """Of this moment."""
        board, now = self._board, self.clock()
        since = now - self._board_at
        told = board.snapshot or Snapshot(now, clean(board.campaign), "running", arms=board.arms)
        left = told.left_s if board.snapshot else board.left_s
        running, machine = self._running()
        return replace(
            told,
            at=now,
            used_s=board.consumed_s + since,
            left_s=max(0.0, left - since) if left is not None else None,
            running=running,
            machine=machine,
        )

    def _running(self) -> tuple[Running | None, MachineNow | None]:
        activity, pulse, elapsed = self._activity, self._pulse, self.clock() - self._began
        if activity is None:
            return None, self._machine
        if activity.look is not None:
            running, machine = activity.look()
            self._machine = machine or self._machine
            return running, self._machine
        phase, note = (pulse.phase, one_line(pulse.note or "")) if pulse else ("start", "")
        what = one_line(f"{activity.what}, {activity.run}")
        share, metric = (pulse.budget_spent, pulse.metric) if pulse else (None, None)
        return Running(
            "", what, None, None, phase, elapsed, activity.predicted_s, share, note=note, metric=metric
        ), None


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
            _value(row),
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
    return index, status, _value(row), _interval(row), " | ".join(filter(None, words))


def _number(cell: str | None) -> float | None:
    """A cell of the table; None where it is empty."""
    try:
        return float(cell or "")
    except ValueError:
        return None


def _value(row: Mapping[str, str]) -> str:
    return Numbers(row.get("metric_name", "")).value(_number(row.get("metric_value")))


def _interval(row: Mapping[str, str]) -> str:
    known = [value for key in ("delta", "ci_low", "ci_high") if (value := _number(row.get(key))) is not None]
    if len(known) < 3:
        return ""
    numbers = Numbers(row.get("metric_name", ""))
    delta, low, high = (numbers.difference(value).removesuffix("pp") for value in known)
    return f"{delta} [{low},{high}]"
