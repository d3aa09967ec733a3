"""The difference of two recipes on the same held-out prompts, and how sure it is.

A paired test alone compares two checkpoints; a recipe is what produces checkpoints, so the spread between
seeds belongs into the error, or lucky seeds are kept:

    SE^2 = SE_pair^2 + sigma_run^2 (1/s_c + 1/s_i)

SE_pair is the prompt-cluster bootstrap error of the mean difference over prompts. For a mean the bootstrap has a
closed form, the one it tends to with ever more resamples (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, section 5.3), here with n - 1 instead of n; a prompt's samples stay together because they enter as their
mean. What differs between two runs prompt by prompt, such as the luck of sampling completions, is in SE_pair already.
It is therefore taken out of the spread between runs: sigma_run is the variance component of runs in a two-way layout
of runs x prompts (Searle, Casella and McCulloch 1992, Variance Components, section 4.7).

The 95% interval is Student's t with degrees of freedom after Satterthwaite (1946), "An approximate distribution of
estimates of variance components". For a decision that is not good enough: at the small levels that a campaign's tests
get, with the run noise known from a handful of runs, Satterthwaite's test says yes several times too often,
whenever the runs happened to agree. p-values and bounds are therefore those of generalized inference (Weerahandi
1993, "Generalized confidence intervals", JASA 88): averaged over what the variance between runs can be, given the one
that was measured. `raft-agent simulate` measures both.

What this does not do: decide anything (`verdict.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from agent.campaign.scores import Scores, table

SMALLEST_ERROR = 1e-12
CLIPPED = 0.05
"""0: the variance of the run noise's estimate as if it could be negative, which covers up to 98.5% where there is
little run noise. 1: as it is where it cannot, which covers 91% where a confirmation stops as soon as it has shown
something."""


@dataclass(frozen=True)
class RunNoise:
    """Spread of the metric between seeds of one recipe, pooled over recipes with repeated seeds."""

    between: float
    """Variance between run means, as measured."""
    within: float
    """Part of it that comes from what differs prompt by prompt (sampled completions), not from the run as a whole."""
    df: int
    """Degrees of freedom of `between`: repeated runs less one, summed over recipes."""

    @property
    def sigma(self) -> float:
        """sigma_run: standard deviation between runs with the noise within a run taken out."""
        return math.sqrt(max(0.0, self.between - self.within))


def group_noise(group: Sequence[Scores]) -> RunNoise | None:
    """Of the repeated runs of one recipe on the same prompts; None where there are fewer than two."""
    if len(group) < 2:
        return None
    values = table(group)
    runs, prompts = values.shape
    means = values.mean(axis=1, keepdims=True)
    between = float(means.var(ddof=1))
    if prompts < 2:
        return RunNoise(between, 0.0, runs - 1)
    rest = values - means - values.mean(axis=0, keepdims=True) + values.mean()
    square = float((rest**2).sum()) / ((runs - 1) * (prompts - 1))
    return RunNoise(between, square / prompts, runs - 1)


def pool(noises: Sequence[RunNoise]) -> RunNoise | None:
    """Weighted by degrees of freedom; None where no recipe ran twice."""
    df = sum(noise.df for noise in noises)
    if not df:
        return None
    between = math.fsum(noise.between * noise.df for noise in noises) / df
    within = math.fsum(noise.within * noise.df for noise in noises) / df
    return RunNoise(between, within, df)


@dataclass(frozen=True)
class Comparison:
    """Candidate minus incumbent, larger is better, in units of the metric."""

    delta: float
    standard_error: float
    df: float
    """Of `interval`."""
    prompts: int
    seeds_candidate: int
    seeds_incumbent: int
    pair_error: float
    run_error: float
    candidate: float
    incumbent: float
    better: int = 0
    """Prompts on which the candidate is better, on average over its runs."""
    worse: int = 0
    untrained: bool = False
    """The incumbent is the model before any training: it has no seed, and so no run noise."""
    noise: RunNoise | None = field(default=None, repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval."""
        half = quantile(0.975, self.df) * self.standard_error
        return self.delta - half, self.delta + half

    @property
    def arms(self) -> float:
        """How often the variance between runs is in the difference: 1 / seeds of each arm that was trained."""
        return 1 / self.seeds_candidate + (0.0 if self.untrained else 1 / self.seeds_incumbent)

    def p_above(self, threshold: float) -> float:
        """One-sided: probability of so large a difference if the true one were `threshold`."""
        return self._tail(self.delta - threshold)

    @property
    def p_value(self) -> float:
        return self.p_above(0.0)

    def lower(self, alpha: float) -> float:
        """One-sided lower bound at level alpha: the threshold at which `p_above` is alpha."""
        return self.delta - self._reach(alpha)

    def upper(self, alpha: float) -> float:
        return self.delta + self._reach(alpha)

    def lower_as_if_known(self, alpha: float) -> float:
        """The lower bound if the errors were known and not estimated: for a filter, which has no level to hold."""
        return self.delta - float(special.ndtri(1 - alpha)) * self.standard_error

    @property
    def p_as_if_known(self) -> float:
        """The same of the p-value."""
        return float(special.ndtr(-self.delta / self.standard_error))

    def _tail(self, distance: float) -> float:
        """Chance of a measured difference at least so far above the true one."""
        if not self._errors.size:
            return 0.5 if not distance else float(distance < 0)
        return float(WEIGHTS @ special.stdtr(self.prompts - 1, -distance / self._errors))

    def _reach(self, alpha: float) -> float:
        """The distance at which `_tail` is alpha."""
        if not self._errors.size:
            return 0.0
        if alpha > 0.5:
            return -self._reach(1 - alpha)
        from scipy import optimize  # which takes as long to import as all else that `show` does

        high = self.standard_error
        while self._tail(high) > alpha:
            high *= 2
        return float(optimize.brentq(lambda distance: self._tail(distance) - alpha, 0.0, high, rtol=1e-4))

    @functools.cached_property
    def _errors(self) -> np.ndarray:
        """(nodes,): standard errors of the difference that the measurements allow, each as likely as its WEIGHTS."""
        pair = self.pair_error**2
        if self.noise is None:
            return np.full(len(WEIGHTS), math.sqrt(pair)) if pair > 0 else np.empty(0)
        between = self.noise.df * self.noise.between / _chi_square(self.noise.df)
        allowed: np.ndarray = np.sqrt(pair + self.arms * np.maximum(0.0, between - self.noise.within))
        return allowed if allowed.min() > 0 else np.empty(0)


