"""Train an idea, and when it breaks: triage, one sensible fix, again; a few times at most.

A fix of the idea is a commit on its branch. A fix of the shared layer (attention, environment) goes to all
later runs, after a run with it has shown that it helps. What a crash teaches is told to the planner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.campaign.runs import Done, Job, Runner
from agent.campaign.session import Session, run_key
from agent.contract import Split
from agent.errors import AgentError, RecipeError, TrainingFailed
from agent.ledger.messages import slug_of
from agent.recipe.change import describe_moves
from agent.recipe.files import REMOVE, edit_text, get_key, with_keys
from agent.recipe.schema import Recipe
from agent.run.remedies import Remedy, propose_remedy
from agent.run.telemetry import RunRecord
from agent.run.triage import Diagnosis, diagnosis_of_error

MAX_ATTEMPTS = 4


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
) -> Done:
    """Run the experiment's recipe with a seed, repairing what can be repaired. The last run comes back, good or bad."""
    tried: list[Remedy] = []
    pending_shared: Remedy | None = None
    for attempt in range(MAX_ATTEMPTS):
        fixes = len(session.state.experiments[experiment].fixes) if experiment in session.state.experiments else 0
        label = "" if attempt == 0 and fixes == 0 else f"f{fixes}" + (f"r{attempt}" if attempt > fixes else "")
        done = _one_run(
            session, runner, pending_shared,
            Plan(experiment, run_key([key, f"s{seed}", label]), what, seed, role, rung, splits, arm),
        )  # fmt: skip
        if done.ok:
            if pending_shared is not None:
                _adopt(session, pending_shared, experiment)
            return done
        assert done.diagnosis is not None
        _stop_if_hopeless(done.diagnosis, done)
        remedy = _remedy_for(session, experiment, done.diagnosis, tried)
        if remedy is None or attempt == MAX_ATTEMPTS - 1:
            return done
        tried.append(remedy)
        session.observer.say(f"  {done.diagnosis.crash_class}: {done.diagnosis.reason}; {remedy.why}")
        pending_shared = remedy if remedy.scope == "campaign" else None
        is_fix = remedy.scope == "experiment" and bool(remedy.values)
        if is_fix and not _commit_fix(session, experiment, done.diagnosis, remedy):
            return done
        _learn(session, experiment, remedy)
    return done


class Plan:
    """The words of one run, without its recipe."""

    def __init__(
        self,
        experiment: int,
        key: str,
        what: str,
        seed: int,
        role: str,
        rung: str,
        splits: tuple[Split, ...],
        arm: str | None,
    ):
        self.experiment, self.key, self.what, self.seed = experiment, key, what, seed
        self.role, self.rung, self.splits, self.arm = role, rung, splits, arm


def _one_run(session: Session, runner: Runner, shared: Remedy | None, plan: Plan) -> Done:
    try:
        recipe = session.with_shared_layer(session.recipe_of(plan.experiment))
        if shared is not None:
            recipe = with_keys(recipe, shared.values)
    except RecipeError as error:
        return _unreadable(plan.key, error, session)
    env: Mapping[str, str] = shared.env if shared is not None else {}
    if env:
        recipe = with_keys(recipe, {"backend.env": {**recipe.backend.env, **env}})
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
    )
    return runner.run(job)


def _unreadable(key: str, error: RecipeError, session: Session) -> Done:
    """A recipe that does not validate never starts; that is a crash of the class typo all the same."""
    out = session.runs_folder / key
    record = RunRecord(out, None, [], [], None, None, None, str(error), ())
    session.observer.ended(f"did not start: {error}")
    return Done(key, record, None, diagnosis_of_error(error))


def _remedy_for(session: Session, experiment: int, diagnosis: Diagnosis, tried: list[Remedy]) -> Remedy | None:
    parent = session.recipe_of(session.incumbent if experiment else 0)
    try:
        recipe = session.recipe_of(experiment)
    except RecipeError:
        recipe = parent
    return propose_remedy(diagnosis, recipe=recipe, parent=parent, history=tried)


def _stop_if_hopeless(diagnosis: Diagnosis, done: Done) -> None:
    if diagnosis.crash_class in ("data", "resource") and diagnosis.stops_campaign:
        failure = done.record.failure
        raise StopCampaign(
            f"{diagnosis.crash_class}: {diagnosis.reason}",
            where=failure.where if failure else done.key,
            hint=failure.hint if failure else None,
        )


def _commit_fix(session: Session, experiment: int, diagnosis: Diagnosis, remedy: Remedy) -> bool:
    """Write the remedy into the recipe on the experiment's branch. False where the text cannot be edited so."""
    assert session.branches is not None
    files = session.files_of(experiment)
    path = session.recipe_path
    try:
        text = edit_text(files[path], {k: REMOVE if v is None and _unknown(k) else v for k, v in remedy.values.items()})
        recipe: Recipe | None = session.recipe_from({**files, path: text}, label=f"{experiment:03d}-fix")
    except AgentError as error:
        session.observer.warn(f"the fix does not make a valid recipe: {error}")
        return False
    number = len(session.state.experiments[experiment].fixes) + 1
    moves = {k: (_old(session, experiment, k), v) for k, v in remedy.values.items()}
    subject = f"fix {diagnosis.crash_class}: {describe_moves(moves)}"
    words: dict[str, Any] = {
        "experiment": experiment,
        "fix": number,
        "subject": subject,
        "body": f"{diagnosis.reason}\n\n{remedy.why}",
        "files": {path: text},
        "crash_class": diagnosis.crash_class,
        "why": remedy.why,
        "recipe_signature": recipe.signature() if recipe else None,
    }
    session.tell("experiment_fixed", **words)
    commit_pending_fixes(session, experiment)
    return True


def commit_pending_fixes(session: Session, experiment: int) -> None:
    """Commit what the journal announces and git may not have; commits that are there are only looked up."""
    assert session.branches is not None
    known = session.state.experiments[experiment]
    for number, fix in sorted(known.fixes.items()):
        if fix.commit is None:
            commit = session.branches.commit_fix(experiment, fix.files, fix=number, subject=fix.subject, body=fix.body)
            session.tell("experiment_fixed", experiment=experiment, fix=number, commit=commit)


def _unknown(key: str) -> bool:
    from agent.recipe.files import field_at

    return field_at(key) is None


def _old(session: Session, experiment: int, key: str) -> Any:
    try:
        return get_key(session.recipe_of(experiment), key)
    except (RecipeError, KeyError):
        return None


def _adopt(session: Session, remedy: Remedy, experiment: int) -> None:
    """The probe ran: the shared layer is changed for all later runs."""
    session.tell("shared_layer_changed", values=remedy.values, env=remedy.env, why=remedy.why, experiment=experiment)
    session.observer.say(f"  shared layer changed for all later runs: {remedy.why}")


def _learn(session: Session, experiment: int, remedy: Remedy) -> None:
    for limit in remedy.limits:
        session.tell(
            "constraint_learned",
            key=limit.key,
            relation=limit.relation,
            value=limit.value,
            why=limit.why,
            experiment=experiment,
        )


def branch_slug(hypothesis: str, variant: str) -> str:
    return slug_of(f"{hypothesis}-{variant}" if variant and variant != hypothesis else hypothesis)
