"""What a result proves: a paired difference on the same held-out prompts, with run-to-run noise in its error.

A paired test alone compares two checkpoints; a recipe is what produces checkpoints, so the spread between
seeds belongs into the error, or lucky seeds are kept:

    SE^2 = SE_pair^2 + sigma_run^2 (1/s_c + 1/s_i)

SE_pair is the prompt-cluster bootstrap error of the mean per-prompt difference. It holds the noise of
sampling completions already, so that part is taken out of sigma_run^2. Bounds are Student's t with degrees
of freedom after Satterthwaite (1946), "An approximate distribution of estimates of variance components".

What this does not do: decide on one run (search only filters), or look at training rewards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import stats

from agent.contract import EvalRow
from agent.recipe.schema import Evaluation
from agent.report.words import points

CAMPAIGN_ALPHA = 0.05
FILTER_ALPHA = 0.2
BOOTSTRAP_RESAMPLES = 4000
BOOTSTRAP_SEED = 20260102

Scores = Mapping[str, Sequence[float]]
"""Prompt id -> value of each sample (pass_at_k: one value a prompt)."""


def scores_of(rows: Sequence[EvalRow], *, split: str, evaluation: Evaluation) -> dict[str, list[float]]:
    """The metric's per-sample values by prompt, signed so that larger is better."""
    sign = 1.0 if evaluation.direction == "maximize" else -1.0
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        if row.split == split:
            value = row.reward if evaluation.metric == "mean_reward" else float(row.passed)
            by_prompt.setdefault(row.id, []).append(sign * value)
    if evaluation.metric == "pass_at_k":
        return {prompt: [max(values) if sign > 0 else min(values)] for prompt, values in by_prompt.items()}
    return by_prompt


def mean_score(scores: Scores) -> float:
    """Mean over prompts of the mean over samples."""
    return float(np.mean([_mean(values) for values in scores.values()]))


def completion_variance(scores: Scores) -> float:
    """Variance of a run's mean that comes from sampling completions alone; 0 where one sample hides it."""
    variances = [_variance(values) / len(values) for values in scores.values() if len(values) > 1]
    return math.fsum(variances) / len(scores) ** 2 if variances else 0.0


def _mean(values: Sequence[float]) -> float:
    """In plain Python, which for the handful of samples of a prompt is ten times as fast as numpy."""
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    """Sample variance (divided by n - 1)."""
    center = _mean(values)
    return sum((value - center) ** 2 for value in values) / (len(values) - 1)


@dataclass(frozen=True)
class RunNoise:
    """Spread of the metric between seeds of one recipe, pooled over recipes with repeated seeds."""

    between: float
    """Variance between run means, as measured."""
    completion: float
    """Part of it that sampling completions explains."""
    df: int
    """Degrees of freedom of `between`: repeated runs less one, summed over recipes."""

    @property
    def sigma(self) -> float:
        """sigma_run: standard deviation between runs with completion noise taken out."""
        return math.sqrt(max(0.0, self.between - self.completion))


def run_noise(groups: Sequence[Sequence[Scores]]) -> RunNoise | None:
    """Pool groups of runs of the same recipe on the same prompts; None where no recipe ran twice."""
    repeated = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in repeated)
    if df == 0:
        return None
    between = sum(float(np.var([mean_score(run) for run in group], ddof=1)) * (len(group) - 1) for group in repeated)
    completion = sum(
        float(np.mean([completion_variance(run) for run in group])) * (len(group) - 1) for group in repeated
    )
    return RunNoise(between / df, completion / df, df)


@dataclass(frozen=True)
class Comparison:
    """Candidate minus incumbent, larger is better, in units of the metric."""

    delta: float
    standard_error: float
    df: float
    prompts: int
    seeds_candidate: int
    seeds_incumbent: int
    pair_error: float
    run_error: float
    candidate: float
    incumbent: float

    def lower(self, alpha: float) -> float:
        """One-sided lower bound at level alpha."""
        return self.delta - float(stats.t.ppf(1 - alpha, self.df)) * self.standard_error

    def upper(self, alpha: float) -> float:
        return self.delta + float(stats.t.ppf(1 - alpha, self.df)) * self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval."""
        return self.lower(0.025), self.upper(0.025)

    @property
    def p_value(self) -> float:
        """One-sided: probability of so large a gain if there were none."""
        return float(stats.t.sf(self.delta / self.standard_error, self.df)) if self.standard_error > 0 else 0.5


def compare(candidate: Sequence[Scores], incumbent: Sequence[Scores], noise: RunNoise | None) -> Comparison:
    """Paired comparison of two arms of runs on the same prompts.

    Raises ValueError where the arms have no prompt in common or an arm is empty; runs of one arm that lack a
    prompt are averaged over what they have.
    """
    if not candidate or not incumbent:
        raise ValueError("each arm needs a run")
    shared = sorted(set.intersection(*(set(run) for run in [*candidate, *incumbent])))
    if len(shared) < 2:
        raise ValueError("the arms have no prompts in common: they were not measured on the same split")
    ours = np.array([[_mean(run[prompt]) for prompt in shared] for run in candidate])
    theirs = np.array([[_mean(run[prompt]) for prompt in shared] for run in incumbent])
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    pair_variance = _bootstrap_variance(differences)
    arms = 1 / len(candidate) + 1 / len(incumbent)
    run_variance, df = _with_run_noise(pair_variance, len(shared) - 1, arms, noise)
    return Comparison(
        delta=float(differences.mean()),
        # identical outputs have no spread; a floor keeps bounds finite and no difference provable
        standard_error=max(math.sqrt(pair_variance + run_variance), 1e-12),
        df=df,
        prompts=len(shared),
        seeds_candidate=len(candidate),
        seeds_incumbent=len(incumbent),
        pair_error=math.sqrt(pair_variance),
        run_error=math.sqrt(run_variance),
        candidate=float(ours.mean()),
        incumbent=float(theirs.mean()),
    )


def _bootstrap_variance(differences: np.ndarray) -> float:
    """Variance of the mean difference over resampled prompts (a prompt's samples stay together)."""
    return float(np.var(_resampling_weights(len(differences)) @ differences, ddof=1))


@functools.lru_cache(maxsize=8)
def _resampling_weights(n: int) -> np.ndarray:
    """(resamples, n): how much each prompt counts in each bootstrap resample; the same for every comparison."""
    random = np.random.default_rng(BOOTSTRAP_SEED)
    return random.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_RESAMPLES) / n


