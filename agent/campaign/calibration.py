"""Before any idea: the untrained model once, the baseline with several seeds, and what they say about noise."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.campaign.budget import (
    CONFIRM_SEEDS,
    NightPlan,
    RunCost,
    confirmation_seconds,
    holdout_seconds,
    plan_night,
    reserve_seconds,
)
from agent.campaign.comparison import SMALLEST_ERROR, Comparison, RunNoise, compare, group_noise, quantile
from agent.campaign.direction import as_measured
from agent.campaign.evidence import Evidence, arm_scores
from agent.campaign.health import cut_short, unmeasured
from agent.campaign.lab import Lab, Measured, Order
from agent.campaign.levels import next_level
from agent.campaign.rules import Rules
from agent.campaign.scores import Scores
from agent.campaign.taint import set_aside
from agent.campaign.verdict import span_of
from agent.errors import BudgetError, TrainingFailed
from agent.recipe.schema import Budget, Evaluation
from agent.report.words import duration

HOLDOUT_SLACK = 1.1
"""The holdout is called too small where what it shows is larger than the detectable gain by more than this factor."""
SURE = 1 / 3
"""Of the time that starting a run is guessed to take: an H100 took 8 s where 30 s were guessed."""
SAME_GAIN = 1.05
"""What a confirmation finds is told anew where it is more than before by this factor."""
MANY = 1000
"""Degrees of freedom at which Student's t is a normal distribution."""


@dataclass(frozen=True)
class Calibration:
    """What the baseline's repeats say. Metrics are those of the search split, larger is better."""

    untrained: Measured
    runs: tuple[Measured, ...]
    noise: RunNoise | None
    night: NightPlan
    gain: Comparison
    """Untrained -> baseline."""
    detectable: float | None
    """Smallest gain that a confirmation finds with 80% power."""


def calibrate(lab: Lab, evidence: Evidence) -> Calibration:
    """Run what is missing of it, and say what it means. Raises TrainingFailed, BudgetError, CutShort."""
    if lab.seeds_planned() is None:  # a night that is gone on with has less left, and has begun
        plan_first(lab)
    untrained = _valid(lab.run(Order(0, "untrained")))
    runs = [lab.run(Order(0, "baseline", 0))]
    night = _replan(lab)
    runs += [lab.run(Order(0, "baseline", index)) for index in range(1, night.baseline_seeds)]
    runs = _those_that_ran(lab, evidence, runs)
    for run in runs:
        evidence.add(run, experiment=0, arm="baseline")
    _warn_if_untrained(lab, runs)
    return _told(lab, untrained, runs, night)


def _valid(run: Measured) -> Measured:
    """The run, where it measured something. TrainingFailed where it did not."""
    why = unmeasured(run, "search")
    if why is None:
        return run
    hint = f"raft-agent diagnose {run.key} shows its log"
    raise TrainingFailed(f"nothing can be compared with this run ({why})", where=run.key, hint=hint)


def _those_that_ran(lab: Lab, evidence: Evidence, runs: Sequence[Measured]) -> list[Measured]:
    """A seed that crashed, or that its time limit cut, where others ran is left out: the noise is known from the rest,
    and less well.

    TrainingFailed where none is left.
    """
    ran = [run for run in runs if unmeasured(run, "search") is None]
    for run in list(ran):
        cut = cut_short(lab.budget, run, ran)
        if cut is not None:
            ran.remove(run)
            lab.warn(f"{run.key} is left out of the calibration: {cut}")
            set_aside(lab, evidence, run, cut)
    for run in runs:
        if not run.ok:
            lab.warn(f"a baseline run crashed ({run.crash_words}); its seed is left out of the calibration")
        elif nothing := unmeasured(run, "search"):
            lab.warn(f"{run.key} is left out of the calibration: {nothing}")
    if not ran:
        _valid(runs[0])
    if len(ran) == 1:
        lab.warn(
            "one baseline seed is left: until a confirmation has measured the run noise, the filter has only the "
            "prompts to go by and lets more through"
        )
    return ran


