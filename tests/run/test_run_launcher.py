"""Real processes: every way a training can end, and that nothing of it is left."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from agent.contract import HEARTBEAT, LOG, SUMMARY, Summary
from agent.errors import Busy, ResourceError, Unavailable, WorkspaceError
from agent.hardware.probe import Machine
from agent.hardware.sensors import Graphics, memory
from agent.recipe.files import recipe_from, with_keys
from agent.recipe.schema import Recipe
from agent.run import launcher, watching
from agent.run.diagnosis import evidence_of
from agent.run.folder import PROCESS, running_in
from agent.run.launcher import contract_arguments, launch
from agent.run.processes import ProcessIdentity, is_alive
from agent.run.recovery import FreeMemory, wait_for_idle
from agent.run.request import RunRequest, RunResult
from agent.run.sampler import Sources
from agent.run.telemetry import ATTEMPT, follow_evals, latest_log, read_run
from agent.run.triage import triage
from agent.run.watchdog import Limits, Watchdog
from agent.run.watching import Progress

FAKE = [sys.executable, str(Path(__file__).with_name("fake_trainer.py"))]
QUICK = Limits(floors={"generate": 0.6, "verify": 0.6, "train": 0.6, "evaluate": 0.6}, factor=3)
MACHINE = Machine("cpu", 0, None, "test", 2, 16.0, None, False, False, "2.13", frozenset())


def make_recipe(**backend: object) -> Recipe:
    return recipe_from(
        {
            "model": {"source": "builtin:tiny"},
            "task": {"dataset": "builtin:addition"},
            "budget": {"cycles": 3},
            "backend": backend,
        },
        where="test",
    )


def run(folder: Path, fake: str, **options: object) -> RunResult:
    """Run a fake trainer in `folder`; options of the request and of launch may be mixed."""
    fields = {name: options.pop(name) for name in list(options) if name in RunRequest.__dataclass_fields__}
    env = {"FAKE": fake, **fields.pop("env", {})}
    request = RunRequest(
        recipe=fields.pop("recipe", make_recipe()),
        out=folder / "run",
        workspace=folder,
        **{"seed": 7, "time_limit_s": 30.0, "env": env, **fields},
    )
    return launch(request, **{"command": FAKE, "machine": MACHINE, "grace_s": 1.0, "poll_s": 0.1, **options})


def running(pid: int) -> bool:
    """A zombie, which only waits for init to collect it, does not run."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_over(folder: Path) -> list[int]:
    pids = json.loads((folder / "run" / "pids.json").read_text())
    assert pids
    return [pid for pid in pids if running(pid)]


def test_a_good_run_gives_its_summary_and_hands_over_every_argument(tmp_path: Path) -> None:
    progress: list[Progress] = []
    started: list[ProcessIdentity] = []
    result = run(
        tmp_path,
        "good",
        recipe=make_recipe(env={"FROM_RECIPE": "r", "OMP_NUM_THREADS": "1"}),
        env={"FROM_REQUEST": "q"},
        splits=("search", "confirm"),
        allow_untrusted_code=True,
        low_priority=True,
        on_progress=progress.append,
        on_started=started.append,
        poll_s=0.02,
    )
    assert result.ok
    assert (result.exit_code, result.signal, result.ended_by) == (0, None, "itself")
    assert result.summary is not None
    told = result.summary.model_extra or {}
    assert told["arguments"]["seed"] == 7
    assert told["arguments"]["split"] == ["search", "confirm"]
    assert told["arguments"]["allow_untrusted_code"] is True
    assert told["arguments"]["time_limit"] == pytest.approx(28.5)  # 30 s less 5%
    # The cpu preset would set 2 threads for this machine; the recipe's own value comes over it.
    assert told["variables"] == {"OMP_NUM_THREADS": "1", "FROM_RECIPE": "r", "FROM_REQUEST": "q"}
    assert told["niceness"] >= 10
    # A trainer has a session of its own: where the kernel groups those, a process is only nice within its own.
    assert told["group_nice"] in (10, None)
    assert told["folder"] == str(tmp_path)
    assert {(beat.phase, beat.note) for beat in progress} >= {("train", "hello")}
    assert progress[-1].budget_spent is not None
    assert result.peak_rss_gb is not None
    assert 0.001 < result.peak_rss_gb < 2
    assert len(started) == 1
    assert not is_alive(started[0])
    assert not (tmp_path / "run" / PROCESS).exists()


