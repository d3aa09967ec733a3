"""The machine's own faults: two GPU faults in a row, a recipe that takes the machine down, memory that stays away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nights import NO_DEDUP, NOTHING, Night, forked_launch

from agent.campaign.machine_health import (
    MachineUnwell,
    faults_in_a_row,
    poison,
    refuse_faults,
    runs_of_other_campaigns,
    went_down,
)
from agent.contract import LOG
from agent.errors import TrainingFailed
from agent.ledger.journal import Journal
from agent.recipe.files import load_recipe, with_keys
from agent.run.processes import boot_id, identify
from agent.run.request import RunRequest, RunResult
from agent.run.stall import LOST_QUEUE

GPU_FAULT = {"crash_class": "backend", "reason": "the GPU faulted", "signature": "gpu-fault"}
LOST = {
    "crash_class": "timeout",
    "signature": "hang",
    "reason": f"it hung: no heartbeat for 130 s in train; its memory is flat (so does {LOST_QUEUE})",
}
TYPO = {"crash_class": "typo", "reason": "unknown key", "signature": "key"}
SUMMARY = {"cycles": 3}


def journal(folder: Path, name: str = "night") -> Journal:
    return Journal(folder / name / "journal.jsonl", clock=lambda: 0.0)


def started(of: Journal, run: str, *, boot: str, signature: str = "poisoned") -> None:
    of.append(
        "run_started", run=run, role="experiment", rung="full", seed=1, recipe_signature=signature, out=f"runs/{run}",
        pid=1, process_started=1.0, boot_id=boot,
    )  # fmt: skip


def finished(of: Journal, run: str, ended_by: str = "itself", **fields: Any) -> None:
    of.append("run_finished", run=run, ended_by=ended_by, **fields)


# --- GPU faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "row"),
    [
        (["fault"], ["0"]),
        (["fault", "fault"], ["0", "1"]),
        (["fault", "good", "fault"], ["2"]),
        (["fault", "typo", "lost", "fault"], ["0", "3"]),
        (["fault", "hang"], ["0", "1"]),
        (["fault", "fault", "good"], []),
        (["fault", "resumed", "fault"], ["2"]),
    ],
)
def test_faults_count_with_no_good_run_between_since_somebody_looked(
    tmp_path: Path, runs: list[str], row: list[str]
) -> None:
    told = journal(tmp_path)
    for number, what in enumerate(runs):
        match what:
            case "fault":
                finished(told, str(number), diagnosis=GPU_FAULT)
            case "hang":
                finished(told, str(number), "hang", diagnosis=LOST)
            case "typo":
                finished(told, str(number), diagnosis=TYPO)
            case "good":
                finished(told, str(number), summary=SUMMARY)
            case "lost":
                finished(told, str(number), "lost")
            case "resumed":
                told.append("campaign_resumed")
    events = list(told.events())
    assert [event.run for event in faults_in_a_row(events, accelerators=1)] == row
    if len(row) >= 2:
        with pytest.raises(MachineUnwell, match="2 GPU faults in a row"):
            refuse_faults(events, accelerators=1)
    else:
        refuse_faults(events, accelerators=1)


def test_a_hang_without_a_gpu_is_none_of_its_faults(tmp_path: Path) -> None:
    told = journal(tmp_path)
    finished(told, "a", "hang", diagnosis=LOST)
    finished(told, "b", "hang", diagnosis=LOST)
    assert faults_in_a_row(told.events(), accelerators=0) == []
    assert len(faults_in_a_row(told.events(), accelerators=1)) == 2


def test_a_hang_that_does_not_look_like_a_lost_queue_is_the_recipes(tmp_path: Path) -> None:
    """A verifier that waits for ever hangs on every machine, and again when it is repeated."""
    told = journal(tmp_path)
    for run in "ab":
        finished(told, run, "hang", diagnosis={**LOST, "reason": "it hung: no heartbeat for 300 s in verify"})
    assert faults_in_a_row(told.events(), accelerators=1) == []


def test_trials_of_the_layer_below_are_no_faults_of_the_night(tmp_path: Path) -> None:
    told = journal(tmp_path)
    finished(told, "whole", diagnosis=GPU_FAULT)
    told.append(
        "run_planned",
        run="trial",
        experiment=1,
        role="experiment",
        rung="screen",
        arm="probe",
        seed=1,
        recipe_signature="r",
        out="trial",
    )
    finished(told, "trial", diagnosis=GPU_FAULT)
    assert [event.run for event in faults_in_a_row(told.events(), accelerators=1)] == ["whole"]


def test_the_kernels_word_on_a_display_is_none_where_nothing_trains_on_a_card(tmp_path: Path) -> None:
    told = journal(tmp_path)
    finished(told, "a", diagnosis={**GPU_FAULT, "source": "kernel"})
    assert faults_in_a_row(told.events(), accelerators=0) == []
    assert len(faults_in_a_row(told.events(), accelerators=1)) == 1


@pytest.mark.slow
def test_two_gpu_faults_in_a_row_end_the_night_with_its_holdout(night: Night) -> None:
    night.playbook(NOTHING, NO_DEDUP)
    ending = night.start(launcher=breaks_when(lambda request: request.out.name.startswith("00")))
    assert ending.reason.startswith("2 GPU faults in a row (001-search-s")
    assert "raft-agent doctor" in ending.reason
    assert "skipped" not in ending.holdout
    assert night.session is not None
    assert night.session.state.status == "finished"
    whole = [run for run in night.session.state.runs if run.startswith("00") and "-trial-" not in run]
    assert len(whole) == 2


@pytest.mark.slow
def test_where_the_gpu_is_gone_for_good_the_holdout_is_skipped_in_good_order(night: Night) -> None:
    night.playbook(NOTHING, NO_DEDUP)
    ending = night.start(launcher=breaks_when(lambda request: request.out.name.startswith(("00", "holdout"))))
    assert ending.reason.startswith("2 GPU faults in a row")
    assert "3 GPU faults in a row" in ending.holdout["skipped"]


def breaks_when(broken: Callable[[RunRequest], bool]) -> Callable[..., RunResult]:
    """Runs that ROCm aborts with a memory access fault (the text of ROCm legacy-rocm-build#5824)."""

    def launcher(request: RunRequest, *, on_started: Any, **keys: Any) -> RunResult:
        if not broken(request):
            return forked_launch(request, on_started=on_started, **keys)
        request.out.mkdir(parents=True, exist_ok=True)
        on_started(identify(1))
        (request.out / LOG).write_text(
            "Memory access fault by GPU node-1 (Agent handle: 0x55d0c8a0) on address 0x7f2a5c000000. Reason: Page not "
            "present or supervisor privilege.\n"
        )
        return RunResult(request.out, None, 6, "itself", "ended by signal 6 (SIGABRT)", 1.0, None, None)

    return launcher


# --- a recipe that takes the machine down ------------------------------------------------------------------


def test_a_run_without_an_end_before_the_next_boot_took_the_machine_down(tmp_path: Path) -> None:
    told = journal(tmp_path)
    started(told, "down", boot="monday")
    started(told, "closed-by-the-next-session", boot="monday")
    finished(told, "closed-by-the-next-session", "lost", boot_id="tuesday")
    started(told, "agent-killed", boot="monday")
    finished(told, "agent-killed", "lost", boot_id="monday")
    started(told, "well", boot="monday")
    finished(told, "well", summary=SUMMARY)
    started(told, "runs-now", boot="tuesday")
    down = {name for name, run in told.state().runs.items() if went_down(run, boot_id="tuesday")}
    assert down == {"down", "closed-by-the-next-session"}


def test_twice_is_poison_over_all_campaigns_of_the_workspace(tmp_path: Path) -> None:
    first, second = journal(tmp_path, "first"), journal(tmp_path, "second")
    started(first, "001-search", boot="monday")
    started(second, "004-search", boot="tuesday")
    started(second, "005-search", boot="tuesday", signature="another")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "journal.jsonl").write_bytes(b"\xff\x00 no journal\n")
    elsewhere = runs_of_other_campaigns(tmp_path / "second")
    assert [run.id for run in elsewhere] == ["001-search"]
    runs = [*elsewhere, *second.state().runs.values()]
    diagnosis = poison("poisoned", runs, boot_id="wednesday")
    assert diagnosis is not None
    assert diagnosis.reason == (
        "the machine went down 2 times while this recipe ran (001-search, 004-search): it is not started again; "
        "if these were power cuts, give it another `seed`, which makes it another recipe"
    )
    assert poison("poisoned", runs, boot_id="tuesday") is None  # the second one may still run
    assert poison("another", runs, boot_id="wednesday") is None


