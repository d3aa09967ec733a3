"""Write an outcome where it lasts: journal first, then git note and record on `best`, then the row in results.tsv."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping
from typing import Any

from agent.campaign.direction import as_measured, ends_as_measured
from agent.campaign.done import Done
from agent.campaign.lockbox import VERDICT
from agent.campaign.rules import Rules
from agent.campaign.session import Session
from agent.campaign.verdict import Judgement
from agent.errors import InvalidFile, ResourceError
from agent.files import remove_leftovers
from agent.ledger.journal import Experiment
from agent.ledger.messages import outcome_note
from agent.ledger.table import read_rows, rebuild
from agent.plan.memory import Moves
from agent.recipe.change import describe_moves


def judge(
    session: Session,
    number: int,
    judgement: Judgement,
    *,
    rules: Rules,
    told: Mapping[str, Any] | None = None,
) -> None:
    """Journal the verdict with the row and the note that it leads to. `told`: further numbers, for people."""
    verdict = judgement.verdict
    experiment = session.state.experiments[number]
    session.lockbox.check(f"when #{number} was judged")
    if verdict.outcome == "keep":
        runs = [judgement.search, *judgement.confirming, *judgement.beside]
        session.lockbox.allow_keep(number, [session.runs_folder / run.key for run in runs])
    row = row_of(session, experiment, judgement)
    watches = {f"watch {report.watch}": report.text for report in judgement.watches}
    shown = {"kind": verdict.kind, "change": row["change"], **_numbers_in_words(row), **watches}
    diagnosis = _search_of(judgement).diagnosis
    evaluation = session.evaluation
    measured_by = {
        "metric": evaluation.metric,
        "direction": evaluation.direction,
        "min_effect": evaluation.min_effect,
        "filter_level": rules.filter_alpha,
        "hold_p": rules.hold_p,
        "alpha": rules.alpha,
    }
    session.tell(
        "experiment_judged",
        experiment=number,
        outcome=verdict.outcome,
        reason=verdict.reason,
        numbers={
            "delta": row["delta"],
            "metric_value": row["metric_value"],
            **evidence_of(judgement),
            "measured_by": measured_by,
            **(told or {}),
        },
        crash_class=diagnosis.crash_class if diagnosis and verdict.outcome == "crash" else None,
        note=outcome_note(verdict.outcome, verdict.reason, shown),
        row=row,
        before=session.seal.so_far(),
    )


def record(session: Session, number: int) -> None:
    """Do what the journal says was judged; everything here may be done again."""
    assert session.branches is not None
    experiment = session.state.experiments[number]
    judged, planned = experiment.judged, experiment.planned
    if judged is None or experiment.recorded is not None:
        return
    _warn_of_a_checkout(session)
    # the baseline changes the tree only where it had to be fixed
    text = experiment.files.get(session.recipe_path) if judged.outcome == "keep" else None
    commits = session.branches.push_outcome(
        number,
        outcome=judged.outcome,
        note=judged.note or outcome_note(judged.outcome, judged.reason),
        subject=f"{judged.outcome} #{number}: {planned.subject if planned else 'baseline'}",
        files={session.recipe_path: text} if text is not None else None,
        body=judged.reason,
        trailers={**(planned.trailers if planned else {}), VERDICT: session.seal.verdicts().get(number)},
    )
    bring_rows_in(session, number)
    session.tell("experiment_recorded", experiment=number, commit=commits.record, best=session.estimate)
    session.observer.recorded(judged.row)
    session.observer.board(session.board())


def _warn_of_a_checkout(session: Session) -> None:
    """Once. A night is not given up because somebody has looked at it, and their files are never touched."""
    assert session.branches is not None
    tree, before = session.repository.checked_out(session.branches.best_ref), session.stood_on
    session.stood_on = tree
    if tree is not None and tree != before:
        session.observer.warn(
            f"{session.branches.best_branch} is checked out in {tree}, and the campaign moves it: to git the files "
            f"there will look changed (git switch --detach {session.branches.best_branch} stays on its commit)"
        )


def bring_rows_in(session: Session, new: int | None = None) -> bool:
    """Bring the row of `new`, and rows that results.tsv has lost, into it; rows that are there stay as they are.

    A table that cannot be written (somebody made a folder of it, or changed its header, or closed it) ends no campaign:
    the journal has every row. It is said once, tried again with every row and at the end, and then all rows come in.
    """
    name = session.table.name
    try:
        if new is None:
            remove_leftovers(session.table)  # of a kill
            _warn_of_other_outcomes(session)
        missing = _missing_rows(session, besides=new)
        judged = session.state.experiments[new].judged if new is not None else None
        rebuild(session.table, [*missing, *([judged.row] if judged else [])])
    except (InvalidFile, ResourceError, OSError) as error:
        words = f"{name} cannot be written, the campaign goes on without it ({error})"
        if session.table_trouble != words:
            session.observer.warn(words)
        session.table_trouble = words
        return False
    if session.table_trouble:
        session.observer.say(f"{name} can be written again")
    elif missing:
        session.observer.warn(f"{name} lacked {len(missing)} rows of this campaign; they are back")
    session.table_trouble = None
    return True


def _warn_of_other_outcomes(session: Session) -> None:
    """The table is the user's to edit, and the journal is the truth."""
    told = {(row["campaign"], row["index"]): row["status"] for row in read_rows(session.table)}
    for row in session.state.rows():
        said = told.get((row["campaign"], str(row["index"])))
        if said not in (None, row["status"]):
            session.observer.warn(
                f"{session.table.name} says {said} of #{row['index']}, the journal says {row['status']}, which holds"
            )


