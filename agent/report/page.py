"""A night as one page: `report.html` holds all that it shows, and loads nothing.

Whatever the night holds is text: it is cleaned as for a terminal (`agent.text`), cut where it is endless, and escaped.
The page's own scripts are the only ones that run, by their hashes in its Content-Security-Policy; the charts are drawn
without `eval`. Without JavaScript everything but charts, curves, and the filter of the ideas is there.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from agent import __version__
from agent.report import charts as drawings
from agent.report import chosen, look
from agent.report.night import Night
from agent.report.numbers import Numbers, moment, plain, time_of
from agent.report.staircase import has_values, marks_of, staircase
from agent.report.telemetry import CURVE_BYTES, curves_that_fit
from agent.report.templates_of import templates
from agent.text import clean, one_line

LONGEST = 4000
"""Characters of one text that are shown; of what is longer the beginning, and how much there is."""
NO_CHARTS = "this report was made without them"


def render_page(night: Night, *, charts: str | None, why_no_charts: str = "") -> str:
    """The whole page. `charts` is the JavaScript of `agent.report.vega.bundle`; without it tables and words stand alone
    and the page says why. The same night gives the same page."""
    curves, left_out = curves_that_fit(night.curves, most=CURVE_BYTES) if charts else ([], 0)
    script = script_text(_source("page.js"))
    library = script_text(charts) if charts else None
    scripts = [script, *([library] if library else [])]
    page = _environment().get_template("page.html.j2")
    shown = chosen.shown(night)
    effects = drawings.effects(night, shown)
    crashes, ruled_out = look.crashes(night), look.ruled_out(night)
    return page.render(
        night=night,
        numbers=Numbers(night.metric),
        headline=look.headline(night),
        cards=look.cards(night),
        crashes=crashes,
        crashes_in_all=max(len(crashes), len(night.crashes)),
        ruled_out=ruled_out[: look.MOST_RULED_OUT],
        ruled_out_in_all=len(ruled_out),
        worse=sum(one.above < 0 for one in ruled_out),
        shown=shown,
        ideas=look.ideas(night, shown),
        ideas_in_all=sum(step.number > 0 for step in night.steps),
        has_baseline=look.has_baseline(night),
        stairs=look.stairs(night, shown),
        slices=look.slices(night),
        arms=look.arms(night),
        counts=look.counts(night),
        style=Markup(_source("page.css")),
        policy=_policy(scripts),
        script=Markup(script),
        library=Markup(library) if library else None,
        why_no_charts=why_no_charts or NO_CHARTS,
        data=Markup(as_data(_data(night, curves, effects, shown))) if charts else None,
        has_staircase=has_values(night),
        has_effects=effects is not None,
        guard_value=look.guard_value,
        curves=curves,
        curves_left_out=night.curves_left_out + left_out,
        version=__version__,
    )


def _data(
    night: Night, curves: list[dict[str, Any]], effects: drawings.Spec | None, shown: Collection[int]
) -> dict[str, Any]:
    """What the page's script draws from."""
    marks = marks_of(night, shown)
    specs = {
        "staircase-time": staircase(night, marks=marks),
        "staircase-idea": staircase(night, by="idea", marks=marks),
        "effects": effects,
        "curve": drawings.curve(),
    }
    return {"specs": specs, "curves": curves}


# --- scripts and data, safely within HTML ------------------------------------------------------------------


def as_data(value: Any) -> str:
    """JSON that may stand in a `<script type="application/json">`: nothing in it ends the element or begins another."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_known(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script_text(source: str) -> str:
    """JavaScript as the browser will read it from within HTML, so that its hash is that of what runs."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(?=/script|!--)", r"<\\", source, flags=re.IGNORECASE)


def _policy(scripts: list[str]) -> str:
    """Content-Security-Policy: the page's own scripts by hash, styles and images in it, and no address at all."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    parts = (
        "default-src 'none'",
        f"script-src {hashes}",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(parts)


def _known(value: Any) -> Any:
    """A value of JSON in which what is not a finite number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _known(each) for key, each in value.items()}
    return [_known(each) for each in value] if isinstance(value, list | tuple) else value


# --- templates ---------------------------------------------------------------------------------------------


@functools.cache
def _environment() -> Environment:
    filters = {
        "cut": cut,
        "line": _line,
        "duration": time_of,
        "moment": moment,
        "plain": plain,
        "diff": look.diff_of,
        "outcome": look.outcome_class,
    }
    return templates(autoescape=True, filters=filters, finalize=_shown)


def _shown(value: Any) -> Any:
    """What a template writes: markup of the page's own as it is, everything else as clean text of bounded length."""
    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup):
        return cut(value, LONGEST)
    return value


def _line(text: str) -> str:
    """As one line of prose, with an arrow that no line ends within."""
    return one_line(text).replace(" -> ", " \u2192 ")


def cut(text: str, most: int) -> str:
    """Clean text of at most `most` characters, and a word about the rest."""
    shown = clean(text)
    return shown if len(shown) <= most else f"{shown[:most]} ... ({len(shown) - most} more characters)"


@functools.cache
def _source(name: str) -> str:
    """A file beside the templates."""
    return resources.files("agent.report").joinpath("templates", name).read_text(encoding="utf-8")
