"""Environment variables of the training process, set before torch is imported, because it reads them then.

The launcher has set them already; a worker that is started by hand sets them here, all but what only the start of a
process reads (GLIBC_TUNABLES).
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.hardware.presets import environment, environment_over
from agent.hardware.probe import MACHINE, probe_machine
from agent.recipe.schema import Backend


def trainer_environment(backend: Backend, *, cache: Path) -> dict[str, str]:
    """What the trainer has on top of this process's variables."""
    machine = probe_machine(cache=cache / MACHINE)
    variables, _ = environment_over(os.environ, machine, preset=backend.environment, own=backend.env)
    return variables


def apply_environment(backend: Backend, *, cache: Path) -> dict[str, str]:
    """Set the variables of preset and recipe in this process, and return them as they are now."""
    machine = probe_machine(cache=cache / MACHINE)  # once: a probe that fails is not remembered, and may take a minute
    variables, _ = environment_over(os.environ, machine, preset=backend.environment, own=backend.env)
    os.environ.update(variables)
    preset, _ = environment(backend.environment, machine)
    return {name: os.environ[name] for name in sorted({*preset, *backend.env})}
