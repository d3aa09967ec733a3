"""The charts of a night as Vega-Lite (the staircase has a file of its own), and what they have in common.

Colours are names, `var(--keep)`, that the page's style sheet fills for light, dark and paper; where no style sheet is
(an SVG of its own), `drawn` fills them. A chart is drawn from data alone: no text of the night is an expression or the
name of a field.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from agent.report.night import Night, Step
from agent.report.numbers import Numbers, finite
from agent.text import one_line

Spec = dict[str, Any]
PALETTE: dict[str, tuple[str, str]] = {
    "bg": ("#ffffff", "#14171a"),
    "ink": ("#1a1d21", "#e6e8ea"),
    "soft": ("#555c65", "#a7afb8"),
    "rule": ("#d5d9de", "#363c43"),
    "keep": ("#005f9e", "#6cb8f0"),
    "lead": ("#00725a", "#4fc3a1"),
    "discard": ("#69717a", "#98a1aa"),
    "open": ("#7a4a9e", "#c9a4ea"),
    "crash": ("#b23c00", "#ff9566"),
    "band": ("#d6e6f2", "#1d3446"),
}
"""Light and dark, told apart by the colour-blind too (after Okabe and Ito); each group has a shape of its own besides.
`tests/report` holds it against the style sheet and against a contrast of 4.5."""
GROUPS = ("baseline", "keep", "lead", "discard", "open", "crash")
SHAPES = (
    "diamond",
    "circle",
    "triangle-up",
    "circle",
    "square",
    "M-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0L-1,-.6Z",
)
COLOURS = ("ink", "keep", "lead", "discard", "open", "crash")
LABEL = 280
"""Pixels for an idea's name; the page's script makes it less on a phone."""
EFFECTS = 80
"""That one chart shows; the table of all ideas has every one."""
HEIGHT = 340


def group_of(step: Step) -> str:
    """What a step is drawn as."""
    if step.number == 0:
        return "baseline"
    if step.kind == "lead" and step.outcome != "keep":
        return "lead"
    return step.outcome if step.outcome in GROUPS else "open"


def drawn(spec: Spec, *, dark: bool = False) -> Spec:
    """The chart with its colours filled in, for `agent.report.vega.to_svg` and `to_png`."""
    text = json.dumps(spec)
    for name, pair in PALETTE.items():
        text = text.replace(f"var(--{name})", pair[dark])
    filled: Spec = json.loads(text)
    filled["config"]["background"] = PALETTE["bg"][dark]
    if filled.get("width") == "container":
        filled["width"] = 760
    return filled


def said(text: str, most: int) -> str:
    """As the page writes a line of prose."""
    line = one_line(text).replace(" -> ", " \u2192 ")
    return line if len(line) <= most else f"{line[: most - 4]} ..."


def colour() -> Spec:
    """By group."""
    scale = {"domain": list(GROUPS), "range": [f"var(--{name})" for name in COLOURS]}
    return {"field": "group", "type": "nominal", "scale": scale, "legend": None}


def effects(night: Night, shown: Collection[int] | None = None) -> Spec | None:
    """The difference that each verdict rests on, with its interval: the highest ends first; None without any. A click
    goes to the row of an idea that is among the shown ones; None: all are."""
    numbers = Numbers(night.metric)
    scale = 100 if numbers.rate else 1
    known = [
        (step, delta, low, high)
        for step in night.steps
        if step.number and (delta := step.delta) is not None and finite(delta.value) is not None
        if (low := finite(delta.low)) is not None and (high := finite(delta.high)) is not None
    ]
    if not known:
        return None
    known.sort(key=lambda one: -one[3])
    rows = [
        {
            "idea": said(f"#{step.number} {step.title}", 60),
            "delta": delta.value * scale,
            "low": low * scale,
            "high": high * scale,
            "group": group_of(step),
            "text": f"{numbers.difference(delta.value)} {numbers.span(delta)}",
            "go": f"idea-{step.number}" if shown is None or step.number in shown else "",
        }
        for step, delta, low, high in known[:EFFECTS]
    ]
    y = {"field": "idea", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": LABEL, "ticks": False}}
    x = {
        "type": "quantitative",
        "title": "points gained, with the 95% interval" if numbers.rate else "gained, with the 95% interval",
        "axis": {"tickCount": 7},
    }
    tooltip = [{"field": "idea", "type": "nominal"}, {"field": "text", "type": "nominal", "title": "difference"}]
    layers: list[Spec] = [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "color": "var(--ink)"},
            "encoding": {"x": x | {"field": "zero"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": x | {"field": "low"},
                "x2": {"field": "high"},
                "y": y,
                "color": colour(),
                "tooltip": tooltip,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "cursor": "pointer"},
            "encoding": {"x": x | {"field": "delta"}, "y": y, "color": colour(), "tooltip": tooltip},
        },
    ]
    return chart(
        {"height": 17 * len(rows), "datasets": {"effects": rows}, "data": {"name": "effects"}, "layer": layers}
    )


def curve() -> Spec:
    """One quantity over the cycles or seconds of one run, or of two. The page gives the data and the title of x."""
    series = {
        "field": "run",
        "type": "nominal",
        "legend": None,
        "sort": None,
        "scale": {"range": ["var(--keep)", "var(--crash)"]},
    }
    dash = {"field": "run", "type": "nominal", "legend": None, "sort": None, "scale": {"range": [[1, 0], [6, 3]]}}
    x = {"field": "x", "type": "quantitative", "title": "cycle", "scale": {"nice": False}, "axis": {"tickCount": 5}}
    y = {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False},
        "axis": {"tickCount": 4, "format": ".4~g"},
    }
    tooltip = [
        {"field": "run", "type": "nominal"},
        {"field": "x", "type": "quantitative", "title": "at"},
        {"field": "y", "type": "quantitative", "title": "value", "format": ".5~g"},
    ]
    mark = {"type": "line", "point": {"size": 18, "filled": True}, "strokeWidth": 1.8}
    encoding = {"x": x, "y": y, "color": series, "strokeDash": dash, "tooltip": tooltip}
    return chart({"height": 130, "data": {"name": "curve"}, "mark": mark, "encoding": encoding})


def chart(spec: Spec) -> Spec:
    """With what all charts have in common."""
    axis = {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--rule)",
        "domainColor": "var(--rule)",
        "tickColor": "var(--rule)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "gridOpacity": 0.6,
    }
    config = {"background": "transparent", "view": {"stroke": None}, "axis": axis, "font": "system-ui, sans-serif"}
    autosize = {"type": "fit-x", "contains": "padding", "resize": True}
    return {"width": "container", "autosize": autosize, "config": config, **spec}
