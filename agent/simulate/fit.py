"""A world and a mix that resemble a real campaign: what its journal and its runs say about noise, prompts and costs."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np

from agent.campaign.evidence import arm_scores
from agent.campaign.scores import table
from agent.campaign.workbench import Workbench
from agent.errors import UsageError
from agent.simulate.mixes import Mix
from agent.simulate.world import World

DIFFICULTIES = np.linspace(0.2, 6.0, 59)
TIMES_TO_LEVEL = np.geomspace(0.05, 5.0, 41)
EARLY_CRASH = 0.1
"""Of a run, that a crash is taken to cost where none was seen."""
FEWEST_IDEAS = 3
"""Judged ideas from which the spread of true effects is taken; with fewer the mix has none."""


def fit(bench: Workbench) -> tuple[World, Mix]:
    """From a campaign with a calibrated baseline. UsageError where it has none.

    By the method of moments: the run noise as the campaign pooled it, the spread of difficulty from how much the mean
    of a prompt differs between prompts, what one training does to one prompt from what is left beyond the luck of
    sampling, the spread of true effects from how much the measured ones scatter beyond their errors. What no journal
    tells keeps its default (`per_idea`, `early`, `tails`).
    """
    bench.gather()
    runs = arm_scores(bench.evidence.baseline(), "search")
    noise = bench.evidence.noise
    if len(runs) < 2 or noise is None:
        raise UsageError(
            f"campaign {bench.session.settings.campaign} has no calibrated baseline to fit a simulation to",
            hint="a campaign with two baseline runs or more is needed",
        )
    if bench.evaluation.metric == "mean_reward" or bench.evaluation.minimize:
        raise UsageError("only a pass rate to maximize can be simulated", hint="evaluation.metric: pass_rate")
    cost = bench.cost(0)
    values = table(runs)
    base = float(values.mean())
    samples = bench.evaluation.samples_per_prompt
    world = World(
        prompts=values.shape[1],
        samples=samples,
        base=base,
        untrained=float(bench.session.state.calibration.get("untrained") or 0.0),
        per_run=0.0,
        run_noise=noise.sigma,
        overhead_s=cost.overhead_s,
        train_s=cost.train_s,
        evaluate_s=cost.evaluate_s,
        crash_s=_crash_seconds(bench) or EARLY_CRASH * cost.total_s,
        time_to_level=_time_to_level(bench),
    )
    world = dataclasses.replace(world, difficulty=_difficulty(world, values, samples))
    world = dataclasses.replace(world, per_run=_per_run(world, noise.within * world.prompts))
    return world, _mix(bench, world)


def _crash_seconds(bench: Workbench) -> float | None:
    """That a crashed idea has cost with its fixes, on average; None where none has crashed."""
    spent = [
        sum(run.finished.elapsed_s or 0.0 for run in bench.session.state.experiments[one.number].runs if run.finished)
        for one in bench.past()
        if one.outcome == "crash"
    ]
    return statistics.fmean(spent) if spent else None


def _time_to_level(bench: Workbench) -> float:
    """At which a training has made as much of its way as the baseline's first run had, where that can be told."""
    share = bench.share_that_tells()
    if share is None:
        return World.time_to_level
    worlds = [World(time_to_level=float(one)) for one in TIMES_TO_LEVEL]
    return min(worlds, key=lambda world: abs(world.share_after(bench.rules.screen_way) - share)).time_to_level


def _difficulty(world: World, values: np.ndarray, samples: int) -> float:
    """The spread of logits at which prompts differ as much as they do."""
    means = values.mean(axis=0)
    luck = float((means * (1 - means)).mean()) / (samples * len(values))
    wanted = max(0.0, float(means.var(ddof=1)) - luck)
    spreads = [_spread(dataclasses.replace(world, difficulty=float(one), per_run=0.0)) for one in DIFFICULTIES]
    return float(DIFFICULTIES[int(np.argmin(np.abs(np.array(spreads) - wanted)))])


def _spread(world: World) -> float:
    """Variance of the chance of a prompt over the population."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    chance = 1 / (1 + np.exp(-(world.logit_of(world.base) + world.difficulty * nodes)))
    share = weights / weights.sum()
    return float(share @ chance**2 - (share @ chance) ** 2)


def _per_run(world: World, within: float) -> float:
    """What one training does to a prompt beyond the luck of sampling. `within`: variance of a run's value of one prompt
    around what run and prompt have in common."""
    for one in DIFFICULTIES:
        if dataclasses.replace(world, per_run=float(one)).evaluation_noise ** 2 * world.prompts >= within:
            return float(one)
    return float(DIFFICULTIES[-1])


def _mix(bench: Workbench, world: World) -> Mix:
    past = bench.past()
    crashed = sum(one.outcome == "crash" for one in past)
    told = [
        (basis["delta"], basis["standard_error"])
        for number, _ in bench.outcomes()
        for judged in [bench.session.state.experiments[number].judged]
        for basis in [judged.numbers.get("basis") if judged else None]
        if basis
    ]
    spread = 0.0
    if len(told) >= FEWEST_IDEAS:
        scatter = statistics.variance(delta for delta, _ in told)
        spread = max(0.0, scatter - statistics.fmean(error**2 for _, error in told)) ** 0.5
    budget = bench.session.settings.budget_s
    cost = bench.cost(0)
    return Mix(
        name=f"as {bench.session.settings.campaign}",
        says="fitted to a campaign",
        ideas=max(bench.waiting() + len(past), 2),
        small=spread / world.total_noise,
        crashing=crashed / len(past) if past else 0.0,
        runs=budget / cost.total_s if budget else 100.0,
    )
