"""Real processes: a trainer that was started ahead is the run's own once handed over, and is never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_run_launcher import FAKE, MACHINE, QUICK, make_recipe, running, wait_until

from agent.contract import LOG
from agent.run import standby as standby_module
from agent.run.diagnosis import evidence_of
from agent.run.folder import running_in
from agent.run.launcher import launch
from agent.run.processes import ProcessIdentity
from agent.run.request import RunRequest, RunResult
from agent.run.standby import MOST_IN_VAIN, SIZE_GB, SPARE_GB, Standby
from agent.run.start import Start
from agent.run.telemetry import ATTEMPT
from agent.run.triage import triage
from agent.run.watchdog import Watchdog

FAKE_STANDBY = [sys.executable, str(Path(__file__).with_name("fake_standby.py"))]


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    one = Standby(trainer=FAKE, command=FAKE_STANDBY)
    yield one
    one.close()
    assert [pid for pid in starts(tmp_path) if running(pid)] == []


def run(folder: Path, name: str, fake: str, standby: Standby | None, **options: object) -> RunResult:
    """One run in a folder of its own; the fake is named by a file, so that runs differ in nothing that is fixed."""
    fields = {key: options.pop(key) for key in list(options) if key in RunRequest.__dataclass_fields__}
    (fields.get("workspace", folder) / "fake").write_text(fake)
    env = {"FAKE_STARTS": str(folder / "starts"), **fields.pop("env", {})}  # type: ignore[dict-item]  # mixed options
    usual = {"recipe": make_recipe(), "workspace": folder, "seed": 7, "time_limit_s": 30.0}
    request = RunRequest(out=folder / name, **{**usual, **fields, "env": env})
    defaults = {"command": FAKE, "machine": MACHINE, "grace_s": 1.0, "poll_s": 0.02, "idle_wait_s": 0.0}
    return launch(request, standby=standby, **{**defaults, **options})


def train(folder: Path, name: str, standby: Standby, **options: object) -> RunResult:
    """A run that goes on until the process of the next one has been started."""
    return run(folder, name, "steady", standby, stop=lambda: "seen" if standby.waiting else None, **options)


def starts(folder: Path) -> list[int]:
    """Process ids of everything that was started ahead."""
    path = folder / "starts"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def told(result: RunResult) -> dict:
    assert result.summary is not None
    return result.summary.model_extra or {}


def test_the_next_run_gets_the_process_that_was_started_while_the_first_one_trained(
    tmp_path: Path, standby: Standby
) -> None:
    first = train(tmp_path, "first", standby)
    assert standby.waiting is not None
    waiting = standby.waiting.identity
    wait_until(lambda: starts(tmp_path) == [waiting.pid])
    assert waiting.pid != told(first)["pid"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "first", "starts"]  # it has written nothing
    began = time.monotonic()
    started: list[ProcessIdentity] = []
    second = train(tmp_path, "second", standby, on_started=started.append)
    assert second.ok
    assert told(second)["pid"] == waiting.pid
    assert started == [waiting]
    assert second.elapsed_s <= time.monotonic() - began  # counted from the handover, not from the process's start
    assert told(second)["process"] == told(first)["process"]
    assert told(second)["variables"] == told(first)["variables"]
    assert told(second)["folder"] == str(tmp_path)
    log = (tmp_path / "second" / LOG).read_text()
    assert log.index(ATTEMPT) < log.index("a warning of an import") < log.index("going on until")
    assert "in a process that was started ahead" in log
    assert "a warning of an import" not in (tmp_path / "first" / LOG).read_text()
    # The third is waiting now: never more than one, started once a run.
    assert standby.waiting is not None
    wait_until(lambda: len(starts(tmp_path)) == 2)


@pytest.mark.parametrize(
    ("fake", "ended_by", "exit_code", "number", "crash_class"),
    [
        ("steady", "time_limit", 0, None, None),
        ("killed", "itself", None, signal.SIGKILL, None),
        pytest.param("garbage", "itself", 1, None, "typo", marks=pytest.mark.slow),
        pytest.param("hung", "hang", None, signal.SIGABRT, "timeout", marks=pytest.mark.slow),
        pytest.param("stubborn", "time_limit", None, signal.SIGKILL, "timeout", marks=pytest.mark.slow),
    ],
)
def test_it_ends_as_one_that_was_started_for_its_run(
    tmp_path: Path,
    standby: Standby,
    fake: str,
    ended_by: str,
    exit_code: int | None,
    number: int | None,
    crash_class: str | None,
) -> None:
    """Expected is what the tests of the launcher find of a fresh process."""
    train(tmp_path, "before", standby)
    ahead = standby.waiting
    assert ahead is not None
    limit = 30.0 if fake == "hung" else 0.8
    result = run(tmp_path, "run", fake, standby, time_limit_s=limit, grace_s=0.3, watchdog=Watchdog(QUICK))
    assert ahead.handed
    assert (result.ended_by, result.exit_code, result.signal) == (ended_by, exit_code, number)
    if fake == "steady":
        assert told(result)["pid"] == ahead.identity.pid
        assert result.summary is not None
        assert result.summary.stopped
    else:
        diagnosis = triage(evidence_of(result))
        if fake == "killed":
            crash_class = "unknown" if result.memory_events == "still" else "oom"
        assert diagnosis.crash_class == crash_class
        assert fake != "hung" or "in waits_for_ever" in diagnosis.evidence
    if fake == "stubborn":
        pids = json.loads((tmp_path / "run" / "pids.json").read_text())
        assert pids[0] == ahead.identity.pid
        assert [pid for pid in pids if running(pid)] == []
        assert "4 more that it had started" in result.reason
    assert not running(ahead.identity.pid)
    assert running_in(tmp_path / "run") is None


@pytest.mark.slow
def test_what_cannot_be_changed_any_more_starts_a_fresh_process(
    tmp_path: Path, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run differs from the one before in one thing, and the last one in nothing."""
    (tmp_path / "elsewhere").mkdir()
    train(tmp_path, "first", standby)

    def next_run(name: str, **options: object) -> tuple[bool, RunResult]:
        """Whether it got the waiting process, which is ended otherwise; and the next one waits like this one ran."""
        assert standby.waiting is not None, name
        pid = standby.waiting.identity.pid
        result = train(tmp_path, name, standby, **options)
        assert result.ok
        assert not running(pid)
        return told(result)["pid"] == pid, result

    variable = {"FROM_REQUEST": "x"}
    assert not next_run("variable", env=variable)[0]
    assert not next_run("recipe", env=variable, recipe=make_recipe(env={"FROM_RECIPE": "y"}))[0]
    monkeypatch.setenv("FROM_REQUEST", "z")
    assert not next_run("inherited")[0]
    assert not next_run("folder", workspace=tmp_path / "elsewhere")[0]
    handed, fresh = next_run("priority", low_priority=True)
    assert not handed
    handed, same = next_run("same", low_priority=True)
    assert handed
    assert told(same)["niceness"] == told(fresh)["niceness"] >= 10
    assert told(same)["group_nice"] == told(fresh)["group_nice"] in (10, None)
    assert told(same)["process"] == told(fresh)["process"]


