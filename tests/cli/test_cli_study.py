"""`raft-agent study` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import agent

from agent.cli.main import register, run
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace

TINY = """\
recipe: recipes/tiny-addition.yaml
set: {rollout.prompts_per_cycle: 32, evaluation.select_prompts: 20}
factors:
  schedule:
    - {label: constant, set: {learner.lr_schedule: {kind: constant, by: cycle}}}
    - {label: x0.5, set: {learner.lr_schedule: {kind: exponential, by: cycle, decay: 0.5}}}
against: {schedule: constant}
seeds: 2
cycles: 2
end_window: 1
"""


def test_a_table_of_nothing_runs_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    assert run(["study", "learning-rate-tiny", "--table"]) == 0
    assert "no run is finished yet, " in capsys.readouterr().out
    assert not (workspace.private / "studies").exists()
    assert run(["study", "learning-rate-tiny", "--table", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"]["done"] == 0


def test_what_is_not_there_is_named_with_the_nearest(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    assert run(["study", "learning-rate-tinny"]) == 2
    assert "did you mean studies/learning-rate-tiny.yaml?" in capsys.readouterr().err
    (workspace.studies / "bad.yaml").write_text("recipe: recipes/tiny-addition.yaml\ncycles: 2\narmz: []\n")
    assert run(["study", "bad"]) == 3
    assert "bad.yaml:3: armz: unknown key\n  did you mean arms?" in capsys.readouterr().err


def test_a_held_workspace_is_not_run_in(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    with hold(workspace, what="campaign night"):
        assert run(["study", "learning-rate-tiny"]) == 7
    assert "campaign night" in capsys.readouterr().err


def test_a_file_of_something_else_is_not_appended_to(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    mine = workspace.root / "mine.txt"
    for text in ('{"question": "1+1", "answer": 2}\n', "# notes\n"):
        mine.write_text(text)
        assert run(["study", "learning-rate-tiny", "--results", str(mine)]) == 2
        assert "holds no results of a study" in capsys.readouterr().err
        assert mine.read_text() == text


@pytest.mark.slow
def test_a_small_study_of_the_built_in_model(workspace: Workspace, tmp_path: Path) -> None:
    from small_model import plant_small_model

    plant_small_model(tmp_path / "cache")
    (workspace.studies / "tiny.yaml").write_text(TINY)
    first = agent(workspace.root, "study", "tiny", "--max-runs", "1")
    assert "1/4 constant, seed 1: " in first.stderr
    assert "1 of 4 runs of 2 cycles are there." in first.stdout
    told = agent(workspace.root, "study", "tiny", "--json", "--write", "page.md")
    assert "2/4 x0.5, seed 1: " in told.stderr
    found = json.loads(told.stdout)
    assert found["runs"] == {"asked_for": 4, "done": 4, "failed": 0, "unknown": 0}
    rates = [point[1] for point in found["arms"][1]["courses"]["learning_rate"]]
    assert rates == pytest.approx([1e-4, 5e-5])
    assert "| x0.5 |" in (workspace.root / "page.md").read_text()
    assert (workspace.root / "tiny.svg").read_text().startswith("<svg")
    assert len((workspace.studies / "results" / "tiny.jsonl").read_text().splitlines()) == 5
    assert not list((workspace.private / "studies").glob("*/*/checkpoint"))
