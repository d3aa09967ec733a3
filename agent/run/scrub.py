"""Take secrets out of what a training has left, once it has ended and before anybody quotes it.

A trainer is not given the user's secrets (`agent.text.passed_on`). One may still come into its log: a library prints an
address with a password, or a trainer reads a file that it was not meant to.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from agent.contract import CYCLES, EVAL, FAILURE, HEARTBEAT, LOG, PLAN, RUNG, SAMPLES, SELECT, SUMMARY, TELEMETRY
from agent.files import fsync_folder, write_atomic
from agent.text import redact, redacted

DOCUMENTS = (FAILURE, PLAN, SUMMARY, HEARTBEAT)
ROWS = (CYCLES, SAMPLES, TELEMETRY)
MEASUREMENTS = (SELECT, RUNG, EVAL)
"""They have no words but the rows' own ids, and are hashed as the trainer wrote them."""
LARGEST = 16 * 1024 * 1024
LARGEST_MEASUREMENT = 128 * 1024 * 1024
"""Of a file but the log: what is larger is a flood, and would fill the memory of whoever reads it."""
CHUNK = 4 * 1024 * 1024
OVERLAP = 64 * 1024
"""Of a chunk without a line's end that is looked at again with the next one."""


def scrub(out: Path, variables: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Replace the secrets in the files of the contract; in words, what could not be scrubbed.

    `variables` are those that the trainer was given on top of this process's.
    """
    problems, environment = [], {**os.environ, **(variables or {})}
    for name in (LOG, *DOCUMENTS, *ROWS, *MEASUREMENTS):
        path = out / name
        if path.is_symlink() or not path.is_file():
            continue
        try:
            if name == LOG:
                scrub_log(path, environment)
                continue
            most = LARGEST_MEASUREMENT if name in MEASUREMENTS else LARGEST
            if path.stat().st_size > most:
                os.truncate(path, most)
                problems.append(f"{name} was larger than {most >> 20} MiB, and has been cut")
            if name not in MEASUREMENTS:
                _scrub_json(path, environment, rows=name in ROWS)
        except OSError as error:
            problems.append(f"{name} could not be searched for secrets: {error.strerror or error}")
    return tuple(problems)


def scrub_log(path: Path, environment: Mapping[str, str] | None = None) -> bool:
    """Replace the secrets in a text of any size; False where there is none, and the file is as it was."""
    with path.open("rb") as file, tempfile.TemporaryFile(dir=path.parent) as clean:
        changed = False
        for piece in _pieces(file):
            text = piece.decode("utf-8", "surrogateescape")
            found = redact(text, environment)
            changed |= found != text
            clean.write(found.encode("utf-8", "surrogateescape"))
        if not changed:
            return False
        clean.seek(0)
        _replace(path, clean)
    return True


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Pieces that end with a line, where lines are not longer than a chunk."""
    kept = b""
    while chunk := file.read(CHUNK):
        kept += chunk
        end = kept.rfind(b"\n") + 1
        if end == 0 and len(kept) > 2 * CHUNK:
            end = len(kept) - OVERLAP
        if end:
            yield kept[:end]
            kept = kept[end:]
    if kept:
        yield kept


def _replace(path: Path, clean: IO[bytes]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            while chunk := clean.read(CHUNK):
                file.write(chunk)
            file.flush()
            temporary.chmod(path.stat().st_mode & 0o777)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_folder(path.parent)


def _scrub_json(path: Path, environment: Mapping[str, str], *, rows: bool) -> None:
    """In texts only: a number that happens to be a secret too stays a number."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    if redact(text, environment) == text:
        return
    parts = text.split("\n") if rows else [text]
    scrubbed = "\n".join(_scrubbed(part, environment) for part in parts)
    if scrubbed != text:
        write_atomic(path, scrubbed.encode("utf-8", "surrogateescape"))


def _scrubbed(part: str, environment: Mapping[str, str]) -> str:
    if redact(part, environment) == part:
        return part
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(part)
        found = redacted(content, environment)
        return json.dumps(found) + ("\n" if part.endswith("\n") else "") if found != content else part
    return redact(part, environment)  # torn, or no JSON
