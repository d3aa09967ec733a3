"""What this trainer cannot do, said before anything is loaded: one message per key, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from agent.errors import Unsupported
from agent.recipe.schema import Recipe


def _importable(package: str) -> bool:
    return find_spec(package) is not None


def refuse_unsupported(recipe: Recipe, *, installed: Callable[[str], bool] = _importable) -> None:
    """Raises Unsupported for the first key that asks for what this trainer lacks. `installed` tells of a package."""
    execution, backend = recipe.execution, recipe.backend
    one_device = "this trainer is one process on one device"
    if execution.mode != "sync":
        _refuse("execution.mode", execution.mode, "this trainer samples and trains in turn", "sync")
    if execution.max_trajectory_age_steps != 0:
        _refuse(
            "execution.max_trajectory_age_steps",
            execution.max_trajectory_age_steps,
            "it limits how stale samples may be under execution.mode async; here they are always fresh",
            0,
        )
    if execution.placement.actors != 1:
        _refuse("execution.placement.actors", execution.placement.actors, one_device, 1)
    if execution.placement.learners != 1:
        _refuse("execution.placement.learners", execution.placement.learners, one_device, 1)
    if not execution.placement.colocated:
        _refuse("execution.placement.colocated", "false", one_device, "true")
    if backend.trainer != "native":
        _refuse("backend.trainer", backend.trainer, "only the native trainer is built in", "native")
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel"):
        if getattr(backend, name) != 1:
            _refuse(f"backend.{name}", getattr(backend, name), one_device, 1)
    if recipe.model.revision is not None and not is_hub_id(recipe.model.source):
        _refuse("model.revision", recipe.model.revision, "only a hub id has revisions", "null")
    if recipe.model.quantize is not None and not installed("bitsandbytes"):
        raise Unsupported(
            f"model.quantize: {recipe.model.quantize} needs the package bitsandbytes, which is not installed",
            hint='pip install "raft-agent[quantize]", or set model.quantize to null.',
        )


def needs_transformers(recipe: Recipe) -> bool:
    """What takes the built-in model from our own implementation to transformers': adapters, with or
    without a quantized base, and `generate()`."""
    return recipe.model.lora is not None or recipe.rollout.engine == "hf"


def is_hub_id(source: str) -> bool:
    return not source.startswith(("builtin:", "pypi:", ".", "/", "~")) and not source.endswith(".gguf")


def _refuse(key: str, value: object, why: str, instead: object) -> None:
    raise Unsupported(f"{key}: {value} is not supported: {why}", hint=f"Set {key} to {instead}.")
