"""Lines of a journal as events, by a parser that is compiled: a campaign of 10,000 ideas has 100 MB of them.

`from_json` takes no line that `json` refuses, and reads the others alike; what it refuses (bytes that are no UTF-8,
half a surrogate, deep nesting, rubbish) is read as `json` reads it. So what a line says does not depend on which of the
two has read it: `strict_event` is the definition.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import BinaryIO

from pydantic_core import from_json

from agent.ledger.events import Event, UnknownEvent, read_event

BLANK = "\0 \t\r\n"
"""A power cut may leave a block of NUL at the end of a file."""


def events_by_line(file: BinaryIO) -> Iterator[tuple[int, Event | None]]:
    """(line number, its event); None for a line that is none. Blank lines are left out.

    Lines end as in a text file: a carriage return in a damaged one is an end too.
    """
    number = 0
    for raw in file:
        if b"\r" in raw:
            for text in io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8", errors="replace"):
                number += 1
                if text.strip(BLANK):
                    yield number, strict_event(text)
            continue
        number += 1
        if raw.startswith(b"{") or raw.strip(BLANK.encode()):
            yield number, event_of(raw)


class Damages:
    """What is wrong with the lines of a journal, in words. A torn last line is no damage, a kill leaves it so; nor is
    one that was gone on after, where the numbers show that nothing is missing."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._expected = 1
        self._no_events: list[int] = []
        """Lines since the last event."""

    def add(self, number: int, event: Event | None) -> None:
        """The next line, which is not blank; None for one that is no event."""
        if event is None:
            self._no_events.append(number)
            return
        if self._no_events:
            if event.seq != self._expected:
                self.found += [f"line {one} is no event" for one in self._no_events]
            self._no_events.clear()
        if isinstance(event, UnknownEvent):
            self.found.append(f"line {number}: this is no {event.kind} that can be understood")
        if event.seq != self._expected:
            self.found.append(f"line {number} is number {event.seq}, expected {self._expected}")
        self._expected = event.seq + 1


def event_of(raw: bytes) -> Event | None:
    """The event of one line; None where it is none."""
    try:
        fields = from_json(raw, cache_strings="keys")
    except ValueError:
        return strict_event(raw.decode("utf-8", "replace"))
    return read_event(fields) if isinstance(fields, dict) else None


def strict_event(line: str) -> Event | None:
    """As `event_of`, by the parser of the standard library."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return read_event(fields) if isinstance(fields, dict) else None
