"""What `raft-agent doctor` has measured of settings on this machine, kept in the user's cache for the presets.

One comparison is the same piece of work under several values of one environment variable, each in a process of its own,
because the libraries read them when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.files import write_atomic

MEASURED = "measured.json"
"""Name of the file, in the user's cache folder; it holds the measurements of every machine that shares the folder."""
CACHE_VARIABLE = "RAFT_AGENT_CACHE"
UNSET = ""
"""Stands for a variable that is not set at all."""
WORTH = 1.05
"""Times faster that a setting has to be to be switched on: repeats of a product differ by some percent."""


@dataclass(frozen=True)
class Comparison:
    variable: str
    what: str
    """The work: `bfloat16 product of 8192 x 8192`."""
    seconds: Mapping[str, float | None]
    """By value; None where it crashed, did not end in time, or gave numbers that are not finite."""
    failures: Mapping[str, str]
    """By value, in words: why there are no seconds."""
    at: str
    """Day of the measurement."""

    def speed(self, value: str, *, against: str) -> float | None:
        """Times faster that one value is than another; None where one of them is not known."""
        ours, theirs = self.seconds.get(value), self.seconds.get(against)
        return theirs / ours if ours and theirs else None

    @property
    def fastest(self) -> tuple[str, str]:
        """(value, why): the fastest one that works, if it is worth it against leaving the variable unset."""
        known = {value: seconds for value, seconds in self.seconds.items() if seconds}
        if not known:
            return UNSET, f"nothing worked when it was measured here ({self.at})"
        best = min(known, key=lambda value: known[value])
        if UNSET in self.failures and best != UNSET:
            return best, f"measured here ({self.at}): unset fails ({self.failures[UNSET]})"
        times = self.speed(best, against=UNSET)
        if best == UNSET or times is None or times < WORTH:
            return UNSET, f"measured here ({self.at}): no value is faster than leaving it unset; {self.words}"
        return best, f"measured here ({self.at}): {times:.2f} times as fast as unset; {self.words}"

    @property
    def words(self) -> str:
        """`bfloat16 product of 8192 x 8192: unset 36.1 ms, 0 36.0 ms, 1 not finite`"""
        parts = [
            f"{value or 'unset'} {1000 * seconds:.3g} ms"
            if seconds
            else f"{value or 'unset'} {self.failures.get(value, '?')}"
            for value, seconds in self.seconds.items()
        ]
        return f"{self.what}: {', '.join(parts)}"


def measured_path() -> Path:
    """One for all workspaces of the user, so that agent and trainer, wherever they run, find the same."""
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE)
    return (Path(named).expanduser().absolute() if named else user_cache_path("raft-agent")) / MEASURED


def read_measured(path: Path, fingerprint: Mapping[str, str]) -> tuple[Comparison, ...]:
    """What holds for this machine; nothing where nothing was measured or the file is torn."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))[_name(fingerprint)]
        return tuple(Comparison(**one) for one in kept["comparisons"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def write_measured(path: Path, fingerprint: Mapping[str, str], comparisons: Sequence[Comparison]) -> None:
    """Replace what is known of this machine. Raises OSError as the file system does."""
    kept: dict[str, Any] = {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        kept = read if isinstance(read, dict) else {}
    except (OSError, ValueError):
        pass  # there is none yet, or a torn one
    kept[_name(fingerprint)] = {"machine": dict(fingerprint), "comparisons": [asdict(one) for one in comparisons]}
    write_atomic(path, json.dumps(kept, indent=1) + "\n")


def _name(fingerprint: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
