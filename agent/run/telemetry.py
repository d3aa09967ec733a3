"""Read what a training has written, whole or not. A line that is not what the contract says is passed over and named.

Nothing here judges the numbers, and nothing here writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from agent.contract import (
    CYCLES,
    EVAL,
    FAILURE,
    HEARTBEAT,
    LOG,
    PLAN,
    SUMMARY,
    CycleRow,
    EvalRow,
    Failure,
    Heartbeat,
    Row,
    RunPlan,
    Summary,
)

TAIL_BYTES = 128 * 1024
"""Of the log; a traceback through a compiler runs to some 30 KiB."""
LONGEST_ROW = 1024 * 1024
ATTEMPT = "=== raft-agent:"
"""Line in the log at which one start of the trainer begins; what lies before it belongs to an earlier one."""

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class RunRecord:
    """Everything a run folder tells. A file that is missing or unreadable is None or empty, never invented."""

    out: Path
    plan: RunPlan | None
    cycles: list[CycleRow]
    """By cycle number, each once; where a resumed training wrote one again, the later line counts."""
    evals: list[EvalRow]
    """Each split, id and sample once, in the order of the file; the later line counts."""
    summary: Summary | None
    failure: Failure | None
    heartbeat: Heartbeat | None
    log_tail: str
    problems: tuple[str, ...]
    """Lines and files that could not be understood, in words."""


def read_run(out: Path) -> RunRecord:
    """Read the folder of a run in any state. Never raises for what a trainer wrote."""
    problems: list[str] = []
    cycles = _rows(out / CYCLES, CycleRow, lambda row: row.cycle, problems)
    evals = _rows(out / EVAL, EvalRow, lambda row: (row.split, row.id, row.sample), problems)
    return RunRecord(
        out=out,
        plan=_object(out / PLAN, RunPlan, problems),
        cycles=sorted(cycles, key=lambda row: row.cycle),
        evals=evals,
        summary=_object(out / SUMMARY, Summary, problems),
        failure=_object(out / FAILURE, Failure, problems),
        heartbeat=read_heartbeat(out),
        log_tail=log_tail(out),
        problems=tuple(problems),
    )


def read_heartbeat(out: Path) -> Heartbeat | None:
    """The heartbeat, or None while there is none that can be read."""
    return _object(out / HEARTBEAT, Heartbeat, [])


def read_summary(out: Path) -> Summary | None:
    return _object(out / SUMMARY, Summary, [])


def read_failure(out: Path) -> Failure | None:
    return _object(out / FAILURE, Failure, [])


def log_tail(out: Path, *, most: int = TAIL_BYTES) -> str:
    """End of what the latest start of the trainer wrote, colours taken out; at most `most` bytes."""
    try:
        with (out / LOG).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            text = file.read(most).decode(errors="replace")
    except OSError:
        return ""
    if size > most:
        text = text.partition("\n")[2]  # the first line is cut
    begun = text.rfind(f"\n{ATTEMPT}") + 1 if f"\n{ATTEMPT}" in text else 0
    text = text[begun:]
    if text.startswith(ATTEMPT):
        text = text.partition("\n")[2]
    return ANSI.sub("", text)


ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")


def _object(path: Path, model: type[R], problems: list[str]) -> R | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    try:
        return model.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name}: {_reason(error)}")
        return None


def _rows(path: Path, model: type[R], key: Any, problems: list[str]) -> list[R]:
    """Rows by key, the later one counting. The last line may be torn: a trainer can die while it writes."""
    found: dict[Hashable, R] = {}
    try:
        data = path.read_bytes()
    except OSError:
        return []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(line, model)
        except (ValueError, RecursionError) as error:
            torn = number == len(lines)
            problems.append(f"{path.name}:{number}: {'torn last line' if torn else _reason(error)}")
            continue
        found[key(row)] = row
    return list(found.values())


def _row(line: bytes, model: type[R]) -> R:
    if len(line) > LONGEST_ROW:
        raise ValueError(f"a line of {len(line)} bytes")
    return model.model_validate(json.loads(line.decode("utf-8", errors="replace")))


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        return f"{where}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg})"
    return str(error) or type(error).__name__
