"""What a campaign trains and how it measures, in words, from the texts in its journal."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import AgentError
from agent.ledger.state import CampaignState
from agent.recipe.files import EXTENDS, merge
from agent.recipe.reading import read_yaml
from agent.recipe.schema import Evaluation

MOST_PARENTS = 20


@dataclass(frozen=True)
class Measuring:
    model: str
    task: str
    metric: str
    minimize: bool
    prompts: Mapping[str, int | None]
    """By held-out split."""


def measuring_of(state: CampaignState) -> Measuring:
    """Unknown words are empty; the verdicts' own words on the metric count before the recipe's."""
    recipe = start_recipe(state)
    model, task = recipe.get("model"), recipe.get("task")
    evaluation = _evaluation(recipe.get("evaluation"))
    told = _measured_by(state)
    metric = told.get("metric") or state.calibration.get("metric") or (evaluation.metric if evaluation else "metric")
    direction = told.get("direction") or (evaluation.direction if evaluation else "maximize")
    return Measuring(
        model=str(model.get("source", "")) if isinstance(model, Mapping) else "",
        task=str(task.get("dataset", "")) if isinstance(task, Mapping) else "",
        metric=str(metric),
        minimize=direction == "minimize",
        prompts={
            "search": evaluation.search_prompts if evaluation else None,
            "confirm": evaluation.confirm_prompts if evaluation else None,
            "holdout": evaluation.holdout_prompts if evaluation else None,
        },
    )


def start_recipe(state: CampaignState) -> dict[str, Any]:
    """The recipe's keys as the campaign found them, what it extends below them; empty where it cannot be read."""
    started = state.started
    if started is None:
        return {}
    files = started.files or {started.recipe_path: started.recipe}
    chain: list[Mapping[str, Any]] = []
    path: str | None = started.recipe_path
    try:
        while path in files and len(chain) < MOST_PARENTS:
            content = read_yaml(files[path], where=path, edited=False)
            if not isinstance(content, dict):
                break
            parent = content.pop(EXTENDS, None)
            chain.append(content)
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), parent)) if parent else None
    except AgentError:
        return {}
    merged: dict[str, Any] = {}
    for content in reversed(chain):
        merged = merge(merged, content)
    return merged


def _evaluation(told: object) -> Evaluation | None:
    try:
        return Evaluation.model_validate(told or {})
    except ValueError:
        return None


def _measured_by(state: CampaignState) -> dict[str, Any]:
    for number in reversed(state.judged_order):
        judged = state.experiments[number].judged
        told = judged.numbers.get("measured_by") if judged else None
        if told:
            return dict(told)
    return {}
