"""Untrained, baseline and best on one split: what `status`, `watch`, `run` and its messages say they measured.

Ideas are searched on one split, confirmed on another and seen at the end on a third, and a recipe measures differently
on each by more than most ideas gain. So all three are of one split, the one that proves most by now: the holdout once
it is evaluated, confirm where something is kept, else search. What is not known on it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agent.campaign.direction import as_measured
from agent.contract import UNTRAINED
from agent.ledger.state import CampaignState
from agent.report.night import Estimate
from agent.report.snapshot import Arms


def on_one_split(state: CampaignState, best: int, *, minimize: bool) -> Arms:
    """`best`: the experiment that was kept last; 0 is the baseline."""
    return _on_holdout(state, best) or (_on_confirm(state, best, minimize=minimize) if best else _on_search(state))


def _on_search(state: CampaignState) -> Arms:
    told = state.calibration
    baseline = number_or_none(told.get("baseline"))
    return Arms("search", number_or_none(told.get(UNTRAINED)), baseline, baseline)


def _on_confirm(state: CampaignState, best: int, *, minimize: bool) -> Arms:
    """As its verdict measured them. The untrained model is never asked these prompts."""
    from agent.campaign.night_arms import over_baseline  # scipy comes with it; before a keep nobody needs it

    found = over_baseline(state, best).get("confirm")
    if found is None:
        judged = state.experiments[best].judged
        return Arms("confirm", best=number_or_none(judged.row.get("metric_value")) if judged else None)
    gain = Estimate(found.delta, *found.interval)
    baseline, best_of_all = (as_measured(mean, minimize=minimize) for mean in (found.incumbent, found.candidate))
    return Arms("confirm", baseline=baseline, best=best_of_all, gain=gain)


def _on_holdout(state: CampaignState, best: int) -> Arms | None:
    """None where it was not evaluated, or for another winner, or without one of those that are to be compared."""
    result = state.result
    told = result.get("holdout") if result.get("winner") == best else None
    if not isinstance(told, Mapping):
        return None
    untrained, baseline, winner = (_arm(told, name) for name in (UNTRAINED, "baseline", "winner"))
    if baseline is None or (best and winner is None):
        return None
    gain = told.get("winner - baseline") if best else None
    over = Estimate(gain["delta"], gain["low"], gain["high"]) if gain else None
    return Arms("holdout", untrained, baseline, winner if best else baseline, over)


def _arm(told: Mapping[str, Any], name: str) -> float | None:
    """With its sign, where the journal tells it."""
    return number_or_none(((told.get("arms") or {}).get(name) or {}).get("value", told.get(name)))


def number_or_none(value: Any) -> float | None:
    """A cell, or a number of the journal; None for what is none."""
    try:
        found = None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None
    return found if found is not None and math.isfinite(found) else None
