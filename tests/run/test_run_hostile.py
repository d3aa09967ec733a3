"""Single runs of trainers that do not want to be ended: each ends in time, and nothing of it is left."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from test_run_launcher import MACHINE, make_recipe, running

os.environ["HOSTILE_NAME"] = f"hostile-{os.getpid()}"  # what another test process starts is not looked for here
import hostile

from agent import proc
from agent.contract import LOG
from agent.hardware.sensors import memory
from agent.run import stall, watching
from agent.run.diagnosis import evidence_of
from agent.run.ending import end_process_group
from agent.run.folder import running_in
from agent.run.launcher import launch
from agent.run.plain import shorten
from agent.run.processes import ProcessIdentity, descendants, family, identify
from agent.run.request import RunRequest, RunResult
from agent.run.telemetry import read_run
from agent.run.triage import triage
from agent.run.watchdog import Limits, Watchdog

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and prctl(2)")

LIMIT_S = 0.9
GRACE_S = 0.3
ENDING_S = 2.0
"""What killing, counting and looking at memory may take on a busy machine."""
QUICK = Limits(
    fixed={"start": 2.0, "load": 0.5, "compile": 0.5, "save": 0.5},
    floors={"generate": 0.3, "verify": 0.3, "train": 0.3, "evaluate": 0.3},
    factor=3,
    first_step=0.5,
    settled=3,
    slow_factor=1.5,
)
HUNG = 5.0
"""Seconds after which the time limit would end one that hangs."""


@dataclass(frozen=True)
class Must:
    end: str
    """`ended_by` of the result."""
    said: str = ""
    """In its reason."""
    limit_s: float = LIMIT_S
    ok: bool = False


CASES = {
    # that do not want to end
    "ignores": Must("time_limit", "was killed"),
    "daemonizes": Must("time_limit", "2 more that it had started"),
    "leaves_daemons": Must("itself", "3 more that it had started", ok=True),
    "hydra": Must("time_limit", "more that it had started"),
    "bomb": Must("time_limit", "more that it had started"),
    "moves": Must("itself", "1 more that it had started"),
    "adopts": Must("time_limit", "1 more that it had started"),
    "stops_itself": Must("hang", "was killed", limit_s=HUNG),
    "stops_its_leash": Must("time_limit", "1 more that it had started"),
    "kills_its_leash": Must("itself", "more that it had started"),
    "waits_in_vfork": Must("hang", "was killed", limit_s=HUNG),
    "is_traced": Must("hang", "was killed", limit_s=HUNG),
    "without_first_thread": Must("time_limit", "was killed"),
    "stays_after_its_summary": Must("itself", "was still there", limit_s=HUNG, ok=True),
    "holds_its_log_open": Must("itself", "1 more that it had started", ok=True),
    # that do not answer, or lie
    "freezes": Must("hang", "no heartbeat for", limit_s=HUNG),
    "lies": Must("hang", "renews its heartbeat and makes no step", limit_s=HUNG),
    "is_of_the_future": Must("hang", "no heartbeat for", limit_s=HUNG),
    "heartbeat_is_a_folder": Must("hang", limit_s=HUNG),
    "heartbeat_is_a_pipe": Must("hang", limit_s=HUNG),
    "heartbeat_is_endless": Must("hang", limit_s=HUNG),
    "heartbeat_is_huge": Must("hang", limit_s=HUNG),
    # that write what nobody can read
    "floods_its_log": Must("flood", "its log has grown to", limit_s=HUNG),
    "floods_its_rows": Must("itself", ok=True),
    "puts_pipes_in_the_way": Must("itself", "exit code 1"),
    "puts_folders_in_the_way": Must("itself", "exit code 1"),
    "links_its_log": Must("itself", ok=True),
    "writes_garbage": Must("itself", "exit code 0"),
    "removes_its_folder": Must("hang", limit_s=HUNG),
    "fills_memory_slowly": Must("memory", "GiB of memory left", limit_s=HUNG),
}


QUICK_ONES = {"daemonizes", "kills_its_leash"}
"""In the default suite; the others are of the same kinds."""


def run(folder: Path, behaviour: str, *, limit_s: float = LIMIT_S, **options: object) -> RunResult:
    program = str(Path(hostile.__file__))
    request = RunRequest(recipe=make_recipe(), out=folder / "run", seed=1, workspace=folder, time_limit_s=limit_s)
    usual = {
        "machine": MACHINE, "watchdog": Watchdog(QUICK), "grace_s": GRACE_S, "poll_s": 0.05, "idle_wait_s": 0.0,
        "most_log_gb": 0.02,
    }  # fmt: skip
    return launch(request, command=[sys.executable, "-I", "-S", program, behaviour], **{**usual, **options})  # type: ignore[arg-type]  # mixed options


@pytest.fixture(autouse=True)
def _nobody_waits_for_the_disk_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's pressure is of everybody's making: what other tests write is no sign that a trainer works."""
    monkeypatch.setattr(stall, "PRESSURE", math.inf)


