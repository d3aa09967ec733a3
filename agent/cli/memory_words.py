"""The memory estimate of a recipe as a table for people and as plain values for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.recipe.memory import PHASES, Part, as_json, gib

if TYPE_CHECKING:
    from agent.campaign.capacity import MemoryCheck
    from agent.hardware.probe import Machine

ALWAYS = "always"
NAME_WIDTH = 36


def print_memory(checked: MemoryCheck, machine: Machine) -> None:
    """The estimate by part, the machine, and whether they go together."""
    found = checked.found
    if found is None:
        print(f"memory: {checked.why}")
        return
    how = "all of them trained" if found.full else f"{found.trained / 1e6:.1f}M trained in adapters"
    print(f"model: {found.parameters / 1e9:.3g}B parameters, {how}, {found.dtype} ({checked.model.why})")
    print(f"{'memory, estimate':<{NAME_WIDTH}} {'size':>9}  in")
    for part in sorted(found.parts, key=lambda one: -one.bytes):
        print(f"  {part.name:<{NAME_WIDTH - 2}} {gib(part.bytes):>9}  {_when(part)}")
    for phase in PHASES:
        mark = "  <- peak" if phase == found.peak_phase else ""
        print(f"{'together, ' + phase:<{NAME_WIDTH}} {gib(found.of(phase)):>9}{mark}")
    recompute = "on" if found.checkpointing else "off"
    print(f"machine: {machine.summary}; {checked.capacity.words}; gradient checkpointing {recompute}")
    if checked.learned is not None:
        print(f"memory: known not to fit: {checked.learned}")
        return
    verdict = {True: "fits", False: "does not fit", None: "cannot be told"}[checked.fits]
    print(f"memory: {verdict}: {checked.why}")


def _when(part: Part) -> str:
    return ALWAYS if part.phases == PHASES else ", ".join(part.phases)


def memory_json(checked: MemoryCheck) -> dict[str, Any]:
    """Sizes in bytes; `usable_bytes` and `fits` are null where they cannot be told."""
    usable = checked.capacity.gb
    return {
        "fits": checked.fits,
        "why": checked.why,
        "shape": checked.model.why,
        "usable_bytes": None if usable is None else round(usable * 1024**3),
        "estimate": None if checked.found is None else as_json(checked.found),
        "remedy": checked.remedy,
        "remedy_peak_bytes": checked.remedy_peak,
        "advice": checked.advice,
        "learned": checked.learned,
    }
