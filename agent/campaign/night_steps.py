"""Ideas one by one for the report: the staircase on the search split, what was ruled out, what crashed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.campaign.comparison import Comparison
from agent.campaign.decided import comparison_from
from agent.campaign.story import key_of
from agent.ledger.state import CampaignState, Experiment, Run
from agent.report.night import Crash, Estimate, RuledOut, Step

TELLING = ("inconclusive", "regressed")
"""Kinds of discards whose interval says how large a gain can still be."""


def steps_of(state: CampaignState, *, minimize: bool) -> tuple[Step, ...]:
    """The baseline and all ideas, by number."""
    on_search = SearchMetrics(state)
    best = _best_line(state, on_search)
    last = best.get(state.judged_order[-1]) if state.judged_order else None
    return tuple(
        _step(experiment, on_search, best.get(number, last), minimize=minimize)
        for number, experiment in sorted(state.experiments.items())
        if experiment.planned or experiment.judged
    )


class SearchMetrics:
    """What recipes measured on the search split, by what their runs told the journal."""

    def __init__(self, state: CampaignState):
        self._state = state
        self._by_key: dict[str, float] = {}
        for run in state.runs.values():
            value = _on_search(run)
            if value is not None:
                self._by_key[str(key_of(run))] = value

    def of_idea(self, experiment: Experiment) -> float | None:
        """Its run that was filtered; the baseline's repeats."""
        told = _told_runs(experiment)
        keys = list(told.get("search") or ()) if experiment.number else list(told.get("candidate") or ())
        if experiment.judged is None:
            keys = [str(key_of(run)) for run in experiment.attempt if _is_whole(run)]
        return self._mean(keys)

    def of_recipe(self, experiment: Experiment) -> float | None:
        """As the next ideas are compared with: a kept idea's confirming runs, where they were measured there."""
        confirmed = self._mean(list(_told_runs(experiment).get("candidate") or ()))
        return self.of_idea(experiment) if confirmed is None else confirmed

    def _mean(self, keys: Sequence[str]) -> float | None:
        known = [self._by_key[key] for key in keys if key in self._by_key]
        return statistics.fmean(known) if known else None


def _told_runs(experiment: Experiment) -> Mapping[str, Any]:
    return (experiment.judged.numbers.get("runs") or {}) if experiment.judged else {}


def _is_whole(run: Run) -> bool:
    words = run.words
    return words is not None and words.role in ("baseline", "experiment") and words.arm in (None, "candidate")


def _on_search(run: Run) -> float | None:
    if run.words is None or run.finished is None or run.finished.ended_by == "stop":
        return None
    value = ((run.finished.summary or {}).get("metrics") or {}).get("search")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _best_line(state: CampaignState, on_search: SearchMetrics) -> dict[int, float | None]:
    """By idea, what the incumbent had on search once it was judged."""
    line: dict[int, float | None] = {}
    best: float | None = None
    for number in state.judged_order:
        experiment = state.experiments[number]
        if experiment.outcome == "keep":
            value = on_search.of_recipe(experiment)
            best = best if value is None else value
        line[number] = best
    return line


def _step(experiment: Experiment, on_search: SearchMetrics, best: float | None, *, minimize: bool) -> Step:
    planned, judged = experiment.planned, experiment.judged
    numbers = judged.numbers if judged else {}
    basis = comparison_from(numbers.get("basis"))
    search = comparison_from(numbers.get("search")) or (basis if not experiment.number else None)
    value = on_search.of_idea(experiment)
    crashed = judged is not None and judged.outcome == "crash"
    low, high = _around(search, minimize=minimize) if value is not None else (None, None)
    return Step(
        number=experiment.number,
        title=planned.subject if planned else "",
        outcome=judged.outcome if judged else "open",
        kind=str(numbers.get("kind") or ""),
        reason=judged.reason if judged else f"{experiment.status}, without an outcome so far",
        axis=planned.axis if planned else "",
        hypothesis=planned.hypothesis if planned else "",
        at_s=judged.consumed_s if judged else None,
        took_s=took_of(experiment),
        value=None if crashed else value,
        low=None if crashed else low,
        high=None if crashed else high,
        base=(planned.incumbent if planned else None) or 0,
        base_value=abs(search.incumbent) if search else None,
        best=best,
        delta=Estimate(basis.delta, *basis.interval) if basis else None,
        crash_class=judged.crash_class if judged else None,
        commit=experiment.commit,
    )


def _around(found: Comparison | None, *, minimize: bool) -> tuple[float | None, float | None]:
    """What the base had, plus the interval's ends: in the metric's own direction."""
    if found is None:
        return None, None
    low, high = found.interval
    base = abs(found.incumbent)
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


def ruled_out_of(state: CampaignState) -> tuple[RuledOut, ...]:
    """By discarded ideas that were measured whole; those about which most is known first."""
    found = []
    for number, experiment in state.experiments.items():
        judged, planned = experiment.judged, experiment.planned
        if not number or judged is None or planned is None or judged.outcome != "discard":
            continue
        basis = comparison_from(judged.numbers.get("basis"))
        if basis is not None and judged.numbers.get("kind") in TELLING:
            found.append(RuledOut(number, planned.subject, basis.interval[1]))
    return tuple(sorted(found, key=lambda one: (one.above, one.number)))


def bounds_by_axis(state: CampaignState, ruled_out: Sequence[RuledOut]) -> dict[str, float]:
    """Axis -> the largest gain that any of its ideas may still have."""
    bounds: dict[str, float] = {}
    for one in ruled_out:
        planned = state.experiments[one.number].planned
        axis = planned.axis if planned else ""
        bounds[axis] = max(one.above, bounds.get(axis, one.above))
    return {axis: bound for axis, bound in bounds.items() if axis and axis not in ("together", "ablation")}


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
