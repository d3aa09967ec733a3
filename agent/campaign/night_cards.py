"""Ideas in full for the report: what was kept, what crashed, what was nearly shown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

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
    before, after = files_of(state, base), files_of(state, number)
    lines: list[str] = []
    for path in sorted(after):
        if before.get(path) != after[path]:
            old, new = before.get(path, "").splitlines(), after[path].splitlines()
            lines += difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", lineterm="")
    text = "\n".join(lines)
    if len(text) <= LONGEST_DIFF:
        return text
    return f"{text[:LONGEST_DIFF]}\n... cut: raft-agent show {number} --diff"


def files_of(state: CampaignState, number: int) -> dict[str, str]:
    """Path -> text as the idea's branch holds them; 0 is the baseline."""
    started = state.started
    files = dict(started.files or {started.recipe_path: started.recipe}) if started else {}
    for one in dict.fromkeys((0, number)):
        known = state.experiments.get(one)
        if known is not None:
            files.update(known.files)
    return files


def _parts(experiment: Experiment) -> tuple[int, ...]:
    planned = (experiment.planned.model_extra or {}) if experiment.planned else {}
    return tuple(int(part) for part in planned.get("together") or ())
