"""Read the end of a log of any size and encoding as text.

Not more than `MOST_BYTES` is held, wherever the log comes from; the line number at which the text begins is counted
over the whole file. What is no text (control characters, bytes of no encoding) is taken out, so that a log can be shown
in a terminal.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.errors import UsageError

MOST_BYTES = 8 * 1024 * 1024
"""Of the end; the tracebacks of a thousand ranks take a few MiB."""
CHUNK = 4 * 1024 * 1024
PROBED = 64 * 1024
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDTH = {"utf-16-le": 2, "utf-16-be": 2, "utf-32-le": 4, "utf-32-be": 4}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
"""All but tab, newline, carriage return (progress bars are drawn with it) and escape (colours begin with it)."""


@dataclass(frozen=True)
class LogText:
    text: str
    first_line: int
    """Number, from 1, of the line of the file that the text begins with."""
    bytes: int
    """Size of the whole log."""
    encoding: str
    notes: tuple[str, ...] = ()
    """What a reader should know: that only the end was read, that it is mostly no text."""


def read_log(path: Path, *, most: int = MOST_BYTES) -> LogText:
    """The log at `path`. Raises UsageError where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return read_stream(file, most=most)
    except FileNotFoundError:
        raise UsageError(
            "no such log", where=str(path), hint="give the path of a log, or - for standard input"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def read_stream(file: IO[bytes], *, most: int = MOST_BYTES) -> LogText:
    """The same of an open file or pipe, in one pass."""
    kept: deque[bytes] = deque()
    head, held, size, newlines, dropped_newlines = b"", 0, 0, 0, 0
    for chunk in _chunks(file):
        head = head or chunk[:PROBED]
        size += len(chunk)
        newlines += chunk.count(b"\n")
        kept.append(chunk)
        held += len(chunk)
        while held - len(kept[0]) >= most:
            gone = kept.popleft()
            held -= len(gone)
            dropped_newlines += gone.count(b"\n")
    data = b"".join(kept)
    encoding = _encoding(head, data)
    width = WIDTH.get(encoding, 1)
    if len(data) > most:
        at = len(data) - most
        at -= (size - len(data) + at) % width
        dropped_newlines += data[:at].count(b"\n")
        data = data[at:]
    text, share = _decoded(data, encoding)
    first, notes = 1 + dropped_newlines, []
    if len(data) < size:
        _, newline, after = text.partition("\n")
        if newline:  # the first line is cut
            text, first = after, first + 1
        notes.append(f"the last {len(data) / 2**20:.0f} of {size / 2**20:.0f} MiB were read")
    if share > 0.2:
        notes.append(f"{share:.0%} of what was read is no text")
    return LogText(text, first, size, encoding, tuple(notes))


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _encoding(head: bytes, data: bytes) -> str:
    """By its mark, by where its zero bytes are (Windows shells write UTF-16), else UTF-8 or one byte a character."""
    for mark, name in BOMS:
        if head.startswith(mark):
            return name
    if len(head) >= 16:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        half = len(head) // 2
        if odd > 0.7 * half and even < 0.1 * half:
            return "utf-16-le"
        if even > 0.7 * half and odd < 0.1 * half:
            return "utf-16-be"
    return "cp1252" if _one_byte_letters(data[-1024 * 1024 :]) else "utf-8"


def _one_byte_letters(data: bytes) -> bool:
    """Text in one byte a character: few bytes are no ASCII, and most of these make no UTF-8."""
    high = sum(byte >= 0x80 for byte in data)
    leads = sum(byte >= 0xC0 for byte in data)
    broken = data.decode("utf-8", errors="replace").count("\ufffd")
    return 0 < high < 0.3 * len(data) and 2 * broken > leads


def _decoded(data: bytes, encoding: str) -> tuple[str, float]:
    """(text, share of it that is no text)."""
    text = data.decode(encoding, errors="replace").lstrip("﻿")
    clean = CONTROL.sub("", text)
    broken = len(text) - len(clean) + clean.count("�")
    return clean, broken / len(text) if text else 0.0