def test_the_preset_reaches_the_trainer_but_auto_does_not_override_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "a").mkdir()
    first = run(tmp_path / "a", "good")
    assert first.environment["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (tmp_path / "b").mkdir()
    second = run(tmp_path / "b", "good")
    assert second.summary is not None
    assert (second.summary.model_extra or {})["variables"]["OMP_NUM_THREADS"] == "3"
    (tmp_path / "c").mkdir()
    named = run(tmp_path / "c", "good", recipe=make_recipe(environment="cpu"))
    assert named.environment["OMP_NUM_THREADS"] == "2"


def test_the_time_limit_ends_a_trainer_that_obeys_and_keeps_its_summary(tmp_path: Path) -> None:
    result = run(tmp_path, "steady", time_limit_s=0.8)
    assert result.ended_by == "time_limit"
    assert "0.8 s" in result.reason
    assert result.exit_code == 0
    assert result.summary is not None
    assert result.summary.stopped
    assert 0.8 <= result.elapsed_s < 2.0


@pytest.mark.parametrize(
    ("ended_by", "metrics", "ok", "cut"),
    [
        ("itself", {}, False, True),
        ("itself", {"search": 0.5}, False, True),
        ("time_limit", {}, False, True),
        ("time_limit", {"search": 0.5}, True, False),
        ("stop", {}, True, False),
        ("hang", {}, False, False),
    ],
)
def test_what_a_stopped_summary_is_worth_depends_on_who_asked(
    tmp_path: Path, ended_by: watching.EndedBy, metrics: dict[str, float], ok: bool, cut: bool
) -> None:
    told = Summary(stopped=True, seed=1, recipe_signature="fake", metric="pass_rate", metrics=metrics)
    result = RunResult(tmp_path, 0, None, ended_by, "why", 1.0, told, None)
    assert (result.ok, result.cut) == (ok, cut)
    whole = replace(result, summary=told.model_copy(update={"stopped": False}))
    assert (whole.ok, whole.cut) == (ended_by != "hang", False)


def test_a_sigterm_of_somebody_else_is_no_result(tmp_path: Path) -> None:
    result = run(tmp_path, "steady", on_started=lambda one: in_a_moment(tmp_path, one.pid))
    assert (result.ended_by, result.exit_code, result.cut) == ("itself", 0, True)
    assert triage(evidence_of(result)).reason == "was ended (SIGTERM) from outside"


def in_a_moment(folder: Path, pid: int) -> None:
    """SIGTERM to the trainer, once it is under way."""

    def send() -> None:
        while not (folder / "run" / HEARTBEAT).exists():
            time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()


def test_no_orphan_of_a_trainer_that_ignores_sigterm(tmp_path: Path) -> None:
    result = run(tmp_path, "stubborn", time_limit_s=1.5, grace_s=0.5)
    assert result.ended_by == "time_limit"
    assert result.signal == signal.SIGKILL
    assert "was killed" in result.reason
    assert "4 more that it had started" in result.reason  # child, parent, grandchild, daemon
    assert left_over(tmp_path) == []
    assert triage(evidence_of(result)).crash_class == "timeout"


@pytest.mark.slow
def test_what_a_good_trainer_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    result = run(tmp_path, "leaves_children")
    assert result.ok
    assert "1 more that it had started" in result.reason
    assert left_over(tmp_path) == []


def test_a_trainer_that_was_killed_is_out_of_memory_unless_the_kernels_counters_stood_still(tmp_path: Path) -> None:
    result = run(tmp_path, "killed")
    assert (result.exit_code, result.signal, result.ended_by) == (None, signal.SIGKILL, "itself")
    assert result.summary is None
    assert "SIGKILL" in result.reason
    diagnosis = triage(evidence_of(result))
    expected = "unknown" if result.memory_events == "still" else "oom"
    assert (diagnosis.crash_class, diagnosis.source) == (expected, "exit")
    assert diagnosis.phase == "train"
    unreadable = triage(dataclasses.replace(evidence_of(result), memory_events="unreadable"))
    assert unreadable.crash_class == "oom"


@pytest.mark.slow
def test_a_hang_is_seen_and_the_log_says_where_it_hung(tmp_path: Path) -> None:
    result = run(tmp_path, "hung", watchdog=Watchdog(QUICK), grace_s=0.3)
    assert result.ended_by == "hang"
    assert "no heartbeat for" in result.reason
    assert "generate, step 11 of cycle 1" in result.reason
    diagnosis = triage(evidence_of(result))
    assert (diagnosis.crash_class, diagnosis.signature) == ("timeout", "hang")
    assert "in waits_for_ever" in diagnosis.evidence  # the stack that SIGABRT made Python write


@pytest.mark.slow  # six seconds of silence
def test_one_that_works_in_silence_is_ended_later_and_as_slow(tmp_path: Path) -> None:
    limits = replace(QUICK, floors=dict.fromkeys(QUICK.floors, 3.6), slow_factor=1.4)
    result = run(tmp_path, "silent_but_working", watchdog=Watchdog(limits), grace_s=0.3)
    assert result.ended_by == "slow"
    assert "though it seemed to work: its memory moves by 64 MiB" in result.reason
    assert not result.ok
    diagnosis = triage(evidence_of(result))
    assert (diagnosis.crash_class, diagnosis.signature) == ("timeout", "slow")


@pytest.mark.slow  # five seconds of hanging
def test_a_hang_that_was_sampled_says_what_was_seen(tmp_path: Path) -> None:
    limits = replace(QUICK, floors=dict.fromkeys(QUICK.floors, 3.6))
    result = run(tmp_path, "hung", watchdog=Watchdog(limits), grace_s=0.3)
    assert result.ended_by == "hang"
    assert "; its memory is flat, it uses no processor, no disk traffic" in result.reason


@pytest.mark.slow  # five seconds of crawling
def test_a_crawl_is_in_the_notes_and_in_the_reason_of_the_time_limit(tmp_path: Path) -> None:
    # our clock goes as fast as that of its stamps: what it takes by both is a crawl, by one alone it is none
    fast = 1000.0
    clock = {"clock": lambda: fast * time.monotonic(), "grace_s": fast, "poll_s": 0.02}
    result = run(tmp_path, "crawls", time_limit_s=5.0 * fast, **clock)
    assert result.ended_by == "time_limit"
    assert "; it crawls: a step of train takes 20 s, 2000 times the 0.01 s of before" in result.reason
    assert len(result.notes) == 1
    assert result.notes[0].startswith("it crawls: ")


def test_a_run_is_sampled_and_its_use_of_the_machine_told(tmp_path: Path) -> None:
    result = run(tmp_path, "hungry", time_limit_s=2.6)
    record = read_run(result.out)
    assert [one.n for one in record.samples] == list(range(len(record.samples)))
    assert 2 <= len(record.samples) <= 5
    assert record.problems == ()
    assert result.last_samples[-1] == record.samples[-1]
    assert result.load is not None
    assert record.load == result.load
    last = result.last_samples[-1]
    assert last.phase == "train"
    assert last.resident_gb is not None
    assert 0.19 < last.resident_gb < 0.4
    assert (result.memory_back, result.held_gb) == (True, 0.0)
    assert result.memory_events in ("still", "unreadable")


@pytest.mark.slow
def test_sensors_that_block_do_not_hold_up_the_watching(tmp_path: Path) -> None:
    release = threading.Event()

    def blocks() -> list[Graphics]:
        release.wait(60)
        return []

    try:
        result = run(tmp_path, "steady", time_limit_s=4.5, sources=Sources(cards=blocks))
    finally:
        release.set()
    assert (result.ended_by, result.exit_code) == ("time_limit", 0)
    assert result.elapsed_s < 6
    assert result.notes == ("the graphics cards' files have not answered for ... s",)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ((0, 4), (0, 4), "still"),
        ((0, 4), (1, 5), "moved"),
        ((None, 4), (None, 5), "moved"),
        ((None, 4), (None, 4), "still"),
        ((None, None), (None, None), "unreadable"),
        ((0, None), (None, None), "unreadable"),
    ],
)
def test_counters_that_stood_still_are_told_from_those_that_cannot_be_read(
    before: tuple[int | None, int | None], after: tuple[int | None, int | None], told: str
) -> None:
    assert launcher.memory_events(launcher.KernelCounts(*before), launcher.KernelCounts(*after)) == told


