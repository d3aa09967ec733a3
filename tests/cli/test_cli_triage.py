"""`raft-agent triage`: any log, any framework, inside and outside a workspace."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from agent.cli.main import register, run
from agent.ledger.create import create_workspace, shipped_folder

register()

LOG = """step 3
Traceback (most recent call last):
  File "a.py", line 1
RuntimeError: HIP error: invalid device function
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run(["triage", *arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


def test_a_log_outside_any_workspace(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "train.log").write_text(LOG)
    answer = told(capsys, "train.log", "--exit-code", "1")
    assert {name: answer[name] for name in ("label", "subtype", "line")} == {
        "label": "backend", "subtype": "hip-code-object", "line": 4,
    }  # fmt: skip
    assert answer["evidence"] == "RuntimeError: HIP error: invalid device function"
    assert isinstance(answer["confidence"], float)
    assert 0.9 < answer["confidence"] <= 1.0
    assert "torch built for this GPU" in str(answer["remedy"])
    assert run(["triage", "train.log"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("backend (hip-code-object)")
    assert "line 4: RuntimeError" in said


def test_the_exit_code_alone(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "empty.log").touch()
    assert told(capsys, "empty.log", "--exit-code", "137")["label"] == "oom"
    assert told(capsys, "empty.log", "--exit-code=-11")["label"] == "unknown"
    assert told(capsys, "empty.log")["label"] == "unknown"


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG.encode("utf-16"))))
    assert told(capsys, "-")["label"] == "backend"


def test_the_folder_of_a_run(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure = {
        "crash_class": "data",
        "message": "row 3 has no answer",
        "exception": "DataError",
        "where": "rows.jsonl:3",
    }
    (nowhere / "log.txt").write_text(LOG)
    (nowhere / "failure.json").write_text(json.dumps(failure))
    answer = told(capsys, str(nowhere))
    assert (answer["label"], answer["source"]) == ("data", "failure.json")
    (nowhere / "log.txt").unlink()
    assert run(["triage", str(nowhere)]) == 2
    assert "no log.txt in that folder" in capsys.readouterr().err


def test_bad_input(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["triage", "absent.log"]) == 2
    assert "absent.log: no such log" in capsys.readouterr().err
    assert run(["triage"]) == 2
    assert "which log?" in capsys.readouterr().err
    (nowhere / "garbage").write_bytes(os.urandom(200_000))
    answer = told(capsys, "garbage")
    assert answer["label"] == "unknown"
    assert "no text" in str(answer["notes"])
    (nowhere / "colours").write_text("\x1b[31mRuntimeError: \x1b[1mHIP error: invalid device function\x1b[0m\x07\n")
    assert "\x1b" not in str(told(capsys, "colours")["evidence"])


@pytest.mark.slow
def test_rules_are_listed_and_a_workspaces_own_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["triage", "--rules", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert all(rule["example"] and rule["remedy"] and rule["class"] for rule in ours)
    root = create_workspace(tmp_path / "ws", shipped=shipped_folder()).workspace.root
    folder = root / "hypotheses" / "crashes"
    rule = "class: data\nrules:\n- {name: gone, says: s, patterns: ['store: E\\d'], example: 'store: E1', remedy: r}\n"
    (folder / "own.yaml").write_text(rule)
    monkeypatch.chdir(root)
    (root / "x.log").write_text("store: E1\n")
    assert told(capsys, "x.log")["subtype"] == "gone"
    assert run(["triage", "--rules"]) == 0
    assert capsys.readouterr().out.startswith("data      gone")
    (folder / "own.yaml").write_text(rule.replace("store: E1", "other"))
    assert run(["triage", "x.log"]) == 3
    assert "does not match its own example" in capsys.readouterr().err
    assert run(["check"]) == 3
    assert "does not match its own example" in capsys.readouterr().out