def test_it_stands_by_for_its_own_trainer_only(tmp_path: Path, standby: Standby) -> None:
    other = [*FAKE, "--allow-untrusted-code"]
    assert run(tmp_path, "first", "good", standby, command=other).ok
    assert standby.waiting is None


def test_one_that_died_is_no_error(tmp_path: Path, standby: Standby) -> None:
    train(tmp_path, "first", standby)
    for number in (signal.SIGKILL, signal.SIGTERM):
        assert standby.waiting is not None
        pid = standby.waiting.identity.pid
        wait_until(lambda pid=pid: pid in starts(tmp_path))
        os.kill(pid, number)
        result = train(tmp_path, number.name, standby)
        assert result.ok
        assert told(result)["pid"] != pid
        assert f"ended with -{number:d}" in (tmp_path / number.name / LOG).read_text()


def test_one_that_is_late_is_no_error(tmp_path: Path) -> None:
    standby = Standby(trainer=FAKE, command=FAKE_STANDBY, patience_s=0.1)
    try:
        train(tmp_path, "first", standby, env={"FAKE_IMPORTS": "slow"})
        assert standby.waiting is not None
        pid = standby.waiting.identity.pid
        second = run(tmp_path, "second", "good", standby, env={"FAKE_IMPORTS": "slow"})
    finally:
        standby.close()
    assert told(second)["pid"] != pid
    assert not running(pid)
    assert "was not ready in time" in (tmp_path / "second" / LOG).read_text()


def test_one_whose_imports_crash_is_no_error_and_after_some_no_more_are_started(
    tmp_path: Path, standby: Standby
) -> None:
    for number in range(MOST_IN_VAIN):
        assert train(tmp_path, str(number), standby, env={"FAKE_IMPORTS": "crash"}).ok
        wait_until(lambda number=number: len(starts(tmp_path)) == number + 1)
    assert run(tmp_path, "last", "good", standby, env={"FAKE_IMPORTS": "crash"}).ok
    assert len(starts(tmp_path)) == MOST_IN_VAIN
    assert standby.waiting is None
    # What it printed is there to be read, before the heading, so that triage does not take it for the run's.
    log = (tmp_path / "1" / LOG).read_text()
    assert log.index("ended with 1") < log.index("a warning of an import") < log.index(ATTEMPT)
    assert log.index("ImportError: libtorch.so: no such symbol") < log.index(ATTEMPT)


