"""The charts of a night as Vega-Lite: the staircase, the effects with their intervals, one curve of a run.

Colours are names, `var(--keep)`, that the page's style sheet fills for light, dark and paper; where no style sheet is
(an SVG of its own), `drawn` fills them. A chart is drawn from data alone: no text of the night is an expression or the
name of a field.
"""

from __future__ import annotations

import json
from typing import Any

from agent.report.night import Night, Step
from agent.report.numbers import Numbers, finite, time_of
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
BEHIND = {"discard": 0, "open": 1, "crash": 2, "lead": 3, "keep": 4, "baseline": 4}
"""What is drawn over what."""
REASON = 240
"""Characters of a reason that a tooltip shows."""
LABEL = 280
"""Pixels for an idea's name; the page's script makes it less on a phone."""
EFFECTS = 80
"""That one chart shows; the table of all ideas has every one."""
HEIGHT = 340
MANY = 120
"""Ideas from which on marks are small."""


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
    if filled.get("width") == "container":
        filled["width"] = 760
    return filled


def _said(text: str, most: int) -> str:
    """As the page writes a line of prose."""
    line = one_line(text).replace(" -> ", " \u2192 ")
    return line if len(line) <= most else f"{line[: most - 4]} ..."


# --- the staircase -----------------------------------------------------------------------------------------


def staircase(night: Night, *, by: str = "time") -> Spec:
    """Every idea: over the consumed time, or with `by="idea"` over its number."""
    rows = _rows(night, by)
    line = _line(night, by, rows)
    low, high = _range(rows, line)
    for row in rows:
        if row["group"] == "crash" or row["y"] is None:
            row["y"] = high if night.minimize else low
    x = _x_axis(night, by)
    y = _y_axis(night, low, high)
    ends = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}
    leads = _leads(night, rows)
    named = [{"x": row["x"], "y": row["y"], "label": f"#{row['number']}"} for row in rows if row["group"] == "keep"]
    whiskers = [
        {name: row[name] for name in ("x", "low", "high", "group")}
        for row in rows
        if row["low"] is not None and row["high"] is not None
    ]
    many = len(rows) > MANY
    text = {"type": "text", "dy": -14, "fontWeight": "bold", "fontSize": 12}
    label = {"x": x, "y": y, "text": {"field": "label"}}
    layers = [
        (line, _mark("line", {"type": "area", "interpolate": "step-after", "color": "var(--band)", "clip": True}, ends)),
        (whiskers, _mark("whiskers", {"type": "rule", "strokeWidth": 1, "opacity": 0.15 if many else 0.45, "clip": True}, ends | {"color": _colour()})),
        (line, _mark("line", {"type": "line", "interpolate": "step-after", "color": "var(--keep)", "strokeWidth": 2.5}, {"x": x, "y": y})),
        (leads, _mark("leads", {"type": "line", "color": "var(--lead)", "strokeWidth": 1.5, "strokeDash": [5, 4]}, {"x": x, "y": y, "detail": {"field": "of"}})),
        (rows, _points(x, y, small=many)),
        (named, _mark("named", text | {"color": "var(--bg)", "stroke": "var(--bg)", "strokeWidth": 4}, label)),
        (named, _mark("named", text | {"color": "var(--keep)"}, label)),
    ]  # fmt: skip
    sets = {"steps": rows, "line": line, "leads": leads, "whiskers": whiskers, "named": named}
    shown = [layer for data, layer in layers if data]  # an empty layer is warned of
    return _chart({"height": HEIGHT, "datasets": {name: data for name, data in sets.items() if data}, "layer": shown})


def _x_axis(night: Night, by: str) -> Spec:
    title = "idea" if by != "time" else f"consumed {'minutes' if _in_minutes(night) else 'hours'}"
    axis: Spec = {"grid": False, "tickCount": 8} | ({} if by == "time" else {"tickMinStep": 1, "format": "d"})
    return {"field": "x", "type": "quantitative", "title": title, "axis": axis, "scale": {"nice": False, "zero": True, "padding": 12}}  # fmt: skip


def _y_axis(night: Night, low: float, high: float) -> Spec:
    numbers = Numbers(night.metric)
    title = f"{one_line(night.metric)[:40]} on search{', smaller is better: axis turned' if night.minimize else ''}"
    form = numbers.axis if high - low > 0.06 else numbers.axis.replace("0", "1").replace("2", "3")
    scale = {"domain": [low, high], "zero": False, "nice": False, "reverse": night.minimize}
    return {"field": "y", "type": "quantitative", "title": title, "axis": {"format": form}, "scale": scale}


