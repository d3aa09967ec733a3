"""The journal of a campaign: `.raft/campaigns/<name>/journal.jsonl`, append-only, one event a line.

A line is on the disk when `append` returns. A kill can only tear the last line, and a torn line is passed
over, so what was announced before an effect is known after any crash. One process writes (the workspace lock
sees to that); any number may read at the same time. Who goes on with a campaign asks `refuse_foreign` first, and tells
people of `damages`.

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

from agent.collector import no_collection
from agent.errors import WorkspaceError
from agent.files import Stamp, append_line, fsync_folder, stamp_or_none
from agent.ledger.consumed import read_consumed
from agent.ledger.disk import disk_errors
from agent.ledger.events import FORMAT, KINDS, CampaignStarted, Event, UnknownEvent, event_from
from agent.ledger.lines import Damages, event_of, events_by_line
from agent.ledger.state import CampaignState, Experiment, Folding, Incumbent, Pending, Run, fold
from agent.text import redacted

__all__ = ["CampaignState", "Event", "Experiment", "Incumbent", "Journal", "Pending", "Run", "fold"]

VERBATIM = frozenset(
    {"files", "recipe", "changes", "options", "campaign", "recipe_path", "run", "out", "branch", "slug", "commit"}
    | {"steering", "steer_done", "steer_gone"}
)
"""Fields that hold the user's recipes, their keys in steer.md, and names by which things are found again. The
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
        self._folding: Folding | None = None
        self._as_left: Stamp | None = None
        """The file when `_folding` had all of it."""
        self.readings = 0
        """Times that `current` had to read all of it: as long as it stays, only `append` has changed the file."""

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
        before = stamp_or_none(self.path)
        folding = self._folding if before == self._as_left else None
        self._seq = self._folding = None  # where the write fails half-way, the file says what is in it
        with disk_errors(self.path):
            append_line(self.path, line)
            if before is None:
                fsync_folder(self.path.parent)
        self._seq = event.seq
        if folding is not None:
            self._fold_in(folding, line.encode(), before)
        return event

    def _fold_in(self, folding: Folding, line: bytes, before: Stamp | None) -> None:
        """The line as it would be read; where the file grew by anything else too, all of it is read anew instead."""
        event, after = event_of(line), stamp_or_none(self.path)
        grown = after[0] - (before[0] if before else 0) if after else 0
        if event is not None and grown == len(line) + 1:
            folding.add(event)
            folding.state.consumed_s = max(folding.state.consumed_s, read_consumed(self.path))
            self._folding, self._as_left = folding, after

    def events(self) -> Iterator[Event]:
        """Events in file order; lines that are torn or no event are passed over. A missing file has none.

        Raises ResourceError where the file cannot be read.
        """
        for _, event in self._lines():
            if event is not None:
                yield event

    def state(self) -> CampaignState:
        """All of it, read now."""
        return self._add_up().state

    @no_collection()
    def _add_up(self) -> Folding:
        folding = Folding()
        for event in self.events():
            folding.add(event)
        folding.state.consumed_s = max(folding.state.consumed_s, read_consumed(self.path))
        return folding

    def current(self) -> CampaignState:
        """The same, kept in memory: `append` adds its event to it, and it is read anew where a write has failed or
        somebody else has written to the file."""
        seen = stamp_or_none(self.path)
        if self._folding is None or seen != self._as_left:
            self._folding, self._as_left = self._add_up(), seen
            self.readings += 1
        return self._folding.state

    def _lines(self) -> Iterator[tuple[int, Event | None]]:
        """(line number, its event); None for a line that is none. Blank lines are left out."""
        if not self.path.exists():
            return
        with disk_errors(self.path, "read"), self.path.open("rb") as file:
            yield from events_by_line(file)

    # --- before a campaign is gone on with ------------------------------------------------------------------

    def refuse_foreign(self, campaign: str) -> None:
        """Raises WorkspaceError for a journal that must not be gone on with: of another campaign, of a newer version,
        or without the line that says how it was started."""
        started: CampaignStarted | None = None
        for number, event in self._lines():
            if isinstance(event, CampaignStarted) and started is None:
                started = event
            if isinstance(event, UnknownEvent) and event.kind not in KINDS:
                raise self._newer(number, f"an event {event.kind!r} that this version does not know")
        if started is None:
            raise WorkspaceError(
                f"the journal of {campaign} does not say how it was started",
                where=str(self.path),
                hint="raft-agent run --new starts a new campaign",
            )
        if started.format > FORMAT:
            raise self._newer(1, f"format {started.format}, and this version reads {FORMAT}")
        if started.campaign != campaign:
            raise WorkspaceError(
                f"this is the journal of campaign {started.campaign}, in the folder of {campaign}",
                where=str(self.path),
                hint=f"give the folder its name again: {self.path.parent.with_name(started.campaign)}",
            )

    def _newer(self, line: int, what: str) -> WorkspaceError:
        return WorkspaceError(
            f"the journal was written by a newer raft-agent ({what}); going on with it could do things twice",
            where=f"{self.path}:{line}",
            hint="use that version, or start a new campaign with raft-agent run --new",
        )

    @no_collection()
    def state_and_damages(self) -> tuple[CampaignState, list[str]]:
        """Both in one reading."""
        folding, damages = Folding(), Damages()
        for number, event in self._lines():
            damages.add(number, event)
            if event is not None:
                folding.add(event)
        state = folding.state
        state.consumed_s = max(state.consumed_s, read_consumed(self.path))
        return state, damages.found

    def damages(self) -> list[str]:
        """What is wrong with lines before the last one, in words; a torn last line is none, a kill leaves it so."""
        return self.state_and_damages()[1]

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