def plan_first(lab: Lab) -> NightPlan:
    """The night as far as it can be planned before anything ran.

    What starting and evaluating will take is a guess, which refuses nothing: BudgetError only where not one idea fits
    on any machine.
    """
    guess = lab.cost(0)
    budget = lab.clock.consumed_s + lab.clock.left_s
    try:
        return plan_night(budget, guess, baseline_seeds=lab.baseline_seeds, allow_fewer_seeds=True)
    except BudgetError as by_the_guess:
        sure = RunCost(guess.overhead_s * SURE, lab.budget.train_seconds or 0.0, 0.0)
        try:
            plan_night(budget, sure, baseline_seeds=2, allow_fewer_seeds=True)
        except BudgetError:
            raise by_the_guess from None  # what it says would fit does
    return _tight(guess)


def _warn_if_untrained(lab: Lab, runs: Sequence[Measured]) -> None:
    """Once for all seeds: a baseline that hardly trains is a finding of its own."""
    least = lab.budget.min_optimizer_steps
    steps = [run.summary.optimizer_steps for run in runs if run.summary]
    if steps and min(steps) < least:
        lab.warn(
            f"the baseline took {' / '.join(map(str, steps))} optimizer steps, fewer than budget.min_optimizer_steps "
            f"{least}: the diagnosis looks for the reason"
        )


def _replan(lab: Lab) -> NightPlan:
    """With the first run measured, divide the budget. A session that goes on has as many seeds as the first one."""
    cost = lab.cost(0)
    budget = lab.clock.consumed_s + lab.clock.left_s
    seeds = lab.seeds_planned()
    try:
        planned = plan_night(budget, cost, baseline_seeds=seeds or lab.baseline_seeds, allow_fewer_seeds=seeds is None)
    except BudgetError as error:
        if seeds is not None:
            return dataclasses.replace(_tight(cost), baseline_seeds=seeds)
        if lab.budget.train_seconds is None:
            raise _too_small(lab.budget, error, cost, budget) from None
        lab.warn(f"{error.message}; going on with two baseline seeds and as many ideas as fit")
        planned = _tight(cost)
    if planned.baseline_seeds < lab.baseline_seeds:
        lab.warn(
            f"the budget affords {planned.baseline_seeds} baseline seeds instead of {lab.baseline_seeds}: "
            "the run noise is known less well, and verdicts are wider for it"
        )
    return planned


def _tight(cost: RunCost) -> NightPlan:
    return NightPlan(2, 2 * cost.total_s, cost.total_s, confirmation_seconds(cost), reserve_seconds(cost), 0)


def _too_small(per_run: Budget, error: BudgetError, cost: RunCost, budget_s: float) -> BudgetError:
    """The refusal in the unit of the recipe's own budget."""
    unit = "tokens" if per_run.tokens else "cycles"
    amount = per_run.tokens or per_run.cycles or 1
    runs, evaluations = 2 + 1 + 2 * CONFIRM_SEEDS, 2 + 2 * CONFIRM_SEEDS
    fixed = runs * (cost.overhead_s + cost.evaluate_s) + evaluations * cost.evaluation_s
    affordable = (budget_s - fixed) / runs
    fitting = int(amount * affordable / cost.train_s) if affordable > 0 and cost.train_s > 0 else 0
    hint = f"set budget.{unit} to {fitting} in the recipe, or give it more time" if fitting > 0 else error.hint
    return BudgetError(error.message, hint=hint)


