"""The constants of the search and of the verdict, in one place: what `raft-agent simulate` tunes and holds to account.

They were tuned on other mixes of effects and other seeds than those that docs/verdicts.md reports
(`tests/benchmarks/tune_rules.py --draws 0 --nights 40`). Around them the table is flat: nights deliver 0.76 of what
there is to gain, and 0.75 to 0.77 with one of the filter's levels, the looks, or what decides when something leads
changed; the other constants were tuned in an earlier state of the search.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.campaign.budget import CONFIRM_SEEDS


@dataclass(frozen=True)
class Rules:
    alpha: float = 0.05
    """Chance of any false keep in a campaign."""
    least_share: float = 0.12
    """Of the level that is left, for each confirmation."""
    most_share: float = 0.4
    """However few ideas are to come: the estimate of how many that are is rough."""
    last_share: float = 0.8
    """Where there will be no time for another: something is left for a campaign that is given more time."""
    filter_alpha: float = 0.25
    """One-sided level at which a search result is worth a confirmation."""
    lead_alpha: float = 0.4
    """The same where it waits for others: that costs nothing, and small gains add up."""
    confirm_seeds: int = CONFIRM_SEEDS
    """Fresh seeds of each arm before the first test."""
    looks: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.3), (5, 0.5))
    """Fresh seeds of each arm at which a confirmation looks, and the share of its level for that look. The shares add
    up to 1."""
    hold_p: float = 0.45
    """After its first fresh seed a candidate goes on where the one-sided p-value of the confirming runs is below."""
    go_on_p: float = 0.35
    """After a test that did not decide, further seeds are bought where the p-value is below."""
    batch: int = 12
    """Ideas that are screened together, at most. 0: no screening."""
    least_batch: int = 4
    """With fewer waiting, or affordable, there is no screening."""
    screen_way: float = 0.6
    """Part of its way, from the untrained model to its end, that a training must have made before it tells anything: so
    far it is trained for a screening."""
    screen_share: float | None = None
    """Share of the budget that it is trained instead, whatever way that is."""
    most_part: float = 0.5
    """Of what a whole run costs, for a screening to be worth its uncertainty."""
    survivors: float = 0.25
    """Share of a screened batch that goes on."""
    scarce: float = 2.0
    """Ideas are screened where the night affords fewer than this times those that wait."""
    alone_runs: float = 120.0
    """With time left for fewer runs than this, a promising idea is not confirmed alone but with others, at the end, and
    the next ideas build on it unconfirmed (`lead.py`)."""
    clear_p: float = 0.05
    """A promising idea with a one-sided p-value below this, as if the errors were known, is built on at once, alone."""
    clear_left: float = 4.0
    """Runs for which there must be time after that, beside those of the end."""
    round: int = 20
    """Ideas, the screened ones among them, after which what was promising is put together for the next to build on."""
    lead_left: float = 10.0
    """Runs for which there must be time after that."""
    together_p: tuple[float, ...] = (0.35, 0.7)
    """What was discarded as inconclusive with a one-sided p-value below the first goes into one experiment at the end;
    where that was not kept, or there is still time, below the second, and so on."""
    stale_s: float = 3 * 3600.0
    """Incumbent runs older than this (consumed seconds) are joined by a fresh one before they confirm anything."""

    @property
    def most_seeds(self) -> int:
        return max(seeds for seeds, _ in self.looks)

    def to_come(self, *, waiting: float, affordable: float) -> float:
        """Confirmations that are expected of so many ideas in a night that affords so many more."""
        alone = max(0.0, min(affordable - self.alone_runs, waiting))
        return self.filter_alpha * alone + len(self.together_p)

    def shares(self, most: int) -> dict[int, float]:
        """Looks of a confirmation that can afford so many seeds -> share of its level; they add up to 1.

        Where not even the first look can be afforded, it is made all the same, by whoever finds the time.
        """
        afforded = [(seeds, share) for seeds, share in self.looks if seeds <= most] or list(self.looks[:1])
        total = sum(share for _, share in afforded)
        return {seeds: share / total for seeds, share in afforded}
