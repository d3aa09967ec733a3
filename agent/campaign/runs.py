"""Execute a run exactly once. A run that the journal knows as finished is read from disk, so that a campaign
which was killed anywhere can simply go through its steps again.

Does not judge; a failed training comes back with its diagnosis. While one run trains, the process of the next one is
started ahead; whoever has a Runner closes it, so that none is left.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from agent.campaign import admission
from agent.campaign.done import Done
from agent.campaign.jobs import Job, seed_of
from agent.campaign.lab import CutShort, Order
from agent.campaign.machine_health import poison, refuse_faults, runs_of_other_campaigns
from agent.campaign.now import RunNow
from agent.campaign.observer import Activity, Pulse
from agent.campaign.session import Session
from agent.campaign.stairs import number_in
from agent.campaign.stopping import HOPELESS, PAUSED
from agent.campaign.verifier_fix import mended_files
from agent.contract import CHECKPOINT, FILES_VARIABLE, UNTRAINED, Failure
from agent.hardware.sensors import memory
from agent.ledger.events import RunPlanned, RunStarted
from agent.ledger.journal import Run
from agent.report.numbers import Numbers
from agent.report.words import trained
from agent.run.diagnosis import Diagnosis, Evidence, evidence_of
from agent.run.ending import end_process_group
from agent.run.folder import running_in
from agent.run.launcher import launch
from agent.run.processes import ProcessIdentity, boot_id
from agent.run.request import RunRequest, RunResult
from agent.run.scrub import scrub
from agent.run.standby import Standby
from agent.run.telemetry import RunRecord, read_run
from agent.run.told import IN_VERIFIER
from agent.run.triage import triage
from agent.run.view import RunView
from agent.run.watching import EndedBy, Progress

SLACK_S = 60.0
"""A run may take this much longer than twice its prediction before the launcher ends it."""

OUTSIDE_KILL = "outside-kill"
"""Signature of a SIGKILL that was not the kernel's memory killer's, and of a SIGTERM that was not ours."""
KILLS_BORNE = 1
MOST_OF_IT = 0.5
"""Share of the free memory that a run must have held for an out-of-memory to be its own."""

Launch = Callable[..., RunResult]


class Early(Protocol):
    """Looks at a training while it runs, and says why it should end before its time."""

    is_pause: bool
    """The training is going on later."""

    def why(self, out: Path) -> str | None:
        """A reason that begins with PAUSED or HOPELESS, or None. Asked several times a second."""


class Runner:
    def __init__(
        self,
        session: Session,
        *,
        launcher: Launch = launch,
        standby: Standby | None = None,
        boot: Callable[[], str] = boot_id,
    ):
        """`boot` names the present boot of the machine."""
        self.session = session
        self._launch = launcher
        self._standby = standby or Standby()
        self._boot = boot
        self._elsewhere: list[Run] | None = None
        self._prompts: dict[str, frozenset[str]] = {}

    def close(self) -> None:
        """No further run will come: end the process that waits for one."""
        self._standby.close()

    def run(self, job: Job, *, early: Early | None = None) -> Done:
        """Execute the job, or read it back. `early` is asked while it runs, and says why it should end.

        Raises CutShort; AgentErrors that are not the training's fault.
        """
        out = self.session.runs_folder / job.key
        before = [run for run in self.session.state.runs.values() if key_of(run) == job.key]
        # what goes on is not asked whether its files are what it left: they are those of a training under way
        finished = next((run for run in reversed(before) if not _goes_on(run, before) and self._holds(run)), None)
        if finished is not None:
            return self._from_disk(job, finished)
        if early is not None and early.is_pause and any(_paused(run) for run in before):
            return self._done(job.key, read_run(out), elapsed_s=None, ended_early=PAUSED)
        recovered = self._settle(job, out, before)
        if recovered is not None:
            return recovered
        refused = self._refused(job) or self._not_admitted(job)
        if refused is not None:
            return refused
        self._leave_another_recipes(job, out, before)
        done = self._execute(job, out, attempt=len(before) + 1, early=early)
        if self._was_cut(job, done):
            self.session.observer.say(f"  it {done.diagnosis.reason if done.diagnosis else ''}: going on with it")
            return self.run(job, early=early)
        return done

    def _was_cut(self, job: Job, done: Done) -> bool:
        """Somebody killed it, and it may go on where it was."""
        if done.diagnosis is None or done.diagnosis.signature != OUTSIDE_KILL:
            return False
        starts = [run for run in self.session.state.runs.values() if key_of(run) == job.key]
        return _goes_on(starts[-1], starts)

    def knows(self, key: str) -> bool:
        """The run was started before, whatever became of it."""
        return any(key_of(run) == key for run in self.session.state.runs.values())

    def finished_well(self) -> list[tuple[str, RunPlanned | RunStarted]]:
        """Key and words of every run that the journal knows to have ended with a summary, oldest first."""
        found: dict[str, RunPlanned | RunStarted] = {}
        for run in self.session.state.runs.values():
            key = key_of(run)
            if key and run.words and run.finished and run.finished.summary is not None and self._holds(run):
                found[key] = run.words
        return list(found.items())

    def read_back(self, key: str) -> Done:
        """A finished run from its folder."""
        record = read_run(self.session.runs_folder / key)
        known = [run for run in self.session.state.runs.values() if key_of(run) == key and self._holds(run)]
        return self._done(
            key,
            record,
            elapsed_s=record.summary.elapsed_s if record.summary else None,
            run=known[-1] if known else None,
        )

    def _done(
        self,
        key: str,
        record: RunRecord,
        *,
        elapsed_s: float | None,
        diagnosis: Diagnosis | None = None,
        run: Run | None = None,
        ended_early: str | None = None,
    ) -> Done:
        """`run`: what the journal knows of it, where it ended before now."""
        ended_s = self.session.clock.consumed_s
        if run is not None and run.finished:
            ended_s = run.finished.consumed_s or ended_s
            gave_up = run.finished.ended_by == "stop" and run.finished.reason.startswith(HOPELESS)
            ended_early = run.finished.reason if gave_up else ended_early
        number = number_in(key)
        rewards = self.session.recipe_of(number).task.reward.range()
        if diagnosis is None and record.summary is not None:
            for split in record.summary.metrics:
                self._prompts.setdefault(split, frozenset(row.id for row in record.evals if row.split == split))
        evaluation, prompts = self.session.evaluation, self._prompts
        return Done(key, record, elapsed_s, diagnosis, evaluation, ended_s, ended_early, rewards, prompts=prompts)

    # --- what earlier sessions left -------------------------------------------------------------------------

    def _from_disk(self, job: Job, run: Run) -> Done:
        assert run.finished is not None
        told = (run.finished.model_extra or {}).get("diagnosis")
        diagnosis = Diagnosis(**told) if told else None
        record = read_run(self.session.runs_folder / job.key)
        return self._done(job.key, record, elapsed_s=run.finished.elapsed_s, diagnosis=diagnosis, run=run)

    def _settle(self, job: Job, out: Path, before: list[Run]) -> Done | None:
        """End what still runs in the folder and close the journal's open lines; a whole summary is a finished run."""
        orphan = running_in(out)
        if orphan is not None:
            self.session.observer.warn(f"ending a training (process {orphan.pid}) that an earlier session left")
            end_process_group(orphan)
        open_runs = [run for run in before if not run.finished]
        if open_runs:
            scrub(out)  # as the launcher that started it would have
        record = read_run(out)
        summary = record.summary
        if open_runs and summary is not None and not summary.stopped:
            self._refuse_if_measured_otherwise(job, open_runs[-1].id, record, ended_by="itself")
            self._finish(open_runs[-1].id, ended_by="itself", exit_code=0, record=record, elapsed_s=summary.elapsed_s)
            return self._done(job.key, record, elapsed_s=summary.elapsed_s)
        for run in open_runs:
            self.session.tell(
                "run_finished",
                run=run.id,
                ended_by="lost",
                reason="the agent ended before the run did",
                boot_id=self._boot(),
            )
        return None

    def _leave_another_recipes(self, job: Job, out: Path, before: list[Run]) -> None:
        """A training that was paused or interrupted cannot be gone on with by another recipe, which a change of the
        layer below makes of it: it begins anew in a fresh folder."""
        words = before[-1].words if before else None
        if words is None or words.recipe_signature in (None, job.recipe.signature()) or not out.exists():
            return
        since = [note.model_extra or {} for note in self.session.state.notes if note.seq > words.seq]
        if all(note.get("begun_anew") != job.key for note in since):  # a kill may come between note and move
            text = f"{job.key} begins anew: its recipe has changed since its last start (the layer below all runs)"
            self.session.observer.say(f"  {text}")
            self.session.tell("note", text=text, begun_anew=job.key)
        aside = _out_of_the_way(out)
        self.session.lockbox.forget_what_was_left(out)
        for weights in (CHECKPOINT, "state"):  # which nothing goes on with any more
            shutil.rmtree(aside / weights, ignore_errors=True)

    def _refused(self, job: Job) -> Done | None:
        """A recipe that took the machine down twice, in any campaign of the workspace, is not started again."""
        if self._elsewhere is None:
            self._elsewhere = runs_of_other_campaigns(self.session.folder)
        runs = [*self._elsewhere, *self.session.state.runs.values()]
        why = poison(job.recipe.signature(), runs, boot_id=self._boot())
        if why is None:
            return None
        self.session.observer.ended(f"did not start: {why.reason}")
        record = read_run(self.session.runs_folder / job.key)
        return self._done(job.key, record, elapsed_s=None, diagnosis=why)

    def _not_admitted(self, job: Job) -> Done | None:
        """A recipe that differs from the baseline's in more than was planned is not started."""
        refused = admission.refusal(self.session, job)
        if refused is None:
            return None
        self.session.observer.ended(f"did not start: {refused.message}")
        failure = Failure(
            crash_class="typo", message=refused.message, hint=refused.hint, exception="ChangeRefused", key=refused.key
        )
        record = read_run(self.session.runs_folder / job.key)
        return self._done(job.key, record, elapsed_s=None, diagnosis=triage(Evidence(failure=failure)))

    def _holds(self, run: Run) -> bool:
        """It counts, and its files are what it left. If they are not, the campaign puts its folder aside: it counts no
        more."""
        lockbox = self.session.lockbox
        if not _counts(run) or self._never_began(run) or run.id in lockbox.void:
            return False
        out = self.session.runs_folder / str(key_of(run))
        changed = lockbox.changed_since(out)
        if changed and not self.session.only_reads:
            words = f"{', '.join(changed)} of the run {out.name} changed after it had ended: it counts no more"
            self.session.observer.warn(f"{words}, and is now {_out_of_the_way(out).name}")
            lockbox.set_aside(run.id, out, words)
        return not changed

    def _never_began(self, run: Run) -> bool:
        """A limit cut the untrained model's run, or the first of the baseline, without which there is no campaign: read
        back it would end every later session too."""
        words = run.words
        if words is None or words.role != "baseline" or _signature(run) != "time_limit":
            return False
        return words.arm == UNTRAINED or words.seed == seed_of(self.session, Order(0, "baseline", 0))

    def _refuse_if_measured_otherwise(self, job: Job, run: str, record: RunRecord, **fields: Any) -> None:
        """Raises YardstickChanged, after the run is written down as one that does not count."""
        lockbox = self.session.lockbox
        wrong = lockbox.look_at(job, record)
        if not wrong:
            return
        self._finish(run, record=record, diagnosis=lockbox.diagnosis(wrong), **fields)
        _out_of_the_way(record.out)
        raise lockbox.refuse(job, wrong)

    # --- now ------------------------------------------------------------------------------------------------

    def _execute(self, job: Job, out: Path, *, attempt: int, early: Early | None) -> Done:
        session = self.session
        asked = self._why_stop()
        if asked:
            raise CutShort(asked)
        session.lockbox.check(f"before the run {job.key}")
        cost = session.cost(job.recipe)
        predicted = cost.evaluation_s if job.evaluate else cost.total_s + cost.evaluate_s * (job.rung_at is not None)
        run = job.key if attempt == 1 else f"{job.key}.{attempt}"
        words: dict[str, Any] = {
            "run": run,
            "experiment": job.experiment,
            "role": job.role,
            "rung": job.rung,
            "arm": job.arm,
            "seed": job.seed,
            "recipe_signature": job.recipe.signature(),
            "out": out.relative_to(session.workspace).as_posix(),
        }
        rest = predicted if attempt == 1 or job.evaluate else predicted - _spent_before(out) * cost.train_s
        session.tell("run_planned", **words, what=job.what, predicted_s=round(rest, 3))
        now = RunNow(out, what=job.what, seed=job.seed, number=job.experiment, predicted_s=rest)
        session.observer.started(Activity(job.what, f"seed {job.seed}", rest, now.look))
        free_gb = memory().available
        result = self._launch(
            self._request(job, out, self._time_limit(None if cost.guessed else predicted)),
            on_started=lambda identity: self._started(words, identity),
            on_progress=self._progress(),
            stop=lambda: self._why_stop() or (early.why(out) if early else None),
            machine=session.machine,
            standby=self._standby,
        )
        return replace(self._ended(job, run, result), free_gb=free_gb, took_the_memory=_took(result, free_gb))

    def _request(self, job: Job, out: Path, limit: float) -> RunRequest:
        env = {name: value for change in self.session.state.shared_changes for name, value in change.env.items()}
        mended = mended_files(self.session, job.experiment or 0)
        if mended is not None:
            env[FILES_VARIABLE] = str(mended)
        return RunRequest(
            recipe=job.recipe,
            out=out,
            seed=job.seed,
            workspace=self.session.workspace,
            time_limit_s=limit,
            splits=job.splits,
            evaluate=job.evaluate,
            rung=job.rung_at,
            cache=self.session.cache,
            commit=self.session.lockbox.commit_of_model(),
            allow_untrusted_code=self.session.settings.allow_untrusted_code,
            low_priority=self.session.settings.low_priority,
            env=env,
        )

    def _time_limit(self, predicted_s: float | None) -> float:
        """Enough for a slow day, never beyond the budget. None is a guess, and no guess ends a run: the first one may
        have to fetch or make its model first. One that hangs is ended all the same."""
        usual = math.inf if predicted_s is None else 2 * predicted_s + SLACK_S
        limit = min(usual, max(1.0, self.session.clock.left_s))
        per_experiment = self.session.settings.per_experiment_s
        return min(limit, per_experiment) if per_experiment else limit

    def _why_stop(self) -> str | None:
        asked = self.session.why_stop()
        if asked:
            return asked
        return "the budget is spent" if self.session.clock.left_s <= 0 else None

    def _started(self, words: dict[str, Any], identity: ProcessIdentity) -> None:
        self.session.tell(
            "run_started",
            **words,
            pid=identity.pid,
            process_started=identity.started,
            boot_id=identity.boot_id,
            mark=identity.mark,
        )

    def _progress(self) -> Callable[[Progress], None]:
        def on_progress(progress: Progress) -> None:
            self.session.observer.pulse(
                Pulse(
                    phase=progress.phase,
                    elapsed_s=progress.elapsed_s,
                    budget_spent=progress.budget_spent,
                    note=progress.note,
                    cycle=progress.cycle,
                    metric=progress.select_metric,
                    memory_gb=progress.resident_gb,
                )
            )

        return on_progress

    def _ended(self, job: Job, run: str, result: RunResult) -> Done:
        record = read_run(result.out)
        diagnosis = None
        ended_by = self._how_it_ended(result)
        if not result.ok and "stop" not in (ended_by, result.ended_by):
            evidence = evidence_of(result, changed=self._changed(job), problems=record.problems)
            diagnosis = triage(evidence, rules=self.session.rules)
        if diagnosis is None and ended_by == "itself":
            self._refuse_if_measured_otherwise(
                job, run, record, ended_by="itself", exit_code=result.exit_code, elapsed_s=result.elapsed_s
            )
        self._finish(
            run,
            ended_by=ended_by,
            exit_code=result.exit_code,
            signal=result.signal,
            reason=result.reason,
            record=record,
            elapsed_s=result.elapsed_s,
            peak_rss_gb=result.peak_rss_gb,
            diagnosis=diagnosis,
            load=result.load.model_dump(mode="json", exclude_none=True) if result.load else None,
            memory_events=result.memory_events,
            memory_back=result.memory_back,
            held_gb=result.held_gb or None,
            notes=result.notes,
        )
        self.session.observer.ended(_how_it_ended(record, result, diagnosis))
        self._warn_of_the_machine(result)
        if diagnosis is not None and job.arm != "probe":
            refuse_faults(self.session.journal.events(), accelerators=self.session.machine.accelerators)
        if ended_by == "stop" and not result.reason.startswith((PAUSED, HOPELESS)):
            raise CutShort(self._why_stop() or result.reason)
        early = result.reason if ended_by == "stop" else None
        return self._done(job.key, record, elapsed_s=result.elapsed_s, diagnosis=diagnosis, ended_early=early)

    def _how_it_ended(self, result: RunResult) -> EndedBy:
        """A training that was done when it was asked to stop has measured everything. One that somebody else has asked
        was killed from outside, unless the campaign is to stop too: a shutdown asks both."""
        if result.summary is None or result.ended_by not in ("itself", "stop"):
            return result.ended_by
        if result.cut and self._why_stop() is None:
            return "itself"
        return "stop" if result.summary.stopped else "itself"

    def _changed(self, job: Job) -> Mapping[str, tuple[Any, Any]]:
        """What the job's experiment changed, for triage to look for the cause in."""
        number = job.experiment
        if not number or number not in self.session.state.experiments:
            return {}
        return self.session.moves_between(self.session.base_of(number), number)

    def _warn_of_the_machine(self, result: RunResult) -> None:
        for note in result.notes:
            self.session.observer.warn(note)
        if result.memory_back is False:
            self.session.observer.warn(
                f"{result.held_gb:.1f} GiB of memory did not come back after the run ended: {result.held_by}; "
                "later runs have less, and a reboot may be the only way to get it back"
            )
        elif result.held_gb:
            self.session.observer.say(f"  {result.held_gb:.1f} GiB of memory are not back yet: {result.held_by}")

    def _finish(self, run: str, *, record: RunRecord, diagnosis: Diagnosis | None = None, **fields: Any) -> None:
        """Digests of what was used are told once, not in every line."""
        summary = record.summary.model_dump(mode="json", exclude_none=True) if record.summary else None
        if diagnosis is not None:
            summary = None
        if summary is None:
            self.session.lockbox.forget_what_was_left(record.out)
        told = {} if summary is None else self.session.lockbox.take_in(record)
        for name in ("evaluation", "model"):
            (summary or {}).get("provenance", {}).pop(name, None)
        self.session.tell("run_finished", run=run, summary=summary, diagnosis=diagnosis, **fields, **told)