def test_a_trainer_without_any_heartbeat_hangs_after_the_start_limit(tmp_path: Path) -> None:
    limits = Limits(fixed={"start": 0.5, "load": 9.0, "compile": 9.0, "save": 9.0})
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    result = run(tmp_path, "-", command=silent, watchdog=Watchdog(limits))
    assert result.ended_by == "hang"
    assert "after the start" in result.reason


def test_a_stop_request_is_obeyed_with_its_reason(tmp_path: Path) -> None:
    beating = (tmp_path / "run" / HEARTBEAT).exists
    result = run(tmp_path, "steady", stop=lambda: "the campaign's budget is spent" if beating() else None)
    assert result.ended_by == "stop"
    assert result.reason.startswith("the campaign's budget is spent")
    assert result.summary is not None
    assert result.summary.stopped


def test_what_an_evaluation_shows_can_end_it(tmp_path: Path) -> None:
    """`stop` is asked while a trainer evaluates too, and can judge by the rows that are there."""
    tail = follow_evals(tmp_path / "run")
    seen: list[int] = []

    def gamed() -> str | None:
        tail.read()
        seen.append(len(tail.rows))
        digests = {row.digest for row in tail.rows.values()}
        return "one answer to every prompt" if len(tail.rows) >= 20 and len(digests) == 1 else None

    phases: list[str] = []
    result = run(tmp_path, "says_one_thing", stop=gamed, on_progress=lambda progress: phases.append(progress.phase))
    assert (result.ended_by, result.exit_code) == ("stop", 0)
    assert result.reason.startswith("one answer to every prompt; ")
    assert result.summary is not None
    assert result.summary.stopped
    assert phases[-1] == "evaluate"
    assert seen == sorted(seen)
    assert seen[-2] < 20 <= seen[-1]


