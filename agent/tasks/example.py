"""One row of a task, whatever file or generator it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question and what its answer is checked against. `row` is the source row, for `file` verifiers."""

    id: str
    """Unique in its data set, and the same in every run of it."""
    question: str
    answer: str
    """The right answer; empty for a code row, whose `tests` decide."""
    tag: str | None = None
    """Kind of question (operation, level, source) that `task.mix` weighs."""
    tests: str | None = None
    """Python source of the tests, for `python_tests`."""
    row: Mapping[str, Any] = field(default_factory=dict, hash=False)
