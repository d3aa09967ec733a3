"""Curves across cycles with their intervals, in panels: rows are measures, columns groups of curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.report.vega import PALETTE

WIDE = 750
"""Pixels of all columns together, without axes: a page shows the picture at its own size."""
NARROWEST, WIDEST = 220, 520
HEIGHT = 200
AXIS = 44
"""Pixels that the labels of every y axis get, so that the panels of a column stand below each other."""


@dataclass(frozen=True)
class Curve:
    column: str
    """Title of its panels; empty where there is one column."""
    label: str
    """Decides its colour, the same in all panels."""
    points: Sequence[tuple[int, float, float | None, float | None]]
    """Cycle, mean, low and high."""


@dataclass(frozen=True)
class Measure:
    title: str
    curves: Sequence[Curve]
    percent: bool = False


def curves_spec(measures: Sequence[Measure], *, title: str, legend: str) -> dict[str, Any]:
    """A Vega-Lite specification. Columns and colours are in the order in which curves first name them."""
    every = [curve for measure in measures for curve in measure.curves]
    columns = list(dict.fromkeys(curve.column for curve in every))
    labels = list(dict.fromkeys(curve.label for curve in every))
    width = min(WIDEST, max(NARROWEST, WIDE // max(1, len(columns))))
    last = len(measures) - 1
    rows = [
        {
            "hconcat": [
                _panel(measure, column, labels, legend, width=width, top=not place, bottom=place == last, left=not left)
                for left, column in enumerate(columns)
            ]
        }
        for place, measure in enumerate(measures)
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {"text": title, "offset": 12},
        "vconcat": rows,
        "resolve": {"scale": {"color": "shared"}},
    }


def _panel(
    measure: Measure,
    column: str,
    labels: list[str],
    legend: str,
    *,
    width: int,
    top: bool,
    bottom: bool,
    left: bool,
) -> dict[str, Any]:
    values = [
        {"cycle": cycle, "mean": mean, "low": low, "high": high, "curve": curve.label}
        for curve in measure.curves
        if curve.column == column
        for cycle, mean, low, high in curve.points
    ]
    axis = {
        "format": "~%" if measure.percent else "~g",
        "title": measure.title if left else None,
        "minExtent": AXIS,
        "tickCount": 5 if top else 3,
    }
    scale = {"zero": False, "nice": True, "domain": _domain(measure)}
    colour = {
        "field": "curve",
        "type": "nominal",
        "scale": {"domain": labels, "range": [PALETTE[place % len(PALETTE)] for place in range(len(labels))]},
        "legend": {"title": legend, "orient": "top", "symbolType": "stroke", "symbolOpacity": 1},
        "sort": labels,
    }
    x: dict[str, Any] = {"field": "cycle", "type": "quantitative", "scale": {"nice": False}}
    x |= {"title": "cycle" if bottom else None, "axis": {"tickMinStep": 1, "tickCount": 8, "grid": False}}
    return {
        "width": width,
        "height": HEIGHT if top else HEIGHT * 2 // 3,
        **({"title": {"text": column, "fontSize": 13}} if top and column else {}),
        "data": {"values": values},
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15, "clip": True},
                "encoding": {
                    "y": {"field": "low", "type": "quantitative", "axis": axis, "scale": scale},
                    "y2": {"field": "high"},
                },
                "transform": [{"filter": "isValid(datum.low)"}],
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": {"field": "mean", "type": "quantitative", "axis": axis, "scale": scale}},
            },
        ],
    }


def _domain(measure: Measure) -> list[float]:
    """The same in all columns: of the means, with some room, as the interval of a few seeds may be very wide."""
    means = [mean for curve in measure.curves for _, mean, _, _ in curve.points]
    low, high = min(means, default=0.0), max(means, default=1.0)
    room = 0.08 * (high - low) or 0.05
    return [max(0.0, low - room) if low >= 0 else low - room, min(1.0, high + room) if measure.percent else high + room]