def _with_run_noise(pair: float, pair_df: int, arms: float, noise: RunNoise | None) -> tuple[float, float]:
    """Variance that run noise adds, and Satterthwaite's degrees of freedom of the sum.

    Where the measured spread between runs is below what completions explain, nothing is added, but the
    uncertainty of that finding still counts against the degrees of freedom.
    """
    if noise is None:
        return 0.0, float(pair_df)
    added = max(0.0, arms * (noise.between - noise.completion))
    total = pair + added
    spread = pair**2 / pair_df + (arms * noise.between) ** 2 / noise.df
    return added, max(1.0, total**2 / spread) if spread > 0 else float(pair_df)


def alpha_of_confirmation(number: int) -> float:
    """Level of the number-th confirmation (from 1): 6/(pi^2 n^2) of the campaign's 0.05, which sums to 0.05."""
    return CAMPAIGN_ALPHA * 6 / (math.pi**2 * number**2)


def smallest_detectable(comparison_error: float, df: float, *, alpha: float, power: float = 0.8) -> float:
    """Smallest true gain that such a comparison finds with this power (one-sided t)."""
    return float((stats.t.ppf(1 - alpha, df) + stats.t.ppf(power, df)) * comparison_error)


Outcome = Literal["keep", "discard", "crash"]


@dataclass(frozen=True)
class Verdict:
    """The outcome with its reason in words; `basis` is the comparison that the row reports."""

    outcome: Outcome
    reason: str
    basis: Comparison | None = None
    kind: str = ""
    """One word: gain, simpler, cheaper | regressed, inconclusive, underpowered, tainted, guard | crash."""
    guards: dict[str, str] = field(default_factory=dict)


def passes_filter(comparison: Comparison) -> tuple[bool, str]:
    """Search only filters, at a generous level: is this worth a confirmation?"""
    bound = comparison.lower(FILTER_ALPHA)
    worth = bound > 0
    relation = "above" if worth else "not above"
    return worth, f"search {points(comparison.delta)}, lower bound at level {FILTER_ALPHA} {points(bound)} {relation} 0"


def judge_filtered(comparison: Comparison) -> Verdict:
    """An idea that the search split did not let through."""
    low, high = comparison.interval
    span = f"{points(comparison.delta)} [{points(low)}, {points(high)}]"
    if comparison.upper(FILTER_ALPHA / 2) < 0:
        return Verdict("discard", f"regressed: {span} on search", comparison, "regressed")
    return Verdict("discard", f"inconclusive: {span} on search, not worth a confirmation", comparison, "inconclusive")


def judge_confirmed(
    comparison: Comparison,
    *,
    number: int,
    min_effect: float,
    margin: float,
    advantage: str | None = None,
    guards: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on confirming runs, which alone give the effect that is reported.

    `number` counts the campaign's confirmations and sets the level. `advantage` says in words why the
    candidate is simpler or cheaper by more than that cost's noise; then non-inferiority by `margin` is enough.
    `guards` maps a broken guard to its evidence.
    """
    alpha = alpha_of_confirmation(number)
    lower = comparison.lower(alpha)
    low, high = comparison.interval
    span = (
        f"{points(comparison.delta)} [{points(low)}, {points(high)}], confirmed on {comparison.prompts} fresh prompts "
        f"with {comparison.seeds_candidate}+{comparison.seeds_incumbent} fresh seeds"
    )
    if guards:
        return Verdict("discard", f"guard: {'; '.join(guards.values())}", comparison, "guard", dict(guards))
    if lower > 0 and comparison.delta >= min_effect:
        return Verdict("keep", f"gain {span}; level {alpha:.3f}", comparison, "gain")
    if advantage and lower > -margin:
        kind = "simpler" if advantage.startswith("simpler") else "cheaper"
        return Verdict("keep", f"{advantage}, not worse by more than {points(margin)}: {span}", comparison, kind)
    if lower > 0:
        return Verdict(
            "discard", f"too small: {span}, less than min_effect {points(min_effect)}", comparison, "inconclusive"
        )
    if comparison.upper(0.025) < 0:
        return Verdict("discard", f"regressed on confirmation: {span}", comparison, "regressed")
    short_of = f"lower bound {points(lower)} at level {alpha:.3f} is not above 0"
    return Verdict("discard", f"inconclusive: {span}; {short_of}", comparison, "inconclusive")
