"""Environment variables of the training process, set before torch is imported, because it reads them then.

The launcher has set them already; a worker that is started by hand sets them here. The rule is the same: a preset
that `auto` chose only fills gaps, one that the recipe names comes over the shell's, and the recipe's own over that.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.hardware.presets import environment
from agent.hardware.probe import probe_machine
from agent.recipe.schema import Backend


def apply_environment(backend: Backend, *, cache: Path) -> dict[str, str]:
    """Set the variables of preset and recipe in this process, and return them as they are now."""
    machine = probe_machine(cache=cache / "machine.json")
    preset, _ = environment(backend.environment, machine)
    if backend.environment == "auto":
        os.environ.update({name: value for name, value in preset.items() if name not in os.environ})
    else:
        os.environ.update(preset)
    os.environ.update(backend.env)
    return {name: os.environ[name] for name in sorted({*preset, *backend.env})}
