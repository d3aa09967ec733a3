"""How much of the campaign's 5% each confirmation may use, so that few nights keep anything false.

The rule. The campaign owns a level of 0.05 (`Rules.alpha`). When an idea passes the search filter, and before its first
confirming run, its confirmation is given a share of what is left: more where fewer confirmations are still to come, and
most of it where the time allows no other (`next_level`). So is the lead's, on which ideas were built without any. The
looks of the confirmation divide that level among them (`Rules.looks`). It is gone whether or not all looks are made,
unless the candidate is kept: a kept candidate gives its level back (the fallback of Wiens and Dmitrienko 2005, online
in Tian and Ramdas 2021, "Online control of the familywise error rate", Statistical Methods in Medical Research 30).

The guarantee. Let a_n be the level of the n-th confirmed candidate that is no better than what it is compared with. It
is fixed by what was measured before that candidate's confirming runs, and the looks at them say yes with probability
at most a_n together, whether or not all of them are made. Before the first false keep only levels of rightly kept
candidates have come back, so the a_n add up to at most 0.05, and so, by the union bound, does the probability of any
false keep in the campaign. It does not matter which ideas are tried, how many, in which order, what the planner made
of earlier results, or when a confirmation ends for lack of promise. That a look holds its level is the matter of
`comparison.py`; `raft-agent simulate --null` measures the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.campaign.rules import Rules


@dataclass(frozen=True)
class Used:
    """The level of one confirmation."""

    level: float
    kept: bool


@dataclass(frozen=True)
class Terms:
    """What a confirmation may use, fixed before its first run."""

    level: float
    shares: Mapping[int, float]
    """Fresh seeds of each arm at which it looks -> share of the level."""


def left(rules: Rules, used: Sequence[Used]) -> float:
    """What of the campaign's level is left after these confirmations."""
    return rules.alpha - sum(one.level for one in used if not one.kept)


def next_level(rules: Rules, used: Sequence[Used], *, to_come: float, last: bool = False) -> float:
    """Level of the next confirmation. `to_come`: how many more are expected after it. `last`: there will be no time for
    another."""
    if last:
        return left(rules, used) * rules.last_share
    return left(rules, used) * max(rules.least_share, min(rules.most_share, 1 / (1 + to_come)))
