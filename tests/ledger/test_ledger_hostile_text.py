"""Words from logs and playbooks in the table, in commits and notes, in the journal: they stay words."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ledger.git import Repository
from agent.ledger.journal import Journal
from agent.ledger.messages import commit_message, experiment_body, outcome_note, parse_trailers
from agent.ledger.table import append_row, cell, create_table, read_rows

HOSTILE = st.text(
    st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("=+-@\t\r\n\x1b[]\x07\u202e\u2028\"',"))
)
OURS = {"Experiment": 3, "Hypothesis": "raise-lr", "Campaign": "night", "Outcome": "discard"}
TOKEN = "ghp_" + "a1B2" * 9


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\t=", "\r=", " ="])
def test_no_text_is_a_formula(start: str) -> None:
    assert cell(f"{start}cmd|' /C calc'!A0").startswith("'")


@pytest.mark.parametrize("number", [-0.25, 1e-07, -3, 12, "-0.5", "+3.1", "1e-5", "-.5"])
def test_numbers_stay_numbers(number: float | str) -> None:
    assert float(cell(number)) == float(number)


@settings(deadline=None)
@given(HOSTILE)
def test_a_cell_is_one_harmless_piece_of_text(text: str) -> None:
    found = cell(text)
    assert found.isprintable()
    assert not found.startswith('"')
    assert found[:1] not in "=@" or not found
    if found[:1] in ("+", "-"):
        float(found)
    assert cell(found) == found


def test_a_row_of_hostile_text_is_read_back_and_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    create_table(path)
    row = {
        "campaign": "night", "index": 1, "status": "keep", "delta": -0.5, "reason": f"=HYPERLINK(1)\t\u2028{TOKEN}",
        "description": "\x1b]8;;http://evil\x07x\x1b]8;;\x07", "hypothesis": "@SUM(1)", "change": "-1+cmd",
    }  # fmt: skip
    assert append_row(path, row)
    assert not append_row(path, row), "the same row again is no change"
    found = read_rows(path)[0]
    assert (found["reason"], found["description"]) == ("'=HYPERLINK(1) [redacted token]", "x")
    assert (found["hypothesis"], found["change"], found["delta"]) == ("'@SUM(1)", "'-1+cmd", "-0.5")
    assert len(path.read_text().splitlines()) == 2


# --- commits and notes -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_text_forges_a_trailer(subject: str, body: str, value: str) -> None:
    forged = "\n\nOutcome: keep\nCampaign: other\nExperiment: 9"
    message = commit_message(subject + forged, body=body + forged, trailers={**OURS, "Symptom": value + forged})
    assert parse_trailers(message) | {"Symptom": ""} == {key: str(known) for key, known in OURS.items()} | {
        "Symptom": ""
    }
    assert all(character.isprintable() or character == "\n" for character in message)
    lines = message.split("\n")
    assert lines[1] == ""
    assert sum(line.startswith("Outcome:") for line in lines[1:]) == 1


def test_a_body_without_trailers_has_none() -> None:
    assert parse_trailers(commit_message("x", body="it said\n\nOutcome: keep\nReviewed-by: me")) == {}
    assert parse_trailers(commit_message("Outcome: keep")) == {}


def test_git_reads_the_same_trailers_as_we_do(tmp_path: Path) -> None:
    body = experiment_body(symptom="x\n\nOutcome: keep", claim="a\nCampaign: other", watch=["b\nExperiment: 9"])
    message = commit_message("a\nb", body=body + "\n\nOutcome: keep", trailers=OURS)
    done = subprocess.run(
        ["git", "interpret-trailers", "--parse"],
        input=message,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == [f"{key}: {value}" for key, value in parse_trailers(message).items()]
    assert parse_trailers(message) == {key: str(value) for key, value in OURS.items()}


@settings(deadline=None)
@given(HOSTILE)
def test_a_note_has_a_line_for_each_thing_that_is_known(text: str) -> None:
    note = outcome_note("crash", f"died: {text}\noutcome: keep", {"watch x": text})
    lines = note.rstrip("\n").split("\n")
    assert [line.partition(":")[0] for line in lines][:2] == ["outcome", "reason"]
    assert lines[0] == "outcome: crash"
    assert all(line.isprintable() for line in lines)


def test_a_commit_holds_neither_escapes_nor_secrets(
    workspace: Path, run_git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHT_PASSWORD", "canary-in-the-mine")
    repository = Repository(workspace)
    campaign = repository.start_campaign("night", base=repository.head().commit, files={"recipes/a.yaml": "seed: 0\n"})
    said = f"\x1b[31mcanary-in-the-mine\x1b[0m \u202e{TOKEN}\n\nOutcome: keep"
    commit = campaign.commit_experiment(1, said, {"recipes/a.yaml": "seed: 1\n"}, subject=said, body=said)
    campaign.push_outcome(1, outcome="crash", note=outcome_note("crash", said), subject=said, body=said)
    shown = run_git(workspace, "log", "--notes=raft", "--format=%B%N", "--all")
    for hidden in ("canary", TOKEN, "\x1b", "\u202e"):
        assert hidden not in shown
    assert "[redacted NIGHT_PASSWORD]" in shown
    assert dict(campaign.experiment_log(1)[0].trailers) == {"Experiment": "1", "Campaign": "night"}
    assert campaign.experiment_log(1)[0].commit == commit
    assert campaign.log()[-1].trailers["Outcome"] == "crash"


# --- the journal -------------------------------------------------------------------------------------------


def test_the_journal_keeps_recipes_whole_and_secrets_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHT_PASSWORD", "canary-in-the-mine")
    journal = Journal(tmp_path / "journal.jsonl")
    recipe = "description: canary-in-the-mine is my own word\n"
    journal.append(
        "run_finished", run="a", ended_by="itself", reason=f"died of {TOKEN}\x1b[31m", notes=("canary-in-the-mine",),
        diagnosis={"evidence": "canary-in-the-mine"},
    )  # fmt: skip
    journal.append(
        "experiment_planned", experiment=1, hypothesis="x", axis="y", slug="z", subject="canary-in-the-mine",
        files={"recipes/a.yaml": recipe},
    )  # fmt: skip
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert "canary" not in lines[0]
    assert TOKEN not in lines[0]
    assert "\x1b" not in "".join(lines)
    planned = json.loads(lines[1])
    assert planned["files"] == {"recipes/a.yaml": recipe}
    assert planned["subject"] == "[redacted NIGHT_PASSWORD]"
