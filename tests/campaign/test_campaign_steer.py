"""A campaign whose user writes into steer.md while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from nights import (
    BETTER_RATE,
    MACHINE,
    NO_DEDUP,
    NOTHING,
    RECIPE,
    Dies,
    Night,
    dying_at,
    forked_launch,
    hypothesis,
    new_night,
)

from agent.campaign import choose, pausing
from agent.campaign import open as opening
from agent.campaign.loop import Paused
from agent.campaign.rules import Rules
from agent.campaign.session import Session
from agent.campaign.steering import SETTLED_S, text_of
from agent.campaign.workbench import Workbench
from agent.cli.main import register
from agent.cli.main import run as run_command
from agent.files import stamp_of
from agent.ledger.events import ExperimentPlanned
from agent.plan.steer import Problem
from agent.run.request import RunRequest

A = hypothesis("beta", 0.95, set={"learner.beta2": 0.9})
B = hypothesis("clip", 0.9, set={"learner.max_grad_norm": 0.5})
C = hypothesis("decay", 0.85, set={"learner.weight_decay": 0.1})


@pytest.fixture
def night(tmp_path: Path) -> Night:
    night = new_night(tmp_path)
    night.playbook(A, B, C, NOTHING)  # in the order of their priors; none does anything, which takes the least time
    return night


@pytest.fixture
def folder(night: Night) -> Path:
    return night.workspace.campaign_folder("night")


def steer(night: Night, *lines: str) -> None:
    """Written a while ago."""
    path = night.root / "steer.md"
    path.write_text("".join(f"- {line}\n" for line in lines))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))


def tried(night: Night) -> list[str]:
    """Hypotheses in the order in which they were planned."""
    assert night.session is not None
    planned = [event for event in night.session.journal.events() if isinstance(event, ExperimentPlanned)]
    return [event.hypothesis for event in planned if event.experiment]


def when_run(key: str, what: Callable[[], Any]) -> Callable[..., Any]:
    """Does `what` as the run of this key starts, once."""
    done: list[int] = []

    def launcher(request: RunRequest, **keys: Any) -> Any:
        if request.out.name.startswith(f"{key}-s") and not done:
            done.append(1)
            what()
        return forked_launch(request, **keys)

    return launcher


# --- pin, ban, try -----------------------------------------------------------------------------------------


@pytest.fixture
def bench(night: Night) -> Workbench:
    """Of a campaign that has started and plans, without a training."""
    bench = night.bench(night.open())
    bench.session.close()
    bench.plan_baseline()
    return bench


def test_what_is_pinned_is_planned_and_what_is_banned_is_not(night: Night, bench: Workbench) -> None:
    steer(night, "pin hypothesis decay", "pin hypothesis placebo", "ban key execution.placebo")
    bench.next_idea()
    assert tried(night) == ["decay"]
    planned = bench.session.state.experiments[1].planned
    assert planned is not None
    assert planned.model_extra is not None
    assert planned.model_extra["steering"] == [
        "pin hypothesis decay", "pin hypothesis placebo", "ban key execution.placebo",
    ]  # fmt: skip
    number, why = bench.next_idea(batch=0)
    assert number is None
    assert why.startswith("the playbook is exhausted")
    assert bench.waiting() == 0


def test_the_file_is_read_before_every_plan_and_said_when_it_changes(night: Night, bench: Workbench) -> None:
    bench.next_idea()
    steer(night, "ban hypothesis clip")
    bench.next_idea(batch=0)
    bench.next_idea(batch=2)
    (night.root / "steer.md").unlink()
    bench.next_idea()
    assert tried(night) == ["beta", "decay", "placebo", "clip"]
    told = [text for text in night.observer.said if text.startswith("steer.md")]
    assert told == ["steer.md: ban hypothesis clip (line 1)", "steer.md: nothing is in force"]
    notes = [note.text for note in bench.session.state.notes if "steering" in (note.model_extra or {})]
    assert notes == told


def test_an_idea_that_is_asked_for_comes_next_and_once(night: Night, bench: Workbench) -> None:
    steer(night, "pin hypothesis clip", "try learner.warmup 0.2", "try placebo/up")
    assert bench.asked_for()
    bench.next_idea()
    bench.next_idea(batch=0)  # what is screened together is of the playbook
    bench.next_idea()
    assert not bench.asked_for()
    assert tried(night) == ["steer", "clip", "placebo"]
    planned = bench.session.state.experiments[1].planned
    assert planned is not None
    assert planned.changes == {"learner.warmup": [0.0, 0.2]}
    assert planned.subject == "steer: warmup, 0 -> 0.2"


def test_what_may_not_be_tried_is_refused_in_words_and_once(night: Night, bench: Workbench) -> None:
    steer(night, "try seed 7", "try learner.learning_rate 5e-4", "try beta", "nonsense")
    bench.next_idea()
    bench.next_idea()
    assert tried(night) == ["beta", "clip"]
    wrong, locked, same = night.observer.warnings
    assert wrong.startswith("steer.md:4: 'nonsense' is no instruction")
    assert locked.startswith("steer.md:1 (try seed 7) is not tried: seed is locked")
    assert same.endswith("(try learner.learning_rate 5e-4) is not tried: the recipe has it already")


def test_what_the_layout_of_the_recipe_does_not_take_is_refused_too(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a campaign that was started before such a recipe was refused."""
    monkeypatch.setattr(opening, "refuse_uneditable", lambda text, where: None)
    (night.root / "recipes/test.yaml").write_text(RECIPE.replace("search_prompts: 200", "search_prompts: &n 200"))
    bench = night.bench(night.open())
    bench.session.close()
    bench.plan_baseline()
    steer(night, "try learner.warmup 0.2")
    assert bench._asked_idea() is None
    (told,) = night.observer.warnings
    assert told.startswith("steer.md:1 (try learner.warmup 0.2) is not tried: recipes/test.yaml:7: anchors and")
    assert not bench.asked_for()


