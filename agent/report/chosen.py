"""Which ideas of a long campaign its page shows one by one: a browser that opens a page of all ten thousand is slow."""

from __future__ import annotations

from collections.abc import Iterator

from agent.report.charts import group_of
from agent.report.night import Night

MOST_NEWEST = 1000
"""The newest ideas are shown whatever they came to."""
MOST_TELLING = 1000
"""Of the earlier ones that say most: what was kept, nearly shown, built on unconfirmed, or crashed, in this order."""


def shown(night: Night) -> frozenset[int]:
    """Their numbers, the baseline's among them."""
    steps = night.steps
    newest = [step.number for step in steps[-MOST_NEWEST:]]
    earlier = {step.number for step in steps[:-MOST_NEWEST]}
    telling = [number for number in _by_what_they_say(night) if number in earlier]
    linked = [*(card.story.number for card in night.cards), *(near.number for near in night.near_misses)]
    return frozenset([0, *newest, *telling[:MOST_TELLING], *linked])


def _by_what_they_say(night: Night) -> Iterator[int]:
    """Those that say most first, of each group the newest."""
    groups: dict[str, list[int]] = {"keep": [], "near": [near.number for near in night.near_misses]}
    for step in reversed(night.steps):
        groups.setdefault(group_of(step), []).append(step.number)
    for group in ("keep", "near", "lead", "crash"):
        yield from groups.get(group, ())
