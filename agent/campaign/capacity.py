"""Whether a training fits into this machine: the one place that `check`, `run` and `train` ask before they load.

The arithmetic is in `agent.recipe.memory`; here it meets the machine and the model's shape. Only what cannot fit even
on an idle machine is refused. An unknown shape, or a machine that does not tell its memory, refuses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.campaign.limits import LIMITS, Limits
from agent.errors import Unsupported
from agent.hardware.probe import Machine
from agent.recipe.memory import MachineFacts, MemoryEstimate, estimate, fits, gib, remedy
from agent.recipe.schema import Recipe
from agent.recipe.shapes import FoundShape, shape_of
from agent.run.remedies import propose_remedy

HOST_RESERVE_GB = 1.0
"""Of host or unified memory, GiB: the system and the agent itself."""
HALF_OF_MEMORY = 0.6
"""A unified accelerator that sees less than this share of the memory has the kernel's default limit, one half."""


@dataclass(frozen=True)
class Capacity:
    """What a training may use."""

    gb: float | None
    """GiB; None where the machine does not tell."""
    words: str


@dataclass(frozen=True)
class MemoryCheck:
    model: FoundShape
    capacity: Capacity
    found: MemoryEstimate | None
    """None where the model's shape is not known."""
    fits: bool | None
    """None where it cannot be told."""
    why: str
    remedy: dict[str, Any] | None = None
    """Recipe keys and values with which it would fit."""
    remedy_peak: int | None = None
    """Bytes at the peak with them."""
    advice: str = ""
    """What to do where it does not fit."""
    learned: str | None = None
    """When it, or less, ran out of memory on this machine, whatever the estimate says."""


def facts_of(machine: Machine, recipe: Recipe) -> MachineFacts:
    """The machine as this recipe uses it: the preset `cpu` hides an accelerator."""
    if recipe.backend.environment == "cpu" and machine.kind != "cpu":
        return MachineFacts("cpu", bf16=False)
    return MachineFacts(machine.kind, bf16=machine.bf16, unified=machine.unified_memory)


def capacity_of(machine: Machine, facts: MachineFacts) -> Capacity:
    """Memory of the device that trains. Unified memory is bounded by what the driver maps and by what the host has."""
    host = max(0.0, machine.memory_gb - HOST_RESERVE_GB)
    if facts.kind == "cpu":
        return Capacity(host, f"{host:.1f} GiB of {machine.memory_gb:.1f} GiB, the rest is left to the system")
    card = machine.accelerator_memory_gb
    if card is None:
        return Capacity(None, "the accelerator does not tell its memory")
    if not facts.unified:
        return Capacity(card, f"{card:.1f} GiB on the accelerator")
    shared = min(card, host)
    return Capacity(
        shared,
        f"{shared:.1f} GiB: the accelerator can map {card:.1f} GiB of the {machine.memory_gb:.1f} GiB it shares",
    )


def check_memory(recipe: Recipe, machine: Machine, *, cache: Path, base: Path) -> MemoryCheck:
    """The estimate for this recipe on this machine, and what was learned here.

    `cache`: the model cache; `base`: the workspace.
    """
    estimated = _estimated(recipe, machine, cache=cache, base=base)
    known = Limits.read(cache, machine).binding(recipe, free_gb=None)
    if known is None:
        return estimated
    step = propose_remedy(known.diagnosis(), recipe=recipe, parent=recipe)
    values = step.values if step else None
    advice = f"{_would_fit(values)} If the machine has changed, delete that line of {cache / LIMITS}."
    return replace(estimated, fits=False, learned=known.words, remedy=values, remedy_peak=None, advice=advice)


def _estimated(recipe: Recipe, machine: Machine, *, cache: Path, base: Path) -> MemoryCheck:
    facts = facts_of(machine, recipe)
    capacity = capacity_of(machine, facts)
    model = shape_of(recipe.model, cache=cache, base=base)
    if model.shape is None:
        return MemoryCheck(model, capacity, None, None, f"the memory cannot be estimated: {model.why}")
    found = estimate(recipe, model.shape, facts, available_gb=capacity.gb)
    if capacity.gb is None:
        return MemoryCheck(model, capacity, found, None, f"needs about {gib(found.peak)}; {capacity.words}")
    enough, why = fits(found, capacity.gb)
    if enough:
        return MemoryCheck(model, capacity, found, True, why)
    mended = remedy(recipe, model.shape, facts, available_gb=capacity.gb)
    values, peak = (mended[0], mended[1].peak) if mended else (None, None)
    advice = _advice(values, peak, machine, facts)
    return MemoryCheck(model, capacity, found, False, why, values, peak, advice)


def refuse_too_large(recipe: Recipe, machine: Machine, *, cache: Path, base: Path, where: str | None = None) -> None:
    """Raises Unsupported, with numbers and what would make it fit, for a training that cannot fit by its arithmetic.

    What was learned is no reason here: a campaign makes such a recipe smaller before it starts it (`repair.py`).
    """
    checked = _estimated(recipe, machine, cache=cache, base=base)
    if checked.fits is False:
        raise too_large(checked, where=where)


def too_large(checked: MemoryCheck, *, where: str | None = None) -> Unsupported:
    if checked.learned is not None:
        message = f"this training is known not to fit into memory here: {checked.learned}"
        return Unsupported(message, where=where, hint=checked.advice)
    return Unsupported(f"this training does not fit into memory: it {checked.why}", where=where, hint=checked.advice)


def _advice(values: dict[str, Any] | None, peak: int | None, machine: Machine, facts: MachineFacts) -> str:
    advice = _would_fit(values, peak)
    card = machine.accelerator_memory_gb
    if facts.unified and facts.kind == "rocm" and card is not None and card < HALF_OF_MEMORY * machine.memory_gb:
        advice += (
            f" The accelerator maps only {card:.0f} of {machine.memory_gb:.0f} GiB: the kernel parameter "
            "ttm.pages_limit raises that (docs/hardware.md)."
        )
    return advice


def _would_fit(values: dict[str, Any] | None, peak: int | None = None) -> str:
    if not values:
        return "No setting of this recipe makes it fit: take a smaller model."
    keys = ", ".join(f"{key}: {_yaml(value)}" for key, value in values.items())
    return f"It would fit with {keys} (about {gib(peak)})." if peak is not None else f"Try {keys}."


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