def test_a_line_that_the_planner_trips_over_is_not_worth_a_night(
    night: Night, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*asked: Any, **known: Any) -> None:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(choose, "asked_for", trip)
    steer(night, "try learner.warmup 0.2")
    assert bench.next_idea()[0] == 1
    assert tried(night) == ["beta"]
    assert night.observer.warnings == [
        "steer.md:1 (try learner.warmup 0.2) is not tried: "
        "a mistake in raft-agent itself: ZeroDivisionError: float division by zero"
    ]
    assert not bench.asked_for()


def test_an_infinite_value_is_refused_as_any_that_is_out_of_range(night: Night, bench: Workbench) -> None:
    """Beside an idea of the same key that was tried before, from which it is told."""
    steer(night, "try learner.max_grad_norm 2")
    bench.next_idea()
    bench.session.tell("experiment_judged", experiment=1, outcome="discard", reason="no better")
    steer(night, "try learner.max_grad_norm .inf")
    assert bench.next_idea()[0] == 2
    (told,) = night.observer.warnings
    assert "is not tried: " in told
    assert "1e+06" in told or "1000000" in told


def test_a_session_that_goes_on_says_and_tries_nothing_twice(night: Night, bench: Workbench) -> None:
    steer(night, "try placebo", "ban axis nothing")
    bench.next_idea()
    told = list(night.observer.said), list(night.observer.warnings)
    bench.session.steering = bench.session._state = None  # as after a kill: all there is is the journal
    assert not bench.asked_for()
    assert not bench.wish_to_pause()
    assert (night.observer.said, night.observer.warnings) == told
    assert len(told[1]) == 1


def done_notes(bench: Workbench) -> list[str]:
    return [note.text for note in bench.session.journal.state().notes if "steer_done" in (note.model_extra or {})]


def forget_all_but_the_journal(bench: Workbench) -> None:
    """As a kill does."""
    bench.session.steering = None
    bench.session.journal._folding = None


def test_what_has_left_the_file_and_is_written_again_counts_again(night: Night, bench: Workbench) -> None:
    """Each reading may be the last before a kill: what it has seen, and what was done, is in the journal by then."""
    for _ in range(2):
        steer(night, "pause after this one", "try seed 7")
        for _ in range(3):
            forget_all_but_the_journal(bench)
            bench.wish_to_pause()
        bench.next_idea()
        bench.next_idea()
        steer(night, "ban hypothesis decay")
        for _ in range(3):
            forget_all_but_the_journal(bench)
            assert not bench.wish_to_pause()
    assert [text.split(" is not tried")[0] for text in done_notes(bench)] == [
        "steer.md:1 (pause after this one)", "steer.md:2 (try seed 7)",
        "steer.md:1 (pause after this one)", "steer.md:2 (try seed 7)",
    ]  # fmt: skip
    gone = [note.model_extra["steer_gone"] for note in bench.session.state.notes if "steer_gone" in note.model_extra]
    assert gone == [["pause after this one", "try seed 7"]] * 2
    assert night.observer.said.count("steer.md: ban hypothesis decay (line 1)") == 2


