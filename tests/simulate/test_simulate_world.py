"""The simulated trainer measures what its world says is true, with the noise that was asked for."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.simulate.world import LEAST_VALUE, Idea, Prompts, Truth, World, measure, measure_on_the_way, run_value

WORLD = World()
recipes = st.frozensets(st.integers(0, 5))
effects = st.floats(-0.1, 0.1)
ideas = st.builds(Idea, effect=effects, needs=st.frozensets(st.integers(0, 5), max_size=1), alone=effects)


def truth(known: list[Idea], **keys: float) -> Truth:
    return Truth(dataclasses.replace(WORLD, **keys), known)


# --- true values -------------------------------------------------------------------------------------------


@given(st.lists(ideas, min_size=6, max_size=6), recipes, st.integers(0, 5), st.floats(0, 0.2))
@settings(max_examples=100, deadline=None)
def test_a_recipe_is_worth_no_less_where_one_of_its_ideas_is_worth_more(
    known: list[Idea], recipe: frozenset[int], which: int, more: float
) -> None:
    before = truth(known).value(recipe)
    idea = known[which]
    known[which] = dataclasses.replace(idea, effect=idea.effect + more)
    after = truth(known).value(recipe)
    counts = which in recipe and idea.needs <= recipe
    assert after == before if not counts else after >= before
    if counts and more > 1e-6 and before > LEAST_VALUE and after < 1 - LEAST_VALUE:
        assert after - before == pytest.approx(more)


@given(st.lists(ideas, min_size=6, max_size=6), recipes)
@settings(max_examples=50, deadline=None)
def test_a_value_is_a_rate(known: list[Idea], recipe: frozenset[int]) -> None:
    for base in (0.01, 0.5, 0.99):
        assert LEAST_VALUE <= truth(known, base=base).value(recipe) <= 1 - LEAST_VALUE
    assert truth(known).value(()) == WORLD.base


def test_what_each_gains_alone_several_overdo() -> None:
    """Of a peak: 1 - (1 - 0.8)^2 = 0.96 of it; both, at 1.6, 1 - 0.6^2 = 0.64; the other way 1 - 1.5^2 = -1.25."""
    ideas = [Idea(0.0, quantity=0, step=0.8), Idea(0.0, quantity=0, step=0.8), Idea(0.0, quantity=0, step=-0.5)]
    truth = Truth(World(base=0.3), ideas, peaks=(0.1, 0.2))
    assert truth.value([]) == pytest.approx(0.3)
    assert truth.value([0]) == truth.value([1]) == pytest.approx(0.396)
    assert truth.value([0, 1]) == pytest.approx(0.364)
    assert truth.value([2]) == pytest.approx(0.175)


def test_an_effect_counts_where_what_it_needs_is_in_the_recipe_too() -> None:
    known = truth([Idea(0.05), Idea(0.1, needs=frozenset([0]), alone=-0.02)])
    values = [known.value(recipe) for recipe in ((), (0,), (1,), (0, 1))]
    assert values == pytest.approx([0.30, 0.35, 0.28, 0.45])


# --- what is measured --------------------------------------------------------------------------------------


@given(st.floats(0.05, 0.95), st.integers(0, 12), st.floats(0, 0.6), st.floats(0.3, 3.0))
@settings(max_examples=25, deadline=None)
def test_the_mean_measured_rate_is_the_value(value: float, count: int, per_idea: float, difficulty: float) -> None:
    """Whatever the ideas do to single prompts: an idea without an effect moves nothing on average."""
    world = dataclasses.replace(WORLD, per_idea=per_idea, difficulty=difficulty, prompts=1000)
    found = []
    for night in range(12):
        random = np.random.default_rng(night)
        found.append(float(measure(Prompts(world, random), "search", range(count), value, random).mean()))
    error = statistics.stdev(found) / math.sqrt(len(found))
    assert statistics.fmean(found) == pytest.approx(value, abs=max(5 * error, 0.002))


@pytest.mark.parametrize("tails", [None, 4.0, 8.0])
def test_runs_scatter_by_the_run_noise_that_was_asked_for(tails: float | None) -> None:
    world = dataclasses.replace(WORLD, run_noise=0.03, tails=tails)
    random = np.random.default_rng(3)
    drawn = [run_value(world, 0.4, random) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(0.4, abs=0.001)
    assert statistics.stdev(drawn) == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize("run_noise", [0.0, 0.03])
def test_measured_runs_of_one_recipe_scatter_by_the_total_noise(run_noise: float) -> None:
    world = dataclasses.replace(WORLD, run_noise=run_noise)
    spreads = []
    for night in range(30):
        random = np.random.default_rng(night)
        prompts = Prompts(world, random)
        runs = [measure(prompts, "search", (), run_value(world, world.base, random), random) for _ in range(30)]
        spreads.append(np.var([run.mean() for run in runs], ddof=1))
    assert math.sqrt(statistics.fmean(spreads)) == pytest.approx(world.total_noise, rel=0.06)


def test_runs_share_their_prompts_so_that_a_pair_differs_less_than_two_nights() -> None:
    random = np.random.default_rng(1)
    one, other = Prompts(WORLD, random), Prompts(WORLD, random)
    same = np.corrcoef(*(measure(one, "search", (), 0.3, random) for _ in range(2)))[0, 1]
    different = np.corrcoef(*(measure(prompts, "search", (), 0.3, random) for prompts in (one, other)))[0, 1]
    assert same > 0.6
    assert abs(different) < 0.2


# --- a training under way ----------------------------------------------------------------------------------


@given(st.floats(0.05, 2.0), st.lists(st.floats(0, 1), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_training_goes_from_nothing_to_its_end_and_never_back(time_to_level: float, shares: list[float]) -> None:
    world = dataclasses.replace(WORLD, time_to_level=time_to_level)
    way = [world.curve(share) for share in (0.0, *sorted(shares), 1.0)]
    assert way[0] == 0.0
    assert way[-1] == 1.0
    assert all(before <= after + 1e-12 for before, after in itertools.pairwise(way))


def test_what_is_measured_on_the_way_lies_between_the_untrained_model_and_the_end() -> None:
    world = dataclasses.replace(WORLD, prompts=500)

    def so_far(share: float, value: float) -> float:
        nights = [np.random.default_rng(night) for night in range(10)]
        return statistics.fmean(
            float(measure_on_the_way(Prompts(world, random), (), value, share, random).mean()) for random in nights
        )

    rates = [so_far(share, 0.6) for share in (0.1, 0.3, 0.6, 1.0)]
    assert world.untrained < rates[0] < rates[1] < rates[2] < rates[3]
    assert rates[3] == pytest.approx(0.6, abs=0.01)
    assert so_far(0.3, 0.8) > rates[1] + 0.05, "a better training is ahead early"


def test_what_an_idea_seems_to_do_early_differs_from_what_it_does_by_as_much_as_the_world_says() -> None:
    world = dataclasses.replace(WORLD, prompts=400, samples=16, early=0.08, per_idea=0.0)
    seen = []
    for night in range(60):
        random = np.random.default_rng(night)
        prompts = Prompts(world, random)
        beside = measure_on_the_way(prompts, (), 0.5, 1.0, random).mean()
        seen.append([float(measure_on_the_way(prompts, (1,), 0.5, 1.0, random).mean() - beside) for _ in range(2)])
    first, second = zip(*seen, strict=True)
    assert statistics.stdev(first) == pytest.approx(0.08, rel=0.3)
    assert np.corrcoef(first, second)[0, 1] > 0.9, "an idea's own, the same in each of its trainings"
