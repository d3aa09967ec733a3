"""What is known of a training that died, and what is said of it: evidence and diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.contract import CrashClass, Failure, Phase
from agent.run.request import RunResult
from agent.run.telemetry import latest_log, read_failure, read_heartbeat
from agent.run.watching import EndedBy

MemoryEvents = Literal["moved", "still", "unreadable"]


@dataclass(frozen=True)
class Evidence:
    """Everything that triage looks at. A field that is not known keeps its default."""

    log: str = ""
    first_line: int = 1
    """Number, from 1, of the line of the whole log that `log` begins with."""
    exit_code: int | None = None
    """As the shell or subprocess gives it: negative, or above 128, is a signal."""
    signal: int | None = None
    failure: Failure | None = None
    ended_by: EndedBy = "itself"
    reason: str = ""
    """The launcher's own words for why it ended the training."""
    kernel: str = ""
    cgroup_oom: bool = False
    """The kernel killed a process of the training's control group for memory."""
    host_oom: bool = False
    """The kernel killed some process of this machine for memory meanwhile."""
    memory_events: MemoryEvents = "unreadable"
    """What the kernel's counters of memory kills did meanwhile, where they can be read."""
    free_gb: float | None = None
    total_gb: float | None = None
    """Host memory just before the end, GiB."""
    terminated: bool = False
    """Somebody else's SIGTERM ended it, at which it left in good order with exit code 0."""
    phase: Phase | None = None
    """Of the last heartbeat."""
    problems: tuple[str, ...] = ()
    """Files of the run that could not be understood."""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """What this experiment changed: recipe key -> (from, to)."""


@dataclass(frozen=True)
class Diagnosis:
    crash_class: CrashClass
    reason: str
    """One sentence for people."""
    evidence: str
    """The line that proves it, as it was written."""
    source: str
    """Where that line was found: `the agent`, `failure.json`, `exit`, `kernel`, `telemetry`, `traceback`, `device`,
    `tail`, `said` (in an error's words, that no rule knows) or `nothing`."""
    signature: str | None
    """Name of the rule: the subtype."""
    key: str | None = None
    """Recipe key at fault, where the trainer named one."""
    suggestion: Any = None
    phase: Phase | None = None
    line: int | None = None
    """Line of the log on which the evidence stands, from 1; None where it is not in the log."""
    confidence: float = 0.5
    """How likely the class is right, by the kind of evidence."""
    remedy: str = ""
    """What a person can do."""
    suspects: tuple[str, ...] = ()
    """Of what the experiment changed, the keys that could be the cause, likeliest first."""


def evidence_of(
    result: RunResult, *, changed: Mapping[str, tuple[Any, Any]] | None = None, problems: tuple[str, ...] = ()
) -> Evidence:
    """What a finished run left in its folder and what the launcher saw."""
    heartbeat, log = read_heartbeat(result.out), latest_log(result.out)
    last = result.last_samples[-1] if result.last_samples else None
    return Evidence(
        log=log.text,
        first_line=log.first_line,
        exit_code=result.exit_code,
        signal=result.signal,
        failure=read_failure(result.out),
        ended_by=result.ended_by,
        reason=result.reason,
        kernel=result.kernel,
        cgroup_oom=result.cgroup_oom_kills > 0,
        host_oom=result.host_oom_kills > 0,
        memory_events=result.memory_events,
        free_gb=last.available_gb if last else None,
        total_gb=last.total_gb if last else None,
        terminated=result.cut and result.ended_by == "itself",
        phase=heartbeat.phase if heartbeat else None,
        problems=problems,
        changed=changed or {},
    )
