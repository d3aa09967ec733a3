"""The end of a campaign: the holdout once, what it says, and which checkpoints stay."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.campaign.comparison import Comparison, compare
from agent.campaign.delivered import on_select
from agent.campaign.direction import as_measured
from agent.campaign.done import Done
from agent.campaign.evidence import Evidence, arm_scores, estimate_of
from agent.campaign.health import unmeasured
from agent.campaign.jobs import Job
from agent.campaign.lab import CutShort
from agent.campaign.night_recipe import measuring_of
from agent.campaign.night_verdict import verdict_of
from agent.campaign.record import close_table
from agent.campaign.repair import refuse_what_every_run_meets
from agent.campaign.runs import Runner
from agent.campaign.session import Session, run_key
from agent.contract import CHECKPOINT, UNTRAINED
from agent.recipe.schema import Evaluation
from agent.report.words import duration

HOLDOUT_RUNS = 2
"""Checkpoints of the baseline, and of the winner, that are evaluated on the holdout."""


@dataclass(frozen=True)
class Ending:
    """What the night came to."""

    reason: str
    headline: str
    winner: int
    kept: tuple[int, ...]
    ideas: int
    checkpoint: str | None
    """Folder of the winner's best checkpoint, relative to the workspace."""
    holdout: dict[str, Any]
    training_share: float | None
    lines: tuple[str, ...]
    """The closing words, in order."""


def finish(session: Session, runner: Runner, evidence: Evidence[Done], *, reason: str) -> Ending:
    """Evaluate the holdout if it can be afforded, tidy up, and say what the night came to."""
    session.lockbox.check("before the holdout")
    winner = session.incumbent
    holdout: dict[str, Any] = {}
    try:
        holdout = _holdout(session, runner, evidence, winner)
    except CutShort as cut:
        if session.why_stop():
            raise  # a person's wish is a pause; the holdout waits for the resumption
        holdout = {"skipped": f"the holdout was not evaluated: {cut.reason}"}
    best = _best_run(_winner_runs(evidence, winner), session.evaluation)
    tidy_checkpoints(session, evidence, winner)
    close_table(session)
    ending = _tell(session, evidence, winner, best, holdout, reason)
    session.tell("campaign_finished", reason=reason, result=_plain(ending))
    return ending


def _winner_runs(evidence: Evidence[Done], winner: int) -> list[Done]:
    fresh = [*evidence.candidate(winner), *evidence.fresh_incumbent(winner)]
    return fresh if winner else evidence.baseline() or fresh


def _best_run(runs: Sequence[Done], evaluation: Evaluation) -> Done | None:
    """By the select split, which no verdict used."""
    known = [
        (on_select(run.summary.select_metric, evaluation), run)
        for run in runs
        if run.summary is not None and (run.record.out / CHECKPOINT).exists()
    ]
    return max(known, key=lambda pair: pair[0])[1] if known else None


# --- holdout -----------------------------------------------------------------------------------------------


def _holdout(session: Session, runner: Runner, evidence: Evidence[Done], winner: int) -> dict[str, Any]:
    """Untrained, baseline and winner on the prompts that nobody has seen; each checkpoint once."""
    arms: dict[str, list[Done]] = {UNTRAINED: [_evaluate(session, runner, 0, UNTRAINED, UNTRAINED, "untrained")]}
    baseline = [*evidence.baseline(), *evidence.fresh_incumbent(0)]
    arms["baseline"] = _checkpoints(session, runner, 0, baseline, "baseline")
    if winner:
        _warn_if_seen(session, winner)
        arms["winner"] = _checkpoints(session, runner, winner, _winner_runs(evidence, winner), "winner")
    why = {name: _why_not(runs) for name, runs in arms.items()}
    scores = {name: arm_scores(runs, "holdout") for name, runs in arms.items() if why[name] is None}
    minimize = session.evaluation.minimize
    told: dict[str, Any] = {
        name: as_measured(sum(run.mean for run in runs) / len(runs), minimize=minimize) for name, runs in scores.items()
    }
    told["arms"] = {
        name: estimate_of(runs, None if name == UNTRAINED else evidence.noise, minimize=minimize)
        for name, runs in scores.items()
    }
    missing = {name: words for name, words in why.items() if words is not None}
    if missing:
        told["not evaluated"] = missing
    told["prompts"] = max((len(run.ids) for runs in scores.values() for run in runs), default=0)
    pairs = [("baseline", UNTRAINED)] + ([("winner", "baseline")] if winner else [])
    for ours, theirs in pairs:
        if scores.get(ours) and scores.get(theirs):
            found = compare(scores[ours], scores[theirs], evidence.noise, untrained=theirs == UNTRAINED)
            told[f"{ours} - {theirs}"] = _interval(found)
    return told


def _warn_if_seen(session: Session, winner: int) -> None:
    """A campaign that had ended and was given more time has looked at the holdout already."""
    before = session.state.result.get("winner")
    looked = "skipped" not in (session.state.result.get("holdout") or {})
    if before and looked and before != winner:
        session.observer.warn(
            f"the holdout was looked at before, for #{before}: it decides nothing here, but whoever goes by it and "
            "gives the campaign more time again searches on it"
        )


