"""A simulated trainer: what a training of a recipe would have measured, drawn from a model with known truth.

A recipe is the set of ideas that are in it. Its true value, in units of the metric (a pass rate), is

    value = base + sum of the effects of its ideas, an effect counting only where what it needs is in the recipe too
                 + for each hidden quantity, peak * (1 - (1 - sum of the steps of its ideas)^2)

A run of it has a value of its own, off by the run noise. Prompt i is answered correctly with probability
logistic(q + d_i + z_i + w_i): d_i is the prompt's difficulty, the same for all runs; z_i what this one training did
to this prompt; w_i what the ideas do to it more or less than to others; and q is such that the mean over the
population of prompts is the run's value. Samples are independent draws. So run noise, evaluation noise and the
pairing of prompts are as real campaigns have them, and the true effect of every idea is known.

Partial trainings: after a share s of its budget a run has made `curve(s)` of its way from the untrained model to a
value which, for each idea in the recipe, may be off from that of its end (`early`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

HELD_OUT = ("search", "confirm", "holdout")
LOGITS = np.linspace(-12.0, 12.0, 961)
LEAST_VALUE = 0.005


@dataclass(frozen=True)
class Idea:
    """One entry of the simulated playbook."""

    effect: float
    """On the true value where `needs` is fulfilled, in units of the metric."""
    needs: frozenset[int] = frozenset()
    """Ideas that must be in the recipe too."""
    alone: float = 0.0
    """Its effect where they are not."""
    crashes: bool = False
    """Every training with it crashes."""
    premise: frozenset[int] = frozenset()
    """Ideas which, once kept, put this one back into the queue after a discard."""
    quantity: int | None = None
    """What it moves towards an optimum and beyond, or away from it (`Truth.peaks`)."""
    step: float = 0.0
    """By how much; the optimum is at 1."""
    key: int | None = None
    """Ideas with the same key set the same thing: a recipe has one of them at most."""


@dataclass(frozen=True)
class World:
    """A task, a trainer and its costs. Times in seconds, rates in [0, 1]."""

    prompts: int = 256
    """On each of search, confirm and holdout."""
    samples: int = 4
    base: float = 0.30
    """True value of the baseline."""
    untrained: float = 0.15
    difficulty: float = 2.0
    """Standard deviation of the prompts' difficulty, logits."""
    per_run: float = 0.5
    """Standard deviation of what one training does to one prompt, logits."""
    per_idea: float = 0.3
    """Standard deviation of what one idea does to one prompt beside its mean effect, logits."""
    run_noise: float = 0.02
    """Standard deviation of the true value of a run around that of its recipe."""
    tails: float | None = None
    """Degrees of freedom of Student's t for the run noise, scaled to the same deviation; None is normal."""
    early: float = 0.01
    """Standard deviation of what an idea seems to do to the end, seen from the first part of a training, beside what it
    does: some learn fast and not far. In units of the metric."""
    overhead_s: float = 60.0
    train_s: float = 900.0
    evaluate_s: float = 120.0
    crash_s: float = 120.0
    """Time that a crash costs, with its fixes."""
    time_to_level: float = 0.3
    """Share of the budget after which a training has gone two thirds of its way."""

    def logit_of(self, value: float, *, ideas: int = 0) -> float:
        """q at which the population's pass rate is `value`, for a recipe with so many ideas."""
        spread = math.sqrt(self.difficulty**2 + self.per_run**2 + ideas * self.per_idea**2)
        clipped = min(max(value, LEAST_VALUE), 1 - LEAST_VALUE)
        return float(np.interp(clipped, _rates(spread), LOGITS))

    @functools.cached_property
    def evaluation_noise(self) -> float:
        """Standard deviation of a run's measured metric around its own value on the same prompts, at `base`."""
        random = np.random.default_rng(0)
        logits = self.logit_of(self.base) + self.difficulty * random.standard_normal(20000)
        chance = 1 / (1 + np.exp(-logits))
        moved = 1 / (1 + np.exp(-(logits + self.per_run * random.standard_normal(20000))))
        sampled = float((chance * (1 - chance)).mean()) / self.samples
        return math.sqrt((sampled + float(((moved - chance) ** 2).mean())) / self.prompts)

    @property
    def total_noise(self) -> float:
        """Standard deviation of one run's measured metric."""
        return math.hypot(self.run_noise, self.evaluation_noise)

    def curve(self, share: float) -> float:
        """Part of the way from the untrained model to its end that a training has made."""
        if share >= 1:
            return 1.0
        rate = 1 / self.time_to_level
        return (1 - math.exp(-rate * share)) / (1 - math.exp(-rate))

    def share_after(self, way: float) -> float:
        """Share of the budget, in twentieths, after which a training has made this part of its way."""
        return next(step / 20 for step in range(21) if self.curve(step / 20) >= way - 1e-9)


