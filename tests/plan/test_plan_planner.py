"""The ranking: symptoms lead, history counts, nothing is tried twice, every score is explained."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import BOOK, attempt, machine, named, run, shipped, tiny

from agent.errors import UsageError
from agent.plan.fit import lacking
from agent.plan.memory import FAILED_AGAIN, Attempt, Constraint
from agent.plan.planner import Ranking, plan, random_order
from agent.recipe.change import LEARNING_RATE_KEYS, TEMPERATURE_KEYS


def ideas(ranking: Ranking, count: int = 3) -> list[str]:
    return [proposal.hypothesis for proposal in ranking.proposals[:count]]


# --- symptoms lead -----------------------------------------------------------------------------------------


def test_the_worst_symptom_leads_and_the_proposal_says_why() -> None:
    ranking = plan(BOOK, recipe=tiny(), observation=run(truncation_rate=0.63), machine=machine())
    first = ranking.proposals[0]
    assert first.hypothesis == "batch-lengths-together"
    assert first.symptom == "truncated_completions"
    assert first.evidence == "truncation_rate 0.63 > 0.10 (last third of cycles)"
    assert any("severity 1.00, fit 0.95" in line for line in first.why)
    assert first.subject == "batch: completion limit and total length together, 5 -> 10"
    assert first.recipe.rollout.max_new_tokens == 10
    assert first.watch == BOOK.axes["batch"].watch
    assert ranking.best()[0] == first


def test_a_missing_format_leads_to_schema_examples_or_prefix() -> None:
    strict = shipped("smollm2-strict")
    sick = run(recipe=strict, format_rate=0.01, pass_rate=0.0, start={"format_rate": 0.01, "pass_rate": 0.0}, kept=0)
    assert {"prompt-answer-schema", "prompt-worked-examples"} <= set(ideas(plan(BOOK, recipe=strict, observation=sick)))


def test_scores_fall_and_every_factor_is_told() -> None:
    ranking = plan(BOOK, recipe=tiny(), observation=run(truncation_rate=0.63), machine=machine(1))
    scores = [proposal.score for proposal in ranking.proposals]
    assert scores == sorted(scores, reverse=True)
    for proposal in ranking.proposals:
        need = float(re.fullmatch(r"need ([\d.]+)", proposal.why[0]).group(1))  # type: ignore[union-attr]  # it matches
        product = need
        for line in proposal.why[1:]:
            factor = re.match(r"x([\d.]+) ", line)
            product *= float(factor.group(1)) if factor else 1.0
        assert proposal.score == pytest.approx(product, rel=0.1, abs=0.005)


def test_subjects_have_the_form_that_commits_need() -> None:
    for recipe in (tiny(), shipped("smollm2-strict")):
        for proposal in plan(BOOK, recipe=recipe, machine=machine(8, packages=("flash_attn",))).proposals:
            assert re.fullmatch(rf"{proposal.axis}: [^\n]+, [^\n]+ -> [^\n]+", proposal.subject)
            assert len(proposal.subject) <= 110


def test_without_telemetry_priors_decide() -> None:
    ranking = plan(BOOK, recipe=tiny())
    assert ranking.findings == []
    assert ideas(ranking, 1) == ["lr-peak"]
    assert "no symptom asks for it" in ranking.proposals[0].why[1]


def test_a_noisy_signal_is_answered_by_an_action_not_a_change() -> None:
    ranking = plan(BOOK, recipe=tiny(), observation=replace(run(), noise=0.1))
    advice = {a.action: a for a in ranking.actions}
    assert advice["more-held-out-prompts"].values["evaluation.search_prompts"] == (512, 1024)
    assert "run_noise 0.10 > 0.05" in advice["more-held-out-prompts"].why


# --- the machine -------------------------------------------------------------------------------------------


def test_what_the_machine_lacks_is_the_reason_of_the_skip() -> None:
    skipped = {s.hypothesis: s.reason for s in plan(BOOK, recipe=tiny(), machine=machine(1)).skipped}
    assert skipped["async-split"] == "needs 2 accelerators or more, this machine has 1"
    assert (
        "is not installed" in skipped["sync-trainer-backend"]
        or "built-in" in skipped["sync-trainer-backend"]
        or "model.source" in skipped["sync-trainer-backend"]
    )
    assert "needs 1 accelerators" not in skipped.get("backend-compile", "")


def test_resource_rules_reorder_by_number_of_accelerators() -> None:
    idle = replace(run(recipe=shipped("smollm2-arithmetic"), seconds={"generate": 0.5, "train": 0.1, "wait": 0.4}))
    eight = plan(BOOK, recipe=shipped("smollm2-arithmetic"), observation=idle, machine=machine(8))
    assert eight.proposals[0].axis == "asynchronous"
    assert any("eight or more" in line for line in eight.proposals[0].why)
    one = plan(BOOK, recipe=shipped("smollm2-arithmetic"), observation=idle, machine=machine(1))
    assert all(proposal.axis != "asynchronous" for proposal in one.proposals)


# --- history -----------------------------------------------------------------------------------------------


def test_never_the_same_effective_recipe_twice() -> None:
    history: list[Attempt] = []
    seen = {tiny().signature()}
    for _ in range(200):
        ranking = plan(BOOK, recipe=tiny(), history=history, campaign="now", only="learning-rate")
        if not ranking.proposals:
            break
        signature = ranking.proposals[0].recipe.signature()
        assert signature not in seen
        seen.add(signature)
        history.append(attempt(ranking.proposals[0]))
    assert not ranking.proposals
    assert ranking.best() == (None, ranking.note)
    assert ranking.note.startswith("no idea of learning-rate is left: ")
    assert "tried already" in ranking.note
    skipped = {s.hypothesis: s.reason for s in ranking.skipped}
    assert "tried as lr-cosine/to-a-tenth: discard; returns when one of " in skipped["lr-cosine"]


def test_two_hypotheses_that_make_the_same_recipe_are_proposed_once() -> None:
    ranking = plan(BOOK, recipe=tiny(rollout__temperature=0.5), observation=run(), machine=machine(8))
    signatures = [proposal.recipe.signature() for proposal in ranking.proposals]
    assert len(signatures) == len(set(signatures))


def test_no_proposal_moves_learning_rate_and_temperature_together() -> None:
    for proposal in plan(BOOK, recipe=tiny(), machine=machine(8)).proposals:
        rate = any(key.startswith(LEARNING_RATE_KEYS) for key in proposal.values)
        assert not (rate and any(key.startswith(TEMPERATURE_KEYS) for key in proposal.values))


def test_the_axis_is_changed_after_three_fruitless_tries() -> None:
    sick = run(pass_rate=0.15, loss=0.9, entropy=1.0, select_metric=0.18)
    history: list[Attempt] = []
    axes = []
    for _ in range(4):
        ranking = plan(BOOK, recipe=tiny(), observation=sick, history=history, campaign="now", only=None)
        first = next((p for p in ranking.proposals if p.axis == "learning-rate"), ranking.proposals[0])
        axes.append(ranking.proposals[0].axis)
        history.append(attempt(first))
    assert axes[0] == "learning-rate"
    assert axes[-1] != "learning-rate"
    late = plan(BOOK, recipe=tiny(), observation=sick, history=history, campaign="now")
    rate = next(p for p in late.proposals if p.axis == "learning-rate")
    assert any("time for another axis" in line for line in rate.why)


def test_a_success_narrows_the_step_and_both_directions_stay_open() -> None:
    first = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    assert first.values["learner.learning_rate"] == (2e-4, 4e-4)
    history = [attempt(first, "keep")]
    after = plan(BOOK, recipe=first.recipe, history=history, campaign="now")
    up, down = named(after, "lr-peak", "up"), named(after, "lr-peak", "down")
    assert up.recipe.learner.learning_rate == pytest.approx(4e-4 * 2**0.5, rel=1e-4)
    assert down.recipe.learner.learning_rate == pytest.approx(4e-4 / 2**0.5, rel=1e-4)
    assert any(line.startswith("narrowed after 1 success: x1.41 instead of x2") for line in up.why)


def test_a_failure_one_way_does_not_speak_against_the_other_way() -> None:
    before = plan(BOOK, recipe=tiny())
    after = plan(BOOK, recipe=tiny(), history=[attempt(named(before, "lr-peak", "up"))], campaign="now")
    down = named(after, "lr-peak", "down")
    assert not any("has failed before" in line for line in down.why)
    assert any("has failed before" in line for line in named(after, "lr-peak", "far-up").why)


def test_both_ways_failed_narrows_instead_of_repeating() -> None:
    before = plan(BOOK, recipe=tiny())
    history = [attempt(named(before, "explore-temperature", v)) for v in ("up", "down")]
    after = plan(BOOK, recipe=tiny(), history=history, campaign="now")
    up = named(after, "explore-temperature", "up")
    assert up.recipe.rollout.temperature == pytest.approx(1.3**0.5, rel=1e-4)
    assert any("both ways failed" in line for line in up.why)


def test_adapters_at_ten_times_the_rate_are_no_step_of_the_rate() -> None:
    before = plan(BOOK, recipe=tiny())
    history = [attempt(named(before, "lr-peak", way)) for way in ("up", "down")]
    adapters = named(plan(BOOK, recipe=tiny(), history=history, campaign="now"), "batch-lora", "adapters")
    assert adapters.recipe.learner.learning_rate == pytest.approx(10 * 2e-4)


def test_what_a_schedule_has_to_beat_is_itself_at_a_constant_rate() -> None:
    """With the warm-up that comes with it, which may be all of the gain; where nothing does, that is the incumbent."""
    ranking = plan(BOOK, recipe=tiny())
    held = named(ranking, "lr-hold-then-decay", "last-fifth")
    assert held.comparator is not None
    assert (held.comparator.learner.lr_schedule.kind, held.comparator.learner.warmup) == ("constant", 0.05)
    assert named(ranking, "lr-cosine", "to-a-tenth").comparator is None
    listed = tiny(learner__lr_schedule={"kind": "list", "values": [1.0, 0.5]})
    for proposal in plan(BOOK, recipe=listed).proposals:
        if proposal.comparator is not None:
            assert proposal.comparator.learner.lr_schedule.kind == "constant"


@pytest.mark.parametrize(
    ("form", "recipe", "words"),
    [
        ("backend-engine/native", {}, "needs rollout.engine to be 'hf'"),
        ("batch-gradient-checkpointing/off", {}, "needs learner.gradient_checkpointing to be True"),
        ("reward-threshold/lower", {}, "needs task.verifier.kind to be other than"),
        ("reward-scale/up", {}, "needs selection.reward_threshold above 1"),
        ("reward-clip/unit", {}, "needs task.reward.scale above 1"),
        ("explore-temperature-schedule/rising", {"rollout__temperature": 1.3}, "needs rollout.temperature below 1.25"),
        ("explore-temperature-schedule/falling", {"rollout__temperature": 0.7}, "needs rollout.temperature above 0.75"),
        ("explore-temperature/as-the-model-has-it", {"rollout__temperature": 1.2}, "needs rollout.temperature below 1"),
        ("explore-temperature/no-hotter-than-the-model", {}, "needs rollout.temperature above 1"),
    ],
)
def test_what_would_change_nothing_or_the_wrong_way_is_not_tried(form: str, recipe: dict[str, Any], words: str) -> None:
    hypothesis, _, variant = form.partition("/")
    entry = BOOK.hypotheses[hypothesis]
    chosen = next(one for one in entry.variants if one.name == variant)
    assert words in (lacking(entry, chosen, tiny(**recipe), machine=None) or "")


def test_a_kept_change_of_batch_queues_the_learning_rate() -> None:
    batch = named(plan(BOOK, recipe=tiny()), "batch-prompts", "fewer")
    after = plan(BOOK, recipe=batch.recipe, history=[attempt(batch, "keep")], campaign="now")
    assert after.proposals[0].hypothesis in ("lr-peak", "sync-retune-rate")
    assert any("queued by the kept batch-prompts" in line for line in after.proposals[0].why)
    done = [attempt(batch, "keep"), attempt(after.proposals[0])]
    later = plan(BOOK, recipe=batch.recipe, history=done, campaign="now")
    assert not any("queued by" in line for p in later.proposals for line in p.why)


def test_earlier_campaigns_count_half() -> None:
    first = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    here = plan(BOOK, recipe=tiny(), history=[attempt(first)], campaign="now")
    there = plan(BOOK, recipe=tiny(), history=[attempt(first, campaign="before")], campaign="now")
    assert named(here, "lr-peak", "far-up").score < named(there, "lr-peak", "far-up").score
    assert named(there, "lr-peak", "far-up").score < named(plan(BOOK, recipe=tiny()), "lr-peak", "far-up").score


def test_an_underpowered_try_does_not_count_against_its_axis() -> None:
    first = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    open_try = attempt(first, reason="underpowered: 2 optimizer steps")
    after = plan(BOOK, recipe=tiny(), history=[open_try], campaign="now")
    assert not any("tries kept" in line for proposal in after.proposals for line in proposal.why)
    others = [proposal for proposal in after.proposals if proposal.hypothesis != "lr-peak"]
    assert not any("failed before" in line for proposal in others for line in proposal.why)


def test_after_an_underpowered_try_other_ideas_come_before_further_forms_of_it() -> None:
    """It may still be right in another form; but two ideas that answer the same symptom as well go first."""
    first = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    before = named(plan(BOOK, recipe=tiny(), tried=[first.recipe.signature()]), "lr-peak", "far-up")
    history = [attempt(first, reason="underpowered: 0 optimizer steps")]
    after = named(plan(BOOK, recipe=tiny(), history=history, campaign="now"), "lr-peak", "far-up")
    assert after.score <= FAILED_AGAIN * before.score
    assert any("lr-peak has failed before" in line for line in after.why)
    tainted = [attempt(first, reason="tainted: 40% fewer tokens a second")]
    again = named(plan(BOOK, recipe=tiny(), history=tainted, campaign="now"), "lr-peak", "far-up")
    assert again.score == pytest.approx(before.score)


def test_a_limit_learned_from_a_crash_is_respected() -> None:
    limit = Constraint("learner.microbatch_tokens", "8192 ran out of memory (experiment 4)", at_most=8191)
    ranking = plan(BOOK, recipe=tiny(), constraints=[limit], machine=machine(1))
    assert all(p.recipe.learner.microbatch_tokens < 8192 for p in ranking.proposals)
    free = plan(BOOK, recipe=tiny(), machine=machine(1))
    assert any(p.recipe.learner.microbatch_tokens >= 8192 for p in free.proposals)
    eager = Constraint("backend.attention", "crashed", not_value="eager")
    held = Constraint("backend.attention", "all runs have sdpa", held_at="sdpa")
    assert held.broken_by("eager")
    assert not held.broken_by("sdpa")
    assert all(
        p.values.get("backend.attention", ("", ""))[1] != "eager"
        for p in plan(BOOK, recipe=tiny(), constraints=[eager]).proposals
    )


def test_what_moves_only_what_is_held_for_all_runs_is_not_tried_whatever_it_moves_it_to() -> None:
    free = plan(BOOK, recipe=tiny())
    moved = {one.values["backend.attention"][1] for one in free.proposals if set(one.values) == {"backend.attention"}}
    assert moved
    for held in moved:
        ranking = plan(BOOK, recipe=tiny(), constraints=[Constraint("backend.attention", "sdpa broke", held_at=held)])
        assert not any(set(one.values) == {"backend.attention"} for one in ranking.proposals)
        assert any(f"{held!r} is what runs have already: sdpa broke" in one.reason for one in ranking.skipped)


@pytest.mark.parametrize(("samples", "cap", "tried"), [(2, 4, set()), (4, 4, {"fewer"}), (8, 4, {"more", "fewer"})])
def test_no_more_samples_are_kept_than_a_prompt_has(samples: int, cap: int, tried: set[str]) -> None:
    recipe = tiny(rollout__samples_per_prompt=samples, selection__max_per_prompt=cap)
    ranking = plan(BOOK, recipe=recipe)
    moved = {one.variant for one in ranking.proposals if set(one.values) == {"selection.max_per_prompt"}}
    assert moved & {"more", "fewer"} == tried


def test_a_schedule_brings_its_constant_rate_comparator() -> None:
    constant = named(plan(BOOK, recipe=tiny()), "lr-exponential", "standard")
    assert constant.comparator is None  # the incumbent is the comparator
    decayed = tiny(learner__lr_schedule__kind="exponential")
    linear = named(plan(BOOK, recipe=decayed), "lr-linear", "to-a-tenth")
    assert linear.comparator is not None
    assert linear.comparator.learner.lr_schedule.kind == "constant"


# --- the rest ----------------------------------------------------------------------------------------------


def test_only_an_axis_or_a_hypothesis() -> None:
    axis = plan(BOOK, recipe=tiny(), only="learning-rate")
    assert {p.axis for p in axis.proposals} == {"learning-rate"}
    assert {p.hypothesis for p in plan(BOOK, recipe=tiny(), only="lr-peak").proposals} == {"lr-peak"}
    with pytest.raises(UsageError, match="did you mean learning-rate"):
        plan(BOOK, recipe=tiny(), only="learning_rate")
    with pytest.raises(UsageError, match="did you mean explore-temperature"):
        plan(BOOK, recipe=tiny(), only="explore-temprature")


def test_the_same_arguments_give_the_same_ranking_and_the_seed_only_breaks_ties() -> None:
    def order(seed: int) -> list[tuple[str, str]]:
        return [(p.hypothesis, p.variant) for p in plan(BOOK, recipe=tiny(), observation=run(), seed=seed).proposals]

    assert order(0) == order(0)
    assert sorted(order(0)) == sorted(order(1))
    by_score = [
        sorted(
            (round(p.score, 9), p.hypothesis) for p in plan(BOOK, recipe=tiny(), observation=run(), seed=seed).proposals
        )
        for seed in (0, 1)
    ]
    assert by_score[0] == by_score[1]
    assert order(0) != order(1)


def test_a_random_order_shuffles_the_same_proposals() -> None:
    ranked = plan(BOOK, recipe=tiny(), machine=machine()).proposals
    shuffled = random_order(BOOK, recipe=tiny(), machine=machine(), rng=random.Random(1))
    assert shuffled != ranked
    assert {p.recipe.signature() for p in shuffled} == {p.recipe.signature() for p in ranked}
    assert [p.subject for p in random_order(BOOK, recipe=tiny(), machine=machine(), rng=random.Random(1))] == [
        p.subject for p in shuffled
    ]
