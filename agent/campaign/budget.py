"""Time: what the user wrote, what has been consumed, what may still be started.

A budget is consumed seconds, not a date: time in which the agent did not run (a reboot, a pause, a suspended machine)
is not charged. `--deadline` is the absolute form; the smaller of the two counts.

Three clocks, each for what the others cannot do (clock_gettime(2)): CLOCK_MONOTONIC stands still while the machine is
suspended and nobody can set it, so it counts what is consumed. The wall clock says when a deadline is, and is set by
people and by NTP, forward and back. CLOCK_BOOTTIME goes on in a suspended machine and nobody can set it, so a deadline
that was so many seconds away never gets further away.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.errors import BudgetError, UsageError
from agent.report.words import duration

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_SECONDS = 30 * 86400
LATEST_UNIX_S = 253_370_764_800.0
"""The year 9999, the last that a date can have."""


def parse_duration(text: str, *, option: str = "--budget") -> float:
    """Seconds of `8h`, `90m`, `1h30m`, `45s`, `1.5h`, `2d`. UsageError for anything else, 0, or over 30 days."""
    cleaned = text.strip().lower()
    pieces = re.findall(r"(\d+(?:\.\d+)?)([smhd])", cleaned)
    if not pieces or "".join(number + unit for number, unit in pieces) != cleaned:
        raise UsageError(f"{option} {text!r} is no duration", hint=f"write it like {_meant(cleaned)}")
    seconds = sum(float(number) * UNITS[unit] for number, unit in pieces)
    if seconds <= 0:
        raise UsageError(f"{option} {text!r} is no time at all", hint="write it like 8h, 90m or 1h30m")
    if seconds > LONGEST_SECONDS:
        raise UsageError(
            f"{option} {text!r} is longer than 30 days", hint="several campaigns resume from each other's results.tsv"
        )
    return seconds


def _meant(text: str) -> str:
    """The duration that was probably meant: `8 hours` -> 8h, `90` -> 90m or 90s."""
    worded = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)(?:ec|in|our|r|ay)?[a-z]*", text)
    if worded:
        return f"{worded[1]}{worded[2]}"
    if re.fullmatch(r"[1-9]\d*", text):
        return f"{text}m or {text}s"
    return "8h, 90m or 1h30m"


def parse_deadline(text: str, now: datetime.datetime) -> datetime.datetime:
    """`07:30` (the next one) or an ISO date and time, in local time. UsageError where it is neither, or past."""
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text.strip()):
            clock = datetime.time.fromisoformat(text.strip().zfill(5))
            days = (now.date() + datetime.timedelta(days=ahead) for ahead in range(3))
            moments = (_like(now, datetime.datetime.combine(day, clock)) for day in days)
            return next(moment for moment in moments if moment > now)
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"--deadline {text!r} is no time", hint="write 07:30 or 2026-01-02T07:30") from None
    moment = moment if moment.tzinfo else _like(now, moment)
    if moment <= now:
        raise UsageError(f"--deadline {text!r} has passed", hint="write 07:30 for the next half past seven")
    return moment


def _like(now: datetime.datetime, naive: datetime.datetime) -> datetime.datetime:
    """In the zone of `now`. Where that is the system's, by the system's rules: before the clocks are changed its offset
    is another one than after."""
    is_local = now.astimezone().utcoffset() == now.utcoffset()
    return naive.astimezone() if is_local else naive.replace(tzinfo=now.tzinfo)


def since_boot() -> float:
    """Seconds that nobody can set, a suspended machine's included; where the system has no such clock, not included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class BudgetClock:
    """Counts consumed seconds on a monotonic clock, on top of what earlier sessions consumed."""

    def __init__(
        self,
        budget_s: float | None,
        *,
        consumed_s: float = 0.0,
        deadline: datetime.datetime | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime.datetime] = lambda: datetime.datetime.now().astimezone(),
        boottime: Callable[[], float] = since_boot,
        latest: datetime.datetime | None = None,
    ):
        """`latest` is a moment that has been, by what earlier sessions wrote down: a wall clock that shows an earlier
        one has been set back since, and the deadline is no further away than it was then."""
        self.budget_s = budget_s
        self.deadline = deadline
        self._before = consumed_s
        self._monotonic, self._wall, self._boottime = monotonic, wall, boottime
        self._started = self._last = monotonic()
        self._booted = boottime()
        self._latest = latest
        if deadline is not None:
            self._until(deadline)

    @property
    def consumed_s(self) -> float:
        self._last = max(self._last, self._monotonic())
        return self._before + (self._last - self._started)

    @property
    def left_s(self) -> float:
        """Seconds until the budget or the deadline, whichever is nearer; may be negative."""
        left = float("inf") if self.budget_s is None else self.budget_s - self.consumed_s
        if self.deadline is not None:
            left = min(left, self._until(self.deadline))
        return left

    def _until(self, deadline: datetime.datetime) -> float:
        """By the latest moment that the wall clock has shown, and the seconds that have passed since boot by then."""
        now, since_boot = self._wall(), self._boottime()
        if self._latest is not None:
            now = max(now, self._latest + datetime.timedelta(seconds=max(0.0, since_boot - self._booted)))
        self._latest, self._booted = now, since_boot
        return (deadline - now).total_seconds()

    def affords(self, predicted_s: float, *, reserve_s: float) -> bool:
        """Whether something of this length may start before the reserve is touched."""
        return predicted_s <= self.left_s - reserve_s


