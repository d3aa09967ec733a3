"""The difference of two recipes and its error: hand-computed numbers, known distributions, and invariants."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agent.campaign.comparison import Comparison, RunNoise, compare, group_noise, pool
from agent.campaign.decided import comparison_from
from agent.campaign.scores import Scores


def run(values: list[float] | np.ndarray) -> Scores:
    return Scores(tuple(f"{n:04d}" for n in range(len(values))), np.asarray(values, dtype=float))


def known(delta: float, *, noise: RunNoise | None, pair: float = 0.0, prompts: int = 100_000) -> Comparison:
    """Two runs an arm."""
    sigma = noise.sigma if noise else 0.0
    return Comparison(delta, math.hypot(pair, sigma), 4.0, prompts, 2, 2, pair, sigma, 0.5 + delta, 0.5, noise=noise)


# --- run noise ---------------------------------------------------------------------------------------------


def test_what_differs_prompt_by_prompt_is_taken_out_of_the_run_noise() -> None:
    # rows: runs, columns: prompts. Means 0.5, 0.6, 0.7: between 0.01. Residuals: run 1 +-0.1, run 2 -+0.1, run 3 0,
    # so 4 x 0.01 over (3 - 1)(2 - 1) = 0.02, and of a mean over two prompts 0.01.
    noise = group_noise([run([0.6, 0.4]), run([0.5, 0.7]), run([0.7, 0.7])])
    assert noise is not None
    assert (noise.between, noise.within, noise.df) == (pytest.approx(0.01), pytest.approx(0.01), 2)
    assert noise.sigma == pytest.approx(0.0, abs=1e-9)
    shifted = group_noise([run([0.4, 0.6]), run([0.5, 0.7]), run([0.6, 0.8])])
    assert shifted is not None
    assert (shifted.within, shifted.sigma) == (pytest.approx(0.0), pytest.approx(0.1))
    assert group_noise([run([0.5, 0.5])]) is None


def test_groups_are_pooled_by_their_degrees_of_freedom() -> None:
    pooled = pool([RunNoise(0.04, 0.01, 2), RunNoise(0.01, 0.0, 1)])
    assert pooled is not None
    assert (pooled.between, pooled.within, pooled.df) == (pytest.approx(0.03), pytest.approx(0.02 / 3), 3)
    assert pool([]) is None


def test_the_run_noise_of_simulated_runs_is_recovered() -> None:
    random = np.random.default_rng(5)
    prompts = random.normal(0.5, 0.3, 200)
    groups = [
        group_noise([run(prompts + random.normal(0, 0.04) + random.normal(0, 0.2, 200)) for _ in range(3)])
        for _ in range(400)
    ]
    pooled = pool([noise for noise in groups if noise is not None])
    assert pooled is not None
    assert pooled.sigma == pytest.approx(0.04, rel=0.05)
    assert pooled.within == pytest.approx(0.2**2 / 200, rel=0.05)


# --- the error of a difference -----------------------------------------------------------------------------


def test_the_pair_error_is_that_of_a_mean_over_prompts() -> None:
    random = np.random.default_rng(3)
    differences = random.normal(0, 0.3, 200)
    found = compare([run(0.5 + differences)], [run(np.full(200, 0.5))], None)
    assert found.pair_error == pytest.approx(differences.std(ddof=1) / math.sqrt(200))
    assert found.df == 199
    assert (found.better, found.worse) == (int((differences > 0).sum()), int((differences < 0).sum()))


def test_run_noise_enters_with_the_runs_of_both_arms() -> None:
    ours, theirs = run([0.6, 0.4, 0.7]), run([0.5, 0.5, 0.5])
    noise = RunNoise(between=0.0005, within=0.0001, df=4)
    found = compare([ours, ours], [theirs, theirs, theirs], noise)
    pair = np.var([0.1, -0.1, 0.2], ddof=1) / 3
    assert found.run_error**2 == pytest.approx(0.0004 * (1 / 2 + 1 / 3))
    assert found.standard_error**2 == pytest.approx(pair + 0.0004 * 5 / 6)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.delta)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, found.df) * found.standard_error)


def test_a_model_that_nothing_has_trained_has_no_run_noise() -> None:
    ours, untrained = run([0.6, 0.4, 0.7]), run([0.5, 0.5, 0.5])
    noise = RunNoise(between=0.0005, within=0.0001, df=4)
    found = compare([ours, ours], [untrained], noise, untrained=True)
    one_more_run = compare([ours, ours], [untrained], noise)
    assert found.run_error**2 == pytest.approx(0.0004 / 2)
    assert one_more_run.run_error**2 == pytest.approx(0.0004 * 3 / 2)
    assert found.upper(0.1) < one_more_run.upper(0.1)
    told = dataclasses.asdict(found)
    assert comparison_from(told) == found
    del told["untrained"]  # as journals had it before
    assert comparison_from(told) == dataclasses.replace(found, untrained=False)


def test_with_run_noise_alone_it_is_students_t() -> None:
    """Where nothing differs prompt by prompt, generalized inference is the t-test that everybody knows."""
    for df in (1, 2, 4, 9, 30):
        found = known(0.1, noise=RunNoise(0.0004, 0.0, df))
        for distance in (0.005, 0.02, 0.05, 0.2):
            assert found.p_above(0.1 - distance) == pytest.approx(stats.t.sf(distance / 0.02, df), rel=0.01)
        assert found.lower(0.005) == pytest.approx(0.1 - stats.t.ppf(0.995, df) * 0.02, rel=0.01)


def test_without_run_noise_it_is_the_paired_t_test() -> None:
    found = known(0.1, noise=None, pair=0.04, prompts=20)
    assert found.p_value == pytest.approx(stats.t.sf(0.1 / 0.04, 19))
    assert found.upper(0.2) == pytest.approx(0.1 + stats.t.ppf(0.8, 19) * 0.04, rel=1e-3)


@given(
    delta=st.floats(-0.5, 0.5),
    pair=st.floats(0.001, 0.1),
    between=st.floats(0, 0.01),
    within=st.floats(0, 0.01),
    df=st.integers(1, 40),
    alpha=st.floats(0.0005, 0.45),
)
@settings(max_examples=60, deadline=None)
def test_bounds_and_p_values_say_the_same(
    delta: float, pair: float, between: float, within: float, df: int, alpha: float
) -> None:
    found = known(delta, noise=RunNoise(between, within, df), pair=pair)
    lower, upper = found.lower(alpha), found.upper(alpha)
    assert found.p_above(lower) == pytest.approx(alpha, rel=0.01)
    assert upper - delta == pytest.approx(delta - lower, rel=1e-3)
    assert found.p_above(lower - 0.01) < alpha < found.p_above(lower + 0.01)
    assert (lower > 0) == (found.p_value < alpha) or abs(lower) < 1e-5


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("df", [2, 4, 8])
def test_small_levels_are_held_where_the_run_noise_is_known_badly(ratio: float, df: int) -> None:
    """What Satterthwaite's test does not do at df 2 and a large run noise."""
    random = np.random.default_rng(int(100 * ratio) + df)
    tries, level = 3000, 0.01
    wrong = 0
    for _ in range(tries):
        between = (1 + ratio**2) * random.chisquare(df) / df
        delta = random.normal(0, math.sqrt(1 + ratio**2))
        noise = RunNoise(between, 1.0, df)
        found = Comparison(delta, 1.0, 9.0, 500, 2, 2, 1.0, noise.sigma, delta, 0.0, noise=noise)
        wrong += found.p_value < level
    assert wrong <= stats.binom.ppf(0.999, tries, level)


# --- too little to go by -----------------------------------------------------------------------------------


def test_arms_without_runs_or_prompts_in_common_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a run"):
        compare([], [run([0.1, 0.2])], None)
    with pytest.raises(ValueError, match="one prompt"):
        compare([run([1.0])], [run([0.0])], None)


def test_a_metric_that_never_varies_proves_nothing() -> None:
    same = run([1.0] * 50)
    found = compare([same, same], [same, same], group_noise([same, same]))
    assert found.delta == 0
    assert not found.lower(0.2) > 0
    assert found.p_value == 0.5
    assert math.isfinite(found.standard_error)


def test_two_prompts_prove_nothing_however_equal_they_are() -> None:
    ours, theirs = run([1.0, 1.0]), run([0.0, 0.0])
    found = compare([ours, ours], [theirs, theirs], RunNoise(0.0, 0.0, 2))
    assert found.delta == 1
    assert found.lower(0.05) < 0
    many = compare([run([1.0] * 100)] * 2, [run([0.0] * 100)] * 2, RunNoise(0.0, 0.0, 2))
    assert many.lower(0.001) > 0
