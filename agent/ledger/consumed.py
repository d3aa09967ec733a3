"""`consumed`, beside a campaign's journal: the seconds of the budget that are used up, written twice a second.

The journal says so with each of its lines, and those are minutes apart while a training runs. This file is one short
line that is overwritten in place: a kill loses half a second of it, a power cut some seconds more. It is not the truth,
only later than it: what counts is the larger of the two.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from agent.files import sync

NAME = "consumed"
EVERY_S = 0.5
SYNC_EVERY_S = 10.0
PATIENCE_S = 2.0
"""A disk that does not answer must not hold up the agent's end."""
_FORM = "{:018.3f}\n"


def read_consumed(journal: Path) -> float:
    """Seconds; 0 where the file is missing, torn, or says no number."""
    try:
        value = float(journal.with_name(NAME).read_text())
    except (OSError, ValueError):
        return 0.0
    return value if 0 <= value < float("inf") else 0.0


class Timekeeper:
    """Writes `consumed()` from a thread of its own, from `start` to `close`. A disk that takes nothing is borne: the
    journal's next line says the time too."""

    def __init__(
        self,
        journal: Path,
        consumed: Callable[[], float],
        *,
        every_s: float = EVERY_S,
        sync_every_s: float = SYNC_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = journal.with_name(NAME)
        self._consumed, self._every_s, self._sync_every_s, self._clock = consumed, every_s, sync_every_s, clock
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="timekeeper", daemon=True)

    def start(self) -> Timekeeper:
        self._thread.start()
        return self

    def close(self) -> None:
        if not self._done.is_set():
            self._done.set()
            self._thread.join(timeout=PATIENCE_S)

    def __enter__(self) -> Timekeeper:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self) -> None:
        synced = self._clock()
        while True:
            last = self._done.wait(self._every_s)
            now = self._clock()
            due = last or now - synced >= self._sync_every_s
            with contextlib.suppress(OSError):
                self._write(durable=due)
                synced = now if due else synced
            if last:
                return

    def _write(self, *, durable: bool) -> None:
        """One `pwrite` of a fixed length: a reader and a kill see the old line or the new one."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, _FORM.format(self._consumed()).encode(), 0)
            if durable:
                sync(descriptor)
        finally:
            os.close(descriptor)
