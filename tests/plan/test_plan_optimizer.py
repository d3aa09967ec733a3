"""Numbers of one axis together: when a refinement is offered, what it is told, what it finds that single steps miss."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import BOOK, ROOT, attempt, machine, named, shipped, tiny

from agent.plan import sampler
from agent.plan.memory import Attempt, Constraint, same_idea
from agent.plan.optimizer import REACH, Knob, Refinement, Trial, points, refinement_of
from agent.plan.planner import Ranking, plan
from agent.plan.proposal import Proposal
from agent.plan.sampler import NoSampler
from agent.plan.schema import Axis, Hypothesis, Playbook
from agent.recipe.schema import Recipe

RATE, NORM = "learner.learning_rate", "learner.max_grad_norm"


def both_ways(key: str, what: str) -> Hypothesis:
    forms = [{"name": "up", "scale": {key: 2.0}}, {"name": "down", "scale": {key: 0.5}}]
    return Hypothesis.model_validate({"id": what, "claim": "c", "what": what, "prior": 0.2, "variants": forms})


def book(*keys: str) -> Playbook:
    """One axis with a hypothesis for each key, both ways."""
    hypotheses = {key.rpartition(".")[2]: both_ways(key, key.rpartition(".")[2]) for key in keys}
    return replace(
        BOOK,
        axes={"size": Axis("size", watch=["diversity"])},
        hypotheses=hypotheses,
        axis_of=dict.fromkeys(hypotheses, "size"),
        queues={},
    )


TOY = book(RATE, NORM)
START = tiny(learner__max_grad_norm=1.0)


def tried(
    values: dict[str, tuple[Any, Any]], delta: float | None = -0.01, outcome: str = "discard", **more: Any
) -> Attempt:
    base = {"signature": "", "outcome": outcome, "delta": delta, "campaign": "now"}
    return Attempt(next(iter(values)).rpartition(".")[2], "size", values, **(base | more))


FOUR = [
    tried({RATE: (2e-4, 4e-4)}, 0.03, number=1),
    tried({RATE: (2e-4, 1e-4)}, -0.02, number=2),
    tried({NORM: (1.0, 2.0)}, 0.02, number=3),
    tried({NORM: (1.0, 0.5)}, -0.02, number=4),
]


def toy(history: list[Attempt], recipe: Recipe = START, playbook: Playbook = TOY, **more: Any) -> Ranking:
    return plan(playbook, recipe=recipe, history=history, campaign="now", **more)


def refinement(ranking: Ranking) -> Proposal | None:
    return next((p for p in ranking.proposals if p.hypothesis.startswith("refine-")), None)


# --- when it is offered --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_numbers_that_were_tried_are_refined_together() -> None:
    found = refinement(toy(FOUR))
    assert found is not None
    assert (found.hypothesis, found.variant, found.axis) == ("refine-size", "gp", "size")
    assert found.watch == ["diversity"]
    rate, norm = found.recipe.learner.learning_rate, found.recipe.learner.max_grad_norm
    assert found.subject == f"size: numbers refined, 0.0002/1 -> {rate:g}/{norm:g}"
    assert found.values == {RATE: (2e-4, rate), NORM: (1.0, norm)}
    assert (rate, norm) == (float(f"{rate:.2g}"), float(f"{norm:.2g}"))
    assert "x1.20 learner.learning_rate was tried both ways" in found.why
    assert (
        "Gaussian process over learner.learning_rate, learner.max_grad_norm from 5 points, 0 of them crashed or "
        "given up" in found.why
    )


def test_the_same_arguments_give_the_same_point() -> None:
    found = [refinement(toy(FOUR, seed=1)) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] is not None


@pytest.mark.parametrize(
    "history",
    [
        FOUR[:3],
        [*FOUR[:2], *(tried({RATE: (2e-4, 2e-4 * factor)}) for factor in (1.3, 0.7))],
        [*FOUR[:3], tried({NORM: (1.0, 0.5)}, None, reason="underpowered: 1 step")],
        [*FOUR[:2], *(replace(one, delta=None) for one in FOUR[2:])],
        [*FOUR[:3], tried({NORM: (1.0, 0.5), "learner.packing": (True, False)})],
        [replace(one, campaign="before") for one in FOUR],
    ],
    ids=["three tries", "one number", "one open", "no result", "not alone", "earlier campaign"],
)
def test_too_little_is_known(history: list[Attempt]) -> None:
    assert refinement(toy(history)) is None


def test_single_numbers_go_first_until_one_was_tried_both_ways_and_after_a_refinement_that_failed() -> None:
    one_way = [FOUR[0], tried({RATE: (2e-4, 6e-4)}), FOUR[2], tried({NORM: (1.0, 3.0)})]
    early = refinement(toy(one_way))
    assert early is not None
    assert "x0.80 no number was tried both ways yet" in early.why
    ready = toy(FOUR)
    assert ready.proposals[0].hypothesis == "refine-size"
    failed = attempt(ready.proposals[0], number=5, delta=-0.01)
    later = toy([*FOUR, failed])
    assert later.proposals[0].hypothesis != "refine-size"
    waiting = refinement(later)
    assert waiting is not None
    assert "x0.80 the last refinement was not kept, so single numbers have their turn" in waiting.why
    assert not same_idea(waiting.values, failed.values)


def test_what_was_given_up_is_known_to_be_bad() -> None:
    """A night of SmolLM2 asked for a fifth of a rate after a half of it had been given up, which nobody had told it."""
    given_up = tried({RATE: (2e-4, 1e-4)}, None, reason="regressed: given up at 57% of the training budget", number=4)
    found = refinement_of("size", TOY, START, [*FOUR[:1], *FOUR[2:], given_up], machine=None)
    assert found is not None
    assert found.lost == 1
    assert [trial.gain for trial in found.trials if trial.point[RATE] == 1e-4] == [None]
    told = refinement(toy([*FOUR[:1], *FOUR[2:], given_up]))
    assert told is not None
    assert "from 5 points, 1 of them crashed or given up" in " ".join(told.why)


def test_only_takes_its_axis_and_leaves_it_out_of_one_hypothesis() -> None:
    assert refinement(toy(FOUR, only="size")) is not None
    assert refinement(toy(FOUR, only="learning_rate")) is None


def test_the_shipped_playbook_refines_an_axis_too() -> None:
    recipe = shipped("smollm2-arithmetic")
    first = plan(BOOK, recipe=recipe)
    history = [
        attempt(named(first, hypothesis, form), number=number, delta=delta)
        for number, (hypothesis, form, delta) in enumerate(
            [("explore-samples", "more-at-full-width", 0.01), ("explore-samples", "more", 0.0),
             ("explore-samples", "fewer", -0.01), ("explore-epochs", "more", 0.01)], start=1,
        )
    ]  # fmt: skip
    ranking = plan(BOOK, recipe=recipe, history=history, campaign="now")
    found = refinement(ranking)
    assert found is not None
    assert found.axis == "exploration"
    assert all(isinstance(new, int) for _, new in found.values.values())


# --- what it is told -----------------------------------------------------------------------------------------


def refined(history: list[Attempt], recipe: Recipe = START, **more: Any) -> Refinement:
    found = refinement_of("size", more.pop("playbook", TOY), recipe, history, machine=None, **more)
    assert found is not None
    return found


def test_a_trial_is_worth_its_difference_and_what_keeps_of_the_knobs_had_gained() -> None:
    history = [
        FOUR[0],
        replace(FOUR[1], outcome="keep", delta=0.05),
        tried({"learner.packing": (True, False)}, 0.2, "keep"),
        tried({NORM: (1.0, 2.0)}, 0.01),
        tried({NORM: (1.0, 0.5)}, None, "crash", crash_class="numeric"),
    ]
    trials = refined(history, tiny(learner__max_grad_norm=1.0, learner__learning_rate=1e-4)).trials
    told = {(trial.point[RATE], trial.point[NORM]): trial.gain for trial in trials}
    assert told == {(2e-4, 1.0): 0.0, (1e-4, 1.0): 0.05, (1e-4, 2.0): pytest.approx(0.06), (1e-4, 0.5): None}


def test_less_is_better_where_the_metric_is_minimized() -> None:
    down = tiny(learner__max_grad_norm=1.0, evaluation__direction="minimize")
    assert refined(FOUR, down).trials[1].gain == -0.03


def test_what_ran_after_a_fix_is_where_it_was_measured() -> None:
    fixed = [replace(FOUR[0], ran={RATE: (2e-4, 3e-4)}), *FOUR[1:]]
    assert refined(fixed).trials[1].point[RATE] == 3e-4


def test_ranges_are_the_incumbents_neighbourhood_inside_schema_and_limits() -> None:
    rate, norm = refined(FOUR).knobs
    assert (rate.low, rate.high) == (pytest.approx(2e-4 / 2**REACH), pytest.approx(2e-4 * 2**REACH))
    limit = Constraint(NORM, "broke", at_most=1.5)
    assert refined([*FOUR[:2], tried({NORM: (1.0, 1.4)}), FOUR[3]], constraints=[limit]).knobs[1].high == 1.5
    for seed in range(5):
        found = refinement(toy(FOUR, seed=seed, constraints=[limit]))
        assert found is not None
        assert found.recipe.learner.max_grad_norm <= 1.5
    assert norm.now == 1.0


def test_learning_rate_and_temperature_never_move_together() -> None:
    heat = "rollout.temperature"
    hot = [tried({heat: (1.0, 1.5)}), tried({heat: (1.0, 0.7)})]
    three = book(RATE, heat, NORM)
    assert [knob.key for knob in refined([*FOUR, *hot], playbook=three).knobs] == [RATE, NORM]
    assert refinement(toy([*FOUR[:2], *hot], playbook=book(RATE, heat))) is None


def test_a_key_that_nothing_reads_is_no_knob() -> None:
    second = "learner.beta2"
    history = [*FOUR[:2], tried({second: (0.9, 0.95)}), tried({second: (0.9, 0.8)})]
    read = tiny(learner__beta2=0.9)
    assert refinement_of("size", book(RATE, second), read, history, machine=None) is not None
    unread = tiny(learner__beta2=0.9, learner__optimizer="sgd")
    assert refinement_of("size", book(RATE, second), unread, history, machine=None) is None


def test_no_point_repeats_what_was_tried() -> None:
    history = list(FOUR)
    for number in range(5, 15):
        found = refinement(toy(history))
        assert found is not None
        assert not any(same_idea(one.values, found.values) for one in history)
        history.append(attempt(found, number=number, delta=-0.01))


KNOBS = tuple(Knob(key, now, now / 2.4, now * 2.4, False) for key, now in ((RATE, 2e-4), (NORM, 1.0)))


def test_crashes_that_were_told_are_kept_clear_of() -> None:
    """Both knobs up is promising by what was measured, and crashes."""

    def at(rate: float, norm: float, gain: float | None) -> Trial:
        return Trial({RATE: 2e-4 * rate, NORM: norm}, gain)

    measured = [at(1, 1, 0.0), at(2, 1, 0.03), at(1, 2, 0.02), at(0.5, 1, -0.02), at(1, 0.5, -0.02)]
    crashed = [at(2, 2, None), at(2.2, 1.8, None)]

    def in_the_corner(trials: list[Trial]) -> int:
        proposed = [next(points(Refinement("size", KNOBS, tuple(trials), (), ""), seed=s, most=1)) for s in range(10)]
        return sum(p.get(RATE, 0) > 3e-4 and p.get(NORM, 0) > 1.5 for p in proposed)

    assert in_the_corner(measured) >= 8
    assert in_the_corner([*measured, *crashed]) <= 1


# --- a toy function ------------------------------------------------------------------------------------------


Shape = tuple[float, float]
VALLEY, ROUND = (0.02, 0.2), (0.06, 0.06)
"""Curvature along and across a slanted direction. In the valley both numbers have to move together."""


def regret(recipe: Recipe, best: tuple[float, float], slant: float, shape: Shape) -> float:
    x = math.log(recipe.learner.learning_rate / 2e-4) - best[0]
    y = math.log(recipe.learner.max_grad_norm) - best[1]
    along = math.cos(slant) * x + math.sin(slant) * y
    across = math.cos(slant) * y - math.sin(slant) * x
    return shape[0] * along**2 + shape[1] * across**2


def night(seed: int, shape: Shape, *, tries: int = 14, refine: bool, noise: float = 0.01) -> float:
    """The last incumbent's regret after so many tries, each measured with noise and kept where it looks better."""
    lot = random.Random(seed)
    slant = lot.choice([1, -1]) * math.pi / 4
    far = lot.choice([1, -1]) * lot.uniform(0.8, 1.6)
    best = (far * math.cos(slant), far * math.sin(slant))
    recipe, history = START, list[Attempt]()
    for number in range(1, tries + 1):
        offered = [p for p in toy(history, recipe).proposals if refine or not p.hypothesis.startswith("refine-")]
        if not offered:
            break
        delta = regret(recipe, best, slant, shape) - regret(offered[0].recipe, best, slant, shape)
        delta += lot.gauss(0, noise)
        outcome = "keep" if delta > noise else "discard"
        history.append(attempt(offered[0], outcome, number=number, delta=delta))
        recipe = offered[0].recipe if outcome == "keep" else recipe
    return regret(recipe, best, slant, shape)


