"""Ideas one by one for the report: the staircase on the search split, what was ruled out, what crashed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.campaign.decided import bounds_from, comparison_from
from agent.campaign.direction import as_measured
from agent.campaign.stairs import Stair, stairs_of
from agent.ledger.state import CampaignState, Experiment
from agent.report.night import Crash, Estimate, RuledOut, Step

TELLING = ("inconclusive", "regressed")
"""Kinds of discards whose interval says how large a gain can still be."""
SAYS_NOTHING = ("screened", "underpowered", "tainted", "suspect")
"""Kinds of discards that say nothing about the idea."""


def steps_of(state: CampaignState, *, minimize: bool) -> tuple[Step, ...]:
    """The baseline and all ideas, by number."""
    return tuple(_step(stair, minimize=minimize) for stair in stairs_of(state))


def _step(stair: Stair, *, minimize: bool) -> Step:
    experiment, value = stair.experiment, stair.value
    planned, judged = experiment.planned, experiment.judged
    numbers = judged.numbers if judged else {}
    told = numbers.get("basis")
    basis = bounds_from(told)
    search = bounds_from(on_search := numbers.get("search"))
    if search is None and not experiment.number:
        search, on_search = basis, told
    base = as_measured(on_search["incumbent"], minimize=minimize) if search and on_search else None
    low, high = _around(base, search, minimize=minimize) if value is not None else (None, None)
    return Step(
        number=experiment.number,
        title=stair.title,
        outcome=stair.outcome,
        kind=stair.kind,
        reason=stair.reason,
        axis=planned.axis if planned else "",
        hypothesis=planned.hypothesis if planned else "",
        at_s=judged.consumed_s if judged else None,
        took_s=took_of(experiment),
        value=value,
        low=low,
        high=high,
        base=(planned.incumbent if planned else None) or 0,
        base_value=base,
        best=stair.best,
        delta=Estimate(*basis) if basis else None,
        crash_class=judged.crash_class if judged else None,
        commit=experiment.commit,
    )


def _around(
    base: float | None, found: tuple[float, float, float] | None, *, minimize: bool
) -> tuple[float | None, float | None]:
    """What the base had, plus the interval's ends: in the metric's own direction."""
    if found is None or base is None:
        return None, None
    _, low, high = found
    return (base - high, base - low) if minimize else (base + low, base + high)


def took_of(experiment: Experiment) -> float | None:
    """Seconds of all its runs."""
    known = [run.finished.elapsed_s for run in experiment.runs if run.finished and run.finished.elapsed_s is not None]
    return math.fsum(known) if known else None


# --- what the ideas came to --------------------------------------------------------------------------------


def counts_of(state: CampaignState) -> dict[str, int]:
    ideas = [one for number, one in state.experiments.items() if number > 0]
    counts = {name: sum(one.outcome == name for one in ideas) for name in ("keep", "discard", "crash")}
    kinds = [str(one.judged.numbers.get("kind") or "") for one in ideas if one.judged and one.outcome == "discard"]
    names = (
        "inconclusive",
        "regressed",
        "underpowered",
        "tainted",
        "screened",
        "lead",
        "promising",
        "guard",
        "suspect",
    )
    return {
        "ideas": len(ideas),
        **counts,
        "open": sum(one.judged is None for one in ideas),
        **{name: kinds.count(name) for name in names},
    }


def ruled_out_of(state: CampaignState, steps: Sequence[Step]) -> tuple[RuledOut, ...]:
    """By discarded ideas that were measured whole; those about which most is known first."""
    found = []
    for step in steps:
        measured = step.outcome == "discard" and step.kind in TELLING and state.experiments[step.number].planned
        if step.number and measured and step.delta is not None and step.delta.high is not None:
            found.append(RuledOut(step.number, step.title, step.delta.high))
    return tuple(sorted(found, key=lambda one: (one.above, one.number)))


def bounds_by_axis(state: CampaignState) -> dict[str, float]:
    """Axis -> the largest gain that any idea of it may still have, of those axes on which every idea has an interval.

    One that was promising counts as what was ruled out does, and about one that crashed, was screened, stays open or
    has no outcome yet nothing is known: then nothing is ruled out on that axis.
    """
    bounds: dict[str, float] = {}
    for number, experiment in state.experiments.items():
        axis = experiment.planned.axis if experiment.planned else ""
        if number and axis and axis not in ("together", "ablation"):
            bounds[axis] = max(_may_gain(experiment), bounds.get(axis, -math.inf))
    return {axis: bound for axis, bound in bounds.items() if math.isfinite(bound)}


def bounds_by_idea(state: CampaignState) -> dict[int, float]:
    """Idea -> the largest gain that it may still have, of those that say anything."""
    bounds = {number: _may_gain(one) for number, one in state.experiments.items() if number and one.planned}
    return {number: bound for number, bound in bounds.items() if math.isfinite(bound)}


def _may_gain(experiment: Experiment) -> float:
    """At 95%, on what it changed; infinite where nothing is known of it."""
    judged = experiment.judged
    basis = comparison_from(judged.numbers.get("basis")) if judged and judged.outcome != "crash" else None
    if judged is None or basis is None or judged.numbers.get("kind") in SAYS_NOTHING:
        return math.inf
    return basis.interval[1]


def crashes_of(state: CampaignState) -> tuple[Crash, ...]:
    return tuple(
        _crash(state.experiments[number]) for number in sorted(state.experiments) if _has_crashed(state, number)
    )


def _has_crashed(state: CampaignState, number: int) -> bool:
    return state.experiments[number].outcome == "crash"


def _crash(experiment: Experiment) -> Crash:
    judged, planned = experiment.judged, experiment.planned
    told = last_diagnosis(experiment) or {}
    assert judged is not None
    return Crash(
        number=experiment.number,
        title=planned.subject if planned else "",
        crash_class=judged.crash_class or str(told.get("crash_class") or "unknown"),
        evidence=str(told.get("evidence") or judged.reason),
        fixes=tuple(_fixes(experiment)),
        remedy=str(told.get("remedy") or ""),
    )


def last_diagnosis(experiment: Experiment) -> Mapping[str, Any] | None:
    """By triage, of the last of its runs that died; probes for its watches are not it."""
    own = [run for run in experiment.runs if run.words is None or run.words.arm != "probe"]
    for run in reversed(own):
        told = (run.finished.model_extra or {}).get("diagnosis") if run.finished else None
        if told:
            return dict(told)
    return None


def _fixes(experiment: Experiment) -> Iterator[str]:
    for _, fix in sorted(experiment.fixes.items()):
        yield (fix.subject or fix.why).removeprefix("fix ")
