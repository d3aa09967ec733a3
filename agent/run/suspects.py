"""Which of the keys that an experiment changed could be the cause of its crash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.run.diagnosis import Diagnosis

TRAINING, SAMPLING = "train", "generate"
SIZES: dict[str, tuple[str, ...]] = {
    "learner.microbatch_tokens": (TRAINING,),
    "rollout.slots": (SAMPLING,),
    "rollout.max_new_tokens": (SAMPLING, TRAINING),
    "rollout.max_total_sequence_length": (SAMPLING, TRAINING),
    "rollout.samples_per_prompt": (SAMPLING,),
    "rollout.prompts_per_cycle": (SAMPLING,),
    "model.lora.rank": (TRAINING,),
}
"""Numbers that take more memory the larger they are, and the phase in which."""
COSTS: dict[str, tuple[Any, ...]] = {
    "learner.gradient_checkpointing": (True, "auto", False),
    "model.quantize": ("4bit", "8bit", None),
    "model.dtype": ("float16", "bfloat16", "auto", "float32"),
    "learner.optimizer": ("sgd", "adafactor", "adamw"),
    "backend.attention": ("flash", "sdpa", "flex", "auto", "eager"),
    "backend.compile": (False, True),
}
"""Choices in the order of the memory they take, cheapest first."""

BACKEND_KEYS = (
    "backend.",
    "execution.",
    "model.dtype",
    "rollout.engine",
    "learner.packing",
    "model.lora",
    "model.quantize",
)
NUMERIC_KEYS = (
    "learner.learning_rate", "learner.lr_schedule", "learner.warmup", "learner.max_grad_norm", "learner.optimizer",
    "learner.beta2", "learner.epochs_per_cycle", "learner.algorithm", "learner.clip_range", "model.dtype",
    "backend.attention", "rollout.temperature", "task.reward",
)  # fmt: skip
DATA_KEYS = ("model.source", "model.revision", "task.", "prompt.")
TIME_KEYS = ("rollout.", "learner.", "execution.", "backend.", "model.dtype")


def suspects(diagnosis: Diagnosis, changed: Mapping[str, tuple[Any, Any]]) -> tuple[str, ...]:
    """Keys of `changed`, likeliest first; none where nothing that was changed has to do with such a crash."""
    named = named_in(f"{diagnosis.evidence} {diagnosis.reason}", changed)
    if diagnosis.key is not None:
        named = [key for key in changed if key == diagnosis.key or key.startswith(f"{diagnosis.key}.")] + named
    match diagnosis.crash_class:
        case "oom":
            found = expanding(changed, phase_of(diagnosis))
        case "backend":
            found = _among(changed, BACKEND_KEYS)
        case "numeric":
            found = _among(changed, NUMERIC_KEYS)
        case "data":
            found = _among(changed, DATA_KEYS)
        case "timeout":
            found = _among(changed, TIME_KEYS)
        case "typo":
            found = [] if named or len(changed) != 1 else list(changed)
        case _:
            found = []
    return tuple(dict.fromkeys([*named, *found]))


def named_in(said: str, changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Changed keys that a message mentions by name or by value."""
    named = []
    for key, (_, new) in changed.items():
        leaf = key.rsplit(".", 1)[-1]
        by_value = isinstance(new, str) and len(new) > 2 and f"'{new}'" in said
        if key in said or (len(leaf) > 4 and leaf in said) or by_value:
            named.append(key)
    if not named and "Target modules" in said:
        named = _among(changed, ("model.lora",))
    return named


def phase_of(diagnosis: Diagnosis) -> str:
    return SAMPLING if diagnosis.phase in ("generate", "evaluate") else TRAINING


def expanding(changed: Mapping[str, tuple[Any, Any]], phase: str) -> list[str]:
    """Changed keys that take more memory than before, those of the failing phase first."""
    found = [key for key, pair in changed.items() if expands(key, *pair)]
    return sorted(found, key=lambda key: phase not in SIZES.get(key, (TRAINING,)))


def expands(key: str, old: Any, new: Any) -> bool:
    if key == "model.lora":
        return old is not None and new is None
    return (key in SIZES or key in COSTS) and needs_less(key, old, new)


def needs_less(key: str, value: Any, than: Any) -> bool:
    """`value` of this key takes less memory than `than` does."""
    if key in COSTS and value in COSTS[key] and than in COSTS[key]:
        return COSTS[key].index(value) < COSTS[key].index(than)
    if key in SIZES:
        if value is None or than is None:
            return value is not None and than is None  # adapters of any rank against all weights
        return bool(value < than)
    return bool(value != than)  # another model: nothing is known, so the limit does not bind


def _among(changed: Mapping[str, tuple[Any, Any]], prefixes: tuple[str, ...]) -> list[str]:
    return [key for key in changed if key.startswith(prefixes)]
