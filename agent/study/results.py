"""What a study has measured: a file of JSON lines, one a run, that may be kept in git and gone on with elsewhere.

    {"kind": "prompts", "digest": ..., "ids": [...]}        the `select` prompts, sorted; once
    {"kind": "run", "training": ..., "seed": ..., ...}      a finished run
    {"kind": "failed", "training": ..., "seed": ..., ...}   one that died, or ended before its last cycle

Lines are only added, each in one durable write; one that a kill has torn is passed over. A run's held-out passes are
one text, `Passes`. Nothing here judges numbers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from agent.contract import CycleRow, Row, SelectRow
from agent.errors import InvalidFile
from agent.files import append_line, read_jsonl

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SERIES = (
    "learning_rate", "loss", "grad_norm", "pass_rate", "reward_mean", "kept", "optimizer_steps", "entropy",
    "unique_share",
)  # fmt: skip
"""Of each cycle's row, cycle 0 first."""
FIGURES = 4
"""Significant digits of a number in a series."""

Key = tuple[str, int]
"""Digest of the training, and the seed."""


class PromptsLine(Row):
    kind: Literal["prompts"] = "prompts"
    digest: str
    ids: list[str]


class RunLine(Row):
    kind: Literal["run"] = "run"
    study: str
    arm: str
    """As the study called it when it ran."""
    seed: int
    training: str
    """Digest of the recipe (`agent.study.definition.training_digest`), the number of cycles in it."""
    signature: str
    """The recipe's signature at the time."""
    cycles: int
    data: str | None
    """Digest of the rows and their splits, as the trainer told it."""
    prompts: str
    """Digest of the `select` prompts."""
    samples: int
    """Completions of each prompt in each measurement."""
    passes: str
    series: dict[str, list[float | None]]
    elapsed_s: float
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.training, self.seed


class FailedLine(Row):
    kind: Literal["failed"] = "failed"
    study: str
    arm: str
    seed: int
    training: str
    crash_class: str
    reason: str
    elapsed_s: float

    @property
    def key(self) -> Key:
        return self.training, self.seed


@dataclass
class Results:
    """What a results file holds. A run's line counts once, the first one; a failure only where there is no run."""

    path: Path
    prompts: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[Key, RunLine] = field(default_factory=dict)
    failed: dict[Key, FailedLine] = field(default_factory=dict)
    unread: int = 0
    """Lines that are JSON and yet none of ours."""

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises OSError where the file cannot be read; one that is not there is empty."""
        found = cls(path)
        for content in read_jsonl(path):
            found._take(content)
        return found

    def _take(self, content: Mapping[str, Any]) -> None:
        try:
            match content.get("kind"):
                case "prompts":
                    prompts = PromptsLine.model_validate(content)
                    self.prompts[prompts.digest] = prompts.ids
                case "run":
                    run = RunLine.model_validate(content)
                    self.runs.setdefault(run.key, run)
                    self.failed.pop(run.key, None)
                case "failed":
                    failed = FailedLine.model_validate(content)
                    if failed.key not in self.runs:
                        self.failed[failed.key] = failed
                case _:
                    self.unread += 1
        except ValidationError:
            self.unread += 1

    def add(self, line: RunLine | FailedLine, *, ids: Sequence[str] = ()) -> None:
        """Write the line, and before it the prompts where the file does not have them. Once back it is durable."""
        if isinstance(line, RunLine) and line.prompts not in self.prompts:
            self._write(PromptsLine(digest=line.prompts, ids=list(ids)))
        self._write(line)

    def _write(self, line: PromptsLine | RunLine | FailedLine) -> None:
        content = line.model_dump(mode="json")
        append_line(self.path, json.dumps(content, separators=(",", ":")))
        self._take(content)


# --- what one run measured ---------------------------------------------------------------------------------


class Unmeasured(Exception):
    """A finished training whose files do not hold what a study needs, in words."""


@dataclass(frozen=True)
class Passes:
    """How many samples of each prompt passed after each cycle: cycles x prompts, prompts in the order of their ids.

    As text: the digits of the first prompt for all cycles, then of the second, ... in base 36, zlib, base64.
    """

    counts: NDArray[np.int64]

    def text(self) -> str:
        digits = "".join(DIGITS[count] for count in self.counts.T.ravel())
        return base64.b64encode(zlib.compress(digits.encode(), 9)).decode()

    @classmethod
    def of(cls, text: str, *, prompts: int, cycles: int) -> Passes:
        """The reverse of `text`. Raises ValueError."""
        wanted = prompts * (cycles + 1)
        try:
            digits = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), wanted + 1).decode("ascii")
        except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"passes: {error}") from None
        if len(digits) != wanted or not set(digits) <= set(DIGITS):
            raise ValueError(f"passes: {len(digits)} digits instead of {wanted}")
        counts = np.array([DIGITS.index(digit) for digit in digits], dtype=np.int64)
        return cls(counts.reshape(prompts, cycles + 1).T)


def measured(select: Sequence[SelectRow], *, cycles: int) -> tuple[list[str], int, Passes]:
    """(prompt ids, samples of each, passes) of `select.jsonl`. Raises Unmeasured."""
    if [row.cycle for row in select] != list(range(cycles + 1)):
        found = [row.cycle for row in select]
        raise Unmeasured(f"measured after {len(found)} of {cycles + 1} cycles (0 to {max(found, default=0)})")
    ids = sorted(select[0].scores)
    samples = {len(scores) for row in select for scores in row.scores.values()}
    if not ids or any(sorted(row.scores) != ids for row in select):
        raise Unmeasured("its measurements are not of the same prompts")
    if len(samples) != 1 or not 0 < (count := samples.pop()) < len(DIGITS):
        raise Unmeasured("its measurements do not have the same number of samples for each prompt")
    if any(score not in (0.0, 1.0) for row in select for scores in row.scores.values() for score in scores):
        raise Unmeasured("its measurements are not of samples that pass or do not")
    counts = np.array([[round(sum(row.scores[name])) for name in ids] for row in select], dtype=np.int64)
    return ids, count, Passes(counts)


def series_of(rows: Sequence[CycleRow], *, cycles: int) -> dict[str, list[float | None]]:
    """The series by name, cycle 0 first; None where a cycle does not tell. Raises Unmeasured."""
    if [row.cycle for row in rows] != list(range(cycles + 1)):
        raise Unmeasured(f"tells of {len(rows)} of {cycles + 1} cycles")
    return {name: [_figures(getattr(row, name)) for row in rows] for name in SERIES}


def _figures(value: float | None) -> float | None:
    if value is None or not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 1e6 else float(f"{value:.{FIGURES}g}")


def digest_of_ids(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def counts_of(run: RunLine, results: Results) -> NDArray[np.int64]:
    """Passes of a run, cycles x prompts. Raises InvalidFile where the file does not hold them whole."""
    ids = results.prompts.get(run.prompts)
    where = f"{results.path}: {run.arm}, seed {run.seed}"
    if ids is None:
        raise InvalidFile("the prompts of this run are not in the file", where=where, hint="take its line out")
    try:
        return Passes.of(run.passes, prompts=len(ids), cycles=run.cycles).counts
    except ValueError as error:
        raise InvalidFile(f"this run's line is damaged: {error}", where=where, hint="take it out") from None
