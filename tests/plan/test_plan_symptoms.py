"""Signals are right numbers or None; symptoms fire on what they name and not on a healthy run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_fixtures import BOOK, cycle, evals, machine, run, shipped, tiny

from agent.contract import DECLINE, CycleRow, EvalRow, RunLoad, Summary
from agent.plan.planner import plan
from agent.plan.schema import Condition
from agent.plan.signals import SIGNALS, Observation, observed, signals
from agent.plan.symptoms import diagnose, evaluate, number, read_bottleneck


def found(observation: Observation) -> list[str]:
    return [finding.symptom for finding in diagnose(observation, BOOK)]


# --- signals -----------------------------------------------------------------------------------------------


def test_windows_are_thirds_of_the_trained_cycles_without_cycle_0() -> None:
    rows = [cycle(n, truncation_rate=[0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6][n]) for n in range(7)]
    known = signals(Observation(recipe=tiny(), cycles=rows))
    assert known["truncation_rate"] == pytest.approx((0.5 + 0.6) / 2)
    assert known["truncation_start"] == 0.9


def test_a_run_that_never_trained_tells_what_the_untrained_model_sampled() -> None:
    known = signals(Observation(recipe=tiny(), cycles=[cycle(0, format_rate=0.02)]))
    assert known["format_rate"] == 0.02
    assert known["pass_gain"] is None
    assert known["kept_share"] is None


def test_nothing_known_is_none_and_never_zero() -> None:
    recipe_only = {name for name, signal in SIGNALS.items() if signal.window == "recipe"}
    known = signals(Observation(recipe=tiny()))
    assert {name for name, value in known.items() if value is not None} <= recipe_only
    bare = [CycleRow(cycle=n) for n in range(5)]
    known = signals(Observation(recipe=tiny(), cycles=bare))
    assert known["pass_rate"] is None
    assert known["entropy_ratio"] is None
    assert known["generate_share"] is None


def test_shares_and_ratios_by_hand() -> None:
    rows = [
        cycle(0, entropy=1.2, pass_rate=0.10, completion_tokens_mean=4.0),
        cycle(1, entropy=0.6, pass_rate=0.20, kept=10, samples=100, loss=1.0, grad_norm=1.0),
        cycle(
            2, entropy=0.3, pass_rate=0.40, kept=30, samples=100, loss=0.5, grad_norm=1.0, completion_tokens_mean=6.0
        ),
        cycle(
            3, entropy=0.3, pass_rate=0.50, kept=20, samples=100, loss=0.25, grad_norm=2.0, completion_tokens_mean=6.0
        ),
    ]
    known = signals(Observation(recipe=tiny(rollout__max_new_tokens=8), cycles=rows))
    assert known["entropy_ratio"] == pytest.approx(0.3 / 1.2)
    assert known["pass_gain"] == pytest.approx(0.4)
    assert known["kept_share"] == pytest.approx(60 / 300)
    assert known["kept_of_passed"] == pytest.approx(60 / (20 + 40 + 50))
    assert known["loss_ratio"] == pytest.approx(0.25)
    assert known["length_ratio"] == pytest.approx(1.5)
    assert known["completion_share_of_limit"] == pytest.approx(6 / 8)
    assert known["prompt_share_of_tokens"] == pytest.approx(0.5)
    assert known["optimizer_steps"] == 3
    assert known["kept_over_minimum"] == pytest.approx(60 / 16)
    assert known["generate_share"] == pytest.approx(0.15 / 0.22)
    assert known["evaluate_share"] == pytest.approx(0.03 / 0.25)


def test_losses_that_are_not_numbers_are_counted_and_not_averaged() -> None:
    rows = [cycle(0), *(cycle(n, loss=float("nan") if n > 3 else 1.0) for n in range(1, 5))]
    known = signals(Observation(recipe=tiny(), cycles=rows))
    assert known["nonfinite_share"] == 0.25
    assert known["loss_ratio"] is None


def test_tags_need_enough_rows_to_be_compared() -> None:
    rows = evals()
    facts = observed(Observation(recipe=tiny(), evals=[replace_row(r, passed=r.tag == "a") for r in rows]))
    assert facts == {"weakest_tag": "b", "strongest_tag": "a"}
    assert observed(Observation(recipe=tiny(), evals=rows[:60])) == {}


def replace_row(row: EvalRow, **fields: object) -> EvalRow:
    return row.model_copy(update=fields)


def test_the_threshold_that_no_reward_reaches() -> None:
    def reach(**keys: object) -> float | None:
        return signals(Observation(recipe=tiny(**keys)))["unreachable_threshold"]

    assert reach() == 0
    assert reach(selection__reward_threshold=1.5) == 0.5
    assert reach(selection__reward_threshold=1.5, task__reward__format_bonus=0.5) == 0
    assert reach(task__reward__clip=[0.0, 0.5]) == 0.5


@pytest.mark.parametrize(
    ("recipe", "stop", "conflicts"),
    [
        (tiny(), ["1"], 1),
        (tiny(), ["\n", "="], 0),
        (shipped("smollm2-strict"), ["</answer>"], 0),
        (shipped("smollm2-strict"), ["<answer>", "\n"], 2),
        (shipped("smollm2-arithmetic"), ["."], 1),
        (shipped("smollm2-arithmetic"), ["\n\n"], 0),
    ],
)
def test_stop_strings_that_end_before_the_answer(recipe: object, stop: list[str], conflicts: int) -> None:
    changed = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"stop": stop})})  # type: ignore[attr-defined]  # a Recipe
    assert signals(Observation(recipe=changed))["stop_conflicts"] == conflicts


def test_a_fall_is_told_from_noise() -> None:
    up_and_down = [0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.65, 0.6, 0.5, 0.4, 0.3, 0.3]
    rows = [cycle(n, pass_rate=p, select_metric=None) for n, p in enumerate(up_and_down)]
    known = signals(Observation(recipe=tiny(), cycles=rows))
    assert known["fall_from_peak"] == pytest.approx(0.35)
    # 512 samples, 8 of a prompt, are worth 512 / (1 + 7 * 0.3) = 165; sqrt(2 * 0.65 * 0.35 / (165 * 2)) = 0.0371
    assert known["fall_errors"] == pytest.approx(0.35 / 0.0371, rel=0.01)
    assert known["declined"] is None
    rising = [cycle(n) for n in range(20)]
    assert signals(Observation(recipe=tiny(), cycles=rising))["fall_from_peak"] == 0


def test_every_signal_is_documented() -> None:
    for signal in SIGNALS.values():
        assert signal.doc.endswith(".")
        assert signal.window


VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1))
COLUMNS = [n for n, f in CycleRow.model_fields.items() if f.annotation == float | None]


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, VALUES)), max_size=7), st.booleans())
def test_no_telemetry_however_odd_breaks_the_diagnosis(rows: list[dict], with_summary: bool) -> None:
    cycles = [CycleRow.model_validate({"cycle": n, "samples": 8, **row}) for n, row in enumerate(rows)]
    summary = Summary(seed=0, recipe_signature="", metric="pass_rate") if with_summary else None
    for finding in diagnose(Observation(recipe=tiny(), cycles=cycles, summary=summary), BOOK):
        assert 0 < finding.severity <= 1
        assert finding.evidence


# --- conditions --------------------------------------------------------------------------------------------


def test_severity_grows_from_the_threshold_to_full() -> None:
    condition = Condition(signal="truncation_rate", above=0.1, full=0.6)
    assert evaluate(condition, {"truncation_rate": 0.1})[0] is False
    assert evaluate(condition, {"truncation_rate": None})[0] is False
    assert evaluate(condition, {"truncation_rate": 0.35})[1] == pytest.approx(0.4 + 0.6 * 0.5)
    assert evaluate(condition, {"truncation_rate": 0.9})[1] == 1.0


def test_all_needs_every_clause_and_any_takes_the_worst() -> None:
    both = Condition(
        all=[Condition(signal="pass_rate", below=0.5), Condition(signal="entropy_ratio", below=0.2, full=0.1)]
    )
    assert evaluate(both, {"pass_rate": 0.4, "entropy_ratio": None})[0] is False
    assert evaluate(both, {"pass_rate": 0.4, "entropy_ratio": 0.1})[1] == 1.0
    either = Condition(
        any=[Condition(signal="pass_rate", below=0.5), Condition(signal="entropy_ratio", below=0.2, full=0.1)]
    )
    holds, severity, evidence = evaluate(either, {"pass_rate": 0.4, "entropy_ratio": 0.5})
    assert (holds, severity) == (True, None)
    assert evidence == ["pass_rate 0.40 < 0.50 (last third of cycles)"]


def test_evidence_prints_the_numbers_and_the_window() -> None:
    finding = next(f for f in diagnose(run(truncation_rate=0.63), BOOK) if f.symptom == "truncated_completions")
    assert finding.evidence == "truncation_rate 0.63 > 0.10 (last third of cycles)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.634, "0.63"), (0.0004, "4.0e-04"), (12.0, "12"), (31.43, "31.4"), (0.0, "0.00"), (-0.2, "-0.20")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


# --- symptoms ----------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_symptom() -> None:
    assert diagnose(run(), BOOK) == []


def test_a_short_healthy_run_has_no_symptom() -> None:
    assert set(found(run(6))) <= set()


def sampled(**load: object) -> Observation:
    """A healthy run, with what the agent saw of the machine."""
    return replace(run(), load=RunLoad.model_validate({"samples": 60, "seconds": 60.0, **load}))


FP16 = {"model__dtype": "float16"}
SICK: dict[str, Observation] = {
    "truncated_completions": run(truncation_rate=0.4),
    "format_missing": run(format_rate=0.1, start={"format_rate": 0.1}),
    "answer_near_but_not_in_format": run(near_rate=0.3),
    "wrong_stop_string": run(recipe=tiny(prompt__stop=["1"])),
    "long_completions": run(completion_tokens_mean=4.9),
    "dropped_prompts": run(dropped_prompts=30),
    "nothing_kept": run(kept=0),
    "few_kept": run(kept=5),
    "zero_variance_groups": run(zero_variance_share=0.95, start={"zero_variance_share": 0.9}),
    "one_sample_a_prompt": run(recipe=tiny(rollout__samples_per_prompt=1)),
    "mostly_failed": run(all_failed_share=0.9),
    "mostly_solved": run(all_solved_share=0.8),
    "reward_saturated": run(pass_rate=0.97, zero_variance_share=0.9),
    "learning_too_slow": run(pass_rate=0.15, loss=0.9, entropy=1.0, select_metric=0.18),
    "too_few_steps": run(2),
    "underpowered": run(5),
    "low_diversity": run(recipe=tiny(rollout__temperature=0.3), start={"unique_share": 0.3}),
    "sampling_too_random": run(
        recipe=tiny(rollout__temperature=2.0),
        pass_rate=0.05,
        select_metric=0.4,
        start={"pass_rate": 0.03, "select_metric": 0.3},
    ),
    "non_finite": run(loss=math.nan),
    "fp16_overflow": run(recipe=tiny(**FP16), grad_norm=math.inf),
    "learning_too_hot": run(pass_rate=0.02),
    "entropy_collapse": run(entropy=0.05),
    "always_clipping": run(grad_norm=60.0, clip_share=1.0),
    "padding_waste": run(padding_share=0.7),
    "generation_bound": run(seconds={"generate": 1.0, "train": 0.01}),
    "training_bound": run(seconds={"generate": 0.1, "train": 0.9}),
    "verify_bound": run(seconds={"generate": 0.3, "train": 0.1, "verify": 0.5}),
    "idle_waiting": run(seconds={"generate": 0.3, "train": 0.1, "wait": 0.4}),
    "stale_data": run(trajectory_age=4.0, logprob_drift=0.4),
    "logprob_mismatch": run(logprob_gap=0.2),
    "memory_tight": replace(run(), machine=machine(memory_gb=1.05)),
    "memory_headroom": run(recipe=tiny(learner__gradient_accumulation=8)),
    "slow_throughput": replace(run(), reference_tokens_per_s=18000.0),
    "low_utilization": sampled(accelerated=True, busy=20.0),
    "compute_bound": sampled(accelerated=True, busy=98.0),
    "idle_generation": sampled(accelerated=True, busy=60.0, idle_share={"generate": 0.5}),
    "idle_verification": sampled(accelerated=True, busy=60.0, idle_share={"verify": 0.4}),
    "idle_optimizer": sampled(accelerated=True, busy=60.0, idle_share={"train": 0.4}),
    "train_up_validation_flat": run(pass_rate=0.9, select_metric=0.2),
    "few_training_prompts": run(recipe=tiny(task__train_prompts=16)),
    "uneven_tags": replace(
        run(recipe=tiny(task__mix={"a": 1.0, "b": 0.0})), evals=[replace_row(r, passed=r.tag == "a") for r in evals()]
    ),
    "noisy_signal": replace(run(), noise=0.1),
}


def with_series(column: str, values: list[float]) -> Observation:
    return Observation(recipe=tiny(), cycles=[cycle(n, **{column: v}) for n, v in enumerate(values)])


SICK["too_many_epochs"] = run(recipe=tiny(learner__epochs_per_cycle=16), entropy=0.2)
SICK["unstable_loss"] = with_series("loss", [1, 1, 1, 1, 20, 1, 1, 1, 1])
SICK["grad_spikes"] = with_series("grad_norm", [1, 1, 1, 1, 200, 1, 1, 1, 1])
SICK["held_out_falls"] = with_series("select_metric", [0.4, 0.35, 0.3, 0.2, 0.15, 0.1, 0.1])
SICK["late_degradation"] = with_series("pass_rate", [0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.65, 0.6, 0.5, 0.4, 0.3, 0.3])


def test_the_early_stop_tells_of_the_fall_that_it_cuts_off() -> None:
    """One cycle behind the peak is no fall to be seen in a curve, and the schedules answer it all the same."""
    risen = [0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.45]
    seen = with_series("select_metric", risen)

    def severity(ended_by: str) -> float | None:
        summary = Summary(seed=0, recipe_signature="", metric="pass_rate", ended_by=ended_by)
        findings = diagnose(replace(seen, summary=summary), BOOK)
        return next((found.severity for found in findings if found.symptom == "late_degradation"), None)

    assert severity("budget") is None
    assert severity(DECLINE) == pytest.approx(0.5)


def test_what_was_not_sampled_gives_no_signal_and_a_busy_processor_is_not_idle() -> None:
    names = ("device_busy", "cores_share", "idle_generate_share", "host_memory_share", "memory_pressure")
    assert {signals(run())[name] for name in names} == {None}
    cpu = signals(sampled(accelerated=False, busy=0.0, cores_used=1.5, cores_there=2))
    assert (cpu["device_busy"], cpu["cores_share"]) == (None, 0.75)  # an idle card beside it does not count
    gpu = signals(sampled(accelerated=True, busy=80.0, cores_used=1.0, cores_there=32))
    assert (gpu["device_busy"], gpu["cores_share"]) == (0.8, None)


@pytest.mark.parametrize("load", [{"pressure_some_peak": 30.0}, {"memory_peak_share": 0.97}])
def test_memory_is_tight_too_where_the_machine_says_so(load: dict[str, float]) -> None:
    assert {finding.symptom for finding in diagnose(sampled(**load), BOOK)} == {"memory_tight"}


def test_phases_that_idle_explain_a_low_utilization() -> None:
    findings = {f.symptom: f for f in diagnose(sampled(accelerated=True, busy=30.0, idle_share={"verify": 0.6}), BOOK)}
    assert findings["low_utilization"].explained_by == "idle_verification"


def test_there_is_a_sick_run_for_every_symptom() -> None:
    assert set(SICK) == set(BOOK.symptoms)


@pytest.mark.parametrize("symptom", SICK)
def test_the_symptom_is_found_where_it_is(symptom: str) -> None:
    finding = next(f for f in diagnose(SICK[symptom], BOOK) if f.symptom == symptom)
    assert finding.severity > 0.1
    assert finding.reading in BOOK.readings


def test_disagreement_on_fresh_samples_is_a_fault_and_not_age_however_many_steps_a_cycle_has() -> None:
    faulty = {f.symptom for f in diagnose(run(logprob_gap=0.2, logprob_drift=0.3, trajectory_age=4.0), BOOK)}
    aged = {f.symptom for f in diagnose(run(logprob_gap=1e-6, logprob_drift=0.3, trajectory_age=4.0), BOOK)}
    assert faulty == {"logprob_mismatch"}
    assert aged == {"stale_data"}


def test_what_another_symptom_explains_counts_for_less() -> None:
    """Steps that are too large leave all prompts failed; more samples of each would be no repair."""
    wrecked = run(pass_rate=0.0, all_failed_share=1.0, select_metric=0.0, start={"select_metric": 0.2})
    findings = {finding.symptom: finding for finding in diagnose(wrecked, BOOK)}
    assert findings["mostly_failed"].explained_by == "learning_too_hot"
    assert findings["mostly_failed"].severity == pytest.approx(0.8 * 0.3)
    assert findings["learning_too_hot"].severity == 1.0
    ranking = plan(BOOK, recipe=tiny(), observation=wrecked)
    assert ranking.proposals[0].hypothesis == "lr-peak"
    assert ranking.proposals[0].recipe.learner.learning_rate == pytest.approx(2e-5)


def test_what_is_explained_explains_nothing_itself() -> None:
    """Of two symptoms that name each other the one further up in the playbook is the cause."""
    one = run(
        recipe=tiny(rollout__samples_per_prompt=1), pass_rate=0.0, select_metric=0.0, start={"select_metric": 0.2}
    )
    findings = {finding.symptom: finding for finding in diagnose(one, BOOK)}
    assert findings["one_sample_a_prompt"].explained_by is None
    assert findings["learning_too_hot"].explained_by == "one_sample_a_prompt"


@pytest.mark.parametrize(
    ("observation", "reading"),
    [
        (run(), "accuracy"),
        (run(loss=math.nan), "stability"),
        (run(seconds={"generate": 0.3, "train": 0.1, "wait": 0.4}), "utilization"),
        (run(pass_rate=0.9, select_metric=0.2), "transfer"),
    ],
)
def test_the_four_readings(observation: Observation, reading: str) -> None:
    readings = read_bottleneck(observation, BOOK)
    assert reading in [r.reading for r in readings]
    assert all(r.evidence and r.points_to for r in readings)


def test_a_reward_is_not_taken_for_a_share() -> None:
    """Rewards of 10: their noise is not that of a share, and a pass rate is no part of them."""
    recipe = tiny(evaluation__metric="mean_reward", task__reward__scale=10.0)
    rewards = [cycle(n, select_metric=8.0 + 0.2 * (-1) ** n) for n in range(21)]
    found = signals(replace(run(recipe=recipe), cycles=rewards))
    shares = signals(replace(run(), cycles=[cycle(n, select_metric=0.4) for n in range(21)]))
    for name in ("sampling_gap", "sampling_gap_start", "transfer_gap", "transfer_gap_errors", "select_gain_errors"):
        assert found.get(name) is None, name
        assert shares.get(name) is not None, name
    assert found["fall_errors"] == shares["fall_errors"], "by the pass rate alone"
