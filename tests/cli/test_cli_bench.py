"""`raft-agent bench` as a user calls it: a real small run, bad input, the tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from command import agent

from agent.cli.bench_tables import number, print_tables, quantity
from agent.raft import tiny
from agent.raft.llama import TinyLlama

TRIAL = ("--model", "builtin:tiny", "--prompts", "2", "--samples", "2", "--max-new-tokens", "4", "--repeats", "1")
TRIAL += ("--kept", "2", "--trainer-rows", "2", "--quick")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache with a built-in model that nobody taught: its speed is what counts."""
    cache = tmp_path_factory.mktemp("cache")
    model = TinyLlama(tiny.SHAPE)
    model.initialize(torch.Generator().manual_seed(0), std=0.1)
    folder = tiny.home(cache)
    folder.mkdir(parents=True)
    tiny.save_model(model, folder)
    tiny.CharTokenizer().save_pretrained(str(folder))
    return {"RAFT_AGENT_CACHE": str(cache)}


@pytest.mark.slow
@pytest.mark.alone
def test_a_small_rollout_as_json(tmp_path: Path, environment: dict[str, str]) -> None:
    done = agent(tmp_path, "bench", "rollout", *TRIAL, "--no-compare", "--json", env=environment)
    found = json.loads(done.stdout)
    assert found["bench"] == "rollout"
    assert found["useful_tokens_per_s"] > 0
    assert found["bound_tokens_per_s"] > 0
    assert found["plain_bound_tokens_per_s"] > 0
    assert (found["transformers_tokens_per_s"], found["speedup"]) == (None, None)
    assert found["environment"]["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"], (
        "the shell's goes before the preset"
    )
    assert "repeat 1: ours" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rollouts",), "no such benchmark: rollouts"),
        (("rollout", "--prompts", "0"), "prompts must be at least 1"),
        (("cycle", "--random-weights", "qwen9"), "no known shape qwen9"),
    ],
    ids=["kind", "size", "shape"],
)
def test_a_wrong_argument_is_named(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = agent(tmp_path, "bench", *arguments, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_quantities_have_three_figures() -> None:
    assert quantity(188.4e9, "FLOP/s") == "188 GFLOP/s"
    assert quantity(9.744e9, "B/s") == "9.74 GB/s"
    assert quantity(12.0, "B/s") == "12 B/s"
    assert quantity(None, "B/s") == ""
    assert number(1234.6) == "1235"
    assert number(0.01234, "s") == "0.0123 s"


@pytest.mark.slow
@pytest.mark.alone
def test_all_benchmarks_on_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [*TRIAL[2:], "--random-weights", "tiny"]
    done = agent(tmp_path, "bench", "all", *sizes, "--json", env={"RAFT_AGENT_CACHE": str(tmp_path)})
    found = json.loads(done.stdout)
    assert set(found) == {"machine", "rollout", "train", "cycle"}
    assert found["rollout"]["model"] == "tiny, random weights"
    assert found["rollout"]["speedup"] > 0
    assert found["train"]["speedup"] > 0
    assert found["train"]["transformers_peak_memory_gb"] > 0
    assert found["train"]["peak_memory_gb"] > 0
    assert found["cycle"]["kept"] == 2
    print_tables(found)
    shown = capsys.readouterr().out
    for words in ("matrix products", "bound by the matrix products alone", "transformers' Trainer", "Of a cycle:"):
        assert words in shown


@pytest.mark.slow
@pytest.mark.alone
def test_a_benchmark_ends_with_who_asked_for_it(tmp_path: Path, environment: dict[str, str]) -> None:
    """Killed without a chance to say so, it leaves no process that keeps the machine busy."""
    command = [sys.executable, "-m", "agent.raft.bench", "cycle", "--settings"]
    settings = {"model": "builtin:tiny", "repeats": 10_000}
    asked = subprocess.Popen(
        [*command, json.dumps(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert asked.stderr is not None
    while "warm-up" not in (line := asked.stderr.readline()):
        assert line, "it ended before the first cycle"
    working = psutil.Process(asked.pid).children(recursive=True)
    assert working
    asked.send_signal(signal.SIGKILL)
    asked.wait()
    until = time.monotonic() + 30
    while any(process.is_running() and process.status() != "zombie" for process in working):
        assert time.monotonic() < until, "the measuring process outlives who asked for it"
        time.sleep(0.2)
