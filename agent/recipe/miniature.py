"""The smallest training that still goes through every part of a recipe's execution: for trials of the layer below.

One cycle of two prompts: the model is loaded, sampled from, trained on, and measured, under the recipe's own
arithmetic, attention, compilation and environment. What it measures means nothing.
"""

from __future__ import annotations

from typing import Any

from agent.recipe.files import with_keys
from agent.recipe.schema import Recipe

TOKENS = 16


def miniature(recipe: Recipe) -> Recipe:
    tokens = min(TOKENS, recipe.rollout.max_new_tokens)
    values: dict[str, Any] = {
        "budget.train_seconds": None,
        "budget.tokens": None,
        "budget.cycles": 1,
        "rollout.prompts_per_cycle": 2,
        "rollout.samples_per_prompt": 2,
        "rollout.max_new_tokens": tokens,
        "rollout.slots": min(4, recipe.rollout.slots),
        # every sample is trained on, right or wrong, whole or cut
        "selection.reward_threshold": -1000.0,
        "selection.threshold_schedule": None,
        "selection.dedup": False,
        "selection.drop_solved": False,
        "selection.truncated_as_positive": True,
        "selection.min_samples": 1,
        "learner.gradient_accumulation": 1,
        "learner.epochs_per_cycle": 1,
        "evaluation.select_prompts": 2,
        "evaluation.select_samples": 1,
        "evaluation.samples_per_prompt": 1,
        "evaluation.max_new_tokens": min(TOKENS, recipe.evaluation.max_new_tokens),
    }
    return with_keys(recipe, values)
