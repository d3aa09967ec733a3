"""Ctrl-C and SIGTERM: the first asks the campaign to end in good order, the second ends it at once, more do nothing.

A signal handler only takes notes: printing from one may come in the middle of another print, and Python then raises.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Within the block, SIGTERM does what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def polite_interrupt() -> Iterator[Callable[[], str | None]]:
    """Within the block: why the campaign should stop, or None. Raises AtOnce there at the second signal."""
    from agent.run.ending import AtOnce

    asked: list[str] = []
    words = threading.Event()
    over = False

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(f"stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}")
        words.set()
        if len(asked) == 2:
            raise AtOnce(asked[0])

    def tell() -> None:
        words.wait()
        if not over:
            print("stopping in good order (again to stop at once)", file=sys.stderr)

    threading.Thread(target=tell, daemon=True).start()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        over = True
        words.set()
        for number, handler in before.items():
            signal.signal(number, handler)
