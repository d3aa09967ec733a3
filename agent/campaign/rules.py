"""The constants of the search and of the verdict, in one place: what `raft-agent simulate` tunes and holds to account.

They were tuned on other mixes of effects and other seeds than those that docs/verdicts.md reports.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.campaign.budget import CONFIRM_SEEDS


@dataclass(frozen=True)
class Rules:
    alpha: float = 0.05
    """Chance of any false keep in a campaign."""
    least_share: float = 0.08
    """Of the level that is left, for each confirmation."""
    most_share: float = 0.4
    """However few ideas are to come: the estimate of how many that are is rough."""
    filter_alpha: float = 0.2
    """One-sided level at which a search result is worth a confirmation."""
    confirm_seeds: int = CONFIRM_SEEDS
    """Fresh seeds of each arm before the first test."""
    looks: tuple[tuple[int, float], ...] = ((2, 0.4), (3, 0.2), (5, 0.4))
    """Fresh seeds of each arm at which a confirmation looks, and the share of its level for that look. The shares add
    up to 1."""
    hold_p: float = 0.35
    """After its first fresh seed a candidate goes on where the one-sided p-value of the confirming runs is below."""
    go_on_p: float = 0.15
    """After a test that did not decide, further seeds are bought where the p-value is below."""
    batch: int = 9
    """Ideas that are screened together; with fewer waiting there is no screening."""
    screen_share: float = 0.25
    """Of its budget that an idea is trained for a screening."""
    survivors: float = 1 / 3
    """Share of a screened batch that goes on."""
    scarce: float = 1.0
    """Ideas are screened where the night affords fewer than this times those that wait."""
    alone_runs: float = 25.0
    """With time left for fewer runs than this, promising ideas are not confirmed one by one but together at the end."""
    together_p: float = 0.35
    """Near-misses go into the experiment of the end where their one-sided p-value was below."""
    stale_s: float = 3 * 3600.0
    """Incumbent runs older than this (consumed seconds) are joined by a fresh one before they confirm anything."""

    @property
    def most_seeds(self) -> int:
        return max(seeds for seeds, _ in self.looks)

    def share_of_look(self, seeds: int) -> float:
        """0 where no look is made with so many seeds."""
        return dict(self.looks).get(seeds, 0.0)
