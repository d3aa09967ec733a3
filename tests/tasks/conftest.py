"""Fixtures of the tests of `agent.tasks`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent.tasks.layers import Layers, layers_here

BARE = Layers(
    way="none", walls="", processes=False, temporary=False, landlock=0, seccomp=False, refused=("unshare: not here",)
)
"""A system that has nothing but rlimits."""


@pytest.fixture(scope="session")
def walls() -> Layers:
    """For tests of what is kept in, and of what needs no flag."""
    found = layers_here()
    if not found.enough:
        pytest.skip(f"this system has too little to keep code in: {found}")
    return found


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Layers:
    """As if this system were such a one, for who asks which layers there are."""
    monkeypatch.setattr("agent.tasks.gym.layers_here", lambda: BARE)
    monkeypatch.setattr("agent.tasks.scored_verifiers.layers_here", lambda: BARE)
    monkeypatch.setattr("agent.tasks.sandbox.Sandbox.layers", lambda self: BARE)
    return BARE


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
