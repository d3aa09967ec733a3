"""Train an idea, and when it breaks: triage, one sensible fix, again; a few times at most.

A fix of the idea is a commit on its branch. A fix of the shared layer (attention, environment) goes to all later
runs, after a trial in a small process and a run with it have shown that it helps. What a crash teaches is told to the
planner, and what does not fit into memory is remembered for this machine: a recipe that is known not to fit is not
started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.campaign.capacity import check_memory
from agent.campaign.done import Done
from agent.campaign.jobs import Job
from agent.campaign.limits import KnownLimit, contradicted
from agent.campaign.runs import Early, Runner
from agent.campaign.session import Session, run_key
from agent.campaign.verifier_fix import mended_files, verifier_fix
from agent.contract import Failure, Split
from agent.errors import AgentError, RecipeError, TrainingFailed, VerifierError
from agent.hardware.sensors import memory
from agent.recipe.editing import edit_text
from agent.recipe.files import get_key, with_keys
from agent.recipe.miniature import miniature
from agent.recipe.schema import Recipe
from agent.run.diagnosis import Diagnosis, Evidence
from agent.run.remedies import Limit, Remedy, Response, not_helped, repair_values, respond
from agent.run.telemetry import RunRecord
from agent.run.triage import triage

SAME_STEP = {
    "learner.microbatch_tokens", "learner.gradient_accumulation", "learner.gradient_checkpointing", "rollout.slots",
}  # fmt: skip
"""Keys that change how a step is made and not what it is."""
BY_ARITHMETIC = "estimate"
MOST_REPEATS = 10
"""More fixes a playbook cannot give."""
SURE = 0.8
"""Confidence from which on a limit is remembered beyond the campaign."""


NO_TIME = "no repair is tried: the time is kept for confirming what was promising so far"


class StopCampaign(TrainingFailed):
    """Every later run would meet the same failure."""


def train_with_repairs(
    session: Session,
    runner: Runner,
    *,
    experiment: int,
    key: str,
    what: str,
    seed: int,
    role: str,
    rung: str,
    splits: tuple[Split, ...] = ("search",),
    arm: str | None = None,
    rung_at: float | None = None,
    early: Early | None = None,
    time_for_more: Callable[[], bool] = lambda: True,
) -> Done:
    """Run the experiment's recipe with a seed, repairing what can be repaired as long as there is time for another
    whole run. The last run comes back, good or bad."""
    tried = _tried_before(session, experiment)
    ruled_out: list[Remedy] = []
    repeats, adopted = _adopted_before(session, experiment, f"{key}-s{seed}")
    probing = adopted
    while True:
        plan_key = _key_of(session, experiment, f"{key}-s{seed}", repeats)
        plan = Plan(experiment, plan_key, what, seed, role, rung, splits, arm, rung_at)
        done = _one_run(session, runner, probing, plan, early)
        if done.ok or done.ended_early:
            if probing is not None and probing is not adopted:
                _adopt(session, probing, plan)
            return done
        spent = len(session.state.experiments[experiment].fixes) + repeats
        in_time = time_for_more()
        remedy = _answer(session, runner, plan, done, tried, ruled_out, spent=spent, in_time=in_time)
        if remedy is None:
            return done
        tried.append(remedy)
        probing = remedy if remedy.needs_probe else None
        if probing is None and (remedy.values or remedy.files):
            repeats = 0
            if not _commit_fix(session, experiment, done, remedy):
                return done
        else:
            repeats += 1


def _tried_before(session: Session, experiment: int) -> list[Remedy]:
    """What an earlier session tried on the idea: a campaign that was killed goes on with the next step."""
    fixes = [fix.model_extra or {} for _, fix in sorted(session.state.experiments[experiment].fixes.items())]
    told = [extra["remedy"] for extra in fixes if isinstance(extra.get("remedy"), dict)]
    return [Remedy(one["kind"], dict(one["values"]), dict(one["env"]), str(one["why"])) for one in told]


def _key_of(session: Session, experiment: int, name: str, repeats: int) -> str:
    """Tells fixes and repeats, so that a resumed campaign finds each of these runs again."""
    fixes = len(session.state.experiments[experiment].fixes)
    return run_key([name, f"f{fixes}" if fixes else "", f"r{repeats}" if repeats else ""])


def _adopted_before(session: Session, experiment: int, name: str) -> tuple[int, Remedy | None]:
    """Where a run of this name has changed the shared layer: after how many repeats, and by what. The training goes on
    with that run. From the first one, which died of the layer as it was, it would go on to the next remedy."""
    changes = {change.run: change for change in session.state.shared_changes if change.run}
    for repeats in range(1, MOST_REPEATS + 1):
        change = changes.get(_key_of(session, experiment, name, repeats))
        if change is not None:
            return repeats, Remedy("shared", change.values, change.env, change.why)
    return 0, None


def evaluate_with_repairs(session: Session, runner: Runner, job: Job) -> Done:
    """An evaluation of the baseline's model: the first that a user's verifier sees. A slip in it is mended."""
    while True:
        done = runner.run(job)
        if done.ok:
            _refuse_a_verifier_that_passes_all(session, done)
        if done.ok or done.diagnosis is None:
            return done
        if len(session.state.experiments[0].fixes) >= session.playbook.fixes_after(done.diagnosis.crash_class):
            return done
        mended = verifier_fix(session, 0, done.record.failure, done.diagnosis)
        if mended is None:
            return done
        session.observer.warn(f"{done.diagnosis.reason}; {mended.why}")
        if not _commit_fix(session, 0, done, mended):
            return done


def _refuse_a_verifier_that_passes_all(session: Session, done: Done) -> None:
    """Where a verifier was mended, an untrained model that is always right says that the mending was wrong."""
    folder = mended_files(session, 0)
    rows = done.rows("search")
    if folder is not None and rows and all(row.passed for row in rows):
        raise VerifierError(
            f"after the mending all {len(rows)} responses of the untrained model pass: that is not what was meant",
            where=str(folder),
            hint="Mend the verifier by hand; the last commit on the baseline's branch shows what was tried.",
        )


@dataclass(frozen=True)
class Plan:
    """The words of one run, without its recipe."""

    experiment: int
    key: str
    what: str
    seed: int
    role: str
    rung: str
    splits: tuple[Split, ...]
    arm: str | None
    rung_at: float | None


def _one_run(session: Session, runner: Runner, shared: Remedy | None, plan: Plan, early: Early | None) -> Done:
    try:
        recipe = with_step(session.with_shared_layer(session.recipe_of(plan.experiment)), shared)
    except RecipeError as error:
        return _unreadable(plan.key, error, session)
    if not runner.knows(plan.key):
        known = session.limit_against(recipe, free_gb=memory().available)
        if known is not None:
            return _not_started(session, plan, known.diagnosis())
        too_large = _too_large_by_arithmetic(session, plan, recipe)
        if too_large is not None:
            return _not_started(session, plan, too_large)
    job = Job(
        key=plan.key,
        what=plan.what,
        recipe=recipe,
        seed=plan.seed,
        role=plan.role,
        rung=plan.rung,
        experiment=plan.experiment,
        arm=plan.arm,
        splits=plan.splits,
        rung_at=plan.rung_at,
        trying=shared.values if shared is not None else {},
    )
    return runner.run(job, early=early)


def with_step(recipe: Recipe, shared: Remedy | None) -> Recipe:
    """The recipe with a step of the shared layer that is being tried."""
    if shared is None:
        return recipe
    changed = with_keys(recipe, shared.values)
    return with_keys(changed, {"backend.env": {**changed.backend.env, **shared.env}}) if shared.env else changed


def _too_large_by_arithmetic(session: Session, plan: Plan, recipe: Recipe) -> Diagnosis | None:
    """An idea that cannot fit, where the same step in smaller pieces would. Asked once an idea.

    The estimate takes batches at their largest: without such a way it is tried all the same, and nothing is learned.
    """
    if not plan.experiment or session.state.experiments[plan.experiment].fixes:
        return None
    checked = check_memory(recipe, session.machine, cache=session.cache, base=session.workspace)
    if checked.fits is not False or not set(checked.remedy or {"": 0}) <= SAME_STEP:
        return None
    return Diagnosis("oom", f"does not fit: it {checked.why}", checked.why, "limits", BY_ARITHMETIC, phase="train")


def _not_started(session: Session, plan: Plan, why: Diagnosis) -> Done:
    """It would end as it did before, or as arithmetic says."""
    record = RunRecord(session.runs_folder / plan.key, None, [], [], None, None, None, ())
    session.observer.ended(f"not started: {why.reason}")
    return Done(plan.key, record, None, why, session.evaluation)


def _unreadable(key: str, error: RecipeError, session: Session) -> Done:
    """A recipe that does not validate never starts; that is a crash of the class typo all the same."""
    out = session.runs_folder / key
    record = RunRecord(out, None, [], [], None, None, None, ())
    session.observer.ended(f"did not start: {error}")
    failure = Failure(
        crash_class="typo",
        message=error.message,
        where=error.where,
        hint=error.hint,
        exception=type(error).__name__,
        key=error.key,
        suggestion=error.suggestion,
    )
    return Done(key, record, None, triage(Evidence(failure=failure)), session.evaluation)


def _answer(
    session: Session,
    runner: Runner,
    plan: Plan,
    done: Done,
    tried: list[Remedy],
    ruled_out: list[Remedy],
    *,
    spent: int,
    in_time: bool,
) -> Remedy | None:
    """What to do about the crash, told to the observer; None where nothing sensible is left, as many fixes and repeats
    are `spent` as the playbook gives, or there is no time for one. What such a crash teaches is learned all the same.

    Raises StopCampaign, or the error that the trainer named, where every later run would meet the same failure.
    """
    assert done.diagnosis is not None
    most = session.playbook.fixes_after(done.diagnosis.crash_class)
    may_mend = spent < most and in_time
    mended = verifier_fix(session, plan.experiment, done.record.failure, done.diagnosis) if may_mend else None
    if mended is not None:
        session.observer.warn(f"{done.diagnosis.reason}; {mended.why}")
        return mended
    parent = session.recipe_of(session.base_of(plan.experiment))
    while True:
        response = _response(session, plan.experiment, done.diagnosis, parent, tried, ruled_out, most)
        limit = response.limit or (response.remedy.limit if response.remedy else None)
        if limit is not None:
            _learn(session, plan.experiment, limit, done)
        if response.stops_campaign:
            raise _stopping(done, done.diagnosis, response)
        if not may_mend:
            why = not_helped(spent) if spent >= most else NO_TIME
            session.observer.say(f"  {done.diagnosis.crash_class}: {done.diagnosis.reason}; {why}")
            return None
        remedy = response.remedy
        first = not ruled_out and all(one.kind not in ("retry", "shared") for one in tried)
        if remedy and remedy.needs_probe and first and not _fails_in_small(session, runner, plan, done):
            once_more = Remedy("retry", {}, {}, "a small training runs as it is: once more, unchanged")
            session.observer.say(f"  {done.diagnosis.crash_class}: {done.diagnosis.reason}; {once_more.why}")
            return once_more
        if remedy is None or not remedy.needs_probe or _helps(session, runner, plan, done, remedy, len(ruled_out)):
            session.observer.say(f"  {done.diagnosis.crash_class}: {done.diagnosis.reason}; {response.why}")
            return remedy
        ruled_out.append(remedy)


def _fails_in_small(session: Session, runner: Runner, plan: Plan, done: Done) -> bool:
    """Whether the smallest training dies too, with the layer below as it is. If not, it may have been a chance."""
    recipe = session.with_shared_layer(session.recipe_of(plan.experiment))
    fails = not _trial(session, runner, plan, done, recipe, None, "as-it-is").ok
    session.observer.say(f"  a small training without a change {'fails too' if fails else 'runs'}")
    return fails


def _helps(session: Session, runner: Runner, plan: Plan, done: Done, remedy: Remedy, number: int) -> bool:
    """Whether the smallest training runs with this step of the shared layer, before a whole run is spent on it."""
    recipe = session.with_shared_layer(session.recipe_of(plan.experiment))
    trial = _trial(session, runner, plan, done, recipe, remedy, f"step-{number + 1}")
    if not trial.ok:
        session.observer.say(f"  ruled out: {remedy.why}: a small training with it fails ({trial.crash_words})")
    return trial.ok


def _trial(
    session: Session, runner: Runner, plan: Plan, done: Done, recipe: Recipe, remedy: Remedy | None, name: str
) -> Done:
    changes = len(session.state.shared_changes)  # the layer that it is tried with has been changed so often
    job = Job(
        key=run_key([done.key, "trial", name, f"l{changes}" if changes else ""]),
        what=f"trial: {remedy.why if remedy else 'the layer below, as it is'}",
        recipe=miniature(with_step(recipe, remedy)),
        seed=plan.seed,
        role="experiment",
        rung="screen",
        experiment=plan.experiment,
        arm="probe",
        splits=(),
    )
    return runner.run(job)


def refuse_what_every_run_meets(session: Session, experiment: int, done: Done, *, checkpoint: bool = False) -> None:
    """A confirming run that found no data, or no room, says nothing of the idea: raises what a search run that died of
    the same would, so that the campaign pauses and a resume runs it again. Nothing else is answered here.
    `checkpoint`: it evaluates what another run delivered, and what it does not find may be that alone."""
    diagnosis = done.diagnosis
    if diagnosis is None or diagnosis.crash_class not in (("resource",) if checkpoint else ("data", "resource")):
        return
    parent = session.recipe_of(session.base_of(experiment))
    response = _response(session, experiment, diagnosis, parent, [], [], most=0)
    if response.stops_campaign:
        raise _stopping(done, diagnosis, response)


def _stopping(done: Done, diagnosis: Diagnosis, response: Response) -> AgentError:
    """What ends the campaign: an error that has a name, or a failed training."""
    if done.named_error is not None:
        return done.named_error
    said = response.missing or response.why
    hint = said if said != diagnosis.reason else f"raft-agent diagnose {done.key} shows its log"
    return StopCampaign(f"{diagnosis.crash_class}: {diagnosis.reason}", where=done.key, hint=hint)


def _response(
    session: Session,
    experiment: int,
    diagnosis: Diagnosis,
    parent: Recipe,
    tried: list[Remedy],
    ruled_out: list[Remedy],
    most: int,
) -> Response:
    try:
        recipe = session.recipe_of(experiment)
    except RecipeError:
        return _mended_values(session, experiment, parent)
    shared = session.with_shared_layer(recipe)
    if diagnosis.signature == BY_ARITHMETIC:
        values = check_memory(shared, session.machine, cache=session.cache, base=session.workspace).remedy or {}
        changes = ", ".join(f"{key} {get_key(shared, key)} -> {value}" for key, value in values.items())
        remedy = Remedy("shrink", values, {}, f"{changes} (the same step)")
        return Response(remedy, remedy.why)
    return respond(
        diagnosis,
        recipe=shared,
        parent=session.with_shared_layer(parent),
        history=tried,
        ruled_out=ruled_out,
        most=most,
    )


def _mended_values(session: Session, experiment: int, parent: Recipe) -> Response:
    """A change that does not make a valid recipe: nearest key, right type, into range."""
    planned = session.state.experiments[experiment].planned
    values = {key: move[1] for key, move in planned.changes.items()} if planned else {}
    mended = repair_values(values, parent=parent)
    if mended is None or with_keys(parent, mended[0]).signature() == parent.signature():
        return Response(None, "no valid value is near what was meant")
    return Response(Remedy("fix", mended[0], {}, mended[1]), mended[1])


def _commit_fix(session: Session, experiment: int, done: Done, remedy: Remedy) -> bool:
    """Write the remedy into the recipe on the experiment's branch. False where the text cannot be edited so."""
    assert done.diagnosis is not None
    files = session.files_of(experiment)
    try:
        changed = dict(remedy.files)
        if remedy.values:
            changed[session.recipe_path] = _fixed_text(session, experiment, remedy)
        recipe = session.recipe_from({**files, **changed}, label=f"{experiment:03d}-fix")
    except AgentError as error:
        session.observer.warn(f"the fix does not make a valid recipe: {error}")
        return False
    words: dict[str, Any] = {
        "experiment": experiment,
        "fix": len(session.state.experiments[experiment].fixes) + 1,
        "subject": f"fix {done.diagnosis.crash_class}: {remedy.why}",
        "body": fix_body(done.diagnosis, key=done.key),
        "files": changed,
        "crash_class": done.diagnosis.crash_class,
        "why": remedy.why,
        "recipe_signature": recipe.signature(),
        "remedy": {"kind": remedy.kind, "values": remedy.values, "env": remedy.env, "why": remedy.why},
    }
    session.tell("experiment_fixed", **words)
    commit_pending_fixes(session, experiment)
    return True


