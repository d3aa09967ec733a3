"""`pause`, `steer`, `notify`, and what Ctrl-C does where nothing trains."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.campaign.loop import NoBaseline, Paused
from agent.campaign.pausing import AFTER, NOW, asked_to_pause, take_back
from agent.cli.controls import WEBHOOK, hand_on
from agent.cli.interrupt import polite_interrupt
from agent.cli.main import print_error, register, run
from agent.errors import Busy
from agent.ledger.journal import Journal
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace
from agent.plan.playbook import load_playbook
from agent.plan.steer import FORMS, VERBS, read_steering
from agent.run.ending import AtOnce

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAFT_AGENT_WEBHOOK", "RAFT_AGENT_NOTIFY"):
        monkeypatch.setenv(name, "")  # so that what a command sets is undone
    register()


Printed = pytest.CaptureFixture[str]


def said(capsys: Printed, *arguments: str, code: int = 0) -> str:
    assert run(arguments) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


# --- pause -------------------------------------------------------------------------------------------------


def begin(workspace: Workspace, name: str = "night") -> Journal:
    workspace.prepare()
    journal = Journal(workspace.journal_path(name))
    journal.append(
        "campaign_started", campaign=name, recipe_path="recipes/tiny-addition.yaml", recipe="", base_commit="0" * 40
    )
    return journal


def test_a_pause_without_a_campaign_that_runs_is_refused_in_words(workspace: Workspace, capsys: Printed) -> None:
    assert "no campaign to pause" in said(capsys, "pause", code=2)
    journal = begin(workspace)
    assert "campaign night is not running" in said(capsys, "pause", code=2)
    assert "there is no campaign other" in said(capsys, "pause", "other", code=2)
    journal.append("campaign_paused", reason="stopped by Ctrl-C")
    assert "is paused already: stopped by Ctrl-C" in said(capsys, "pause", code=2)
    journal.append("campaign_finished", reason="out of time")
    told = said(capsys, "pause", code=2)
    assert "is finished: out of time" in told
    assert "raft-agent resume night --budget 1h gives it more" in told
    begin(workspace, "later")
    with hold(workspace, what="campaign later"):
        told = said(capsys, "pause", "night", code=2)
    assert "campaign night is finished" in told
    with hold(workspace, what="train"):
        assert "campaign later is not running" in said(capsys, "pause", "later", code=2)


def test_a_pause_asks_the_campaign_that_runs_and_says_what_will_happen(workspace: Workspace, capsys: Printed) -> None:
    begin(workspace)
    with hold(workspace, what="campaign night"):
        told = said(capsys, "pause")
    assert "it measures the baseline first, and pauses before the first idea" in told
    assert asked_to_pause(workspace.campaign_folder("night")) == AFTER
    with hold(workspace, what="campaign night"):
        assert "nothing trains just now" in said(capsys, "pause", "--now")


def test_a_request_is_taken_back_while_the_campaign_runs(workspace: Workspace, capsys: Printed) -> None:
    begin(workspace)
    folder = workspace.campaign_folder("night")
    with hold(workspace, what="campaign night"):
        said(capsys, "pause", "--now")
        assert "another run holds this workspace" in said(capsys, "resume", "--budget", "1h", code=Busy.exit_code)
        assert "another run holds this workspace" in said(capsys, "resume", "other", code=Busy.exit_code)
        assert asked_to_pause(folder) == NOW, "what is refused takes nothing back"
        told = said(capsys, "resume")
        assert "campaign night runs, and is asked no more to pause (raft-agent pause --now)" in told
        assert asked_to_pause(folder) is None
        assert "another run holds this workspace" in said(capsys, "resume", "night", code=Busy.exit_code)
        said(capsys, "pause")
        assert json.loads(said(capsys, "resume", "night", "--json"))["taken_back"] == AFTER
        assert asked_to_pause(folder) is None


def test_who_waits_for_a_pause_hears_that_it_was_taken_back(workspace: Workspace, capsys: Printed) -> None:
    begin(workspace)
    folder = workspace.campaign_folder("night")

    def somebody_else() -> None:
        while asked_to_pause(folder) is None:
            time.sleep(0.01)
        take_back(folder)

    with hold(workspace, what="campaign night"):
        other = threading.Thread(target=somebody_else)
        other.start()
        told = said(capsys, "pause", "--wait", code=1)
        other.join()
    assert "the request was taken back: campaign night goes on" in told
    assert "raft-agent pause night --wait asks again" in told


# --- steer -------------------------------------------------------------------------------------------------


def test_steer_shows_what_is_asked_and_writes_nothing(workspace: Workspace, capsys: Printed) -> None:
    assert "asks for nothing" in said(capsys, "steer")
    example = said(capsys, "steer", "--example")
    assert not (workspace.root / "steer.md").exists()
    (workspace.root / "steer.md").write_text(f"{example}- pin axis promt\n- stop after this one\n")
    begin(workspace).append("note", text="", steer_done="stop after this one")
    told = said(capsys, "steer")
    assert "steered   steer.md:5 (pin axis learning-rate)" in told
    assert "(stop after this one): done" in told
    assert "no axis 'promt': did you mean prompt?" in told
    assert json.loads(said(capsys, "steer", "--json"))["instructions"][-1]["done"] is True


ASKED = """\
- try seed 7
- try learner.learning_rate -1
- try learner.learning_rate .nan
- try model.source: "other/model"
- try learner.learning_rate: 1e-3, rollout.temperature: 0.5
- try learner.warmup 0.2
"""
REFUSED = ["seed is locked", "not make a valid recipe", "not make a valid recipe", "model.source", "change together"]


def refusals(told: str) -> list[str]:
    return [line for line in told.splitlines() if "would not be tried" in line]


@pytest.mark.slow
def test_what_the_campaign_would_refuse_to_try_is_a_problem_now(workspace: Workspace, capsys: Printed) -> None:
    (workspace.root / "steer.md").write_text(ASKED)
    for command in (["steer"], ["plan"], ["run", "--budget", "9h", "--dry-run"]):
        told = said(capsys, *command)
        lines = refusals(told)
        assert [line.split(" (")[0] for line in lines] == [f"problem   steer.md:{n}" for n in range(1, 6)]
        assert [words for words, line in zip(REFUSED, lines, strict=True) if words not in line] == []
        assert "steered   steer.md:6 (try learner.warmup 0.2)" in told
    known = json.loads(said(capsys, "steer", "--json"))
    assert [bool(one["refused"]) for one in known["instructions"]] == [True] * 5 + [False]
    assert len(known["problems"]) == 5


def test_what_is_asked_to_try_is_judged_by_the_best_recipe_of_a_campaign_that_is_not_finished(
    workspace: Workspace, capsys: Printed
) -> None:
    """And by the recipe as it stands once the campaign is finished, as the next one would; nothing is done by then."""
    recipe = (workspace.recipes / "tiny-addition.yaml").read_text()
    kept = recipe + "\n# kept\n"
    assert "warmup: 0.25" not in kept
    kept = kept.replace("learner:\n", "learner:\n  warmup: 0.25\n")
    assert kept.count("warmup: 0.25") == 1
    workspace.prepare()
    journal = Journal(workspace.journal_path("night"))
    path = "recipes/tiny-addition.yaml"
    journal.append(
        "campaign_started",
        campaign="night",
        recipe_path=path,
        recipe=recipe,
        base_commit="0" * 40,
        files={path: recipe},
    )
    words = {"hypothesis": "steer", "axis": "steer", "slug": "x", "subject": "x", "steer_done": "try learner.beta2 0.9"}
    journal.append("experiment_planned", experiment=1, files={path: kept}, **words)
    journal.append("experiment_judged", experiment=1, outcome="keep", reason="good")
    (workspace.root / "steer.md").write_text("- try learner.warmup 0.25\n- try learner.beta2 0.9\n")
    told = said(capsys, "steer")
    assert refusals(told) == [
        "problem   steer.md:1 (try learner.warmup 0.25) would not be tried: the recipe has it already"
    ]
    assert "steer.md:2 (try learner.beta2 0.9): done; it counts again once" in told
    assert not (workspace.campaign_folder("night") / "recipes").exists(), "the campaign may be reading there"
    journal.append("campaign_finished", reason="out of time")
    assert said(capsys, "steer").splitlines() == [
        "steered   steer.md:1 (try learner.warmup 0.25)", "steered   steer.md:2 (try learner.beta2 0.9)",
    ]  # fmt: skip


def test_where_the_recipe_cannot_be_read_the_file_is_shown_all_the_same(workspace: Workspace, capsys: Printed) -> None:
    begin(workspace)  # its journal has an empty recipe
    (workspace.root / "steer.md").write_text("- try learner.warmup 0.25\n")
    steered, unknown = said(capsys, "steer").splitlines()
    assert steered == "steered   steer.md:1 (try learner.warmup 0.25)"
    assert unknown.startswith("unknown   whether what is asked to try can be tried: ")


def test_plan_shows_what_is_in_force_and_what_it_takes_out(workspace: Workspace, capsys: Printed) -> None:
    (workspace.root / "steer.md").write_text("- ban axis batch\n- nonsense\n")
    told = said(capsys, "plan", "--skipped")
    assert "steered   steer.md:1 (ban axis batch)" in told
    assert "problem   steer.md:2: 'nonsense'" in told
    assert "skipped   batch-packing: banned by steer.md:1 (ban axis batch)" in told


# --- the page ----------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_read_as_it_says() -> None:
    """Each block of the page that is marked `steer` has instructions only, and together they have every form."""
    page = (ROOT / "docs/controls.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```steer\n")[1:]]
    assert blocks
    playbook = load_playbook(ROOT / "hypotheses")
    found = [read_steering(block, playbook) for block in blocks]
    assert [one.words for steering in found for one in steering.problems] == []
    forms = {(one.kind, one.of) for steering in found for one in steering.instructions}
    assert {kind for kind, _ in forms} == set(VERBS) == set(FORMS)
    assert {of for kind, of in forms if kind == "ban"} == {"axis", "hypothesis", "key"}
    assert {of for kind, of in forms if kind == "pin"} == {"axis", "hypothesis"}
    assert {of for kind, of in forms if kind == "try"} == {"hypothesis", "values"}
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("- ")]
    assert len(lines) == sum(len(steering.instructions) for steering in found)


# --- notify ------------------------------------------------------------------------------------------------


def test_notify_tries_the_channels_and_shows_no_address(workspace: Workspace, capsys: Printed) -> None:
    assert "where to?" in said(capsys, "notify", code=2)
    program = f"{sys.executable} -I -S -c 'raise SystemExit(0)'"
    assert "took the message" in said(capsys, "notify", "--notify", program)
    told = said(capsys, "notify", "--notify", program.replace("0)", "4)"), code=4)
    assert "ended with 4" in told
    told = said(capsys, "notify", "--webhook", "http:/secret", code=2)
    assert "secret" not in told
    assert os.environ["RAFT_AGENT_WEBHOOK"] == "http:/secret"


def test_notify_runs_the_command_where_a_campaign_would(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    program = workspace.recipes / "tell"
    program.write_text(f"#!/bin/sh\npwd > {tmp_path}/where\n")
    program.chmod(0o755)
    monkeypatch.chdir(workspace.recipes)
    assert "took the message" in said(capsys, "notify", "--notify", "./tell")
    assert (tmp_path / "where").read_text().strip() == str(workspace.root)
    monkeypatch.chdir(tmp_path)  # in no workspace
    assert "took the message" in said(capsys, "notify", "--notify", str(program))
    assert (tmp_path / "where").read_text().strip() == str(tmp_path)


def test_the_help_names_all_that_is_sent() -> None:
    page = (ROOT / "docs/controls.md").read_text()
    events = {"keep": "keep", "crashes": "crash", "paused": "pause", "failed": "end", "finished": "end", "test": ""}
    table = page.split("| event | when |")[1].split("\n\n")[0]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == list(events)
    assert [word for word in events.values() if word not in WEBHOOK.help] == []


def test_the_address_is_a_secret_from_then_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.text import clean, passed_on

    monkeypatch.setenv("RAFT_AGENT_WEBHOOK", "https://hooks.example.com/T0/B0/abcdef")
    assert "abcdef" not in clean("said https://hooks.example.com/T0/B0/abcdef")
    assert "RAFT_AGENT_WEBHOOK" not in passed_on(os.environ)


def test_a_campaign_in_the_background_gets_them_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_AGENT_WEBHOOK", "https://x/y")
    words, environment = hand_on(["run", "--webhook", "https://x/y", "--budget", "1h", "--notify=a b"])
    assert words == ["run", "--budget", "1h"]
    assert environment["RAFT_AGENT_WEBHOOK"] == "https://x/y"


# --- Ctrl-C ------------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_is_noted_the_second_raises_and_more_do_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    with polite_interrupt() as stop:
        assert stop() is None
        signal.raise_signal(signal.SIGTERM)
        assert stop() == "stopped by SIGTERM"
        with pytest.raises(AtOnce):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop() == "stopped by SIGTERM"
    assert signal.getsignal(signal.SIGINT) == before


def test_only_what_nobody_asked_for_is_printed_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for stop, words in (
        (Paused("paused: stopped by Ctrl-C", hint="resume"), "paused: stopped by Ctrl-C\n  resume\n"),
        (NoBaseline("stopped early: the budget is spent"), "error: stopped early: the budget is spent\n"),
    ):
        print_error(stop)
        assert capsys.readouterr().err == words
        assert stop.exit_code == 130
