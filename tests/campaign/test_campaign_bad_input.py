"""What a recipe, a trainer or a person can do to the evidence: clear words, no traceback, and never a silent keep."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nights import NOTHING, RATE_UP, RECIPE, Night, forked_launch, hypothesis

from agent.campaign import guards
from agent.campaign.early import Hopeless
from agent.campaign.lab import CutShort
from agent.campaign.scores import Scores
from agent.contract import SelectRow
from agent.errors import TrainingFailed
from agent.ledger.table import read_rows
from agent.recipe.schema import Evaluation
from agent.run.telemetry import read_summary

SIMPLER = hypothesis("plain", 0.9, set={"learner.learning_rate": 5e-5})
"""A rate of a tenth is the schema's default: one setting fewer. With the fake trainer it loses all that was learned."""
Rows = list[dict[str, Any]]


def measure(night: Night, **evaluation: Any) -> None:
    """The recipe of the tests with other values in `evaluation`."""
    recipe = yaml.safe_load(RECIPE)
    recipe["evaluation"] |= evaluation
    (night.root / "recipes/test.yaml").write_text(yaml.safe_dump(recipe))


def outcomes(night: Night) -> dict[str, tuple[str, str]]:
    return {row["hypothesis"]: (row["status"], row["reason"]) for row in read_rows(night.workspace.results)}


def rewriting(change: Callable[[Rows], Rows], where: str = "") -> Any:
    """A launcher under which the evaluations of runs named so come out otherwise."""

    def launcher(request: Any, **keys: Any) -> Any:
        result = forked_launch(request, **keys)
        path = request.out / "eval.jsonl"
        if where not in request.out.name or not path.exists():
            return result
        rows = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        told = json.loads((request.out / "summary.json").read_text())
        by_split = {name: [row["passed"] for row in rows if row["split"] == name] for name in told["metrics"]}
        told["metrics"] = {name: sum(passed) / len(passed) for name, passed in by_split.items() if passed}
        (request.out / "summary.json").write_text(json.dumps(told))
        return dataclasses.replace(result, summary=read_summary(request.out))

    return launcher


def cut_short(name: str, *, at: int) -> Any:
    """The time ends in this one of the runs whose names begin so."""
    met: list[str] = []

    def launcher(request: Any, **keys: Any) -> Any:
        if request.out.name.startswith(name):
            met.append(request.out.name)
            if len(met) == at:
                raise CutShort("the budget is spent")
        return forked_launch(request, **keys)

    return launcher


def crashing(which: str) -> Any:
    """A launcher under which the runs named so end without a summary."""

    def launcher(request: Any, **keys: Any) -> Any:
        result = forked_launch(request, **keys)
        if not request.out.name.startswith(which):
            return result
        for name in ("summary.json", "eval.jsonl"):
            (request.out / name).unlink(missing_ok=True)
        return dataclasses.replace(result, exit_code=1, summary=None)

    return launcher


def deleting(target: str, *, before: str) -> Any:
    """A launcher under which checkpoints are gone when a run named so starts."""

    def launcher(request: Any, **keys: Any) -> Any:
        if before in request.out.name:
            for folder in request.out.parent.glob(target):
                shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        return forked_launch(request, **keys)

    return launcher


def passing(everything: bool) -> Callable[[Rows], Rows]:
    return lambda rows: [{**row, "passed": everything, "reward": float(everything)} for row in rows]


# --- a metric that tells nothing ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True], ids=["all fail", "all pass"])
def test_a_constant_metric_is_warned_of_and_keeps_nothing(night: Night, everything: bool) -> None:
    night.playbook(SIMPLER, RATE_UP)
    ending = night.start(launcher=rewriting(passing(everything)), max_experiments=2)
    assert ending.kept == ()
    assert f"pass_rate is {int(everything)} for every prompt and seed of the baseline" in night.observer.warnings[0]
    status, reason = outcomes(night)["plain"]
    assert status == "discard"
    if everything:
        assert reason == (
            "guard: pass_rate is 1 for every prompt of candidate and incumbent, which tells nothing of either"
        )


@pytest.mark.slow
def test_two_prompts_on_which_nothing_differs_prove_no_equality(night: Night) -> None:
    night.playbook(SIMPLER)
    measure(night, confirm_prompts=2)
    half = rewriting(lambda rows: [{**row, "passed": row["id"].endswith("0")} for row in rows])
    assert night.start(launcher=half, max_experiments=1).kept == ()
    assert outcomes(night)["plain"] == (
        "discard",
        "inconclusive: alike on all 2 prompts, too few to show that it is not worse by more than 1.0pp",
    )


@pytest.mark.slow
def test_where_many_prompts_do_not_differ_the_simpler_recipe_is_kept(night: Night) -> None:
    night.playbook(SIMPLER)
    half = rewriting(lambda rows: [{**row, "passed": int(row["id"].split("-")[1]) % 2 == 0} for row in rows])
    assert night.start(launcher=half, max_experiments=1).kept == (1,)