def _missing_rows(session: Session, *, besides: int | None) -> list[dict[str, Any]]:
    present = {(row["campaign"], row["index"]) for row in read_rows(session.table)}
    experiments = [session.state.experiments[number] for number in session.state.judged_order if number != besides]
    rows = [one.judged.row for one in experiments if one.judged and one.recorded]
    return [row for row in rows if (row["campaign"], str(row["index"])) not in present]


def close_table(session: Session) -> None:
    """At the end: all rows are in results.tsv, or else in a file of their own beside the journal."""
    if bring_rows_in(session):
        return
    beside = session.folder / session.table.name
    try:
        rebuild(beside, session.state.rows())
    except (InvalidFile, ResourceError, OSError) as error:
        session.observer.warn(f"nor can {beside} be written ({error}); the journal has every row")
        return
    where = beside.relative_to(session.workspace)
    session.observer.warn(f"the rows of this campaign are in {where} instead: add them to {session.table.name} by hand")


def row_of(session: Session, experiment: Experiment, judgement: Judgement) -> dict[str, Any]:
    """The cells of results.tsv; what is not known is None."""
    verdict, planned = judgement.verdict, experiment.planned
    comparison = verdict.basis
    evaluation = session.recipe_of(0).evaluation
    minimize = evaluation.minimize
    low, high = ends_as_measured(*comparison.interval, minimize=minimize) if comparison else (None, None)
    moves = _moves(session, experiment, kept=verdict.outcome == "keep")
    search = _search_of(judgement)
    runs = [run for run in judgement.confirming if isinstance(run, Done)] or [search]
    base = _common(session, experiment, runs)
    return base | {
        "metric_name": evaluation.metric,
        "metric_value": as_measured(comparison.candidate, minimize=minimize) if comparison else None,
        "status": verdict.outcome,
        "description": planned.subject if planned else "baseline",
        "hypothesis": planned.hypothesis if planned else None,
        "symptom": planned.symptom if planned else None,
        "change": describe_moves(moves) or None,
        "incumbent_value": as_measured(comparison.incumbent, minimize=minimize) if comparison else None,
        "delta": as_measured(comparison.delta, minimize=minimize) if comparison else None,
        "ci_low": low,
        "ci_high": high,
        "crash_class": search.diagnosis.crash_class if search.diagnosis else None,
        "fixes": fixes_of(experiment) or None,
        "reason": verdict.reason,
    }


