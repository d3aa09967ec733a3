"""The words for what a night came to, the same in the closing words of `run`, in the report and in `status`.

No confirmed improvement is said with the first words, and with what was ruled out. A confirmed gain is said with what
the holdout makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.contract import UNTRAINED
from agent.ledger.state import CampaignState
from agent.report.words import percent, points

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


def headline(holdout: Mapping[str, Any], *, winner: int, kept: Kept, limit: str = "") -> str:
    """Of a night that has come to its end. `limit`: what would have been found, had it been there."""
    if "skipped" in holdout:
        return f"{kept.words} ({holdout['skipped']})"
    n = holdout.get("prompts", 0)
    base = f"{UNTRAINED} {_value(holdout, UNTRAINED)} -> baseline {_value(holdout, 'baseline')}"
    if not winner:
        return f"{NONE}; holdout (n={n}): {base}{limit}"
    gain = holdout.get("winner - baseline")
    over = f" ({span(gain)} over the baseline)" if gain else ""
    said = _said(holdout) if kept.gains else "; it was kept as simpler or cheaper, not as better"
    return f"holdout (n={n}): {base} -> winner {_value(holdout, 'winner')}{over}{said}"


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
    }
    return words.get(holdout_says(holdout), "")


def _missing(holdout: Mapping[str, Any]) -> list[str]:
    return [name for name in ("baseline", "winner") if name in holdout.get("not evaluated", {})]


def limit_words(detectable: float | None, baseline: float | None, *, metric: str, minimize: bool) -> str:
    """What would have been found, had it been there; nothing where that is not known."""
    if not detectable or baseline is None:
        return ""
    room = baseline if minimize else 1 - baseline
    if metric != "mean_reward" and detectable > room:
        return "; the held-out prompts were too few to show any gain that was left"
    return f"; effects above {points(detectable).lstrip('+')} would probably have been found"


def ruled_out_words(bounds: Mapping[str, float], detectable: float | None, *, most: int = 6) -> str:
    """`ruled out gains above 2.4pp on: clipping, batch`, from the largest gain that each axis may still have.

    Axes are listed that are known as well as the night could know them: a wider bound, of an idea that ran once, says
    less than what a confirmation would have found, and beside that would read as a contradiction.
    """
    sharp = {axis: bound for axis, bound in bounds.items() if not detectable or bound <= detectable}
    if not sharp:
        return ""
    axes = sorted(sharp, key=lambda axis: (sharp[axis], axis))[:most]
    above = max(0.0, max(sharp[axis] for axis in axes))
    more = len(sharp) - len(axes)
    named = ", ".join(axes) + (f" and {more} more" if more > 0 else "")
    return f"ruled out gains above {points(above).lstrip('+')} on: {named}"


def only_crashes(crashed: int, classes: Sequence[tuple[str, int]]) -> str:
    """Of a night whose every idea crashed."""
    told = ", ".join(f"{name} {count}" for name, count in classes)
    return f"{NONE}: {'the only idea' if crashed == 1 else f'all {crashed} ideas'} crashed ({told})"


def span(gain: Mapping[str, float]) -> str:
    """`+3.1pp [+0.9pp, +5.3pp]`."""
    return f"{points(gain['delta'])} [{points(gain['low'])}, {points(gain['high'])}]"


def _value(holdout: Mapping[str, Any], arm: str) -> str:
    return percent(holdout.get(arm)) or "unknown"
