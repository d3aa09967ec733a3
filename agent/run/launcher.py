"""Start one training as a process of its own, watch it, end it, and say what became of it.

It does not import the trainer, judge its numbers, or retry. A training that fails is a `RunResult`, never an
exception; what is raised is not the training's fault (a folder that cannot be written, a full disk, no such
program). Whatever way `launch` is left, Ctrl-C included, no process of the training is left behind. A process that
was started ahead (`agent.run.standby`) makes a run begin sooner, and nothing else about it different.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from agent.contract import LOG, RECIPE, STOP_GRACE_SECONDS, SUMMARY, Heartbeat, Summary
from agent.errors import Unavailable
from agent.files import stamp_or_none
from agent.hardware.cgroup import cgroup_memory
from agent.hardware.kernel import kernel_log, oom_kills, seconds_since_boot
from agent.hardware.presets import environment_over
from agent.hardware.probe import MACHINE, Machine, probe_machine
from agent.hardware.sensors import GIB, memory
from agent.recipe.places import kind_of
from agent.recipe.trust import FLAG, refuse_unconfirmed
from agent.run.ending import AtOnce, Ending, end_family
from agent.run.folder import PROCESS, prepare, resource_error, write_identity
from agent.run.load import summarize
from agent.run.memory_guard import MemoryGuard, floor_gb
from agent.run.plain import shorten
from agent.run.processes import Meter, ProcessIdentity, descendants, is_alive, new_mark
from agent.run.recovery import FreeMemory, wait_for_idle
from agent.run.request import HOW_IT_LEFT, MemoryEvents, RunRequest, RunResult
from agent.run.sampler import OfRun, Sampler, Sources
from agent.run.scrub import scrub
from agent.run.standby import Ahead, Standby
from agent.run.start import TRAINER, Start, TrainerProcess, adopting_orphans
from agent.run.telemetry import ATTEMPT, read_plan, read_summary
from agent.run.watchdog import Watchdog
from agent.run.watching import MEMORY_EVERY_S, EndedBy, Progress, Watch
from agent.text import keep_secret, passed_on, redact, redacted_values

POLL_S = 0.2
LAST_SAMPLES = 30
"""Of a run's end, for triage."""
LEAST_DISK_SHARE = 0.5
"""Of the free disk without which no run is started, that much must stay free while it runs."""
MOST_LOG_GB = 2.0


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
    most_log_gb: float = MOST_LOG_GB,
    idle_wait_s: float = 30.0,
    poll_s: float = POLL_S,
    sources: Sources | None = None,
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
    the training is ended before the kernel ends something else; None is `agent.run.memory_guard.floor_gb` of what there
    is. It is ended too where less than half of `min_free_disk_gb` is left on the disk, and where its log has grown
    beyond `most_log_gb`, of which the beginning and the end are then kept. `sources` is where the samples' readings
    come from.

    Raises UsageError where the recipe asks for a model's code that the user has not confirmed, ResourceError (disk
    full, no permission, no more processes), Unavailable (no such trainer), Busy (a training runs in that folder),
    WorkspaceError (the folder holds another recipe's run).
    """
    refuse_unconfirmed(request.recipe.model, base=request.workspace)
    variables, why = _variables(request, machine)
    prepare(request, min_free_disk_gb=min_free_disk_gb)
    if standby is not None and standby.trainer != tuple(command):
        standby = None
    before = _free_memory(standby)
    counts = _kernel_counts()
    booted = seconds_since_boot()
    trainer = _Trainer(request, command, variables, why, standby=standby, grace_s=grace_s, clock=clock, sleep=sleep)
    with trainer:
        on_started(trainer.identity)
        with contextlib.closing(Sampler(request.out, trainer.of_run, sources=sources)) as sampler:
            watch = Watch(
                trainer,
                request.out,
                sampler,
                limit_s=request.time_limit_s,
                watchdog=watchdog or Watchdog(),
                guard=MemoryGuard(memory_floor_gb if memory_floor_gb is not None else floor_gb(memory().total)),
                disk_floor_gb=LEAST_DISK_SHARE * min_free_disk_gb,
                most_log_gb=most_log_gb,
            )
            end = watch.until_the_end(stop=stop, on_progress=on_progress, poll_s=poll_s)
        ending = trainer.end(grace_s=min(grace_s, end.grace_s), dump_stack=end.by in ("hang", "slow"))
        elapsed = clock() - trainer.began
    shorten(request.out / LOG)
    unsearched = scrub(request.out, variables)
    samples = sampler.samples()
    after = _kernel_counts()
    plan = read_plan(request.out)
    recovered = wait_for_idle(
        before,
        most_s=idle_wait_s,
        clock=clock,
        sleep=sleep,
        read=lambda: _free_memory(standby),
        left=ending.left,
    )
    load = summarize(samples, device=plan.device if plan else None)
    return RunResult(
        out=request.out,
        exit_code=trainer.exit_code,
        signal=trainer.signal,
        ended_by=end.by,
        reason=_full_reason(trainer, end.by, end.reason, ending),
        elapsed_s=elapsed,
        summary=trainer.new_summary(),
        peak_rss_gb=trainer.peak_bytes / GIB if trainer.peak_bytes else None,
        cgroup_oom_kills=_moved(counts.cgroup, after.cgroup) or 0,
        host_oom_kills=_moved(counts.host, after.host) or 0,
        kernel="" if trainer.exit_code == 0 else redact(kernel_log(since=booted).text),
        environment=redacted_values(variables),
        idle_wait_s=recovered.waited_s,
        memory_events=memory_events(counts, after),
        memory_back=recovered.memory_back,
        held_gb=recovered.held_gb,
        held_by=recovered.words,
        notes=(*watch.notes, *(load.notes if load else ()), *unsearched),
        load=load,
        last_samples=tuple(samples[-LAST_SAMPLES:]),
        stayed=end.stayed,
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
    if request.commit is not None:
        arguments += ["--commit", request.commit]
    arguments += ["--time-limit", f"{trainer_limit(request.time_limit_s):.3f}"]
    if request.cache is not None:
        arguments += ["--cache", str(request.cache.absolute())]
    if request.allow_untrusted_code:
        arguments.append("--allow-untrusted-code")
    code = refuse_unconfirmed(request.recipe.model, base=request.workspace)
    if code is not None:
        arguments += [FLAG, code.digest]
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


def _inherited(request: RunRequest) -> dict[str, str]:
    """Of this process's variables, what a trainer of this recipe needs: secrets only to fetch its model, and those
    that the recipe names for its verifier."""
    kind = kind_of(request.recipe.model.source, base=request.workspace)
    named = request.recipe.task.verifier.environment
    keep_secret(named)
    return passed_on(os.environ, hub=kind == "hub", packages=kind == "pypi", named=named)


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
            command,
            workspace=request.workspace,
            variables=variables,
            low_priority=request.low_priority,
            inherited=_inherited(request),
        )
        self.standby = standby
        self.began = clock()
        self.peak_bytes = 0
        self.resident_bytes: int | None = None
        self.heartbeat: Heartbeat | None = None
        """As it was read last."""
        self._meter = Meter()
        self._members: tuple[ProcessIdentity, ...] = ()
        self.exit_code: int | None = None
        self.signal: int | None = None
        self._variables, self._why = dict(variables), why
        self._known: dict[tuple[int, float], ProcessIdentity] = {}
        self._sampled: float | None = None
        self._old_summary = _written(request.out / SUMMARY)
        self._mark = new_mark()
        self._adopting = adopting_orphans()
        self._process: TrainerProcess | None = None
        self._identity: ProcessIdentity | None = None

    @property
    def identity(self) -> ProcessIdentity:
        assert self._identity is not None
        return self._identity

    def __enter__(self) -> _Trainer:
        self._adopting.__enter__()
        try:
            self._start()
        except BaseException:
            self._end_whatever_started()
            self._adopting.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """After an interrupt the trainer gets its grace to write a summary; a second interrupt cuts that short."""
        try:
            if kind is not None and not issubclass(kind, AtOnce):
                self.end(grace_s=self.grace_s, dump_stack=False)
        finally:
            self._end_whatever_started()
            self._reap()
            self._adopting.__exit__(None, None, None)

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
            raise resource_error(error, where=self.request.out) from error

    def _start_afresh(self, log: IO[bytes]) -> None:
        self._mark = new_mark()
        log.write(self._heading())
        log.flush()
        self.began = self.clock()
        arguments = contract_arguments(self.request)
        self._process = self.start.process(
            [*self.start.command, *arguments], mark=self._mark, stdin=subprocess.DEVNULL, output=log
        )
        self._identity = self._process.identity
        write_identity(self.request.out, self._identity)

    def _hand_over(self, ahead: Ahead, log: IO[bytes]) -> bool:
        """From here on the process is this run's, like one that was started for it. False where it has just died."""
        self._mark, self._process, self._identity = ahead.identity.mark, ahead.process, ahead.identity
        write_identity(self.request.out, ahead.identity)
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
        told = " ".join(f"{name}={value}" for name, value in sorted(redacted_values(self._variables).items()))
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"\n{ATTEMPT} started {when}{note}; environment ({self._why}): {told or 'as inherited'} ===\n"
        return text.encode()

    def alive(self) -> bool:
        """Without its leash it counts as ended: nothing holds what it starts from then on."""
        return is_alive(self.identity) and (self.identity.leash is None or self.identity.root is not None)

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
        self._members = (self.identity, *(one for one in self._known.values() if is_alive(one)))
        current = self._meter.read(self._members).resident_bytes
        self.resident_bytes = current or self.resident_bytes
        self.peak_bytes = max(self.peak_bytes, current)

    def of_run(self) -> OfRun:
        """For the sampler, from its thread."""
        return OfRun(self._members or (self.identity,), self.heartbeat)

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
        if self.exit_code == 0 or self.has_new_summary():
            return read_summary(self.request.out)
        return None

    def has_new_summary(self) -> bool:
        return _written(self.request.out / SUMMARY) not in (None, self._old_summary)

    def _end_whatever_started(self) -> None:
        """The last resort, also for an interrupt between fork and bookkeeping: by the mark alone."""
        leader = self._identity or ProcessIdentity(pid=0, started=-1.0, boot_id="", mark=self._mark)
        end_family(leader, known=self._known.values(), grace_s=0.0)

    def _reap(self) -> None:
        if self._process is None or self.exit_code is not None or self.signal is not None:
            return
        try:
            code: int | None = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # held by the kernel; `end` has named it
            code = self._process.poll()
            self._process.close()
        if code is None:
            return
        self.exit_code, self.signal = (code, None) if code >= 0 else (None, -code)
        with contextlib.suppress(OSError):  # the trainer may have done anything to its folder
            (self.request.out / PROCESS).unlink(missing_ok=True)


def _written(path: Path) -> tuple[int, ...] | None:
    """Which writing of the file this is. Its status does not count: one that was given another owner or a second name
    meanwhile is no new summary."""
    stamp = stamp_or_none(path)
    return stamp[:3] if stamp else None


# --- after the end, in words ---------------------------------------------------------------------------------


def _full_reason(trainer: _Trainer, ended_by: EndedBy, reason: str, ending: Ending) -> str:
    if ended_by != "itself" or reason:
        return f"{reason}{HOW_IT_LEFT}{ending.words}"
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


def _free_memory(standby: Standby | None) -> FreeMemory:
    """Without what the process that waits for the next run holds: it may have come or gone since the last reading."""
    free = FreeMemory.now()
    return replace(free, available=free.available + standby.private_gb) if standby is not None else free


@dataclass(frozen=True)
class KernelCounts:
    """Memory kills so far; None where nobody counts."""

    cgroup: int | None
    """In our control group."""
    host: int | None
    """On the whole machine."""


def memory_events(before: KernelCounts, after: KernelCounts) -> MemoryEvents:
    moves = [_moved(before.cgroup, after.cgroup), _moved(before.host, after.host)]
    known = [move for move in moves if move is not None]
    if not known:
        return "unreadable"
    return "moved" if any(known) else "still"


def _moved(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _kernel_counts() -> KernelCounts:
    group = cgroup_memory()
    return KernelCounts(group.oom_kills if group else None, oom_kills())
