"""The campaign: baseline, ideas until a stop rule is met, holdout, words.

Reads as a list of verbs. It can be killed at any line and started again: every step looks into the journal
first, runs happen once, commits and rows are idempotent. The search itself knows the world only as a `Lab`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from agent.campaign.finish import Ending, finish
from agent.campaign.lab import CutShort
from agent.campaign.observer import Closing
from agent.campaign.pausing import take_back
from agent.campaign.search import spend_the_night
from agent.campaign.session import Session
from agent.campaign.workbench import Workbench
from agent.errors import AgentError
from agent.ledger.disk import disk_errors
from agent.report.arms import arms_fields
from agent.run.ending import AtOnce


class Paused(AgentError):
    """A person stopped the campaign; it can be resumed."""

    exit_code = 130
    label = ""  # it is what was asked for


class NoBaseline(Paused):
    """The time was up before there was anything to compare with."""

    label = AgentError.label


def run_campaign(bench: Workbench) -> Ending:
    """Go on from wherever the journal stands to the end of the campaign.

    Raises Paused where a person stopped it, BudgetError, TrainingFailed, and AgentErrors that no idea can mend.
    """
    session = bench.session
    with contextlib.closing(bench):
        try:
            with disk_errors(session.folder):
                ending = _from_baseline_to_holdout(bench)
        except Paused as paused:
            take_back(session.folder)
            session.observer.closing(Closing("paused", paused.message, _numbers(session)))
            raise
        except AgentError as broken:
            session.tell_if_possible("campaign_paused", reason=broken.message, error=type(broken).__name__)
            session.observer.closing(Closing("failed", broken.message, _numbers(session)))
            raise
        except AtOnce as asked:
            session.tell_if_possible("campaign_paused", reason=asked.reason, at_once=True)
            session.observer.closing(Closing("paused", asked.reason, _numbers(session)))
            raise
        except Exception as mistake:
            session.observer.closing(Closing("failed", f"{type(mistake).__name__}: {mistake}"))
            raise
        take_back(session.folder)
        session.observer.closing(Closing("finished", ending.headline, _numbers(session)))
        return ending


def _from_baseline_to_holdout(bench: Workbench) -> Ending:
    session, evidence = bench.session, bench.evidence
    session.observer.board(session.board())
    try:
        bench.plan_baseline()
        bench.gather()
        bench.settle()
        reason = spend_the_night(bench, evidence)
    except CutShort as cut:
        _pause_if_asked(bench, cut.reason)
        reason = cut.reason
    if not bench.has_baseline():
        session.tell("campaign_paused", reason=reason)
        raise NoBaseline(
            f"stopped before the baseline was measured: {reason}", hint="raft-agent resume goes on with it"
        )
    bench.rank_anew()
    bench.calibrate_better()
    try:
        return finish(session, bench.runner, evidence, reason=reason)
    except CutShort as cut:
        _pause_if_asked(bench, cut.reason)
        raise
    except AgentError as broken:
        session.tell("campaign_paused", reason=broken.message)
        raise


def _numbers(session: Session) -> dict[str, Any]:
    """For programs; nothing where the journal cannot be read, which may be why it ends."""
    try:
        board = session.board()
    except (AgentError, OSError):
        return {}
    told = {name: getattr(board, name) for name in ("metric", "ideas", "kept", "consumed_s")}
    left_s = board.snapshot.left_s if board.snapshot else None
    return {**told, "left_s": left_s, **arms_fields(board.arms)}


def _pause_if_asked(bench: Workbench, reason: str) -> None:
    if bench.stop_request():
        bench.session.tell("campaign_paused", reason=reason)
        raise Paused(f"paused: {reason}", hint="raft-agent resume goes on where it stopped")
