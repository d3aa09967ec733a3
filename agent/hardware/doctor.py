"""`raft-agent doctor`: what is wrong with this machine for a night of trainings, with evidence and the exact fix.

It does not: change anything, need root, or stress the machine. The checks are functions of `Facts`; what has to be
measured runs in processes of its own (`agent.hardware.trials`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agent.hardware.doctor_amd import amd_findings
from agent.hardware.doctor_cuda import cuda_findings
from agent.hardware.doctor_host import host_findings, measured_findings
from agent.hardware.facts import Facts, gather
from agent.hardware.findings import Finding, worst_first
from agent.hardware.isolation import isolation, isolation_findings
from agent.hardware.measured import read_measured, write_measured
from agent.hardware.probe import ask_child, fingerprint, importable, machine_from, probe_command
from agent.hardware.root import HOST, Root
from agent.hardware.trials import Ask, measure

PROBE_LIMIT_S = 60.0


def look(
    *,
    measured: Path | None,
    folders: Sequence[Path],
    quick: bool = False,
    shell: Mapping[str, str] = os.environ,
    root: Root = HOST,
    command: Sequence[str] | None = None,
    ask: Ask | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Facts:
    """Read the machine, and measure unless `quick`. `measured` is the file that keeps what runs go by."""
    say("what torch sees")
    answer, problem = ask_child(command or probe_command(), timeout_s=PROBE_LIMIT_S)
    machine = machine_from(answer, problem=problem, packages=importable(), root=root)
    key = fingerprint(machine, root=root)
    if measured is not None:
        machine = dataclasses.replace(machine, measured=read_measured(measured, key))
    say("the machine")
    facts = gather(machine, answer, problem=problem, shell=shell, folders=folders, root=root)
    if quick:
        return facts
    say("the sandbox for code")
    facts = dataclasses.replace(facts, isolation=isolation())
    if machine.torch is None:
        return facts
    trials = measure(machine.kind, ask=ask, say=say)
    if measured is not None and trials.comparisons:
        with contextlib.suppress(OSError):  # a full disk or a read-only folder: runs then go by what is published
            write_measured(measured, key, trials.comparisons)
    return dataclasses.replace(facts, trials=trials)


def examine(facts: Facts) -> list[Finding]:
    """Worst first."""
    found = [*amd_findings(facts), *cuda_findings(facts), *host_findings(facts), *measured_findings(facts)]
    return worst_first([*found, *isolation_findings(facts.isolation)])
