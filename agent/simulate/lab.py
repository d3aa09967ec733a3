"""The lab that draws instead of training: the same orders, budget and outcomes, on a clock that only runs cost.

Its planner offers the ideas in the order of their scores (how well the scores know the truth is the mix's matter),
never one that was discarded, unless a kept idea touches its premise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.campaign.budget import BudgetClock, RunCost
from agent.campaign.lab import MARGIN, MEASURED_ON, CutShort, Health, Lab, Measured, Order
from agent.campaign.levels import Terms, Used
from agent.campaign.past import MEASURED_NOTHING, Past
from agent.campaign.rules import Rules
from agent.campaign.scores import Scores
from agent.campaign.verdict import Judgement, Report
from agent.contract import Summary
from agent.recipe.schema import Budget, Evaluation
from agent.simulate.world import Prompts, Truth, measure, measure_on_the_way, run_value

SUMMARY = Summary.model_construct(
    seed=0, recipe_signature="", metric="pass_rate", cycles=10, optimizer_steps=100, kept=1000, ended_by="budget"
)


class SimulatedRun:
    """What one run measured. It satisfies `Measured`."""

    def __init__(
        self,
        key: str,
        *,
        values: dict[str, Scores],
        ended_s: float,
        crash_words: str | None = None,
        midway: Scores | None = None,
    ):
        self.key = key
        self.values = values
        self.midway = midway
        self.ended_s = ended_s
        self.crash_words = crash_words

    @property
    def gave_up(self) -> str | None:
        return None

    @property
    def ok(self) -> bool:
        return self.crash_words is None

    @property
    def summary(self) -> Summary | None:
        return SUMMARY if self.ok else None

    def scores(self, split: str, metric: str | None = None) -> Scores | None:
        return self.values.get(split)

    def on_the_way(self) -> Scores | None:
        return self.midway

    def health(self, split: str) -> Health | None:
        return None

    def faults(self) -> list[str]:
        return []


@dataclasses.dataclass
class Tried:
    """One experiment of the simulated campaign."""

    moves: frozenset[int]
    """Ideas that it adds to the recipe, or takes away where they are in it."""
    recipe: frozenset[int]
    base: int
    """The experiment whose recipe they change."""
    judged_against: int = 0
    judgement: Judgement | None = None
    together: tuple[int, ...] = ()
    without: int | None = None
    margin: float = MARGIN
    advance: bool = False
    of_lead: bool = False
    again: int | None = None


@dataclasses.dataclass(frozen=True)
class Begun:
    """The first part of a screened training."""

    run: SimulatedRun
    share: float
    """Of its budget that it has had."""
    value: float
    """That its run will have."""


class SimulatedLab(Lab):
    def __init__(
        self,
        truth: Truth,
        *,
        scores: Sequence[float],
        random: np.random.Generator,
        budget_s: float,
        rules: Rules | None = None,
        baseline_seeds: int = 3,
        max_experiments: int | None = None,
    ):
        """`scores`: how the planner ranks the ideas, one number each, larger first."""
        world = truth.world
        self.truth = truth
        self.random = random
        self.prompts = Prompts(world, random)
        self.rules = rules or Rules()
        self.evaluation = _evaluation(world.prompts, world.samples)
        self.budget = _budget(world.train_s)
        self.baseline_seeds = baseline_seeds
        self.max_experiments = max_experiments
        self.target = None
        self.spent_s = 0.0
        self._clock = BudgetClock(budget_s, monotonic=lambda: self.spent_s)
        self.queue = sorted(range(len(truth.ideas)), key=lambda number: -scores[number])
        """Ideas that wait, the best ranked first."""
        self._place = {number: place for place, number in enumerate(self.queue)}
        self._incumbent = 0
        self._open: list[int] = []
        """Experiments that were planned together, in order."""
        self._begun: dict[int, Begun] = {}
        """Screened experiments."""
        self.tried: list[Tried] = [Tried(frozenset(), frozenset(), 0)]
        self.calibration: dict[str, Any] = {}
        self.words: list[str] | None = None
        """Where given, everything that is said."""
        self._runs: dict[Order, SimulatedRun] = {}
        self._past: list[Past] = []
        self._used: list[Used] = []

    @property
    def clock(self) -> BudgetClock:
        return self._clock

    def say(self, text: str) -> None:
        if self.words is not None:
            self.words.append(text)

    def warn(self, text: str) -> None:
        self.say(text)

    def stop_request(self) -> str | None:
        return None

    # --- what is known --------------------------------------------------------------------------------------

    @property
    def incumbent(self) -> int:
        return self._incumbent

    def outcome(self, number: int) -> str:
        judgement = self.tried[number].judgement
        return judgement.verdict.outcome if judgement else ""

    def outcomes(self) -> Sequence[tuple[int, str]]:
        return [(one.number, one.outcome) for one in self._past]

    def open_experiment(self) -> int | None:
        return next((number for number in self._open if self.tried[number].judgement is None), None)

    def paused(self, number: int) -> bool:
        return number in self._begun and Order(number, "search") not in self._runs

    def planned_against(self, number: int) -> int:
        return self.tried[number].base

    def waiting(self) -> int:
        has = self.tried[self.lead].recipe
        return sum(idea not in has for idea in self.queue)

    def best_metric(self) -> float | None:
        return None

    def past(self) -> Sequence[Past]:
        return self._past

    def is_last(self, number: int) -> bool:
        one = self.tried[number]
        return (bool(one.together) and not one.advance) or one.without is not None

    def is_advance(self, number: int) -> bool:
        return self.tried[number].advance

    def margin(self, number: int) -> float:
        return self.tried[number].margin

    def used_levels(self) -> list[Used]:
        return list(self._used)

    def title(self, number: int) -> str:
        return f"#{number} ideas {sorted(self.tried[number].moves)}"

    def cost(self, experiment: int) -> RunCost:
        world = self.truth.world
        return RunCost(world.overhead_s, world.train_s, world.evaluate_s, world.overhead_s + world.evaluate_s)

    def simpler(self, number: int) -> str | None:
        fewer = len(self.tried[self.incumbent].recipe) - len(self.tried[number].recipe)
        return f"{fewer} ideas fewer" if fewer > 0 else None

    def has_comparator(self, number: int) -> bool:
        return False

    def touches_speed(self, number: int) -> bool:
        return True

    @property
    def winner(self) -> frozenset[int]:
        """Ideas in the best recipe."""
        return self.tried[self.incumbent].recipe

    # --- the planner ----------------------------------------------------------------------------------------

    def next_idea(self, *, batch: int | None = None) -> tuple[int | None, str]:
        lead = self.lead
        idea = next((idea for idea in self.queue if idea not in self.tried[lead].recipe), None)
        if idea is None:
            return None, "every idea was tried"
        self.queue.remove(idea)
        number = self.plan(frozenset([idea]), base=lead)
        self._open.append(number)
        return number, ""

    def plan(self, moves: frozenset[int], *, base: int | None = None) -> int:
        """Announce an experiment that toggles these ideas in a recipe, the incumbent's where not given."""
        base = self.incumbent if base is None else base
        before = self.tried[base].recipe
        recipe = self._one_a_key(before ^ moves, new=moves)
        self.tried.append(Tried(recipe ^ before, recipe, base))
        return len(self.tried) - 1

    def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
        base = self.lead if advance else self.incumbent
        leads = [self.lead] if self.lead != self.incumbent and (advance or self.lead in numbers) else []
        recipe = self.tried[leads[0] if leads else base].recipe
        parts = leads
        for number in numbers:
            if number not in leads and self._fits(number, recipe):
                recipe, parts = recipe ^ self.tried[number].moves, [*parts, number]
        moves = recipe ^ self.tried[base].recipe
        recipes = [one.recipe for one in self.tried if one.together and not one.advance]
        if not moves or (not advance and recipe in recipes):
            return None
        planned = self.plan(moves, base=base)
        one = self.tried[planned]
        one.together, one.advance, one.of_lead = tuple(parts), advance, of_lead
        return planned

    def _one_a_key(self, recipe: frozenset[int], *, new: frozenset[int]) -> frozenset[int]:
        """Of ideas that set the same thing the new one, and of several new ones the first."""
        if not self.truth.peaks:
            return recipe
        chosen: dict[int | None, int] = {}
        for idea in sorted(recipe, key=lambda idea: (idea not in new, idea)):
            chosen.setdefault(self.truth.ideas[idea].key, idea)
        return frozenset(
            idea for idea in recipe if self.truth.ideas[idea].key is None or chosen[self.truth.ideas[idea].key] == idea
        )

    def plan_again(self, number: int) -> int | None:
        recipe = self.tried[self.lead].recipe | self.tried[number].moves
        if self.tried[number].moves & self.tried[self.lead].recipe or self._ran_whole(recipe):
            return None
        planned = self.plan(self.tried[number].moves, base=self.lead)
        self.tried[planned].again = number
        return planned

    def stands(self, number: int) -> bool:
        recipe = self.tried[self.lead].recipe
        return self._fits(number, recipe) and not self._ran_whole(recipe ^ self.tried[number].moves)

    def _ran_whole(self, recipe: frozenset[int]) -> bool:
        judged = (one for one in self.tried if one.judgement and one.recipe == recipe)
        not_whole = ("screened", *MEASURED_NOTHING)
        return any(one.judgement.verdict.kind not in not_whole for one in judged if one.judgement)

    def _fits(self, number: int, recipe: frozenset[int]) -> bool:
        """Whether the recipe has what the idea takes out, not what it brings, and nothing else that sets the same."""
        one = self.tried[number]
        brings, out = one.moves - self.tried[one.base].recipe, one.moves & self.tried[one.base].recipe
        keys = {self.truth.ideas[idea].key for idea in brings} - {None}
        others = recipe - out
        return out <= recipe and not brings & recipe and not any(self.truth.ideas[idea].key in keys for idea in others)

    def plan_without(self, number: int, *, margin: float) -> int | None:
        moves = self.tried[number].moves & self.winner
        if not moves or moves == self.winner:
            return None
        planned = self.plan(moves)
        self.tried[planned].without, self.tried[planned].margin = number, margin
        return planned

    def _back_into_the_queue(self, kept: frozenset[int]) -> None:
        """Discarded ideas whose premise a kept one touches."""
        waiting = set(self.queue) | self.tried[self.lead].recipe
        returned = [
            number
            for number, idea in enumerate(self.truth.ideas)
            if idea.premise & kept and number not in waiting and not idea.crashes
        ]
        if returned:
            self.queue = sorted([*self.queue, *returned], key=lambda number: self._place[number])

    # --- what is done ---------------------------------------------------------------------------------------

    def commit(self, number: int) -> None: ...

    def run(self, order: Order) -> SimulatedRun:
        order = dataclasses.replace(order, beside=None)
        if order not in self._runs:
            self._runs[order] = self._execute(order)
        return self._runs[order]

    def _execute(self, order: Order) -> SimulatedRun:
        world = self.truth.world
        recipe = self.tried[order.experiment].recipe
        key = f"{order.experiment:03d}-{order.arm}-{order.index}"
        begun = self._begun.get(order.experiment) if order.arm == "search" else None
        if begun and not begun.run.ok:
            return begun.run
        if order.arm != "untrained" and self.truth.crashes(recipe):
            self._spend(world.crash_s)
            return SimulatedRun(key, values={}, ended_s=self.spent_s, crash_words="unknown: a simulated crash")
        trained = order.arm != "untrained"
        splits = MEASURED_ON[order.arm]
        to_train = world.train_s * (1 - begun.share if begun else float(trained))
        self._spend(world.overhead_s + to_train + world.evaluate_s * len(splits))
        midway = begun.run.midway if begun else None
        if begun:
            value = begun.value
        else:
            value = run_value(world, self.truth.value(recipe), self.random) if trained else world.untrained
        advance = order.arm == "search" and self.tried[order.experiment].advance
        if self.rules.batch and (order.arm == "baseline" or advance):
            midway = self._on_the_way(recipe, value)
        values: dict[str, Scores] = {
            split: Scores(self.prompts.ids[split], measure(self.prompts, split, recipe, value, self.random))
            for split in splits
        }
        return SimulatedRun(key, values=values, ended_s=self.spent_s, midway=midway)

    def _on_the_way(self, recipe: frozenset[int], value: float) -> Scores:
        """What it measures after the share of the budget that a screening looks at."""
        self._spend(self.truth.world.evaluate_s)
        share = self.screen_share
        return Scores(self.prompts.ids["search"], measure_on_the_way(self.prompts, recipe, value, share, self.random))

    def share_that_tells(self) -> float:
        return self.truth.world.share_after(self.rules.screen_way)

    @property
    def screen_share(self) -> float:
        return self.rules.screen_share or self.share_that_tells()

    def screen(self, number: int) -> SimulatedRun:
        if number not in self._begun:
            self._begun[number] = self._begin(number)
        return self._begun[number].run

    def _begin(self, number: int) -> Begun:
        world, recipe, share = self.truth.world, self.tried[number].recipe, self.screen_share
        key = f"{number:03d}-screen"
        if self.truth.crashes(recipe):
            self._spend(world.crash_s)
            crash = "unknown: a simulated crash"
            return Begun(SimulatedRun(key, values={}, ended_s=self.spent_s, crash_words=crash), 0.0, world.untrained)
        self._spend(world.overhead_s + share * world.train_s)
        value = run_value(world, self.truth.value(recipe), self.random)
        midway = self._on_the_way(recipe, value)
        return Begun(SimulatedRun(key, values={}, ended_s=self.spent_s, midway=midway), share, value)

    def _spend(self, seconds: float) -> None:
        if seconds > self._clock.left_s:
            self.spent_s += max(0.0, self._clock.left_s)
            raise CutShort("the budget is spent")
        self.spent_s += seconds

    def fix(self, number: int, terms: Terms) -> Terms:
        return terms

    def again(self, run: Measured, order: Order) -> SimulatedRun:
        """The same weights give the same answers."""
        self._spend(self.truth.world.overhead_s + self.truth.world.evaluate_s)
        return self.run(order)

    def calibrated(self, values: dict[str, Any]) -> None:
        self.calibration = values

    def watch(self, number: int, search: Measured, *, probe: bool) -> list[Report]:
        return []

    def conclude(self, number: int, judgement: Judgement) -> None:
        one, verdict, basis = self.tried[number], judgement.verdict, judgement.verdict.basis
        led_before = self.tried[self.lead].recipe
        confirmed = bool(judgement.looks) or verdict.outcome == "keep"
        one.judgement, one.judged_against = judgement, self.incumbent if confirmed else one.base
        delta, p_value = (basis.delta, basis.p_value) if basis else (None, None)
        if number:
            self._past.append(
                Past(
                    number,
                    verdict.outcome,
                    verdict.kind,
                    delta,
                    p_value,
                    one.together,
                    one.without,
                    one.advance,
                    one.of_lead,
                    one.again,
                    one.base,
                    basis.p_as_if_known if basis and basis.noise else None,
                )
            )
        if judgement.used:
            self._used.append(judgement.used)
        if verdict.reason.startswith("superseded"):
            again = sorted(one.moves - self.tried[one.base].recipe)
            self.queue = [*again, *(idea for idea in self.queue if idea not in again)]
        if verdict.outcome == "keep":
            self._incumbent = number
        if verdict.outcome == "keep" or verdict.kind == "lead":
            self._back_into_the_queue(one.recipe - led_before)


def _evaluation(prompts: int, samples: int) -> Evaluation:
    return Evaluation(
        select_prompts=prompts,
        search_prompts=prompts,
        confirm_prompts=prompts,
        holdout_prompts=prompts,
        samples_per_prompt=samples,
    )


def _budget(train_s: float) -> Budget:
    return Budget(train_seconds=train_s)
