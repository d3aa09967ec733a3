"""What a study's runs say: courses with intervals, falls, and each arm against the one it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import InvalidFile
from agent.study.definition import Arm, Study
from agent.study.falls import (
    Courses,
    delivered,
    end_of,
    first_half,
    late_falls,
    own_falls,
    peak_cycle,
    peaks_at_the_end,
)
from agent.study.intervals import LEVEL, Estimate, bootstrap, estimate, holm
from agent.study.results import Results, RunLine, counts_of

CORRECTED = ("late_fall", "final")
"""Differences whose p-values are corrected together; the others are shown with intervals alone."""
COURSES = ("entropy", "unique_share", "pass_rate", "loss", "learning_rate")
RISING = 0.5
"""Share of an arm's peaks at the end from which on its late fall is not measured."""

Unmeasured = Literal["one seed", "peak at the end", "no spread"]
"""Why a late fall could not be measured: nothing to compare with; most peaks are in the last cycles, where it is 0
because nothing comes after; it is the same in all seeds, which tells of no uncertainty."""


@dataclass(frozen=True)
class Point:
    """Of a course: mean over seeds after one cycle, with its 95% interval where there are two."""

    cycle: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ArmResult:
    arm: Arm
    seeds: tuple[int, ...]
    failed: tuple[str, ...]
    """Class of each run that died."""
    measures: Mapping[str, Estimate]
    """late_fall, own_fall, delivered, final, untrained, entropy, unique_share (these at the end), as far as known."""
    unmeasured: Unmeasured | None
    """Of the late fall; None where it was measured, or where there is no run."""
    late_p: float | None
    """Of the late fall, corrected for the number of arms in which it was measured."""
    peak: int | None
    """Cycle at which the mean course is highest."""
    at_the_end: float | None
    """Share of the peaks of the late falls that are among the last cycles: those falls are 0 (`peaks_at_the_end`)."""
    courses: Mapping[str, Sequence[Point]]
    by_seed: Mapping[str, Mapping[int, float]] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """An arm minus the one it is compared with, seed by seed."""

    arm: str
    against: str
    seeds: tuple[int, ...]
    differences: Mapping[str, Estimate]
    corrected: Mapping[str, float | None]
    """Holm's p-values, over all that was measured of the measures in CORRECTED, of all comparisons of the study."""
    unmeasured: Mapping[str, Unmeasured]
    """Of the measures in CORRECTED those whose difference could not be measured, and why."""

    def was_measured(self, name: str) -> bool:
        return name in self.differences and name not in self.unmeasured


@dataclass(frozen=True)
class Analysis:
    study: Study
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    prompts: int
    samples: int
    unknown: int
    """Runs of this study in the file that it does not ask for any more."""
    provenance: tuple[Mapping[str, Any], ...]
    """Each once."""
    of_several_versions: tuple[str, ...]
    """Arms whose runs have one recipe and several signatures: keys or defaults came or changed in between."""

    @property
    def done(self) -> int:
        return sum(len(arm.seeds) for arm in self.arms)

    @property
    def failed(self) -> int:
        return sum(len(arm.failed) for arm in self.arms)


def analyse(study: Study, results: Results) -> Analysis:
    """Raises InvalidFile where lines are damaged, or of different data."""
    runs = {arm.label: _runs_of(arm, study, results) for arm in study.arms}
    every = [run for found in runs.values() for run in found]
    _refuse_mixed(every, results)
    ids = results.prompts.get(every[0].prompts, []) if every else []
    first = first_half(ids)
    arms = [_arm_result(arm, study, runs[arm.label], results, first) for arm in study.arms]
    corrected = holm([_p(arm.measures.get("late_fall")) if arm.unmeasured is None else None for arm in arms])
    arms = [dataclasses.replace(arm, late_p=p) for arm, p in zip(arms, corrected, strict=True)]
    known = {arm.digest for arm in study.arms}
    return Analysis(
        study=study,
        arms=tuple(arms),
        comparisons=_comparisons(arms),
        prompts=len(ids),
        samples=every[0].samples if every else 0,
        unknown=sum(run.study == study.name and run.training not in known for run in results.runs.values()),
        provenance=tuple({str(run.provenance): run.provenance for run in every}.values()),
        of_several_versions=tuple(label for label, found in runs.items() if len({one.signature for one in found}) > 1),
    )


def _runs_of(arm: Arm, study: Study, results: Results) -> list[RunLine]:
    return [run for seed in study.seeds if (run := results.runs.get((arm.digest, seed))) is not None]


def _refuse_mixed(runs: Sequence[RunLine], results: Results) -> None:
    for run in runs:
        first = runs[0]
        if (run.data, run.prompts, run.samples) != (first.data, first.prompts, first.samples):
            raise InvalidFile(
                f"{first.arm}, seed {first.seed} and {run.arm}, seed {run.seed} were measured on different rows",
                where=str(results.path),
                hint="take the lines of one of the two data sets out",
            )


