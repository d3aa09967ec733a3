"""Looks at a running training several times a second, until it has ended or has to be ended, and says why.

It ends nothing itself, and reads only what a trainer and the machine show: heartbeat, memory, disk, time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from agent.contract import LOG, RECIPE, Heartbeat, Phase
from agent.hardware.sensors import GIB, Memory, disk_free, memory
from agent.run.memory_guard import Breach, MemoryGuard
from agent.run.pace import Pace
from agent.run.sampler import Sampler
from agent.run.stall import Activity, activity, why_slow
from agent.run.standby import Standby
from agent.run.start import Start
from agent.run.telemetry import read_heartbeat, read_summary
from agent.run.watchdog import Watchdog

MEMORY_EVERY_S = 1.0
"""The process table is walked this often; the heartbeat is read at every poll, and so is memory where it is short."""
PLENTY_FLOORS = 16.0
"""Memory is plenty above so many floors (12 GiB of 24, 41 of 128): 10 GiB may go between two looks a second apart."""
SWAPPING_GB = 0.1
"""Swap that grows by this much within `SWAPPING_S` is filling up."""
SWAPPING_S = 10.0

FLOOD_GRACE_S = 2.0
"""One that fills the disk meanwhile does not get longer to leave."""

EndedBy = Literal["itself", "time_limit", "hang", "slow", "stop", "memory", "disk", "flood"]


@dataclass(frozen=True)
class Progress:
    """What a person may want to see while it runs."""

    phase: Phase
    step: int
    cycle: int | None
    budget_spent: float | None
    note: str | None
    select_metric: float | None
    elapsed_s: float
    time_left_s: float
    resident_gb: float | None


class Trainer(Protocol):
    """The running process, as far as it is looked at."""

    clock: Callable[[], float]
    sleep: Callable[[float], None]
    grace_s: float
    began: float
    heartbeat: Heartbeat | None
    """As it was read last."""
    resident_bytes: int | None
    start: Start
    standby: Standby | None

    def alive(self) -> bool: ...
    def sample(self, now: float) -> None: ...
    def has_new_summary(self) -> bool: ...


@dataclass(frozen=True)
class End:
    """What ends a training, and how long it may take to leave."""

    by: EndedBy
    reason: str = ""
    grace_s: float = math.inf
    stayed: bool = False
    """It was done, and did not leave."""


class Watch:
    """Looks at a running training until it has ended or has to be."""

    def __init__(
        self,
        trainer: Trainer,
        out: Path,
        sampler: Sampler,
        *,
        limit_s: float,
        watchdog: Watchdog,
        guard: MemoryGuard,
        disk_floor_gb: float,
        most_log_gb: float,
    ) -> None:
        self.trainer, self.out, self.sampler, self.limit_s = trainer, out, sampler, limit_s
        self.watchdog, self.guard = watchdog, guard
        self.disk_floor_gb, self.most_log_gb = disk_floor_gb, most_log_gb
        self._done_since: float | None = None
        self._pace = Pace()
        self._crawl: str | None = None
        self._seen: tuple[float, Activity] | None = None
        self._last_memory: tuple[float, Memory] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return (self._crawl,) if self._crawl else ()

    def until_the_end(
        self, *, stop: Callable[[], str | None], on_progress: Callable[[Progress], None], poll_s: float
    ) -> End:
        trainer, limit = self.trainer, self.limit_s
        while trainer.alive():
            now = trainer.clock()
            trainer.heartbeat = heartbeat = read_heartbeat(self.out)
            trainer.sample(now)
            elapsed = now - trainer.began
            on_progress(_progress(trainer, heartbeat, elapsed, limit))
            asked = stop()
            if asked is not None:
                return End("stop", asked)
            self._look_at_pace(heartbeat, now)
            if elapsed >= limit:
                crawled = f"; {self._crawl}" if self._crawl else ""
                return End("time_limit", f"the time limit of {limit:g} s was reached{crawled}")
            stalled = self.watchdog.observe(heartbeat, now=now, activity=self._activity)
            if stalled is not None:
                return End(stalled.kind, stalled.reason)
            full = self._look_at_disk() or self._look_at_summary(now)
            if full is not None:
                return full
            breach = self._look_at_memory(now, heartbeat)
            if breach is not None:
                held = f"; the training holds {trainer.resident_bytes / GIB:.2f}" if trainer.resident_bytes else ""
                return End("memory", f"{breach.reason}{held}", grace_s=breach.grace_s)
            _pause(trainer, min(poll_s, max(0.01, limit - elapsed)))
        return End("itself")

    def _look_at_disk(self) -> End | None:
        out = self.out
        with contextlib.suppress(OSError):  # somebody may have deleted it, and the trainer writes on to it
            log = (out / LOG).stat().st_size / GIB
            if log > self.most_log_gb:
                return End("flood", f"its log has grown to {log:.1f} GiB", grace_s=FLOOD_GRACE_S)
        with contextlib.suppress(OSError):  # the trainer may have done anything to its folder
            free = disk_free(out)
            if free < self.disk_floor_gb:
                return End("disk", f"only {free:.2f} GiB of disk left where the run writes", grace_s=FLOOD_GRACE_S)
        return None

    def _look_at_summary(self, now: float) -> End | None:
        """A trainer leaves after its summary; a driver that hangs at the end may keep it for ever."""
        if not self.trainer.has_new_summary():
            self._done_since = None
            return None
        self._done_since = self._done_since or now
        if now - self._done_since < self.trainer.grace_s or read_summary(self.out) is None:
            return None
        words = f"it wrote its summary and was still there {now - self._done_since:.3g} s later"
        return End("itself", words, stayed=True)

    def _look_at_pace(self, heartbeat: Heartbeat | None, now: float) -> None:
        crawl = self._pace.observe(heartbeat, now=now)
        if crawl is not None and (self._crawl is None or not self._crawl.startswith(crawl.words)):
            began = self.sampler.elapsed_s - crawl.seconds
            samples = self.sampler.samples()
            slow, before = [one for one in samples if one.t >= began], [one for one in samples if one.t < began]
            self._crawl = f"{crawl.words}; {why_slow(slow, before=before)}"

    def _activity(self, silent_s: float) -> Activity:
        """What it has been doing while it was silent; looked at once a second, as it is sampled."""
        now = self.sampler.elapsed_s
        if self._seen is None or now - self._seen[0] >= 1.0:
            began = now - silent_s
            samples = self.sampler.samples()
            silence, before = [one for one in samples if one.t >= began], [one for one in samples if one.t < began]
            self._seen = now, activity(silence, before=before)
        return self._seen[1]

    def _look_at_memory(self, now: float, heartbeat: Heartbeat | None) -> Breach | None:
        trainer, told = self.trainer, self._memory(now)
        if trainer.standby is not None:
            trainer.standby.tend(
                trainer.start,
                recipe=self.out.absolute() / RECIPE,
                phase=heartbeat.phase if heartbeat else None,
                free_gb=told.available,
                floor_gb=self.guard.floor,
                resident_gb=(trainer.resident_bytes or 0) / GIB,
            )
        latest = self.sampler.latest()
        return self.guard.observe(
            now,
            told.available,
            pressure_full=latest.pressure_full if latest else None,
            swap_free_gb=told.swap_free,
            swapping=self._swapping(),
        )

    def _memory(self, now: float) -> Memory:
        """Read once a second while plenty is left, else at every look."""
        known = self._last_memory
        plenty = known is not None and known[1].available > PLENTY_FLOORS * self.guard.floor
        if known is None or not plenty or now - known[0] >= MEMORY_EVERY_S:
            known = self._last_memory = now, memory()
        return known[1]

    def _swapping(self) -> bool:
        recent = self.sampler.since(self.sampler.elapsed_s - SWAPPING_S)
        used = [one.swap_used_gb for one in recent if one.swap_used_gb is not None]
        return len(used) >= 2 and used[-1] - used[0] >= SWAPPING_GB


def _pause(trainer: Trainer, seconds: float) -> None:
    """Until the next poll, or the end of the trainer if that comes first."""
    until = trainer.clock() + seconds
    while trainer.alive() and trainer.clock() < until:
        trainer.sleep(min(0.05, seconds))


def _progress(trainer: Trainer, beat: Heartbeat | None, elapsed: float, limit: float) -> Progress:
    return Progress(
        phase=beat.phase if beat else "start",
        step=beat.step if beat else 0,
        cycle=beat.cycle if beat else None,
        budget_spent=beat.budget_spent if beat else None,
        note=beat.note if beat else None,
        select_metric=beat.select_metric if beat else None,
        elapsed_s=elapsed,
        time_left_s=max(0.0, limit - elapsed),
        resident_gb=trainer.resident_bytes / GIB if trainer.resident_bytes is not None else None,
    )