def _interval(comparison: Comparison) -> dict[str, float]:
    low, high = comparison.interval
    return {"delta": comparison.delta, "low": low, "high": high}


def _checkpoints(session: Session, runner: Runner, experiment: int, runs: Sequence[Done], arm: str) -> list[Done]:
    """Evaluations of the first runs whose checkpoints are there."""
    usable = [run for run in runs if (run.record.out / CHECKPOINT).exists()][:HOLDOUT_RUNS]
    done: list[Done] = []
    for run in usable:
        try:
            done.append(_evaluate(session, runner, experiment, str(run.record.out / CHECKPOINT), run.key, arm))
        except CutShort:
            if not done or session.why_stop():
                raise
            break  # the time is over, and the arm has been measured
    return done


def _why_not(runs: list[Done]) -> str | None:
    """Why an arm has no measurement on the holdout, or None. Runs that failed are taken out where others did not."""
    failures = {run.key: unmeasured(run, "holdout") for run in runs}
    if any(why is None for why in failures.values()):
        runs[:] = [run for run in runs if failures[run.key] is None]
        return None
    return next((f"{key}: {why}" for key, why in failures.items()), "its checkpoints are gone")


def _evaluate(session: Session, runner: Runner, experiment: int, checkpoint: str, label: str, arm: str) -> Done:
    recipe = session.with_shared_layer(session.recipe_of(experiment))
    done = runner.run(
        Job(
            key=run_key(["holdout", arm, label]),
            what=f"holdout, {arm}",
            recipe=recipe,
            seed=recipe.seed,
            role="holdout",
            rung="holdout",
            arm=arm,
            splits=("holdout",),
            evaluate=checkpoint,
        )
    )
    refuse_what_every_run_meets(session, experiment, done, checkpoint=True)
    return done


# --- words -------------------------------------------------------------------------------------------------


def _tell(
    session: Session, evidence: Evidence[Done], winner: int, best: Done | None, holdout: dict[str, Any], reason: str
) -> Ending:
    state = session.state
    ideas = {number: one for number, one in state.experiments.items() if number > 0 and one.judged}
    kept = tuple(number for number in state.judged_order if number in ideas and ideas[number].outcome == "keep")
    share = training_share(session)
    checkpoint = None
    if best is not None:
        checkpoint = (best.record.out / CHECKPOINT).relative_to(session.workspace).as_posix()
    first = verdict_of(state, "finished", measuring_of(state), winner, holdout=holdout)
    counts = {name: sum(one.outcome == name for one in ideas.values()) for name in ("keep", "discard", "crash")}
    lines = [
        first,
        *(f"not on the holdout: {arm}, {why}" for arm, why in holdout.get("not evaluated", {}).items()),
        f"stopped: {reason}; {duration(session.clock.consumed_s)} used"
        + (f", {share:.0%} of it in training" if share is not None else ""),
        f"ideas {len(ideas)}: {counts['keep']} kept, {counts['discard']} discarded, {counts['crash']} crashed",
        *_kept_lines(session, kept),
    ]
    return Ending(reason, first, winner, kept, len(ideas), checkpoint, holdout, share, tuple(lines))


def _kept_lines(session: Session, kept: tuple[int, ...]) -> list[str]:
    lines = []
    for number in kept:
        experiment = session.state.experiments[number]
        if experiment.planned and experiment.judged:
            lines.append(f"kept #{number} {experiment.planned.subject}: {experiment.judged.reason}")
    return lines


def training_share(session: Session) -> float | None:
    """Seconds in training cycles / consumed seconds. A run that was paused counts them from its first start on."""
    consumed = session.clock.consumed_s
    if consumed <= 0:
        return None
    spent: dict[str, float] = {}
    for run in session.state.runs.values():
        if run.finished and run.finished.summary:
            folder = run.words.out if run.words else run.id
            spent[folder] = max(spent.get(folder, 0.0), float(run.finished.summary.get("train_s") or 0.0))
    return sum(spent.values()) / consumed


def _plain(ending: Ending) -> dict[str, Any]:
    return {
        "headline": ending.headline,
        "winner": ending.winner,
        "kept": list(ending.kept),
        "ideas": ending.ideas,
        "checkpoint": ending.checkpoint,
        "holdout": ending.holdout,
        "training_share": ending.training_share,
        "lines": list(ending.lines),
    }


# --- disk --------------------------------------------------------------------------------------------------


def tidy_checkpoints(session: Session, evidence: Evidence[Done], winner: int) -> None:
    """Remove the weights of runs that nobody needs any more; the incumbent's and the baseline's always stay."""
    needed = {run.key for run in [*evidence.baseline(), *_winner_runs(evidence, winner)]}
    needed |= {run.key for run in evidence.candidate(session.incumbent)}
    undecided = [one for one in session.state.experiments.values() if one.judged is None]
    needed |= {Path(run.words.out).name for one in undecided for run in one.runs if run.words}
    for run in session.state.runs.values():
        if run.finished is None or run.words is None:
            continue
        folder = session.workspace / run.words.out
        if folder.name not in needed and run.status == "finished":
            for name in (CHECKPOINT, "state"):
                shutil.rmtree(folder / name, ignore_errors=True)