def test_what_was_read_before_a_kill_and_not_done_yet_is_done_once(night: Night, bench: Workbench) -> None:
    steer(night, "stop after this one")
    assert bench.wish_to_stop()
    bench.session.tell("campaign_finished", reason="by steer.md")
    bench.session.tell("campaign_resumed")
    assert bench.wish_to_stop() is None, "it was done, and still stands there"
    steer(night)
    assert bench.wish_to_stop() is None
    steer(night, "stop after this one")
    assert not bench.asked_for()  # this reads the file, and does nothing about it
    forget_all_but_the_journal(bench)
    assert bench.wish_to_stop() == "steer.md:1 (stop after this one)"
    forget_all_but_the_journal(bench)
    assert bench.wish_to_stop() == "steer.md:1 (stop after this one)", "until the campaign has ended"
    assert len(done_notes(bench)) == 2
    steer(night)
    assert bench.wish_to_stop()
    steer(night, "stop after this one")
    assert bench.wish_to_stop()
    bench.session.tell("campaign_finished", reason="by steer.md")
    bench.session.tell("campaign_resumed")
    assert bench.wish_to_stop() is None, "it was for the end that has come"


@pytest.mark.parametrize("text", ["<!-- now\n- pause after this one\n", b"\xff\n", "x" * (65 << 10), None])
def test_a_file_that_cannot_be_read_to_its_end_has_lost_nothing(night: Night, bench: Workbench, text: Any) -> None:
    path = night.root / "steer.md"
    steer(night, "pause after this one")
    assert bench.wish_to_pause()
    if text is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert bench.wish_to_pause() is None
    path.rmdir() if text is None else path.unlink()
    steer(night, "pause after this one")
    assert bench.wish_to_pause() is None
    assert len(done_notes(bench)) == 1


def test_a_missing_file_makes_nothing_count_again(night: Night, bench: Workbench) -> None:
    """An editor that saves puts another file in its place, and a checkout takes it away for a while."""
    for _ in range(2):
        steer(night, "pause after this one", "stop after this one")
        bench.wish_to_pause()
        bench.wish_to_stop()
        (night.root / "steer.md").unlink()
        for _ in range(2):
            assert bench.wish_to_pause() is None
    assert len(done_notes(bench)) == 2


def test_a_file_that_is_being_written_makes_nothing_count_again(night: Night, bench: Workbench) -> None:
    steer(night, "pause after this one")
    assert bench.wish_to_pause()
    path = night.root / "steer.md"
    for text in ("", "- ban axis nothing\n"):  # as of a save that is under way
        path.write_text(text)
        assert bench.wish_to_pause() is None
    path.write_text("- pause after this one\n")
    assert bench.wish_to_pause() is None
    path.write_text("")
    bench.session.journal.clock = lambda: time.time() + SETTLED_S
    assert bench.wish_to_pause() is None
    path.write_text("- pause after this one\n")
    assert bench.wish_to_pause(), "it has left the file, and nobody was writing"


@pytest.mark.parametrize(
    "line", ["pause after this", "PAUSE after this one, please", "  " * 9 + "- pause after this one", "*pause now"]
)
def test_a_line_with_a_mistake_may_be_the_instruction(night: Night, bench: Workbench, line: str) -> None:
    steer(night, "pause after this one", "try seed 7")
    assert bench.wish_to_pause()
    bench.next_idea()
    path = night.root / "steer.md"
    steer(night, line)
    if not line[0].isalpha():
        path.write_text(line.replace("*", "-") + "\n")
        os.utime(path, (0, 0))
    assert bench.wish_to_pause() is None
    steer(night, "pause after this one", "try seed 7")
    assert bench.wish_to_pause() is None
    gone = [
        told["steer_gone"] for note in bench.session.state.notes if "steer_gone" in (told := note.model_extra or {})
    ]
    assert gone == [["try seed 7"]]


