"""Runs a study: what is missing, in order, each as the ordinary trainer process, and a line for each that ends.

A run whose line is there is never repeated, wherever it ran. One that was stopped goes on in its folder; one that died
is not tried again unless that is asked for. Nothing here prints, or holds the workspace: that is the caller's.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import agent
from agent.contract import CHECKPOINT, Summary
from agent.errors import DataError
from agent.hardware.probe import Machine
from agent.run.alone import request_alone
from agent.run.diagnosis import evidence_of
from agent.run.launcher import launch
from agent.run.request import RunResult
from agent.run.standby import Standby
from agent.run.start import TRAINER
from agent.run.telemetry import read_run
from agent.run.triage import triage
from agent.run.watching import Progress
from agent.study.definition import Arm, Study
from agent.study.results import FailedLine, Results, RunLine, Unmeasured, digest_of_ids, measured, series_of

STATE = "state"
"""Where a trainer keeps what it would go on from."""
INCOMPLETE = "incomplete"
"""In place of a crash class: it ended well, and yet before its last cycle."""
KEPT = ("python", "torch", "transformers", "device", "threads")
"""Of the trainer's provenance."""


class Observer(Protocol):
    def started(self, arm: Arm, seed: int, *, number: int, goes_on: bool) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def finished(self, line: RunLine | FailedLine, *, left: int) -> None: ...


@dataclass(frozen=True)
class Todo:
    arm: Arm
    seed: int
    number: int
    """Of the study's runs, from 1."""


@dataclass(frozen=True)
class Place:
    """Where a study runs."""

    workspace: Path
    runs: Path
    """Folder of its run folders."""
    cache: Path
    machine: Machine | None = None


@dataclass
class Ran:
    """What a call of `run_study` did."""

    finished: int = 0
    failed: int = 0
    stopped: str | None = None
    """Why it ended before the study was done."""
    seconds: list[float] = field(default_factory=list)


def missing(study: Study, results: Results, *, retry: bool = False) -> list[Todo]:
    """The runs that are still to be made, in their order. `retry`: those that died too."""
    return [
        Todo(arm, seed, number)
        for number, (arm, seed) in enumerate(study.order(), start=1)
        if (arm.digest, seed) not in results.runs and (retry or (arm.digest, seed) not in results.failed)
    ]


def run_study(
    study: Study,
    results: Results,
    place: Place,
    observer: Observer,
    *,
    stop: Callable[[], str | None] = lambda: None,
    budget_s: float | None = None,
    max_runs: int | None = None,
    retry: bool = False,
    command: Sequence[str] = TRAINER,
    clock: Callable[[], float] = time.monotonic,
    **keys: Any,
) -> Ran:
    """Make the missing runs until all are there, `stop` gives a reason, or budget or number is spent.

    `budget_s`: a run that is under way by then is stopped, and goes on the next time. `keys` are those of RunRequest.
    Raises what `agent.run.launcher.launch` does, and DataError where a run was measured on other rows than the others.
    """
    ran, began = Ran(), clock()
    todo = missing(study, results, retry=retry)
    _clean_up(study, results, place)

    def why_stop() -> str | None:
        asked = stop()
        spent = budget_s is not None and clock() - began >= budget_s
        return asked or ("the budget is spent" if spent else None)

    with contextlib.closing(Standby()) as standby:
        for position, one in enumerate(todo):
            ran.stopped = why_stop()
            if ran.stopped is None and max_runs is not None and position >= max_runs:
                ran.stopped = f"{max_runs} runs were asked for"
            if ran.stopped is not None:
                return ran
            out = _folder(place, one.arm, one.seed)
            if (one.arm.digest, one.seed) in results.failed and not (out / STATE).exists():
                # from the beginning; one that has a state is a retry that was stopped
                shutil.rmtree(out, ignore_errors=True)
            observer.started(one.arm, one.seed, number=one.number, goes_on=out.is_dir())
            request = request_alone(
                one.arm.recipe, out, workspace=place.workspace, cache=place.cache, seed=one.seed, splits=(), **keys
            )
            result = launch(
                request,
                on_progress=observer.progress,
                stop=why_stop,
                machine=place.machine,
                command=command,
                standby=standby,
            )
            line, ids = _line(study, one, result, place)
            if line is None:
                ran.stopped = why_stop() or result.reason or "the training was stopped from outside"
                return ran
            _refuse_other_rows(line, study, results)
            results.add(line, ids=ids)
            _without_weights(out)
            ran.finished += isinstance(line, RunLine)
            ran.failed += isinstance(line, FailedLine)
            ran.seconds.append(result.elapsed_s)
            observer.finished(line, left=len(todo) - position - 1)
    return ran