def _fixed_text(session: Session, experiment: int, remedy: Remedy) -> str:
    """The experiment's recipe with the remedy's values; from the text of what it changes where its own is not valid."""
    path = session.recipe_path
    try:
        session.recipe_of(experiment)
        text = session.files_of(experiment)[path]
    except RecipeError:
        text = session.files_of(session.base_of(experiment))[path]
    return edit_text(text, remedy.values, where=path)


def commit_experiment(session: Session, number: int) -> None:
    """The idea's commit on its branch, and those of its fixes."""
    assert session.branches is not None
    experiment = session.state.experiments[number]
    planned = experiment.planned
    if planned is None:
        return
    if experiment.committed is None:
        sha = session.branches.commit_experiment(
            experiment.number,
            planned.slug,
            planned.files,
            subject=planned.subject,
            body=planned.body,
            trailers=planned.trailers,
            parent=planned.parent_commit,
        )
        branch = session.branches.experiment_branches()[experiment.number]
        session.tell("experiment_committed", experiment=experiment.number, branch=branch, commit=sha)
    commit_pending_fixes(session, experiment.number)


def commit_pending_fixes(session: Session, experiment: int) -> None:
    """Commit what the journal announces and git may not have; commits that are there are only looked up."""
    assert session.branches is not None
    known = session.state.experiments[experiment]
    for number, fix in sorted(known.fixes.items()):
        if fix.commit is None:
            commit = session.branches.commit_fix(experiment, fix.files, fix=number, subject=fix.subject, body=fix.body)
            session.tell("experiment_fixed", experiment=experiment, fix=number, commit=commit)


