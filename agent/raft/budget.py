"""What one training has spent of `budget`, and whether another cycle may begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.recipe.schema import Budget

ROUND_UP = 0.5
"""A cycle begins if at least this share of it fits: then trainings miss their budget as often above as below."""


@dataclass
class Spending:
    """Seconds of generate, verify, select and train; cycles; generated plus trained tokens."""

    limit: Budget
    seconds: float = 0.0
    cycles: int = 0
    tokens: int = 0
    last_share: float = 0.0
    """Share of the budget that the last cycle took; the first is charged with the samples of cycle 0."""
    closed: float = 0.0
    """Share spent at the end of the last cycle."""
    first_update: float | None = None
    """Share spent before the first optimizer step, from where on the warm-up counts; None before it."""

    def share(self, *, of_cycle: float = 0.0, seconds: float = 0.0, tokens: float = 0.0) -> float:
        """Share of the budget spent, in [0, 1], with what the running cycle has spent since it was charged added:
        `of_cycle` of it, its `seconds`, or its `tokens`."""
        limit = self.limit
        if limit.cycles is not None:
            spent = (self.cycles + of_cycle) / limit.cycles
        elif limit.tokens is not None:
            spent = (self.tokens + tokens) / limit.tokens
        else:
            assert limit.train_seconds is not None
            spent = (self.seconds + seconds) / limit.train_seconds
        return min(1.0, spent)

    def affords_cycle(self) -> bool:
        """Always the first cycle; later ones while at least half of one fits."""
        return self.cycles == 0 or self.share() + ROUND_UP * self.last_share < 1.0

    def add(self, *, seconds: float = 0.0, tokens: int = 0, cycles: int = 0) -> None:
        self.seconds += seconds
        self.tokens += tokens
        self.cycles += cycles
        if cycles:
            self.last_share, self.closed = self.share() - self.closed, self.share()

    def state(self) -> dict[str, Any]:
        names = ("seconds", "cycles", "tokens", "last_share", "closed", "first_update")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        # a state of an earlier version, whose warm-up counted from the beginning
        self.first_update = 0.0 if state["cycles"] else None
        for name, value in state.items():
            setattr(self, name, value)
