"""Read what a training has written, whole or not. A line that is not what the contract says is passed over and named.

Nothing here judges the numbers, and nothing here writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from agent.contract import (
    CYCLES,
    EVAL,
    FAILURE,
    HEARTBEAT,
    LOG,
    PLAN,
    RUNG,
    SAMPLES,
    SELECT,
    SUMMARY,
    TELEMETRY,
    CycleRow,
    EvalRow,
    Failure,
    Heartbeat,
    Row,
    RunLoad,
    RunPlan,
    Sample,
    SampleText,
    SelectRow,
    Summary,
)
from agent.files import Growing
from agent.run.load import summarize
from agent.run.logfile import MOST_BYTES, LogText, read_stream
from agent.run.plain import NotPlain, open_plain, read_plain

LONGEST_ROW = 1024 * 1024
MOST_HEARTBEAT = 64 * 1024
MOST_OBJECT = 16 * 1024 * 1024
"""Of a file that holds one object."""
MOST_ROWS = 512 * 1024 * 1024
"""Of a file of rows; those of a week of training are some ten megabytes."""
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
    problems: tuple[str, ...]
    """Lines and files that could not be understood, in words."""
    select: list[SelectRow] = field(default_factory=list)
    """By cycle number, each once; none where the trainer does not write them."""
    rung: SelectRow | None = None
    """The measurement of `search` on the way, where one was asked for."""
    samples: list[Sample] = field(default_factory=list)
    """What the agent saw of the run and of the machine, in order, older ones thinned; none where nobody sampled."""

    texts: list[SampleText] = field(default_factory=list)
    """What was said to the first prompts of `select` and `search`, in the order of the file; none where the trainer
    does not write it."""

    @cached_property
    def load(self) -> RunLoad | None:
        """What the samples say about how the machine was used; None without samples."""
        return summarize(self.samples, device=self.plan.device if self.plan else None)


def read_run(out: Path) -> RunRecord:
    """Read the folder of a run in any state. Never raises for what a trainer wrote."""
    problems: list[str] = []
    cycles = _rows(out / CYCLES, CycleRow, _cycle_of, problems)
    evals = _rows(out / EVAL, EvalRow, _sample_of, problems)
    return RunRecord(
        out=out,
        plan=_object(out / PLAN, RunPlan, problems),
        cycles=sorted(cycles, key=lambda row: row.cycle),
        evals=evals,
        summary=_object(out / SUMMARY, Summary, problems),
        failure=_object(out / FAILURE, Failure, problems),
        heartbeat=read_heartbeat(out),
        select=_select(out, problems),
        rung=next(iter(_rows(out / RUNG, SelectRow, _cycle_of, problems)), None),
        samples=_samples(out, problems),
        texts=_rows(out / SAMPLES, SampleText, _text_of, problems),
        problems=tuple(problems),
    )


def read_select(out: Path) -> list[SelectRow]:
    """The measurements of `select` so far, by cycle number, each once; empty where there is no file."""
    return _select(out, [])


def read_samples(out: Path) -> list[Sample]:
    """What was sampled in this folder so far, in order; empty where there is no file."""
    return _samples(out, [])


def texts_in(data: bytes) -> list[SampleText]:
    """What was said to the first prompts of `select` and `search`, from the content of `samples.jsonl`."""
    return _rows_in(data, SampleText, _text_of, [], name=SAMPLES)


def read_heartbeat(out: Path) -> Heartbeat | None:
    """The heartbeat, or None while there is none that can be read."""
    return _object(out / HEARTBEAT, Heartbeat, [], most=MOST_HEARTBEAT)


def read_summary(out: Path) -> Summary | None:
    return _object(out / SUMMARY, Summary, [])


def read_plan(out: Path) -> RunPlan | None:
    return _object(out / PLAN, RunPlan, [])


def read_failure(out: Path) -> Failure | None:
    return _object(out / FAILURE, Failure, [])


def latest_log(out: Path, *, most: int = MOST_BYTES) -> LogText:
    """What the latest start of the trainer wrote, colours taken out; no more than the last `most` bytes of the log.
    Empty where there is no log that can be read."""
    try:
        with open_plain(out / LOG) as file:
            whole = read_stream(file, most=most)
    except OSError:
        return LogText("", 1, 0, "utf-8")
    begun = f"\n{whole.text}".rfind(f"\n{ATTEMPT}")
    before, text = (whole.text[:begun], whole.text[begun:]) if begun > 0 else ("", whole.text)
    if text.startswith(ATTEMPT):
        heading, newline, text = text.partition("\n")
        before += heading + newline
    return replace(whole, text=ANSI.sub("", text), first_line=whole.first_line + before.count("\n"))


ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\n]*\x07")


class Tail(Generic[R]):
    """Rows of a file that a trainer is writing. Each `read` takes in what is new, and costs next to nothing where
    nothing is.

    A line that is not whole yet is kept back; one that is no row is passed over. Where the trainer has replaced, cut or
    removed the file (a resume takes out the cycles that it repeats, the end of an evaluation puts rows into order),
    what was read of it is forgotten, and it is read from its beginning.
    """

    def __init__(self, path: Path, model: type[R], key: Callable[[R], Hashable]):
        self.path = path
        self.model = model
        self.key = key
        self.rows: dict[Hashable, R] = {}
        """All that the file holds, by key; the later line counts."""
        self._file = Growing(path, most=MOST_ROWS, opened=open_plain)
        self._times = 0

    def read(self) -> list[R]:
        """The rows that have come since the last call, all of them where the file is another one. Never raises for what
        a trainer wrote."""
        try:
            lines = self._file.lines()
        except OSError:
            return []
        if self._file.times != self._times:
            self.rows.clear()
            self._times = self._file.times
        rows = [row for line in lines if (row := self._row(line)) is not None]
        self.rows.update((self.key(row), row) for row in rows)
        return rows

    def _row(self, line: bytes) -> R | None:
        try:
            return _row(line, self.model) if line.strip() else None
        except (ValueError, RecursionError):
            return None


def follow_select(out: Path) -> Tail[SelectRow]:
    """The measurements of `select` of a running training; keys are cycle numbers."""
    return Tail(out / SELECT, SelectRow, _cycle_of)


def follow_cycles(out: Path) -> Tail[CycleRow]:
    """The cycles of a running training; keys are their numbers."""
    return Tail(out / CYCLES, CycleRow, _cycle_of)


def follow_rung(out: Path) -> Tail[SelectRow]:
    """The measurement of `search` on the way of a running training, as soon as it is there."""
    return Tail(out / RUNG, SelectRow, _cycle_of)


def follow_evals(out: Path) -> Tail[EvalRow]:
    """The held-out rows of a running evaluation, prompt by prompt as they are judged; keys are split, id and sample."""
    return Tail(out / EVAL, EvalRow, _sample_of)


def _cycle_of(row: CycleRow | SelectRow) -> int:
    return row.cycle


def _sample_of(row: EvalRow) -> tuple[str, str, int]:
    return row.split, row.id, row.sample


def _text_of(row: SampleText) -> tuple[str, str]:
    return row.split, row.id


def _select(out: Path, problems: list[str]) -> list[SelectRow]:
    return sorted(_rows(out / SELECT, SelectRow, _cycle_of, problems), key=_cycle_of)


def _samples(out: Path, problems: list[str]) -> list[Sample]:
    return sorted(_rows(out / TELEMETRY, Sample, lambda sample: sample.n, problems), key=lambda sample: sample.n)


def _object(path: Path, model: type[R], problems: list[str], *, most: int = MOST_OBJECT) -> R | None:
    try:
        text = read_plain(path, most=most).decode("utf-8", errors="replace")
    except NotPlain as error:
        problems.append(str(error))
        return None
    except OSError:
        return None
    try:
        return model.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name}: {_reason(error)}")
        return None


def _rows(path: Path, model: type[R], key: Callable[[R], Hashable], problems: list[str]) -> list[R]:
    try:
        data = read_plain(path, most=MOST_ROWS)
    except NotPlain as error:
        problems.append(str(error))
        return []
    except OSError:
        return []
    return _rows_in(data, model, key, problems, name=path.name)


def _rows_in(data: bytes, model: type[R], key: Callable[[R], Hashable], problems: list[str], *, name: str) -> list[R]:
    """Rows by key, the later one counting. The last line may be torn: a trainer can die while it writes."""
    found: dict[Hashable, R] = {}
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(line, model)
        except (ValueError, RecursionError) as error:
            torn = number == len(lines)
            problems.append(f"{name}:{number}: {'torn last line' if torn else _reason(error)}")
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