def test_a_line_that_looks_like_a_secret_is_known_again_too(night: Night, bench: Workbench) -> None:
    token = f"hf_{'a1' * 12}"
    steer(night, f'try prompt.system: "{token}"', f"nonsense {token}")
    assert bench.next_idea()[0] == 1
    assert not bench.asked_for()
    assert not bench.wish_to_pause()
    assert len(night.observer.warnings) == 1


def test_a_pin_outside_of_a_directed_campaign_is_shown_and_not_followed(night: Night) -> None:
    bench = night.bench(night.open(only="decay"))
    bench.session.close()
    bench.plan_baseline()
    steer(night, "pin hypothesis placebo")
    bench.next_idea()
    assert tried(night) == ["decay"]
    assert "--only decay" in night.observer.warnings[0]


def test_what_was_screened_out_and_is_banned_gets_no_second_chance(night: Night, bench: Workbench) -> None:
    bench.next_idea(batch=0)
    steer(night, "ban key learner.beta2")
    assert bench.plan_again(1) is None


@pytest.mark.slow
def test_what_is_asked_for_is_trained_whole_and_the_rest_is_screened_as_steered(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.08")
    steer(night, "try placebo", "ban hypothesis beta")
    rules = Rules(batch=2, least_batch=2, screen_share=0.6, most_part=9.0, scarce=1e9, alone_runs=0)
    night.start(rules=rules, max_experiments=3)
    assert tried(night) == ["placebo", "clip", "decay"]
    assert night.session is not None
    batches = [
        (one.planned.model_extra or {}).get("batch") for one in night.session.state.experiments.values() if one.planned
    ]
    assert batches == [None, None, 0, 2]


# --- beside it ---------------------------------------------------------------------------------------------


def everything_in(root: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(root)): (stamp_of(path), path.read_bytes() if path.is_file() else None)
        for folder in (root / ".raft/campaigns", root / ".raft/runs")
        for path in folder.rglob("*")
    }


def test_who_looks_at_a_campaign_changes_nothing_of_it(
    night: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed, and rows of a run were changed since: the campaign itself puts that run aside."""
    with pytest.raises(Dies):
        night.start(launcher=dying_at(5), max_experiments=2)
    assert night.session is not None
    night.session.close()
    run = next(path for path in night.root.glob(".raft/runs/night/baseline-s*") if (path / "summary.json").exists())
    with (run / "eval.jsonl").open("a") as rows:
        rows.write("\n")
    steer(night, "try placebo")
    monkeypatch.chdir(night.root)
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(night.models))
    monkeypatch.setattr(opening, "machine_of", lambda workspace: MACHINE)
    register()
    before = everything_in(night.root)
    for command in (["steer"], ["plan"], ["simulate", "--fit", "night", "--nights", "1"]):
        code = run_command(command)
        assert code == 0 or "no calibrated baseline" in capsys.readouterr().err, command
        assert everything_in(night.root) == before, command
    bench = night.bench(reopened(night))
    bench.gather()
    assert list(night.root.glob(".raft/runs/night/*.changed-1"))
    assert bench.session.lockbox.void


def reopened(night: Night) -> Session:
    session = opening.resume(
        night.workspace, None, observer=night.observer, machine=MACHINE, model_cache=night.models,
        stop_request=lambda: None,
    )  # fmt: skip
    session.close()
    return session


def test_a_campaign_may_have_any_name_that_those_who_look_use(
    night: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished one is not what `steer` looks at."""
    monkeypatch.chdir(night.root)
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(night.models))
    monkeypatch.setattr(opening, "machine_of", lambda workspace: MACHINE)
    register()
    steer(night, "try beta")
    session = night.open(campaign="plan")
    words = {"hypothesis": "beta", "axis": "learning-rate", "slug": "x", "subject": "x"}
    changes = {"changes": {"learner.beta2": [0.95, 0.9]}}
    session.tell("experiment_planned", experiment=1, files={}, **words, **changes)
    session.tell("experiment_judged", experiment=1, outcome="discard", reason="x")
    session.tell("campaign_finished", reason="x")
    session.close()
    before = everything_in(night.root)
    assert run_command(["steer"]) == 0
    assert capsys.readouterr().out == "steered   steer.md:1 (try beta)\n"
    assert everything_in(night.root) == before


# --- the file ----------------------------------------------------------------------------------------------


def words(path: Path) -> str:
    found = text_of(path)
    assert isinstance(found, Problem)
    return found.words


