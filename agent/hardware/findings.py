"""What `raft-agent doctor` says of one thing that it has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "unknown", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "unknown", "note", "ok")
"""Worst first. error: trainings fail here, or do not use the card. warning: they get slow or die some night. unknown:
could not be read. note: worth knowing, nothing is wrong."""
Group = Literal["accelerator", "torch", "kernel", "memory", "settings", "processor", "speed", "night"]
GROUPS: tuple[Group, ...] = ("accelerator", "torch", "kernel", "memory", "settings", "processor", "speed", "night")


@dataclass(frozen=True)
class Finding:
    id: str
    group: Group
    severity: Severity
    title: str
    evidence: str
    """What was read, and where."""
    consequence: str = ""
    fix: str = ""
    """What to do; for `unknown`, how to read it. One step a line; a line that begins with `$ ` is a command."""
    source: str = ""


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), GROUPS.index(one.group)))


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """0, or 11 (Unsupported in agent.errors) with an error among them; `strict` takes a warning for one."""
    bad = {"error", "warning"} if strict else {"error"}
    return 11 if any(finding.severity in bad for finding in findings) else 0
