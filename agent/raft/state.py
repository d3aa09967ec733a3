"""What a training needs to go on after a kill, and the files that it leaves.

`state/training.safetensors` holds the end of a cycle: weights, optimizer, best weights, counters, the tensors as
safetensors and the rest as JSON in its header, so that reading it runs nothing. It is replaced atomically, not after
every cycle but so that saving costs little; a resumed training goes back to it and repeats the cycles since
(their rows are taken out of `cycles.jsonl` and `select.jsonl` first, so no line doubles). A training that is stopped in
good order saves its last cycle where that is quick. Nothing random is lost on the way: every seed follows from recipe,
seed and cycle. `state/samples.jsonl` keeps what was sampled in the running cycle, under a fingerprint of all that
decides it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.contract import CYCLES, EVAL, RUNG, SELECT, CycleRow, EvalRow, SelectRow
from agent.files import append_line, fsync_folder, read_jsonl, write_atomic
from agent.raft.rollout import Completion, Row

SAVE_COST_SHARE = 0.05
"""At most about this share of the time goes into saving states."""
MOST_WRITTEN_PER_S = 10e6
"""Bytes of states a second, on average: 300 GB in a night of eight hours, which a drive stands for years. A kill costs
the seconds since the last one, and no more than the training of one idea."""
STATE = "training.safetensors"
HEADER = "state"
"""Key of the JSON in the file's metadata."""
SLOW_DISK_BYTES_PER_S = 200e6
"""Taken for the speed of a disk that no state has been written to yet."""
R = TypeVar("R", CycleRow, SelectRow)


