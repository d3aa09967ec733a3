"""The words of a night's first sentence: what was kept, what the holdout makes of it, what was ruled out.

`night_verdict.py` puts them together, once for the closing words of `run`, the report, `status` and messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.contract import UNTRAINED
from agent.ledger.state import CampaignState
from agent.report.numbers import Numbers

NONE = "no confirmed improvement"
NO_GAIN = ("simpler", "cheaper")
"""Kinds of keeps that claim none."""
Says = Literal["contradicts", "agrees", "proves", "nothing"]


@dataclass(frozen=True)
class Kept:
    """How many ideas were kept, and as what."""

    gains: int = 0
    others: int = 0
    """Not worse, and simpler or cheaper."""

    @property
    def words(self) -> str:
        """`2 confirmed gains`, or that there is none."""
        others = f"{self.others} kept as simpler or cheaper" if self.others else ""
        gains = f"{self.gains} confirmed gain{'s' if self.gains != 1 else ''}" if self.gains else NONE
        return f"{gains}, {others}" if others else gains


def kept_in(state: CampaignState) -> Kept:
    ideas = [one.judged for number, one in state.experiments.items() if number > 0]
    kept = [one.numbers.get("kind") for one in ideas if one is not None and one.outcome == "keep"]
    others = sum(kind in NO_GAIN for kind in kept)
    return Kept(len(kept) - others, others)


def holdout_words(holdout: Mapping[str, Any], *, winner: int, kept: Kept, numbers: Numbers) -> str:
    """`holdout (n=128): untrained 16.9% -> baseline 60.1% -> winner ...`, or why there is none."""
    if not holdout:
        return "the holdout was not evaluated"
    if "skipped" in holdout:
        return str(holdout["skipped"])
    base = f"{UNTRAINED} {_value(holdout, UNTRAINED, numbers)} -> baseline {_value(holdout, 'baseline', numbers)}"
    told = f"holdout (n={holdout.get('prompts', 0)}): {base}"
    if not winner:
        return told
    gain = holdout.get("winner - baseline")
    over = f" ({span(gain, numbers)} over the baseline)" if gain else ""
    said = _said(holdout) if kept.gains else "; it was kept as simpler or cheaper, not as better"
    return f"{told} -> winner {_value(holdout, 'winner', numbers)}{over}{said}"


def holdout_says(holdout: Mapping[str, Any]) -> Says:
    """One look at few prompts: it can contradict a confirmed gain, or agree without proving it again."""
    gain = holdout.get("winner - baseline")
    if not gain or _missing(holdout):
        return "nothing"
    if gain["delta"] <= 0:
        return "contradicts"
    return "agrees" if gain["low"] <= 0 else "proves"


def _said(holdout: Mapping[str, Any]) -> str:
    missing = _missing(holdout)
    if missing:
        return f"; without the {' and the '.join(missing)} the holdout says nothing of the confirmed gain"
    words: dict[Says, str] = {
        "contradicts": " THE GAIN DID NOT REPRODUCE ON THE HOLDOUT",
        "agrees": "; the holdout agrees with the confirmed gain, but alone it would not prove it",
        "proves": "; the holdout agrees",
    }
    return words.get(holdout_says(holdout), "")


def _missing(holdout: Mapping[str, Any]) -> list[str]:
    return [name for name in ("baseline", "winner") if name in holdout.get("not evaluated", {})]


def limit_words(detectable: float | None, baseline: float | None, *, numbers: Numbers, minimize: bool) -> str:
    """What would have been found, had it been there; nothing where that is not known."""
    if not detectable or baseline is None:
        return ""
    room = baseline if minimize else 1 - baseline
    if numbers.rate and detectable > room:
        return "the held-out prompts were too few to show any gain that was left"
    return f"effects above {numbers.size(detectable)} would probably have been found"


def ruled_out_words(
    by_axis: Mapping[str, float],
    by_idea: Sequence[float],
    detectable: float | None,
    *,
    measured: int,
    numbers: Numbers,
    most: int = 6,
) -> str:
    """`ruled out gains above 2.4pp on: clipping, batch`, or `... by 8 of 10 ideas that were measured`, from the largest
    gain that each axis and each idea may still have; `measured` is how many ideas say anything.

    Only what is known as well as the night could know it counts: a wider bound, of an idea that ran once, says less
    than what a confirmation would have found, and beside that would read as a contradiction.
    """
    axes = {axis: bound for axis, bound in by_axis.items() if not detectable or bound <= detectable}
    ideas = [bound for bound in by_idea if not detectable or bound <= detectable]
    if axes:
        first = sorted(axes, key=lambda axis: (axes[axis], axis))[:most]
        more = f" and {len(axes) - len(first)} more" if len(axes) > len(first) else ""
        return f"ruled out gains above {_most(axes.values(), numbers)} on: {', '.join(first)}{more}"
    if ideas:
        count = f"{len(ideas)} of {measured} ideas that were measured" if measured > 1 else "the only measured idea"
        return f"ruled out gains above {_most(ideas, numbers)} by {count}"
    return ""


def _most(bounds: Any, numbers: Numbers) -> str:
    return numbers.size(max(0.0, *bounds)) or "0"


def only_crashes(crashed: int, classes: Sequence[tuple[str, int]]) -> str:
    """Of a night whose every idea crashed."""
    told = ", ".join(f"{name} {count}" for name, count in classes)
    return f"{NONE}: {'the only idea' if crashed == 1 else f'all {crashed} ideas'} crashed ({told})"


def span(gain: Mapping[str, float], numbers: Numbers) -> str:
    """`+3.1pp [+0.9pp, +5.3pp]`."""
    delta, low, high = (numbers.difference(gain[name]) for name in ("delta", "low", "high"))
    return f"{delta} [{low}, {high}]"


def _value(holdout: Mapping[str, Any], arm: str, numbers: Numbers) -> str:
    return numbers.value(holdout.get(arm)) or "unknown"
