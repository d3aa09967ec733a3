"""Means over seeds with their uncertainty: Student's t, a bootstrap beside it, and Holm's correction.

Intervals and p-values are over seeds, with the prompts as they are. Both come from Student's t: with 5 to 8 seeds a
percentile bootstrap is too narrow (tests/study/test_study_falls.py measures how often each covers). The bootstrap (BCa,
10,000 resamples of the seeds, fixed random seed) stands beside it in the JSON for whoever doubts the normal shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
POWER = 0.8
RESAMPLES = 10_000
BOOTSTRAP_SEED = 20260102


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds. With one seed there is no interval, with values that are all the same no p-value."""

    mean: float
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    """Two-sided, of a mean of 0."""
    findable: float | None
    """The smallest mean that would be found (two-sided, alone, at LEVEL) four times in five, with so many seeds of this
    spread; `findable_of_many` is for one of several tests."""
    values: tuple[float, ...]
    """By seed."""

    @property
    def above_zero(self) -> bool:
        return self.low is not None and self.low > 0


def estimate(values: NDArray[np.float64]) -> Estimate:
    from scipy import stats

    n, mean = len(values), float(values.mean())
    told = tuple(map(float, values))
    if n < 2:
        return Estimate(mean, None, None, n, None, None, told)
    error = float(values.std(ddof=1) / np.sqrt(n))
    if error < 1e-12:  # equal values: nothing is known of their spread
        return Estimate(mean, mean, mean, n, None, None, told)
    reach = float(stats.t.ppf(1 - LEVEL / 2, n - 1))
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Estimate(
        mean, mean - reach * error, mean + reach * error, n, p_value, error * _noncentrality(n, LEVEL), told
    )


def findable_of_many(found: Estimate, tests: int) -> float | None:
    """As `Estimate.findable`, where it is one of so many tests that are corrected together: at the level that Holm has
    for the first of them, so that it is never too small."""
    if found.findable is None or tests < 2:
        return found.findable
    return found.findable * _noncentrality(found.n, LEVEL / tests) / _noncentrality(found.n, LEVEL)


@functools.cache
def _noncentrality(n: int, level: float) -> float:
    """How many standard errors from 0 the mean of `n` values has to be, so that a two-sided t-test at `level` finds it
    with POWER: of the noncentral t."""
    from scipy import optimize, stats

    reach = float(stats.t.ppf(1 - level / 2, n - 1))
    return float(optimize.brentq(lambda far: float(stats.nct.sf(reach, n - 1, far)) - POWER, 0.0, 20.0 * reach))


def bootstrap(values: Sequence[float]) -> tuple[float, float] | None:
    """BCa interval of the mean; None where there is no spread, or too few values for one."""
    from scipy import stats

    if len(values) < 3 or np.ptp(values) < 1e-12:
        return None
    found = stats.bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(BOOTSTRAP_SEED)
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected by Holm (1979) for as many as are known: at a level, the chance of any false finding is below it."""
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        corrected[place] = highest
    return corrected