def test_too_little_memory_ends_it_before_the_kernel_does(tmp_path: Path) -> None:
    result = run(tmp_path, "hungry", memory_floor_gb=1e6)
    assert result.ended_by == "memory"
    assert "GiB of memory left" in result.reason
    assert triage(evidence_of(result)).crash_class == "oom"


@pytest.mark.slow
def test_a_training_that_takes_memory_without_end_is_ended_at_the_floor(tmp_path: Path) -> None:
    """It would take 3 GiB; half a GiB is left above the floor."""
    result = run(tmp_path, "eats", memory_floor_gb=memory().available - 0.5)
    assert result.ended_by == "memory"
    assert re.search(r"GiB of memory left \(floor [\d.]+\); the training holds [\d.]+", result.reason)
    assert result.peak_rss_gb is not None
    assert 0.3 < result.peak_rss_gb < 2.5
    assert result.memory_back is True
    assert triage(evidence_of(result)).crash_class == "oom"


@pytest.mark.slow
def test_peak_memory_is_that_of_the_trainer(tmp_path: Path) -> None:
    result = run(tmp_path, "hungry", time_limit_s=1.6)
    assert result.peak_rss_gb is not None
    assert 0.19 < result.peak_rss_gb < 0.4  # a block of 200 MB, and the interpreter


