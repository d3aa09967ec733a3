"""Runs that somebody or their time limit cut: what is no result, what goes on, and what a later session makes of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from nights import BETTER_RATE, MACHINE, NOTHING, Night, fake_launch, forked_launch

from agent.campaign.jobs import confirming
from agent.campaign.lab import CutShort, Order
from agent.campaign.open import resume
from agent.campaign.rules import Rules
from agent.campaign.runs import Runner
from agent.campaign.screening import seconds_to_go_on
from agent.campaign.session import Session
from agent.campaign.stopping import PAUSED
from agent.campaign.workbench import Workbench
from agent.contract import EVAL, SUMMARY
from agent.errors import TrainingFailed
from agent.run.request import RunRequest, RunResult
from agent.run.telemetry import read_summary
from agent.run.watching import EndedBy


def cut(result: RunResult, *, by: EndedBy, reason: str, answered: int = 3) -> RunResult:
    """What a trainer leaves that SIGTERM met in its final evaluation: the rows of the prompts answered first, and a
    summary that tells no metric."""
    rows, summary = result.out / EVAL, result.out / SUMMARY
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:answered]))
    told = json.loads(summary.read_text())
    summary.write_text(json.dumps({**told, "stopped": True, "ended_by": "sigterm", "metrics": {}}))
    return dataclasses.replace(result, ended_by=by, reason=reason, summary=read_summary(result.out))


def cutting(key: str, *, by: EndedBy, reason: str = "exit code 0", starts: int = 1) -> Callable[..., RunResult]:
    """The first starts of that run are cut."""
    left = starts

    def launcher(request: RunRequest, **keys: Any) -> RunResult:
        nonlocal left
        result = forked_launch(request, **keys)
        if request.out.name != key or not left:
            return result
        left -= 1
        return cut(result, by=by, reason=reason)

    return launcher


def runs_of(night: Night, key: str) -> list[tuple[str, str | None, str | None]]:
    """(how it ended, class, subtype) of each start of the run, by the journal."""
    assert night.session is not None
    ended = [
        run.finished for run in night.session.state.runs.values() if run.words and run.words.out.endswith(f"/{key}")
    ]
    told = [(one, (one.model_extra or {}).get("diagnosis") or {}) for one in ended if one]
    return [(one.ended_by, found.get("crash_class"), found.get("signature")) for one, found in told]


# --- what is no result -------------------------------------------------------------------------------------

LIMIT = "the time limit of 60 s was reached; the trainer left"


@pytest.mark.slow
def test_a_baseline_that_its_time_limit_cut_in_its_evaluation_is_not_measured(night: Night) -> None:
    """Every later comparison would be one of the few prompts that it had answered."""
    night.playbook(BETTER_RATE)
    night.start(launcher=cutting("baseline-s2", by="time_limit", reason=LIMIT), baseline_seeds=3, max_experiments=1)
    assert runs_of(night, "baseline-s2") == [("time_limit", "timeout", "time_limit")]
    assert any("baseline run crashed (timeout: it ran out of time" in said for said in night.observer.warnings)
    assert night.session is not None
    assert night.session.state.calibration["seeds"] == 2
    assert night.outcomes()[1:] == [("better-rate", "keep")]


def test_an_idea_that_its_time_limit_cut_in_its_evaluation_is_a_timeout(night: Night) -> None:
    night.playbook(BETTER_RATE)
    bench = night.bench(night.open(), launcher=cutting("001-search-s1000", by="time_limit", reason=LIMIT))
    bench.next_idea()
    bench.commit(1)
    done = bench.run(Order(1, "search"))
    assert not done.ok
    assert (done.crash_words or "").startswith("timeout: it ran out of time")
    assert not night.bench(night.session).run(Order(1, "search")).ok  # type: ignore[arg-type]
    assert night.starts() == {"001-search-s1000": "x"}


@pytest.mark.slow
def test_somebody_elses_sigterm_ends_no_campaign_and_the_run_goes_on(night: Night) -> None:
    """earlyoom sends it, or a person who takes the trainer for something else."""
    night.playbook(NOTHING)
    ending = night.start(launcher=cutting("001-search-s1000", by="itself"), max_experiments=1)
    assert ending.reason == "--max-experiments 1 reached"
    assert runs_of(night, "001-search-s1000") == [("itself", "unknown", "outside-kill"), ("itself", None, None)]
    assert night.starts()["001-search-s1000"] == "xx"
    assert "  it was ended (SIGTERM) from outside: going on with it" in night.observer.said
    assert night.outcomes()[1:] == [("placebo", "discard")]


def screened(night: Night, session: Session, launcher: Callable[..., RunResult]) -> Workbench:
    """The first idea has had its first part, and waits."""
    bench = night.bench(session, launcher=launcher, rules=Rules(batch=4, screen_share=0.4))
    bench.next_idea(batch=0)
    bench.commit(1)
    assert (bench.screen(1).ended_early or "").startswith(PAUSED)
    return bench


@pytest.mark.slow
def test_what_was_paused_before_somebody_ended_it_goes_on_too(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its first part left was told to the journal, and is not what the training left that was ended."""
    monkeypatch.setenv("FAKE_PACE", "0.25")
    night.playbook(BETTER_RATE)
    session, starts = night.open(), 0

    def launcher(request: RunRequest, **keys: Any) -> RunResult:
        nonlocal starts
        starts += 1
        result = forked_launch(request, **keys)
        return cut(result, by="itself", reason="exit code 0") if starts == 2 else result

    bench = screened(night, session, launcher)
    assert bench.run(Order(1, "search")).ok
    assert night.starts() == {"001-search-s1000": "xxx"}
    assert not night.observer.warnings
    assert not session.lockbox.void