@pytest.mark.parametrize("answered", [0, 1])
def test_an_evaluation_of_fewer_than_two_prompts_is_no_measurement(night: Night, answered: int) -> None:
    night.playbook(RATE_UP)
    with pytest.raises(TrainingFailed, match="prompt of the search split, and a comparison needs 2") as caught:
        night.start(launcher=rewriting(lambda rows: rows[:answered]))
    assert "raft-agent diagnose untrained-search" in str(caught.value)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("where", ["001-search", "001-confirm"])
def test_an_idea_whose_evaluation_is_lost_is_a_crash(night: Night, where: str) -> None:
    night.playbook(RATE_UP)
    assert night.start(launcher=rewriting(lambda rows: rows[:1], where), max_experiments=1).kept == ()
    status, reason = outcomes(night)["rate-up"]
    assert status == "crash"
    assert "its evaluation has one prompt of the" in reason


def test_a_training_is_not_given_up_for_a_single_prompt(tmp_path: Path) -> None:
    """One prompt of `select`, or two of `search` of which one is answered: nothing to compare, and no traceback."""
    curves = [[SelectRow(cycle=n, budget_spent=n / 4, scores={"p": [1.0]}) for n in range(5)] for _ in range(3)]
    known = [Scores(("a", "b"), values) for values in [[1.0, 1.0], [1.0, 0.0]]]  # type: ignore[arg-type]
    early = Hopeless(Evaluation(search_prompts=2), curves=curves, scores=known, noise=None)
    (tmp_path / "select.jsonl").write_text('{"cycle": 1, "budget_spent": 0.5, "scores": {"p": [0.0]}}\n')
    row = {"split": "search", "id": "a", "sample": 0, "reward": 0, "passed": False, "tokens": 3}
    (tmp_path / "eval.jsonl").write_text(json.dumps({**row, "finish_reason": "stop"}) + "\n")
    assert early.why(tmp_path) is None


# --- calibration -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_seed_that_crashes_is_left_out_and_said(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)
    ending = night.start(launcher=crashing("baseline-s2"), max_experiments=2)
    crashed, alone = night.observer.warnings[:2]
    assert crashed.startswith("a baseline run crashed (unknown: ")
    assert crashed.endswith("its seed is left out of the calibration")
    assert alone.startswith("one baseline seed is left: until a confirmation has measured the run noise")
    assert any("run noise unknown over 1 seed" in said and "seeds" not in said for said in night.observer.said)
    assert ending.kept == (1,)  # by its confirming runs, which measure the noise themselves


def test_a_baseline_that_measures_nothing_valid_ends_the_campaign_in_words(night: Night) -> None:
    night.playbook(RATE_UP)
    with pytest.raises(TrainingFailed, match="nothing can be compared with this run"):
        night.start(launcher=rewriting(lambda rows: [], "baseline"))


@pytest.mark.parametrize(("prompts", "warned"), [(20, True), pytest.param(200, False, marks=pytest.mark.slow)])
def test_a_holdout_too_small_for_the_detectable_gain_is_said(night: Night, prompts: int, warned: bool) -> None:
    night.playbook(NOTHING)
    measure(night, holdout_prompts=prompts)
    night.start(max_experiments=1)
    said = [text for text in night.observer.warnings if text.startswith(f"the holdout's {prompts} prompts show a gain")]
    assert bool(said) is warned
    if said:
        enough = int(said[0].split("evaluation.holdout_prompts: ")[1].split()[0])
        assert 20 < enough <= 200


def test_the_detectable_gain_is_that_of_the_split_that_confirms(night: Night) -> None:
    night.playbook(NOTHING)
    measure(night, confirm_prompts=2)
    ending = night.start(max_experiments=1)
    assert "the held-out prompts were too few to show any gain that was left" in ending.headline
    assert any("cannot be shown: raise evaluation.search_prompts and confirm_prompts" in text
               for text in night.observer.warnings)  # fmt: skip


# --- min_effect and directions -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_min_effect_beyond_what_is_left_is_said_and_is_no_licence_to_lose(night: Night) -> None:
    """min_effect is also the margin by which a simpler recipe may be worse: 90 points would take any recipe."""
    night.playbook(SIMPLER, RATE_UP)
    measure(night, min_effect=0.9)
    ending = night.start(max_experiments=2)
    assert ending.kept == ()
    assert night.observer.warnings[0].startswith(
        "evaluation.min_effect asks for +90.0pp and the baseline leaves +63.0pp to gain: no gain can be kept"
    )
    assert outcomes(night)["rate-up"][1].startswith("too small: ")


