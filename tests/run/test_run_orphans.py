"""A hundred runs that are killed, each with a family that does not want to go: none is left, and nothing leaks here."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_run_launcher import MACHINE, make_recipe

from agent.hardware.probe import Machine
from agent.run.launcher import launch
from agent.run.request import RunRequest, RunResult

FAMILY = Path(__file__).with_name("fake_family.py")
RUNS = 100
OURS = "TEST_ORPHANS_OF"
"""Names the test's folder in every process of its runs: another test may have runs at the same time."""


def run(
    folder: Path, number: int, *, machine: Machine = MACHINE, before_its_end: Callable[[], None] = lambda: None
) -> RunResult:
    """A family that is ended as soon as all of it is there: by a stop, or as the trainer leaves by itself."""
    out = folder / f"run-{number}"
    request = RunRequest(
        recipe=make_recipe(), out=out, seed=number, workspace=folder, time_limit_s=60.0, env={OURS: str(folder)}
    )
    leaves = number % 4 == 3

    def stop() -> str | None:
        if leaves or not (out / "pids").exists():
            return None
        before_its_end()
        return "seen"

    return launch(
        request,
        command=[sys.executable, "-I", "-S", str(FAMILY), "leaves" if leaves else "stays"],
        machine=machine,
        stop=stop,
        grace_s=0.1,
        poll_s=0.05,
        idle_wait_s=0.0,
    )


def living(folder: Path) -> list[int]:
    """Processes of any run in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(OURS) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def ours() -> tuple[int, int]:
    """(open files, threads) of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts by /proc")
def test_a_hundred_killed_families_leave_no_process_no_file_and_no_thread(tmp_path: Path) -> None:
    found: list[int] = []
    # Whatever is opened once and kept is open after this one.
    run(tmp_path, 1000, before_its_end=lambda: found.extend(living(tmp_path)))
    assert len(found) >= 5
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
    assert living(tmp_path) == []
    assert len(psutil.Process().children()) == children
