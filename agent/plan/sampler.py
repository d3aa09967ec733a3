"""Points from Optuna, drawn in a process of its own, which waits for more and ends with this one."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from agent.package import of_ours
from agent.text import passed_on

COMMAND = (sys.executable, "-m", "agent.plan.sampler_child")
PATIENCE_S = 60.0
"""For an answer; the first one waits for the import of torch."""
ALONE = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""It leaves accelerators and cores to the trainings."""


class NoSampler(Exception):
    """Why no point can be had, in words. A night has other ideas."""


class Sampler:
    """Asks `sampler_child.py`, which waits for more as long as this process lives."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.broken: NoSampler | None = None
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=of_ours(passed_on(os.environ)) | ALONE,
        )

    @property
    def usable(self) -> bool:
        """Not in a fork of the process that started it."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and may have said why
                self._process.stdin.write(json.dumps(what).encode() + b"\n")
                self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
            line = self._process.stdout.readline() if ready else b""
        except OSError as error:
            raise self._broken(f"has ended: {error}") from error
        if not line:
            raise self._broken("has ended" if ready else f"gave no answer for {PATIENCE_S:.0f}s")
        try:
            told = json.loads(line)
        except ValueError as error:
            raise self._broken(f"answered {line[:80]!r}") from error
        if not isinstance(told, dict) or not told.keys() & {"ok", "point", "failed"}:
            raise self._broken(f"answered {line[:80]!r}")
        if "failed" in told:
            raise NoSampler(f"Optuna's sampler failed: {told['failed']}")
        return told

    def _broken(self, how: str) -> NoSampler:
        """It is not started again: where torch hangs, each try would cost its patience."""
        self.close()
        self.broken = NoSampler(f"the process of Optuna's sampler {how}")
        return self.broken

    def close(self) -> None:
        if self.owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


_running: list[Sampler] = []
"""One at most, for all rankings of this process."""


def sampler_here() -> Sampler:
    """NoSampler where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise NoSampler("needs the package optuna, which is not installed")
    if _running and _running[0].broken:
        raise _running[0].broken
    if not (_running and _running[0].usable):
        _running[:] = [Sampler()]
        atexit.register(_running[0].close)
    return _running[0]