def _arm_result(
    arm: Arm, study: Study, runs: Sequence[RunLine], results: Results, first: NDArray[np.bool_]
) -> ArmResult:
    failed = [results.failed[arm.digest, seed] for seed in study.seeds if (arm.digest, seed) in results.failed]
    classes = tuple(line.crash_class for line in failed)
    if not runs:
        return ArmResult(arm, (), classes, {}, None, None, None, None, {})
    courses = Courses.of([counts_of(run, results) for run in runs], samples=runs[0].samples, first=first)
    window = study.end_window
    values: dict[str, NDArray[np.float64] | None] = {
        "late_fall": late_falls(courses, window),
        "own_fall": own_falls(courses, window),
        "delivered": delivered(courses),
        "final": end_of(courses.whole, window),
        "untrained": courses.whole[:, 0],
    }
    lines = {"accuracy": courses.whole, **{name: _series(runs, name, study.cycles) for name in COURSES}}
    values |= {name: end_of(lines[name], window) for name in ("entropy", "unique_share")}
    known = {name: found for name, found in values.items() if found is not None and np.isfinite(found).all()}
    seeds = tuple(run.seed for run in runs)
    measures = {name: estimate(found) for name, found in known.items()}
    at_the_end = peaks_at_the_end(courses, window)
    return ArmResult(
        arm=arm,
        seeds=seeds,
        failed=classes,
        measures=measures,
        unmeasured=_why_unmeasured(measures.get("late_fall"), at_the_end),
        late_p=None,
        peak=peak_cycle(courses),
        at_the_end=at_the_end,
        courses={name: _points(found) for name, found in lines.items()},
        by_seed={name: dict(zip(seeds, map(float, found), strict=True)) for name, found in known.items()},
    )


def _why_unmeasured(late_fall: Estimate | None, at_the_end: float | None) -> Unmeasured | None:
    if late_fall is None or at_the_end is None:
        return "one seed"
    if at_the_end >= RISING:
        return "peak at the end"
    return "no spread" if late_fall.findable is None else None


def _series(runs: Sequence[RunLine], name: str, cycles: int) -> NDArray[np.float64]:
    """Seeds x cycles; NaN where a cycle does not tell."""
    missing = [None] * (cycles + 1)
    return np.array([[np.nan if v is None else v for v in run.series.get(name, missing)] for run in runs], dtype=float)


def _points(course: NDArray[np.float64]) -> list[Point]:
    """Of the cycles that every seed tells of."""
    points = []
    for cycle, values in enumerate(course.T):
        if np.isfinite(values).all():
            found = estimate(values)
            points.append(Point(cycle, found.mean, found.low, found.high))
    return points


def _comparisons(arms: Sequence[ArmResult]) -> tuple[Comparison, ...]:
    by_label = {arm.arm.label: arm for arm in arms}
    found = []
    for arm in arms:
        other = by_label.get(arm.arm.against or "")
        seeds = tuple(seed for seed in arm.seeds if other is not None and seed in other.seeds)
        if other is None or not seeds:
            continue
        differences = {
            name: estimate(np.array([arm.by_seed[name][seed] - other.by_seed[name][seed] for seed in seeds]))
            for name in arm.by_seed
            if name in other.by_seed and name != "untrained"
        }
        unmeasured = _unmeasured_in(differences, arm, other)
        found.append(Comparison(arm.arm.label, other.arm.label, seeds, differences, {}, unmeasured))
    places = [(place, name) for place, one in enumerate(found) for name in CORRECTED if one.was_measured(name)]
    corrected = holm([found[place].differences[name].p_value for place, name in places])
    by_place: list[dict[str, float | None]] = [{} for _ in found]
    for (place, name), p in zip(places, corrected, strict=True):
        by_place[place][name] = p
    return tuple(dataclasses.replace(one, corrected=ps) for one, ps in zip(found, by_place, strict=True))


def _unmeasured_in(differences: Mapping[str, Estimate], arm: ArmResult, other: ArmResult) -> dict[str, Unmeasured]:
    """A difference from a fall that may be yet to come is none that was measured, however large it is so far: to take
    the large ones alone would be to pick by the result."""
    told: dict[str, Unmeasured] = {}
    rising = "peak at the end" in (arm.unmeasured, other.unmeasured)
    for name in CORRECTED:
        found = differences.get(name)
        if found is None:
            continue
        if name == "late_fall" and rising:
            told[name] = "peak at the end"
        elif found.findable is None:
            told[name] = "one seed" if found.n < 2 else "no spread"
    return told


def _p(found: Estimate | None) -> float | None:
    return found.p_value if found is not None else None


def as_json(analysis: Analysis) -> dict[str, Any]:
    """All of it as plain values; bootstrap intervals stand beside those of Student's t."""
    study = analysis.study
    return {
        "study": study.name,
        "runs": {
            "asked_for": study.size,
            "done": analysis.done,
            "failed": analysis.failed,
            "unknown": analysis.unknown,
        },
        "cycles": study.cycles,
        "end_window": study.end_window,
        "prompts": analysis.prompts,
        "samples": analysis.samples,
        "level": LEVEL,
        "arms": [
            {
                "arm": one.arm.label,
                "levels": dict(one.arm.levels),
                "training": one.arm.digest,
                "seeds": list(one.seeds),
                "failed": list(one.failed),
                "peak_cycle": one.peak,
                "late_fall_p_holm": one.late_p,
                "late_fall_unmeasured": one.unmeasured,
                "late_fall_peaks_at_the_end": one.at_the_end,
                "measures": {name: _estimate_json(found) for name, found in one.measures.items()},
                "courses": {name: [dataclasses.astuple(p) for p in points] for name, points in one.courses.items()},
            }
            for one in analysis.arms
        ],
        "comparisons": [
            {
                "arm": one.arm,
                "against": one.against,
                "seeds": list(one.seeds),
                "differences": {
                    name: {
                        **_estimate_json(found),
                        "p_holm": one.corrected.get(name),
                        "unmeasured": one.unmeasured.get(name),
                    }
                    for name, found in one.differences.items()
                },
            }
            for one in analysis.comparisons
        ],
        "of_several_versions": list(analysis.of_several_versions),
        "provenance": list(analysis.provenance),
    }


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "bootstrap": bootstrap(found.values)}