def _adopt(session: Session, remedy: Remedy, plan: Plan) -> None:
    """The probe ran: the shared layer is changed for all later runs."""
    words = {"values": remedy.values, "env": remedy.env, "why": remedy.why, "experiment": plan.experiment}
    session.tell("shared_layer_changed", **words, run=plan.key)
    session.observer.say(f"  shared layer changed for all later runs: {remedy.why}")


def _learn(session: Session, experiment: int, limit: Limit, done: Done) -> None:
    """A size at which memory ran out, for the planner; where that is sure, for later campaigns on this machine too."""
    assert done.diagnosis is not None
    if done.diagnosis.signature in ("known-limit", BY_ARITHMETIC):
        return
    told = [(one.key, one.relation, one.value) for one in session.state.constraints]
    if (limit.key, "<", limit.below) not in told:
        session.tell(
            "constraint_learned",
            key=limit.key,
            relation="<",
            value=limit.below,
            why=limit.why,
            experiment=experiment,
            context=limit.context,
        )
    sure = done.diagnosis.confidence >= SURE and done.took_the_memory
    if sure and not contradicted(limit, session.ran_well()):
        name = session.settings.campaign
        session.limits.learn(KnownLimit(limit, done.diagnosis.phase, done.free_gb, campaign=name))


def fix_body(diagnosis: Diagnosis, *, key: str) -> str:
    """For the commit: what died, the line that proves it, how sure that is, and what of the idea may have caused it."""
    place = f", line {diagnosis.line} of its log" if diagnosis.line is not None else ""
    lines = [
        diagnosis.reason,
        "",
        f"Evidence ({diagnosis.source}{place}): {diagnosis.evidence}",
        f"Class: {diagnosis.crash_class} ({diagnosis.signature}), confidence {diagnosis.confidence:.0%}",
    ]
    if diagnosis.suspects:
        lines.append(f"Of what this experiment changed: {', '.join(diagnosis.suspects)}")
    return "\n".join([*lines, f"Run: {key}"])
