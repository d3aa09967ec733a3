"""From signals to findings: which named conditions of the playbook hold on a run, how badly, and with what numbers.

Thresholds are data (`hypotheses/symptoms.yaml`); a condition on a signal that is not known does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.plan.schema import Condition, Playbook, Symptom
from agent.plan.signals import SIGNALS, Observation, Signal, observed, signals

__all__ = ["Finding", "Observation", "ReadingFinding", "Signal", "diagnose", "observed", "read_bottleneck", "signals"]

LEAST = 0.4
"""Severity of a symptom that has only just crossed its threshold."""
GUARDED = 0.6
"""Severity of a symptom none of whose clauses says what full severity is."""
EXPLAINED = 0.3
"""What is left of a symptom's severity while another one accounts for it."""


@dataclass(frozen=True)
class Finding:
    """A symptom that this run has."""

    symptom: str
    severity: float
    """0 to 1, after weight and explanation."""
    evidence: str
    """`truncation_rate 0.63 > 0.10 (last third of cycles)`."""
    reading: str
    means: str
    explained_by: str | None = None


@dataclass(frozen=True)
class ReadingFinding:
    """A bottleneck reading that this run shows."""

    reading: str
    means: str
    evidence: str
    points_to: tuple[str, ...]


def diagnose(observation: Observation, playbook: Playbook) -> list[Finding]:
    """The symptoms that hold, worst first.

    Causes explain what follows from them in the playbook's order, so of two that name each other the first one is
    the cause.
    """
    known = signals(observation)
    found = {
        symptom.id: Finding(symptom.id, severity, evidence, symptom.reading, symptom.means)
        for symptom in playbook.symptoms.values()
        for severity, evidence in [_judge(symptom, known)]
        if severity > 0
    }
    for symptom in playbook.symptoms.values():
        if symptom.id not in found or found[symptom.id].explained_by is not None:
            continue  # what follows from something else accounts for nothing
        for follower in symptom.explains:
            if follower in found and found[follower].explained_by is None and follower != symptom.id:
                finding = found[follower]
                found[follower] = replace(finding, severity=finding.severity * EXPLAINED, explained_by=symptom.id)
    return sorted(found.values(), key=lambda finding: (-finding.severity, finding.symptom))


def read_bottleneck(observation: Observation, playbook: Playbook) -> list[ReadingFinding]:
    """The readings that hold, in the playbook's order."""
    known = signals(observation)
    findings = []
    for reading in playbook.readings.values():
        holds, _, evidence = evaluate(reading.when, known)
        if holds:
            findings.append(ReadingFinding(reading.id, reading.means, "; ".join(evidence), tuple(reading.points_to)))
    return findings


def _judge(symptom: Symptom, known: Mapping[str, float | None]) -> tuple[float, str]:
    holds, severity, evidence = evaluate(symptom.when, known)
    if not holds:
        return 0.0, ""
    return symptom.weight * (GUARDED if severity is None else severity), "; ".join(evidence)


def evaluate(condition: Condition, known: Mapping[str, float | None]) -> tuple[bool, float | None, list[str]]:
    """(holds, severity in 0..1 or None where no clause gives one, the clauses that hold in words)."""
    if condition.signal is not None:
        return _clause(condition, known.get(condition.signal))
    parts = [evaluate(part, known) for part in condition.all or condition.any]
    holding = [part for part in parts if part[0]]
    if not holding or (condition.all and len(holding) < len(parts)):
        return False, None, []
    severities = [severity for _, severity, _ in holding if severity is not None]
    # guards are no evidence where there is other
    telling = [part for part in holding if part[1] is not None] or holding
    return True, max(severities) if severities else None, _once([text for part in telling for text in part[2]])


def _once(clauses: list[str]) -> list[str]:
    """One clause a signal: that its number lies beyond a second, nearer limit says nothing more."""
    kept: dict[str, str] = {}
    for text in clauses:
        kept.setdefault(re.split(" [<>] ", text)[0], text)
    return list(kept.values())


def _clause(condition: Condition, value: float | None) -> tuple[bool, float | None, list[str]]:
    name = condition.signal or ""
    limit = condition.above if condition.above is not None else condition.below
    if value is None or limit is None or value != value:
        return False, None, []
    if not (value > limit if condition.above is not None else value < limit):
        return False, None, []
    severity = None
    if condition.full is not None:
        way = min(1.0, max(0.0, (value - limit) / (condition.full - limit)))
        severity = LEAST + (1 - LEAST) * way
    sign = ">" if condition.above is not None else "<"
    return True, severity, [f"{name} {number(value)} {sign} {number(limit)} ({SIGNALS[name].window})"]


def number(value: float) -> str:
    """Two decimals for shares, three significant digits beyond."""
    if abs(value) >= 1e15 or value != value:
        return f"{value:g}"
    if abs(value) < 0.005 and value != 0:
        return f"{value:.1e}"
    if float(value).is_integer() and abs(value) >= 2:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
