"""Start a program of `agent.raft` that is no training, and take its answer: one JSON file, written last.

It runs on the same leash as a training (`start.py`), so that it ends with this process, and with the same environment.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import AgentError, TrainingFailed, error_named
from agent.hardware.presets import environment_over
from agent.hardware.probe import MACHINE, Machine, probe_machine
from agent.recipe.places import kind_of
from agent.recipe.schema import Recipe
from agent.run.ending import end_family
from agent.run.processes import new_mark
from agent.run.start import Start, adopting_orphans
from agent.text import one_line, passed_on

POLL_S = 0.1
GRACE_S = 3.0
TAIL_BYTES = 4000


def answer_of(
    module: str,
    arguments: Sequence[str],
    *,
    recipe: Recipe,
    workspace: Path,
    cache: Path,
    machine: Machine | None = None,
    env: Mapping[str, str] | None = None,
    on_wait: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS --answer FILE` to its end. Raises the error that it tells, and TrainingFailed
    with the last line of what it printed where it tells nothing. `env`: over the preset's and the recipe's own."""
    machine = machine or probe_machine(cache=cache / MACHINE)
    backend = recipe.backend
    variables, _ = environment_over(os.environ, machine, preset=backend.environment, own=backend.env)
    with tempfile.TemporaryDirectory(prefix="raft-agent-") as scratch:
        answer, log = Path(scratch) / "answer.json", Path(scratch) / "log.txt"
        command = [sys.executable, "-m", module, *arguments, "--answer", str(answer)]
        code = _run(command, log, _start(recipe, workspace, {**variables, **(env or {})}), on_wait)
        try:
            told: dict[str, Any] = json.loads(answer.read_text())
        except (OSError, ValueError):
            raise TrainingFailed(f"it ended {_how(code)} without an answer", where=module, hint=_tail(log)) from None
    if "error" in told:
        raise _error(told["error"], module)
    return told


def _start(recipe: Recipe, workspace: Path, variables: Mapping[str, str]) -> Start:
    """`PYTHONSAFEPATH`: a folder `agent` in the workspace does not stand in for ours."""
    kind = kind_of(recipe.model.source, base=workspace)
    inherited = passed_on(os.environ, hub=kind == "hub", packages=kind == "pypi")
    ours = {**variables, "PYTHONSAFEPATH": "1"}
    return Start.of((), workspace=workspace, variables=ours, low_priority=False, inherited=inherited)


def _run(command: Sequence[str], log: Path, start: Start, on_wait: Callable[[float], None]) -> int:
    began = time.monotonic()
    mark = new_mark()
    with adopting_orphans(), log.open("wb") as output, Path(os.devnull).open("rb") as nothing:
        process = start.process(command, mark=mark, stdin=nothing, output=output)
        try:
            while (code := process.poll()) is None:
                on_wait(time.monotonic() - began)
                time.sleep(POLL_S)
            return code
        finally:
            end_family(process.identity, grace_s=GRACE_S)
            process.wait(timeout=GRACE_S)


def _error(told: Mapping[str, Any], module: str) -> AgentError:
    where, hint = told.get("where"), told.get("hint")
    named = error_named(told["exception"], told["message"], where=where, hint=hint)
    return named or TrainingFailed(
        f"{told['exception']}: {one_line(told['message'])}", where=where or module, hint=hint
    )


def _how(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"


def _tail(log: Path) -> str | None:
    try:
        lines = [
            line for line in log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").splitlines() if line.strip()
        ]
    except OSError:
        return None
    return one_line(lines[-1]) if lines else None
