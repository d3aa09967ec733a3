"""Before any idea: the untrained model once, the baseline with several seeds, and what they say about noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from agent.campaign.budget import (
    CONFIRM_SEEDS,
    NightPlan,
    RunCost,
    confirmation_seconds,
    plan_night,
    reserve_seconds,
)
from agent.campaign.evidence import Evidence, arm_scores
from agent.campaign.repair import train_with_repairs
from agent.campaign.runs import Done, Job, Runner
from agent.campaign.session import Session
from agent.campaign.verdict import (
    Comparison,
    RunNoise,
    alpha_of_confirmation,
    compare,
    mean_score,
    run_noise,
    smallest_detectable,
)
from agent.contract import UNTRAINED
from agent.errors import AgentError, BudgetError, TrainingFailed
from agent.recipe.schema import Recipe
from agent.report.words import duration, points


@dataclass(frozen=True)
class Calibration:
    """What the baseline's repeats say. Metrics are those of the search split, larger is better."""

    untrained: Done
    runs: tuple[Done, ...]
    noise: RunNoise | None
    night: NightPlan
    gain: Comparison | None
    """Untrained -> baseline."""


def calibrate(session: Session, runner: Runner, evidence: Evidence) -> Calibration:
    """Run what is missing of it, and say what it means. Raises TrainingFailed, BudgetError, CutShort."""
    recipe = session.recipe_of(0)
    night = plan_first(session, recipe)
    untrained = runner.run(_untrained_job(session, recipe))
    if not untrained.ok:
        raise _failed(untrained)
    runs = [_baseline_run(session, runner, index=0)]
    evidence.add(runs[0], experiment=0, arm="baseline")
    night = _replan(session, recipe, runs[0], night)
    runs += [_baseline_run(session, runner, index=index) for index in range(1, night.baseline_seeds)]
    for run in runs[1:]:
        evidence.add(run, experiment=0, arm="baseline")
    _warn_if_untrained(session, runs)
    return _told(session, recipe, untrained, runs, night)


def plan_first(session: Session, recipe: Recipe) -> NightPlan:
    """The night as far as it can be planned before anything ran; BudgetError where it affords no idea."""
    cost = session.cost(recipe)
    budget = session.clock.consumed_s + session.clock.left_s
    try:
        return plan_night(budget, cost, baseline_seeds=session.settings.baseline_seeds, allow_fewer_seeds=True)
    except BudgetError:
        if recipe.budget.train_seconds is not None:
            raise
    # how long so many tokens or cycles take is a guess, which refuses nothing; starting and evaluating take time anyway
    plan_night(budget, RunCost(cost.overhead_s, 0.0, 0.0), baseline_seeds=2, allow_fewer_seeds=True)
    return _tight(cost)


def baseline_seed(session: Session, index: int) -> int:
    return session.recipe_of(0).seed + 1 + index


def _untrained_job(session: Session, recipe: Recipe) -> Job:
    return Job(
        key="untrained-search",
        what="untrained model",
        recipe=session.with_shared_layer(recipe),
        seed=recipe.seed,
        role="baseline",
        rung="calibrate",
        arm=UNTRAINED,
        evaluate=UNTRAINED,
    )


def _baseline_run(session: Session, runner: Runner, *, index: int) -> Done:
    outcome = train_with_repairs(
        session,
        runner,
        experiment=0,
        key="baseline",
        what=f"baseline {index + 1} of {session.settings.baseline_seeds}",
        seed=baseline_seed(session, index),
        role="baseline",
        rung="calibrate",
    )
    if not outcome.ok:
        raise _failed(outcome)
    return outcome


def _warn_if_untrained(session: Session, runs: Sequence[Done]) -> None:
    """Once for all seeds: a baseline that hardly trains is a finding of its own."""
    least = session.recipe_of(0).budget.min_optimizer_steps
    steps = [run.summary.optimizer_steps for run in runs if run.summary]
    if steps and min(steps) < least:
        session.observer.warn(
            f"the baseline took {' / '.join(map(str, steps))} optimizer steps, fewer than budget.min_optimizer_steps "
            f"{least}: the diagnosis looks for the reason"
        )


def _failed(run: Done) -> AgentError:
    """The trainer's own error where it named one (no such model, a bad data row), else what triage found."""
    if run.named_error is not None:
        return run.named_error
    diagnosis = run.diagnosis
    what = f"{diagnosis.crash_class}: {diagnosis.reason}" if diagnosis else "it left no summary"
    return TrainingFailed(
        f"the baseline does not run, so there is nothing to improve ({what})",
        where=run.key,
        hint=f"raft-agent diagnose {run.key} shows its log",
    )