def _in_minutes(night: Night) -> bool:
    return night.consumed_s < 2 * 3600


def _mark(data: str, mark: Spec, encoding: Spec) -> Spec:
    return {"data": {"name": data}, "mark": mark, "encoding": encoding}


def _points(x: Spec, y: Spec, *, small: bool) -> Spec:
    shown = {
        "group": "outcome",
        "idea": "idea",
        "value": "search",
        "delta": "difference",
        "took": "took",
        "reason": "reason",
    }
    return {
        "data": {"name": "steps"},
        "mark": {"type": "point", "strokeWidth": 1.2 if small else 1.6, "cursor": "pointer", "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "color": _colour(),
            "size": {"condition": {"test": "datum.filled !== 'hollow'", "value": 70}, "value": 26 if small else 70},
            "fill": {"field": "filled", "type": "nominal", "scale": {"domain": ["hollow", "baseline", "keep", "lead", "crash"], "range": ["var(--bg)", "var(--ink)", "var(--keep)", "var(--lead)", "var(--crash)"]}, "legend": None},
            "shape": {"field": "group", "type": "nominal", "scale": {"domain": list(GROUPS), "range": list(SHAPES)}, "legend": None},
            "tooltip": [{"field": field, "type": "nominal", "title": title} for field, title in shown.items()],
        },
    }  # fmt: skip


def _colour() -> Spec:
    scale = {"domain": list(GROUPS), "range": [f"var(--{name})" for name in COLOURS]}
    return {"field": "group", "type": "nominal", "scale": scale, "legend": None}


def _rows(night: Night, by: str) -> list[Spec]:
    numbers = Numbers(night.metric)
    carded = {card.story.number for card in night.cards}
    rows: list[Spec] = []
    for step, x in zip(night.steps, _places(night, by), strict=True):
        group = group_of(step)
        if group == "open" and finite(step.value) is None:
            continue
        why = f"{step.kind}: {step.reason}" if step.kind and not step.reason.startswith(step.kind) else step.reason
        crash = f" ({step.crash_class})" if step.crash_class else ""
        rows.append(
            {
                "x": x,
                "y": finite(step.value),
                "low": finite(step.low),
                "high": finite(step.high),
                "group": group,
                "filled": group if group in ("baseline", "keep", "lead", "crash") else "hollow",
                "number": step.number,
                "idea": _said(f"#{step.number} {step.title}", REASON),
                "value": numbers.value(step.value) or "not measured",
                "delta": f"{numbers.difference(step.delta.value)} {numbers.span(step.delta)}" if step.delta else "",
                "took": time_of(step.took_s),
                "reason": _said(why + crash, REASON),
                "go": f"card-{step.number}" if step.number in carded else f"idea-{step.number}",
            }
        )
    return sorted(rows, key=lambda row: (BEHIND[row["group"]], row["number"]))


def _places(night: Night, by: str) -> list[float]:
    """Where each step stands; one whose time is not known stands with the one before it."""
    places, last = [], 0.0
    unit = 60 if _in_minutes(night) else 3600
    for step in night.steps:
        at = finite(step.at_s)
        last = float(step.number) if by != "time" else round(at / unit, 4) if at is not None else last
        places.append(last)
    return places


def _line(night: Night, by: str, rows: list[Spec]) -> list[Spec]:
    """The incumbent's metric, with two sigma_run about it, to where the night stands."""
    half = 2 * (finite(night.noise.sigma_run) or 0.0)
    unit = 60 if _in_minutes(night) else 3600
    points = [
        (x, best)
        for step, x in zip(night.steps, _places(night, by), strict=True)
        if (best := finite(step.best)) is not None
    ]
    points.sort(key=lambda point: point[0])
    if points:
        last = max(row["x"] for row in rows) if rows else points[-1][0]
        points.append((max(last, night.consumed_s / unit if by == "time" else last), points[-1][1]))
    return [{"x": x, "y": best, "low": best - half, "high": best + half} for x, best in points]