class StateFolder:
    """`state/` in the run's folder."""

    def __init__(self, out: Path, *, save_seconds: float, clock: Callable[[], float] = time.monotonic):
        self.folder = out / "state"
        self.save_seconds = save_seconds
        self._clock = clock
        self._saved_at = clock()
        self._cost = 0.0
        self._size = 0
        self._putting_in_place = threading.Lock()
        self._closed = False

    @property
    def path(self) -> Path:
        return self.folder / STATE

    def due(self) -> bool:
        waited = self._clock() - self._saved_at
        return waited >= max(self.save_seconds, self._cost / SAVE_COST_SHARE, self._size / MOST_WRITTEN_PER_S)

    def seconds_to_save(self, size: int) -> float:
        """What saving took the last time, or, before there was one, would take for `size` bytes on a slow disk."""
        return self._cost or size / SLOW_DISK_BYTES_PER_S

    def close(self) -> None:
        """Put no further state in place: the weights are about to change under whoever is writing one."""
        with self._putting_in_place:
            self._closed = True

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state. The bytes are on disk before the name points at them."""
        began = self._clock()
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{STATE}"
        tensors: dict[str, Tensor] = {}
        words = json.dumps(_packed(state, tensors))
        try:
            save_file(tensors, temporary, metadata={HEADER: words})
        except SafetensorError as error:
            # it says in words only what the system refused; the trainer tells a full disk by its number
            raise OSError(_errno_of(error), str(error), str(temporary)) from error
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            self._size = os.fstat(file.fileno()).st_size
        with self._putting_in_place:
            if self._closed:
                return
            temporary.replace(self.path)
        fsync_folder(self.folder)
        self._saved_at = self._clock()
        self._cost = self._saved_at - began

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None; also where the file is no state of ours, which is then said."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                words = json.loads((file.metadata() or {})[HEADER])
                state: dict[str, Any] = _unpacked(words, file.get_tensor)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            print(f"{self.path} is no saved state: {error}; the training begins anew", file=sys.stderr, flush=True)
            return None
        return state

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class SampleStore:
    """Completions of the running cycle, so that a killed generation does not begin anew."""

    def __init__(self, folder: Path, *, save_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / "samples.jsonl"
        self._save_seconds = save_seconds
        self._clock = clock
        self._waiting: list[dict[str, Any]] = []
        self._saved_at = self._began = clock()
        self.seconds_before = 0.0
        """That earlier starts took for the samples of the running cycle, as far as they were kept."""

    def begin(self, fingerprint: str) -> dict[Row, Completion]:
        """What was kept under this fingerprint. Anything else is thrown away."""
        self._saved_at = self._began = self._clock()
        self.seconds_before = 0.0
        lines = list(read_jsonl(self._path))
        if lines and lines[0].get("fingerprint") == fingerprint:
            self._waiting = []
            self.seconds_before = max((float(line.get("seconds", 0.0)) for line in lines), default=0.0)
            return {Row(line["request"], line["sample"]): Completion(*line["completion"]) for line in lines[1:]}
        self._path.unlink(missing_ok=True)
        self._waiting = [{"fingerprint": fingerprint}]
        return {}

    def keep(self, row: Row, completion: Completion) -> None:
        """Remember a finished sample; it is written once `save_seconds` have passed since the last writing."""
        fields = [completion.tokens, completion.logprobs, completion.entropies, completion.finish]
        seconds = round(self.seconds_before + self._clock() - self._began, 3)
        self._waiting.append({"request": row.request, "sample": row.sample, "completion": fields, "seconds": seconds})
        if self._clock() - self._saved_at >= self._save_seconds:
            self.write()

    def write(self) -> None:
        """Put on disk what waits for it."""
        for line in self._waiting:
            append_line(self._path, json.dumps(line), durable=False)
        self._waiting = []
        self._saved_at = self._clock()


def keep_cycles(out: Path, last: int) -> None:
    """Take the rows after cycle `last` out of the files that have a row a cycle (and a torn line); -1 takes out all."""
    _keep(out / CYCLES, CycleRow, last)
    _keep(out / SELECT, SelectRow, last)
    _keep(out / RUNG, SelectRow, last)


def _keep(path: Path, model: type[R], last: int) -> None:
    rows = [row for line in read_jsonl(path) if (row := model(**line)).cycle <= last]
    if path.exists():
        write_atomic(path, "".join(row.model_dump_json() + "\n" for row in rows))


def append_cycle(out: Path, row: CycleRow) -> None:
    append_line(out / CYCLES, row.model_dump_json(), durable=False)


def append_select(out: Path, row: SelectRow) -> None:
    append_line(out / SELECT, row.model_dump_json(), durable=False)


def append_rung(out: Path, row: SelectRow) -> None:
    append_line(out / RUNG, row.model_dump_json(), durable=False)


def rung_measured(out: Path) -> bool:
    """Whether the measurement on the way was made, by this start or an earlier one."""
    return any(True for _ in read_jsonl(out / RUNG))


def append_eval(out: Path, rows: Sequence[EvalRow]) -> None:
    """Add rows to `eval.jsonl` as they come, for whoever watches; `write_eval` puts all into order at the end."""
    for row in rows:
        append_line(out / EVAL, row.model_dump_json(), durable=False)


def write_eval(out: Path, rows: Sequence[EvalRow]) -> None:
    """Replace `eval.jsonl` by the rows of all splits measured so far."""
    write_atomic(out / EVAL, "".join(row.model_dump_json() + "\n" for row in rows))


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """As JSON has it: a tensor by its name in `tensors`, a mapping as pairs (keys may be numbers), a tuple marked."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _packed(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_packed(inner, tensors) for inner in value]}
    if isinstance(value, list):
        return [_packed(inner, tensors) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state cannot hold a {type(value).__name__}")


def _unpacked(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(inner, tensor) for inner in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value["tensor"])
    if "tuple" in value:
        return tuple(_unpacked(inner, tensor) for inner in value["tuple"])
    return {key: _unpacked(inner, tensor) for key, inner in value["pairs"]}


def _errno_of(error: Exception) -> int:
    """Safetensors words a failed write as Rust does: `No space left on device (os error 28)`."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else errno.EIO
