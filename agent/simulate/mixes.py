"""What a simulated night holds: how many ideas, how many of them help, harm, crash, or work only together.

Sizes are in units that mean the same in every world: `detectable` is the smallest gain that the campaign itself would
print after its calibration (the median over nights), `noise` the standard deviation of one run's measured metric.
"""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass

import numpy as np

from agent.campaign.calibration import detectable_gain
from agent.campaign.comparison import group_noise
from agent.campaign.rules import Rules
from agent.campaign.scores import Scores
from agent.simulate.world import Idea, Prompts, Truth, World, measure, run_value

FIXED_RUNS = 8
"""The baseline's, and what is held back for a confirmation and the holdout."""
CALIBRATIONS = 1000
"""Simulated calibrations from which the detectable gain of a world is taken."""


@dataclass(frozen=True)
class Mix:
    name: str
    says: str
    ideas: int = 50
    planted: int = 0
    """Ideas of which each gains `gain` times the detectable gain."""
    gain: float = 1.5
    harmful: float = 0.0
    """Share of the other ideas that lose between half and three times the noise."""
    pairs: int = 0
    """Pairs of ideas that gain `gain` times the detectable gain together, and nothing alone."""
    followers: int = 0
    """Ideas that gain that much once a planted one is in the recipe, and lose half the noise before."""
    quantities: int = 0
    """Hidden quantities, such as the size of the steps, of which three quarters of the remaining ideas each move one,
    most of them towards its optimum or past it: what each gains alone, together they overdo. An optimum gains `gain`
    times the detectable gain."""
    small: float = 0.0
    """Standard deviation of the effects of the remaining ideas, in units of the noise."""
    crashing: float = 0.0
    """Share of the ideas of which every training crashes."""
    skill: float = 0.0
    """Correlation of the planner's ranking with the true effects."""
    runs: float | None = 100.0
    """Budget, in runs of the baseline; None ends with the ideas."""

    def to_come(self, rules: Rules) -> float:
        """Confirmations that are expected after the first, as the campaign counts them when its baseline has run."""
        if self.runs is None:
            return rules.filter_alpha * (self.ideas - 1)
        return rules.to_come(waiting=self.ideas, affordable=self.runs - FIXED_RUNS)


MIXES = {
    mix.name: mix
    for mix in (
        Mix("null", "nothing has any effect", runs=None),
        Mix("few", "three of forty ideas help, a third of the others harm",
            ideas=40, planted=3, harmful=1 / 3, runs=80.0),
        Mix("harmful", "three help, half of the others harm", ideas=40, planted=3, harmful=0.5, runs=80.0),
        Mix("together", "two help, one more once they are in, two only as a pair, a third of the others harm",
            ideas=40, planted=2, followers=1, pairs=1, harmful=1 / 3, runs=80.0),
        Mix("stairs", "two help, and two more for each of them once it is in; a third of the others harm",
            ideas=40, planted=2, followers=4, harmful=1 / 3, runs=50.0),
        Mix("slopes", "most move one of three hidden quantities towards its optimum, past it, or away from it",
            ideas=40, quantities=3, gain=2.0, harmful=0.5, runs=50.0),
        Mix("crashing", "as `few`, and a fifth of the ideas crash",
            ideas=40, planted=3, harmful=1 / 3, crashing=0.2, runs=80.0),
        Mix("guided", "as `few`, with a planner that knows something",
            ideas=40, planted=3, harmful=1 / 3, skill=0.4, runs=80.0),
        Mix("short", "as `few`, with time for thirty runs", ideas=40, planted=3, harmful=1 / 3, runs=30.0),
        Mix("harmless", "three help, the others do nothing", ideas=40, planted=3, runs=80.0),
        Mix("many-small", "every idea does a little, for better or worse", ideas=40, small=0.3, runs=80.0),
    )
}  # fmt: skip


@functools.lru_cache(maxsize=64)
def detectable_of(world: World, rules: Rules, *, to_come: float, seeds: int = 3) -> float:
    """Median over simulated calibrations of the smallest detectable gain that would be printed."""
    found = []
    for night in range(CALIBRATIONS):
        random = np.random.default_rng([night, 20260102])
        prompts = Prompts(world, random)
        runs = [
            Scores(prompts.ids["search"], measure(prompts, "search", (), run_value(world, world.base, random), random))
            for _ in range(seeds)
        ]
        gain = detectable_gain(runs, group_noise(runs), rules, to_come=to_come)
        if gain is not None:
            found.append(gain)
    return statistics.median(found)


def draw(mix: Mix, world: World, rules: Rules, random: np.random.Generator) -> tuple[Truth, list[float]]:
    """The ideas of one night, and the planner's score of each."""
    size = mix.gain * detectable_of(world, rules, to_come=mix.to_come(rules))
    noise = world.total_noise
    places = [int(place) for place in random.permutation(mix.ideas)]
    special = mix.planted + mix.followers + 2 * mix.pairs
    planted, followers = places[: mix.planted], places[mix.planted : mix.planted + mix.followers]
    paired = places[mix.planted + mix.followers : special]
    ideas = [_ordinary(mix, noise, random) for _ in places]
    for place in planted:
        ideas[place] = Idea(size)
    for turn, place in enumerate(followers):
        leader = planted[turn % len(planted)]
        ideas[place] = Idea(size, frozenset([leader]), -0.5 * noise, premise=frozenset([leader]))
    for first, second in zip(paired[::2], paired[1::2], strict=True):
        for one, other in ((first, second), (second, first)):
            ideas[one] = Idea(size / 2, frozenset([other]), premise=frozenset([other]))
    for place in places[special : special + round(mix.crashing * mix.ideas)]:
        ideas[place] = Idea(0.0, crashes=True)
    if mix.quantities:
        _slopes(mix, ideas, places[special:], random)
    return Truth(world, ideas, (size,) * mix.quantities), _scores(mix, ideas, random)


def _slopes(mix: Mix, ideas: list[Idea], places: list[int], random: np.random.Generator) -> None:
    """Each quantity has four keys; an idea sets one of them, for better in six of ten cases. Ideas of a quantity come
    back when one of them is kept."""
    moving = places[: len(places) * 3 // 4]
    of = {place: int(random.integers(mix.quantities)) for place in moving}
    for place in moving:
        step = float(random.uniform(0.2, 1.2)) * (1 if random.random() < 0.6 else -1)
        others = frozenset(other for other in moving if of[other] == of[place] and other != place)
        key = 4 * of[place] + int(random.integers(4))
        ideas[place] = Idea(0.0, premise=others, quantity=of[place], step=step, key=key)


def _ordinary(mix: Mix, noise: float, random: np.random.Generator) -> Idea:
    if random.random() < mix.harmful:
        return Idea(-noise * float(random.uniform(0.5, 3.0)))
    return Idea(mix.small * noise * float(random.standard_normal()) if mix.small else 0.0)


def _scores(mix: Mix, ideas: list[Idea], random: np.random.Generator) -> list[float]:
    effects = np.array([idea.effect for idea in ideas])
    spread = float(effects.std())
    known = (effects - effects.mean()) / spread if spread else effects
    guess = random.standard_normal(len(ideas))
    return [float(score) for score in mix.skill * known + math.sqrt(1 - mix.skill**2) * guess]