@pytest.mark.slow
def test_a_metric_that_is_to_fall(night: Night) -> None:
    night.playbook(hypothesis("rate-down", 0.9, scale={"learner.learning_rate": 0.5}), RATE_UP)
    measure(night, direction="minimize")
    ending = night.start(max_experiments=2)
    found = outcomes(night)
    assert found["rate-down"][0] == "keep"
    assert found["rate-up"][1].startswith("regressed: ")
    row = next(row for row in read_rows(night.workspace.results) if row["hypothesis"] == "rate-down")
    assert float(row["metric_value"]) < float(row["incumbent_value"])
    assert float(row["ci_low"]) < float(row["delta"]) < float(row["ci_high"]) < 0
    assert ending.holdout["winner"] < ending.holdout["baseline"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guard", "kept"),
    [
        ({"metric": "mean_reward", "direction": "minimize"}, False),
        ({"metric": "mean_reward", "direction": "minimize", "margin": 0.5}, True),
        ({"metric": "mean_tokens", "direction": "minimize"}, True),
    ],
    ids=["rises with the metric", "within its margin", "does not move"],
)
def test_a_second_metric_that_is_to_fall_while_the_first_rises(night: Night, guard: dict[str, Any], kept: bool) -> None:
    night.playbook(RATE_UP)
    measure(night, guards=[guard])
    ending = night.start(max_experiments=1)
    assert ending.kept == ((1,) if kept else ())
    if not kept:
        status, reason = outcomes(night)["rate-up"]
        assert status == "discard"
        assert reason.startswith("guard: mean_reward ")
        assert reason.endswith("worse by more than 0 (it is to be minimized)")


# --- checkpoints that are gone -----------------------------------------------------------------------------


@pytest.mark.slow
def test_another_run_stands_in_for_a_checkpoint_that_was_deleted(night: Night) -> None:
    night.playbook(RATE_UP)
    ending = night.start(launcher=deleting("baseline-s1", before="holdout-untrained"), max_experiments=1)
    assert ending.holdout["winner - baseline"]["low"] > 0
    assert "not evaluated" not in ending.holdout


@pytest.mark.slow
def test_a_winner_without_checkpoints_is_said_and_not_called_reproduced(night: Night) -> None:
    night.playbook(RATE_UP)
    ending = night.start(launcher=deleting("001-*", before="holdout-untrained"), max_experiments=1)
    assert ending.kept == (1,)
    assert ending.holdout["not evaluated"] == {"winner": "its checkpoints are gone"}
    assert "winner unknown; without the winner the holdout says nothing of the confirmed gain" in ending.headline
    assert "not on the holdout: winner, its checkpoints are gone" in ending.lines
    assert "nan" not in " ".join(ending.lines)
    assert ending.checkpoint is None


@pytest.mark.slow
def test_an_evaluation_of_the_holdout_that_crashes_is_said(night: Night) -> None:
    night.playbook(RATE_UP)
    ending = night.start(launcher=crashing("holdout-baseline"), max_experiments=1)
    assert "baseline unknown" in ending.headline
    assert ending.holdout["not evaluated"]["baseline"].startswith("holdout-baseline-baseline-s1: unknown: ")
    assert "nan" not in " ".join(ending.lines)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "told"), [(1, False), (2, True)])
def test_a_holdout_whose_time_ends_tells_what_was_measured_by_then(night: Night, at: int, told: bool) -> None:
    """Where each arm has a checkpoint that was evaluated, and not without that."""
    night.playbook(RATE_UP)
    ending = night.start(launcher=cut_short("holdout-winner", at=at), max_experiments=1)
    assert ending.kept == (1,)
    assert ("winner - baseline" in ending.holdout) is told
    assert ending.holdout.get("skipped") == (None if told else "the holdout was not evaluated: the budget is spent")
    if told:
        assert {arm: one["runs"] for arm, one in ending.holdout["arms"].items()} == {
            "untrained": 1, "baseline": 2, "winner": 1
        }  # fmt: skip


@pytest.mark.slow
def test_a_probe_of_a_checkpoint_that_is_gone_is_said(night: Night) -> None:
    night.playbook({**RATE_UP, "watch": ["wordings"]})
    probe = {"name": "polite", "set": {"prompt.system": "Please."}}
    watches = {"watches": [{"id": "wordings", "read": "other words", "probe": [probe]}]}
    (night.workspace.hypotheses / "watches.yaml").write_text(yaml.safe_dump(watches))
    night.start(launcher=deleting("baseline-*", before="probe"), max_experiments=1)
    note = night.git("log", "-1", "--notes=raft", "raft/night/exp/001-rate-up-up")
    assert "watch wordings: not probed: unknown: " in note


@pytest.mark.slow
@pytest.mark.parametrize(("gone", "kept"), [("001-confirm-s1100", True), ("001-confirm-*", False)])
def test_what_is_too_good_and_cannot_be_evaluated_again_is_not_kept(
    night: Night, monkeypatch: pytest.MonkeyPatch, gone: str, kept: bool
) -> None:
    monkeypatch.setattr(guards, "TOO_GOOD_SHARE", 0.4)
    night.playbook(RATE_UP)
    ending = night.start(launcher=deleting(gone, before="again"), max_experiments=1)
    assert ending.kept == ((1,) if kept else ())
    if not kept:
        status, reason = outcomes(night)["rate-up"]
        assert status == "discard"
        assert "for one change is too good; it could not be evaluated again: 001-confirm-s110" in reason
