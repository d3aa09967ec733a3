"""Thousands of nights, and what they come to: false keeps, planted effects that were found, the value delivered."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from agent.campaign.rules import Rules
from agent.simulate.lab import SimulatedLab
from agent.simulate.mixes import Mix, draw
from agent.simulate.policies import POLICIES
from agent.simulate.world import World

CHUNK = 25
LONG = 1e9
"""Seconds of a night that ends with its ideas."""


@dataclass(frozen=True)
class Plan:
    """One cell of a simulation: so many nights of one mix in one world under one policy."""

    mix: Mix
    world: World
    policy: str
    rules: Rules = dataclasses.field(default_factory=Rules)
    baseline_seeds: int = 3


@dataclass(frozen=True)
class Night:
    """What one simulated night came to."""

    gain: float
    """True value of the final recipe over the baseline's, in units of the noise of one run."""
    ideas: int
    kept: int
    false: int
    """Kept ideas that do not help (for what is kept as simpler or cheaper: that are worse by more than the margin)."""
    planted_tried: int
    planted_kept: int
    runs: float
    """Time used, in runs of the baseline."""
    intervals: int
    """Reported effects: of confirmed ideas."""
    covered: int
    """Of those, intervals that hold the true effect."""
    all_intervals: int
    """Of all ideas that measured, confirmed or not."""
    all_covered: int


def one_night(plan: Plan, seed: int) -> Night:
    """Seeded by the number of the night alone, so that every policy meets the same ideas."""
    random = np.random.default_rng([seed, 7])
    truth, scores = draw(plan.mix, plan.world, plan.rules, random)
    a_run = plan.world.overhead_s + plan.world.train_s + plan.world.evaluate_s
    lab = SimulatedLab(
        truth,
        scores=scores,
        random=random,
        budget_s=plan.mix.runs * a_run if plan.mix.runs else LONG,
        rules=plan.rules,
        baseline_seeds=plan.baseline_seeds,
        max_experiments=None if plan.mix.runs else plan.mix.ideas,
    )
    POLICIES[plan.policy](lab)
    return _sum_up(plan, lab, a_run)


def _sum_up(plan: Plan, lab: SimulatedLab, a_run: float) -> Night:
    truth = lab.truth
    big = {number for number, idea in enumerate(truth.ideas) if idea.effect > 0 and not plan.mix.small}
    tried: set[int] = set()
    kept: set[int] = set()
    false = 0
    confirmed, covered, measured, all_covered = 0, 0, 0, 0
    for number, outcome in lab.outcomes():
        one = lab.tried[number]
        against = lab.tried[one.judged_against].recipe
        before, after = truth.value(against), truth.value(one.recipe)
        helps = (one.recipe ^ against) & big if after - before > 0 else set()
        tried |= helps
        if outcome == "keep":
            kept |= helps
            advantage = one.judgement is not None and one.judgement.verdict.kind in ("simpler", "cheaper")
            false += after - before <= (-one.margin if advantage else 0.0)
        basis = one.judgement.verdict.basis if one.judgement else None
        if basis is not None and one.judgement is not None:
            low, high = basis.interval
            holds = low <= after - before <= high
            measured, all_covered = measured + 1, all_covered + holds
            if one.judgement.looks:
                confirmed, covered = confirmed + 1, covered + holds
    gain = (truth.value(lab.winner) - truth.world.base) / truth.world.total_noise
    return Night(
        gain=gain,
        ideas=len(lab.outcomes()),
        kept=sum(outcome == "keep" for _, outcome in lab.outcomes()),
        false=false,
        planted_tried=len(tried),
        planted_kept=len(kept),
        runs=lab.spent_s / a_run,
        intervals=confirmed,
        covered=covered,
        all_intervals=measured,
        all_covered=all_covered,
    )


def simulate(plan: Plan, nights: int, *, seed: int = 0, workers: int | None = None) -> list[Night]:
    """`nights` nights, numbered from `seed`, on all processors."""
    seeds = list(range(seed, seed + nights))
    chunks = [seeds[start : start + CHUNK] for start in range(0, nights, CHUNK)]
    workers = workers or os.cpu_count() or 1
    if workers == 1 or nights <= CHUNK:
        return [night for chunk in chunks for night in _chunk(plan, chunk)]
    with ProcessPoolExecutor(workers) as pool:
        return [night for found in pool.map(_chunk, [plan] * len(chunks), chunks) for night in found]


def _chunk(plan: Plan, seeds: Sequence[int]) -> list[Night]:
    return [one_night(plan, seed) for seed in seeds]


# --- what they come to -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A cell of the table. Shares come with the limits of their two-sided 95% interval (Clopper-Pearson)."""

    policy: str
    mix: str
    nights: int
    nights_with_false_keep: int
    false_share: float
    false_upper: float
    gain: float
    gain_error: float
    """Standard error of the mean gain over nights."""
    ideas: float
    kept: float
    planted_tried: int
    planted_kept: int
    runs: float
    coverage: float | None
    coverage_all: float | None

    @property
    def found(self) -> float | None:
        return self.planted_kept / self.planted_tried if self.planted_tried else None

    def plain(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "planted_found": self.found}


def sum_up(plan: Plan, nights: Sequence[Night]) -> Result:
    wrong = sum(night.false > 0 for night in nights)
    gains = [night.gain for night in nights]
    return Result(
        policy=plan.policy,
        mix=plan.mix.name,
        nights=len(nights),
        nights_with_false_keep=wrong,
        false_share=wrong / len(nights),
        false_upper=upper_limit(wrong, len(nights)),
        gain=statistics.fmean(gains),
        gain_error=statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else float("nan"),
        ideas=statistics.fmean(night.ideas for night in nights),
        kept=statistics.fmean(night.kept for night in nights),
        planted_tried=sum(night.planted_tried for night in nights),
        planted_kept=sum(night.planted_kept for night in nights),
        runs=statistics.fmean(night.runs for night in nights),
        coverage=_share(nights, "covered", "intervals"),
        coverage_all=_share(nights, "all_covered", "all_intervals"),
    )


def _share(nights: Sequence[Night], part: str, whole: str) -> float | None:
    total = sum(getattr(night, whole) for night in nights)
    return sum(getattr(night, part) for night in nights) / total if total else None


def upper_limit(count: int, n: int) -> float:
    """Upper end of the exact two-sided 95% interval of a share (Clopper and Pearson 1934)."""
    return 1.0 if count == n else float(stats.beta.ppf(0.975, count + 1, n - count))


def cells(
    mixes: Sequence[Mix], worlds: Sequence[World], policies: Sequence[str], rules: Rules, *, baseline_seeds: int
) -> Iterator[Plan]:
    for world in worlds:
        for mix in mixes:
            for policy in policies:
                yield Plan(mix, world, policy, rules, baseline_seeds)
