"""Says when a training hangs: its heartbeat has not moved for longer than its phase allows, and nothing else moves.

One whose heartbeat is silent while it works (memory moves, cores compute, a disk is read) is slow: it gets more time, a
bounded multiple, and then ends as such.

Time is the agent's own clock at the moment a changed heartbeat was seen, never the time written in the file, so
that a clock that is set, or a trainer that writes nonsense, cannot fool it. In a phase that makes steps, a heartbeat
that is renewed and tells of no step is no sign of work: a thread may renew it while nothing happens. A GPU at 100%
proves nothing either: on gfx1151 a hang keeps it there, with nothing in the kernel log (ROCm legacy-rocm-build#6530).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from agent.contract import Heartbeat, Phase
from agent.run.stall import Activity

STEPPING: frozenset[Phase] = frozenset({"generate", "verify", "train", "evaluate"})
"""Phases that beat at every step, whose limit follows the step time."""
TELLING = ("step", "cycle", "note")
"""Fields of a heartbeat of which one changes where work is done. The share of the budget that is spent may be that of a
clock, as the time is."""
SEEN_LATE_S = 1.0
"""A heartbeat is seen at the next look, not when it is written."""


def _fixed() -> dict[Phase, float]:
    return {"start": 180.0, "load": 1800.0, "compile": 1800.0, "save": 600.0}


def _floors() -> dict[Phase, float]:
    return {"generate": 120.0, "verify": 300.0, "train": 120.0, "evaluate": 180.0}


@dataclass(frozen=True)
class Limits:
    """Seconds without a changed heartbeat after which a phase counts as hung."""

    fixed: dict[Phase, float] = field(default_factory=_fixed)
    """Phases without steps. Loading 60 GB from a slow disk and compiling take long honestly."""
    floors: dict[Phase, float] = field(default_factory=_floors)
    """Least limit of a stepping phase."""
    factor: float = 30.0
    """A stepping phase may pause for this many median steps, if that is more than its floor."""
    most: float = 3600.0
    """No stepping phase gets more, whatever its median step."""
    first_step: float = 600.0
    """Until a phase has made `settled` steps: kernels are built and tuned on first use."""
    settled: int = 5
    slow_factor: float = 3.0
    """One that is silent and works gets this many times its limit, and so does one that only renews its heartbeat."""
    own_stall: float = 15.0
    """If the agent itself was not looking for this long (stopped, suspended), that time is not held against the run."""


@dataclass(frozen=True)
class Stalled:
    kind: Literal["hang", "slow"]
    reason: str
    """How long it was silent, where, what the limit was, and what it did meanwhile."""


def nobody_looks(silent_s: float) -> Activity:
    """Where nothing is sampled, silence is all there is to go by."""
    return Activity("unknown", "what it does was not looked at")


class Watchdog:
    """Fed with every reading of the heartbeat; `observe` tells once the training has to be ended."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._last: Heartbeat | None = None
        self._text = ""  # compared instead of the values: NaN is not equal to itself
        self._moved: float | None = None
        self._renewed: float | None = None
        """When it only told that it is there."""
        self._looked: float | None = None
        self._step_times: dict[Phase, deque[float]] = {}
        self._made: Counter[Phase] = Counter()

    def observe(
        self, heartbeat: Heartbeat | None, *, now: float, activity: Callable[[float], Activity] = nobody_looks
    ) -> Stalled | None:
        """Why the training has to be ended, or None. `now` is monotonic seconds; None means no heartbeat to read.

        `activity` says what it has been doing in the seconds of silence that it is given; it is asked only beyond the
        limit.
        """
        self._forgive_own_stall(now)
        if self._moved is None:
            self._moved = now
        text = heartbeat.model_dump_json() if heartbeat is not None else self._text
        if heartbeat is not None and text != self._text:
            steps = self._tells_of_work(heartbeat)
            if steps:
                self._learn(heartbeat, now)
                self._last, self._moved = heartbeat, now
            self._text, self._renewed = text, None if steps else now
            if steps:
                return None
        limit, why = self.limit()
        silent = now - self._moved
        if silent <= limit:
            return None
        if self._renewed is not None and now - self._renewed <= limit:
            if silent <= self.limits.slow_factor * limit:
                return None
            where = self._reason(silent, limit, why, what="no step")
            return Stalled("hang", f"{where}; it renews its heartbeat and makes no step")
        doing = activity(silent)
        if doing.kind != "slow":
            return Stalled("hang", f"{self._reason(silent, limit, why)}; {doing.words}")
        longer = self.limits.slow_factor * limit
        if silent <= longer:
            return None
        words = (
            f"though it seemed to work: {doing.words}; one that works gets {self.limits.slow_factor:g} times its limit"
        )
        return Stalled("slow", f"{self._reason(silent, limit, why)}, {words}")

    def limit(self) -> tuple[float, str]:
        """(seconds of silence that the present phase allows, how that number comes about)."""
        phase: Phase = self._last.phase if self._last else "start"
        if phase not in STEPPING:
            return self.limits.fixed[phase], f"the limit of {phase}"
        floor = self.limits.floors[phase]
        if self._made[phase] < self.limits.settled:
            return max(floor, self.limits.first_step), f"the limit of the first steps of {phase}"
        typical = median(self._step_times[phase])
        scaled = min(self.limits.factor * typical, self.limits.most)
        if scaled > floor:
            return scaled, f"{self.limits.factor:g} times the median step of {typical:.3g} s"
        return floor, f"the least limit of {phase}; its median step takes {typical:.3g} s"

    def _forgive_own_stall(self, now: float) -> None:
        if self._looked is not None and self._moved is not None:
            gap = now - self._looked
            if gap > self.limits.own_stall:
                self._moved += gap
        self._looked = now

    def _tells_of_work(self, heartbeat: Heartbeat) -> bool:
        """Anything but the time has changed, or the phase makes no steps."""
        if self._last is None or heartbeat.phase not in STEPPING or heartbeat.phase != self._last.phase:
            return True
        return any(getattr(heartbeat, name) != getattr(self._last, name) for name in TELLING)

    def _learn(self, heartbeat: Heartbeat, now: float) -> None:
        """Step time from the trainer's own stamps: several steps may lie between two readings. No longer than we saw
        it take: the stamps may be of a clock that was set, or made up."""
        last = self._last
        if last is None or self._moved is None or heartbeat.phase not in STEPPING:
            return
        if heartbeat.phase != last.phase or heartbeat.cycle != last.cycle:
            return
        steps, seconds = heartbeat.step - last.step, heartbeat.time - last.time
        if steps > 0 and 0 < seconds < math.inf:
            seconds = min(seconds, now - self._moved + SEEN_LATE_S)
            self._step_times.setdefault(heartbeat.phase, deque(maxlen=200)).append(seconds / steps)
            self._made[heartbeat.phase] += steps

    def _reason(self, silent: float, limit: float, why: str, *, what: str = "no heartbeat") -> str:
        if self._last is None:
            return f"{what} in {silent:.3g} s after the start (limit {limit:.3g} s)"
        place = f"{self._last.phase}, step {self._last.step}"
        if self._last.cycle is not None:
            place += f" of cycle {self._last.cycle}"
        return f"{what} for {silent:.3g} s in {place} (limit {limit:.3g} s: {why})"