def survivors(folder: Path, before: set[int]) -> list[int]:
    """By the ids that it told, and by the name that everything it started bears."""
    told = folder / "run" / "pids"
    pids = {int(word) for word in told.read_text().split()} if told.is_file() else set()
    return sorted(pid for pid in pids | (named() - before) if running(pid))


def named() -> set[int]:
    found = set()
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] == hostile.MARK and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


def test_every_behaviour_is_in_the_table() -> None:
    assert set(CASES) == set(hostile.BEHAVIOURS)


@pytest.mark.parametrize(
    "behaviour", [name if name in QUICK_ONES else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_it_ends_in_time_and_nothing_is_left(tmp_path: Path, behaviour: str) -> None:
    must = CASES[behaviour]
    (tmp_path / "precious").write_text("mine\n")
    floor = memory().available - 0.4 if behaviour == "fills_memory_slowly" else None
    before, children = named(), len(psutil.Process().children())
    began = time.monotonic()
    result = run(tmp_path, behaviour, limit_s=must.limit_s, memory_floor_gb=floor)
    took = time.monotonic() - began
    assert survivors(tmp_path, before) == [], result.reason
    assert result.ended_by == must.end, result.reason
    assert must.said in result.reason
    assert result.ok == must.ok
    assert took < min(must.limit_s, LIMIT_S + 2.5) + GRACE_S + ENDING_S
    assert result.memory_back is not False, result.held_by
    assert len(psutil.Process().children()) == children  # neither its leash nor orphans are left to us
    assert (tmp_path / "precious").read_text() == "mine\n"
    if not must.ok:
        assert triage(evidence_of(result)).crash_class in ("timeout", "unknown", "oom")


@pytest.mark.parametrize(
    "behaviour",
    [
        "puts_pipes_in_the_way",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("puts_folders_in_the_way", "links_its_log", "floods_its_rows")
        ),
    ],
)
def test_its_folder_can_be_started_in_again(tmp_path: Path, behaviour: str) -> None:
    (tmp_path / "precious").write_text("mine\n")
    run(tmp_path, behaviour)
    result = run(tmp_path, "writes_garbage")
    assert "exit code 0" in result.reason
    assert read_run(result.out).summary is None
    assert not (tmp_path / "run" / LOG).is_symlink()
    assert (tmp_path / "precious").read_text() == "mine\n"


@pytest.mark.slow
def test_files_that_are_too_large_or_no_files_are_named(tmp_path: Path) -> None:
    notes = run(tmp_path, "floods_its_rows").notes
    assert "eval.jsonl was larger than 128 MiB, and has been cut" in notes
    assert "plan.json was larger than 16 MiB, and has been cut" in notes
    (tmp_path / "other").mkdir()
    run(tmp_path / "other", "puts_pipes_in_the_way")
    problems = "\n".join(read_run(tmp_path / "other" / "run").problems)
    assert "summary.json is no plain file" in problems


def test_a_flooded_log_is_cut_to_its_beginning_and_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"begin\n" + b"x" * 5000 + b"\nend\n")
    shorten(log, long=10_000, head=20, tail=50)
    assert log.stat().st_size == 5011
    shorten(log, long=1000, head=20, tail=50)
    text = log.read_text()
    assert text.startswith("begin\n")
    assert "\n... 4941 bytes were taken out here ...\n" in text
    assert text.endswith("xxx\nend\n")
    assert len(text) < 150


def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([50.0] * 3)
    monkeypatch.setattr(watching, "disk_free", lambda path: next(free, 0.2))
    result = run(tmp_path, "ignores", limit_s=HUNG)
    assert (result.ended_by, result.ok) == ("disk", False)
    assert result.reason.startswith("only 0.20 GiB of disk left where the run writes")
    assert triage(evidence_of(result)).crash_class == "resource"