def test_the_disk_is_watched_where_somebody_has_deleted_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To free space, and the trainer writes on to it."""
    monkeypatch.setattr(watching, "disk_free", lambda folder: 0.01)
    gone = run(tmp_path, "steady", on_started=lambda _: (tmp_path / "run" / LOG).unlink())
    assert gone.ended_by == "disk"


def test_garbage_telemetry_is_survived_and_named(tmp_path: Path) -> None:
    result = run(tmp_path, "garbage")
    assert (result.exit_code, result.ended_by, result.summary) == (1, "itself", None)
    record = read_run(result.out)
    assert [(row.cycle, row.loss) for row in record.cycles][1:] == [(1, 0.25)]
    assert record.cycles[0].cycle == 0
    assert record.evals == []
    assert record.plan is None
    assert record.heartbeat is None
    text = "\n".join(record.problems)
    assert "cycles.jsonl:2: not JSON" in text
    assert "cycles.jsonl:7: torn last line" in text
    assert "summary.json: not JSON" in text
    assert triage(evidence_of(result)).crash_class == "typo"


@pytest.mark.parametrize(
    ("fake", "said"), [("forgets_its_summary", "wrote no summary"), ("cuts_its_summary", "summary.json: not JSON")]
)
def test_exit_code_zero_is_no_success_without_a_summary(tmp_path: Path, fake: str, said: str) -> None:
    result = run(tmp_path, fake)
    assert result.exit_code == 0
    assert not result.ok
    problems = read_run(result.out).problems
    diagnosis = triage(evidence_of(result, problems=problems))
    assert diagnosis.crash_class == "unknown"
    assert said in diagnosis.reason


def test_the_trainers_own_word_comes_first(tmp_path: Path) -> None:
    result = run(tmp_path, "named_failure")
    diagnosis = triage(evidence_of(result))
    assert (diagnosis.crash_class, diagnosis.source) == ("data", "failure.json")
    assert "row 3 has no answer" in diagnosis.reason


def test_a_second_start_goes_on_and_does_not_believe_the_first_ones_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(tmp_path, "named_failure")
    assert first.summary is None
    (out / HEARTBEAT).write_text('{"phase": "train", "step": 5, "pid": 1, "time": 1}')
    (out / "cycles.jsonl").write_text('{"cycle": 0}\n{"cycle": 1}\n')
    second = run(tmp_path, "killed")
    assert triage(evidence_of(second)).source == "exit"  # not the failure.json of the first start
    third = run(tmp_path, "good")
    assert third.ok
    log = latest_log(out)
    assert "starting at cycle 2" in log.text
    assert (out / LOG).read_text().split("\n")[log.first_line - 1] == log.text.split("\n")[0]
    assert (out / LOG).read_text().count(ATTEMPT) == 3
    fourth = run(tmp_path, "killed")
    assert fourth.summary is None  # the summary that lies there is the third start's
    fifth = run(tmp_path, "killed", on_started=lambda _: (out / SUMMARY).chmod(0o600))
    assert fifth.summary is None  # nor has it been written by that


def test_a_folder_of_another_recipe_or_of_a_live_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "good")
    with pytest.raises(WorkspaceError, match="another recipe"):
        run(tmp_path, "good", recipe=make_recipe(compile=True))
    seen: list[Exception] = []

    def start_again(identity: ProcessIdentity) -> None:
        assert running_in(tmp_path / "run") == identity
        try:
            run(tmp_path, "good")
        except Busy as error:
            seen.append(error)

    run(tmp_path, "steady", on_started=start_again, stop=lambda: "seen")
    assert "still running" in str(seen[0])


def test_a_folder_of_another_seed_is_refused_and_so_is_a_finished_one_without_the_split(tmp_path: Path) -> None:
    """Its trainer would leave at once, and what it had measured before would be taken for the answer."""
    beats = tmp_path / "run" / "heartbeat"
    stopped = run(tmp_path, "steady", stop=lambda: "enough" if beats.exists() else None).summary
    assert stopped is not None
    assert stopped.stopped
    with pytest.raises(WorkspaceError, match="holds the run of seed 7, not of 8"):
        run(tmp_path, "good", seed=8)
    assert run(tmp_path, "good", splits=("search", "confirm")).ok  # one that was stopped is evaluated as it is asked
    assert run(tmp_path, "good").ok
    assert run(tmp_path, "good", splits=()).ok
    with pytest.raises(WorkspaceError, match="was evaluated on search, not on holdout") as refused:
        run(tmp_path, "good", splits=("search", "holdout"))
    assert f"raft-agent eval {tmp_path / 'run' / 'checkpoint'} --split holdout" in str(refused.value)
    with pytest.raises(WorkspaceError, match="holds the run of seed 7, not of 8"):
        run(tmp_path, "good", seed=8)


def test_what_is_not_the_trainings_fault_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="GiB free"):
        run(tmp_path, "good", min_free_disk_gb=1e9)
    with pytest.raises(Unavailable, match="no-such-program"):
        run(tmp_path, "good", command=["no-such-program"])
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="is a file"):
        launch(RunRequest(make_recipe(), tmp_path / "file", 1, tmp_path, 5.0), command=FAKE, machine=MACHINE)
    with pytest.raises(ResourceError):
        launch(RunRequest(make_recipe(), tmp_path / "file" / "x", 1, tmp_path, 5.0), command=FAKE, machine=MACHINE)
    with pytest.raises(WorkspaceError, match="no such folder"):
        launch(RunRequest(make_recipe(), tmp_path / "y", 1, tmp_path / "gone", 5.0), command=FAKE, machine=MACHINE)


@pytest.mark.parametrize("where", ["on_started", "on_progress", "stop"])
def test_an_interrupt_or_error_inside_leaves_no_orphan(tmp_path: Path, where: str) -> None:
    pids: list[int] = []

    def note(identity: ProcessIdentity) -> None:
        pids.append(identity.pid)
        if where == "on_started":
            raise OSError("journal: disk full")

    def interrupt(*_: object) -> None:
        if (tmp_path / "run" / "pids.json").exists():
            raise KeyboardInterrupt

    callbacks = {where: interrupt} if where != "on_started" else {}
    with pytest.raises((KeyboardInterrupt, OSError)):
        run(tmp_path, "stubborn", grace_s=0.3, **{"on_started": note, **callbacks})
    assert pids
    assert not running(pids[0])
    if where != "on_started":
        assert left_over(tmp_path) == []


def test_the_trainer_does_not_outlive_an_agent_that_was_killed(tmp_path: Path) -> None:
    """The agent is a process of its own here, so that it can be killed with SIGKILL."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_run_launcher as t;"
        "t.run(Path(sys.argv[2]), 'steady')"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1])}
    agent = subprocess.Popen([sys.executable, "-c", program, str(here), str(tmp_path)], env=environment)
    try:
        wait_until(lambda: (tmp_path / "run" / HEARTBEAT).exists() and running_in(tmp_path / "run") is not None)
        identity = running_in(tmp_path / "run")
        assert identity is not None
    finally:
        agent.kill()
        agent.wait()
    wait_until(lambda: not is_alive(identity))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped"] is True


