r"""The rules of triage: what known failures say, as data in `rules/*.yaml` that a person can read and extend.

A pattern is matched from the start of a message, after what loggers and ranks put in front is gone
(`agent.run.logtext`). Nothing is searched for inside arbitrary text: `inf` in `INFO` is no overflow. The first rule
that matches counts, so the particular stands before the general; rules of one's own stand before ours, and one with
the name of one of ours takes its place.

Rules without patterns carry the words for what code judges: `agent.run.triage` says when.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.contract import CrashClass
from agent.errors import InvalidFile, RecipeError
from agent.recipe.reading import read_text, read_yaml

OURS = Path(__file__).parent / "rules"
FILES = ("oom", "backend", "numeric", "data", "timeout", "resource", "typo", "unknown")
"""In the order in which they are asked."""
OWN_FOLDER = "crashes"
"""Folder of a workspace's playbook that holds rules of its own."""

MACROS = {
    "{E}": r"(?:(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Failed)(?:\(\w+\))?: )?",
    "{T}": r"(?:[A-Za-z_]\w*\.)*",
}
"""In a pattern: {E} is an exception's type, if there is one, before the message; {T} the package of a type that decides
by itself."""


class Rank(IntEnum):
    """Which of several failures is the root.

    Out of memory is a cause: what follows it is noise. Then what names a fault, then an exception's type alone, then
    what one dead process does to the others.
    """

    CAUSE = 0
    SPECIFIC = 1
    GENERIC = 2
    CASCADE = 3


@dataclass(frozen=True)
class Signature:
    """One rule."""

    name: str
    crash_class: CrashClass
    rank: Rank
    meaning: str
    example: str
    """A line that it is about, as its program writes it; for what code judges, in words where there is no line."""
    remedy: str
    """What a person can do, whatever the framework."""
    source: str
    patterns: tuple[re.Pattern[str], ...] = ()
    """None where code judges."""
    seen_in: str | None = None
    """Where code finds it: `the agent`, `exit`, `kernel`, `telemetry`, `traceback`, `tail`."""
    phrases: tuple[re.Pattern[str], ...] = ()
    """Searched for in what an error says, where no pattern of any rule fits the log: the last resort."""

    def matches(self, text: str) -> bool:
        return any(pattern.match(text) for pattern in self.patterns)

    def says(self, text: str) -> bool:
        return any(phrase.search(text) for phrase in self.phrases)


class Rules:
    """Rules in the order in which they are asked."""

    def __init__(self, signatures: Sequence[Signature]) -> None:
        self._all = tuple(signatures)
        self._by_name = {one.name: one for one in self._all}
        texts = [pattern.pattern for one in self._all for pattern in one.patterns]
        # Most lines match nothing: one pattern says so at once.
        self._any = re.compile("|".join(f"(?:{text})" for text in texts)) if texts else None
        self._known: dict[str, Signature | None] = {}

    def __iter__(self) -> Iterator[Signature]:
        return iter(self._all)

    def __getitem__(self, name: str) -> Signature:
        return self._by_name[name]

    def named(self, name: str | None) -> Signature | None:
        return self._by_name.get(name) if name else None

    def said(self, text: str) -> Signature | None:
        """The first rule one of whose phrases is in the message of an error."""
        return next((one for one in self._all if one.says(text)), None)

    def match(self, text: str) -> Signature | None:
        """The first rule that the message, without prefixes, begins with."""
        if text not in self._known:
            found = None
            if self._any is not None and self._any.match(text):
                found = next((one for one in self._all if one.matches(text)), None)
            if len(self._known) > 20_000:
                self._known.clear()
            self._known[text] = found
        return self._known[text]


@functools.cache
def our_rules() -> Rules:
    """Those that come with the program."""
    return Rules([one for name in FILES for one in _read(OURS / f"{name}.yaml")])


def rules_of(playbook: Path | None) -> Rules:
    """Ours, and those in the folder `crashes` of a workspace's playbook, which stand before them.

    Raises InvalidFile, naming file, rule and key.
    """
    folder = playbook / OWN_FOLDER if playbook is not None else None
    own: list[Signature] = []
    if playbook is not None and folder is not None and folder.is_dir():
        workspace = playbook.absolute().parent
        own = [one for path in sorted(folder.glob("*.yaml")) for one in _read(path, root=workspace)]
    if not own:
        return our_rules()
    replaced = {one.name for one in own}
    return Rules([*own, *(one for one in our_rules() if one.name not in replaced)])


# --- reading a file ------------------------------------------------------------------------------------------


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str
    says: str
    example: str
    remedy: str
    source: str = "this workspace"
    rank: Literal["cause", "specific", "generic", "cascade"] = "specific"
    patterns: list[str] = []
    phrases: list[str] = []
    seen_in: str | None = None
    crash_class: CrashClass | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    crash_class: CrashClass
    rules: list[_Row] = []


def _read(path: Path, *, root: Path | None = None) -> list[Signature]:
    try:
        content = read_yaml(read_text(path, root=root), where=str(path), edited=False)
    except RecipeError as error:
        raise InvalidFile(error.message, where=error.where, hint=error.hint) from None
    if content is None:
        return []
    try:
        file = _File.model_validate(_renamed(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join("class" if part == "crash_class" else str(part) for part in first["loc"])
        raise InvalidFile(
            f"{where or 'the file'}: {first['msg']}",
            where=str(path),
            hint="A file of rules has `class:` and a list `rules:`, each with name, says, patterns, example and "
            "remedy; `raft-agent triage --rules` shows ours.",
        ) from None
    found = [_signature(row, file.crash_class, path) for row in file.rules]
    _refuse_doubles(found, path)
    return found


def _renamed(content: Any) -> Any:
    """`class` is a word of Python's."""
    if isinstance(content, dict):
        return {"crash_class" if key == "class" else key: _renamed(value) for key, value in content.items()}
    return [_renamed(one) for one in content] if isinstance(content, list) else content


def _signature(row: _Row, crash_class: CrashClass, path: Path) -> Signature:
    try:
        patterns = tuple(re.compile(expanded(text)) for text in row.patterns)
        phrases = tuple(re.compile(text, re.IGNORECASE) for text in row.phrases)
    except re.error as error:
        raise InvalidFile(f"{row.name}: a pattern is no regular expression: {error}", where=str(path)) from None
    found = Signature(
        name=row.name,
        crash_class=row.crash_class or crash_class,
        rank=Rank[row.rank.upper()],
        meaning=row.says,
        example=row.example,
        remedy=" ".join(row.remedy.split()),
        source=row.source,
        patterns=patterns,
        phrases=phrases,
        seen_in=row.seen_in,
    )
    if not patterns and not phrases and row.seen_in is None:
        raise InvalidFile(f"{row.name}: has no pattern, so it can never match", where=str(path))
    if (patterns or phrases) and not (found.matches(row.example) or found.says(row.example)):
        raise InvalidFile(
            f"{row.name}: does not match its own example",
            where=str(path),
            hint="Patterns are matched from the start of the line.",
        )
    if any(pattern.match("") for pattern in patterns):
        raise InvalidFile(f"{row.name}: a pattern matches every line", where=str(path))
    return found


def expanded(pattern: str) -> str:
    """The pattern with its macros written out."""
    for macro, text in MACROS.items():
        pattern = pattern.replace(macro, text)
    return pattern


def _refuse_doubles(rules: Iterable[Signature], path: Path) -> None:
    seen: set[str] = set()
    for one in rules:
        if one.name in seen:
            raise InvalidFile(f"two rules have the name {one.name}", where=str(path))
        seen.add(one.name)