@pytest.mark.slow
def test_what_a_paused_training_still_takes_is_all_of_it_where_it_begins_anew(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.25")
    night.playbook(BETTER_RATE)
    session = night.open()
    bench = screened(night, session, forked_launch)
    monkeypatch.setattr(Workbench, "screen_share", 0.4)
    cost = bench.cost(bench.lead)
    assert seconds_to_go_on(bench, 1) == seconds_to_go_on(bench) == pytest.approx(cost.total_s - 0.4 * cost.train_s)
    session.tell("shared_layer_changed", values={"backend.attention": "eager"}, env={}, why="a fault")
    assert seconds_to_go_on(bench, 1) == pytest.approx(cost.total_s)


@pytest.mark.parametrize("anew", [False, True])
def test_a_crash_of_what_was_stopped_before_is_read_back(night: Night, anew: bool) -> None:
    """`anew`: the layer below has changed its recipe in between, so that it began in a fresh folder."""
    night.playbook(BETTER_RATE)
    session, starts = night.open(), 0

    def launcher(request: RunRequest, **keys: Any) -> RunResult:
        nonlocal starts
        starts += 1
        result = forked_launch(request, **keys)
        if starts == 1:
            return cut(result, by="stop", reason="stopped by Ctrl-C")
        (result.out / SUMMARY).unlink()
        return dataclasses.replace(result, exit_code=1, summary=None, reason="exit code 1")

    bench = night.bench(session, launcher=launcher)
    bench.next_idea()
    bench.commit(1)
    order = Order(1, "candidate")
    session.stop_request = lambda: "stopped by Ctrl-C" if starts == 1 else None
    with pytest.raises(CutShort):
        bench.runner.run(confirming(session, order))
    session.stop_request = lambda: None
    if anew:
        session.tell("shared_layer_changed", values={"backend.attention": "eager"}, env={}, why="a fault")
    assert not bench.runner.run(confirming(session, order)).ok
    before = night.starts()
    session.close()
    later = resume(
        night.workspace, None, observer=night.observer, machine=MACHINE, model_cache=night.models,
        stop_request=lambda: None,
    )  # fmt: skip
    assert not night.bench(later).runner.run(confirming(later, order)).ok
    assert night.starts() == before
    assert not night.observer.warnings


def test_a_run_that_somebody_ends_again_and_again_is_a_crash(night: Night) -> None:
    night.playbook(NOTHING)
    bench = night.bench(night.open(), launcher=cutting("001-confirm-s1100", by="itself", starts=2))
    bench.next_idea()
    bench.commit(1)
    done = bench.run(Order(1, "candidate"))
    assert done.crash_words == "unknown: was ended (SIGTERM) from outside"
    assert night.starts() == {"001-confirm-s1100": "xx"}


def test_a_shutdown_that_asks_the_trainer_first_pauses_the_campaign(night: Night) -> None:
    """It asks the agent too, which knows of it by the time that the trainer has left."""
    night.playbook(NOTHING)
    session = night.open()
    cuts = cutting("001-search-s1000", by="itself")

    def launcher(request: RunRequest, **keys: Any) -> RunResult:
        session.stop_request = lambda: "stopped by SIGTERM"
        return cuts(request, **keys)

    bench = night.bench(session, launcher=launcher)
    bench.next_idea()
    bench.commit(1)
    with pytest.raises(CutShort, match="stopped by SIGTERM"):
        bench.run(Order(1, "search"))
    assert runs_of(night, "001-search-s1000") == [("stop", None, None)]


# --- another recipe than the one that was interrupted ------------------------------------------------------


@pytest.mark.slow
def test_a_paused_training_begins_anew_once_the_layer_below_has_changed(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later idea of the batch met a fault of the backend, and what helped holds for all runs from then on."""
    monkeypatch.setenv("FAKE_PACE", "0.25")
    night.playbook(BETTER_RATE)
    session = night.open()
    bench = night.bench(session, launcher=fake_launch(), rules=Rules(batch=4, screen_share=0.4))
    bench.next_idea(batch=0)
    bench.commit(1)
    assert (bench.screen(1).ended_early or "").startswith(PAUSED)
    session.tell("shared_layer_changed", values={"backend.attention": "eager"}, env={}, why="a fault")
    monkeypatch.setenv("FAKE_PACE", "0")
    done = bench.run(Order(1, "search"))
    assert done.ok
    assert done.record.cycles[-1].cycle == 5
    assert night.starts() == {"001-search-s1000": "x", "001-search-s1000.changed-1": "x"}
    assert night.trained("001-search-s1000") == "12345"
    assert not (night.folder("001-search-s1000.changed-1") / "state").exists(), "which takes room for nothing"
    notes = [note.text for note in session.state.notes if (note.model_extra or {}).get("begun_anew")]
    assert notes == [
        "001-search-s1000 begins anew: its recipe has changed since its last start (the layer below all runs)"
    ]
    assert night.bench(session).run(Order(1, "search")).ok, "read back"
    bench.close()


# --- before anything was measured --------------------------------------------------------------------------


@pytest.mark.slow
def test_no_guess_ends_the_first_runs_which_may_have_to_fetch_their_model(night: Night) -> None:
    night.playbook(BETTER_RATE)
    limits: dict[str, float] = {}

    def launcher(request: RunRequest, **keys: Any) -> RunResult:
        limits[request.out.name] = request.time_limit_s
        return forked_launch(request, **keys)

    night.start(launcher=launcher, max_experiments=1, budget_s=6000.0)
    assert list(limits)[:2] == ["untrained-search", "baseline-s1"]
    assert limits["untrained-search"] > limits["baseline-s1"] > 5900
    assert all(limit < 70 for limit in list(limits.values())[2:]), "twice what was measured, and a minute"


def test_what_a_user_allows_one_run_holds_for_the_first_ones_too(night: Night) -> None:
    assert Runner(night.open(per_experiment_s=50.0))._time_limit(None) == 50.0


@pytest.mark.slow
@pytest.mark.parametrize("key", ["untrained-search", "baseline-s1"])
def test_a_campaign_whose_first_run_its_time_limit_cut_can_be_resumed(night: Night, key: str) -> None:
    night.playbook(BETTER_RATE)
    with pytest.raises(TrainingFailed, match="the baseline does not run"):
        night.start(launcher=cutting(key, by="time_limit", reason=LIMIT), max_experiments=1, per_experiment_s=60.0)
    night.resume()
    assert runs_of(night, key) == [("time_limit", "timeout", "time_limit"), ("itself", None, None)]
    assert night.outcomes()[1:] == [("better-rate", "keep")]
