"""The process contract, with real processes: what is written, when it stops, how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import small_recipe
from torch.nn.functional import linear

from agent.contract import TIMING_FIELDS, CycleRow, EvalRow, RunPlan, SampleText, SelectRow, Summary
from agent.files import read_jsonl
from agent.recipe.files import resolved_text

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
SLOW = {"rollout": {"slots": 8}, "budget": {"cycles": 5}}
"""Many small waves, so that a kill lands in the middle of something."""


def command(out: Path, cache: Path, *arguments: str, seed: int = 0) -> list[str]:
    recipe = out.with_suffix(".yaml")
    return [
        *[sys.executable, "-m", "agent.raft.worker", "--recipe", str(recipe), "--out", str(out)],
        *["--seed", str(seed), "--cache", str(cache), *arguments],
    ]


def write_recipe(out: Path, over: dict[str, Any] | None = None) -> None:
    out.with_suffix(".yaml").write_text(resolved_text(small_recipe(over)))


def run(out: Path, cache: Path, *arguments: str, seed: int = 0, code: int = 0) -> str:
    done = subprocess.run(
        command(out, cache, *arguments, seed=seed), env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@contextmanager
def started(out: Path, cache: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command(out, cache, *arguments), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def cycles(out: Path, name: str = "cycles.jsonl") -> list[dict[str, Any]]:
    """Rows by cycle without what may differ between two runs of the same training."""
    return [untimed(row) for row in read_jsonl(out / name)]


def assert_same(row: dict[str, Any], wanted: dict[str, Any], *, rounding: float) -> None:
    """Fractions up to rounding, all else to the letter."""
    assert row.keys() == wanted.keys()
    for name, value in wanted.items():
        exact = not isinstance(value, float)
        assert row[name] == (value if exact else pytest.approx(value, rel=rounding, abs=rounding)), name


def rows_change_last_bits() -> bool:
    """Whether torch multiplies two or three rows with other roundings than the same rows among eight."""
    x, weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)), torch.ones(128, 128).cumsum(0) / 3
    whole = linear(x, weight)
    return any(not torch.equal(linear(x[:rows], weight), whole[:rows]) for rows in (2, 3))


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    timing = TIMING_FIELDS - {"budget_spent"}
    return {k: v for k, v in row.items() if k not in timing}


def summary(out: Path) -> Summary:
    return Summary(**json.loads((out / "summary.json").read_text()))


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def finished_run(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed training of the slow recipe, for all to compare with."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    write_recipe(out, SLOW)
    run(out, model_cache, "--split", "search", "--split", "confirm")
    return out


@pytest.mark.slow
def test_a_measurement_on_the_way_is_asked_for_on_the_command_line(model_cache: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, SLOW)
    run(tmp_path, model_cache, "--rung", "0.5")
    (row,) = [SelectRow(**row) for row in read_jsonl(tmp_path / "rung.jsonl")]
    assert (row.cycle, len(row.scores)) == (3, 8)
    told = summary(tmp_path)
    assert told.rung_s is not None
    assert 0 < told.rung_s < told.elapsed_s
    assert told.cycles == 5


def test_everything_that_the_contract_names_is_there(finished_run: Path) -> None:
    rows = [CycleRow(**row) for row in read_jsonl(finished_run / "cycles.jsonl")]
    assert [row.cycle for row in rows] == list(range(6))
    assert rows[0].kept == rows[0].optimizer_steps == 0
    assert rows[0].loss is None
    assert rows[0].pass_rate == rows[1].pass_rate, "cycle 1 trains on what cycle 0 sampled"
    assert rows[1].generated_tokens == 0
    assert all(row.select_metric is not None for row in rows)
    measured = [SelectRow(**row) for row in read_jsonl(finished_run / "select.jsonl")]
    assert [(row.cycle, row.budget_spent) for row in measured] == [(row.cycle, row.budget_spent) for row in rows]
    for row, one in zip(rows, measured, strict=True):
        assert [len(scores) for scores in one.scores.values()] == [1] * 8
        assert sum(map(sum, one.scores.values())) / 8 == row.select_metric
    evals = [EvalRow(**row) for row in read_jsonl(finished_run / "eval.jsonl")]
    assert len(evals) == 8 * 2 + 4 * 2
    texts = [SampleText(**row) for row in read_jsonl(finished_run / "samples.jsonl")]
    first = [row for row in evals if row.split == "search" and row.sample == 0]
    assert [(row.split, row.id, row.reward, row.tokens) for row in texts] == [
        (row.split, row.id, row.reward, row.tokens) for row in first
    ], "the prompts that confirm are nobody's to read"
    assert all(row.prompt.startswith(row.id) for row in texts)
    told = summary(finished_run)
    for split in ("search", "confirm"):
        passed = [row.passed for row in evals if row.split == split]
        assert told.metrics[split] == pytest.approx(sum(passed) / len(passed))
    assert told.cycles == 5
    assert told.kept == sum(row.kept for row in rows)
    assert told.generated_tokens == sum(row.generated_tokens for row in rows)
    assert told.trained_tokens == sum(row.trained_tokens for row in rows)
    assert told.provenance["products"] in ("torch", "onednn")
    best = max(row.select_metric or 0.0 for row in rows)
    assert told.select_metric == best
    assert rows[told.delivered_cycle].select_metric == best
    plan = RunPlan(**json.loads((finished_run / "plan.json").read_text()))
    assert plan.parameters == plan.trainable_parameters == 88_448
    assert plan.rows["search"] == 8
    assert not (finished_run / "state").exists()
    beat = json.loads((finished_run / "heartbeat").read_text())
    assert beat["phase"] in ("evaluate", "save")
    assert (beat["budget_spent"], beat["budget_before"]) == (1.0, 0.0)


@pytest.mark.slow
def test_the_same_recipe_and_seed_give_the_same_cycles_and_answers(
    finished_run: Path, model_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    write_recipe(out, SLOW)
    run(out, model_cache, "--split", "search", "--split", "confirm")
    assert cycles(out) == cycles(finished_run)
    assert cycles(out, "select.jsonl") == cycles(finished_run, "select.jsonl")
    assert (out / "eval.jsonl").read_text() == (finished_run / "eval.jsonl").read_text()
    other = tmp_path / "other"
    write_recipe(other, {**SLOW, "budget": {"cycles": 1}})
    run(other, model_cache, "--split", "none", seed=1)
    assert cycles(other)[1]["entropy"] != cycles(finished_run)[1]["entropy"]


@pytest.mark.parametrize(
    ("name", "phase", "targets"),
    [
        pytest.param("SIGTERM", "generate", [2], marks=pytest.mark.slow),
        pytest.param("SIGKILL", "generate", [3], marks=pytest.mark.slow),
        pytest.param("SIGTERM", "train", [2, 4], marks=pytest.mark.slow),
        pytest.param("SIGKILL", "generate", [2, 4], marks=pytest.mark.slow),
        pytest.param("SIGKILL", "train", [2, 4], marks=pytest.mark.slow),
    ],
)
def test_a_training_that_was_ended_goes_on_to_the_same_result(
    finished_run: Path, model_cache: Path, tmp_path: Path, name: str, phase: str, targets: list[int]
) -> None:
    """In a cycle, or in two: by SIGKILL with a state saved after every cycle, by SIGTERM with one saved at the end.

    Samples that had been drawn are not drawn again, so that after a kill while sampling, steps have other rows than in
    one go. Where a product's last bits depend on its rows, as on AMD's processors, that is held up to rounding, and
    everywhere else to the letter.
    """
    out = tmp_path / "ended"
    write_recipe(out, SLOW)
    number, killed = signal.Signals[name], name == "SIGKILL"
    arguments = ("--split", "search", "--split", "confirm", "--save-seconds", "0" if killed else "1000")
    for target in targets:
        with started(out, model_cache, *arguments) as process:
            wait_for(lambda: process.poll() is not None or _is_in(out, phase, target))  # noqa: B023  # called at once
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait() == (-number if killed else 0)
        assert killed or summary(out).stopped
        assert len(list(read_jsonl(out / "cycles.jsonl"))) < 6
    run(out, model_cache, *arguments)
    rounding = 1e-5 if phase == "generate" and rows_change_last_bits() else 0.0
    for file in ("cycles.jsonl", "select.jsonl", "eval.jsonl"):
        resumed, in_one = (list(read_jsonl(folder / file)) for folder in (out, finished_run))
        for row, wanted in zip(resumed, in_one, strict=True):
            assert_same(untimed(row), untimed(wanted), rounding=rounding)
    assert summary(out).kept == summary(finished_run).kept


def _is_in(out: Path, phase: str, cycle: int) -> bool:
    try:
        beat = json.loads((out / "heartbeat").read_text())
    except (OSError, ValueError):
        return False
    return bool((beat["cycle"] or 0) >= cycle and beat["phase"] == phase)


@pytest.mark.slow
def test_a_killed_generation_keeps_its_finished_waves(model_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    write_recipe(out, SLOW)
    samples = out / "state" / "samples.jsonl"
    with started(out, model_cache, "--split", "none", "--save-seconds", "0") as process:
        wait_for(lambda: samples.exists() and len(samples.read_text().splitlines()) > 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = samples.read_text().splitlines()
    with started(out, model_cache, "--split", "none", "--save-seconds", "0") as process:
        wait_for(lambda: len(samples.read_text().splitlines()) > len(before) + 1)
        assert samples.read_text().splitlines()[: len(before) - 1] == before[:-1]


def test_a_finished_run_is_left_alone(finished_run: Path, model_cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()}
    run(finished_run, model_cache)
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["start", "generate"])
def test_sigterm_ends_a_training_in_good_order(model_cache: Path, tmp_path: Path, phase: str) -> None:
    out = tmp_path / "stopped"
    write_recipe(out, {"budget": {"cycles": 100000}})
    with started(out, model_cache, "--save-seconds", "0") as process:
        wait_for(lambda: _has_phase(out, phase))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 20
    told = summary(out)
    assert told.stopped
    rows = list(read_jsonl(out / "cycles.jsonl"))
    assert told.cycles == max(len(rows) - 1, 0)
    if phase == "generate":
        assert (out / "checkpoint" / "model.safetensors").exists()


def _has_phase(out: Path, phase: str) -> bool:
    try:
        return bool(json.loads((out / "heartbeat").read_text())["phase"] == phase)
    except (OSError, ValueError):
        return False


@pytest.mark.slow
def test_a_time_limit_leaves_room_for_the_evaluation(model_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "limited"
    write_recipe(out, {"budget": {"cycles": 100000}})
    began = time.monotonic()
    run(out, model_cache, "--time-limit", "15")
    assert time.monotonic() - began < 15
    told = summary(out)
    assert not told.stopped
    assert set(told.metrics) == {"search"}
    assert told.cycles > 0
    assert told.ended_by == "time_limit"


@pytest.mark.slow
def test_a_checkpoint_and_the_untrained_model_can_be_evaluated_alone(
    finished_run: Path, model_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "checked"
    write_recipe(out, SLOW)
    run(out, model_cache, "--evaluate", str(finished_run / "checkpoint"))
    expected = [row for row in read_jsonl(finished_run / "eval.jsonl") if row["split"] == "search"]
    assert list(read_jsonl(out / "eval.jsonl")) == expected
    assert list(read_jsonl(out / "samples.jsonl")) == list(read_jsonl(finished_run / "samples.jsonl"))
    assert summary(out).metrics == {"search": summary(finished_run).metrics["search"]}
    untrained = tmp_path / "untrained"
    write_recipe(untrained, SLOW)
    run(untrained, model_cache, "--evaluate", "untrained", "--split", "select", seed=3)
    rows = list(read_jsonl(untrained / "eval.jsonl"))
    # Cycle 0 measured one sample of each `select` prompt, with the same luck as the first of two here.
    first = [row["passed"] for row in rows if row["sample"] == 0]
    assert cycles(finished_run)[0]["select_metric"] == sum(first) / len(first)


@pytest.mark.parametrize(
    ("over", "code", "crash_class", "said"),
    [
        ({"execution": {"mode": "async"}}, 11, "backend", "execution.mode: async is not supported"),
        pytest.param(
            {"backend": {"attention": "flash"}}, 11, "backend", "flash cannot run here", marks=pytest.mark.slow
        ),
        pytest.param({"model": {"source": "./nowhere"}}, 4, "data", "no folder ./nowhere", marks=pytest.mark.slow),
        pytest.param(
            {"rollout": {"max_total_sequence_length": 8, "max_new_tokens": 1}, "prompt": {"system": "Add!"}},
            3,
            "data",
            "no prompt fits",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"task": {"dataset": "jsonl:missing.jsonl", "parameters": {}}},
            4,
            "data",
            "missing.jsonl",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_failure_is_one_message_a_class_and_a_code(
    model_cache: Path, tmp_path: Path, over: dict[str, Any], code: int, crash_class: str, said: str
) -> None:
    out = tmp_path / "failed"
    write_recipe(out, over)
    error = run(out, model_cache, code=code)
    assert said in error
    assert "Traceback" not in error
    failure = json.loads((out / "failure.json").read_text())
    assert failure["crash_class"] == crash_class
    assert said in f"{failure['where']}: {failure['message']}"
    assert not (out / "summary.json").exists()


def test_a_recipe_that_does_not_validate_names_the_key(model_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "failed"
    out.with_suffix(".yaml").write_text(
        resolved_text(small_recipe()).replace("  temperature: 1.0", "  temprature: 1.0", 1)
    )
    error = run(out, model_cache, code=3)
    assert "temprature" in error
    failure = json.loads((out / "failure.json").read_text())
    assert failure["crash_class"] == "typo"
    assert failure["key"] == "rollout.temprature"


@pytest.mark.slow
def test_all_that_a_summary_vouches_for_is_on_the_disk_before_it(tmp_path: Path, model_cache: Path) -> None:
    """By the calls of the process itself: a power cut after them finds all of it."""
    out = tmp_path / "run"
    write_recipe(out, {"budget": {"cycles": 1}})
    log = tmp_path / "calls"
    script = (
        "import os, sys\n"
        "import agent.files as files\n"
        "sync, place, log = files.sync, files.put_in_place, open(sys.argv.pop(1), 'a', buffering=1)\n"
        "def synced(descriptor):\n"
        "    sync(descriptor)\n"
        "    log.write('sync ' + os.readlink(f'/proc/self/fd/{descriptor}') + '\\n')\n"
        "def placed(temporary, path):\n"
        "    place(temporary, path)\n"
        "    log.write(f'place {path}\\n')\n"
        "files.sync, files.put_in_place = synced, placed\n"
        "from agent.raft.worker import main\n"
        "sys.exit(main())\n"
    )
    arguments = command(out, model_cache)[3:]
    done = subprocess.run(
        [sys.executable, "-c", script, str(log), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    before = calls[: calls.index(f"place {out / 'summary.json'}")]
    weights = sorted(path for path in (out / "checkpoint").iterdir() if path.is_file())
    assert weights
    for path in (out / "cycles.jsonl", out / "select.jsonl", *weights, out / "checkpoint", out):
        assert f"sync {path}" in before, path