def _told(lab: Lab, untrained: Measured, runs: Sequence[Measured], night: NightPlan) -> Calibration:
    baseline, base = arm_scores(runs, "search"), arm_scores([untrained], "search")
    noise = group_noise(baseline)
    gain = compare(baseline, base, noise, untrained=True)
    prompts = lab.evaluation.confirm_prompts
    most, to_come = _affordable_seeds(lab), lab.confirmations_to_come()
    smallest = detectable_gain(baseline, noise, lab.rules, to_come=to_come, prompts=prompts, most=most)
    throughput = [run.summary.tokens_per_s for run in runs if run.summary and run.summary.tokens_per_s]
    minimize = lab.evaluation.minimize
    values: dict[str, Any] = {
        "metric": lab.evaluation.metric,
        "untrained": as_measured(base[0].mean, minimize=minimize),
        "baseline": as_measured(statistics.fmean(run.mean for run in baseline), minimize=minimize),
        "sigma_run": noise.sigma if noise else None,
        "smallest_detectable": smallest,
        "run_share": run_share(baseline, noise, seeds=most or lab.rules.most_seeds, prompts=prompts),
        "tokens_per_s": statistics.median(throughput) if throughput else None,
        "seeds": len(runs),
        "seeds_planned": night.baseline_seeds,
        "most_seeds": most,
        "to_come": to_come,
        "ideas_affordable": night.ideas,
    }
    lab.calibrated(values)
    numbers = lab.numbers
    path = f"untrained {numbers.value(values['untrained'])} -> baseline {numbers.value(values['baseline'])}"
    spread = f"run noise sigma {numbers.size(noise.sigma)}" if noise else "run noise unknown"
    shown = f"smallest gain a confirmation finds: about {numbers.size(smallest)}; " if smallest else ""
    lab.say(
        f"{path} ({lab.evaluation.metric}, {span_of(gain, numbers)}), {spread} over {len(runs)} "
        f"seed{'s' if len(runs) > 1 else ''}"
    )
    lab.say(f"{shown}about {lab.ideas_that_fit()} ideas fit, {duration(lab.clock.left_s)} left")
    _warn_of_a_blunt_yardstick(lab, baseline, smallest)
    if smallest is not None and noise is not None:
        _warn_of_a_small_holdout(lab, baseline, noise, smallest)
    return Calibration(untrained, tuple(runs), noise, night, gain, smallest)


def known_better(told: Mapping[str, Any], lab: Lab, evidence: Evidence) -> dict[str, Any]:
    """What was `told` of what a confirmation finds, by the noise of all runs until now, where that is more: the few
    seeds of a baseline may happen to lie close together. Nothing where it is not."""
    before, most, to_come = (told.get(name) for name in ("smallest_detectable", "most_seeds", "to_come"))
    if before is None or most is None or to_come is None:
        return {}
    baseline, noise = arm_scores(evidence.baseline(), "search"), evidence.noise
    prompts = lab.evaluation.confirm_prompts
    now = detectable_gain(baseline, noise, lab.rules, to_come=to_come, prompts=prompts, most=most)
    if now is None or now <= before * SAME_GAIN:
        return {}
    return {"smallest_detectable": now, "run_share": run_share(baseline, noise, seeds=most, prompts=prompts)}


def _affordable_seeds(lab: Lab) -> int:
    """Of each arm, that one confirmation could have if it came first; never less than it needs."""
    cost, left = lab.cost(0), lab.clock.left_s
    afforded = [seeds for seeds, _ in lab.rules.looks if (1 + 2 * seeds) * cost.total_s + holdout_seconds(cost) <= left]
    return max(afforded, default=lab.rules.confirm_seeds)


def detectable_gain(
    baseline: Sequence[Scores],
    noise: RunNoise | None,
    rules: Rules,
    *,
    to_come: float,
    prompts: int | None = None,
    most: int | None = None,
) -> float | None:
    """Smallest gain that the first confirmation finds with 80% power, once it has all the seeds it may have.

    From the baseline compared with itself, in units of the metric. `to_come`: confirmations after it. `prompts` of the
    confirm split; as many as the baseline was measured on where not given. `most`: seeds of each arm that the time
    allows, all of the rules' where not given. None where nothing varies, or the baseline ran once.
    """
    if len(baseline) < 2 or noise is None:
        return None
    seeds = most or rules.most_seeds
    then = _itself(baseline, noise, seeds=seeds, prompts=prompts)
    level = rules.shares(seeds)[seeds] * next_level(rules, [], to_come=to_come)
    return (then.delta - then.lower(level)) + (then.upper(0.2) - then.delta) or None


def run_share(
    baseline: Sequence[Scores], noise: RunNoise | None, *, seeds: int, prompts: int | None = None
) -> float | None:
    """Of the variance of such a confirmation, the part that comes from the runs; the rest comes from the prompts."""
    if len(baseline) < 2 or noise is None:
        return None
    then = _itself(baseline, noise, seeds=seeds, prompts=prompts)
    whole = then.pair_error**2 + then.run_error**2
    return then.run_error**2 / whole if whole else None


