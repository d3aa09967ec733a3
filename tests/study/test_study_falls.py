"""The fall is none where there is noise alone, and found where it was planted."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from study_made import IDS, drawn

from agent.study.falls import Courses, delivered, end_of, first_half, late_falls, own_falls
from agent.study.intervals import Estimate, bootstrap, estimate, findable_of_many, holm

CYCLES, SEEDS, WINDOW = 48, 8, 3


def courses(course: np.ndarray, rng: np.random.Generator, *, wobble: float = 0.0) -> Courses:
    """Runs of one arm: each has a level of its own, and goes up and down by `wobble` from cycle to cycle."""
    runs = [course + rng.normal(0, 0.3) + rng.normal(0, wobble, len(course)) for _ in range(SEEDS)]
    counts = [drawn(run, rng) for run in runs]
    return Courses.of(counts, samples=1, first=first_half(IDS[: counts[0].shape[1]]))


def late(found: Courses) -> Estimate:
    values = late_falls(found, WINDOW)
    assert values is not None
    return estimate(values)


def test_a_level_course_has_no_fall_and_the_naive_one_does() -> None:
    rng, level = np.random.default_rng(1), np.zeros(CYCLES + 1)
    tried = [courses(level, rng) for _ in range(50)]
    own = [estimate(own_falls(one, WINDOW)) for one in tried]
    naive = [estimate(one.whole.max(axis=1) - end_of(one.whole, WINDOW)) for one in tried]
    for found in (own, [late(one) for one in tried]):
        assert abs(np.mean([one.mean for one in found])) < 0.005  # four of its standard errors
        covers = [one.low <= 0 <= one.high for one in found if one.low is not None and one.high is not None]
        assert np.mean(covers) > 0.85
    assert np.mean([one.mean for one in naive]) > 0.04
    assert not any(one.low is not None and one.low <= 0 for one in naive)


def test_a_policy_that_goes_up_and_down_has_an_own_fall_and_no_late_one() -> None:
    rng, level = np.random.default_rng(2), np.zeros(CYCLES + 1)
    tried = [courses(level, rng, wobble=0.15) for _ in range(40)]
    assert abs(np.mean([late(one).mean for one in tried])) < 0.005
    assert np.mean([late(one).above_zero for one in tried]) < 0.1
    assert np.mean([own_falls(one, WINDOW).mean() for one in tried]) > 0.02


@pytest.mark.parametrize("wobble", [0.0, 0.1])
def test_a_planted_fall_is_found(wobble: float) -> None:
    rng = np.random.default_rng(3)
    course = np.minimum(np.arange(CYCLES + 1) / 10, 2 - np.arange(CYCLES + 1) / 20)  # highest at cycle 13
    sure = (1 / (1 + np.exp(-(course[:, None] + np.linspace(-2, 2, 400)[None, :])))).mean(axis=1)
    truth = sure.max() - sure[-WINDOW:].mean()
    assert truth > 0.2
    tried = [late(courses(course, rng, wobble=wobble)) for _ in range(20)]
    assert all(one.above_zero for one in tried)
    assert abs(np.mean([one.mean for one in tried]) - truth) < 0.02
    assert all(one.findable is not None and one.findable < 0.1 for one in tried)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60, unique=True), st.randoms())
def test_halves_are_equal_and_do_not_depend_on_order(ids: list[str], random: object) -> None:
    half = first_half(ids)
    assert half.sum() - (~half).sum() in (0, 1)
    chosen = {name for name, first in zip(ids, half, strict=True) if first}
    random.shuffle(ids)  # type: ignore[attr-defined]
    assert {name for name, first in zip(ids, first_half(ids), strict=True) if first} == chosen
    most = max(hashlib.sha256(name.encode()).digest() for name in chosen)
    assert all(hashlib.sha256(name.encode()).digest() > most for name in set(ids) - chosen)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 4))
def test_an_own_fall_is_the_best_less_the_end_unless_the_best_is_the_end(seed: int, seeds: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    found = Courses(rng.random((seeds, 6)), rng.random((seeds, 6)))
    falls, plain = own_falls(found, window), delivered(found) - end_of(found.whole, window)
    peaks = np.array([found.first.argmax(axis=1), found.second.argmax(axis=1)])
    early, late = (peaks < 6 - window).all(axis=0), (peaks >= 6 - window).all(axis=0)
    assert np.allclose(falls[early], plain[early])
    assert (falls[late] == 0).all()
    assert np.allclose(falls, own_falls(Courses(found.second, found.first), window))


def test_a_course_that_still_rises_has_no_fall() -> None:
    rng = np.random.default_rng(4)
    steep = [courses(np.linspace(-2, 4, CYCLES + 1), rng) for _ in range(20)]
    assert not any(late(one).above_zero for one in steep)
    assert abs(np.mean([own_falls(one, WINDOW).mean() for one in steep])) < 0.005


def test_falls_by_hand() -> None:
    first = np.array([[0.1, 0.9, 0.5, 0.3], [0.1, 0.2, 0.8, 0.4]])
    second = np.array([[0.2, 0.6, 0.7, 0.1], [0.0, 0.5, 0.6, 0.2]])
    found = Courses(first, second)
    # own, seed 1: picked on the first half cycle 1, 0.6 - 0.1; on the second cycle 2, 0.5 - 0.3
    assert own_falls(found, 1) == pytest.approx([(0.5 + 0.2) / 2, (0.4 + 0.4) / 2])
    # late, seed 1: peaks of the other seed, cycle 2 on both halves, 0.7 - 0.1 and 0.5 - 0.3; seed 2: cycles 1 and 2
    assert late_falls(found, 1) == pytest.approx([(0.6 + 0.2) / 2, (0.3 + 0.4) / 2])
    assert late_falls(Courses(first[:1], second[:1]), 1) is None


def test_of_equal_cycles_the_last_is_the_best_as_a_training_delivers_it() -> None:
    first = np.array([[0.2, 0.9, 0.9, 0.9, 0.5, 0.4]])
    second = np.array([[0.1, 0.3, 0.5, 0.7, 0.7, 0.6]])
    found = Courses(first, second)
    # picked on the first half cycle 3, which has 0.7 on the second; on the second cycle 4, which has 0.5 on the first
    assert delivered(found) == pytest.approx([(0.7 + 0.5) / 2])
    assert own_falls(found, 1) == pytest.approx([((0.7 - 0.6) + (0.5 - 0.4)) / 2])
    solved = Courses(np.array([[0.2, 1.0, 1.0, 1.0]]), np.array([[0.2, 0.8, 0.9, 1.0]]))
    assert delivered(solved) == pytest.approx([1.0])


def test_what_is_said_to_be_findable_is_found_four_times_in_five() -> None:
    rng, tries = np.random.default_rng(5), 2000
    for seeds, tests in ((3, 1), (5, 1), (8, 8)):
        drawn = rng.normal(0, 1, (tries, seeds))
        spread = estimate(np.array([-1.0, 1.0] * (seeds // 2) + [0.0] * (seeds % 2)))
        error = (spread.high or 0) / stats.t.ppf(0.975, seeds - 1)
        far = (findable_of_many(spread, tests) or 0) / error / np.sqrt(seeds)  # in standard deviations of one value
        found = [(estimate(one + far).p_value or 0) < 0.05 / tests for one in drawn]
        assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_an_estimate_by_hand() -> None:
    found = estimate(np.array([0.01, 0.03, 0.02, 0.04]))
    assert found.mean == pytest.approx(0.025)
    error = np.std([0.01, 0.03, 0.02, 0.04], ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((0.025 - 3.1824 * error, 0.025 + 3.1824 * error), abs=1e-6)
    assert found.p_value == pytest.approx(0.0305, abs=5e-4)
    assert found.findable == pytest.approx(4.2559 * error, rel=1e-4)  # of the noncentral t, 3 degrees of freedom
    assert findable_of_many(found, 1) == found.findable
    assert findable_of_many(found, 8) == pytest.approx(8.7267 * error, rel=1e-4)  # at 0.05 / 8
    assert estimate(np.array([0.5])).low is None
    same = estimate(np.array([0.0, 0.0, 0.0]))
    assert (same.low, same.high, same.p_value, same.findable) == (0.0, 0.0, None, None)
    assert bootstrap((0.0, 0.0, 0.0)) is None
    low, high = bootstrap((0.01, 0.03, 0.02, 0.04)) or (1.0, 0.0)
    assert 0.01 <= low < 0.025 < high <= 0.04


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06], nan_ok=True)
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values: list[float]) -> None:
    corrected = holm(values)
    assert all(p is not None and value <= p <= 1 for value, p in zip(values, corrected, strict=True))
    order = np.argsort(values, kind="stable")
    assert sorted(p for p in corrected if p is not None) == [corrected[place] for place in order]
