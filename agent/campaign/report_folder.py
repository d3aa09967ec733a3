"""The folder of a campaign's report, and whether what is in it still holds.

A campaign of 10,000 ideas takes seconds to read and to write up, and its own last report lies there when a person asks
for it in the morning. So the folder says what the report was made from: a stamp of each file that went into it (the
journal, curves and samples of runs, the folders that runs lie in) and of the three that came out. As long as none of
them has changed, another one would say the same. Nobody needs to keep that file: without it the report is made.

    sources = Sources(journal, root)      before the journal is read
    ...                                   the night is gathered, the report written
    remember(folder, sources, folders.seen, said)
    said_by(folder, journal, root)        what it said, where it holds; None where it has to be made
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agent
from agent.errors import UsageError
from agent.files import Stamp, stamp_or_none, write_atomic
from agent.ledger.consumed import read_consumed
from agent.text import secret_names

PAGE, MARKDOWN, SUMMARY = "report.html", "report.md", "summary.json"
MADE_FROM = "made-from.json"


def refuse_newer(folder: Path) -> None:
    """UsageError where the report in the folder is of a newer version, which says what this one would not."""
    from agent.report.summary import newer_words

    words = newer_words(folder / SUMMARY)
    if words:
        raise UsageError(
            f"the report in {folder} {words}, and is not written over",
            hint="raft-agent report --out DIR writes one into another folder",
        )


@dataclass(frozen=True)
class Said:
    """What the command tells of a report."""

    verdict: str
    warnings: tuple[str, ...]
    why_no_charts: str
    made_at: float
    """Unix seconds."""


class Sources:
    """Of a report that is about to be made. What is not read yet may still change: then the report is made anew."""

    def __init__(self, journal: Path, root: Path) -> None:
        self.root = root
        self.journal = journal, stamp_or_none(journal)
        self.others = _others(journal)


def remember(folder: Path, sources: Sources, seen: Mapping[Path, Stamp | None], said: Said) -> None:
    """That the report in `folder` is of these. A disk that does not take it is borne."""
    journal, before = sources.journal
    stamps = {journal: before, **seen, **{path: stamp_or_none(path) for path in _written(folder)}}
    told = {
        "others": sources.others,
        "files": {_name(path, sources.root): stamp for path, stamp in stamps.items()},
        "said": dataclasses.asdict(said),
    }
    with contextlib.suppress(OSError):
        write_atomic(folder / MADE_FROM, json.dumps(told) + "\n")


def said_by(folder: Path, journal: Path, root: Path) -> Said | None:
    """What the report in `folder` says, where one that is made now would say the same; None where it might not."""
    told = _told(folder / MADE_FROM)
    if told is None:
        return None
    needed = {_name(path, root) for path in (journal, *_written(folder))}
    if told.others != _others(journal) or not needed <= told.files.keys():
        return None
    if any(told.files[name] is None for name in needed):
        return None
    same = all(stamp_or_none(root / name) == stamp for name, stamp in told.files.items())
    return told.said if same else None


@dataclass(frozen=True)
class _Told:
    others: dict[str, Any]
    files: dict[str, Stamp | None]
    """By path from the workspace on."""
    said: Said


def _told(path: Path) -> _Told | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(_Told).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _written(folder: Path) -> Iterable[Path]:
    return folder / PAGE, folder / MARKDOWN, folder / SUMMARY


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _others(journal: Path) -> dict[str, Any]:
    """All else that a report depends on: the program, the seconds consumed, what is secret, and the local time."""
    return {
        "program": program(),
        "consumed_s": read_consumed(journal),
        "secrets": _digest(secret_names()),
        "zone": [time.timezone, time.altzone, *time.tzname],
    }


@functools.cache
def program() -> str:
    """Of the files that it consists of, by their stamps: of an installed one and of a checkout that is worked on. As
    they were when this was asked first: ask before they could change."""
    package = Path(agent.__file__).parent
    files = sorted(path for path in package.rglob("*") if path.suffix != ".pyc" and path.is_file())
    return _digest((agent.__version__, *(f"{path} {stamp_or_none(path)}" for path in files)))


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
