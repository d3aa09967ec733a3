"""Start one training as a process of its own, watch it, end it, and say what became of it.

It does not import the trainer, judge its numbers, or retry. A training that fails is a `RunResult`, never an
exception; what is raised is not the training's fault (a folder that cannot be written, a full disk, no such
program). Whatever way `launch` is left, Ctrl-C included, no process of the training is left behind. A process that
was started ahead (`agent.run.standby`) makes a run begin sooner, and nothing else about it different.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import psutil

from agent.contract import (
    CYCLES,
    FAILURE,
    HEARTBEAT,
    LOG,
    RECIPE,
    STOP_GRACE_SECONDS,
    SUMMARY,
    Heartbeat,
    Phase,
    Split,
    Summary,
)
from agent.errors import AgentError, Busy, ResourceError, Unavailable, WorkspaceError
from agent.files import write_atomic
from agent.hardware.cgroup import cgroup_memory
from agent.hardware.kernel import kernel_log, oom_kills, seconds_since_boot
from agent.hardware.presets import environment_over
from agent.hardware.probe import MACHINE, Machine, probe_machine
from agent.hardware.sensors import GIB, disk_free, graphics, memory
from agent.recipe.files import load_recipe, resolved_text
from agent.recipe.schema import Recipe
from agent.run.processes import (
    Ending,
    ProcessIdentity,
    descendants,
    end_family,
    identify,
    is_alive,
    new_mark,
    resident_bytes,
)
from agent.run.standby import Ahead, Standby
from agent.run.start import TRAINER, Start
from agent.run.telemetry import ATTEMPT, read_heartbeat, read_summary
from agent.run.watchdog import Watchdog

PROCESS = "process.json"
"""Who runs in this folder: written at the start, so that a second start can refuse."""

POLL_S = 0.2
MEMORY_EVERY_S = 1.0
"""The process table is walked this often; the heartbeat and free memory are read at every poll."""
LOW_MEMORY_POLLS = 3

EndedBy = Literal["itself", "time_limit", "hang", "stop", "memory"]


@dataclass(frozen=True)
class RunRequest:
    recipe: Recipe
    out: Path
    """Folder of the run; may hold an earlier, unfinished start of the same recipe, which is then gone on with."""
    seed: int
    workspace: Path
    """Current folder of the trainer: paths in a recipe are relative to it."""
    time_limit_s: float
    splits: tuple[Split, ...] = ("search",)
    """Held-out splits to evaluate at the end; empty for none."""
    evaluate: str | None = None
    """A checkpoint folder or `untrained`: evaluate that instead of training."""
    rung: float | None = None
    """Share of the training budget after which `search` is measured once on the way."""
    cache: Path | None = None
    allow_untrusted_code: bool = False
    low_priority: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    """On top of the preset and of the recipe's own."""


@dataclass(frozen=True)
class Progress:
    """What a person may want to see while it runs."""

    phase: Phase
    step: int
    cycle: int | None
    budget_spent: float | None
    note: str | None
    select_metric: float | None
    elapsed_s: float
    time_left_s: float
    resident_gb: float | None


