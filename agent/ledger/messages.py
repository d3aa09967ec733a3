"""The words of the agent's commits and notes: subject, body, trailers. Pure text, no git.

Much of it comes from logs, playbooks and exceptions: no control character and no secret gets into a message, and no
line of a body is taken for a trailer.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from agent import text as texts

SUBJECT_WIDTH = 72
BODY_WIDTH = 72
TRAILERS = ("Experiment", "Fix", "Hypothesis", "Symptom", "Campaign", "Incumbent", "Outcome")
"""Order in which known trailers are written; others follow."""

_VALUE_WIDTH = 28
_TRAILER = re.compile(r"^([A-Za-z][A-Za-z0-9-]*): (.*)$")
_IDENTITY = ("Campaign", "Base", "Experiment", "Fix")
"""Trailers by which a commit is found again: they hold nothing from outside, and stay as they are."""
_LIKE_OURS = re.compile(r"(?im)^(?=(?:Experiment|Fix|Hypothesis|Campaign|Incumbent|Outcome|Base)\s*:)")
"""A line of prose that a reader, or git, could take for a trailer of ours."""


def change_subject(axis: str, what: str, changes: Mapping[str, tuple[Any, Any]]) -> str:
    """`<axis>: <what>, <key> <from> -> <to>, ...`, each key by its last part.

    `changes` maps dotted recipe keys to (from, to). Long values (a prompt) are shortened: the diff has them in full.
    """
    ways = (f"{key.rsplit('.', 1)[-1]} {_short(old)} -> {_short(new)}" for key, (old, new) in changes.items())
    return one_line(", ".join([f"{axis}: {what}", *ways]))


def experiment_body(
    *, symptom: str | None = None, evidence: str = "", claim: str = "", watch: Sequence[str] = ()
) -> str:
    """Why the idea was tried: the symptom with its numbers, the claim, what to watch."""
    paragraphs = []
    if symptom or evidence:
        paragraphs.append("Symptom: " + " - ".join(part for part in (symptom, evidence) if part))
    if claim:
        paragraphs.append(f"Claim: {claim}")
    if watch:
        paragraphs.append("Watch:\n" + "\n".join(f"- {one_line(item)}" for item in watch))
    return "\n\n".join(paragraphs)


def outcome_note(outcome: str, reason: str, numbers: Mapping[str, Any] | None = None) -> str:
    """What became of an experiment, as `key: value` lines; what is unknown is left out."""
    known = [("outcome", outcome), ("reason", reason), *(numbers or {}).items()]
    return "\n".join(f"{key}: {one_line(_short(value, 400))}" for key, value in known if _is_known(value)) + "\n"


def commit_message(subject: str, *, body: str = "", trailers: Mapping[str, Any] | None = None) -> str:
    """A whole message. A subject beyond 72 characters is cut at a word, and stands in full in the body."""
    subject = one_line(subject) or "no subject"
    short = subject if len(subject) <= SUBJECT_WIDTH else _cut(subject, SUBJECT_WIDTH)
    paragraphs = [short]
    if short != subject:
        paragraphs.append(_LIKE_OURS.sub("| ", _wrap(subject)))
    if body.strip():
        paragraphs.append(_LIKE_OURS.sub("| ", _wrap(texts.clean(body).strip())))
    lines = [f"{key}: {_trailer_value(key, value)}" for key, value in _ordered(trailers or {})]
    if not lines and parse_trailers("\n\n".join(paragraphs)):
        paragraphs[-1] = "\n".join(f"| {line}" for line in paragraphs[-1].splitlines())
    if lines:
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def parse_trailers(message: str) -> dict[str, str]:
    """The `Key: value` lines of the last paragraph; none where a line of it is no trailer, or it is the subject."""
    paragraphs = re.split(r"\n\s*\n", message.strip())
    if len(paragraphs) < 2:
        return {}
    found = [_TRAILER.match(line) for line in paragraphs[-1].splitlines()]
    if not all(found):
        return {}
    return {match.group(1): match.group(2) for match in found if match}


def slug_of(text: str, *, width: int = 40) -> str:
    """`text` as the end of a branch name: small letters, digits and dashes, never empty."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return slug[:width].strip("-") or "idea"


def one_line(text: str) -> str:
    """As it may stand in a commit or a note: no control characters, no secrets, no line breaks."""
    return texts.one_line(text)


def _trailer_value(key: str, value: Any) -> str:
    return " ".join(texts.visible(str(value)).split()) if key in _IDENTITY else one_line(str(value))


def _ordered(trailers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    for key in trailers:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key):
            raise ValueError(f"{key!r} is no name for a trailer")
    known = [key for key in TRAILERS if key in trailers]
    others = [key for key in trailers if key not in TRAILERS]
    return [(key, trailers[key]) for key in [*known, *others] if _is_known(trailers[key])]


def _is_known(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is not None and str(value).strip() != ""


def _short(value: Any, width: int = _VALUE_WIDTH) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_short(item, width) for item in value)}]"
    text = one_line(str(value))
    if text == "" and width == _VALUE_WIDTH:
        return '""'
    return _cut(text, width)


def _cut(text: str, width: int) -> str:
    """At most `width` characters, cut between words where there is one in the second half."""
    if len(text) <= width:
        return text
    head = text[: width - 3]
    space = head.rfind(" ")
    return (head[:space] if space > width // 2 else head).rstrip(" ,;:") + "..."


def _wrap(text: str) -> str:
    """Prose lines at 72 columns; list items keep their hanging indent, what is indented stays as it is."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            lines.append(line.rstrip())
            continue
        indent = "  " if line.startswith("- ") else ""
        lines += textwrap.wrap(
            line, BODY_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)