def _spent_before(out: Path) -> float:
    """Share of the training budget by the cycles in a folder: what was saved last may be less, so no limit is set by
    it."""
    seen = RunView(out)
    seen.look()
    return min(1.0, max(0.0, seen.cycles[-1].budget_spent or 0.0)) if seen.cycles else 0.0


def _took(result: RunResult, free_gb: float) -> bool:
    on_host = (result.peak_rss_gb or 0.0) >= MOST_OF_IT * free_gb
    on_card = result.load is not None and (result.load.device_memory_peak_share or 0.0) >= MOST_OF_IT
    return on_host or on_card


def _out_of_the_way(out: Path) -> Path:
    """The folder of a run that does not count, under another name; the run can then be repeated in a fresh one."""
    number = next(n for n in itertools.count(1) if not out.with_name(f"{out.name}.changed-{n}").exists())
    return out.rename(out.with_name(f"{out.name}.changed-{number}")) if out.exists() else out


def key_of(run: Run) -> str | None:
    return Path(run.words.out).name if run.words else None


def _counts(run: Run) -> bool:
    """A run that ended by itself, well or badly, or that was hopeless; no other that the campaign or a power cut ended.

    Nor one that failed for want of data, a model or disk, or in a user's verifier: that may have been mended since.
    """
    if run.finished is None or run.finished.ended_by == "lost":
        return False
    if run.finished.ended_by == "stop":
        return run.finished.reason.startswith(HOPELESS)
    told = (run.finished.model_extra or {}).get("diagnosis") or {}
    verifier = _signature(run).startswith(IN_VERIFIER)
    return told.get("crash_class") not in ("data", "resource") and not verifier


