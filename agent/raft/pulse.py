"""The sign of life of a training and the place where it is asked to end.

Every decode step, optimizer step and bootstrap step calls `beat`. That renews the heartbeat file (at most once in
`interval` seconds, replaced atomically, not fsynced: it is worth nothing after a crash) and raises `EndTraining`
when SIGTERM or the time limit says so. It does not watch anything; the watchdog is another process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from agent.contract import HEARTBEAT, Heartbeat, Phase

EndReason = Literal["sigterm", "time_limit"]
DeviceMemory = tuple[float, float, float | None]
"""GiB of the accelerator: allocated, reserved, and free where the driver says so."""
Beat = Callable[..., None]
"""`Pulse.beat`, or what stands for it."""


def no_beat(*_: object, **__: object) -> None:
    """Where nobody watches."""


class EndTraining(Exception):
    """The step is finished and no further one may begin."""

    def __init__(self, reason: EndReason):
        super().__init__(reason)
        self.reason: EndReason = reason


class Pulse:
    def __init__(self, out: Path | None, *, interval: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out
        self.interval = interval
        self.clock = clock
        self.phase: Phase = "start"
        self.step = 0
        self.cycle: int | None = None
        self.budget_spent: float | None = None
        self.budget_before: float | None = None
        """What of it earlier starts have spent."""
        self.select_metric: float | None = None
        self.terminated = False
        """Set by the SIGTERM handler."""
        self.deadline: float | None = None
        """On `clock`: when training must end so that the evaluation fits. None while evaluating."""
        self.device_memory: Callable[[], DeviceMemory | None] = lambda: None
        """Asked at every heartbeat that is written; None where there is no accelerator."""
        self._written = float("-inf")

    def beat(self, phase: Phase, *, note: str | None = None) -> None:
        """One more step in `phase`. Raises EndTraining when it must be the last one."""
        self.step = self.step + 1 if phase == self.phase else 0
        changed, self.phase = phase != self.phase, phase
        now = self.clock()
        if changed or note is not None or now - self._written >= self.interval:
            self._write(note, now)
        self.check()

    def check(self) -> None:
        if self.terminated:
            raise EndTraining("sigterm")
        if self.deadline is not None and self.clock() > self.deadline:
            raise EndTraining("time_limit")

    def _write(self, note: str | None, now: float) -> None:
        self._written = now
        if self.out is None:
            return
        allocated, reserved, free = self.device_memory() or (None, None, None)
        row = Heartbeat(
            phase=self.phase,
            step=self.step,
            cycle=self.cycle,
            pid=os.getpid(),
            time=time.time(),
            budget_spent=self.budget_spent,
            budget_before=self.budget_before,
            note=note,
            select_metric=self.select_metric,
            device_allocated_gb=allocated,
            device_reserved_gb=reserved,
            device_free_gb=free,
        )
        temporary = self.out / f".{HEARTBEAT}.{os.getpid()}"
        temporary.write_text(row.model_dump_json() + "\n")
        temporary.replace(self.out / HEARTBEAT)
