"""The first sentence of a night, the same in the closing words of `run`, the report, `status` and messages.

Whether anything improved and whether it is real; else, with the first words, that nothing did, and what was ruled out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from agent.campaign.headline import (
    NONE,
    holdout_words,
    kept_in,
    limit_words,
    only_crashes,
    ruled_out_words,
    span,
)
from agent.campaign.night_arms import gains_of, holdout_of, holdout_seen_for
from agent.campaign.night_recipe import Measuring
from agent.campaign.night_steps import bounds_by_axis, bounds_by_idea
from agent.ledger.state import CampaignState
from agent.report.night import Gain, Standing
from agent.report.numbers import Numbers
from agent.report.words import duration

NOT_YET = "the holdout is not evaluated yet"


def verdict_of(
    state: CampaignState,
    standing: Standing,
    measuring: Measuring,
    winner: int,
    *,
    holdout: Mapping[str, Any] | None = None,
) -> str:
    """`holdout`: what it said, where the journal does not say it yet."""
    if state.started is None and not state.experiments:
        return "nothing has run yet"
    if not _has_baseline(state):
        return _without_baseline(state, standing)
    if holdout is None:
        holdout = holdout_of(state, winner)
    numbers = Numbers(measuring.metric)
    if any(one.outcome == "keep" for number, one in state.experiments.items() if number > 0):
        return _with_a_keep(state, standing, winner, holdout, numbers)
    over = standing == "finished"
    nothing, limit = _without_a_keep(state, measuring, numbers)
    # a campaign that goes on after its end has looked at the holdout, though it runs
    told = over or holdout_seen_for(state) is not None
    seen = holdout_words(holdout, winner=0, kept=kept_in(state), numbers=numbers) if told else ""
    return "; ".join(filter(None, (nothing, seen, "" if over else _so_far(state, standing), limit)))


def _has_baseline(state: CampaignState) -> bool:
    baseline = state.experiments.get(0)
    return baseline is not None and baseline.judged is not None


def _without_baseline(state: CampaignState, standing: Standing) -> str:
    words = "the baseline is not measured yet"
    if standing == "running":
        return f"{words}; running"
    reason = f": {state.stop_reason}" if state.stop_reason else ""
    return f"{words}; {standing}{reason}"


def _with_a_keep(
    state: CampaignState, standing: Standing, winner: int, holdout: Mapping[str, Any], numbers: Numbers
) -> str:
    kept = kept_in(state)
    words = kept.words
    gain = next((one for one in gains_of(state, winner) if one.of == "winner" and one.split == "confirm"), None)
    if gain is not None:
        words += f", {_gain(gain, numbers)} on fresh prompts"
    over = standing == "finished"
    seen_for = holdout_seen_for(state)
    if over or seen_for == winner:
        seen = holdout_words(holdout, winner=winner, kept=kept, numbers=numbers)
    else:
        seen = NOT_YET if seen_for is None else f"{NOT_YET} for this winner, and was looked at for {_name(seen_for)}"
    return f"{words}; {seen}" if over else f"{words}; {seen}; {_so_far(state, standing)}"


def _name(number: int) -> str:
    return f"#{number}" if number else "the baseline"


def _gain(gain: Gain, numbers: Numbers) -> str:
    low, high = gain.delta.low, gain.delta.high
    if low is None or high is None:
        return numbers.difference(gain.delta.value)
    return span({"delta": gain.delta.value, "low": low, "high": high}, numbers)


def _without_a_keep(state: CampaignState, measuring: Measuring, numbers: Numbers) -> tuple[str, str]:
    """That there is none, with what was ruled out; and what would have been found, where anything was looked at."""
    judged = [one.judged for number, one in state.experiments.items() if number > 0 and one.judged]
    if not judged:
        return f"{NONE}: no idea was judged yet", ""
    crashed = [one.crash_class or "unknown" for one in judged if one.outcome == "crash"]
    if len(crashed) == len(judged):
        return only_crashes(len(crashed), Counter(crashed).most_common()), ""
    by_idea = bounds_by_idea(state)
    if not by_idea:
        return f"{NONE}: no idea was measured whole", ""
    known = state.calibration
    detectable = known.get("smallest_detectable")
    ruled = ruled_out_words(
        bounds_by_axis(state), list(by_idea.values()), detectable, measured=len(by_idea), numbers=numbers
    )
    limit = limit_words(detectable, known.get("baseline"), numbers=numbers, minimize=measuring.minimize)
    return "; ".join(filter(None, (NONE, ruled))), limit


def _so_far(state: CampaignState, standing: Standing) -> str:
    budget = state.budget_s
    used = duration(state.consumed_s) + (f" of {duration(budget)}" if budget else "")
    if standing == "running":
        return f"running, {used} used"
    reason = f" ({state.stop_reason})" if state.stop_reason else ""
    return f"{standing} after {used}{reason}"
