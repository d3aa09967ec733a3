"""What a line of the journal says to somebody who follows a campaign in lines: a line, or nothing."""

from __future__ import annotations

from agent.campaign.now import what_runs
from agent.ledger.events import (
    Calibrated,
    CampaignFinished,
    CampaignPaused,
    CampaignResumed,
    CampaignStarted,
    Event,
    ExperimentFixed,
    ExperimentJudged,
    RunFinished,
    RunPlanned,
    SharedLayerChanged,
)
from agent.ledger.journal import CampaignState
from agent.report.numbers import Numbers
from agent.report.words import duration
from agent.text import one_line


def news(event: Event, state: CampaignState) -> str | None:
    """In words; None for what only the machinery needs. `state` is what the journal adds up to by now."""
    match event:
        case CampaignStarted():
            budget = f", {duration(event.budget_s)}" if event.budget_s else ""
            words = f"campaign {event.campaign}: {event.recipe_path}{budget}"
        case CampaignResumed():
            words = "the campaign goes on"
        case CampaignPaused():
            words = f"paused: {event.reason}"
        case CampaignFinished():
            words = f"finished: {event.reason}; {event.result.get('headline') or 'no headline'}"
        case Calibrated():
            numbers = Numbers(str(event.values.get("metric")))
            untrained, baseline = (numbers.value(event.values.get(name)) for name in ("untrained", "baseline"))
            words = f"on search: untrained {untrained} -> baseline {baseline}"
        case RunPlanned():
            run = state.runs.get(event.run)
            words = f"run {event.run}: {what_runs(state, run)}, seed {event.seed}" if run else f"run {event.run}"
        case RunFinished():
            words = f"  {event.run} {_ended(event)}"
        case ExperimentFixed() if event.commit is None:
            words = f"fix of #{event.experiment}: {event.subject}"
        case ExperimentJudged():
            words = f"{event.outcome} #{event.experiment}: {event.reason}"
        case SharedLayerChanged():
            words = f"for all further runs: {event.why}"
        case _:
            return None
    return f"  {one_line(words)}" if words.startswith("  ") else one_line(words)


def _ended(event: RunFinished) -> str:
    took = f" after {duration(event.elapsed_s)}" if event.elapsed_s is not None else ""
    summary = event.summary or {}
    metrics = summary.get("metrics") or {}
    if metrics:
        numbers = Numbers(str(summary.get("metric")))
        measured = ", ".join(f"{split} {numbers.value(value)}" for split, value in metrics.items())
        return f"measured {measured}{took}"
    return f"ended{took}" + (f": {event.reason}" if event.reason else "")
