"""Runs that measured what a test says, and a lab that has only such runs: for decisions one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent.campaign.evidence import Evidence
from agent.campaign.lab import MARGIN, Health, Measured, Order
from agent.campaign.levels import Used
from agent.campaign.past import Past
from agent.campaign.rules import Rules
from agent.campaign.scores import Scores
from agent.contract import Summary
from agent.recipe.schema import Evaluation
from agent.simulate.lab import SUMMARY, SimulatedLab
from agent.simulate.world import Truth, World

PROMPTS = 200
A_RUN = 100.0
"""Seconds of a run."""
WORLD = World(prompts=PROMPTS, overhead_s=10.0, train_s=80.0, evaluate_s=10.0)
HEALTH = Health(samples=PROMPTS, truncated=0.0, tokens=20.0, distinct=0.9, formatted=1.0)


def scores(mean: float, *, seed: int = 0, spread: float = 0.05, prompts: int = PROMPTS) -> Scores:
    """Of a run with this mean, to the last digit. Runs differ prompt by prompt by `spread`, by their seed."""
    values = np.random.default_rng(seed).normal(0.0, spread, prompts) if spread else np.zeros(prompts)
    return Scores(tuple(f"{number:04d}" for number in range(prompts)), values - values.mean() + mean)


@dataclasses.dataclass
class MadeRun:
    """It satisfies `Measured`. `values` by split, or by split and metric."""

    key: str
    values: dict[Any, Scores] = dataclasses.field(default_factory=dict)
    healthy: Health | None = HEALTH
    summary: Summary | None = dataclasses.field(default_factory=lambda: SUMMARY)
    crash_words: str | None = None
    gave_up: str | None = None
    ended_s: float | None = None
    wrong: list[str] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.crash_words is None and self.gave_up is None

    def scores(self, split: str, metric: str | None = None) -> Scores | None:
        return self.values.get((split, metric) if metric else split)

    def on_the_way(self) -> Scores | None:
        return None

    def health(self, split: str) -> Health | None:
        return self.healthy

    def faults(self) -> list[str]:
        return self.wrong


def run(key: str, mean: float, *, seed: int = 0, **also: Any) -> MadeRun:
    """With this metric on every split."""
    found = scores(mean, seed=seed)
    return MadeRun(key, {"search": found, "confirm": found}, **also)


class MadeLab(SimulatedLab):
    """Ideas are changes of the incumbent, the baseline unless a test says otherwise. Every run takes A_RUN seconds."""

    def __init__(
        self,
        results: Callable[[Order], MadeRun],
        *,
        runs: float = 1000,
        rules: Rules | None = None,
        evaluation: Evaluation | None = None,
        incumbent: int = 0,
    ):
        super().__init__(
            Truth(WORLD, []), scores=[], random=np.random.default_rng(0), budget_s=runs * A_RUN, rules=rules
        )
        self.results = results
        self.evaluation = evaluation or self.evaluation
        self._incumbent = incumbent
        self.ran: list[Order] = []
        """In order of time, each once."""
        self.known: dict[Order, MadeRun] = {}
        self.simpler_in: str | None = None
        self.may_lose = MARGIN
        self.comparators = False
        self.speed = False
        """Whether ideas may change it."""
        self.last = self.advance = False
        self.told: list[Past] = []
        """What `past` says."""
        self.words = []

    def run(self, order: Order) -> Any:
        order = dataclasses.replace(order, beside=None)
        if order not in self.known:
            self._spend(A_RUN)
            self.ran.append(order)
            found = self.results(order)
            found.ended_s = self.spent_s if found.ended_s is None else found.ended_s
            self.known[order] = found
        return self.known[order]

    def begun(self, order: Order) -> bool:
        return dataclasses.replace(order, beside=None) in self.known

    def again(self, run: Measured, order: Order) -> Any:
        return self.results(dataclasses.replace(order, index=-1))

    def past(self) -> Sequence[Past]:
        return self.told

    def waiting(self) -> int:
        return len(self.queue)

    def used_levels(self) -> list[Used]:
        return []

    def is_last(self, number: int) -> bool:
        return self.last

    def planned_against(self, number: int) -> int:
        return self.incumbent

    def is_advance(self, number: int) -> bool:
        return self.advance

    def margin(self, number: int) -> float:
        return self.may_lose

    def title(self, number: int) -> str:
        return f"#{number}"

    def simpler(self, number: int) -> str | None:
        return self.simpler_in

    def has_comparator(self, number: int) -> bool:
        return self.comparators

    def touches_speed(self, number: int) -> bool:
        return self.speed

    def order_of(self, arm: str) -> list[int]:
        """Indices of the runs of an arm, in order of time."""
        return [order.index for order in self.ran if order.arm == arm]


def standing(evidence: Evidence[MadeRun], *means: float, experiment: int = 0) -> None:
    """The incumbent's runs on search: a baseline's repeats."""
    for index, mean in enumerate(means):
        evidence.add(
            run(f"{experiment:03d}-base-{index}", mean, seed=100 + index), experiment=experiment, arm="baseline"
        )