@pytest.mark.slow
def test_what_runs_beside_it_is_left_alone(tmp_path: Path) -> None:
    """A child of ours, and an orphan that has come to us, while a leash is killed: they are not the run's."""
    beside = subprocess.Popen(["sleep", "60"], start_new_session=True)
    code = (
        "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=-3, stderr=-3).pid)"
    )
    orphans: list[int] = []

    def start_an_orphan(identity: ProcessIdentity) -> None:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
        orphans.append(int(done.stdout))

    try:
        result = run(tmp_path, "kills_its_leash", on_started=start_an_orphan)
        assert "more that it had started" in result.reason
        assert beside.poll() is None
        assert running(orphans[0])
    finally:
        beside.kill()
        beside.wait()
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_its_family_is_what_is_below_its_leash(tmp_path: Path) -> None:
    seen: list[tuple[set[int], set[int]]] = []

    def look(identity: ProcessIdentity) -> None:
        deadline = time.monotonic() + 10
        while len(pids := told_pids(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        below = {one.pid for one in descendants(identity)}
        seen.append((set(pids) - {identity.pid}, below))
        members = {one.pid for one in family(identity)}
        assert members == set(pids)
        assert identity.leash is not None
        assert identity.leash[0] not in members

    run(tmp_path, "daemonizes", on_started=look)
    told, below = seen[0]
    assert told == below
    assert len(told) == 2


def told_pids(folder: Path) -> list[int]:
    path = folder / "run" / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


# --- the agent is killed -----------------------------------------------------------------------------------


AGENT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_run_hostile as t;"
    "import agent.run.start as s; s.LEASH_GRACE_S = float(sys.argv[4]);"
    "t.run(Path(sys.argv[2]), sys.argv[3], limit_s=60)"
)


def killed_agent(folder: Path, behaviour: str, *, processes: int, grace_s: float) -> list[int]:
    """Ids of what it started, once all of it is there and the agent is dead."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1])}
    command = [sys.executable, "-c", AGENT, str(here), str(folder), behaviour, str(grace_s)]
    agent = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(told_pids(folder)) < processes and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        agent.kill()
        agent.wait()
    pids = told_pids(folder)
    assert len(pids) >= processes
    return pids


@pytest.mark.parametrize(
    ("behaviour", "processes"),
    [
        ("daemonizes", 3),
        pytest.param("adopts", 2, marks=pytest.mark.slow),
        pytest.param("hydra", 1, marks=pytest.mark.slow),
        pytest.param("bomb", 20, marks=pytest.mark.slow),
    ],
)
def test_nothing_outlives_a_killed_agent_by_more_than_the_grace(tmp_path: Path, behaviour: str, processes: int) -> None:
    before = named()
    killed_agent(tmp_path, behaviour, processes=processes, grace_s=0.3)
    deadline = time.monotonic() + 5.0
    while survivors(tmp_path, before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert survivors(tmp_path, before) == []


@pytest.mark.slow  # a second agent, whose interpreter alone takes a second
def test_the_next_agent_ends_what_a_killed_one_left_within_its_grace(tmp_path: Path) -> None:
    before = named()
    killed_agent(tmp_path, "daemonizes", processes=3, grace_s=60.0)
    identity = running_in(tmp_path / "run")
    assert identity is not None
    assert len(survivors(tmp_path, before)) == 3
    words = end_process_group(identity, grace_s=0.2)
    assert "2 more that it had started" in words
    assert survivors(tmp_path, before) == []
    assert identity.root is None  # the leash has gone too


def test_descendants_are_found_by_a_walk_through_the_table_where_the_kernel_keeps_no_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import subprocess; subprocess.run(['sleep', '60'])"])
    try:
        deadline = time.monotonic() + 10
        while not proc.descendant_pids(child.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        found = proc.descendant_pids(child.pid)
        assert len(found) == 1
        monkeypatch.setattr(proc.os, "access", lambda path, mode: False)
        assert proc.descendant_pids(child.pid) == found
        assert {one.pid for one in descendants(identify(child.pid))} == set(found)
    finally:
        for pid in proc.descendant_pids(child.pid):
            os.kill(pid, signal.SIGKILL)
        child.wait()
