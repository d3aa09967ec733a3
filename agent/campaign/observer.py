"""Whoever watches a campaign: the terminal, a log, a test. The loop tells, and never asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agent.report.snapshot import Arms, MachineNow, Running, Snapshot


@dataclass(frozen=True)
class Board:
    """Where the campaign stands."""

    campaign: str
    left_s: float
    consumed_s: float
    ideas: int
    kept: int
    metric: str
    arms: Arms = field(default_factory=Arms)
    best_is: str = "baseline"
    """Which recipe is best so far: `baseline`, or `#7 learning rate up`."""
    lead: float | None = None
    """What leads unconfirmed, on the search split; None where nothing does."""
    lead_is: str = ""
    """Its number: `#12`."""
    snapshot: Snapshot | None = None
    """All that a live view shows of the campaign; the run that goes on is the activity's."""


@dataclass(frozen=True)
class Activity:
    """What runs now."""

    what: str
    """`#3 learning-rate: raise the rate, 0.0005 -> 0.001`."""
    run: str
    """`search, seed 3`."""
    predicted_s: float | None = None
    look: Callable[[], tuple[Running, MachineNow | None]] | None = None
    """How far it is at this moment, from its folder."""


@dataclass(frozen=True)
class Pulse:
    """A sign of life of the running training."""

    phase: str
    elapsed_s: float
    budget_spent: float | None = None
    note: str | None = None
    cycle: int | None = None
    metric: float | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Closing:
    """The campaign runs no more, for now or for good."""

    event: Literal["finished", "paused", "failed"]
    """`paused`: by a person or a signal; `failed`: by what no idea can mend, and it can be resumed too."""
    text: str
    """The headline, or the reason."""
    numbers: dict[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    def say(self, text: str) -> None:
        """One or more lines for people, in the order of events."""

    def warn(self, text: str) -> None:
        """Something that a person should act on or know about."""

    def board(self, board: Board) -> None:
        """The campaign stands differently."""

    def started(self, activity: Activity) -> None:
        """A run begins."""

    def pulse(self, pulse: Pulse) -> None:
        """The run is alive."""

    def ended(self, text: str) -> None:
        """The run ended, in words."""

    def recorded(self, row: dict[str, Any]) -> None:
        """A row of the results table was written."""

    def closing(self, closing: Closing) -> None:
        """The last thing that is told."""


class Silent:
    """Watches nothing."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def board(self, board: Board) -> None: ...
    def started(self, activity: Activity) -> None: ...
    def pulse(self, pulse: Pulse) -> None: ...
    def ended(self, text: str) -> None: ...
    def recorded(self, row: dict[str, Any]) -> None: ...
    def closing(self, closing: Closing) -> None: ...


class Several:
    """Tells everybody the same, in order. Whoever may fail to listen sees to that itself."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def say(self, text: str) -> None:
        for one in self.observers:
            one.say(text)

    def warn(self, text: str) -> None:
        for one in self.observers:
            one.warn(text)

    def board(self, board: Board) -> None:
        for one in self.observers:
            one.board(board)

    def started(self, activity: Activity) -> None:
        for one in self.observers:
            one.started(activity)

    def pulse(self, pulse: Pulse) -> None:
        for one in self.observers:
            one.pulse(pulse)

    def ended(self, text: str) -> None:
        for one in self.observers:
            one.ended(text)

    def recorded(self, row: dict[str, Any]) -> None:
        for one in self.observers:
            one.recorded(row)

    def closing(self, closing: Closing) -> None:
        for one in self.observers:
            one.closing(closing)
