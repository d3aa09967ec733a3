"""A change: one idea about the recipe, possibly several keys that belong together.

What decides how a result is measured is out of its reach: a change that touches a locked key is refused
here, by code, and so is one that would move it by another way (`refuse_moved_yardstick`). So is one that moves the
learning rate and the temperature at once, because its effect could be laid to neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from agent.errors import AgentError, RecipeError
from agent.recipe.files import bounds_of, get_key, with_keys
from agent.recipe.schema import Recipe, leaf_keys
from agent.recipe.yardstick import moved_locks

LR_SCHEDULE = "learner.lr_schedule"
LEARNING_RATE_KEYS = ("learner.learning_rate", LR_SCHEDULE, "learner.warmup")
TEMPERATURE_KEYS = ("rollout.temperature", "rollout.temperature_schedule")
SAME_SPEED_KEYS = (
    *LEARNING_RATE_KEYS,
    "learner.beta2",
    "learner.weight_decay",
    "learner.max_grad_norm",
    "learner.clip_range",
    "task.reward.scale",
    "execution.placebo",
)
"""Keys that change what a step does and not how long it takes, so that a training with another speed was disturbed.
(A better policy may give shorter answers; a tokens-a-second figure hardly moves with that.)"""


TUNING_VARIABLES = re.compile(
    r"(TORCH|PYTORCH|OMP|GOMP|KMP|MKL|ONEDNN|DNNL|OPENBLAS|CUDA|CUBLAS|CUDNN|NCCL|NVIDIA|HIP|HIPBLASLT|HSA|ROCBLAS|"
    r"MIOPEN|AMD|GPU|TRITON|FLASH_ATTENTION|MALLOC)_[A-Z0-9_]+|GLIBC_TUNABLES|TOKENIZERS_PARALLELISM"
)
"""Environment variables that an idea may set: they steer libraries that compute. Any other may decide which code, model
or cache a process finds (PYTHONPATH, LD_PRELOAD, HF_HOME, TRANSFORMERS_*), and so what is measured."""
LOADING_VARIABLES = re.compile(r".*(_PATH|_DIR|_HOME|_FILE|_LIB|_LIBS|_LIBRARY|_LIBRARIES|_CACHE|_PLUGIN)")
"""Of those, what names a place to load from: HSA_TOOLS_LIB and OMP_TOOL_LIBRARIES load a library into the process
(OpenMP 5.0, section 6.19; ROCr's runtime), TORCHINDUCTOR_CACHE_DIR compiled kernels."""
PRIVATE = ".raft"
"""Folder of the agent's own files in a workspace."""


class ChangeRefused(AgentError):
    """The change may not be made, or would not make a valid recipe."""

    exit_code = 3
    crash_class = "typo"

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None, key: str | None = None):
        super().__init__(message, where=where, hint=hint)
        self.key = key


class Change(BaseModel):
    """Set keys to values, scale numbers, flip switches. Keys are dotted paths of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    set: dict[str, Any] = {}
    scale: dict[str, float] = {}
    toggle: list[str] = []

    @model_validator(mode="after")
    def _each_key_once(self) -> Change:
        keys = [*self.set, *self.scale, *self.toggle]
        if not keys:
            raise ValueError("a change must change something")
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"a change must name each key once, got twice: {', '.join(sorted(twice))}")
        return self

    def values(self, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
        """Key -> (from, to), for the keys that really change on this recipe.

        Scaling keeps whole numbers whole, moves them by at least one, and stays inside the schema's range.
        """
        moves: dict[str, tuple[Any, Any]] = {}
        for key, value in self.set.items():
            moves[key] = (_plain(_get(recipe, key)), value)
        for key, factor in self.scale.items():
            moves[key] = (_get(recipe, key), _scaled(key, _get(recipe, key), factor))
        for key in self.toggle:
            old = _get(recipe, key)
            if not isinstance(old, bool):
                raise ChangeRefused(f"{key} is no switch, it is {old!r}", hint="use set or scale")
            moves[key] = (old, not old)
        return {key: (old, new) for key, (old, new) in moves.items() if old != new}

    def apply(self, recipe: Recipe) -> Recipe:
        """The changed, validated recipe. ChangeRefused for a locked key, a forbidden pair, or an invalid result."""
        refuse_forbidden([*self.set, *self.scale, *self.toggle])
        moves = self.values(recipe)
        _refuse_to_move_the_yardstick(moves, recipe)
        try:
            changed = with_keys(recipe, {key: new for key, (_, new) in moves.items()})
        except RecipeError as error:
            raise ChangeRefused(f"does not make a valid recipe: {error.message}", hint=error.hint) from None
        refuse_moved_yardstick(recipe, changed)
        return changed

    def describe(self, recipe: Recipe) -> str:
        """`learner.learning_rate 5e-05 -> 0.0001, ...`, short enough for a table."""
        return describe_moves(self.values(recipe))


def touches_speed(keys: Iterable[str]) -> bool:
    """Whether moving these keys may change how many tokens a second a training does."""
    return not all(key.startswith(SAME_SPEED_KEYS) for key in keys)


def describe_moves(moves: Mapping[str, tuple[Any, Any]]) -> str:
    """`key from -> to` for each key."""
    return ", ".join(f"{key} {short(old)} -> {short(new)}" for key, (old, new) in moves.items())


def short(value: Any) -> str:
    """A value in at most about 40 characters on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "none"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def refuse_forbidden(keys: list[str]) -> None:
    """ChangeRefused for keys that no experiment may move, alone or together."""
    leaves = leaf_keys()
    for key in keys:
        below = [leaf for leaf in leaves if leaf == key or leaf.startswith(f"{key}.")]
        inside = [leaf for leaf in leaves if key.startswith(f"{leaf}.")]  # task.mix.hard is below the leaf task.mix
        if not below and not inside:
            raise ChangeRefused(f"{key}: unknown key", hint="see the recipe's keys in agent/recipe/schema.py")
        if any(leaves[leaf] for leaf in [*below, *inside]):
            raise _locked(key, "it decides how results are measured")
    moves_rate = any(key.startswith(LEARNING_RATE_KEYS) for key in keys)
    moves_temperature = any(key.startswith(TEMPERATURE_KEYS) for key in keys)
    if moves_rate and moves_temperature:
        raise ChangeRefused("learning rate and temperature may not change together", hint="make two experiments of it")


