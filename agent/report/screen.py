"""A whole terminal that shows lines and is left as it was found. Only what has changed is written.

Where the output is no terminal, or one that can do nothing (TERM=dumb), there is no screen: see `is_screen`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import IO

from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style
from rich.text import Text

from agent.report.glyphs import ASCII, Line, cut, width_of
from agent.text import visible

STYLES = {
    "keep": "bold green",
    "discard": "yellow",
    "crash": "bold red",
    "lead": "bold cyan",
    "open": "blue",
    "best": "green",
    "bar": "cyan",
    "warning": "bold yellow",
    "bold": "bold",
    "dim": "dim",
}
"""By the names that the lines of a view use."""
USUAL_SIZE = (80, 24)
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[0m\x1b[?25h\x1b[?1049l"
"""The alternate screen, without a cursor; xterm's ctlseqs has them."""


def is_screen(console: Console) -> bool:
    """Whatever FORCE_COLOR says, which rich takes for a terminal."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


def text_of(line: Line) -> Text:
    """For a console of rich."""
    return Text.assemble(*((text, STYLES.get(style, "")) for text, style in line), no_wrap=True, end="")


def plain(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()


def _codes(console: Console, style: str) -> tuple[str, str]:
    """What switches a style on and off; without colours (NO_COLOR) the rest of it."""
    parsed = Style.parse(style)
    system = COLOR_SYSTEMS.get(console.color_system or "standard", ColorSystem.STANDARD)
    on, _, off = (
        (parsed.without_color if console.no_color else parsed).render("\0", color_system=system).partition("\0")
    )
    return on, off


class Screen:
    """`show` draws lines from the top; `leave` gives the terminal back. Both may be called at any time."""

    def __init__(self, console: Console, *, size: Callable[[], tuple[int, int]] | None = None) -> None:
        self._stream: IO[str] = getattr(console.file, "beneath", console.file)
        self._size = size or self._size_of_terminal
        self._codes = {name: _codes(console, style) for name, style in STYLES.items()}
        self._shown: list[str] = []
        self._at: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines) at this moment."""
        return self._size()

    def enter(self) -> None:
        self._shown, self._at = [], None
        self._write(ENTER)

    def leave(self) -> None:
        """Of a terminal that has gone there is nothing to give back. A signal handler may come by here in the middle of
        another write, which a stream refuses: then it goes to the descriptor."""
        with contextlib.suppress(OSError):
            try:
                self._write(LEAVE)
            except RuntimeError:
                os.write(self._stream.fileno(), LEAVE.encode())

    def show(self, lines: Sequence[Line]) -> None:
        width, height = self._size()
        written = [self._written(line, width) for line in lines[:height]]
        written += ["\x1b[K"] * (height - len(written))
        out = ""
        if self._at != (width, height):
            # the terminal has moved what was there about
            out, self._shown, self._at = "\x1b[2J", [], (width, height)
        for row, text in enumerate(written):
            if row >= len(self._shown) or self._shown[row] != text:
                out += f"\x1b[{row + 1};1H{text}"
        self._shown = written
        if out:
            self._write(out)

    def _written(self, line: Line, width: int) -> str:
        """A line and what clears the rest of its row. In a full row there is no rest, and clearing would take its last
        character."""
        shown = cut([(visible(text).replace("\n", " "), style) for text, style in line], width, ASCII)
        styled = "".join(self._styled(text, style) for text, style in shown)
        return styled if width_of(shown) >= width else f"{styled}\x1b[K"

    def _styled(self, text: str, name: str) -> str:
        codes = self._codes.get(name)
        return f"{codes[0]}{text}{codes[1]}" if codes and text.strip() else text

    def _size_of_terminal(self) -> tuple[int, int]:
        """Asked anew each time: it may have been resized. A serial line says 0."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return USUAL_SIZE
        return size.columns or USUAL_SIZE[0], size.lines or USUAL_SIZE[1]

    def _write(self, text: str) -> None:
        """What the terminal's encoding does not have is shown as `?`."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, errors="replace").decode(encoding))
        self._stream.flush()