def last_moment(times: Iterable[float]) -> datetime.datetime | None:
    """The latest of these Unix seconds, local time; None where there is none. What is no time is left out."""
    found = [seconds for seconds in times if 0 < seconds < LATEST_UNIX_S]
    return datetime.datetime.fromtimestamp(max(found)).astimezone() if found else None


@dataclass(frozen=True)
class RunCost:
    """Predicted seconds of one run: overhead (start, load, the select split), training, final evaluation."""

    overhead_s: float
    train_s: float
    evaluate_s: float
    alone_s: float | None = None
    """A run that only evaluates a checkpoint, start and load included; None where none was measured yet."""
    guessed: bool = field(default=False, compare=False)
    """No training was measured yet."""

    @property
    def total_s(self) -> float:
        return self.overhead_s + self.train_s + self.evaluate_s

    @property
    def evaluation_s(self) -> float:
        """A run without training."""
        return self.overhead_s + self.evaluate_s if self.alone_s is None else self.alone_s


CONFIRM_SEEDS = 2
"""Fresh seeds of each arm that a confirmation takes at least, and for which time is held back."""


@dataclass(frozen=True)
class NightPlan:
    """What a budget is going to be spent on, in seconds, before anything ran."""

    baseline_seeds: int
    calibration_s: float
    idea_s: float
    confirmation_s: float
    reserve_s: float
    ideas: int

    def words(self) -> str:
        if not self.ideas:
            return f"no idea fits if a run takes {duration(self.idea_s)}; the first run will tell"
        return (
            f"{self.baseline_seeds} baseline runs ({duration(self.calibration_s)}), then about {self.ideas} ideas of "
            f"{duration(self.idea_s)} each, a confirmation costs {duration(self.confirmation_s)}, "
            f"{duration(self.reserve_s)} held back for the last confirmation, the holdout and the report"
        )


def reserve_seconds(cost: RunCost) -> float:
    """Held back at the end: one confirmation (two seeds an arm) and the holdout evaluations."""
    return confirmation_seconds(cost) + holdout_seconds(cost)


def confirmation_seconds(cost: RunCost) -> float:
    return 2 * CONFIRM_SEEDS * cost.total_s


def holdout_seconds(cost: RunCost) -> float:
    """Untrained, and two seeds each of baseline and winner."""
    return (1 + 2 * CONFIRM_SEEDS) * cost.evaluation_s


def plan_night(budget_s: float, cost: RunCost, *, baseline_seeds: int, allow_fewer_seeds: bool) -> NightPlan:
    """Divide the budget. BudgetError with the train_seconds that would fit where not one idea is affordable.

    The baseline gives up seeds (never below two) rather than take more than 40% of the budget or leave no idea.
    """
    fewest = min(2, baseline_seeds) if allow_fewer_seeds else baseline_seeds
    reserve = reserve_seconds(cost)
    for seeds in range(baseline_seeds, fewest - 1, -1):
        calibration = seeds * cost.total_s + cost.evaluation_s  # and the untrained model once
        ideas = int((budget_s - calibration - reserve) // cost.total_s)
        if ideas >= 1 and (seeds == fewest or seeds * cost.total_s <= 0.4 * budget_s):
            return NightPlan(seeds, calibration, cost.total_s, confirmation_seconds(cost), reserve, ideas)
    raise _too_small(budget_s, cost, seeds=fewest)


def _too_small(budget_s: float, cost: RunCost, *, seeds: int) -> BudgetError:
    runs = seeds + 1 + 2 * CONFIRM_SEEDS
    evaluations = 1 + 1 + 2 * CONFIRM_SEEDS
    fixed = runs * (cost.overhead_s + cost.evaluate_s) + evaluations * cost.evaluation_s
    needed = fixed + runs * cost.train_s
    affordable = (budget_s - fixed) / runs
    if affordable >= 1:
        hint = f"set budget.train_seconds to {int(affordable)} in the recipe, or give it {duration(needed)}"
    else:
        hint = f"give it at least {duration(needed)}; starting and evaluating alone take {duration(fixed)}"
    return BudgetError(
        f"{duration(budget_s)} affords no idea: a baseline of {seeds} seeds, one idea, its confirmation and the "
        f"holdout need about {duration(needed)} at {duration(cost.train_s)} of training a run",
        hint=hint,
    )