def taken_down_by(night: Night, signature: str) -> None:
    """Another campaign of the workspace, in whose journal the machine went down twice."""
    other = Journal(night.workspace.journal_path("earlier"))
    for number, boot in enumerate(("monday", "tuesday")):
        started(other, f"001-search-{number}", boot=boot, signature=signature)


def test_an_idea_that_took_the_machine_down_twice_is_a_crash_and_never_starts(night: Night) -> None:
    night.playbook(NOTHING)
    recipe = with_keys(load_recipe(night.root / "recipes/test.yaml"), {"execution.placebo": 1})
    taken_down_by(night, recipe.signature())
    night.start()
    assert night.outcomes() == [("baseline", "keep"), ("placebo", "crash")]
    assert "the machine went down 2 times" in night.judged(1).reason
    assert not [name for name in night.starts() if name.startswith("001")]


def test_a_baseline_that_took_the_machine_down_twice_refuses_to_start(night: Night) -> None:
    night.playbook(NOTHING)
    taken_down_by(night, load_recipe(night.root / "recipes/test.yaml").signature())
    with pytest.raises(TrainingFailed, match="the machine went down 2 times"):
        night.start()
    assert night.starts() == {}


# --- what the launcher saw ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_that_does_not_come_back_is_warned_of_and_in_the_journal(night: Night) -> None:
    night.playbook(NOTHING)

    def launcher(request: RunRequest, **keys: Any) -> RunResult:
        held = {"memory_back": False, "held_gb": 3.25, "held_by": "a driver keeps it", "notes": ("it crawls",)}
        return replace(forked_launch(request, **keys), **held)  # type: ignore[arg-type]  # of several types

    night.start(launcher=launcher, max_experiments=1)
    assert any("3.2 GiB of memory did not come back" in warning for warning in night.observer.warnings)
    assert "it crawls" in night.observer.warnings
    assert night.session is not None
    ended = [run.finished for run in night.session.state.runs.values() if run.finished]
    assert {(event.model_extra or {})["memory_back"] for event in ended} == {False}


@pytest.mark.slow
def test_a_run_that_an_earlier_session_lost_is_closed_with_the_boot_in_which_that_was_seen(night: Night) -> None:
    night.playbook(NOTHING)

    def dies(*_: Any, on_started: Any, **__: Any) -> RunResult:
        on_started(replace(identify(1), boot_id="monday"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        night.start(launcher=dies)
    night.resume()
    assert night.session is not None
    lost = [run for run in night.session.state.runs.values() if run.finished and run.finished.ended_by == "lost"]
    assert len(lost) == 1
    assert (lost[0].finished.model_extra or {})["boot_id"] == boot_id()  # type: ignore[union-attr]
    assert went_down(lost[0], boot_id=boot_id())
