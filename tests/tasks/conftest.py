"""Fixtures of the tests of `agent.tasks`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], Any]:
    """Calls a function in a thread of its own while this one runs Python, as verification runs beside generation."""

    def called(function: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(function)
            while not future.done():
                sum(range(1000))
            return future.result()

    return called
