"""The order of runs, what is written down of them, and that a kill costs nothing but time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_made import FAKE, IDS, STUDY, drawn, made_line, small, workspace_with

from agent.errors import DataError, InvalidFile
from agent.files import read_jsonl
from agent.hardware.probe import Machine
from agent.ledger.workspace import Workspace
from agent.run.folder import running_in
from agent.study.analysis import analyse
from agent.study.definition import Arm, Study
from agent.study.results import FailedLine, Results, RunLine
from agent.study.runs import Place, Ran, run_study

HIGH = "    - {label: high, set: {learner.learning_rate: 1.0e-3}}\n"
TWO = STUDY.replace("seeds: 3", "seeds: 2").replace(HIGH, "")
"""Two arms with two seeds."""
MACHINE = Machine(
    kind="cpu", accelerators=0, arch=None, name="test", cores=2, memory_gb=8.0, accelerator_memory_gb=None,
    bf16=False, unified_memory=False, torch="2", packages=frozenset(),
)  # fmt: skip


@dataclass
class Heard:
    begun: list[tuple[str, int, bool]] = field(default_factory=list)
    lines: list[RunLine | FailedLine] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    def started(self, arm: Arm, seed: int, *, number: int, goes_on: bool) -> None:
        self.begun.append((arm.label, seed, goes_on))

    def progress(self, progress: object) -> None:
        pass

    def finished(self, line: RunLine | FailedLine, *, left: int) -> None:
        self.lines.append(line)
        self.left.append(left)


@dataclass
class Bench:
    workspace: Workspace
    heard: Heard = field(default_factory=Heard)

    @property
    def study(self) -> Study:
        return small(self.workspace)

    @property
    def path(self) -> Path:
        return self.workspace.studies / "results" / "small.jsonl"

    def with_seeds(self, seeds: str) -> Bench:
        path = self.workspace.studies / "small.yaml"
        path.write_text(TWO.replace("seeds: 2", f"seeds: {seeds}"))
        return self

    def run(self, **keys: Any) -> Ran:
        place = Place(
            self.workspace.root, self.workspace.study_folder("small"), self.workspace.root / "models", MACHINE
        )
        return run_study(self.study, Results.read(self.path), place, self.heard, command=FAKE, **keys)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(workspace_with(tmp_path, TWO))


def keys_of(path: Path) -> list[tuple[str, int]]:
    return [(line["arm"], line["seed"]) for line in read_jsonl(path) if line["kind"] == "run"]


def test_runs_go_seed_by_seed_and_are_never_repeated(bench: Bench) -> None:
    ran = bench.run(max_runs=3)
    assert (ran.finished, ran.failed, ran.stopped) == (3, 0, "3 runs were asked for")
    order = [(arm.label, seed) for arm, seed in bench.study.order()]
    assert keys_of(bench.path) == order[:3]
    assert bench.heard.left == [3, 2, 1]
    assert not list(bench.workspace.study_folder("small").glob("*/checkpoint"))
    subprocess.run(["rm", "-r", bench.workspace.private / "studies"], check=True)  # another machine has the file alone
    assert bench.run().finished == 1
    assert keys_of(bench.path) == order
    assert bench.run() == Ran()
    lines = list(read_jsonl(bench.path))
    assert [line["kind"] for line in lines].count("prompts") == 1
    first = analyse(bench.study, Results.read(bench.path)).arms[0]
    assert first.seeds == (1, 2)
    assert first.courses["accuracy"][-1].mean > first.courses["accuracy"][0].mean
    assert first.courses["entropy"][0].mean == 0.8


@pytest.mark.slow
def test_what_failed_is_written_down_and_tried_again_only_when_asked(bench: Bench) -> None:
    (bench.workspace.root / "crash-seeds").write_text("2\n")
    bench.with_seeds("[2]")
    ran = bench.run()
    assert (ran.finished, ran.failed, ran.stopped) == (0, 2, None)
    failed = [line for line in bench.heard.lines if isinstance(line, FailedLine)]
    assert [line.seed for line in failed] == [2, 2]
    assert all(line.crash_class and line.reason for line in failed)
    assert bench.run() == Ran()
    assert analyse(bench.study, Results.read(bench.path)).failed == 2
    (bench.workspace.root / "crash-seeds").unlink()
    assert bench.run(retry=True, max_runs=1).finished == 1
    assert analyse(bench.study, Results.read(bench.path)).failed == 1


@pytest.mark.slow
def test_a_retry_that_was_stopped_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.workspace.root / "crash-seeds").write_text("2\n")
    bench.with_seeds("[2]")
    bench.run(max_runs=1)
    (bench.workspace.root / "crash-seeds").unlink()
    monkeypatch.setenv("FAKE_PACE", "0.4")
    monkeypatch.setenv("FAKE_PACE_ALL", "1")
    folder = bench.workspace.study_folder("small")

    def after_two_cycles() -> str | None:
        return "stopped" if any(len(path.read_text()) >= 2 for path in folder.glob("*/trained")) else None

    assert "stopped" in (bench.run(retry=True, max_runs=1, stop=after_two_cycles).stopped or "")
    (trained,) = folder.glob("*/trained")
    before = trained.read_text()
    monkeypatch.setenv("FAKE_PACE", "0")
    assert bench.run(retry=True, max_runs=1).finished == 1
    assert trained.read_text().startswith(before), "what it had trained was not done again from the beginning"


@pytest.mark.slow
def test_a_stop_keeps_the_run_under_way_and_goes_on_in_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.4")
    monkeypatch.setenv("FAKE_PACE_ALL", "1")
    folder = bench.workspace.study_folder("small")

    def after_two_cycles() -> str | None:
        trained = list(folder.glob("*/trained"))
        return "stopped by Ctrl-C" if trained and len(trained[0].read_text()) >= 2 else None

    ran = bench.run(stop=after_two_cycles)
    assert ran.finished == 0
    assert ran.stopped is not None
    assert "stopped by Ctrl-C" in ran.stopped
    assert keys_of(bench.path) == []
    monkeypatch.setenv("FAKE_PACE", "0")
    bench.run(max_runs=1)
    assert [goes_on for _, _, goes_on in bench.heard.begun] == [False, True]
    assert next(folder.glob("*/trained")).read_text() == "12345"  # no cycle twice
    assert len(keys_of(bench.path)) == 1


def test_a_budget_ends_it(bench: Bench) -> None:
    ticks = iter([0.0, 0.0, *[1e6] * 1000])
    assert bench.run(budget_s=60.0, clock=lambda: next(ticks)).stopped == "the budget is spent"


KILLED = """\
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from agent.ledger.workspace import Workspace
from agent.run.folder import running_in
from test_study_runs import Bench
Bench(Workspace(Path({root!r}))).run()
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_and_doubles_nothing(bench: Bench) -> None:
    bench.with_seeds("[1]")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    code = KILLED.format(paths=paths, root=str(bench.workspace.root))
    environment = {**os.environ, "FAKE_PACE": "0.1", "FAKE_PACE_ALL": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    folder = bench.workspace.study_folder("small")
    until = time.monotonic() + 60
    while (
        not any(len(trained.read_text()) > 1 for trained in folder.glob("*x0.5*/trained"))
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with bench.path.open("a") as file:
        file.write('{"kind": "run", "study": "small", "arm": "low, con')  # as a power cut would leave it
    time.sleep(0.5)  # the leash ends its trainer
    while any(running_in(run) is not None for run in folder.iterdir()):
        time.sleep(0.05)
    bench.run()
    order = [(arm.label, seed) for arm, seed in bench.study.order()]
    assert keys_of(bench.path) == order
    assert all(path.read_text() == "12345" for path in folder.glob("*/trained"))


# --- the file ----------------------------------------------------------------------------------------------


def test_the_first_line_of_a_run_counts_and_foreign_lines_are_passed_over(bench: Bench) -> None:
    study, rng = bench.study, np.random.default_rng(0)
    counts = drawn(np.zeros(6), rng)
    results = Results(bench.path)
    results.add(made_line(study, "low, constant", 1, counts), ids=IDS)
    results.add(made_line(study, "low, constant", 1, drawn(np.ones(6), rng)), ids=IDS)
    bench.path.write_text(bench.path.read_text() + '{"kind": "run"}\n<<<<<<< HEAD\n{"kind": "x"}\n')
    again = Results.read(bench.path)
    assert (len(again.runs), again.unread) == (1, 2)
    assert analyse(study, again).arms[0].courses["accuracy"][0].mean == pytest.approx(counts[0].mean())


def test_rows_of_two_data_sets_are_not_mixed(bench: Bench) -> None:
    study, counts = bench.study, drawn(np.zeros(6), np.random.default_rng(0))
    Results(bench.path).add(made_line(study, "low, constant", 1, counts), ids=IDS)
    with pytest.raises(DataError, match="measured on other rows than low, constant, seed 1"):
        bench.run(max_runs=1)
    assert len(keys_of(bench.path)) == 1
    Results.read(bench.path).add(made_line(study, "low, x0.5", 1, counts, data="other"), ids=IDS)
    with pytest.raises(InvalidFile, match="measured on different rows"):
        analyse(study, Results.read(bench.path))


def test_a_damaged_line_is_named(bench: Bench) -> None:
    counts = drawn(np.zeros(6), np.random.default_rng(0))
    line = made_line(bench.study, "low, constant", 1, counts, passes="AAAA")
    Results(bench.path).add(line, ids=IDS)
    with pytest.raises(InvalidFile, match="line is damaged"):
        analyse(bench.study, Results.read(bench.path))