def nights(shape: Shape) -> tuple[float, float]:
    """Mean regret (single steps alone, with refinement); where all begin it is about 0.03 in the valley, 0.09 else."""
    alone, together = (statistics.mean(night(s, shape, refine=refine) for s in range(8)) for refine in (False, True))
    print(f"mean regret of 8 nights of 14 tries: {alone:.4f} with single steps alone, {together:.4f} with refinement")
    return alone, together


@pytest.mark.slow
def test_where_two_numbers_interact_refinement_goes_further_than_single_steps_in_as_many_tries() -> None:
    alone, together = nights(VALLEY)
    assert together < 0.6 * alone


@pytest.mark.slow
def test_where_they_do_not_refinement_costs_little() -> None:
    alone, together = nights(ROUND)
    assert max(alone, together) < 0.01


# --- without the sampler -------------------------------------------------------------------------------------


def test_without_optuna_the_plan_says_so_and_single_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    full = toy(FOUR)
    monkeypatch.setitem(sys.modules, "optuna", None)
    ranking = toy(FOUR)
    assert [s.reason for s in ranking.skipped if s.hypothesis == "refine-size"] == [
        "needs the package optuna, which is not installed"
    ]
    assert ranking.proposals == [p for p in full.proposals if p.hypothesis != "refine-size"]


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("input(); print('{\"ok\": true}', flush=True); input(); print('{\"failed\": \"LinAlgError: not definite\"}')",
         "Optuna's sampler failed: LinAlgError: not definite"),
        ("raise SystemExit", "the process of Optuna's sampler has ended"),
        ("import time; time.sleep(60)", "the process of Optuna's sampler gave no answer for 1s"),
        ("print('a warning of some library')", "the process of Optuna's sampler answered b'a warning of some"),
        ("print('{}')", "the process of Optuna's sampler answered b'{}"),
    ],
)  # fmt: skip
def test_a_sampler_that_fails_costs_its_own_idea_only(monkeypatch: pytest.MonkeyPatch, child: str, said: str) -> None:
    full = toy(FOUR)
    monkeypatch.setattr(sampler, "COMMAND", (sys.executable, "-c", child))
    monkeypatch.setattr(sampler, "PATIENCE_S", 1.0)
    monkeypatch.setattr(sampler, "_running", [])
    ranking = toy(FOUR)
    reasons = [s.reason for s in ranking.skipped if s.hypothesis == "refine-size"]
    assert len(reasons) == 1
    assert reasons[0].startswith(said)
    assert ranking.proposals == [p for p in full.proposals if p.hypothesis != "refine-size"]
    if not said.startswith("Optuna"):
        monkeypatch.setattr(sampler, "COMMAND", ("no-such-command",))
        assert toy(FOUR).skipped == ranking.skipped, "it is not started again"


