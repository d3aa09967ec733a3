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
SHAPES = ("diamond", "circle", "triangle-up", "circle", "square", "M-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0L-1,-.6Z")
COLOURS = ("ink", "keep", "lead", "discard", "open", "crash")
BEHIND = {"discard": 0, "open": 1, "crash": 2, "lead": 3, "keep": 4, "baseline": 4}
"""What is drawn over what."""
REASON = 240
"""Characters of a reason that a tooltip shows."""
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
    if filled.get("width") == "container":
        filled["width"] = 760
    return filled


# --- the staircase -----------------------------------------------------------------------------------------


def staircase(night: Night, *, by: str = "time") -> Spec:
    """Every idea: over the consumed hours, or with `by="idea"` over its number."""
    rows = _rows(night, by)
    sigma = finite(night.noise.sigma_run)
    line = _line(night, by, rows, sigma)
    low, high = _range(rows, line)
    for row in rows:
        if row["group"] == "crash" or row["y"] is None:
            row["y"] = high if night.minimize else low
    title = f"{one_line(night.metric)} on the search split{', smaller is better (axis turned)' if night.minimize else ''}"
    x = {"field": "x", "type": "quantitative", "title": "consumed hours" if by == "time" else "idea", "scale": {"nice": False, "zero": True, "padding": 12}}
    if by != "time":
        x["axis"] = {"tickMinStep": 1, "format": "d"}
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": title,
        "axis": {"format": Numbers(night.metric).axis},
        "scale": {"domain": [low, high], "zero": False, "nice": False, "reverse": night.minimize},
    }
    ends = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}
    leads = _leads(night, rows)
    layers: list[Spec] = [
        {"data": {"name": "line"}, "mark": {"type": "area", "interpolate": "step-after", "color": "var(--band)", "clip": True}, "encoding": ends},
        {"data": {"name": "line"}, "mark": {"type": "line", "interpolate": "step-after", "color": "var(--keep)", "strokeWidth": 2.5}, "encoding": {"x": x, "y": y}},
        {"data": {"name": "leads"}, "mark": {"type": "line", "color": "var(--lead)", "strokeWidth": 1.5, "strokeDash": [5, 4]}, "encoding": {"x": x, "y": y}},
        {
            "data": {"name": "steps"},
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.45, "clip": True},
            "encoding": ends | {"color": _colour()},
        },
        _points(x, y),
        {
            "data": {"name": "steps"},
            "transform": [{"filter": "datum.label != ''"}],
            "mark": {"type": "text", "dy": -14, "fontWeight": "bold", "fontSize": 12, "color": "var(--keep)"},
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        },
    ]  # fmt: skip
    sets = {"steps": rows, "line": line, "leads": leads}
    return _chart({"height": HEIGHT, "datasets": sets, "layer": layers if leads else layers[:2] + layers[3:]})


def _points(x: Spec, y: Spec) -> Spec:
    shown = {"group": "outcome", "idea": "idea", "value": "search", "delta": "difference", "took": "took", "reason": "reason"}
    return {
        "data": {"name": "steps"},
        "mark": {"type": "point", "size": 70, "strokeWidth": 1.6, "cursor": "pointer", "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "color": _colour(),
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
                "label": f"#{step.number}" if group == "keep" else "",
                "number": step.number,
                "idea": one_line(f"#{step.number} {step.title}")[:REASON],
                "value": numbers.value(step.value) or "not measured",
                "delta": f"{numbers.difference(step.delta.value)} {numbers.span(step.delta)}" if step.delta else "",
                "took": time_of(step.took_s),
                "reason": one_line(why + crash)[:REASON],
                "go": f"card-{step.number}" if step.number in carded else f"idea-{step.number}",
            }
        )
    return sorted(rows, key=lambda row: (BEHIND[row["group"]], row["number"]))


def _places(night: Night, by: str) -> list[float]:
    """Where each step stands; one whose time is not known stands with the one before it."""
    places, last = [], 0.0
    for step in night.steps:
        at = finite(step.at_s)
        last = float(step.number) if by != "time" else round(at / 3600, 4) if at is not None else last
        places.append(last)
    return places


def _line(night: Night, by: str, rows: list[Spec], sigma: float | None) -> list[Spec]:
    """The incumbent's metric, with two sigma_run about it, to where the night stands."""
    half = 2 * sigma if sigma is not None else 0.0
    points = [
        (x, best)
        for step, x in zip(night.steps, _places(night, by), strict=True)
        if (best := finite(step.best)) is not None
    ]
    points.sort(key=lambda point: point[0])
    if points:
        last = max(row["x"] for row in rows) if rows else points[-1][0]
        points.append((max(last, night.consumed_s / 3600 if by == "time" else last), points[-1][1]))
    return [{"x": x, "y": best, "low": best - half, "high": best + half} for x, best in points]


def _leads(night: Night, rows: list[Spec]) -> list[Spec]:
    """What was built on unconfirmed, in order, from the baseline on; nothing where nothing led."""
    found = sorted((row for row in rows if row["group"] in ("baseline", "lead") and row["y"] is not None), key=lambda row: row["number"])  # fmt: skip
    return [{"x": row["x"], "y": row["y"]} for row in found] if any(row["group"] == "lead" for row in found) else []


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
    """The difference that each verdict rests on, with its interval, the largest upper end first; None without any."""
    numbers = Numbers(night.metric)
    scale = 100 if numbers.rate else 1
    rows = [
        {
            "idea": one_line(f"#{step.number} {step.title}")[:60],
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
    y = {"field": "idea", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 230, "ticks": False}}
    x = {"type": "quantitative", "title": "points gained, with the 95% interval" if numbers.rate else "gained, with the 95% interval"}  # fmt: skip
    tooltip = [{"field": "idea", "type": "nominal"}, {"field": "text", "type": "nominal", "title": "difference"}]
    layers: list[Spec] = [
        {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "color": "var(--ink)"}, "encoding": {"x": x | {"field": "zero"}}},
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, "color": _colour(), "tooltip": tooltip}},
        {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "cursor": "pointer"}, "encoding": {"x": x | {"field": "delta"}, "y": y, "color": _colour(), "tooltip": tooltip}},
    ]  # fmt: skip
    return _chart({"height": {"step": 17}, "datasets": {"effects": rows}, "data": {"name": "effects"}, "layer": layers})


def _whole(step: Step) -> bool:
    delta = step.delta
    return delta is not None and all(finite(value) is not None for value in (delta.value, delta.low, delta.high))


def curve() -> Spec:
    """One quantity over the cycles or seconds of one run, or of two. The page gives the data and the title of x."""
    series = {"field": "run", "type": "nominal", "legend": None, "sort": None, "scale": {"range": ["var(--keep)", "var(--crash)"]}}  # fmt: skip
    dash = {"field": "run", "type": "nominal", "legend": None, "sort": None, "scale": {"range": [[1, 0], [6, 3]]}}
    x = {"field": "x", "type": "quantitative", "title": "cycle", "scale": {"nice": False}, "axis": {"tickCount": 5}}
    y = {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}, "axis": {"tickCount": 4}}
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