def _moves(session: Session, experiment: Experiment, *, kept: bool) -> Moves:
    """What it changes; where it was built on an unconfirmed lead and is kept, all that it changes in the incumbent."""
    planned = experiment.planned
    if planned is None:
        return {}
    if kept and experiment.number and session.base_of(experiment.number) != session.incumbent:
        return session.moves_between(session.incumbent, experiment.number)
    return {key: (move[0], move[1]) for key, move in planned.changes.items()}


def _search_of(judgement: Judgement) -> Done:
    """The run that was filtered, as the campaign's own runner executed it."""
    assert isinstance(judgement.search, Done)
    return judgement.search


def evidence_of(judgement: Judgement) -> dict[str, Any]:
    """What the verdict rests on, for `raft-agent show` and for the level of the next test."""
    verdict = judgement.verdict
    return {
        "kind": verdict.kind,
        "level": judgement.used.level if judgement.used else None,
        "looks": list(judgement.looks),
        "flags": list(judgement.flags),
        "guards": dict(verdict.guards),
        "guard_readings": list(judgement.guards),
        "watches": list(judgement.watches),
        "search": judgement.on_search,
        "basis": verdict.basis,
        "comparator": judgement.on_comparator,
        "p_value": verdict.basis.p_value if verdict.basis else None,
        "runs": {
            "search": [judgement.search.key],
            "candidate": [run.key for run in judgement.confirming],
            "incumbent": [run.key for run in judgement.beside],
        },
    }


def _common(session: Session, experiment: Experiment, runs: list[Done]) -> dict[str, Any]:
    planned, committed = experiment.planned, experiment.committed
    own = [run.finished for run in experiment.attempt if run.finished]
    started = [run.words.time for run in experiment.attempt if run.words]
    out = session.runs_folder / runs[0].key
    return {
        "index": experiment.number,
        "branch": committed.branch if committed else (session.branches.best_branch if session.branches else None),
        "parent_commit": planned.parent_commit if planned else None,
        "commit": experiment.commit,
        "recipe": session.recipe_path,
        "memory_gb": _largest(runs, "peak_memory_gb"),
        "elapsed_min": sum(event.elapsed_s or 0.0 for event in own) / 60 if own else None,
        "launcher": "local",
        "command": _command(out.relative_to(session.workspace).as_posix(), runs[0]),
        "log_path": (out / "log.txt").relative_to(session.workspace).as_posix(),
        "campaign": session.settings.campaign,
        "seeds": len(runs),
        "tokens_per_s": _median(runs, "tokens_per_s"),
        "started_at": _moment(min(started)) if started else None,
    }


def _command(out: str, run: Done) -> str | None:
    """What trained the row's first run, as it can be run again from the workspace with another --out."""
    if run.summary is None:
        return None
    return f"python -m agent.raft.worker --recipe {out}/recipe.yaml --out {out} --seed {run.summary.seed}"


def _moment(unix_seconds: float) -> str:
    return datetime.datetime.fromtimestamp(unix_seconds).astimezone().isoformat(timespec="seconds")


def _largest(runs: list[Done], name: str) -> float | None:
    known = [value for run in runs if run.summary for value in [getattr(run.summary, name)] if value is not None]
    return max(known) if known else None


def _median(runs: list[Done], name: str) -> float | None:
    known = [value for run in runs if run.summary for value in [getattr(run.summary, name)] if value is not None]
    return statistics.median(known) if known else None


def _numbers_in_words(row: dict[str, Any]) -> dict[str, Any]:
    names = ("metric_name", "metric_value", "incumbent_value", "delta", "ci_low", "ci_high", "seeds", "tokens_per_s")
    return {name: row.get(name) for name in (*names, "memory_gb", "elapsed_min", "fixes")}


def fixes_of(experiment: Experiment) -> str:
    """The fixes in words, for the table."""
    return "; ".join(fix.subject for _, fix in sorted(experiment.fixes.items()) if fix.subject)
