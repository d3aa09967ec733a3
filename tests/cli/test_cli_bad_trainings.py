"""What only the training finds out: one message, the right exit code, nothing half done, and a way on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command import agent

RECIPE = """\
extends: tiny-addition.yaml
evaluation: {select_prompts: 16, search_prompts: 16, confirm_prompts: 16, holdout_prompts: 16}
budget: {tokens: 10000}
"""
ROWS = "".join(json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(100))
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    agent(tmp_path, "init", "ws")
    return tmp_path / "ws"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("lines", "files", "code", "words"),
    [
        ("model: {source: nobody/no-such-model}", {}, 4, "nobody/no-such-model"),
        ("model: {source: models/missing.gguf}", {}, 4, "models/missing.gguf"),
        ("model: {source: broken.gguf}", {"broken.gguf": "this is no GGUF"}, 4, "broken.gguf"),
        ('task: {dataset: "jsonl:missing.jsonl"}', {}, 4, "missing.jsonl"),
        (
            'task: {dataset: "jsonl:rows.jsonl"}',
            {"rows.jsonl": ROWS + '{"question": "1+1="}\n'},
            3,
            "line 101",
        ),
        (
            'task: {dataset: "jsonl:gsm.jsonl", verifier: {kind: last_number}}',
            {"gsm.jsonl": ROWS.replace('"answer": "', '"answer": "so it is #### ')},
            3,
            "task.answer_after",
        ),
        (
            'task: {dataset: "jsonl:rows.jsonl", verifier: {kind: "python:check.py:score"}}',
            {"rows.jsonl": ROWS, "check.py": "import no_such_module\n\ndef score(response, row):\n    return 1\n"},
            3,
            "no_such_module",
        ),
    ],
    ids=[
        "hub",
        "missing-gguf",
        "no-gguf",
        "missing-data",
        "row-without-field",
        "answers-rejected",
        "verifier-does-not-import",
    ],
)
def test_what_cannot_be_trained(workspace: Path, lines: str, files: dict[str, str], code: int, words: str) -> None:
    for name, text in files.items():
        (workspace / name).write_text(text)
    (workspace / "recipes/bad.yaml").write_text(f"{RECIPE}{lines}\n")
    table = (workspace / "results.tsv").read_bytes()
    done = agent(workspace, "run", "bad", "--budget", "30m", check=False, env=OFFLINE)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert words in done.stderr
    # the campaign can go on once the person has mended it
    assert json.loads(agent(workspace, "status", "--json").stdout)["state"] == "paused"
    assert (workspace / "results.tsv").read_bytes() == table


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_campaign_whose_name_is_taken(workspace: Path) -> None:
    subprocess.run(["git", "branch", "raft/mine/best"], cwd=workspace, check=True)
    done = agent(workspace, "run", "--budget", "1h", "--name", "mine", check=False)
    assert done.returncode == 2
    assert "--name mine-2 is free" in done.stderr
    assert not list(workspace.glob(".raft/campaigns/*"))
