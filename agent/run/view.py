"""A running training as somebody looks at it again and again: heartbeat, cycles, the last sample. Reads what is new."""

from __future__ import annotations

import json
from pathlib import Path

from agent.contract import HEARTBEAT, TELEMETRY, CycleRow, Heartbeat, Sample
from agent.run.plain import open_plain
from agent.run.telemetry import follow_cycles, read_heartbeat

LAST_BYTES = 16 * 1024
"""Of the samples; one has some 400."""


class RunView:
    """Of one run folder, whatever is in it. A file that is missing or bad leaves what it would tell unknown."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.heartbeat: Heartbeat | None = None
        self.sample: Sample | None = None
        self._cycles = follow_cycles(out)
        self._stamps: dict[str, tuple[int, int] | None] = {}

    def look(self) -> None:
        if self._has_changed(HEARTBEAT):
            self.heartbeat = read_heartbeat(self.out)
        if self._has_changed(TELEMETRY):
            self.sample = last_sample(self.out) or self.sample
        self._cycles.read()

    @property
    def cycles(self) -> list[CycleRow]:
        return [row for _, row in sorted(self._cycles.rows.items(), key=lambda pair: pair[1].cycle)]

    def _has_changed(self, name: str) -> bool:
        try:
            status = (self.out / name).stat()
            stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            stamp = None
        changed = stamp != self._stamps.get(name)
        self._stamps[name] = stamp
        return changed


def last_sample(out: Path) -> Sample | None:
    """The newest whole line of `telemetry.jsonl`; None where there is none."""
    try:
        with open_plain(out / TELEMETRY) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LAST_BYTES))
            lines = file.read(LAST_BYTES).rpartition(b"\n")[0].split(b"\n")
        return Sample.model_validate(json.loads(lines[-1].decode(errors="replace")))
    except (OSError, ValueError, RecursionError):
        return None
