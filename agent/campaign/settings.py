"""What the user asked of a campaign, as plain values that the journal can hold and `resume` can read back."""

from __future__ import annotations

import datetime
import re
from dataclasses import asdict, dataclass
from typing import Any

from agent.errors import UsageError


@dataclass(frozen=True)
class Target:
    """Stop once the incumbent's confirmed metric reaches `value`: `pass_rate>=0.9`."""

    metric: str
    at_least: bool
    value: float

    def reached(self, metric: float) -> bool:
        return metric >= self.value if self.at_least else metric <= self.value

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.value:g}"


def parse_target(text: str, *, metric: str) -> Target:
    """`METRIC>=X` or `METRIC<=X`. UsageError where it is not that, or not the recipe's metric."""
    found = re.fullmatch(r"\s*([a-z_@]+)\s*(>=|<=)\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?%?)\s*", text)
    if not found:
        raise UsageError(f"--target {text!r} is no target", hint=f"write it like {metric}>=0.9")
    name, relation, number = found.groups()
    if name != metric:
        raise UsageError(
            f"--target names {name}, the recipe measures {metric}", hint=f"write {metric}{relation}{number}"
        )
    try:
        value = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"--target {text!r}: {number} is no number", hint=f"write it like {metric}>=0.9") from None
    return Target(name, relation == ">=", value)


def target_met(text: str, best: float | None, *, metric: str) -> bool:
    """`best`: the incumbent's confirmed metric; a lucky search run does not count."""
    return best is not None and parse_target(text, metric=metric).reached(best)


@dataclass(frozen=True)
class Settings:
    recipe_path: str
    """Relative to the workspace."""
    campaign: str
    budget_s: float | None = None
    deadline: str | None = None
    """ISO date and time with zone."""
    baseline_seeds: int = 3
    max_experiments: int | None = None
    per_experiment_s: float | None = None
    """Longest wall-clock of one run, seconds."""
    target: str | None = None
    only: str | None = None
    """Axis or hypothesis id of a directed campaign."""
    low_priority: bool = False
    allow_untrusted_code: bool = False

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def deadline_time(self) -> datetime.datetime | None:
        return datetime.datetime.fromisoformat(self.deadline) if self.deadline else None