def refuse_moved_yardstick(before: Recipe, after: Recipe) -> None:
    """ChangeRefused where what is measured would be another thing under `after`, by whatever way it came to be so.

    Beside the locked keys: held-out tests that the request did not show before, variables that decide what a process
    loads, and a model that is a run's own checkpoint.
    """
    moved = moved_locks(before, after)
    for key, (old, new) in moved.items():
        raise _locked(key, f"it decides how results are measured, and would go from {short(old)} to {short(new)}")
    if "{tests}" in after.prompt.template and "{tests}" not in before.prompt.template:
        raise _locked("prompt.template", "{tests} would show held-out rows' own tests to the model")
    _refuse_variables(before.backend.env, after.backend.env)
    if after.model != before.model and PRIVATE in PurePath(after.model.source).parts:
        raise _locked(
            "model.source", f"{after.model.source} is the agent's own; every run starts from a model as it comes"
        )


def _refuse_variables(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    for name in sorted({*before, *after}):
        value = after.get(name, "")
        if value == before.get(name, ""):
            continue
        tunes = TUNING_VARIABLES.fullmatch(name) and not LOADING_VARIABLES.fullmatch(name)
        if name in after and not (tunes and "/" not in value and "\\" not in value):
            raise _locked(f"backend.env.{name}", "such a variable can decide which code, model or cache is loaded")


def _locked(key: str, why: str) -> ChangeRefused:
    return ChangeRefused(
        f"{key} is locked: {why}", hint="change it in the recipe yourself and start a new campaign", key=key
    )


def _refuse_to_move_the_yardstick(keys: Iterable[str], recipe: Recipe) -> None:
    """The reward is for the search to shape, unless it is what is measured."""
    measured = {recipe.evaluation.metric, *(guard.metric for guard in recipe.evaluation.guards)}
    key = next((key for key in keys if key == "task.reward" or key.startswith("task.reward.")), None)
    if key is not None and "mean_reward" in measured:
        raise ChangeRefused(
            f"{key} is locked: evaluation measures mean_reward, which it decides",
            hint="measure pass_rate, or change it in the recipe yourself and start a new campaign",
            key=key,
        )


def _get(recipe: Recipe, key: str) -> Any:
    try:
        return get_key(recipe, key)
    except KeyError:
        raise ChangeRefused(f"{key}: unknown key", hint="see the recipe's keys in agent/recipe/schema.py") from None


def _plain(value: Any) -> Any:
    """Sections and tuples as the plain values a YAML file would hold, so that from and to compare."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _short(value: float) -> float:
    """To six significant digits, or to three where that is the same number but for rounding: half a step up and half
    a step down (factors 1.41421 and 0.707107) lead back to where they began, and two up to twice that."""
    exact, near = float(f"{value:.6g}"), float(f"{value:.3g}")
    return near if math.isclose(exact, near, rel_tol=1e-4) else exact


def _scaled(key: str, old: Any, factor: float) -> Any:
    if isinstance(old, bool) or not isinstance(old, int | float):
        raise ChangeRefused(f"{key} cannot be scaled, it is {short(old)}", hint="use set")
    limits = bounds_of(key)
    new: float = old * factor
    if isinstance(old, int):
        new = round(new)
        if new == old and factor != 1:
            new = old + (1 if factor > 1 else -1)
    else:
        new = _short(new)
    new = min(new, limits.get("le", new))
    new = max(new, limits.get("ge", new))
    return int(new) if isinstance(old, int) else new
