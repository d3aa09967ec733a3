"""Numbers as people read them, the same on the terminal, in reasons and in git notes."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`7h 05m`, `12m 30s`, `45s`; what is overdrawn is `0s`."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole}s"


def counted(number: int | None, one: str, several: str = "") -> str:
    """`1 cycle`, `3 cycles`; `several` where that is not made by an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def trained(cycles: int, steps: int) -> str:
    """`8 cycles, 64 steps`."""
    return f"{counted(cycles, 'cycle')}, {counted(steps, 'step')}"


def percent(rate: float | None) -> str:
    """`52.3%`; nothing for what is not known."""
    return "" if rate is None else f"{100 * rate:.1f}%"


def points(difference: float) -> str:
    """A difference of rates in percentage points, signed: `+3.1pp`; nothing is `+0.0pp`."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}pp"
