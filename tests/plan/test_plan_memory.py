"""Dead ends: what counts as the same idea, what blocks it, and what brings it back."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_fixtures import BOOK, attempt, machine, named, run, tiny

from agent.plan.memory import Attempt, Constraint, DeadEnds, below, distance, flat, lighter, same_idea
from agent.plan.planner import Ranking, plan
from agent.plan.proposal import Proposal
from agent.recipe.files import get_key, with_keys
from agent.recipe.schema import Recipe
from agent.run.remedies import COSTS, SIZES, Limit

RATE, GROUP, PROMPTS = "learner.learning_rate", "rollout.samples_per_prompt", "rollout.prompts_per_cycle"


def skipped(ranking: Ranking, hypothesis: str) -> str:
    return next(skip.reason for skip in ranking.skipped if skip.hypothesis == hypothesis)


# --- when two ideas are one ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({RATE: (5e-4, 1e-3)}, {RATE: (5e-4, 1.02e-3)}),
        ({RATE: (5e-4, 1e-3)}, {RATE: (8e-4, 1e-3)}),
        ({GROUP: (32, 64)}, {GROUP: (32, 66)}),
        ({"learner.warmup": (0.1, 0.0)}, {"learner.warmup": (0.2, 0)}),
        (
            {"model.lora": (None, {"rank": 8, "alpha": 16.0})},
            {"model.lora.alpha": (32, 16), "model.lora.rank": (16, 8)},
        ),
        ({"prompt.stop": ([], ("x",))}, {"prompt.stop": (["y"], ["x"])}),
        ({"learner.packing": (False, True), GROUP: (4, 4)}, {"learner.packing": (False, True)}),
        ({"prompt.system": (None, "Think " * 20)}, {"prompt.system": (None, "'" + "Think " * 6 + "...")}),
    ],
)
def test_these_are_one_idea(one: dict, other: dict) -> None:
    assert same_idea(one, other)
    assert same_idea(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({RATE: (5e-4, 1e-3)}, {RATE: (5e-4, 5e-4 * 2**0.5)}),
        ({RATE: (5e-4, 1e-3)}, {RATE: (2e-3, 1e-3)}),
        ({"rollout.temperature": (1.0, 1.14)}, {"rollout.temperature": (1.0, 1.068)}),
        ({RATE: (5e-4, 1e-3)}, {RATE: (5e-4, 1e-3), "learner.warmup": (0.0, 0.05)}),
        ({GROUP: (4, 8)}, {PROMPTS: (4, 8)}),
        ({"task.reward.format_bonus": (0.0, 0.1)}, {"task.reward.format_bonus": (0.0, -0.1)}),
        ({"learner.packing": (True, False)}, {"learner.packing": (True, 0)}),
        ({"prompt.system": (None, "Think.")}, {"prompt.system": (None, "Think more.")}),
        ({}, {}),
    ],
)
def test_these_are_two(one: dict, other: dict) -> None:
    assert not same_idea(one, other)
    assert not same_idea(other, one)


numbers = st.floats(1e-6, 1e6)


@given(old=numbers, new=numbers, other=numbers)
def test_being_one_idea_is_mutual_and_a_halved_step_never_is(old: float, new: float, other: float) -> None:
    whole, beside = {RATE: (old, new)}, {RATE: (old, other)}
    assert same_idea(whole, beside) == same_idea(beside, whole)
    assert same_idea(whole, whole) == (old != new)
    half = math.sqrt(old * new)
    if math.isclose(old, new, rel_tol=1e-9):
        return
    assert not same_idea(whole, {RATE: (old, half)})


# --- what blocks ---------------------------------------------------------------------------------------------


def test_a_near_equal_value_or_another_name_is_the_same_dead_end() -> None:
    up = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    failed = attempt(up, number=3, delta=-0.012, values={RATE: (2e-4, 4.1e-4)}, hypothesis="mine", variant="more")
    after = plan(BOOK, recipe=tiny(), history=[failed], campaign="now", only="lr-peak")
    assert "up" not in {proposal.variant for proposal in after.proposals}
    assert skipped(after, "lr-peak/up").startswith("tried as #3 mine/more: discard, -1.2pp; returns when one of ")
    far = replace(failed, values={RATE: (2e-4, 6e-4)}, signature="")
    assert named(plan(BOOK, recipe=tiny(), history=[far], campaign="now"), "lr-peak", "up")


def test_the_reason_of_the_skip_names_the_attempt_and_what_would_bring_it_back() -> None:
    cosine = named(plan(BOOK, recipe=tiny()), "lr-cosine", "to-a-tenth")
    failed = attempt(cosine, number=3, delta=-0.012)
    after = plan(BOOK, recipe=tiny(), history=[failed], campaign="now")
    assert skipped(after, "lr-cosine") == (
        "tried as #3 lr-cosine/to-a-tenth: discard, -1.2pp; returns when one of learner.learning_rate, "
        "learner.warmup, learner.optimizer, learner.beta2, ... changes"
    )
    elsewhere = plan(BOOK, recipe=tiny(), history=[failed], campaign="later")
    assert skipped(elsewhere, "lr-cosine").startswith("tried as #3 lr-cosine/to-a-tenth in now: discard, -1.2pp; ")


def test_a_keep_elsewhere_leaves_a_dead_end_one() -> None:
    """The recipe is another one now, but nothing that the result leaned on has changed."""
    first = plan(BOOK, recipe=tiny())
    failed = attempt(named(first, "explore-temperature", "up"), number=1)
    kept = named(first, "lr-peak", "up")
    after = plan(BOOK, recipe=kept.recipe, history=[failed, attempt(kept, "keep", number=2)], campaign="now")
    assert "up" not in {p.variant for p in after.proposals if p.hypothesis == "explore-temperature"}


@pytest.mark.parametrize("reason", ["underpowered: 2 steps", "tainted: slow", "interrupted", "superseded by #4"])
def test_an_open_try_blocks_nothing_once_the_incumbent_is_another(reason: str) -> None:
    first = plan(BOOK, recipe=tiny())
    unclear = attempt(named(first, "explore-temperature", "up"), number=1, reason=reason)
    kept = named(first, "lr-peak", "up")
    after = plan(BOOK, recipe=kept.recipe, history=[unclear, attempt(kept, "keep", number=2)], campaign="now")
    assert named(after, "explore-temperature", "up")


def test_a_try_that_screening_has_rejected_is_a_dead_end() -> None:
    first = plan(BOOK, recipe=tiny())
    rejected = attempt(named(first, "explore-temperature", "up"), number=1, reason="screened out: -4pp")
    assert rejected.dead_end
    after = plan(BOOK, recipe=tiny(), history=[rejected], campaign="now", only="explore-temperature")
    assert "up" not in {proposal.variant for proposal in after.proposals}


def test_what_ran_after_a_fix_is_a_dead_end_too() -> None:
    far = named(plan(BOOK, recipe=tiny()), "lr-peak", "far-up")
    failed = attempt(far, number=1, ran={RATE: (2e-4, 4e-4)})
    after = plan(BOOK, recipe=tiny(), history=[failed], campaign="now", only="lr-peak")
    assert {proposal.variant for proposal in after.proposals} == {"down", "far-down"}


# --- what brings back ----------------------------------------------------------------------------------------


def test_a_kept_change_of_the_premise_brings_an_idea_back_and_says_so() -> None:
    first = plan(BOOK, recipe=tiny())
    failed = attempt(named(first, "lr-peak", "up"), number=3, delta=-0.012)
    kept = named(first, "batch-prompts", "fewer")
    history = [failed, attempt(kept, "keep", number=7)]
    after = named(plan(BOOK, recipe=kept.recipe, history=history, campaign="now"), "lr-peak", "up")
    assert (
        "back in the queue: the kept #7 batch-prompts/fewer moved rollout.prompts_per_cycle, on which "
        "#3 lr-peak/up, discard, -1.2pp, rested"
    ) in after.why


def test_a_keep_before_the_discard_brings_nothing_back() -> None:
    first = plan(BOOK, recipe=tiny())
    kept = named(first, "batch-prompts", "fewer")
    then = plan(BOOK, recipe=kept.recipe, history=[attempt(kept, "keep", number=1)], campaign="now")
    history = [attempt(kept, "keep", number=1), attempt(named(then, "lr-peak", "up"), number=2)]
    after = plan(BOOK, recipe=kept.recipe, history=history, campaign="now", only="lr-peak")
    assert "up" not in {proposal.variant for proposal in after.proposals}


def test_a_keep_that_this_recipe_does_not_have_brings_nothing_back() -> None:
    """That of an earlier campaign whose winner was never taken over."""
    first = plan(BOOK, recipe=tiny())
    failed = attempt(named(first, "lr-peak", "up"), number=3, campaign="before")
    kept = attempt(named(first, "batch-prompts", "fewer"), "keep", number=4, campaign="before")
    without = plan(BOOK, recipe=tiny(), history=[failed, kept], campaign="now", only="lr-peak")
    assert "up" not in {proposal.variant for proposal in without.proposals}
    adopted = named(first, "batch-prompts", "fewer").recipe
    assert named(plan(BOOK, recipe=adopted, history=[failed, kept], campaign="now"), "lr-peak", "up")


def test_an_idea_that_failed_again_after_its_return_waits_for_the_next_change() -> None:
    first = plan(BOOK, recipe=tiny())
    failed = attempt(named(first, "lr-peak", "up"), number=1)
    kept = named(first, "batch-prompts", "fewer")
    history = [failed, attempt(kept, "keep", number=2)]
    again = attempt(named(plan(BOOK, recipe=kept.recipe, history=history, campaign="now"), "lr-peak", "up"), number=3)
    after = plan(BOOK, recipe=kept.recipe, history=[*history, again], campaign="now", only="lr-peak")
    assert "up" not in {proposal.variant for proposal in after.proposals}


def test_failures_whose_premise_has_moved_no_longer_narrow_the_step() -> None:
    first = plan(BOOK, recipe=tiny())
    failed = [attempt(named(first, "lr-peak", way), number=n) for n, way in ((1, "up"), (2, "down"))]
    narrow = named(plan(BOOK, recipe=tiny(), history=failed, campaign="now"), "lr-peak", "up")
    assert narrow.recipe.learner.learning_rate == pytest.approx(2e-4 * 2**0.5, rel=1e-3)
    kept = named(first, "batch-prompts", "fewer")
    history = [*failed, attempt(kept, "keep", number=3)]
    whole = named(plan(BOOK, recipe=kept.recipe, history=history, campaign="now"), "lr-peak", "up")
    assert whole.recipe.learner.learning_rate == pytest.approx(4e-4)


@pytest.mark.parametrize("other", [{"campaign": "before"}, {"hypothesis": "refine-learning-rate"}], ids=str)
def test_dead_ends_of_an_earlier_campaign_or_another_name_narrow_the_step_instead_of_closing_the_knob(
    other: dict[str, str],
) -> None:
    first = plan(BOOK, recipe=tiny())
    failed = [attempt(named(first, "lr-peak", way), number=n, **other) for n, way in ((1, "up"), (2, "down"))]
    after = named(plan(BOOK, recipe=tiny(), history=failed, campaign="now"), "lr-peak", "up")
    assert after.recipe.learner.learning_rate == pytest.approx(2e-4 * 2**0.5, rel=1e-3)
    elsewhere = tiny(learner__learning_rate=1e-3)
    moved = plan(BOOK, recipe=elsewhere, history=failed, campaign="now")
    assert named(moved, "lr-peak", "up").recipe.learner.learning_rate == pytest.approx(2e-3)


def test_a_hypothesis_may_name_further_premises() -> None:
    hypothesis = BOOK.hypotheses["explore-temperature"].model_copy(update={"premise": [RATE]})
    book = replace(BOOK, hypotheses=BOOK.hypotheses | {"explore-temperature": hypothesis})
    first = plan(book, recipe=tiny())
    failed = attempt(named(first, "explore-temperature", "up"), number=1)
    kept = named(first, "lr-peak", "up")
    history = [failed, attempt(kept, "keep", number=2)]
    assert named(plan(book, recipe=kept.recipe, history=history, campaign="now"), "explore-temperature", "up")


def test_an_idea_that_was_tried_without_a_symptom_may_answer_one_of_a_later_incumbent() -> None:
    first = plan(BOOK, recipe=tiny())
    kept = named(first, "lr-peak", "up")
    collapsed = run(recipe=kept.recipe, entropy=0.02, unique_share=0.1)
    idea = named(first, "explore-temperature", "up")
    for symptom, comes_back in ((None, True), ("entropy_collapse", False)):
        history = [attempt(idea, number=1, symptom=symptom), attempt(kept, "keep", number=2)]
        after = plan(BOOK, recipe=kept.recipe, observation=collapsed, history=history, campaign="now")
        found = [p for p in after.proposals if (p.hypothesis, p.variant) == ("explore-temperature", "up")]
        assert bool(found) == comes_back
        if found:
            line = next(line for line in found[0].why if line.startswith("back in the queue: it answers "))
            assert line.endswith("of the new incumbent; #1 explore-temperature/up, discard, had none")


# --- out of memory -------------------------------------------------------------------------------------------

TOKENS = "learner.microbatch_tokens"


def context_of(recipe: Recipe) -> dict[str, Any]:
    return {key: get_key(recipe, key) for key in (*SIZES, *COSTS) if key != TOKENS}


def out_of_memory(recipe: Recipe) -> tuple[Attempt, Constraint]:
    proposal = named(plan(BOOK, recipe=recipe), "batch-microbatch", "larger-batch")
    crashed = attempt(proposal, "crash", number=4, crash_class="oom", reason="oom: out of memory")
    size = proposal.recipe.learner.microbatch_tokens
    reason = f"out of memory at {TOKENS} = {size}"
    return crashed, Constraint(TOKENS, reason, at_most=size - 1, context=context_of(proposal.recipe), experiment=4)


def after_keep(values: dict[str, Any]) -> Ranking:
    recipe = tiny()
    crashed, limit = out_of_memory(recipe)
    kept = Attempt(
        "kept", "batch", {key: (get_key(recipe, key), value) for key, value in values.items()}, "", "keep",
        campaign="now", number=6,
    )  # fmt: skip
    return plan(
        BOOK, recipe=with_keys(recipe, values), history=[crashed, kept], campaign="now", constraints=[limit],
        only="batch-microbatch", machine=machine(1),
    )  # fmt: skip


def test_a_limit_of_memory_is_lifted_by_a_keep_that_needs_less_and_the_plan_says_so() -> None:
    freed = named(after_keep({"learner.gradient_checkpointing": True}), "batch-microbatch", "larger-batch")
    assert (
        "back in the queue: the kept #6 kept moved learner.gradient_checkpointing, on which "
        "#4 batch-microbatch/larger-batch, crash, oom, rested"
    ) in freed.why
    assert (
        "limit lifted: the kept #6 kept moved learner.gradient_checkpointing 'auto' -> True since out of memory at "
        "learner.microbatch_tokens = 8192"
    ) in freed.why
    for lighter_now in ({"rollout.max_new_tokens": 3}, {"model.lora": {"rank": 4}}):
        assert named(after_keep(lighter_now), "batch-microbatch", "larger-batch")


@pytest.mark.parametrize(
    "values",
    [{"learner.gradient_checkpointing": False}, {"rollout.max_new_tokens": 8}, {"rollout.temperature": 0.7}],
    ids=str,
)
def test_a_keep_that_needs_more_or_as_much_lifts_nothing(values: dict[str, Any]) -> None:
    after = after_keep(values)
    assert all(p.recipe.learner.microbatch_tokens < 8192 for p in after.proposals)


def test_without_a_keep_or_without_its_context_a_limit_stays() -> None:
    crashed, limit = out_of_memory(tiny())
    ranking = plan(BOOK, recipe=tiny(), history=[crashed], campaign="now", constraints=[limit])
    assert all(p.recipe.learner.microbatch_tokens < 8192 for p in ranking.proposals)
    light = tiny(learner__gradient_checkpointing=True)
    kept = Attempt(
        "k", "batch", {"learner.gradient_checkpointing": ("auto", True)}, "", "keep", campaign="now", number=6
    )
    blind = replace(limit, context={})
    ranking = plan(BOOK, recipe=light, history=[crashed, kept], campaign="now", constraints=[blind])
    assert all(p.recipe.learner.microbatch_tokens < 8192 for p in ranking.proposals)
    lean = plan(BOOK, recipe=light, history=[crashed], campaign="now", constraints=[limit])
    assert all(p.recipe.learner.microbatch_tokens < 8192 for p in lean.proposals)  # nobody has kept that


def test_only_a_later_keep_that_needs_less_and_that_the_idea_does_not_undo_lifts_a_limit() -> None:
    _, limit = out_of_memory(tiny())
    checkpointing = "learner.gradient_checkpointing"

    def lifted(value: object, number: int, moves: dict[str, tuple[Any, Any]] | None = None) -> str:
        kept = Attempt("k", "batch", {checkpointing: ("auto", value)}, "", "keep", campaign="now", number=number)
        recipe = tiny(learner__gradient_checkpointing=value)
        return DeadEnds(BOOK, [kept], recipe, "now").lifted(limit, moves or {})

    assert lifted(True, 5).startswith("limit lifted: the kept #5 k moved learner.gradient_checkpointing 'auto' -> True")
    assert lifted(False, 5) == ""
    assert lifted(True, 3) == ""
    assert lifted(True, 5, {checkpointing: (True, "auto")}) == ""


def test_the_playbook_orders_memory_as_the_remedies_do() -> None:
    memory = BOOK.premises["memory"]
    assert set(memory.keys) == {*SIZES, *COSTS}
    for key in memory.keys:
        values = [*COSTS[key]] if key in COSTS else [None, 8, 16] if key == "model.lora.rank" else [32, 64]
        for now, then in itertools.product(values, values):
            adapters = {"model.lora.rank": 16} if key == "model.quantize" else {}
            values_now = {"rollout.max_total_sequence_length": 128, **adapters} | ({} if now is None else {key: now})
            recipe = with_keys(tiny(), values_now)
            remedies_say = not Limit("seed", -1.0, {key: then}, "").forbids(recipe)
            assert lighter(memory, key, now, then) == remedies_say, (key, now, then)


# --- the whole of it -----------------------------------------------------------------------------------------


def moved_premise(history: list[Attempt], position: int, recipe: Recipe) -> bool:
    """Said again, in other words than the planner's."""
    premise = DeadEnds(BOOK, history, recipe, "now").premise(history[position])
    return any(
        below(key, premise)
        for later in history[position + 1 :]
        if later.outcome == "keep"
        for key in flat(later.values)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "ideas"), [(1, 16), (0, 40), (1, 40)])