def test_it_does_not_outlive_a_failed_handover(
    tmp_path: Path, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies between the last look at it and the handover."""
    train(tmp_path, "first", standby)
    ahead = standby.waiting
    assert ahead is not None
    assert ahead.wait_until_ready(most_s=3.0)
    original = standby_module.Ahead.hand_over

    def killed_first(self: standby_module.Ahead, *arguments: object, **keys: object) -> bool:
        os.kill(self.identity.pid, signal.SIGKILL)
        self.process.wait()
        return original(self, *arguments, **keys)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(standby_module.Ahead, "hand_over", killed_first)
    second = run(tmp_path, "second", "good", standby)
    assert second.ok
    assert told(second)["pid"] != ahead.identity.pid


# --- memory ------------------------------------------------------------------------------------------------


def test_it_is_started_only_with_memory_to_spare_and_ended_when_that_is_gone(tmp_path: Path, standby: Standby) -> None:
    start = Start.of(FAKE, workspace=tmp_path, variables={"FAKE_STARTS": str(tmp_path / "starts")}, low_priority=False)
    recipe = tmp_path / "recipe.yaml"
    enough = 1.0 + SPARE_GB + SIZE_GB

    def tend(phase: str, free: float, resident: float = 2.0) -> bool:
        standby.tend(start, recipe=recipe, phase=phase, free_gb=free, floor_gb=1.0, resident_gb=resident)  # type: ignore[arg-type]  # a phase
        return standby.waiting is not None

    assert not tend("load", 50.0)  # the running one's own imports are not done
    assert not tend("train", enough - 0.01)
    assert tend("train", enough, resident=12.0)
    standby.close()
    assert standby.take(start) is None  # the next run
    assert not tend("train", enough + 9.9, resident=2.0)  # will grow to 12 as the one before
    assert tend("train", enough + 10.1, resident=2.0)
    pid = standby.waiting.identity.pid  # type: ignore[union-attr]  # tend said so
    assert tend("train", 1.0 + SPARE_GB, resident=12.0)
    assert not tend("train", 1.0 + SPARE_GB - 0.01, resident=12.0)
    assert not running(pid)
    assert not tend("train", 50.0, resident=12.0)  # once a run


# --- nothing is left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("imports", ["good", pytest.param("slow", marks=pytest.mark.slow)])
def test_it_does_not_outlive_an_agent_that_was_killed(tmp_path: Path, imports: str) -> None:
    """While it waits, and while it imports. The agent is a process of its own here, so that it can be killed."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_run_standby as t;"
        "t.run(Path(sys.argv[2]), 'run', 'steady', t.Standby(trainer=t.FAKE, command=t.FAKE_STANDBY),"
        " env={'FAKE_IMPORTS': sys.argv[3]})"
    )
    here = Path(__file__).parent
    agent = subprocess.Popen(
        [sys.executable, "-c", program, str(here), str(tmp_path), imports],
        env={**os.environ, "PYTHONPATH": str(here.parents[1])},
    )
    try:
        wait_until(lambda: len(starts(tmp_path)) == 1 and running_in(tmp_path / "run") is not None)
        [pid] = starts(tmp_path)
        trainer = running_in(tmp_path / "run")
        assert trainer is not None
        assert running(pid)
        assert running(trainer.pid)
    finally:
        agent.kill()
        agent.wait()
    wait_until(lambda: not running(pid), seconds=3.0)
    wait_until(lambda: not running(trainer.pid))


@pytest.mark.parametrize("imports", ["good", "slow"])
def test_the_closing_of_the_channel_alone_ends_it(tmp_path: Path, imports: str) -> None:
    """Without the leash, as where the system has none. Then its session is that of whoever started it, a terminal's for
    example, whose group keeps its nice value."""
    group = Path("/proc/self/autogroup")
    before = group.read_text() if group.exists() else None
    mine, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [*FAKE_STANDBY, "recipe.yaml"],
            stdin=its.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "FAKE_STARTS": str(tmp_path / "starts"), "FAKE_IMPORTS": imports,
                 "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    wait_until(lambda: starts(tmp_path) == [process.pid])
    if imports == "good":
        assert mine.recv(10) == b"ready\n"
    mine.close()
    assert process.wait(timeout=2.0) == 0
    assert before is None or group.read_text() == before


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group sessions")
def test_its_imports_have_a_low_priority_and_leave_no_trace(tmp_path: Path, standby: Standby) -> None:
    """While it imports, its thread and its session's group have a low priority; who gets it has the usual one."""
    slow = Standby(trainer=FAKE, command=FAKE_STANDBY)
    try:
        train(tmp_path, "slow", slow, env={"FAKE_IMPORTS": "slow"})
        assert slow.waiting is not None
        pid = slow.waiting.identity.pid
        wait_until(lambda: Path(f"/proc/{pid}/autogroup").read_text().split()[-1] == "10")
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        wait_until(lambda: niceness_of_threads(pid) == {min(19, usual + 10), usual})
        assert not slow.waiting.wait_until_ready(most_s=0.01)  # tells it to hurry
        wait_until(lambda: Path(f"/proc/{pid}/autogroup").read_text().split()[-1] == "0")
    finally:
        slow.close()
    train(tmp_path, "first", standby)
    assert standby.waiting is not None
    assert standby.waiting.wait_until_ready(most_s=5.0)
    pid = standby.waiting.identity.pid
    assert Path(f"/proc/{pid}/autogroup").read_text().split()[-1] == "0"
    wait_until(lambda: len(psutil.Process(pid).threads()) == 1)
    assert niceness_of_threads(pid) == {usual}


def niceness_of_threads(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}
