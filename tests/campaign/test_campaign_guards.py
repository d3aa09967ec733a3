"""What forbids a keep whatever the metric says, what looks too good to be kept unseen, and metrics that cannot be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from fake_raft import TRICKS
from made import HEALTH, MadeLab, MadeRun, run, scores
from nights import NO_DEDUP, NO_PACKING, NOTHING, Night, trick

from agent.campaign.comparison import Comparison, compare
from agent.campaign.evidence import Evidence
from agent.campaign.guards import (
    DISTINCT,
    LENGTH_FACTOR,
    SHORT_ENOUGH,
    TOO_GOOD_GAIN,
    TOO_GOOD_SHARE,
    TRUNCATION,
    broken,
    look_at_guards,
    look_at_guards_on_search,
    suspicions,
)
from agent.campaign.health import faults_of, health_of
from agent.campaign.lab import Health, Order
from agent.campaign.lead import judge_advance
from agent.campaign.rules import Rules
from agent.campaign.story import tell as story_of
from agent.campaign.verdict import Verdict
from agent.contract import EvalRow, Summary
from agent.errors import TrainingFailed
from agent.recipe.schema import Evaluation
from agent.report.numbers import Numbers
from agent.run.telemetry import RunRecord

RATES = Numbers("pass_rate")

# --- guards ------------------------------------------------------------------------------------------------


def guarded(mine: Health | None, theirs: Health | None = HEALTH) -> dict[str, str]:
    """Guards that a candidate of this health breaks beside an incumbent of that."""
    evidence: Evidence = Evidence()
    for index in range(2):
        evidence.add(run(f"ours-{index}", 0.6, seed=index, healthy=mine), experiment=1, arm="candidate")
        evidence.add(run(f"theirs-{index}", 0.5, seed=9 + index, healthy=theirs), experiment=0, arm="incumbent")
    return broken(look_at_guards(MadeLab(lambda order: run("", 0.5)), evidence, 1, 0))


def test_search_runs_are_looked_at_with_the_same_guards() -> None:
    guard = {"metric": "mean_tokens", "direction": "minimize", "margin": 5}
    evaluation = Evaluation.model_validate({"guards": [guard]})
    evidence: Evidence = Evidence()
    for index in range(2):
        values = {"search": scores(0.5, seed=index), ("search", "mean_tokens"): scores(20.0, seed=index)}
        evidence.add(MadeRun(f"base-{index}", values), experiment=0, arm="baseline")
    lab = MadeLab(lambda order: run("", 0.5), evaluation=evaluation)

    def found(healthy: Health, tokens: float) -> set[str]:
        values = {"search": scores(0.6, seed=7), ("search", "mean_tokens"): scores(tokens, seed=7)}
        return set(broken(look_at_guards_on_search(lab, evidence, MadeRun("ours", values, healthy), 0)))

    assert found(HEALTH, 20.0) == set()
    assert found(like(truncated=0.9), 20.0) == {"truncation"}
    assert found(HEALTH, 30.0) == {"mean_tokens"}


def like(**keys: Any) -> Health:
    return dataclasses.replace(HEALTH, **keys)


def test_a_healthy_candidate_breaks_none_nor_does_one_of_which_nothing_is_known() -> None:
    assert guarded(HEALTH) == {}
    assert guarded(None) == {}
    assert guarded(like(tokens=1.0), None) == {}


def test_missing_samples() -> None:
    assert guarded(like(samples=HEALTH.samples - 1)) == {"evaluation": "199 held-out samples instead of 200"}


def test_cut_completions() -> None:
    assert guarded(like(truncated=0.6), like(truncated=0.1)) == {
        "truncation": "held-out completions that were cut: 10% -> 60%"
    }
    assert guarded(like(truncated=TRUNCATION), like(truncated=0.1)) == {}
    assert guarded(like(truncated=0.9), like(truncated=0.5)) == {}, "the incumbent is cut nearly as often"


def test_lengths_that_collapse_or_explode() -> None:
    assert guarded(like(tokens=3.0)) == {"length": "held-out completions collapsed: 20.0 -> 3.0 tokens"}
    assert guarded(like(tokens=120.0)) == {"length": "held-out completions exploded: 20.0 -> 120.0 tokens"}
    assert guarded(like(tokens=20.0 / LENGTH_FACTOR)) == guarded(like(tokens=20.0 * LENGTH_FACTOR)) == {}
    assert guarded(like(tokens=0.5), like(tokens=SHORT_ENOUGH)) == {}, "short answers may become shorter"


def test_one_completion_for_every_prompt() -> None:
    assert guarded(like(distinct=0.4)) == {"unique": "distinct held-out completions: 90% -> 40%"}
    assert guarded(like(distinct=0.9 * DISTINCT)) == {}
    assert guarded(like(distinct=None)) == guarded(like(distinct=0.1), like(distinct=None)) == {}


WORSE = "worse by more than"


def second_metric(ours: float, theirs: float, guard: dict[str, Any], *, noise: float = 0.0) -> dict[str, str]:
    evidence: Evidence = Evidence()
    evaluation = Evaluation.model_validate({"metric": "mean_reward", "guards": [guard]})
    for index, off in enumerate((-noise, noise)):
        for number, arm, mean in ((1, "candidate", ours), (0, "incumbent", theirs)):
            values = {"confirm": scores(0.5), ("confirm", guard["metric"]): scores(mean + off, seed=index + 7 * number)}
            evidence.add(MadeRun(f"{arm}-{index}", values), experiment=number, arm=arm)  # type: ignore[arg-type]
    return broken(look_at_guards(MadeLab(lambda order: run("", 0.5), evaluation=evaluation), evidence, 1, 0))


def test_a_second_metric_that_should_be_large() -> None:
    guard = {"metric": "pass_rate", "direction": "maximize", "margin": 0.02}
    assert second_metric(0.40, 0.50, guard) == {
        "pass_rate": f"pass_rate 50.0% -> 40.0%, {WORSE} 0.02 (it is to be maximized)"
    }
    assert second_metric(0.49, 0.50, guard) == second_metric(0.60, 0.50, guard) == {}
    assert second_metric(0.40, 0.50, guard, noise=0.3) == {}, "runs of one recipe differ as much"


def test_a_reward_as_second_metric_is_told_in_its_own_unit() -> None:
    evidence: Evidence = Evidence()
    for index in range(2):
        for number, arm, mean in ((1, "candidate", 1.1), (0, "incumbent", 1.3)):
            values = {"confirm": scores(0.5), ("confirm", "mean_reward"): scores(mean, seed=index + 7 * number)}
            evidence.add(MadeRun(f"{arm}-{index}", values), experiment=number, arm=arm)  # type: ignore[arg-type]
    evaluation = Evaluation.model_validate({"guards": [{"metric": "mean_reward"}]})
    lab = MadeLab(lambda order: run("", 0.5), evaluation=evaluation)
    seen = next(one for one in look_at_guards(lab, evidence, 1, 0) if one.name == "mean_reward")
    assert seen.unit == ""
    assert seen.broken == f"mean_reward 1.300 -> 1.100, {WORSE} 0 (it is to be maximized)"


def test_a_second_metric_that_should_be_small() -> None:
    guard = {"metric": "mean_tokens", "direction": "minimize", "margin": 5}
    assert second_metric(30.0, 20.0, guard) == {
        "mean_tokens": f"mean_tokens 20.0 -> 30.0, {WORSE} 5 (it is to be minimized)"
    }
    assert second_metric(24.0, 20.0, guard) == second_metric(10.0, 20.0, guard) == {}
    assert second_metric(30.0, 20.0, guard, noise=20.0) == {}


# --- suspicions --------------------------------------------------------------------------------------------

KEPT = Verdict("keep", "gain", None, "gain")


def looked_at(
    ours: float, theirs: float, again: MadeRun, *, metric: str = "pass_rate", passed: tuple[float, float] = (0.5, 0.5)
) -> tuple[Verdict, list[str], bool]:
    """The verdict on a candidate that would be kept, what was flagged, and whether it was evaluated again."""
    evidence: Evidence = Evidence()
    asked = []

    def results(order: Order) -> MadeRun:
        asked.append(order)
        return again

    for index in range(2):
        for number, arm, mean in ((1, "candidate", ours), (0, "incumbent", theirs)):
            values = {"confirm": scores(mean, seed=index), ("confirm", "pass_rate"): scores(passed[1 - number])}
            evidence.add(MadeRun(f"{arm}-{index}", values), experiment=number, arm=arm)  # type: ignore[arg-type]
    lab, flags = MadeLab(results, evaluation=Evaluation.model_validate({"metric": metric})), []  # type: ignore[var-annotated]
    verdict = suspicions(lab, evidence, 1, 0, KEPT, flags=flags)
    return verdict, flags, bool(asked)


def test_a_plain_gain_is_not_looked_at_again() -> None:
    assert looked_at(0.55, 0.3, run("again", 0.0)) == (KEPT, [], False)
    most = 0.3 + TOO_GOOD_SHARE * 0.7
    assert looked_at(most - 0.01, 0.3, run("again", 0.0)) == (KEPT, [], False)
    assert looked_at(0.95 + TOO_GOOD_GAIN / 10, 0.95, run("again", 0.0)) == (KEPT, [], False)


def test_a_jump_is_kept_where_the_second_look_agrees_and_flagged_all_the_same() -> None:
    verdict, flags, asked = looked_at(0.95, 0.3, run("again", 0.95))
    assert (verdict, asked) == (KEPT, True)
    assert flags == ["a gain of +65.0pp for one change is too good; evaluated again: +0.0pp"]


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (run("again", 0.5), "a gain of +65.0pp for one change is too good; evaluated again: -45.0pp"),
        (run("again", 0.5, crash_words="oom"), "is too good; it could not be evaluated again: candidate-1: oom"),
        (
            run("again", 0.95, wrong=["the metric is nan"]),
            "not be evaluated again: candidate-0: invalid: the metric is nan",
        ),
        (MadeRun("again"), "is too good; it could not be evaluated again"),
    ],
    ids=["it disagrees", "it crashes", "it is invalid", "it measured nothing"],
)
def test_a_jump_is_suspect_where_the_second_look_does_not_agree(again: MadeRun, words: str) -> None:
    verdict, flags, _ = looked_at(0.95, 0.3, again)
    assert (verdict.outcome, verdict.kind) == ("discard", "suspect")
    assert verdict.reason.startswith("suspect: ")
    assert words in verdict.reason
    assert len(flags) == 1


def test_a_reward_that_rises_while_no_more_answers_pass_is_looked_at_again() -> None:
    agrees = run("again", 2.0)
    assert looked_at(2.0, 1.0, agrees, metric="mean_reward", passed=(0.6, 0.5)) == (KEPT, [], False)
    verdict, flags, _ = looked_at(2.0, 1.0, agrees, metric="mean_reward", passed=(0.4, 0.5))
    assert verdict == KEPT
    assert flags == ["the reward rose and the share of right answers did not (50.0% -> 40.0%); evaluated again: +0.000"]


# --- metrics that cannot be --------------------------------------------------------------------------------


def row(number: int, passed: bool, **keys: Any) -> EvalRow:
    base = {"split": "search", "id": f"{number}", "sample": 0, "reward": float(passed), "passed": passed, "tokens": 3}
    return EvalRow.model_validate({**base, "finish_reason": "stop", **keys})


ROWS = [row(0, True), row(1, False), row(2, True), row(3, True)]


def faults(metrics: dict[str, float], *rows: EvalRow, **also: Any) -> list[str]:
    extra = {key: also.pop(key) for key in ("pass_at_1", "pass_at_k") if key in also}
    rewards = also.pop("rewards", (0.0, 1.0))
    summary = Summary(seed=0, recipe_signature="", metric="pass_rate", metrics=metrics, **extra)
    record = RunRecord(Path(), None, [], list(rows), summary, None, None, ())
    asked = {"search_prompts": max(2, len({row.id for row in rows})), "samples_per_prompt": 1}
    prompts = also.pop("prompts", None)
    return faults_of(record, Evaluation.model_validate({**asked, **also}), rewards=rewards, prompts=prompts)


def test_a_metric_that_its_rows_agree_with_has_no_fault() -> None:
    assert faults({"search": 0.75}, *ROWS, pass_at_1=0.5, pass_at_k=0.5) == []
    large = [row(n, True, reward=7.5) for n in range(2)]
    assert faults({"search": 7.5}, *large, metric="mean_reward", rewards=(0.0, 8.0)) == []
    lower = {"metric": "mean_reward", "direction": "minimize"}
    assert faults({"search": 0.75}, *ROWS, **lower) == []
    assert faults({}) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (faults({"search": math.nan}, *ROWS), "pass_rate on search is nan"),
        (faults({"search": math.inf}, *ROWS), "pass_rate on search is inf"),
        (faults({"search": 1.7}, *ROWS), "pass_rate on search is 1.7, outside 0 to 1"),
        (faults({"search": -0.1}, *ROWS), "pass_rate on search is -0.1, outside 0 to 1"),
        (
            faults({"search": 2.5}, *ROWS, metric="mean_reward", rewards=(-0.5, 2.0)),
            "mean_reward on search is 2.5, outside -0.5 to 2",
        ),
        (faults({"search": 0.6}, *ROWS), "pass_rate on search is 0.6000 in the summary, its rows say 0.7500"),
        (faults({"search": 0.75}), "pass_rate on search is 0.75, and eval.jsonl has no row of it"),
        (
            faults({"search": 0.75}, *ROWS[:3], row(3, True, reward=math.nan), metric="mean_reward"),
            "a reward on search is not finite",
        ),
        (
            faults({"search": 0.75}, *ROWS, search_prompts=5),
            "its evaluation has 4 of the 5 prompts of search",
        ),
        (
            faults({"search": 0.75}, *ROWS, prompts={"search": frozenset(one.id for one in ROWS[1:])}),
            "its evaluation has 1 prompts that are not those of search in the runs before",
        ),
        (
            faults({"search": 0.75}, *ROWS, samples_per_prompt=2),
            f"prompt {ROWS[0].id} of search has 1 samples, and evaluation.samples_per_prompt is 2",
        ),
        (faults({"search": 0.75}, *ROWS, pass_at_1=0.9, pass_at_k=0.5), "pass@1 0.9 is above pass@k 0.5"),
        (
            faults({"search": 0.5}, *ROWS, metric="mean_reward", direction="minimize"),
            "mean_reward on search is 0.5000 in the summary, its rows say 0.7500",
        ),
    ],
)
def test_metrics_that_cannot_be_are_named(found: list[str], words: str) -> None:
    assert found == [words]


def test_what_rows_show_besides_the_metric() -> None:
    rows = [
        row(0, True, tokens=2, digest="aa", formatted=True),
        row(1, False, tokens=4, digest="aa", formatted=False, finish_reason="length"),
        row(2, False, tokens=6, digest="bb"),
        row(3, False, tokens=8, digest="cc"),
    ]
    assert health_of(rows) == Health(samples=4, truncated=0.25, tokens=5.0, distinct=0.75, formatted=0.5)
    assert health_of([]) is None
    unknown = health_of([*rows, row(4, False)])
    assert unknown is not None
    assert unknown.distinct is None, "where one digest is missing, the share is not known"


# --- in a campaign -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_guards_suspicions_and_faults_decide_in_a_campaign(night: Night) -> None:
    """Each idea but one is a real gain with something wrong about it."""
    recipe = night.root / "recipes" / "test.yaml"
    guards = "guards: [{metric: mean_tokens, direction: minimize, margin: 10}], temperature: 0}"
    recipe.write_text(recipe.read_text().replace("temperature: 0}", guards))
    better = {"learner__learning_rate": 0.002}
    night.playbook(
        trick("one answer", 0.9, **better),
        trick("long", 0.8, **better),
        trick("not its rows in confirm", 0.7, **better),
        trick("too good", 0.6),
        trick("not a number", 0.5, **better),
        trick("great", 0.4),
    )
    night.start(max_experiments=6)
    found = {row["hypothesis"]: (row["status"], row["reason"]) for row in night.rows[1:]}
    assert found["one-answer"] == ("discard", "guard: distinct held-out completions: 100% -> 0%")
    assert found["long"][0] == "discard"
    assert set(night.judged(2).numbers["guards"]) == {"length", "mean_tokens"}
    status, reason = found["not-its-rows-in-confirm"]
    assert status == "crash"
    assert reason.startswith("invalid: pass_rate on confirm is 0.")
    assert reason.endswith(", in confirmation")
    assert found["not-a-number"] == ("crash", "invalid: pass_rate on search is nan")
    assert found["too-good"][0] == "discard"
    assert found["too-good"][1].startswith("suspect: a gain of +5")
    assert found["great"][0] == "keep"
    assert [len(night.judged(number).numbers["flags"]) for number in (4, 6)] == [1, 1]
    again = {name for name in night.starts() if name.endswith("-again")}
    assert again == {"004-confirm-s4100-again", "006-confirm-s6100-again"}
    # what a guard stops on the search split is not confirmed; a candidate that was and that was not kept has used up
    # its level, for whatever reason
    without = [number for number in range(1, 7) if night.judged(number).numbers["level"] is None]
    assert without == [1, 2, 5]
    assert not any("-confirm-" in run for run in night.starts() if run.startswith(("001", "002")))
    shown = story_of(night.session.state, 1) if night.session else None
    assert shown is not None
    assert shown.rule == "a guard on the search split: unique; not confirmed, not built on"


@pytest.mark.slow
def test_what_breaks_a_guard_is_not_built_on(night: Night) -> None:
    night.playbook(trick("long", 1.0, learner__learning_rate=0.002), NO_DEDUP, NO_PACKING, NOTHING)
    night.start(rules=Rules(alone_runs=1e9, round=1, lead_left=0.0, batch=0), baseline_seeds=3)
    assert night.judged(1).numbers["kind"] == "guard"
    assert night.rows[1]["reason"] == "guard: held-out completions exploded: 3.0 -> 40.0 tokens"
    assert night.session is not None
    kept = [row for row in night.rows[1:] if row["status"] == "keep"]
    assert kept
    assert not any("rollout.top_k" in row["change"] for row in kept)


def test_a_lead_that_breaks_a_guard_does_not_lead() -> None:
    found = judge_advance(
        compared(0.6, 0.5), {"length": "held-out completions exploded: 3.0 -> 40.0 tokens"}, numbers=RATES
    )
    assert (found.outcome, found.kind) == ("discard", "guard")
    assert judge_advance(compared(0.6, 0.5), {}, numbers=RATES).kind == "lead"
    assert judge_advance(compared(0.5, 0.6), {}, numbers=RATES).kind == "inconclusive"


def compared(ours: float, theirs: float) -> Comparison:
    return compare([scores(ours, seed=1)], [scores(theirs, seed=2), scores(theirs, seed=3)], None)


@pytest.mark.slow
def test_baseline_seeds_that_crash_or_measure_nonsense_are_left_out_now_and_later(night: Night) -> None:
    (night.root / "crash-seeds").write_text("2")
    (night.root / "wrong-seeds").write_text("3")
    night.playbook(trick("great", 0.9))
    night.start(baseline_seeds=4, max_experiments=0)
    assert night.session is not None
    assert night.session.state.calibration["seeds"] == 2
    crashed, wrong = (text for text in night.observer.warnings if "left out" in text)
    assert crashed.startswith("a baseline run crashed (unknown: ")
    assert wrong.startswith("baseline-s3 is left out of the calibration: invalid: pass_rate on search is 0.")
    bench = night.bench(night.session)
    bench.gather()
    assert [one.summary.seed for one in bench.evidence.baseline() if one.summary] == [1, 4]


def test_a_baseline_whose_metric_cannot_be_ends_the_campaign_in_words(night: Night) -> None:
    recipe = night.root / "recipes" / "test.yaml"
    recipe.write_text(recipe.read_text() + f"rollout: {{top_k: {TRICKS['above pass@k']}}}\n")
    night.playbook(trick("great", 0.9))
    with pytest.raises(TrainingFailed, match=r"pass@1 0\.9 is above pass@k 0\.5"):
        night.start()
