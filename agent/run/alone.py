"""One recipe alone, without a campaign: what `train`, `eval` and `study` ask the launcher for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.recipe.schema import Recipe
from agent.run.request import RunRequest

LONGEST_S = 7 * 86400.0
"""A training whose budget is not in seconds may take this long."""


def request_alone(recipe: Recipe, out: Path, *, workspace: Path, cache: Path, **keys: Any) -> RunRequest:
    """The request, with a time limit that nothing which works comes near to. `keys` are those of RunRequest."""
    limit = (recipe.budget.train_seconds or LONGEST_S) * 1.5 + 3600
    return RunRequest(recipe=recipe, out=out, workspace=workspace, time_limit_s=limit, cache=cache, **keys)