def _folder(place: Place, arm: Arm, seed: int) -> Path:
    """Its own for every training, so that an edited study file never meets the cycles of what it was before."""
    return place.runs / f"{arm.slug}-{arm.digest[:8]}-s{seed}"


def _line(
    study: Study, one: Todo, result: RunResult, place: Place
) -> tuple[RunLine | FailedLine | None, Sequence[str]]:
    """(what is written down of this run, its prompts); None where it was stopped and goes on later."""
    arm = one.arm
    named = {"study": study.name, "arm": arm.label, "seed": one.seed, "training": arm.digest}
    summary = result.summary
    elapsed_s = round(result.elapsed_s, 1)
    if result.cut or (result.ended_by == "stop" and (summary is None or summary.stopped)):
        return None, ()
    if not result.ok or summary is None:
        diagnosis = triage(evidence_of(result))
        reason = f"{diagnosis.reason}: {diagnosis.evidence}" if diagnosis.evidence else diagnosis.reason
        return FailedLine(**named, crash_class=diagnosis.crash_class, reason=reason[:500], elapsed_s=elapsed_s), ()
    record = read_run(result.out)
    try:
        ids, samples, passes = measured(record.select, cycles=study.cycles)
        series = series_of(record.cycles, cycles=study.cycles)
    except Unmeasured as error:
        reason = f"{error}; ended by {summary.ended_by}"
        return FailedLine(**named, crash_class=INCOMPLETE, reason=reason, elapsed_s=elapsed_s), ()
    told = summary.provenance.get("data")
    line = RunLine(
        **named,
        signature=arm.recipe.signature(),
        cycles=study.cycles,
        data=str(told)[:16] if told else None,
        prompts=digest_of_ids(ids),
        samples=samples,
        passes=passes.text(),
        series=series,
        elapsed_s=elapsed_s,
        provenance=_provenance(summary, place.machine),
    )
    return line, ids


def _provenance(summary: Summary, machine: Machine | None) -> dict[str, Any]:
    kept = {name: summary.provenance[name] for name in KEPT if summary.provenance.get(name) is not None}
    kept |= {"device": summary.device} if summary.device else {}
    kept |= {"machine": machine.summary} if machine is not None else {}
    return {"raft_agent": agent.__version__, **kept}


def _refuse_other_rows(line: RunLine | FailedLine, study: Study, results: Results) -> None:
    """Before it is written: two data sets in one study compare nothing."""
    if not isinstance(line, RunLine):
        return
    for arm, seed in study.order():
        other = results.runs.get((arm.digest, seed))
        if other is not None and (other.data, other.prompts) != (line.data, line.prompts):
            raise DataError(
                f"this run ({line.arm}, seed {line.seed}) was measured on other rows than {other.arm}, seed "
                f"{other.seed}: the data set has changed",
                where=str(results.path),
                hint="bring the rows back, or begin with another --results file",
            )


def _clean_up(study: Study, results: Results, place: Place) -> None:
    """Weights of runs whose line is there: a kill between the two leaves them."""
    for arm, seed in study.order():
        if (arm.digest, seed) in results.runs:
            _without_weights(_folder(place, arm, seed))


def _without_weights(out: Path) -> None:
    for name in (CHECKPOINT, STATE):
        shutil.rmtree(out / name, ignore_errors=True)