@dataclass(frozen=True)
class RunResult:
    out: Path
    exit_code: int | None
    """None where a signal ended it."""
    signal: int | None
    ended_by: EndedBy
    """`itself`, or what made the launcher end it; `stop` where the caller asked for it. A training that was done by
    then has a summary that is not `stopped`."""
    reason: str
    """In words; begins with what `stop` said where that ended it."""
    elapsed_s: float
    summary: Summary | None
    """Of this start; the summary of an earlier one in the same folder does not count."""
    peak_rss_gb: float | None
    """Trainer and what it started, GiB, sampled once a second."""
    cgroup_oom_kills: int = 0
    host_oom_kills: int = 0
    """Processes that the kernel killed for memory meanwhile: in our control group; on the whole machine."""
    kernel: str = ""
    """Kernel messages about memory, graphics and disks from that time, where they may be read."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What was set for the trainer on top of the inherited environment."""
    idle_wait_s: float = 0.0
    """Seconds until memory was back after the end."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.summary is not None


def launch(
    request: RunRequest,
    *,
    on_started: Callable[[ProcessIdentity], None] = lambda identity: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], str | None] = lambda: None,
    watchdog: Watchdog | None = None,
    machine: Machine | None = None,
    command: Sequence[str] = TRAINER,
    standby: Standby | None = None,
    grace_s: float = STOP_GRACE_SECONDS,
    memory_floor_gb: float | None = None,
    min_free_disk_gb: float = 0.5,
    idle_wait_s: float = 30.0,
    poll_s: float = POLL_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RunResult:
    """Run the training of `request` to its end.

    `stop` is asked at every poll, whatever the phase, and gives the reason to stop, or None; a trainer that keeps the
    contract then ends within a step, and its folder can be gone on with. `on_progress` and `stop` hold up the watching,
    so they have to be quick: `agent.run.telemetry.Tail` reads what has been measured meanwhile. `command` is the
    trainer's command line, to which the arguments of `agent.contract` are added. `standby` gives a process that was
    started ahead, where it has one that fits, and starts the next one once this training is under way; the caller
    closes it. It is ignored where it stands by for another `command`. `memory_floor_gb`: below this much free memory
    the training is ended before the kernel ends something else; None is 1% of the memory, at least 0.5.

    Raises ResourceError (disk full, no permission, no more processes), Unavailable (no such trainer), Busy
    (a training runs in that folder), WorkspaceError (the folder holds another recipe's run).
    """
    variables, why = _variables(request, machine)
    _prepare(request, min_free_disk_gb=min_free_disk_gb)
    if standby is not None and standby.trainer != tuple(command):
        standby = None
    before = _free_memory(standby)
    counts = _kernel_counts()
    booted = seconds_since_boot()
    trainer = _Trainer(request, command, variables, why, standby=standby, grace_s=grace_s, clock=clock, sleep=sleep)
    with trainer:
        on_started(trainer.identity)
        ended_by, reason = _watch(
            trainer,
            request,
            watchdog=watchdog or Watchdog(),
            stop=stop,
            on_progress=on_progress,
            floor_gb=memory_floor_gb if memory_floor_gb is not None else max(0.5, 0.01 * memory().total),
            poll_s=poll_s,
        )
        ending = trainer.end(grace_s=grace_s, dump_stack=ended_by == "hang")
        elapsed = clock() - trainer.began
    return RunResult(
        out=request.out,
        exit_code=trainer.exit_code,
        signal=trainer.signal,
        ended_by=ended_by,
        reason=_full_reason(trainer, ended_by, reason, ending),
        elapsed_s=elapsed,
        summary=trainer.new_summary(),
        peak_rss_gb=trainer.peak_bytes / GIB if trainer.peak_bytes else None,
        cgroup_oom_kills=max(0, _kernel_counts()[0] - counts[0]),
        host_oom_kills=max(0, _kernel_counts()[1] - counts[1]),
        kernel="" if trainer.exit_code == 0 else kernel_log(since=booted).text,
        environment=variables,
        idle_wait_s=wait_for_idle(
            before, most_s=idle_wait_s, clock=clock, sleep=sleep, read=lambda: _free_memory(standby)
        ),
    )


# --- before the start --------------------------------------------------------------------------------------


def contract_arguments(request: RunRequest) -> list[str]:
    """The arguments of `agent.contract` for this request; paths are absolute."""
    out = request.out.absolute()
    arguments = ["--recipe", str(out / RECIPE), "--out", str(out), "--seed", str(request.seed)]
    for split in request.splits or ("none",):
        arguments += ["--split", split]
    if request.evaluate is not None:
        arguments += ["--evaluate", request.evaluate]
    if request.rung is not None:
        arguments += ["--rung", f"{request.rung:g}"]
    arguments += ["--time-limit", f"{trainer_limit(request.time_limit_s):.3f}"]
    if request.cache is not None:
        arguments += ["--cache", str(request.cache.absolute())]
    if request.allow_untrusted_code:
        arguments.append("--allow-untrusted-code")
    return arguments


def trainer_limit(time_limit_s: float) -> float:
    """What the trainer is told: a little less than what is enforced, so that one that keeps its word is not cut."""
    return time_limit_s - min(5.0, 0.05 * time_limit_s)


def _variables(request: RunRequest, machine: Machine | None) -> tuple[dict[str, str], str]:
    """(variables on top of the inherited ones, where the preset comes from); the request's come over the recipe's."""
    backend = request.recipe.backend
    if machine is None:
        cache = request.cache / MACHINE if request.cache else None
        machine = probe_machine(cache=cache)
    variables, why = environment_over(os.environ, machine, preset=backend.environment, own=backend.env)
    return {**variables, **request.env}, why


def _prepare(request: RunRequest, *, min_free_disk_gb: float) -> None:
    """Make the folder, see that nobody runs in it and that it is this recipe's, and put the recipe there."""
    out = request.out
    if not request.workspace.is_dir():
        raise WorkspaceError("no such folder for the trainer to run in", where=str(request.workspace))
    try:
        free = disk_free(out)
        if free < min_free_disk_gb:
            raise ResourceError(
                f"only {free:.2f} GiB free, a run needs at least {min_free_disk_gb:g}",
                where=str(out),
                hint="free some space; checkpoints of old campaigns under .raft/ are the largest files",
            )
        if out.exists() and not out.is_dir():
            raise WorkspaceError("is a file, not a folder for a run", where=str(out))
        out.mkdir(parents=True, exist_ok=True)
        _refuse_if_running(out)
        _refuse_other_recipe(request)
        write_atomic(out / RECIPE, resolved_text(request.recipe))
        for stale in (HEARTBEAT, FAILURE):  # of an earlier start: they would be taken for this one's
            (out / stale).unlink(missing_ok=True)
    except OSError as error:
        raise _resource_error(error, where=out) from error


def _resource_error(error: OSError, *, where: Path) -> ResourceError:
    return ResourceError(
        f"cannot be written: {error.strerror or error}",
        where=str(error.filename or where),
        hint="check free space, quota and permissions there",
    )


def _refuse_if_running(out: Path) -> None:
    identity = running_in(out)
    if identity is not None:
        raise Busy(
            f"a training (process {identity.pid}) is still running in this folder",
            where=str(out),
            hint="let it finish, or end it first (raft-agent resume does)",
        )


def running_in(out: Path) -> ProcessIdentity | None:
    """The training that runs in this folder now, left by an agent that was killed; None where there is none."""
    try:
        fields = json.loads((out / PROCESS).read_text())
        identity = ProcessIdentity(**fields)
    except (OSError, ValueError, TypeError):
        return None
    return identity if is_alive(identity) else None


def _refuse_other_recipe(request: RunRequest) -> None:
    """Going on with another recipe's cycles would mix two trainings."""
    written = request.out / RECIPE
    begun = (request.out / CYCLES).exists() or (request.out / SUMMARY).exists()
    if not begun or not written.exists():
        return
    try:
        same = load_recipe(written, edited=False).signature() == request.recipe.signature()
    except AgentError:
        same = False
    if not same:
        raise WorkspaceError(
            "holds the run of another recipe",
            where=str(request.out),
            hint="give this run a folder of its own",
        )


# --- the process -------------------------------------------------------------------------------------------


class _Trainer:
    """The running process and everything that it starts. Leaving the `with` block leaves none of them behind."""

    def __init__(
        self,
        request: RunRequest,
        command: Sequence[str],
        variables: Mapping[str, str],
        why: str,
        *,
        standby: Standby | None,
        grace_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.request = request
        self.clock, self.sleep, self.grace_s = clock, sleep, grace_s
        self.start = Start.of(
            command, workspace=request.workspace, variables=variables, low_priority=request.low_priority
        )
        self.standby = standby
        self.began = clock()
        self.peak_bytes = 0
        self.resident_bytes: int | None = None
        self.exit_code: int | None = None
        self.signal: int | None = None
        self._variables, self._why = dict(variables), why
        self._known: dict[tuple[int, float], ProcessIdentity] = {}
        self._sampled: float | None = None
        self._old_summary = _stamp(request.out / SUMMARY)
        self._mark = new_mark()
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: ProcessIdentity | None = None

    @property
    def identity(self) -> ProcessIdentity:
        assert self._identity is not None
        return self._identity

    def __enter__(self) -> _Trainer:
        try:
            self._start()
        except BaseException:
            self._end_whatever_started()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """After an interrupt the trainer gets its grace to write a summary; a second interrupt cuts that short."""
        try:
            if kind is not None:
                self.end(grace_s=self.grace_s, dump_stack=False)
        finally:
            self._end_whatever_started()
            self._reap()

    def _start(self) -> None:
        program = self.start.command[0]
        if shutil.which(program) is None:
            raise Unavailable(
                f"the trainer's program {program!r} is not there", hint="check the command of the trainer"
            )
        ahead = self.standby.take(self.start) if self.standby is not None else None
        try:
            with (self.request.out / LOG).open("ab") as log:
                if self.standby is not None:
                    log.write(self.standby.last_words())
                if ahead is None or not self._hand_over(ahead, log):
                    self._start_afresh(log)
        except OSError as error:
            raise _resource_error(error, where=self.request.out) from error

    def _start_afresh(self, log: IO[bytes]) -> None:
        self._mark = new_mark()
        log.write(self._heading())
        log.flush()
        self.began = self.clock()
        arguments = contract_arguments(self.request)
        self._process = self.start.process(
            [*self.start.command, *arguments], mark=self._mark, stdin=subprocess.DEVNULL, output=log
        )
        self._identity = identify(self._process.pid, mark=self._mark)
        _write_identity(self.request.out, self._identity)

    def _hand_over(self, ahead: Ahead, log: IO[bytes]) -> bool:
        """From here on the process is this run's, like one that was started for it. False where it has just died."""
        self._mark, self._process, self._identity = ahead.identity.mark, ahead.process, ahead.identity
        _write_identity(self.request.out, ahead.identity)
        log.write(self._heading(note=" in a process that was started ahead") + ahead.printed())
        log.flush()
        self.began = self.clock()
        if ahead.hand_over(contract_arguments(self.request), log=self.request.out.absolute() / LOG):
            return True
        ahead.end()
        self._process, self._identity = None, None
        return False

    def _heading(self, *, note: str = "") -> bytes:
        """Separates this start from earlier ones; triage reads from the last heading on."""
        told = " ".join(f"{name}={value}" for name, value in sorted(self._variables.items()))
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"\n{ATTEMPT} started {when}{note}; environment ({self._why}): {told or 'as inherited'} ===\n"
        return text.encode()

    def alive(self) -> bool:
        return is_alive(self.identity)

    def sample(self, now: float) -> None:
        """Resident memory, and who has been started; once a second.

        In the first second at every call: a process that has just been started has hardly any memory yet, and a short
        training would be reported with that.
        """
        settled = now - self.began >= MEMORY_EVERY_S
        if settled and self._sampled is not None and now - self._sampled < MEMORY_EVERY_S:
            return
        self._sampled = now
        members = descendants(self.identity)
        self._known.update({(one.pid, one.started): one for one in members})
        current = resident_bytes([self.identity, *(one for one in self._known.values() if is_alive(one))])
        self.resident_bytes = current or self.resident_bytes
        self.peak_bytes = max(self.peak_bytes, current)

    def end(self, *, grace_s: float, dump_stack: bool) -> Ending:
        """End it with all that it started. Only then is it reaped: until then its group's number stays its own."""
        if self._identity is None:
            return Ending("was never started", forced=False, left=())
        for one in descendants(self.identity):
            self._known[one.pid, one.started] = one
        ending = end_family(
            self.identity,
            known=self._known.values(),
            grace_s=grace_s,
            dump_stack=dump_stack,
            clock=self.clock,
            sleep=self.sleep,
        )
        self._reap()
        return ending

    def new_summary(self) -> Summary | None:
        """The summary if this start wrote it, or left in good order one that was there already."""
        path = self.request.out / SUMMARY
        if self.exit_code == 0 or _stamp(path) != self._old_summary:
            return read_summary(self.request.out)
        return None

    def _end_whatever_started(self) -> None:
        """The last resort, also for an interrupt between fork and bookkeeping: by the mark alone."""
        leader = self._identity or ProcessIdentity(
            pid=self._process.pid if self._process else 0, started=-1.0, boot_id="", mark=self._mark
        )
        end_family(leader, known=self._known.values(), grace_s=0.0)

    def _reap(self) -> None:
        if self._process is None or self.exit_code is not None or self.signal is not None:
            return
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return  # held by the kernel; `end` has named it
        self.exit_code, self.signal = (code, None) if code >= 0 else (None, -code)
        (self.request.out / PROCESS).unlink(missing_ok=True)


def _write_identity(out: Path, identity: ProcessIdentity) -> None:
    write_atomic(out / PROCESS, json.dumps(identity.__dict__) + "\n")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


# --- while it runs -----------------------------------------------------------------------------------------


def _watch(
    trainer: _Trainer,
    request: RunRequest,
    *,
    watchdog: Watchdog,
    stop: Callable[[], str | None],
    on_progress: Callable[[Progress], None],
    floor_gb: float,
    poll_s: float,
) -> tuple[EndedBy, str]:
    """(what ends the training, why). Returns as soon as it has ended or has to be."""
    low_polls = 0
    while trainer.alive():
        now = trainer.clock()
        heartbeat = read_heartbeat(request.out)
        trainer.sample(now)
        elapsed = now - trainer.began
        on_progress(_progress(trainer, heartbeat, elapsed, request.time_limit_s))
        asked = stop()
        if asked is not None:
            return "stop", asked
        if elapsed >= request.time_limit_s:
            return "time_limit", f"the time limit of {request.time_limit_s:g} s was reached"
        hung = watchdog.observe(heartbeat, now=now)
        if hung is not None:
            return "hang", f"{hung}; {_activity(trainer)}"
        free = memory().available
        if trainer.standby is not None:
            trainer.standby.tend(
                trainer.start,
                recipe=request.out.absolute() / RECIPE,
                phase=heartbeat.phase if heartbeat else None,
                free_gb=free,
                floor_gb=floor_gb,
                resident_gb=(trainer.resident_bytes or 0) / GIB,
            )
        low_polls = low_polls + 1 if free < floor_gb else 0
        if low_polls >= LOW_MEMORY_POLLS:
            held = f", the training holds {trainer.resident_bytes / GIB:.2f}" if trainer.resident_bytes else ""
            return "memory", f"only {free:.2f} GiB of memory left (floor {floor_gb:.2f}{held})"
        _pause(trainer, min(poll_s, max(0.01, request.time_limit_s - elapsed)))
    return "itself", ""


def _pause(trainer: _Trainer, seconds: float) -> None:
    """Until the next poll, or the end of the trainer if that comes first."""
    until = trainer.clock() + seconds
    while trainer.alive() and trainer.clock() < until:
        trainer.sleep(min(0.05, seconds))


def _progress(trainer: _Trainer, beat: Heartbeat | None, elapsed: float, limit: float) -> Progress:
    return Progress(
        phase=beat.phase if beat else "start",
        step=beat.step if beat else 0,
        cycle=beat.cycle if beat else None,
        budget_spent=beat.budget_spent if beat else None,
        note=beat.note if beat else None,
        select_metric=beat.select_metric if beat else None,
        elapsed_s=elapsed,
        time_left_s=max(0.0, limit - elapsed),
        resident_gb=trainer.resident_bytes / GIB if trainer.resident_bytes is not None else None,
    )


def _activity(trainer: _Trainer) -> str:
    """Whether it computes, while silent: one processor at 100% is what a lost GPU queue looks like."""
    try:
        process = psutil.Process(trainer.identity.pid)
        busy = process.cpu_percent(interval=0.3)
    except psutil.Error:
        return "its processor use is not known"
    return f"it uses {busy:.0f}% of one processor"


def _full_reason(trainer: _Trainer, ended_by: EndedBy, reason: str, ending: Ending) -> str:
    if ended_by != "itself":
        return f"{reason}; the trainer {ending.words}"
    if trainer.signal is not None:
        words = f"ended by signal {trainer.signal} ({_signal_name(trainer.signal)})"
    else:
        words = f"exit code {trainer.exit_code}"
    extra = ending.words.partition("; ")[2]
    return f"{words}; {extra}" if extra else words


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


# --- after the end -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FreeMemory:
    """Free host memory and used graphics memory, GiB, as `wait_for_idle` compares them."""

    available: float
    graphics: float

    @classmethod
    def now(cls) -> FreeMemory:
        return cls(memory().available, sum(card.used or 0.0 for card in graphics()))


def _free_memory(standby: Standby | None) -> FreeMemory:
    """Without what the process that waits for the next run holds: it may have come or gone since the last reading."""
    free = FreeMemory.now()
    return replace(free, available=free.available + standby.private_gb) if standby is not None else free


def wait_for_idle(
    before: FreeMemory,
    *,
    most_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    read: Callable[[], FreeMemory] = FreeMemory.now,
    slack_gb: float = 0.5,
    settled_s: float = 2.0,
) -> float:
    """Wait until memory is back to what it was before the run, or does not change any more; seconds waited.

    A driver gives memory back some time after the process has gone. What another program has taken meanwhile
    will not come back, so a reading that stands still for `settled_s` ends the wait too.
    """
    began = clock()
    last, still_since = read(), began
    while clock() - began < most_s:
        if last.available >= before.available - slack_gb and last.graphics <= before.graphics + slack_gb:
            break
        if clock() - still_since >= settled_s:
            break
        sleep(0.1)
        current = read()
        if abs(current.available - last.available) > 0.05 or abs(current.graphics - last.graphics) > 0.05:
            still_since = clock()
        last = current
    return clock() - began


def _kernel_counts() -> tuple[int, int]:
    """Memory kills so far: (in our control group, on the machine); 0 where nobody counts."""
    group = cgroup_memory()
    return (group.oom_kills or 0) if group else 0, oom_kills() or 0
