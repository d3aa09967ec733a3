"""What `train` prints when it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli.training import _print_result, progress_words
from agent.contract import CYCLES, DECLINE, NO_STEP, CycleRow, Seconds, Summary
from agent.report.numbers import Numbers
from agent.run.request import RunResult
from agent.run.watching import Progress


@pytest.mark.parametrize(("metric", "value"), [("pass_at_k", "62.5%"), ("mean_reward", "0.625")])
def test_the_spinner_has_the_metric_in_its_unit(metric: str, value: str) -> None:
    progress = Progress("train", 7, 3, 0.5, None, 0.625, 1.0, 9.0, None)
    assert progress_words(progress, Numbers(metric)).strip() == f"train cycle 3, 50% of the budget, select {value}"


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
    _print_result(replace(result, summary=summary.model_copy(update={"metric": "mean_reward"})), json_output=False)
    assert "mean_reward on search: 0.250\n" in capsys.readouterr().out
    assert [line for line in printed.splitlines() if "early" in line] == ([said] if said else [])