_X, _W = np.polynomial.legendre.leggauss(32)
NODES = ((_X + 1) / 2) ** 4
WEIGHTS = _W / 2 * 4 * ((_X + 1) / 2) ** 3
"""Gauss-Legendre over the quantiles of chi-square, drawn towards 0, where the variance is large, because the small
p-values come from there: within 0.5% of the exact integral down to 1e-6."""


@functools.lru_cache(maxsize=256)
def _chi_square(df: int) -> np.ndarray:
    """(nodes,): quantiles at NODES."""
    return np.asarray(2 * special.gammaincinv(df / 2, NODES))


def wilson(rate: float, n: int) -> tuple[float, float]:
    """95% interval of a rate by its score (Wilson 1927), for prompts that all came out alike and so show no spread."""
    z2 = quantile(0.975, math.inf) ** 2
    middle, half = rate + z2 / (2 * n), math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n)))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def quantile(probability: float, df: float) -> float:
    """Of Student's t. `scipy.stats.t.ppf` is the same number, a hundred times slower."""
    return float(special.stdtrit(df, probability))


def compare(
    candidate: Sequence[Scores], incumbent: Sequence[Scores], noise: RunNoise | None, *, untrained: bool = False
) -> Comparison:
    """Paired comparison of two arms of runs, on the prompts that all of them have. `untrained`: what the incumbent is,
    which is then evaluated and not run.

    Raises ValueError where an arm is empty or there are fewer than two such prompts.
    """
    if not candidate or not incumbent:
        raise ValueError("each arm needs a run")
    values = table([*candidate, *incumbent])
    prompts = values.shape[1]
    if prompts < 2:
        raise ValueError("one prompt tells no difference from chance: at least two are needed")
    ours, theirs = values[: len(candidate)], values[len(candidate) :]
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    pair = max(float(differences.var(ddof=1)) / prompts, _least_variance(values, differences))
    arms = 1 / len(candidate) + (0.0 if untrained else 1 / len(incumbent))
    run, df = _with_run_noise(pair, prompts - 1, arms, noise)
    return Comparison(
        delta=float(differences.mean()),
        standard_error=max(math.sqrt(pair + run), SMALLEST_ERROR),
        df=df,
        prompts=prompts,
        seeds_candidate=len(candidate),
        seeds_incumbent=len(incumbent),
        pair_error=math.sqrt(pair),
        run_error=math.sqrt(run),
        candidate=float(ours.mean()),
        incumbent=float(theirs.mean()),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        untrained=untrained,
        noise=noise,
    )


def interval_of(runs: Sequence[Scores], noise: RunNoise | None) -> tuple[float, float, float]:
    """(mean, low, high) of one arm: the 95% interval over prompts and runs, of which `noise` says how they differ."""
    values = table(runs)
    prompts = values.shape[1]
    mean = float(values.mean())
    if prompts < 2:
        return mean, -math.inf, math.inf
    of_prompts = float(values.mean(axis=0).var(ddof=1)) / prompts
    of_runs, df = _with_run_noise(of_prompts, prompts - 1, 1 / len(runs), noise)
    half = quantile(0.975, df) * math.sqrt(of_prompts + of_runs)
    return mean, mean - half, mean + half


def _least_variance(values: np.ndarray, differences: np.ndarray) -> float:
    """Where every prompt differs by the same amount there is no spread to go by; one prompt more might have come out
    at the other end of the values that were seen. Without it, two prompts would prove anything."""
    if differences.max() > differences.min() or not differences[0]:
        return 0.0
    return float((values.max() - values.min()) / values.shape[1]) ** 2


def _with_run_noise(pair: float, pair_df: int, arms: float, noise: RunNoise | None) -> tuple[float, float]:
    """Variance that run noise adds, and Satterthwaite's degrees of freedom of the sum.

    Where the measured spread between runs is below what differs prompt by prompt, nothing is added. The variance of
    what is added is taken between that of a component that cannot be negative and that of one that can, which is
    what covers best (docs/verdicts.md).
    """
    if noise is None:
        return 0.0, float(pair_df)
    added = max(0.0, arms * (noise.between - noise.within))
    total = pair + added
    spread = pair**2 / pair_df + (arms * noise.between) ** (2 - CLIPPED) * added**CLIPPED / noise.df
    return added, max(1.0, total**2 / spread) if spread > 0 else float(pair_df)