def test_whatever_is_in_its_place_is_a_problem_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "steer.md"
    assert text_of(path) is None
    path.write_bytes(b"- pin axis prompt\n- \xff\n")
    assert words(path) == "steer.md:2: is not UTF-8; nothing of the file is in force"
    path.write_bytes(b"x" * (65 << 10))
    assert "larger than 64 KiB" in words(path)
    path.unlink()
    os.mkfifo(path)
    assert "no plain file" in words(path)
    path.unlink()
    path.symlink_to(path)
    assert "cannot be read" in words(path)
    path.unlink()
    path.mkdir()
    assert "is a folder" in words(path)


def test_a_folder_in_its_place_stops_nothing(night: Night, bench: Workbench) -> None:
    (night.root / "steer.md").mkdir()
    bench.next_idea()
    bench.next_idea()
    assert tried(night) == ["beta", "clip"]
    assert [text for text in night.observer.warnings if "steer.md" in text] == [
        "steer.md: is a folder; nothing of it is in force"
    ]


# --- stop, pause -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pauses_wait_for_the_idea_and_stop_ends_the_search(night: Night, folder: Path) -> None:
    """One campaign: paused by the file after its first idea, by a request after the second, stopped after the third."""
    with pytest.raises(Paused, match=r"steer.md:1 \(pause after this one\)"):
        night.start(launcher=when_run("001-search", lambda: steer(night, "pause after this one")))
    assert [row["hypothesis"] for row in night.rows] == ["baseline", "beta"]
    with pytest.raises(Paused, match="paused: raft-agent pause"):
        night.resume(launcher=when_run("002-search", lambda: pausing.ask_to_pause(folder, now=False)))
    assert len(night.rows) == 3
    assert not (folder / pausing.REQUEST).exists()
    steer(night, "pause after this one", "ban hypothesis placebo")
    ending = night.resume(launcher=when_run("003-search", lambda: steer(night, "stop after this one")))
    assert len(night.rows) == 4
    assert ending.reason == "steer.md:1 (stop after this one)"
    assert ending.holdout["baseline"]


@pytest.mark.slow  # the default suite has it with a process of its own, in test_campaign_commanded.py
def test_a_request_for_now_ends_the_training_which_goes_on_at_resume(
    night: Night, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.2")
    ask = when_run("001-search", lambda: Timer(0.3, pausing.ask_to_pause, (folder,), {"now": True}).start())
    with pytest.raises(Paused, match="pause --now"):
        night.start(launcher=ask, max_experiments=1)
    assert len(night.rows) == 1
    before = (next(night.root.glob(".raft/runs/night/001-search-*")) / "trained").read_text()
    assert 1 <= len(before) < 5
    monkeypatch.delenv("FAKE_PACE")
    pausing.ask_to_pause(folder, now=True)  # as if a kill had come before it was carried out
    night.resume(take_back_pause=True)
    assert len(night.rows) == 2
    after = (next(night.root.glob(".raft/runs/night/001-search-*")) / "trained").read_text()
    assert sorted(set(after)) == list("12345")
    assert after.startswith(before)


@pytest.mark.slow
def test_what_leads_when_it_is_stopped_is_confirmed(night: Night) -> None:
    night.playbook(BETTER_RATE, NO_DEDUP, A, B, C, NOTHING)
    stop = when_run("003-search", lambda: steer(night, "stop after this one"))
    ending = night.start(rules=Rules(alone_runs=10_000), launcher=stop)
    assert "stop after this one" in ending.reason
    assert ending.winner
    assert "together" in tried(night)


@pytest.mark.slow
def test_stopping_counts_once_also_for_a_campaign_that_gets_more_time(night: Night) -> None:
    steer(night, "stop after this one")
    assert night.start().ideas == 0
    steer(night)
    again = when_run("001-search", lambda: steer(night, "stop after this one"))
    assert night.resume(extra_budget_s=600.0, launcher=again).ideas == 1
    assert night.resume(extra_budget_s=600.0).ideas > 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"now": 3}', '{"now": false}'])
def test_whatever_a_request_says_it_asks_for_a_pause(tmp_path: Path, text: str) -> None:
    (tmp_path / pausing.REQUEST).write_text(text)
    assert pausing.asked_to_pause(tmp_path) == (pausing.NOW if "3" in text else pausing.AFTER)
    pausing.take_back(tmp_path)
    assert pausing.asked_to_pause(tmp_path) is None