def wait_until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]  # any callable
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_the_arguments_are_those_of_the_contract(tmp_path: Path) -> None:
    request = RunRequest(make_recipe(), tmp_path / "r", 3, tmp_path, 1000.0, splits=(), evaluate="untrained")
    arguments = contract_arguments(request)
    out = str(tmp_path / "r")
    expected = ["--recipe", f"{out}/recipe.yaml", "--out", out, "--seed", "3", "--split", "none"]
    assert arguments == [*expected, "--evaluate", "untrained", "--time-limit", "995.000"]
    on_the_way = contract_arguments(replace(request, evaluate=None, rung=0.25))
    assert on_the_way == [*expected, "--rung", "0.25", "--time-limit", "995.000"]


def test_waiting_for_memory_ends_when_it_is_back_or_stands_still() -> None:
    now = [0.0]

    def tick(seconds: float) -> None:
        now[0] += seconds

    free = FreeMemory
    falling = iter([free(10.0, 0.0), *[free(10.0 + step, 0.0) for step in range(1, 40)]])
    came = wait_for_idle(free(16.0, 0.0), most_s=30, clock=lambda: now[0], sleep=tick, read=lambda: next(falling))
    assert came.memory_back is True
    assert came.waited_s == pytest.approx(0.6)  # 10 -> 16 GiB by one each 0.1 s, half a GiB of slack
    now[0] = 0.0
    stays = wait_for_idle(free(16.0, 0.0), most_s=30, clock=lambda: now[0], sleep=tick, read=lambda: free(9.0, 0.0))
    assert (stays.memory_back, stays.held_gb) == (None, 7.0)
    assert stays.waited_s == pytest.approx(2.0)  # somebody else holds it: it stands still
    now[0] = 0.0
    swinging = iter([free(9.0 + step % 2, 0.0) for step in range(1000)])
    never = wait_for_idle(free(16.0, 0.0), most_s=30, clock=lambda: now[0], sleep=tick, read=lambda: next(swinging))
    assert never.waited_s == pytest.approx(30.0, abs=0.2)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="no such score on this system")
