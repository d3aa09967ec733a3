"""A hundred runs that are killed, each with a family that does not want to go: none is left, and nothing leaks here."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_run_launcher import MACHINE, make_recipe

from agent.hardware.probe import Machine
from agent.run.launcher import RunRequest, RunResult, launch
from agent.run.processes import MARK

FAMILY = Path(__file__).with_name("fake_family.py")
RUNS = 100


def run(folder: Path, number: int, *, machine: Machine = MACHINE) -> RunResult:
    """A family that is ended as soon as all of it is there: by a stop, or as the trainer leaves by itself."""
    out = folder / f"run-{number}"
    request = RunRequest(recipe=make_recipe(), out=out, seed=number, workspace=folder, time_limit_s=60.0)
    leaves = number % 4 == 3
    return launch(
        request,
        command=[sys.executable, "-I", "-S", str(FAMILY), "leaves" if leaves else "stays"],
        machine=machine,
        stop=lambda: "seen" if (out / "pids").exists() and not leaves else None,
        grace_s=0.1,
        poll_s=0.05,
        idle_wait_s=0.0,
    )


def marked() -> list[int]:
    """Living processes of any run."""
    found = []
    for process in psutil.process_iter():
        try:
            if MARK in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def ours() -> tuple[int, int]:
    """(open files, threads) of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts by /proc")
def test_a_hundred_killed_families_leave_no_process_no_file_and_no_thread(tmp_path: Path) -> None:
    others = set(marked())
    run(tmp_path, 1000)  # whatever is opened once and kept is open now
    before, children = ours(), len(psutil.Process().children())
    seen = 0
    for number in range(RUNS):
        result = run(tmp_path, number)
        pids = [int(word) for word in (tmp_path / f"run-{number}" / "pids").read_text().split()]
        assert len(pids) == 5
        seen += len(pids)
        assert result.memory_back is not False, result.held_by
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        assert alive == [], f"run {number}: {result.reason}"
    deadline = time.monotonic() + 10
    while ours() != before and time.monotonic() < deadline:
        time.sleep(0.1)
    print(f"\n{RUNS} runs, {seen} processes; open files and threads {before} before, {ours()} after")
    assert ours() == before
    assert set(marked()) - others == set()
    assert len(psutil.Process().children()) == children
