"""The journal of a campaign: `.raft/campaigns/<name>/journal.jsonl`, append-only, one event a line.

A line is on the disk when `append` returns. A kill can only tear the last line, and a torn line is passed
over, so what was announced before an effect is known after any crash. One process writes (the workspace lock
sees to that); any number may read at the same time.

    journal = Journal(workspace.journal_path("night"))
    journal.append("note", text="the fan is loud")
    state = journal.state()
    for step in state.pending(): ...
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.files import append_line, fsync_folder, read_jsonl
from agent.ledger.disk import disk_errors
from agent.ledger.events import Event, event_from, read_event
from agent.ledger.state import CampaignState, Experiment, Incumbent, Pending, Run, fold
from agent.text import redacted

__all__ = ["CampaignState", "Event", "Experiment", "Incumbent", "Journal", "Pending", "Run", "fold"]

VERBATIM = frozenset(
    {"files", "recipe", "changes", "options", "campaign", "recipe_path", "run", "out", "branch", "slug", "commit"}
)
"""Fields that hold the user's recipes and the names of things, by which they are found again; git has them all. The
secrets in every other text are replaced (`agent.text`)."""


class Journal:
    """Appends and reads events.

    `clock` gives Unix seconds. `consumed`, where given, is asked at every append, so that each line says how much
    of the budget is used up and a kill loses at most the seconds since the last line.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        consumed: Callable[[], float] | None = None,
    ):
        self.path = path
        self.clock = clock
        self.consumed = consumed
        self._seq: int | None = None

    def exists(self) -> bool:
        return self.path.exists()

    def append(self, kind: str, **fields: Any) -> Event:
        """Write one event and return it; on return it survives a power cut.

        Raises ValueError for a kind or a field that no event has that way, ResourceError where the disk is full.
        """
        fields = {"kind": kind, "seq": self._last_seq() + 1, "time": self.clock(), **_plain_mapping(fields)}
        if self.consumed is not None:
            fields.setdefault("consumed_s", self.consumed())
        try:
            event = event_from(fields)
        except ValidationError as error:
            raise ValueError(f"journal event {kind!r}: {error}") from error
        line = json.dumps(_plain(event.model_dump(exclude_defaults=True)))
        is_new = not self.path.exists()
        self._seq = None  # where the write fails half-way, the file says what the next number is
        with disk_errors(self.path):
            append_line(self.path, line)
            if is_new:
                fsync_folder(self.path.parent)
        self._seq = event.seq
        return event

    def events(self) -> Iterator[Event]:
        """Events in file order; lines that are torn or no event are passed over. A missing file has none."""
        for fields in read_jsonl(self.path):
            event = read_event(fields)
            if event is not None:
                yield event

    def state(self) -> CampaignState:
        return fold(self.events())

    def _last_seq(self) -> int:
        if self._seq is None:
            self._seq = max((event.seq for event in self.events()), default=0)
        return self._seq


def _plain_mapping(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if key in VERBATIM else redacted(_plain(value)) for key, value in fields.items()}


def _plain(value: Any) -> Any:
    """As JSON has it: numpy scalars, models and dataclasses unwrapped, paths as text, what is not finite as unknown
    (None)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value, key=repr)]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a log tail may hold bytes that are no text
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.as_posix()
    for method in ("model_dump", "item"):
        if callable(getattr(value, method, None)):
            return _plain(getattr(value, method)())
    raise ValueError(f"a journal cannot hold a {type(value).__name__}: {value!r}")
