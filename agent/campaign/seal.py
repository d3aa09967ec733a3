"""Digests that tie a verdict to the journal before it: each verdict has that of all lines before it, and its record in
git has its own. Who edits the journal later is found out when the campaign is resumed (`lockbox.py`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.files import json_lines, read_jsonl
from agent.ledger.journal import Journal
from agent.recipe.yardstick import digest_of


class Seal:
    """Of a journal that grows. What was digested once is not read again as long as nobody else writes to the file."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self._reading = -1
        self._begin()

    def so_far(self) -> str:
        """Of all that the journal says so far; a line that a kill has torn says nothing."""
        self._catch_up()
        return _short(self._digest)

    def verdicts(self) -> dict[int, str]:
        """Of the last verdict on each experiment. Its record on `best` has it as a trailer."""
        self._catch_up()
        return self._verdicts

    def _begin(self) -> None:
        self._offset, self._digest = 0, hashlib.sha256()
        self._verdicts: dict[int, str] = {}

    def _catch_up(self) -> None:
        self.journal.current()
        if self._reading != self.journal.readings:
            self._begin()
        self._reading = -1  # an error on the way leaves a part
        for fields in self._new():
            line = _line(fields)
            self._digest.update(line)
            if fields.get("kind") == "experiment_judged":
                self._verdicts[_experiment(fields)] = digest_of(line)
        self._reading = self.journal.readings

    def _new(self) -> Iterator[dict[str, Any]]:
        if not self.journal.exists():
            return
        with self.journal.path.open("rb") as file:
            file.seek(self._offset)
            yield from json_lines(file)
            self._offset = file.tell()


def first_edited(path: Path) -> int | None:
    """The first experiment before whose verdict some line is not what it was."""
    digest = hashlib.sha256()
    for fields in read_jsonl(path):
        before = fields.get("before")
        if fields.get("kind") == "experiment_judged" and before and before != _short(digest):
            return _experiment(fields)
        digest.update(_line(fields))
    return None


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:32])


def _experiment(fields: Mapping[str, Any]) -> int:
    return int(fields.get("experiment") or 0)


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode() + b"\n"
