"""Python's collector of cycles, held back where it can only cost time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """While millions of objects are made that all stay, the collector would look through them again and again. Also a
    decorator, for commands that read a journal, print and end."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
