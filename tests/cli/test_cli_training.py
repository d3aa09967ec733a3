"""What `train` prints when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli.training import _print_result
from agent.contract import CYCLES, DECLINE, NO_STEP, CycleRow, Seconds, Summary
from agent.run.request import RunResult


@pytest.mark.parametrize(
    ("ended_by", "said"),
    [
        ("budget", None),
        (DECLINE, "early stop after cycle 2: worse on select than before (learner.early_stop)"),
        (NO_STEP, "ended early, for want of a sample to learn from: raft-agent diagnose run says why"),
    ],
)
def test_a_training_that_ends_before_its_budget_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_by: str, said: str | None
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    rows = [CycleRow(cycle=cycle, seconds=Seconds(generate=1.0)) for cycle in range(3)]
    (out / CYCLES).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    summary = Summary(
        seed=0,
        recipe_signature="x",
        ended_by=ended_by,
        cycles=2,
        delivered_cycle=1,
        metric="pass_rate",
        metrics={"search": 0.25},
    )
    result = RunResult(out, 0, None, "itself", "", 3.0, summary, None)
    _print_result(result, json_output=False)
    printed = capsys.readouterr().out
    assert "pass_rate on search: 25.0%" in printed
    assert [line for line in printed.splitlines() if "early" in line] == ([said] if said else [])