def test_the_memory_killer_is_offered_the_trainer_and_what_it_starts(tmp_path: Path) -> None:
    told: list[str] = []

    def look(identity: ProcessIdentity) -> None:
        wait_until(lambda: (tmp_path / "run" / "pids.json").exists())
        pids = json.loads((tmp_path / "run" / "pids.json").read_text())
        told.extend(Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in pids)

    own = Path("/proc/self/oom_score_adj").read_text()
    run(tmp_path, "stubborn", on_started=look, stop=lambda: "seen", grace_s=0.2)
    assert told == ["500"] * 5  # the trainer, its child, its grandchild with the parent, and the daemon
    assert Path("/proc/self/oom_score_adj").read_text() == own


def test_it_can_be_launched_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, "good")))
    thread.start()
    thread.join(30)
    assert results[0].ok


@pytest.mark.parametrize(
    ("source", "kept"), [("builtin:tiny", set()), ("org/name", {"HF_TOKEN"}), ("pypi:some-model", {"PIP_INDEX_URL"})]
)
def test_a_trainer_gets_the_secrets_that_fetch_its_model_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kept: set[str]
) -> None:
    secrets = {"HF_TOKEN": "hf_0123456789abcdefgh", "PIP_INDEX_URL": "https://u:secret@host/", "AWS_SECRET_KEY": "x"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    chosen = with_keys(make_recipe(), {"model.source": source})
    request = RunRequest(recipe=chosen, out=tmp_path / "out", seed=1, workspace=tmp_path, time_limit_s=60.0)
    inherited = launcher._inherited(request)
    assert {name for name in secrets if name in inherited} == kept
    assert "PATH" in inherited
    judged = {"task.verifier.kind": "python:judge.py:score", "task.verifier.environment": ["AWS_SECRET_KEY"]}
    inherited = launcher._inherited(replace(request, recipe=with_keys(chosen, judged)))
    assert {name for name in secrets if name in inherited} == kept | {"AWS_SECRET_KEY"}


def test_the_variables_of_a_recipe_are_recorded_without_their_secrets(tmp_path: Path) -> None:
    env = {"SOME_TOKEN": "canary-in-the-mine", "HARMLESS": "yes"}
    result = run(tmp_path, "tells its environment", recipe=make_recipe(env=env))
    assert result.environment["SOME_TOKEN"] == "[redacted SOME_TOKEN]"
    assert result.environment["HARMLESS"] == "yes"
    log = (result.out / "log.txt").read_text()
    assert "HARMLESS=yes" in log
    assert "it was given [redacted SOME_TOKEN]" in log
    assert "canary" not in log
