"""What is reported with an outcome: signals of candidate and incumbent side by side, and the probes still to run.

A probe is a run of its own: the candidate's and the incumbent's checkpoint, evaluated (no training) with other
prompt keys. This module says which evaluations those are and reads their results; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.plan.fit import fill
from agent.plan.schema import Alarm, Playbook, Watch
from agent.plan.symptoms import number
from agent.recipe.files import with_keys
from agent.recipe.schema import Recipe


@dataclass(frozen=True)
class WatchReading:
    """One watch's line of the outcome."""

    watch: str
    text: str
    """`format_rate 0.91 -> 0.62; truncation_rate 0.01 -> 0.02`."""
    alarms: list[str]
    """What the watch speaks up about; empty where all is well."""
    read: str
    """How to read it."""


@dataclass(frozen=True)
class Probe:
    """An evaluation-only run of a checkpoint of `recipe`, with the prompt keys of `probed`."""

    watch: str
    name: str
    probed: Recipe


@dataclass(frozen=True)
class ProbeResult:
    """The metric of candidate and incumbent under one probe."""

    name: str
    candidate: float
    incumbent: float


def report_watches(
    playbook: Playbook,
    ids: Iterable[str],
    *,
    candidate: Mapping[str, float | None],
    incumbent: Mapping[str, float | None],
) -> list[WatchReading]:
    """The telemetry watches among `ids`, incumbent -> candidate. Both arguments are results of `signals`."""
    readings = []
    for watch in (playbook.watches[name] for name in ids):
        if not watch.signals:
            continue
        parts = [f"{name} {_text(incumbent.get(name))} -> {_text(candidate.get(name))}" for name in watch.signals]
        alarms = [words for alarm in watch.alarms if (words := _alarm(alarm, candidate, incumbent))]
        readings.append(WatchReading(watch.id, "; ".join(parts), alarms, watch.read))
    return readings


def _text(value: float | None) -> str:
    return "?" if value is None else number(value)


def _alarm(alarm: Alarm, candidate: Mapping[str, float | None], incumbent: Mapping[str, float | None]) -> str:
    new, old = candidate.get(alarm.signal), incumbent.get(alarm.signal)
    if new is None:
        return ""
    if alarm.above is not None:
        return f"{alarm.signal} {number(new)} > {number(alarm.above)}" if new > alarm.above else ""
    if alarm.below is not None:
        return f"{alarm.signal} {number(new)} < {number(alarm.below)}" if new < alarm.below else ""
    if old is None:
        return ""
    if alarm.falls_by_share is not None:
        share = (old - new) / old if old > 0 else 0.0
        limit_words = f"(limit {alarm.falls_by_share:.0%})"
        return f"{alarm.signal} fell by {share:.0%} {limit_words}" if share > alarm.falls_by_share else ""
    rise, limit = (new - old, alarm.rises_by) if alarm.rises_by is not None else (old - new, alarm.falls_by)
    if limit is None or rise <= limit:
        return ""
    verb = "rose" if alarm.rises_by is not None else "fell"
    return f"{alarm.signal} {verb} by {number(rise)} (limit {number(limit)})"


def probes(playbook: Playbook, ids: Iterable[str], recipe: Recipe) -> list[Probe]:
    """The evaluations that the probing watches among `ids` ask for, for a checkpoint trained with `recipe`.

    A probe that leaves the prompt of this recipe as it is (no system message to take away) is left out.
    """
    found = []
    for watch in (playbook.watches[name] for name in ids):
        for variant in watch.probe:
            values = {key: _words(fill(value, recipe, facts={})) for key, value in variant.set.items()}
            probed = with_keys(recipe, values)
            if probed.prompt != recipe.prompt:
                found.append(Probe(watch.id, variant.name, probed))
    return found


def _words(value: object) -> object:
    """A reference to an empty key leaves a space behind."""
    return value.strip() if isinstance(value, str) else value


def read_probes(watch: Watch, gain: float, results: Iterable[ProbeResult]) -> WatchReading:
    """Whether a gain of `gain` (candidate - incumbent under their own prompts, in the metric's good direction)
    holds under the probes."""
    results = list(results)
    parts = [
        f"{r.name}: {number(r.incumbent)} -> {number(r.candidate)} ({r.candidate - r.incumbent:+.2f})" for r in results
    ]
    alarms = [
        f"the gain of {gain:+.2f} is {r.candidate - r.incumbent:+.2f} under {r.name}"
        for r in results
        if gain > 0 and r.candidate - r.incumbent < watch.vanishes_below * gain
    ]
    if len(results) >= 2:
        metrics = [r.candidate for r in results]
        parts.append(f"spread over wordings {number(max(metrics) - min(metrics))}")
    return WatchReading(watch.id, "; ".join(parts), alarms, watch.read)
