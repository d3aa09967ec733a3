"""Measurements of one metric as people read them: rates in percent, rewards as they are, unknown as nothing."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

from agent.report.night import Estimate
from agent.report.words import duration, percent, points


@dataclass(frozen=True)
class Numbers:
    """How the numbers of one metric are written."""

    metric: str

    @property
    def rate(self) -> bool:
        """Whether it lies between 0 and 1 (agent/recipe/schema.py, `evaluation.metric`)."""
        return self.metric != "mean_reward"

    def axis(self, span: float) -> str:
        """The format of a chart's axis that is `span` long."""
        return f".{0 if span > 0.06 else 1}%" if self.rate else f".{2 if span > 0.06 else 3}f"

    def value(self, value: float | None) -> str:
        known = finite(value)
        if known is None:
            return ""
        return percent(known) if self.rate else f"{known:.3f}"

    def difference(self, value: float | None) -> str:
        known = finite(value)
        if known is None:
            return ""
        return points(known) if self.rate else f"{round(known, 3) + 0.0:+.3f}"

    def size(self, value: float | None) -> str:
        """Of a difference, without its sign."""
        known = finite(value)
        return "" if known is None else self.difference(abs(known)).lstrip("+")

    def interval(self, one: Estimate | None) -> str:
        """`[49.1, 55.0]`, in the unit of the value before it."""
        if one is None or finite(one.low) is None or finite(one.high) is None:
            return ""
        low, high = (self.value(end).rstrip("%") for end in (one.low, one.high))
        return f"[{low}, {high}]"

    def span(self, one: Estimate | None) -> str:
        """The interval of a difference: `[+1.2, +5.0]`."""
        if one is None or finite(one.low) is None or finite(one.high) is None:
            return ""
        low, high = (self.difference(end).removesuffix("pp") for end in (one.low, one.high))
        return f"[{low}, {high}]"


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def plain(value: float | None, form: str = ".4g") -> str:
    known = finite(value)
    return "" if known is None else format(known, form)


def time_of(seconds: float | None) -> str:
    known = finite(seconds)
    if known is None:
        return ""
    return f"{known:.1f}s" if 0 < known < 10 else duration(known)


def moment(at: float | None) -> str:
    """`2026-11-27 07:12`, by the clock of this machine."""
    known = finite(at)
    try:
        return "" if known is None else datetime.datetime.fromtimestamp(known).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return ""
