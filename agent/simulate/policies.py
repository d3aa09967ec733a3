"""Ways to spend a night, all with the same runs on the same clock: ours, and what ours has to beat.

greedy   one idea after the other in the planner's order, kept if its one run measured better than the best so far
random   the same with the ideas in a random order
search   random search: each run is a random recipe, the best measured one wins
tpe      Optuna's TPE over the same recipes, the best measured one wins

What they deliver is a recipe; its true value is what counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.campaign.evidence import Evidence
from agent.campaign.lab import CutShort, Lab, Measured, Order
from agent.campaign.search import spend_the_night
from agent.campaign.verdict import Judgement, Verdict

if TYPE_CHECKING:
    from agent.simulate.lab import SimulatedLab

Policy = Callable[["SimulatedLab"], None]


def ours(lab: Lab) -> None:
    """The campaign as `raft-agent run` spends it."""
    try:
        spend_the_night(lab, Evidence())
    except CutShort:
        return


def greedy(lab: Lab) -> None:
    """Keep-if-better, one run an idea. Works in any lab, with the planner's order of that lab."""
    _screen_nothing(lab)
    try:
        best = measured(lab.run(Order(0, "baseline", 0)))
        lab.conclude(0, _verdict("keep", lab.run(Order(0, "baseline", 0)), "baseline"))
        while lab.max_experiments is None or len(lab.outcomes()) < lab.max_experiments:
            number, _ = lab.next_idea()
            if number is None:
                return
            lab.commit(number)
            run = lab.run(Order(number, "search"))
            value = measured(run)
            better = run.ok and value > best
            lab.conclude(number, _verdict("keep" if better else "discard" if run.ok else "crash", run, f"{value:.4f}"))
            best = max(best, value)
    except CutShort:
        return


def _screen_nothing(lab: Lab) -> None:
    """Nor pay for what only a screening needs."""
    lab.rules = dataclasses.replace(lab.rules, batch=0)


def measured(run: Measured) -> float:
    """The metric of a run on the search split, larger is better; minus infinity where it crashed."""
    scores = run.scores("search") if run.ok else None
    return scores.mean if scores is not None else float("-inf")


def _verdict(outcome: str, run: Measured, words: str) -> Judgement:
    if outcome == "keep":
        return Judgement(Verdict("keep", f"measured better: {words}", None, "gain"), run)
    if outcome == "crash":
        return Judgement(Verdict("crash", run.crash_words or "no summary", None, "crash"), run)
    return Judgement(Verdict("discard", f"measured no better: {words}", None, "inconclusive"), run)


def in_random_order(lab: SimulatedLab) -> None:
    lab.random.shuffle(lab.queue)
    greedy(lab)


def random_search(lab: SimulatedLab) -> None:
    """Each idea is in a recipe with a probability that is drawn anew for every recipe."""

    def propose(trial: int) -> frozenset[int]:
        share = lab.random.random()
        return frozenset(idea for idea in range(len(lab.truth.ideas)) if lab.random.random() < share)

    _best_of(lab, propose, lambda trial, value: None)


def tpe(lab: SimulatedLab) -> None:
    """Each idea is a categorical parameter; a crash is told as pruned, which TPE takes for the worst there is."""
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=int(lab.random.integers(2**31)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    nothing = {f"idea {number}": False for number in range(len(lab.truth.ideas))}
    study.enqueue_trial(nothing)
    asked = {}

    def propose(trial: int) -> frozenset[int]:
        asked[trial] = study.ask()
        return frozenset(
            number for number, name in enumerate(nothing) if asked[trial].suggest_categorical(name, [False, True])
        )

    def tell(trial: int, value: float) -> None:
        if value > float("-inf"):
            study.tell(asked[trial], value)
        else:
            study.tell(asked[trial], state=TrialState.PRUNED)

    _best_of(lab, propose, tell)


def _best_of(lab: SimulatedLab, propose: Callable[[int], frozenset[int]], tell: Callable[[int, float], None]) -> None:
    """Run proposed recipes until the time is spent, the recipe as it is first; the best measured one is kept."""
    best = float("-inf")
    _screen_nothing(lab)
    try:
        most = len(lab.truth.ideas) if lab.max_experiments is None else lab.max_experiments
        trial = 0
        while trial <= most or lab.max_experiments is None:
            recipe = propose(trial)
            number = lab.plan(recipe ^ lab.winner)
            run = lab.run(Order(number, "search"))
            value = measured(run)
            tell(trial, value)
            lab.conclude(number, _verdict("keep" if value > best else "discard" if run.ok else "crash", run, ""))
            best, trial = max(best, value), trial + 1
    except CutShort:
        return


POLICIES: dict[str, Policy] = {
    "ours": ours,
    "greedy": greedy,
    "random": in_random_order,
    "search": random_search,
    "tpe": tpe,
}
