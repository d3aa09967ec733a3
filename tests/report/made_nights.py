"""Nights made by code, good and bad, for the tests of the page and for looking at it. Nothing here was measured."""

from __future__ import annotations

import dataclasses
from typing import Any

from agent.report.night import Night, Noise, TimeSlice
from tests.report.made_parts import made_night

HOSTILE = (
    "<script>window.pwned=1;document.title='pwned'</script></script><script>window.pwned=2</script>"
    '<img src=x onerror="window.pwned=3"> <a href="javascript:window.pwned=4">x</a> " \' onmouseover=window.pwned=5 '
    "<!--<script> ]]> &lt; &#60; {{ 7*7 }} {% raw %} ${window.pwned=6} `</style><style>body{display:none}` "
    "\x1b[31mred\x1b]0;pwned\x07 \u202edesrever\u202c \x00 \u2028 \u2029 \ud800 \U0001f600"
)
LONG = "x" * 100_000


def good() -> Night:
    """Eight hours, 24 ideas, two confirmed, two crashes, two near-misses."""
    return made_night("good", ideas=24, keeps=(6, 17), leads=(4,), crashes=(9, 20), near=(11, 15))


def no_keeps() -> Night:
    night = made_night("nothing", ideas=18, keeps=(), crashes=(7,), near=(5,))
    verdict = (
        "No confirmed improvement: of 18 ideas none could be shown to gain; 12 effects above +1.5pp are ruled out."
    )
    return dataclasses.replace(night, verdict=verdict)


def only_crashes() -> Night:
    night = made_night("broken", ideas=5, keeps=(), crashes=(1, 2, 3, 4, 5))
    verdict = (
        "No confirmed improvement: all 5 ideas crashed (4 oom, 1 backend), so the night proves nothing about them."
    )
    reason = "stopped: the same fault met every run since #1"
    return dataclasses.replace(night, verdict=verdict, ruled_out=(), stopped=reason, samples=(), samples_of="")


def interrupted() -> Night:
    """Cut short in the calibration: there is no baseline yet."""
    night = made_night("cut-short", ideas=0, keeps=())
    return dataclasses.replace(
        night,
        state="killed",
        verdict="Nothing is measured yet: the campaign ended in the calibration, before there was a baseline.",
        consumed_s=412.0,
        stopped="its process is gone; `raft-agent resume` goes on",
        arms=night.arms[:1],
        gains=(),
        noise=Noise(None, None, None, "The run noise is not known yet: it takes the baseline's seeds."),
        counts={"ideas": 0},
        time=(TimeSlice("start-up", 31.0), TimeSlice("calibrate", 381.0)),
        steps=(),
        ruled_out=(),
        next=(),
        next_note="There is no ranking before there is a baseline.",
        samples=(),
        samples_of="",
        curves=(),
        warnings=("the last line of the journal was torn and is passed over",),
    )


def running() -> Night:
    night = made_night("tonight", ideas=9, keeps=(6,), leads=(4,), open_=(9,))
    return dataclasses.replace(
        night,
        state="running",
        verdict="One improvement is confirmed so far (#6, +3.0pp on confirm); the holdout is still to come.",
        stopped="",
        arms=tuple(
            dataclasses.replace(arm, metrics={s: e for s, e in arm.metrics.items() if s != "holdout"})
            for arm in night.arms
        ),
        gains=tuple(gain for gain in night.gains if gain.split != "holdout"),
    )


def leading() -> Night:
    """As short nights are: leads all the way, one keep at the end."""
    return made_night("ten-minutes", ideas=30, keeps=(30,), leads=(3, 8, 12, 19), near=(25,), hours=0.17)


def many(*, curves: bool = True) -> Night:
    """500 experiments, each with curves."""
    return made_night(
        "long",
        curves=curves,
        ideas=500,
        keeps=(12, 60, 170, 333),
        leads=(5, 41, 90, 250),
        crashes=tuple(range(25, 500, 50)),
        near=(77, 140, 290),
        hours=60.0,
    )


def minimised() -> Night:
    """Smaller is better: everything falls."""
    night = made_night("errors", ideas=20, keeps=(5, 13), crashes=(8,), near=(10,), minimize=True)
    return dataclasses.replace(night, metric="mean_reward", minimize=True)


def hostile(*, everywhere: bool = False) -> Night:
    """Text that would like to be more in every field; with `everywhere` also in words that the page goes by."""
    night = made_night("x", ideas=12, keeps=(4, 9), leads=(2,), crashes=(6,), near=(7,))
    kept = set() if everywhere else {"outcome", "kind", "metric", "split", "state"}
    found: Night = _spoiled(night, kept, everywhere)
    return dataclasses.replace(found, state="finished", warnings=(HOSTILE, LONG, HOSTILE + LONG))


def _spoiled(value: Any, kept: set[str], keys: bool) -> Any:
    if isinstance(value, str):
        return f"{value} {HOSTILE}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value)(
            **{name: each if name in kept else _spoiled(each, kept, keys) for name, each in fields.items()}
        )
    if isinstance(value, dict):
        return {f"{key} {HOSTILE}" if keys else key: _spoiled(each, kept, keys) for key, each in value.items()}
    return tuple(_spoiled(each, kept, keys) for each in value) if isinstance(value, tuple) else value


NIGHTS = {
    "good": good,
    "no-keeps": no_keeps,
    "only-crashes": only_crashes,
    "interrupted": interrupted,
    "running": running,
    "leading": leading,
    "many": many,
    "minimised": minimised,
    "hostile": hostile,
    "hostile-everywhere": lambda: hostile(everywhere=True),
}
