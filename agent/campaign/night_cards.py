"""Ideas in full for the report: what was kept, what crashed, what was nearly shown."""

from __future__ import annotations

from collections.abc import Sequence

from agent.campaign.diffs import diff_of_texts
from agent.campaign.recipes import texts_of
from agent.campaign.story import levels_by_idea, runs_by_key, tell
from agent.ledger.state import CampaignState, Experiment
from agent.report.night import Card, NearMiss

MOST_CARDS = 60
"""Of a night that is too long to be read whole; kept ideas first, then near-misses, then the last crashes."""
LONGEST_DIFF = 8000
"""Characters."""


def cards_of(state: CampaignState, near: Sequence[NearMiss]) -> tuple[Card, ...]:
    """By number."""
    kept = [number for number, one in state.experiments.items() if number and one.outcome == "keep"]
    crashed = [number for number, one in state.experiments.items() if number and one.outcome == "crash"]
    chosen = [*reversed(kept), *(one.number for one in near), *reversed(crashed)][:MOST_CARDS]
    known, levels = runs_by_key(state), levels_by_idea(state, set(chosen))
    return tuple(
        Card(tell(state, number, known=known, levels=levels), diff_of(state, number), _parts(state.experiments[number]))
        for number in sorted(set(chosen))
    )


def diff_of(state: CampaignState, number: int) -> str:
    """Of its recipe files against those that it changes, as `diff -u` writes it; from the journal's texts."""
    experiment = state.experiments[number]
    base = (experiment.planned.incumbent if experiment.planned else None) or 0
    text = diff_of_texts(texts_of(state, base), texts_of(state, number))
    if len(text) <= LONGEST_DIFF:
        return text
    return f"{text[:LONGEST_DIFF]}\n... cut: raft-agent show {number} --diff"


def _parts(experiment: Experiment) -> tuple[int, ...]:
    planned = (experiment.planned.model_extra or {}) if experiment.planned else {}
    return tuple(int(part) for part in planned.get("together") or ())