@functools.lru_cache(maxsize=1024)
def _rates(spread: float) -> np.ndarray:
    """Mean pass rate of a population of prompts whose logits have this standard deviation, at each of LOGITS."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    chance = 1 / (1 + np.exp(-(LOGITS[:, None] + spread * nodes[None, :])))
    return np.asarray(chance @ (weights / weights.sum()))


@dataclass
class Truth:
    """The ideas of one night."""

    world: World
    ideas: list[Idea]
    peaks: tuple[float, ...] = ()
    """What the optimum of each quantity gains over where the baseline is."""

    def value(self, recipe: Iterable[int]) -> float:
        """True value of a recipe."""
        chosen = frozenset(recipe)
        gain = 0.0
        for number in chosen:
            idea = self.ideas[number]
            gain += idea.effect if idea.needs <= chosen else idea.alone
        for quantity, peak in enumerate(self.peaks):
            place = sum(self.ideas[number].step for number in chosen if self.ideas[number].quantity == quantity)
            gain += peak * (1 - (1 - place) ** 2)
        return min(max(self.world.base + gain, LEAST_VALUE), 1 - LEAST_VALUE)

    def crashes(self, recipe: Iterable[int]) -> bool:
        return any(self.ideas[number].crashes for number in recipe)


@dataclass
class Prompts:
    """The held-out prompts of one night, and what ideas do to each of them."""

    world: World
    random: np.random.Generator
    difficulty: dict[str, np.ndarray] = field(default_factory=dict)
    by_idea: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    early: dict[int, float] = field(default_factory=dict)
    ids: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in HELD_OUT:
            self.difficulty[split] = self.world.difficulty * self.random.standard_normal(self.world.prompts)
            self.ids[split] = _ids(split, self.world.prompts)

    def logits(self, split: str, recipe: Iterable[int]) -> np.ndarray:
        """(prompts,): difficulty and what the recipe's ideas do to each prompt."""
        found = self.difficulty[split]
        if self.world.per_idea:
            for idea in recipe:
                key = (split, idea)
                if key not in self.by_idea:
                    self.by_idea[key] = self.world.per_idea * self.random.standard_normal(len(found))
                found = found + self.by_idea[key]
        return found

    def first_impression(self, idea: int) -> float:
        """By how much the idea seems to do more in the first part of a training than it does in the end."""
        if idea not in self.early:
            self.early[idea] = self.world.early * float(self.random.standard_normal()) if self.world.early else 0.0
        return self.early[idea]


@functools.lru_cache(maxsize=64)
def _ids(split: str, prompts: int) -> tuple[str, ...]:
    return tuple(f"{split}-{number:05d}" for number in range(prompts))


def measure(
    prompts: Prompts,
    split: str,
    recipe: Iterable[int],
    value: float,
    random: np.random.Generator,
) -> np.ndarray:
    """(prompts,): share of the samples of each prompt that pass, for a run whose own value is `value`."""
    world = prompts.world
    chosen = tuple(recipe)
    logits = prompts.logits(split, chosen) + world.logit_of(value, ideas=len(chosen))
    if world.per_run:
        logits = logits + world.per_run * random.standard_normal(len(logits))
    chance = 1 / (1 + np.exp(-logits))
    return random.binomial(world.samples, chance) / world.samples


def measure_on_the_way(
    prompts: Prompts, recipe: Iterable[int], value: float, share: float, random: np.random.Generator
) -> np.ndarray:
    """(prompts,): of the search split, for a run that will have this value, after this share of its budget."""
    world, chosen = prompts.world, tuple(recipe)
    seems = value + sum(prompts.first_impression(idea) for idea in chosen)
    return measure(prompts, "search", chosen, world.untrained + (seems - world.untrained) * world.curve(share), random)


def run_value(world: World, value: float, random: np.random.Generator) -> float:
    """The value of one run of a recipe of this true value."""
    if world.tails is None:
        return value + world.run_noise * float(random.standard_normal())
    scale = math.sqrt((world.tails - 2) / world.tails)
    return value + world.run_noise * scale * float(random.standard_t(world.tails))
