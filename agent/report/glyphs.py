"""The few characters that a live view draws with, and lines of styled pieces that fit a width.

There are two sets: one for terminals whose encoding has them, one of ASCII. In both every outcome has a character of
its own, so that colour only helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

Piece = tuple[str, str]
"""Text and the name of its style."""
Line = list[Piece]


@dataclass(frozen=True)
class Glyphs:
    keep: str
    discard: str
    crash: str
    open: str
    lead: str
    best: str
    up: str
    full: str
    empty: str
    spark: str
    arrow: str
    more: str
    between: str

    def of(self, outcome: str, kind: str = "") -> str:
        if kind == "lead":
            return self.lead
        return {"keep": self.keep, "discard": self.discard, "crash": self.crash}.get(outcome, self.open)


UNICODE = Glyphs("●", "·", "×", "○", "◆", "━", "┃", "█", "░", "▁▂▃▄▅▆▇█", "→", "…", " │ ")
ASCII = Glyphs("K", ".", "x", "o", "L", "-", "|", "#", "-", "_.:-=+*#", "->", "~", " | ")


def glyphs_for(encoding: str | None) -> Glyphs:
    """The set that a terminal of this encoding can show."""
    try:
        "".join(vars(UNICODE).values()).encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return UNICODE


def width_of(line: Iterable[Piece]) -> int:
    return sum(cell_len(text) for text, _ in line)


def cut(line: Line, width: int, glyphs: Glyphs) -> Line:
    """At most `width` columns; what is cut ends in a mark."""
    if width_of(line) <= width:
        return line
    left, found = max(0, width - 1), []
    for text, style in line:
        size = cell_len(text)
        if size > left:
            found.append((set_cell_size(text, left), style))
            break
        found.append((text, style))
        left -= size
    return [*found, (glyphs.more, "dim")] if width > 0 else []


def flow(parts: Sequence[Line], width: int, glyphs: Glyphs) -> list[Line]:
    """Parts one behind the other with something between, on as many lines as they need; no part is broken, and one that
    is wider than a line is cut."""
    lines: list[Line] = []
    for part in parts:
        if not part:
            continue
        between = width_of([(glyphs.between, "")])
        if lines and width_of(lines[-1]) + between + width_of(part) <= width:
            lines[-1] = [*lines[-1], (glyphs.between, "dim"), *part]
        else:
            lines.append(cut(part, width, glyphs))
    return lines


def wrap(text: str, width: int, glyphs: Glyphs, *, most: int) -> list[str]:
    """Words on at most `most` lines; what is left over is cut, and so is a word that is wider than a line."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
            break
    return ["".join(piece for piece, _ in cut([(line, "")], width, glyphs)) for line in lines]


def bar(share: float | None, width: int, glyphs: Glyphs) -> Line:
    """Unknown is empty."""
    filled = round(max(0.0, min(1.0, share or 0.0)) * width)
    return [("[", "dim"), (glyphs.full * filled, "bar"), (glyphs.empty * (width - filled), "dim"), ("]", "dim")]


def sparkline(values: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """The last values, from the lowest to the highest of them."""
    shown = list(values)[-max(0, width) :] if width > 0 else []
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(glyphs.spark) - 1
    return "".join(
        glyphs.spark[round((value - low) / (high - low) * top) if high > low else top // 2] for value in shown
    )
