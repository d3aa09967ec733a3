"""Courses of the learning rate (`agent.recipe.rates`) as tables and bars that fit a width, and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent.recipe.rates import STEPS, Course
from agent.report.vega import PALETTE

CELL = 9
LABEL = 6
"""Columns of a rate, and of what stands before the first one."""
LONGEST_BAR = 32
MOST_POINTS = 512
"""Of one line in a plot."""
COLOURS = (*PALETTE, "#888888")
"""One for each of the nine schedules that there may be in a picture."""


def side_by_side(courses: Sequence[Course], *, width: int) -> list[str]:
    """The mean rate of every cycle, a column a course, and as many columns beside each other as fit."""
    fitting = max(1, (width - LABEL) // CELL)
    lines: list[str] = []
    for first in range(0, len(courses), fitting):
        block = courses[first : first + fitting]
        lines += ["", *_block(block)] if lines else _block(block)
    return lines


def _block(courses: Sequence[Course]) -> list[str]:
    head = "cycle ".ljust(LABEL) + "".join(f"{one.name[: CELL - 1]:>{CELL}}" for one in courses)
    rows = [
        _row(str(place + 1), [one.mean[place] for one in courses]) for place in range(max(len(c.mean) for c in courses))
    ]
    return [head, *rows, _row("mean", [one.whole for one in courses])]


def within_cycles(course: Course, *, width: int) -> list[str]:
    """One course: the rate at the start, on the mean and at the end of each cycle, and a bar where there is room."""
    if width < LABEL + 3 * CELL:
        return side_by_side([course], width=width)
    room = min(LONGEST_BAR, width - LABEL - 3 * CELL - 2)
    bars = _bars(course, room) if room >= 8 else [""] * len(course.mean)
    head = "cycle ".ljust(LABEL) + "".join(f"{name:>{CELL}}" for name in ("start", "mean", "end"))
    rows = [
        f"{_row(str(place + 1), [course.start[place], mean, course.end[place]])}  {bars[place]}".rstrip()
        for place, mean in enumerate(course.mean)
    ]
    return [head, *rows, f"{'mean':>{LABEL - 1}} {'':{CELL}}{course.whole:>{CELL}.2e}"]


def _row(label: str, rates: Sequence[float]) -> str:
    return f"{label:>{LABEL - 1}} " + "".join(f"{rate:>{CELL}.2e}" for rate in rates)


def drawn(courses: Sequence[Course], *, width: int) -> list[str]:
    """A bar a cycle, the longest of all courses as long as there is room for, with the rate where it fits."""
    shown = width >= LABEL + CELL + 1 + 8
    room = max(1, min(LONGEST_BAR, width - LABEL - (CELL + 1 if shown else 0)))
    top = max(max(one.mean) for one in courses)
    lines: list[str] = []
    for one in courses:
        lines += ["", one.name[:width]] if lines else [one.name[:width]]
        for cycle, (bar, rate) in enumerate(zip(_bars(one, room, top), one.mean, strict=True), start=1):
            lines.append(f"{cycle:>{LABEL - 1}} {bar:<{room}}{f' {rate:.2e}' if shown else ''}".rstrip())
    return lines


def _bars(course: Course, room: int, top: float | None = None) -> list[str]:
    """A rate of nothing has no bar, any other at least one mark."""
    top = top or max(course.mean)
    return ["#" * (max(1, round(room * rate / top)) if rate > 0 else 0) for rate in course.mean]


def plot(courses: Sequence[Course]) -> dict[str, Any]:
    """A Vega-Lite specification: a line a course over the cycles done."""
    values = [{"schedule": one.name, "cycle": cycle, "rate": rate} for one in courses for cycle, rate in _points(one)]
    names = [one.name for one in courses]
    last = len(courses[0].mean)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {"text": "Learning rate across cycles", "anchor": "start"},
        "width": 560,
        "height": 320,
        "background": "white",
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "cycle",
                "type": "quantitative",
                "title": "cycles done",
                "scale": {"domain": [0, last], "nice": False},
            },
            "y": {
                "field": "rate",
                "type": "quantitative",
                "title": "learning rate",
                "axis": {"format": ".1e"},
                "scale": {"domainMin": 0},
            },
            "color": {
                "field": "schedule",
                "type": "nominal",
                "title": "schedule",
                "sort": names,
                "scale": {"domain": names, "range": list(COLOURS[: len(names)])},
            },
            "order": {"field": "cycle", "type": "quantitative"},
        },
    }


def _points(course: Course) -> Iterator[tuple[float, float]]:
    """(cycles done, rate): the ends of every cycle, and what lies between as densely as a line can show."""
    apart = max(1, STEPS * len(course.steps) // MOST_POINTS)
    for cycle, (start, rates) in enumerate(zip(course.start, course.steps, strict=True)):
        yield cycle, start
        yield from ((cycle + (place + 0.5) / STEPS, rates[place]) for place in range(apart // 2, STEPS, apart))
        yield cycle + 1, rates[-1]