def _itself(baseline: Sequence[Scores], noise: RunNoise, *, seeds: int, prompts: int | None = None) -> Comparison:
    """Two runs of the baseline compared, with the errors of so many seeds an arm and so many prompts.

    The run noise will then be known better than now, by the confirming runs themselves.
    """
    now = compare([baseline[0]], [baseline[1]], noise)
    prompts = prompts or now.prompts
    pair = now.pair_error * math.sqrt(now.prompts / prompts / seeds)
    run = now.run_error / math.sqrt(seeds)
    return dataclasses.replace(
        now,
        prompts=prompts,
        seeds_candidate=seeds,
        seeds_incumbent=seeds,
        pair_error=pair,
        run_error=run,
        standard_error=max(math.hypot(pair, run), SMALLEST_ERROR),
        noise=dataclasses.replace(noise, df=noise.df + 2 * (seeds - 1)),
    )


# --- what no night can mend --------------------------------------------------------------------------------


def _warn_of_a_blunt_yardstick(lab: Lab, baseline: Sequence[Scores], smallest: float | None) -> None:
    """A metric that cannot move, or moves too little to be seen, or by less than the recipe asks for."""
    evaluation = lab.evaluation
    values = {round(float(value), 12) for run in baseline for value in run.values}
    if len(values) == 1:
        only = as_measured(values.pop(), minimize=evaluation.minimize)
        lab.warn(
            f"{evaluation.metric} is {only:g} for every prompt and seed of the baseline: nothing tells "
            "two recipes apart until that changes"
        )
    room = _room(evaluation, baseline)
    left = lab.numbers.difference(room)
    if evaluation.min_effect > max(0.0, room):
        least = lab.numbers.difference(evaluation.min_effect)
        lab.warn(
            f"evaluation.min_effect asks for {least} and the baseline leaves {left} to gain: no gain can be kept, only "
            "a simpler or cheaper recipe, which may be worse by as much"
        )
    elif smallest is not None and evaluation.metric != "mean_reward" and smallest > room:
        lab.warn(
            f"the baseline leaves {left} to gain and gains below {lab.numbers.difference(smallest)} cannot be shown: "
            "raise evaluation.search_prompts and confirm_prompts, or take a harder task"
        )


def _room(evaluation: Evaluation, baseline: Sequence[Scores]) -> float:
    """From the baseline to the best that the metric can be: of a reward, the best that a prompt of it got."""
    mean = statistics.fmean(run.mean for run in baseline)
    if evaluation.metric == "mean_reward":
        return max(float(run.values.max()) for run in baseline) - mean
    return -mean if evaluation.minimize else 1 - mean


def _warn_of_a_small_holdout(lab: Lab, baseline: Sequence[Scores], noise: RunNoise, smallest: float) -> None:
    """What a confirmation just finds should show at the end too: the holdout's 95% interval should leave out 0.

    By then the run noise is known from a night's runs, so that only the prompts are short of degrees of freedom.
    """
    prompts = lab.evaluation.holdout_prompts
    then = _itself(baseline, noise, seeds=CONFIRM_SEEDS, prompts=prompts)
    shown = quantile(0.975, prompts - 1) * then.standard_error
    if shown <= HOLDOUT_SLACK * smallest:
        return
    # the prompts' part of the variance that is left once the runs have had theirs
    allowed = (smallest / quantile(0.975, MANY)) ** 2 - then.run_error**2
    enough = math.ceil(prompts * then.pair_error**2 / allowed) if allowed > 0 else 0
    mend = f"; evaluation.holdout_prompts: {enough} would show it" if enough > prompts else ""
    at_the_end, before = lab.numbers.difference(shown), lab.numbers.difference(smallest)
    lab.warn(
        f"the holdout's {prompts} prompts show a gain from about {at_the_end}, a confirmation finds one from "
        f"{before}: what is kept may not show at the end{mend}"
    )
