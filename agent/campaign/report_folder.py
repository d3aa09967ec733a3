"""The folder of a campaign's report, and whether what is in it still holds.

A campaign of 10,000 ideas takes seconds to read and to write up, and its own last report lies there when a person asks
for it in the morning. So the folder says what the report was made from: a stamp of each file that went into it (the
journal, curves and samples of runs, the folders that runs lie in) and of the three that came out, the seconds consumed,
and what it was made with (`program`). As long as none of that has changed, another one would say the same. Nobody needs
to keep that file: without it the report is made.

    sources = Sources(journal, root)      before the journal is read
    ...                                   the night is gathered, the report written
    remember(folder, sources, folders.seen, written, said)
    said_by(folder, journal, root)        what it said, where it holds; None where it has to be made

Not noticed: a file that is changed by whoever can set the clock back (see `Stamp`), and a library that is changed
without another version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import agent
from agent.errors import UsageError
from agent.files import Stamp, stamp_or_none, write_atomic
from agent.ledger.consumed import read_consumed
from agent.text import holds_secret

PAGE, MARKDOWN, SUMMARY = "report.html", "report.md", "summary.json"
MADE_FROM = "made-from.json"
LIBRARIES = ("jinja2", "vl-convert-python", "scipy", "numpy")
"""By which the same night is written otherwise."""
LOCAL_TIME = Path("/etc/localtime")


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
        self.consumed_s = read_consumed(journal)


def remember(
    folder: Path, sources: Sources, seen: Mapping[Path, Stamp | None], written: Mapping[str, str], said: Said
) -> None:
    """That the report in `folder` is of these. `written`: its files' texts by name; where somebody else has written to
    one of them meanwhile, there is nothing to remember. A disk that does not take it is borne."""
    journal, before = sources.journal
    stamps = {journal: before, **seen, **{path: stamp_or_none(path) for path in _files(folder)}}
    if any(_content(folder / name) != text.encode() for name, text in written.items()):
        return
    told = {
        "program": program(),
        "consumed_s": sources.consumed_s,
        "files": {_name(path, sources.root): stamp for path, stamp in stamps.items()},
        "said": dataclasses.asdict(said),
    }
    with contextlib.suppress(OSError):
        write_atomic(folder / MADE_FROM, json.dumps(told) + "\n")


def said_by(folder: Path, journal: Path, root: Path) -> Said | None:
    """What the report in `folder` says, where one that is made now would say the same; None where it might not."""
    told = _told(folder / MADE_FROM)
    if told is None or told.program != program() or told.consumed_s != read_consumed(journal):
        return None
    if not {_name(path, root) for path in (journal, *_files(folder))} <= told.files.keys():
        return None
    try:
        same = all(stamp_or_none(root / name) == stamp for name, stamp in told.files.items())
    except ValueError:  # no name that a file could have
        return None
    return told.said if same and not _tells_a_secret(folder / SUMMARY) else None


@dataclass(frozen=True)
class _Told:
    program: str
    consumed_s: float
    files: dict[str, Stamp | None]
    """By path from the workspace on."""
    said: Said


def _told(path: Path) -> _Told | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(_Told).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _files(folder: Path) -> Iterable[Path]:
    return folder / PAGE, folder / MARKDOWN, folder / SUMMARY


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _tells_a_secret(path: Path) -> bool:
    """One that was none when it was written. Of the summary: it has all that the page tells, without its JavaScript."""
    return holds_secret((_content(path) or b"").decode("utf-8", "replace"))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@functools.cache
def program() -> str:
    """A digest of what makes reports: the files of the program by their stamps, the libraries by their versions, and
    the time zone. As they were when this was asked first: ask before they could change, since a process that runs keeps
    what it has begun with."""
    package = Path(agent.__file__).parent
    files = sorted(path for path in package.rglob("*") if path.parent.name != "__pycache__" and path.is_file())
    parts = [agent.__version__, *(f"{path} {stamp_or_none(path)}" for path in files)]
    parts += [f"{name} {_version(name)}" for name in LIBRARIES]
    parts += [f"{os.environ.get('TZ')} {time.tzname} {stamp_or_none(LOCAL_TIME)}"]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