def _leads(night: Night, rows: list[Spec]) -> list[Spec]:
    """From each lead, and from what was kept on top of one, a line back to what it changes."""
    at = {row["number"]: row for row in rows if row["y"] is not None}
    found = []
    for step in night.steps:
        ours, base = at.get(step.number), at.get(step.base)
        if ours is None or base is None or ours is base:
            continue
        if ours["group"] == "lead" or (ours["group"] == "keep" and base["group"] == "lead"):
            found += [{"x": one["x"], "y": one["y"], "of": step.number} for one in (base, ours)]
    return found


def _range(rows: list[Spec], line: list[Spec]) -> tuple[float, float]:
    """Of the y axis, with room below for the crashes and above for a number. Intervals may be cut, values never."""
    values = [row["y"] for row in rows if row["y"] is not None and row["group"] != "crash"]
    values += [point[end] for point in line for end in ("low", "high")]
    if not values:
        return 0.0, 1.0
    ends = [row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    low, high = min(values), max(values)
    room = max(high - low, 1e-3)
    if ends:
        low, high = max(min([low, *ends]), low - 0.4 * room), min(max([high, *ends]), high + 0.4 * room)
    pad = 0.08 * max(high - low, 1e-3)
    return low - 1.5 * pad, high + 1.5 * pad


# --- effects, and curves -----------------------------------------------------------------------------------


def effects(night: Night) -> Spec | None:
    """The difference that each verdict rests on, with its interval: those that reach highest, first. None without any."""
    numbers = Numbers(night.metric)
    scale = 100 if numbers.rate else 1
    rows = [
        {
            "idea": _said(f"#{step.number} {step.title}", 60),
            "delta": step.delta.value * scale,
            "low": step.delta.low * scale,
            "high": step.delta.high * scale,
            "group": group_of(step),
            "text": f"{numbers.difference(step.delta.value)} {numbers.span(step.delta)}",
            "go": f"idea-{step.number}",
        }
        for step in night.steps
        if step.number and step.delta is not None and _whole(step)
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: -float(str(row["high"])))
    rows = rows[:EFFECTS]
    y = {"field": "idea", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": LABEL, "ticks": False}}
    x = {"type": "quantitative", "title": "points gained, with the 95% interval" if numbers.rate else "gained, with the 95% interval", "axis": {"tickCount": 7}}  # fmt: skip
    tooltip = [{"field": "idea", "type": "nominal"}, {"field": "text", "type": "nominal", "title": "difference"}]
    layers: list[Spec] = [
        {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "color": "var(--ink)"}, "encoding": {"x": x | {"field": "zero"}}},
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, "color": _colour(), "tooltip": tooltip}},
        {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "cursor": "pointer"}, "encoding": {"x": x | {"field": "delta"}, "y": y, "color": _colour(), "tooltip": tooltip}},
    ]  # fmt: skip
    return _chart(
        {"height": 17 * len(rows), "datasets": {"effects": rows}, "data": {"name": "effects"}, "layer": layers}
    )


def _whole(step: Step) -> bool:
    delta = step.delta
    return delta is not None and all(finite(value) is not None for value in (delta.value, delta.low, delta.high))


def curve() -> Spec:
    """One quantity over the cycles or seconds of one run, or of two. The page gives the data and the title of x."""
    series = {"field": "run", "type": "nominal", "legend": None, "sort": None, "scale": {"range": ["var(--keep)", "var(--crash)"]}}  # fmt: skip
    dash = {"field": "run", "type": "nominal", "legend": None, "sort": None, "scale": {"range": [[1, 0], [6, 3]]}}
    x = {"field": "x", "type": "quantitative", "title": "cycle", "scale": {"nice": False}, "axis": {"tickCount": 5}}
    y = {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False},
        "axis": {"tickCount": 4, "format": ".4~g"},
    }
    tooltip = [{"field": "run", "type": "nominal"}, {"field": "x", "type": "quantitative", "title": "at"}, {"field": "y", "type": "quantitative", "title": "value", "format": ".5~g"}]  # fmt: skip
    mark = {"type": "line", "point": {"size": 18, "filled": True}, "strokeWidth": 1.8}
    encoding = {"x": x, "y": y, "color": series, "strokeDash": dash, "tooltip": tooltip}
    return _chart({"height": 130, "data": {"name": "curve"}, "mark": mark, "encoding": encoding})


def _chart(spec: Spec) -> Spec:
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
