"""The staircase of a night: every idea where it was measured, and the line of the best.

On the search split, where every idea is measured first. Better is always up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from agent.report.charts import GROUPS, HEIGHT, SHAPES, Spec, chart, colour, group_of, said
from agent.report.night import Night
from agent.report.numbers import Numbers, finite, time_of
from agent.text import one_line

BEHIND = {"discard": 0, "open": 1, "crash": 2, "lead": 3, "keep": 4, "baseline": 4}
"""What is drawn over what."""
REASON = 240
"""Characters of a reason that a tooltip shows."""
MANY = 120
"""Ideas from which on marks are small."""
BAND: Spec = {"type": "area", "interpolate": "step-after", "color": "var(--band)", "clip": True}
WHISKER: Spec = {"type": "rule", "strokeWidth": 1, "clip": True}
BEST: Spec = {"type": "line", "interpolate": "step-after", "color": "var(--keep)", "strokeWidth": 2.5}
LED: Spec = {"type": "line", "color": "var(--lead)", "strokeWidth": 1.5, "strokeDash": [5, 4]}
NUMBER: Spec = {"type": "text", "dy": -14, "fontWeight": "bold", "fontSize": 12}


def staircase(night: Night, *, by: str = "time", marks: Sequence[Spec] | None = None) -> Spec:
    """Over the consumed time, or with `by="idea"` over the ideas' numbers. `marks`: `marks_of`, for whoever draws both;
    every idea without."""
    places = _places(night, by)
    rows = [{"x": places[mark["number"]], **mark} for mark in (marks_of(night) if marks is None else marks)]
    line = _line(night, by, places, rows)
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
    number = {"x": x, "y": y, "text": {"field": "label"}}
    layers = [
        _layer("line", BAND, ends),
        _layer("whiskers", WHISKER | {"opacity": 0.15 if many else 0.45}, ends | {"color": colour()}),
        _layer("line", BEST, {"x": x, "y": y}),
        _layer("leads", LED, {"x": x, "y": y, "detail": {"field": "of"}}),
        _points(x, y, small=many),
        _layer("named", NUMBER | {"color": "var(--bg)", "stroke": "var(--bg)", "strokeWidth": 4}, number),
        _layer("named", NUMBER | {"color": "var(--keep)"}, number),
    ]
    sets = {"steps": rows, "line": line, "leads": leads, "whiskers": whiskers, "named": named}
    filled = {name: data for name, data in sets.items() if data}
    shown = [layer for layer in layers if layer["data"]["name"] in filled]  # Vega warns of an empty one
    return chart({"height": HEIGHT, "datasets": filled, "layer": shown})


def _x_axis(night: Night, by: str) -> Spec:
    title = "idea" if by != "time" else f"consumed {_unit(night)[0]}"
    axis: Spec = {"grid": False, "tickCount": 8} | ({} if by == "time" else {"tickMinStep": 1, "format": "d"})
    return {
        "field": "x",
        "type": "quantitative",
        "title": title,
        "axis": axis,
        "scale": {"nice": False, "zero": True, "padding": 12},
    }


def _y_axis(night: Night, low: float, high: float) -> Spec:
    numbers = Numbers(night.metric)
    title = f"{one_line(night.metric)[:40]} on search{', smaller is better: axis turned' if night.minimize else ''}"
    scale = {"domain": [low, high], "zero": False, "nice": False, "reverse": night.minimize}
    return {
        "field": "y",
        "type": "quantitative",
        "title": title,
        "axis": {"format": numbers.axis(high - low)},
        "scale": scale,
    }


def _unit(night: Night) -> tuple[str, int]:
    """(name, seconds) of what the x axis counts."""
    known = (("hours", 3600), ("minutes", 60), ("seconds", 1))
    return next(unit for unit in known if night.consumed_s >= 2 * unit[1] or unit[1] == 1)


def _layer(data: str, mark: Spec, encoding: Spec) -> Spec:
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
            "color": colour(),
            "size": {"condition": {"test": "datum.filled !== 'hollow'", "value": 70}, "value": 26 if small else 70},
            "fill": {
                "field": "filled",
                "type": "nominal",
                "scale": {
                    "domain": ["hollow", "baseline", "keep", "lead", "crash"],
                    "range": ["var(--bg)", "var(--ink)", "var(--keep)", "var(--lead)", "var(--crash)"],
                },
                "legend": None,
            },
            "shape": {
                "field": "group",
                "type": "nominal",
                "scale": {"domain": list(GROUPS), "range": list(SHAPES)},
                "legend": None,
            },
            "tooltip": [{"field": field, "type": "nominal", "title": title} for field, title in shown.items()],
        },
    }


def has_values(night: Night) -> bool:
    """Whether there is anything to draw: a campaign of another version may tell no metric."""
    return any(finite(value) is not None for step in night.steps for value in (step.value, step.best))


# --- its data ----------------------------------------------------------------------------------------------


def marks_of(night: Night, shown: Collection[int] | None = None) -> list[Spec]:
    """The ideas without their places: all, or those that are to be shown (`agent.report.chosen`)."""
    numbers = Numbers(night.metric)
    carded = {card.story.number for card in night.cards}
    rows: list[Spec] = []
    for step in night.steps:
        group = group_of(step)
        if (group == "open" and finite(step.value) is None) or not (shown is None or step.number in shown):
            continue
        why = f"{step.kind}: {step.reason}" if step.kind and not step.reason.startswith(step.kind) else step.reason
        crash = f" ({step.crash_class})" if step.crash_class else ""
        rows.append(
            {
                "y": finite(step.value),
                "low": finite(step.low),
                "high": finite(step.high),
                "group": group,
                "filled": group if group in ("baseline", "keep", "lead", "crash") else "hollow",
                "number": step.number,
                "idea": said(f"#{step.number} {step.title}", REASON),
                "value": numbers.value(step.value) or "not measured",
                "delta": f"{numbers.difference(step.delta.value)} {numbers.span(step.delta)}" if step.delta else "",
                "took": time_of(step.took_s),
                "reason": said(why + crash, REASON),
                "go": _place_of(step.number, carded),
            }
        )
    return sorted(rows, key=lambda row: (BEHIND[row["group"]], row["number"]))


def _place_of(number: int, carded: Collection[int]) -> str:
    """Where a click on its mark goes; the baseline has no row."""
    return f"card-{number}" if number in carded else f"idea-{number}" if number else ""


def _places(night: Night, by: str) -> dict[int, float]:
    """Where each step stands, by its number; one whose time is not known stands with the one before it."""
    places, last = {}, 0.0
    _, unit = _unit(night)
    for step in night.steps:
        at = finite(step.at_s)
        last = float(step.number) if by != "time" else round(at / unit, 4) if at is not None else last
        places[step.number] = last
    return places


def _line(night: Night, by: str, places: Mapping[int, float], rows: list[Spec]) -> list[Spec]:
    """The incumbent's metric where it changes, with two sigma_run about it, to where the night stands."""
    half = 2 * (finite(night.noise.sigma_run) or 0.0)
    _, unit = _unit(night)
    if by == "time":
        points = [(places[step.number], best) for step in night.steps if (best := finite(step.best)) is not None]
        points.sort(key=lambda point: point[0])
    else:
        points = list(_best_by_number(night, places))
    if points:
        last = max(row["x"] for row in rows) if rows else points[-1][0]
        points.append((max(last, night.consumed_s / unit if by == "time" else last), points[-1][1]))
    changes = [after for before, after in itertools.pairwise(points) if after[1] != before[1]]
    drawn = [*points[:1], *changes, *points[-1:]]
    return [{"x": x, "y": best, "low": best - half, "high": best + half} for x, best in drawn]


def _best_by_number(night: Night, places: Mapping[int, float]) -> Iterator[tuple[float, float]]:
    """What the incumbent had after the step that was judged last among each and those before it: of a batch that was
    screened, the losers are judged before what was kept of it, and have higher numbers."""
    best, latest = None, -math.inf
    for step in sorted(night.steps, key=lambda step: step.number):
        at, its = finite(step.at_s), finite(step.best)
        if its is not None and step.outcome != "open" and (at is None or at >= latest):
            best, latest = its, latest if at is None else at
        if best is not None:
            yield places[step.number], best


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
