"""Small models and recipes for the tests of the trainer. Nothing is downloaded and nothing waits for the bootstrap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.raft import tiny
from agent.raft.model import Policy, load_policy
from agent.recipe.files import recipe_from
from agent.recipe.schema import Recipe

torch.set_num_threads(1)

BASE: dict[str, Any] = {
    "model": {"source": "builtin:tiny"},
    "task": {"dataset": "builtin:addition"},
    "rollout": {
        "prompts_per_cycle": 24,
        "samples_per_prompt": 8,
        "max_new_tokens": 6,
        "max_total_sequence_length": 32,
        "slots": 64,
    },
    "selection": {"reward_threshold": 0.2},
    "learner": {"learning_rate": 1e-3},
    "evaluation": {
        "select_prompts": 8,
        "search_prompts": 8,
        "confirm_prompts": 4,
        "holdout_prompts": 4,
        "samples_per_prompt": 2,
        "max_new_tokens": 6,
    },
    "budget": {"cycles": 2},
}
"""A training of well under a second."""


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def small_recipe(over: dict[str, Any] | None = None) -> Recipe:
    return recipe_from(merged(BASE, over or {}), where="test")


def no_beat(*_: object, **__: object) -> None:
    """Nobody watches a test."""


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the built-in model is there already: taught for a moment, so that it is right now and then."""
    cache = tmp_path_factory.mktemp("cache")
    lesson = replace(tiny.LESSON, most_steps=60, check_every=60, wrong_share=0.0, learning_rate=2e-3)
    model, _ = tiny.teach(lesson, beat=no_beat)
    folder = tiny.home(cache)
    folder.mkdir(parents=True)
    tiny.save_model(model, folder)
    tiny.CharTokenizer().save_pretrained(str(folder))
    return cache


@pytest.fixture
def policy(model_cache: Path) -> Policy:
    return load_policy(small_recipe(), cache=model_cache, seed=0, beat=no_beat)
