"""Read what may not answer: a driver that hangs answers no read of its files, and nobody may wait for it.

Not for what is quick (/proc): a thread for each source is only worth it where a read can block.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

PATIENCE_S = 3.0
"""A reading that is older is not told any more: what it was asked for has not answered."""

T = TypeVar("T")


class Patient(Generic[T]):
    """Asks `read` in a thread of its own, again and again, and tells what it last said.

    A thread that waits in a driver cannot be ended. It is left behind, and used again by the next that asks the same: a
    driver that answers no more costs one thread, however many runs there are.
    """

    _left_behind: ClassVar[list[Patient[Any]]] = []

    def __init__(
        self,
        read: Callable[[], T],
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._clock, self._patience_s = read, clock, patience_s
        self._said: tuple[float, T | None] = (clock(), None)
        self._asked = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        start(self._thread)

    @classmethod
    def asking(cls, read: Callable[[], T]) -> Patient[T]:
        """One that asks this; the one that still waits for an answer to the same, where there is one."""
        cls._left_behind = [one for one in cls._left_behind if one._thread.is_alive()]
        waiting = next((one for one in cls._left_behind if one._read is read), None)
        if waiting is None:
            return cls(read)
        cls._left_behind.remove(waiting)
        waiting._closed = False
        return waiting

    def latest(self) -> tuple[T | None, float]:
        """(what was read last, its age in seconds); None where that is too long ago. Asks for the next reading."""
        at, said = self._said
        age = self._clock() - at
        self._asked.set()
        return (said if age <= self._patience_s else None), age

    def fresh(self, most_s: float) -> T | None:
        """What is read from now on; None where it is not there in time. Waits for it."""
        since = self._clock()
        self._asked.set()
        while self._clock() - since < most_s:
            at, said = self._said
            if at > since:
                return said
            time.sleep(0.005)
        return None

    def close(self) -> None:
        self._closed = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.2)
        if self._thread.is_alive():
            self._left_behind.append(self)

    def _run(self) -> None:
        while not self._closed:
            said = quietly(self._read)
            self._said = self._clock(), said
            self._asked.wait()
            self._asked.clear()


def start(thread: threading.Thread) -> None:
    """Where no more threads can be had, nothing is read."""
    with contextlib.suppress(RuntimeError):
        thread.start()


def quietly(read: Callable[[], T]) -> T | None:
    """A reading must never be the end of a run: what the machine answers in any odd way is unknown."""
    try:
        return read()
    except Exception:
        return None