def _goes_on(run: Run, starts: Sequence[Run]) -> bool:
    """A run that was killed from outside was interrupted and has not failed: it goes on in its folder. `starts` are all
    of this run; one that is killed again and again is a crash."""
    killed = [one for one in starts if _signature(one) == OUTSIDE_KILL]
    return run in killed and len(killed) <= KILLS_BORNE


def _signature(run: Run) -> str:
    told = ((run.finished.model_extra or {}).get("diagnosis") or {}) if run.finished else {}
    return str(told.get("signature") or "")


def _paused(run: Run) -> bool:
    return run.finished is not None and run.finished.ended_by == "stop" and run.finished.reason.startswith(PAUSED)


def _how_it_ended(record: RunRecord, result: RunResult, diagnosis: Diagnosis | None) -> str:
    if diagnosis is not None:
        return f"failed ({diagnosis.crash_class}): {diagnosis.reason}"
    summary = record.summary
    if summary is None:
        return result.reason
    numbers = Numbers(summary.metric)
    measured = ", ".join(f"{split} {numbers.value(value)}" for split, value in summary.metrics.items())
    before = f"{trained(summary.cycles, summary.optimizer_steps)}, " if summary.cycles else ""
    return f"{before}{measured or 'no metric'} in {result.elapsed_s:.0f}s"
