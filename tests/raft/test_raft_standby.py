"""A worker that was started ahead is the worker: the same numbers, nothing touched before it has a run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raft_recipes import small_recipe

from agent.contract import CYCLES, LOG, PLAN, TIMING_FIELDS
from agent.hardware.probe import Machine
from agent.raft.standby import environment_is_settled
from agent.recipe.files import resolved_text
from agent.recipe.schema import Recipe
from agent.run.launcher import launch
from agent.run.request import RunRequest, RunResult
from agent.run.standby import Standby

MACHINE = Machine("cpu", 0, None, "test", 1, 16.0, None, False, False, "2.13", frozenset())
ASKED = ("_lazy_init", "is_available", "device_count", "current_device", "get_device_properties")
WATCHED = f"""
import sys
from pathlib import Path
import torch
asked = []
for name in {ASKED}:
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
from agent.raft.standby import import_for
import_for(Path(sys.argv[1]))
print(asked, "agent.raft.engine" in sys.modules, "transformers" in sys.modules)
"""
LORA = {"model": {"lora": {"rank": 2, "alpha": 4}}}


@pytest.mark.slow
@pytest.mark.parametrize("over", [{}, LORA], ids=["tiny", "lora"])
def test_the_imports_ask_for_no_accelerator_and_are_those_of_the_recipe(tmp_path: Path, over: dict) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(resolved_text(small_recipe(over)))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(recipe)], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.splitlines()[-1] == f"[] True {bool(over)}"


def test_variables_that_the_launcher_did_not_set_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has read them at its import, so such a run needs a process that starts again."""
    monkeypatch.setattr("agent.raft.environment.probe_machine", lambda cache: MACHINE)
    out = str(tmp_path / "out")
    arguments = ["--recipe", str(tmp_path / "recipe.yaml"), "--out", out, "--seed", "1", "--cache", str(tmp_path)]
    (tmp_path / "recipe.yaml").write_text(resolved_text(small_recipe({"backend": {"env": {"SOME_VARIABLE": "1"}}})))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert not environment_is_settled(arguments)
    assert os.environ["SOME_VARIABLE"] == "1"
    assert environment_is_settled(arguments)
    (tmp_path / "recipe.yaml").write_text("not: [a recipe")
    assert environment_is_settled(arguments)  # the worker says what is wrong with it


@pytest.mark.slow
def test_a_training_that_was_handed_over_has_the_numbers_of_a_fresh_one(model_cache: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"budget": {"cycles": 6}})
    fresh = run(recipe, tmp_path / "fresh", model_cache, None)
    with contextlib.closing(Standby()) as standby:
        run(recipe, tmp_path / "before", model_cache, standby)
        ahead = standby.waiting
        assert ahead is not None
        handed = run(recipe, tmp_path / "handed", model_cache, standby)
        assert ahead.handed
    assert fresh.ok
    assert handed.ok
    assert numbers(handed) == numbers(fresh)
    assert plan(handed.out) == plan(fresh.out)
    assert handed.summary is not None
    assert fresh.summary is not None
    assert handed.summary.provenance == fresh.summary.provenance
    assert handed.summary.elapsed_s <= handed.elapsed_s


@pytest.mark.slow
def test_a_worker_that_needs_other_variables_starts_again_in_the_same_process(
    model_cache: Path, tmp_path: Path
) -> None:
    """What the agent sets for a run comes over the preset; a worker puts the preset's own back."""
    recipe = small_recipe({"backend": {"environment": "cpu"}})
    with contextlib.closing(Standby()) as standby:
        run(recipe, tmp_path / "before", model_cache, standby, env={"TOKENIZERS_PARALLELISM": "true"})
        ahead = standby.waiting
        assert ahead is not None
        result = run(recipe, tmp_path / "run", model_cache, standby, env={"TOKENIZERS_PARALLELISM": "true"})
        assert ahead.handed
    assert result.ok
    assert plan(result.out)["environment"]["TOKENIZERS_PARALLELISM"] == "false"
    assert plan(result.out) == plan(tmp_path / "before")
    assert "Traceback" not in (result.out / LOG).read_text()


def run(recipe: Recipe, out: Path, cache: Path, standby: Standby | None, **options: object) -> RunResult:
    """With a standby: goes on until the next process is ready, so that the run after it gets that one."""
    request = RunRequest(
        recipe=recipe, out=out, seed=5, workspace=out.parent, time_limit_s=200.0, cache=cache, **options
    )
    had = standby.waiting if standby is not None else None
    result = launch(request, machine=MACHINE, standby=standby, poll_s=0.02, idle_wait_s=0.0)
    if standby is not None and had is None:
        deadline = time.monotonic() + 100.0
        assert standby.waiting is not None, (out / LOG).read_text()
        while not standby.waiting.wait_until_ready(most_s=5.0):
            assert time.monotonic() < deadline, standby.waiting.printed().decode()
    return result


def plan(out: Path) -> dict:
    """Without reasons in words, which name the memory that is free at the moment."""
    told = json.loads((out / PLAN).read_text())
    told["settings"] = {name: value for name, value in told["settings"].items() if not name.endswith("why")}
    return told


def numbers(result: RunResult) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (result.out / CYCLES).read_text().splitlines()]
    assert len(rows) == 7
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]
