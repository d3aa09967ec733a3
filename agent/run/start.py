"""How a trainer process is started: what is fixed at its start, and the process itself.

Whether it gets its arguments at once or waits for them (`agent.run.standby`) makes no difference here: same leash,
same environment, same folder, same priority.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from agent.hardware.probe import package_path
from agent.run.processes import MARK
from agent.text import passed_on

TRAINER: tuple[str, ...] = (sys.executable, "-m", "agent.raft.worker")
LOW_NICENESS = 10


@dataclass(frozen=True)
class Start:
    """Everything about a trainer process that can no longer be changed once it runs."""

    command: tuple[str, ...]
    """The trainer's command line without the arguments of `agent.contract`."""
    workspace: Path
    """Current folder."""
    environment: Mapping[str, str]
    """Complete, the mark of the run excepted."""
    low_priority: bool

    @classmethod
    def of(
        cls,
        command: Sequence[str],
        *,
        workspace: Path,
        variables: Mapping[str, str],
        low_priority: bool,
        inherited: Mapping[str, str] | None = None,
    ) -> Start:
        """`variables` come over the inherited environment and over what we need for ourselves. What is inherited is
        this process's environment without its secrets where not given."""
        inherited = passed_on(os.environ) if inherited is None else inherited
        environment = {**inherited, **_own_variables(command), **variables}
        return cls(tuple(command), workspace, environment, low_priority)

    def process(
        self, command: Sequence[str], *, mark: str, stdin: IO[bytes] | int, output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start `command`, tied to this process by the leash, in a session of its own. Raises OSError."""
        leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py")), str(os.getpid())]
        leash.append(str(LOW_NICENESS if self.low_priority else 0))
        process = subprocess.Popen(
            [*leash, *command],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.workspace,
            env={**self.environment, MARK: mark},
            start_new_session=True,
        )
        if self.low_priority:
            _lower_io_priority(process.pid)
        return process


def _own_variables(command: Sequence[str]) -> dict[str, str]:
    """What we need for ourselves: logs without buffering, a stack on a fatal signal, our own package.

    `python -m` puts the current folder first on the module path, so a folder `agent` in the workspace (this
    project's own repository is one) would stand in for ours: PYTHONSAFEPATH keeps it off. Another trainer may
    need its folder there, so it is set for ours only.
    """
    variables = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": package_path(os.environ.get("PYTHONPATH")),
    }
    if tuple(command[1:3]) == TRAINER[1:]:
        variables["PYTHONSAFEPATH"] = "1"
    return variables


def _lower_io_priority(pid: int) -> None:
    """Disk access only when nobody else wants it, where the system knows such a class (ioprio_set(2))."""
    idle = getattr(psutil, "IOPRIO_CLASS_IDLE", None)
    if idle is not None and hasattr(psutil.Process, "ionice"):
        try:
            psutil.Process(pid).ionice(idle)
        except psutil.Error:
            pass  # it has ended already, or the system does not allow it: a courtesy, not a condition
