"""What is done about a crash, checked by hand: which keys, which values, and when nothing is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.contract import CRASH_CLASSES, FIXES, CrashClass, Phase
from agent.recipe.files import recipe_from, with_keys
from agent.recipe.schema import Recipe, leaf_keys
from agent.run.diagnosis import Diagnosis
from agent.run.remedies import Remedy, moved_keys, propose_remedy, repair_values, respond

PARENT = recipe_from(
    {
        "model": {"source": "builtin:tiny", "lora": {"rank": 16}},
        "task": {"dataset": "builtin:addition"},
        "rollout": {"slots": 64, "prompts_per_cycle": 64, "samples_per_prompt": 8, "max_new_tokens": 64},
        "learner": {"microbatch_tokens": 4096, "gradient_accumulation": 1, "learning_rate": 1e-4},
        "budget": {"cycles": 4},
    },
    where="test",
)


def change(**values: Any) -> Recipe:
    return with_keys(PARENT, {key.replace("__", "."): value for key, value in values.items()})


def crash(
    crash_class: CrashClass,
    evidence: str = "",
    *,
    signature: str = "s",
    key: str | None = None,
    suggestion: Any = None,
    phase: Phase | None = None,
    reason: str = "",
) -> Diagnosis:
    return Diagnosis(crash_class, reason or evidence, evidence, "traceback", signature, key, suggestion, phase)


def after(recipe: Recipe, remedy: Remedy | None) -> Recipe:
    assert remedy is not None
    return with_keys(recipe, remedy.values)


# --- oom ---------------------------------------------------------------------------------------------------


def test_oom_in_training_first_keeps_the_mathematics() -> None:
    recipe = change(learner__learning_rate=2e-4)
    remedy = propose_remedy(crash("oom", phase="train"), recipe=recipe, parent=PARENT)
    assert remedy is not None
    assert remedy.kind == "shrink"
    assert remedy.values == {"learner.microbatch_tokens": 2048, "learner.gradient_accumulation": 2}
    assert remedy.scope == "experiment"


def test_oom_after_a_larger_microbatch_halves_it_and_keeps_the_step() -> None:
    recipe = change(learner__microbatch_tokens=32768)
    first = propose_remedy(crash("oom", phase="train"), recipe=recipe, parent=PARENT)
    assert first is not None
    assert first.values == {"learner.microbatch_tokens": 16384, "learner.gradient_accumulation": 2}
    smaller = after(recipe, first)
    second = propose_remedy(crash("oom", phase="train"), recipe=smaller, parent=PARENT, history=[first])
    assert second is not None
    assert second.values == {"learner.gradient_checkpointing": True}
    third = propose_remedy(
        crash("oom", phase="train"), recipe=after(smaller, second), parent=PARENT, history=[first, second]
    )
    assert third is not None
    assert third.values == {"learner.microbatch_tokens": 10240}  # half of the way from 16384 back to 4096


def test_oom_while_sampling_halves_the_rows_in_flight_not_the_microbatch() -> None:
    recipe = change(rollout__slots=512)
    remedy = propose_remedy(crash("oom", phase="generate"), recipe=recipe, parent=PARENT)
    assert remedy is not None
    assert remedy.values == {"rollout.slots": 256}
    # More slots than there are samples take nothing: it is the 64 x 8 = 512 rows that are halved.
    remedy = propose_remedy(crash("oom", phase="generate"), recipe=change(rollout__slots=4096), parent=PARENT)
    assert remedy is not None
    assert remedy.values == {"rollout.slots": 256}


def test_oom_then_shrinks_the_ideas_own_change_halfway_and_then_gives_up() -> None:
    recipe = change(rollout__max_new_tokens=512)
    diagnosis = crash("oom", phase="train")
    history: list[Remedy] = []
    for expected in (
        {"learner.microbatch_tokens": 2048, "learner.gradient_accumulation": 2},
        {"learner.gradient_checkpointing": True},
        {"rollout.max_new_tokens": 288},  # (512 + 64) / 2
    ):
        remedy = propose_remedy(diagnosis, recipe=recipe, parent=PARENT, history=history)
        assert remedy is not None
        assert remedy.values == expected
        recipe = after(recipe, remedy)
        history.append(remedy)
    answer = respond(diagnosis, recipe=recipe, parent=PARENT, history=history)
    assert answer.remedy is None
    assert "3 remedies" in answer.why
    assert answer.limit is not None


def test_oom_of_all_weights_is_not_undone_into_the_parent() -> None:
    recipe = change(model__lora=None)
    assert set(moved_keys(PARENT, recipe)) == {"model.lora"}
    first = propose_remedy(crash("oom", phase="train"), recipe=recipe, parent=PARENT)
    recipe = after(recipe, first)
    assert first is not None
    second = propose_remedy(crash("oom", phase="train"), recipe=recipe, parent=PARENT, history=[first])
    assert second is not None
    assert second.values == {"learner.gradient_checkpointing": True}
    recipe, tried = after(recipe, second), [first, second]
    third = respond(crash("oom", phase="train"), recipe=recipe, parent=PARENT, history=tried)
    assert third.remedy is None  # adapters again, with a smaller microbatch, would be the incumbent in disguise
    assert "nothing of the idea would be left" in third.why
    with_another = with_keys(recipe, {"learner.learning_rate": 2e-4})
    third = respond(crash("oom", phase="train"), recipe=with_another, parent=PARENT, history=tried)
    assert third.remedy is not None
    assert third.remedy.values["model.lora"]["rank"] == 16


def test_oom_without_a_change_of_ones_own_ends_with_fewer_rows() -> None:
    recipe, history = change(learner__learning_rate=2e-4), []
    for expected in ("learner.microbatch_tokens", "learner.gradient_checkpointing", "rollout.slots"):
        remedy = propose_remedy(crash("oom", phase="train"), recipe=recipe, parent=PARENT, history=history)
        assert remedy is not None
        assert expected in remedy.values
        recipe = after(recipe, remedy)
        history.append(remedy)


def test_oom_of_the_baseline_goes_on_with_smaller_steps_until_one_completion() -> None:
    recipe, sizes = PARENT, []
    for _ in range(10):
        remedy = propose_remedy(crash("oom", phase="train"), recipe=recipe, parent=recipe)
        assert remedy is not None
        if "learner.microbatch_tokens" not in remedy.values:
            break
        recipe = after(recipe, remedy)
        sizes.append(recipe.learner.microbatch_tokens)
    assert sizes == [2048, 1024, 512, 256, 128, 64]
    assert remedy.values == {"learner.gradient_checkpointing": True}


def test_a_limit_forbids_only_what_needs_at_least_as_much() -> None:
    recipe = change(rollout__slots=256)
    limit = respond(crash("oom", phase="generate"), recipe=recipe, parent=PARENT).limit
    assert limit is not None
    assert (limit.key, limit.below) == ("rollout.slots", 256.0)
    assert limit.forbids(recipe)
    assert limit.forbids(change(rollout__slots=512))
    assert limit.forbids(change(rollout__slots=256, rollout__max_new_tokens=128))
    assert not limit.forbids(change(rollout__slots=128))
    assert not limit.forbids(change(rollout__slots=512, rollout__max_new_tokens=16))  # shorter: not known to fail
    assert not limit.forbids(change(rollout__slots=512, learner__optimizer="sgd"))
    assert not limit.forbids(change(rollout__slots=512, model__source="other/model"))
    assert limit.forbids(change(rollout__slots=256, model__lora=None))  # all weights need more than adapters


# --- typo --------------------------------------------------------------------------------------------------


def test_a_named_key_takes_the_suggestion_and_then_the_parents_value() -> None:
    recipe = change(backend__attention="flash", learner__learning_rate=2e-4)
    diagnosis = crash("typo", key="backend.attention", suggestion="sdpa")
    first = propose_remedy(diagnosis, recipe=recipe, parent=PARENT)
    assert first is not None
    assert (first.kind, first.values) == ("fix", {"backend.attention": "sdpa"})
    without = crash("typo", key="backend.attention", suggestion="no such")
    second = propose_remedy(without, recipe=recipe, parent=PARENT)
    assert second is not None
    assert second.values == {"backend.attention": "auto"}


def test_a_fix_that_leaves_nothing_of_the_idea_is_none() -> None:
    recipe = change(backend__attention="flash")
    answer = respond(crash("typo", key="backend.attention"), recipe=recipe, parent=PARENT)
    assert answer.remedy is None
    assert "nothing of the idea would be left" in answer.why


def test_a_locked_key_is_not_mended() -> None:
    diagnosis = crash("typo", key="evaluation.search_prompts", suggestion=10)
    assert propose_remedy(diagnosis, recipe=change(learner__learning_rate=2e-4), parent=PARENT) is None


def test_a_shape_mistake_goes_back_by_the_key_that_the_message_names() -> None:
    recipe = with_keys(PARENT, {"model.lora.targets": ["q_prj"], "learner.learning_rate": 2e-4})
    diagnosis = crash("typo", "ValueError: Target modules {'q_prj'} not found in the base model.")
    remedy = propose_remedy(diagnosis, recipe=recipe, parent=PARENT)
    assert remedy is not None
    assert remedy.values == {"model.lora.targets": "all-linear"}
    unclear = respond(crash("typo", "TypeError: f() takes 1"), recipe=recipe, parent=PARENT)
    assert unclear.remedy is None


@pytest.mark.parametrize(
    ("values", "expected", "words"),
    [
        ({"learner.lerning_rate": 1e-3}, {"learner.learning_rate": 1e-3}, "learner.learning_rate is meant"),
        ({"rollout.learning_rate": 1e-3}, {"learner.learning_rate": 1e-3}, "learner.learning_rate is meant"),
        ({"learner.learning_rate": "5e-4"}, {"learner.learning_rate": 5e-4}, "'5e-4' -> 0.0005"),
        ({"selection.dedup": "no"}, {"selection.dedup": False}, "'no' -> False"),
        ({"rollout.samples_per_prompt": 12.0}, {"rollout.samples_per_prompt": 12}, ""),
        ({"learner.warmup": 0.9}, {"learner.warmup": 0.5}, "0.9 -> 0.5"),
        ({"selection.max_per_prompt": 0}, {"selection.max_per_prompt": 1}, "0 -> 1"),
        ({"learner.optimizer": "adam"}, {"learner.optimizer": "adamw"}, "'adam' -> 'adamw'"),
        (
            {"learner.learning_rate": -1.0, "rollout.temperature": 0.8},
            {"rollout.temperature": 0.8},
            "learner.learning_rate: -1.0 is not valid, the incumbent's 0.0001 stays",
        ),
        ({"learner.learning_rate": 2e-4}, {"learner.learning_rate": 2e-4}, ""),
    ],
)
def test_a_hypothesis_values_are_made_valid(values: dict[str, Any], expected: dict[str, Any], words: str) -> None:
    mended = repair_values(values, parent=PARENT)
    assert mended is not None
    assert with_keys(PARENT, mended[0]) == with_keys(PARENT, expected)
    assert words in mended[1]


def test_nothing_left_to_mend_is_none() -> None:
    assert repair_values({"learner.learning_rate": "fast"}, parent=PARENT) is None
    assert repair_values({"weather": 1}, parent=PARENT) is None


@settings(deadline=None, max_examples=150)
@example({"learner.learning_rate": math.inf})
@example({"rollout.slots": -math.inf})
@given(
    st.dictionaries(
        st.sampled_from([*sorted(leaf_keys()), "learner.lr", "nonsense"]),
        st.one_of(st.integers(-5, 10**9), st.floats(allow_nan=False), st.text(max_size=5), st.booleans(), st.none()),
        max_size=3,
    )
)
def test_mended_values_always_validate(values: dict[str, Any]) -> None:
    mended = repair_values(values, parent=PARENT)
    if mended is not None:
        with_keys(PARENT, mended[0])


# --- backend -----------------------------------------------------------------------------------------------


def test_the_shared_layer_is_changed_for_the_whole_campaign_after_a_probe() -> None:
    recipe = with_keys(change(learner__learning_rate=2e-4), {"backend.compile": True})
    parent = with_keys(PARENT, {"backend.compile": True})
    diagnosis = crash("backend", "Memory access fault by GPU node-1", signature="gpu-fault")
    history: list[Remedy] = []
    for _ in range(FIXES):
        remedy = propose_remedy(diagnosis, recipe=recipe, parent=parent, history=history)
        assert remedy is not None
        assert (remedy.kind, remedy.scope, remedy.needs_probe) == ("shared", "campaign", True)
        history.append(remedy)
    assert [remedy.values for remedy in history] == [{"backend.compile": False}, {}, {"backend.attention": "eager"}]
    assert history[1].env == {"HSA_ENABLE_SDMA": "0"}
    assert propose_remedy(diagnosis, recipe=recipe, parent=parent, history=history) is None


def test_a_matrix_library_that_fails_is_exchanged() -> None:
    diagnosis = crash("backend", "RuntimeError: CUDA error: HIPBLAS_STATUS_NOT_SUPPORTED when calling")
    remedy = propose_remedy(diagnosis, recipe=PARENT, parent=PARENT)
    assert remedy is not None
    assert remedy.env["ROCBLAS_USE_HIPBLASLT"] == "0"


def test_an_idea_that_asks_for_a_backend_which_fails_is_not_mended() -> None:
    answer = respond(crash("backend", "no flash"), recipe=change(backend__attention="flash"), parent=PARENT)
    assert answer.remedy is None
    assert not answer.stops_campaign
    assert "backend.attention" in answer.why


def test_a_wheel_without_code_for_the_gpu_stops_the_campaign() -> None:
    answer = respond(
        crash("backend", "hipErrorInvalidImage", signature="hip-code-object"), recipe=PARENT, parent=PARENT
    )
    assert answer.remedy is None
    assert answer.stops_campaign
    assert answer.missing is not None


# --- the rest ----------------------------------------------------------------------------------------------


def test_numeric_is_calmed_once() -> None:
    recipe = change(learner__learning_rate=8e-4)
    first = propose_remedy(crash("numeric"), recipe=recipe, parent=PARENT)
    assert first is not None
    assert (first.kind, first.values) == ("calm", {"learner.learning_rate": 4e-4})
    assert propose_remedy(crash("numeric"), recipe=recipe, parent=PARENT, history=[first]) is None
    half = propose_remedy(crash("numeric"), recipe=change(model__dtype="float16"), parent=PARENT)
    assert half is not None
    assert half.values == {"model.dtype": "bfloat16"}
    warm = propose_remedy(crash("numeric"), recipe=change(rollout__temperature=1.5), parent=PARENT)
    assert warm is not None
    assert warm.values == {"learner.max_grad_norm": 0.5}  # never the learning rate together with the temperature


def test_a_calm_rate_that_is_the_parents_leaves_nothing() -> None:
    answer = respond(crash("numeric"), recipe=change(learner__learning_rate=2e-4), parent=PARENT)
    assert answer.remedy is None
    assert "nothing of the idea" in answer.why


def test_a_hang_is_tried_once_more_and_a_time_limit_is_not() -> None:
    recipe = change(learner__learning_rate=2e-4)
    first = propose_remedy(crash("timeout", signature="hang"), recipe=recipe, parent=PARENT)
    assert first is not None
    assert (first.kind, first.values, first.env) == ("retry", {}, {})
    assert propose_remedy(crash("timeout", signature="hang"), recipe=recipe, parent=PARENT, history=[first]) is None
    assert propose_remedy(crash("timeout", signature="time_limit"), recipe=recipe, parent=PARENT) is None


def test_data_stops_the_campaign_unless_the_idea_brought_it() -> None:
    own = respond(crash("data", reason="gated repo"), recipe=change(model__source="a/b"), parent=PARENT)
    assert (own.remedy, own.stops_campaign) == (None, False)
    short = change(rollout__max_total_sequence_length=48, rollout__max_new_tokens=16)
    told = "no prompt fits rollout.max_total_sequence_length: 48 (the shortest has 50 tokens)"
    lengths = respond(crash("data", reason=told), recipe=short, parent=PARENT)
    assert (lengths.remedy, lengths.stops_campaign) == (None, False)
    assert lengths.why == f"the idea asks for what is not there (rollout.max_total_sequence_length): {told}"
    common = respond(crash("data", reason="row 3"), recipe=change(learner__learning_rate=2e-4), parent=PARENT)
    assert (common.remedy, common.stops_campaign, common.missing) == (None, True, "row 3")


def test_a_full_disk_stops_the_campaign_and_a_taken_port_does_not() -> None:
    full = respond(crash("resource", reason="disk full", signature="disk-full"), recipe=PARENT, parent=PARENT)
    assert (full.remedy, full.stops_campaign, full.missing) == (None, True, "disk full")
    port = respond(crash("resource", signature="address-in-use"), recipe=PARENT, parent=PARENT)
    assert port.remedy is not None
    assert port.remedy.kind == "retry"


def test_a_bare_signal_is_tried_once_more_and_a_bare_exit_is_not() -> None:
    assert propose_remedy(crash("unknown", signature="fatal-signal"), recipe=PARENT, parent=PARENT) is not None
    assert propose_remedy(crash("unknown", reason="left with exit code 1"), recipe=PARENT, parent=PARENT) is None
    assert propose_remedy(crash("unknown", signature="stop"), recipe=PARENT, parent=PARENT) is None


@pytest.mark.parametrize("crash_class", CRASH_CLASSES)
def test_remedies_come_to_an_end_stay_valid_and_touch_no_locked_key(crash_class: CrashClass) -> None:
    recipe = change(rollout__slots=512, learner__learning_rate=3e-4, rollout__max_new_tokens=256)
    history: list[Remedy] = []
    while True:
        remedy = propose_remedy(crash(crash_class, phase="generate"), recipe=recipe, parent=PARENT, history=history)
        if remedy is None:
            break
        assert not any(leaf_keys().get(key, False) for key in remedy.values)
        recipe = after(recipe, remedy)
        history.append(remedy)
        assert len(history) <= FIXES
