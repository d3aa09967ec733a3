"""The campaign: baseline, ideas until a stop rule is met, holdout, words.

Reads as a list of verbs. It can be killed at any line and started again: every step looks into the journal
first, runs happen once, commits and rows are idempotent.
"""

from __future__ import annotations

import contextlib

from agent.campaign import choose
from agent.campaign.budget import reserve_seconds
from agent.campaign.calibration import Calibration, calibrate
from agent.campaign.evidence import Evidence, gather
from agent.campaign.experiment import attempt, commit, title
from agent.campaign.finish import Ending, finish, tidy_checkpoints
from agent.campaign.record import baseline_judgement, judge, record, restore_rows
from agent.campaign.runs import CutShort, Runner
from agent.campaign.session import Session
from agent.campaign.settings import parse_target
from agent.errors import AgentError
from agent.report.words import duration

CRASHES_IN_A_ROW = 4
"""After this many crashed ideas in a row something is wrong with the machine, not with the ideas."""


class Paused(AgentError):
    """A person stopped the campaign; it can be resumed."""

    exit_code = 130


def run_campaign(session: Session, runner: Runner) -> Ending:
    """Go on from wherever the journal stands to the end of the campaign.

    Raises Paused where a person stopped it, BudgetError, TrainingFailed, and AgentErrors that no idea can mend.
    """
    with contextlib.closing(runner):
        return _from_baseline_to_holdout(session, runner)


def _from_baseline_to_holdout(session: Session, runner: Runner) -> Ending:
    evidence = Evidence(session.recipe_of(0).evaluation)
    session.observer.board(session.board())
    try:
        plan_baseline(session)
        gather(session, runner, evidence)
        settle(session)
        record_baseline(session, calibrate(session, runner, evidence))
        reason = search(session, runner, evidence)
    except CutShort as cut:
        pause_if_asked(session, cut.reason)
        reason = cut.reason
    except AgentError as broken:
        session.tell("campaign_paused", reason=broken.message)
        raise
    if not session.state.experiments.get(0) or session.state.experiments[0].judged is None:
        session.tell("campaign_paused", reason=reason)
        raise Paused(f"stopped before the baseline was measured: {reason}", hint="raft-agent resume goes on with it")
    try:
        return finish(session, runner, evidence, reason=reason)
    except CutShort as cut:
        pause_if_asked(session, cut.reason)
        raise


def pause_if_asked(session: Session, reason: str) -> None:
    if session.stop_request():
        session.tell("campaign_paused", reason=reason)
        raise Paused(f"paused: {reason}", hint="raft-agent resume goes on where it stopped")


def plan_baseline(session: Session) -> None:
    """The baseline is experiment 0: the null change, a row like any other."""
    if 0 not in session.state.experiments or session.state.experiments[0].planned is None:
        session.tell(
            "experiment_planned",
            experiment=0,
            hypothesis="baseline",
            axis="baseline",
            slug="baseline",
            subject="baseline",
            files={},
            recipe_signature=session.recipe_of(0).signature(),
        )
    commit(session, session.state.experiments[0])


def settle(session: Session) -> None:
    """Write down what an earlier session judged and did not record, and what the table has lost since."""
    for number in list(session.state.judged_order):
        if session.state.experiments[number].recorded is None:
            record(session, number)
    restore_rows(session)


def record_baseline(session: Session, calibration: Calibration) -> None:
    if session.state.experiments[0].judged is None:
        evaluation = session.recipe_of(0).evaluation
        assert calibration.gain is not None
        judge(session, 0, baseline_judgement(list(calibration.runs), evaluation, calibration.gain))
    record(session, 0)


def search(session: Session, runner: Runner, evidence: Evidence) -> str:
    """Try ideas until a stop rule is met; returns the rule in words."""
    while True:
        number = open_experiment(session)
        if number is None:
            reason = why_stop(session)
            if reason is not None:
                return reason
            number, reason = next_idea(session, evidence)
            if number is None:
                return reason
        session.observer.say(f"idea {title(session.state.experiments[number])}")
        judge(session, number, attempt(session, runner, evidence, number))
        record(session, number)
        tidy_checkpoints(session, evidence, session.incumbent)
        report(session, number)


def open_experiment(session: Session) -> int | None:
    """An idea that was planned and has no outcome yet."""
    for number, experiment in sorted(session.state.experiments.items()):
        if number > 0 and experiment.planned and experiment.judged is None:
            return number
    return None


def next_idea(session: Session, evidence: Evidence) -> tuple[int | None, str]:
    ranking = choose.rank(session, evidence)
    proposal, why = ranking.best()
    if proposal is None:
        return None, f"the playbook is exhausted: {why}"
    session.observer.say(choose.explain(ranking))
    return choose.announce(session, proposal), ""


def why_stop(session: Session) -> str | None:
    """The stop rule that is met, in words, or None."""
    asked = session.stop_request()
    if asked:
        raise CutShort(asked)
    settings, state = session.settings, session.state
    judged = [state.experiments[number] for number in state.judged_order if number > 0]
    if settings.max_experiments is not None and len(judged) >= settings.max_experiments:
        return f"--max-experiments {settings.max_experiments} reached"
    if _target_reached(session):
        return f"--target {settings.target} reached"
    if len(judged) >= CRASHES_IN_A_ROW and all(one.outcome == "crash" for one in judged[-CRASHES_IN_A_ROW:]):
        return f"{CRASHES_IN_A_ROW} ideas in a row crashed: something is wrong with the machine or the recipe"
    cost = session.cost(session.recipe_of(session.incumbent))
    reserve = reserve_seconds(cost)
    if not session.clock.affords(cost.total_s, reserve_s=reserve):
        return (
            f"the next idea would need {duration(cost.total_s)} and {duration(reserve)} are held back, "
            f"{duration(session.clock.left_s)} are left"
        )
    return None


def _target_reached(session: Session) -> bool:
    """By the confirmed metric of the incumbent; a lucky search run does not count."""
    if session.settings.target is None:
        return False
    target = parse_target(session.settings.target, metric=session.recipe_of(0).evaluation.metric)
    metric = session.board().best
    return metric is not None and target.reached(metric)


def report(session: Session, number: int) -> None:
    """After each idea: the outcome, and in words whether a stop rule is met and what remains."""
    judged = session.state.experiments[number].judged
    if judged is None:
        return
    session.observer.say(f"{judged.outcome} #{number}: {judged.reason}")
    try:
        reason = why_stop(session)
    except CutShort as cut:
        reason = cut.reason
    rest = f"stop rule met: {reason}" if reason else f"no stop rule is met, {duration(session.clock.left_s)} left"
    session.observer.say(f"  {rest}")
