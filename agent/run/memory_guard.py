"""Says when a training must be ended for host memory, before the kernel, systemd-oomd or earlyoom ends the desktop.

Three ways to see it coming. Free memory stays under a floor; or it falls so fast that it is gone before the next looks
could tell (a training that touches new memory takes several GiB a second); or the machine only pages any more.

What others do by default: earlyoom acts under 10% of memory and 10% of swap (its README), systemd-oomd at 60% pressure
for 30 s, or 90% of swap (oomd.conf(5)). Without swap, free memory is all that counts, and 10% of 128 GiB is too much to
leave unused: the floor is lower than theirs, and acts within a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FLOOR_SHARE = 0.02
LEAST_FLOOR_GB = 0.75
MOST_FLOOR_GB = 3.0
MOST_FLOOR_SHARE = 0.125
"""Of a small machine, or a small container."""
LOW_POLLS = 3
FALLING_POLLS = 2
REACT_S = 1.0
"""Memory that is gone in less than this at the present rate: now or never."""
FALL_OVER_S = 0.3
"""The shortest time over which a rate is formed: less is noise."""
NEAR_FLOORS = 8.0
"""A fast fall counts once so many floors are left: further up it is a model that is being loaded."""
THRASH_FULL = 40.0
"""Percent of the last 10 s in which no task could go on for want of memory."""
SWAP_LEFT_GB = 0.1


def floor_gb(total_gb: float) -> float:
    """GiB that have to stay free: 0.75 of 24, 2.6 of 128, an eighth of less than 6."""
    floor = min(max(LEAST_FLOOR_GB, FLOOR_SHARE * total_gb), MOST_FLOOR_GB)
    return min(floor, MOST_FLOOR_SHARE * total_gb)


@dataclass(frozen=True)
class Breach:
    reason: str
    grace_s: float
    """How long the training may still take to leave: none where it takes memory meanwhile."""


class MemoryGuard:
    """Fed with every reading of free memory."""

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self._readings: deque[tuple[float, float]] = deque(maxlen=8)
        self._low = 0
        self._falling = 0

    def observe(
        self,
        now: float,
        available_gb: float,
        *,
        pressure_full: float | None = None,
        swap_free_gb: float | None = None,
        swapping: bool = False,
    ) -> Breach | None:
        """Why it has to be ended, or None. `now` is seconds; `swapping`: swap is filling up."""
        self._readings.append((now, available_gb))
        left = f"only {available_gb:.2f} GiB of memory left"
        self._low = self._low + 1 if available_gb < self.floor else 0
        if self._low >= LOW_POLLS or available_gb < self.floor / 2:
            return Breach(f"{left} (floor {self.floor:.2f})", grace_s=2.0)
        rate = self._rate()
        gone = rate is not None and rate > 0 and available_gb / rate < REACT_S
        near = available_gb < NEAR_FLOORS * self.floor
        self._falling = self._falling + 1 if gone and near else 0
        if self._falling >= FALLING_POLLS:
            return Breach(f"{left}, and {rate:.1f} GiB more are taken every second", grace_s=0.0)
        # The pressure is the whole machine's: with memory left in our own container it is somebody else's.
        thrashes = near and pressure_full is not None and pressure_full >= THRASH_FULL
        if thrashes and (swapping or (swap_free_gb is not None and swap_free_gb < SWAP_LEFT_GB)):
            words = f"the machine only pages: nothing could go on for {pressure_full:.0f}% of the last 10 s"
            return Breach(f"{words}, {available_gb:.2f} GiB of memory left", grace_s=0.0)
        return None

    def _rate(self) -> float | None:
        """GiB a second that are being taken, over the last looks."""
        last_t, last = self._readings[-1]
        for t, available in reversed(self._readings):
            if last_t - t >= FALL_OVER_S:
                return (available - last) / (last_t - t)
        return None