def _replan(session: Session, recipe: Recipe, first: Done, night: NightPlan) -> NightPlan:
    """With the first run measured, divide the budget again."""
    cost = session.cost(recipe)
    budget = session.clock.consumed_s + session.clock.left_s
    try:
        planned = plan_night(budget, cost, baseline_seeds=night.baseline_seeds, allow_fewer_seeds=True)
    except BudgetError as error:
        if recipe.budget.train_seconds is None:
            raise _too_small(recipe, error, cost, budget) from None
        session.observer.warn(f"{error.message}; going on with two baseline seeds and as many ideas as fit")
        planned = _tight(cost)
    if planned.baseline_seeds < session.settings.baseline_seeds:
        session.observer.warn(
            f"the budget affords {planned.baseline_seeds} baseline seeds instead of {session.settings.baseline_seeds}: "
            "the run noise is known less well, and verdicts are wider for it"
        )
    return planned


def _tight(cost: RunCost) -> NightPlan:
    return NightPlan(2, 2 * cost.total_s, cost.total_s, confirmation_seconds(cost), reserve_seconds(cost), 0)


def _too_small(recipe: Recipe, error: BudgetError, cost: RunCost, budget_s: float) -> BudgetError:
    """The refusal in the unit of the recipe's own budget."""
    unit = "tokens" if recipe.budget.tokens else "cycles"
    amount = recipe.budget.tokens or recipe.budget.cycles or 1
    runs, evaluations = 2 + 1 + 2 * CONFIRM_SEEDS, 2 + 2 * CONFIRM_SEEDS
    fixed = runs * (cost.overhead_s + cost.evaluate_s) + evaluations * cost.evaluation_s
    affordable = (budget_s - fixed) / runs
    fitting = int(amount * affordable / cost.train_s) if affordable > 0 and cost.train_s > 0 else 0
    hint = f"set budget.{unit} to {fitting} in the recipe, or give it more time" if fitting > 0 else error.hint
    return BudgetError(error.message, hint=hint)


def _told(session: Session, recipe: Recipe, untrained: Done, runs: Sequence[Done], night: NightPlan) -> Calibration:
    evaluation = recipe.evaluation
    baseline = arm_scores(runs, split="search", evaluation=evaluation)
    base = arm_scores([untrained], split="search", evaluation=evaluation)
    noise = run_noise([baseline])
    gain = compare(baseline, base, noise)
    detectable = detectable_gain(baseline, noise)
    throughput = [run.summary.tokens_per_s for run in runs if run.summary and run.summary.tokens_per_s]
    values = {
        "metric": evaluation.metric,
        "untrained": abs(mean_score(base[0])),
        "baseline": abs(statistics.fmean(mean_score(run) for run in baseline)),
        "sigma_run": noise.sigma if noise else None,
        "smallest_detectable": detectable,
        "tokens_per_s": statistics.median(throughput) if throughput else None,
        "seeds": len(runs),
        "ideas_affordable": night.ideas,
    }
    if session.state.calibration != values:
        session.tell("calibrated", values=values)
    low, high = gain.interval
    spread = f"run noise sigma {100 * noise.sigma:.1f}pp" if noise else "run noise unknown"
    shown = f"smallest gain a confirmation finds: about {100 * detectable:.1f}pp; " if detectable else ""
    session.observer.say(
        f"untrained {values['untrained']:.1%} -> baseline {values['baseline']:.1%} ({evaluation.metric}, "
        f"{points(gain.delta)} [{points(low)}, {points(high)}]), {spread} over {len(runs)} seeds"
    )
    session.observer.say(f"{shown}about {night.ideas} ideas fit, {duration(session.clock.left_s)} left")
    session.observer.board(session.board())
    return Calibration(untrained, tuple(runs), noise, night, gain)


def detectable_gain(baseline: Sequence[dict[str, list[float]]], noise: RunNoise | None) -> float | None:
    """Smallest gain that the first confirmation finds with 80% power, from the baseline compared with itself."""
    if len(baseline) < 2 or noise is None:
        return None
    itself = compare([baseline[0]], [baseline[1]], noise)
    # two runs an arm: the pair error falls with the runs that are averaged, and so does the run noise
    error = ((itself.pair_error**2 + itself.run_error**2) / CONFIRM_SEEDS) ** 0.5
    return smallest_detectable(error, itself.df, alpha=alpha_of_confirmation(1))
