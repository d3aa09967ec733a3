"""`log` of many ideas: a person wants the last ones, a program all of them."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from agent.cli.looking import SHOWN
from agent.cli.main import run
from agent.ledger.table import rebuild
from agent.ledger.workspace import Workspace

IDEAS = SHOWN + 30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def many(workspace: Workspace) -> Workspace:
    row: dict[str, Any] = {
        "campaign": "night",
        "recipe": "recipes/x.yaml",
        "metric_name": "pass_rate",
        "status": "keep",
    }
    rows = [
        row | {"index": number, "metric_value": 0.5, "description": f"idea {number}, " + "long " * 30, "reason": "why"}
        for number in range(IDEAS)
    ]
    rebuild(workspace.results, [row | {"campaign": "before", "index": 1}, *rows])
    return workspace


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        assert run([*arguments]) == 0
    return terminal.getvalue()


def test_a_terminal_shows_the_last_ones_and_says_how_to_see_all(
    many: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = on_a_terminal(monkeypatch, "log")
    assert f"the last {SHOWN} of {IDEAS} ideas" in shown
    assert "log --all" in shown
    assert f"idea {IDEAS - 1}," in shown
    assert f"idea {IDEAS - SHOWN - 1}," not in shown
    everything = on_a_terminal(monkeypatch, "log", "--all")
    assert "idea 0," in everything
    assert "the last" not in everything


def test_a_pipe_gets_every_idea_on_one_line(many: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["log"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "campaign night, recipes/x.yaml, pass_rate"
    ideas = [line for line in said if "idea " in line]
    assert len(ideas) == IDEAS
    assert ideas[7].split()[:3] == ["7", "keep", "50.0%"]
    assert ideas[7].endswith("long | why")
    assert len({line.index("idea") for line in ideas}) == 1, "columns stand below each other"
    assert run(["log", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == IDEAS


def test_what_somebody_wrote_into_the_table_steers_no_terminal(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "hf_" + "a1B2" * 8
    rebuild(workspace.results, [{"campaign": "night", "index": 1, "status": "keep", "description": "fine"}])
    text = workspace.results.read_text().replace("fine", f"\x1b[31mred\r and\u202e {token}")
    workspace.results.write_text(text)
    assert run(["log"]) == 0
    said = capsys.readouterr().out
    assert "red and\\u202e [redacted token]" in said
    assert "\x1b" not in said
    assert "\r" not in said
