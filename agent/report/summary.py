"""`summary.json`: a night as JSON, for programs and for whoever shows it later. Read back it is the same night.

`format` stands first. A field that this version does not know is passed over; a format that is newer is refused, since
its numbers may mean something else. What is not finite is written as unknown (null).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from agent.errors import InvalidFile
from agent.report.night import FORMAT, Night
from agent.text import redact


def summary_of(night: Night) -> dict[str, Any]:
    """As JSON has it, without secrets."""
    told: dict[str, Any] = _plain(night, cache(_text))
    return {"format": told.pop("format"), **told}


def summary_text(night: Night) -> str:
    return json.dumps(summary_of(night), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def read_summary(path: Path) -> Night:
    """Raises InvalidFile for what is no summary, or one of a newer version."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidFile(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (ValueError, RecursionError):
        raise InvalidFile("is no JSON", where=str(path), hint="raft-agent report writes it anew") from None
    return night_from(told, where=str(path))


HEAD = re.compile(rb'\s*\{\s*"format"\s*:\s*(\d{1,9})\b')


def newer_words(path: Path) -> str:
    """How to say that the summary there is of a newer version; nothing where it is not. Only its head is read."""
    try:
        with path.open("rb") as file:
            found = HEAD.match(file.read(200))
    except OSError:
        return ""
    return _newer_words(int(found[1])) if found and int(found[1]) > FORMAT else ""


def _newer_words(of: int) -> str:
    return f"was written by a newer raft-agent (format {of}, this version reads {FORMAT})"


def night_from(told: object, *, where: str = "summary.json") -> Night:
    """Raises InvalidFile for what is no summary, or one of a newer version."""
    if not isinstance(told, Mapping) or not isinstance(told.get("format"), int):
        raise InvalidFile("is no summary of a campaign", where=where, hint="raft-agent report writes one")
    if told["format"] > FORMAT:
        raise InvalidFile(_newer_words(told["format"]), where=where, hint="read it with that version")
    try:
        return _night().validate_python(dict(told))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidFile(f"{place}: {first['msg']}", where=where, hint="raft-agent report writes it anew") from None


@cache
def _night() -> TypeAdapter[Night]:
    return TypeAdapter(Night)


def _plain(value: Any, of_text: Callable[[str], str]) -> Any:
    """`of_text` remembers: a long night says the same words many times."""
    if isinstance(value, str):
        return of_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item, of_text) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, of_text) for key, item in value.items()}
    if names := _fields(cast(Hashable, type(value))):
        return {name: _plain(getattr(value, name), of_text) for name in names}
    return str(value)


@cache
def _fields(kind: Hashable) -> tuple[str, ...]:
    """Of a dataclass; nothing of any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _text(text: str) -> str:
    return redact(text if text.isascii() else text.encode("utf-8", "replace").decode())  # a lone surrogate is no text
