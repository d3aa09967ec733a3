"""Ctrl-C in good order, for commands that run trainings."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def polite_interrupt() -> Iterator[Callable[[], str | None]]:
    """The first Ctrl-C or SIGTERM asks to stop in good order; the second one is for the impatient."""
    asked: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        print("\nstopping in good order (again to stop at once)", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: f"stopped by {asked[0]}" if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