def test_no_dead_end_is_tried_again_before_a_keep_has_moved_its_premise(seed: int, ideas: int) -> None:
    lot = random.Random(seed)
    recipe, history = tiny(), list[Attempt]()
    returned = 0
    for number in range(1, ideas + 1):
        ranking = plan(BOOK, recipe=recipe, history=history, campaign="now", machine=machine(1))
        for proposal in ranking.proposals:
            twins = [i for i, one in enumerate(history) if one.dead_end and same_idea(one.values, proposal.values)]
            assert all(moved_premise(history, i, recipe) for i in twins)
            assert bool(twins) == any(line.startswith("back in the queue") for line in proposal.why)
            returned += bool(twins)
        chosen: Proposal = lot.choice(ranking.proposals[:8])
        outcome = lot.choices(["keep", "discard", "crash"], [1, 4, 1])[0]
        result = (
            {"delta": None, "crash_class": lot.choice(["oom", "numeric"])} if outcome == "crash" else {"delta": 0.0}
        )
        history.append(attempt(chosen, outcome, number=number, **result))
        recipe = chosen.recipe if outcome == "keep" else recipe
    assert returned


@pytest.mark.parametrize("other", [math.inf, -math.inf, math.nan, 0.0, -1.0, 10**400, 1e-320])
def test_a_number_is_infinitely_far_from_what_no_logarithm_reaches(other: float) -> None:
    assert distance(other, 1e300) == distance(1e300, other) == math.inf
    assert distance(other, other) == (0.0 if other == other else math.inf)
