"""The command as a user runs it, with the real trainer on the built-in model. Slow: minutes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import AGENT, agent

SHORT = """\
extends: tiny-addition.yaml
evaluation: {select_prompts: 64, search_prompts: 64, confirm_prompts: 64, holdout_prompts: 64}
budget: {tokens: 20000}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    agent(tmp_path, "init", "ws")
    (tmp_path / "ws/recipes/short.yaml").write_text(SHORT)
    return tmp_path / "ws"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_campaign_from_init_to_finalize(workspace: Path) -> None:
    began = time.monotonic()
    done = agent(workspace, "run", "short", "--budget", "15m", "--max-experiments", "2", "--seeds", "2")
    assert time.monotonic() - began < 15 * 60 + 20
    assert "untrained" in done.stdout
    assert "holdout" in done.stdout
    assert re.search(r"\d+% of it in training", done.stdout)
    assert max(len(line) for line in done.stdout.splitlines()) < 600
    log = agent(workspace, "log", "--json")
    rows = json.loads(log.stdout)
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    status = json.loads(agent(workspace, "status", "--json").stdout)
    assert status["state"] == "finished"
    shown = agent(workspace, "show", "1").stdout
    assert "decided by " in shown
    assert "raft-agent diagnose 001-search" in shown
    assert "+++ b/recipes/short.yaml" in shown
    diagnosed = agent(workspace, "diagnose", "baseline-s1").stdout
    assert "baseline-s1" in diagnosed
    planned = agent(workspace, "plan").stdout
    assert "after campaign" in planned
    checkpoint = next((workspace / ".raft/runs").glob("*/baseline-s1/checkpoint"))
    evaluated = agent(workspace, "eval", str(checkpoint), "--json")
    assert "search" in json.loads(evaluated.stdout)["metrics"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_pauses_and_leaves_no_process(workspace: Path) -> None:
    process = started(workspace, "run", "short", "--budget", "15m")
    trainer = trainer_of(workspace, "baseline-s1", process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "raft-agent resume" in said
    assert "Traceback" not in said
    assert not is_running(trainer)
    status = json.loads(agent(workspace, "status", "--json").stdout)
    assert status["state"] == "paused"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_single_training_is_ended_by_sigterm_as_by_ctrl_c(workspace: Path) -> None:
    process = started(workspace, "train", "short", "--out", ".raft/runs/alone/mine")
    trainer = trainer_of(workspace, "mine", process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped" in said
    assert "Traceback" not in said
    assert not is_running(trainer)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_command_after_a_kill_goes_on_with_the_campaign(workspace: Path) -> None:
    """As a service does that is started again, or a person who presses the arrow key."""
    words = ("run", "short", "--budget", "15m", "--max-experiments", "1", "--seeds", "2", "--name", "night")
    process = started(workspace, *words)
    trainer = trainer_of(workspace, "baseline-s1", process)
    process.kill()
    process.communicate(timeout=60)
    assert json.loads(agent(workspace, "status", "--json").stdout)["state"] == "killed"
    assert "without --dry-run this would go on with it" in agent(workspace, *words, "--dry-run").stdout
    done = agent(workspace, *words)
    assert "is not finished: going on with it" in done.stdout
    assert not is_running(trainer)
    rows = json.loads(agent(workspace, "log", "--json").stdout)
    assert [row["index"] for row in rows] == ["0", "1"]
    assert len({row["campaign"] for row in rows}) == 1
    assert len(list(workspace.glob(".raft/campaigns/*"))) == 1


def started(workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*AGENT, *arguments], cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def trainer_of(workspace: Path, run: str, process: subprocess.Popen[str]) -> int:
    """The number of the run's process, two seconds after its first sign of life."""
    heartbeat = f".raft/runs/*/{run}/heartbeat"
    for _ in range(1200):
        if list(workspace.glob(heartbeat)) or process.poll() is not None:
            break
        time.sleep(0.25)
    time.sleep(2)
    return int(json.loads(next(workspace.glob(heartbeat)).read_text())["pid"])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 sends nothing
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