@pytest.mark.slow
def test_the_process_that_draws_answers_whatever_else_prints_and_ends_with_its_input() -> None:
    noisy = "import os; from agent.plan.sampler_child import main; main(); os.write(1, b'end')"
    asked = {"knobs": {"a": [1.0, 4.0]}, "trials": [[{"a": 2.0}, 0.0]], "worst": 0.0, "seed": 3}
    lines = "".join(json.dumps(one) + "\n" for one in (asked, {"next": True}))
    done = subprocess.run(
        [sys.executable, "-c", noisy], input=lines, capture_output=True, text=True, check=True, cwd=ROOT
    )
    first, second = done.stdout.splitlines()
    assert (json.loads(first), set(json.loads(second))) == ({"ok": True}, {"point"})
    assert done.stderr.endswith("end")


@pytest.mark.slow
def test_a_seed_gives_the_same_points_from_one_process() -> None:
    one = sampler.Sampler()
    asked = {"knobs": {"a": [1.0, 4.0]}, "trials": [[{"a": 2.0}, 0.0], [{"a": 3.0}, 0.1]], "worst": 0.0, "seed": 3}
    drawn = []
    for _ in range(2):
        one.ask(asked)
        drawn.append([one.ask({"next": True})["point"]["a"] for _ in range(2)])
    assert drawn[0] == drawn[1], "a seed gives the same points"
    assert all(1 <= point <= 4 for point in drawn[0])
    with pytest.raises(NoSampler, match="TypeError"):
        one.ask({"knobs": {}})
    assert one.usable
    one.close()
    assert not one.usable


def test_optuna_is_loaded_only_when_a_point_is_asked_for() -> None:
    code = "import sys, agent.plan.planner; print('optuna' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_machines_without_what_a_form_needs_have_no_knob_of_it() -> None:
    form = {"name": "up", "scale": {NORM: 2.0}, "requires": {"accelerators": 1}}
    needs = Hypothesis.model_validate({"id": "max_grad_norm", "claim": "c", "what": "w", "variants": [form]})
    picky = replace(TOY, hypotheses=TOY.hypotheses | {"max_grad_norm": needs})
    assert refinement_of("size", picky, START, FOUR, machine=machine(0)) is None
    assert refinement_of("size", picky, START, FOUR, machine=machine(1)) is not None
