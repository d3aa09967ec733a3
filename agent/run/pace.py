"""Says when a training crawls: it lives, and its steps take many times what they took before.

Times are the trainer's own stamps, as for the watchdog's median. The first steps of a phase set the measure, without
the very first ones, in which kernels are built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from agent.contract import Heartbeat, Phase
from agent.run.watchdog import SEEN_LATE_S, STEPPING

WARM_UP = 5
"""Steps of a phase that set no measure."""
MEASURED = 20
"""Readings of a phase that set it."""


@dataclass(frozen=True)
class Crawl:
    phase: Phase
    step_s: float
    usual_s: float
    seconds: float
    """For how long it has gone on."""

    @property
    def words(self) -> str:
        times = self.step_s / self.usual_s
        return (
            f"it crawls: a step of {self.phase} takes {self.step_s:.3g} s, {times:.0f} times the {self.usual_s:.3g} s "
            f"of before, for {self.seconds:.0f} s now"
        )


class Pace:
    """Fed with every reading of the heartbeat."""

    def __init__(self, *, factor: float = 10.0, least_steps: int = 5, least_s: float = 60.0) -> None:
        self.factor, self.least_steps, self.least_s = factor, least_steps, least_s
        self._last: Heartbeat | None = None
        self._seen = 0.0
        """When that was first read."""
        self._usual: dict[Phase, list[float]] = {}
        self._made: dict[Phase, int] = {}
        self._slow: list[tuple[float, int]] = []
        """(seconds, steps) of each reading since the steps became slow."""

    def observe(self, heartbeat: Heartbeat | None, *, now: float) -> Crawl | None:
        """How it crawls, as long as it does; None otherwise. `now` is of a clock that nobody sets and that stands still
        in a suspended machine."""
        last = self._last
        if heartbeat is None or (last is not None and heartbeat.time == last.time and heartbeat.step == last.step):
            return self._crawl()
        seen, self._last, self._seen = now - self._seen, heartbeat, now
        if last is None or heartbeat.phase != last.phase or heartbeat.phase not in STEPPING:
            if last is not None and heartbeat.phase != last.phase:
                self._slow.clear()
            return None
        # no longer than we saw it take, as for the watchdog
        steps, seconds = heartbeat.step - last.step, min(heartbeat.time - last.time, seen + SEEN_LATE_S)
        if heartbeat.cycle == last.cycle and steps > 0 and 0 < seconds < math.inf:
            self._learn(heartbeat.phase, steps, seconds)
        return self._crawl()

    def _learn(self, phase: Phase, steps: int, seconds: float) -> None:
        made = self._made.get(phase, 0)
        self._made[phase] = made + steps
        known = self._usual.setdefault(phase, [])
        if made < WARM_UP:
            return
        if len(known) < MEASURED:
            known.append(seconds / steps)
            return
        if seconds / steps >= self.factor * median(known):
            self._slow.append((seconds, steps))
        else:
            self._slow.clear()

    def _crawl(self) -> Crawl | None:
        if self._last is None or not self._slow:
            return None
        seconds, steps = sum(one for one, _ in self._slow), sum(number for _, number in self._slow)
        if steps < self.least_steps or seconds < self.least_s:
            return None
        phase = self._last.phase
        return Crawl(phase, seconds / steps, median(self._usual[phase]), seconds)
