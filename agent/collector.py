"""Memory, where to give it back or to look through it can only cost time."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

Thing = TypeVar("Thing")
_kept: Any = None


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """While millions of objects are made that all stay, the collector of cycles would look through them again and
    again. Also a decorator, for commands that read a journal, print and end."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _kept is not None:
            gc.freeze()  # or the first thing it does is to look through all that is there
        if was:
            gc.enable()


def kept_to_the_end(thing: Thing) -> Thing:
    """For a command that ends when it has shown what it has read. `leave` then does not take it apart, which takes a
    tenth of the time to read it. One thing at a time: the next one takes its place."""
    global _kept
    _kept = thing
    return thing


def leave(code: int) -> NoReturn:
    """End this process. Where something is `kept_to_the_end`, without freeing all objects first: what is to be done at
    the end is done, what was printed is printed, and the system takes the memory back at once."""
    if _kept is None or threading.active_count() > 1:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # as Python itself says it
        sys.exit(code)
    atexit._run_exitfuncs()
    os._exit(code)
