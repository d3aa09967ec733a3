"""Text for Markdown that may come from anywhere: it cannot end a table, a fence or a front matter, nor become markup.

Templates of this folder are filled without jinja's own escaping, which is for HTML, so every value goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from agent.text import clean, one_line

SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&!])")
BLOCK = re.compile(r"^(?:#{1,6}(?=\s|$)|[+-](?=\s|$)|\d{1,9}[.)](?=\s|$)|[=-]+\s*$|[:-]+\s)")
"""What would begin a heading, a list, a rule or a table at the beginning of a line."""


def inline(text: object) -> str:
    """On one line, as the words that they are: in a table's cell, a list's item, a paragraph."""
    line = SPECIAL.sub(r"\\\1", one_line(str(text))).replace("://", r"\://").replace("www.", r"www\.")
    begins = BLOCK.match(line)
    if begins is None:
        return line
    at = len(line) - len(line.lstrip("0123456789"))  # of a numbered list it is the point that makes it one
    return f"{line[:at]}\\{line[at:]}"


def code(text: object) -> str:
    """On one line, in a fixed width; what has a bar in it is plain text, for a table would be cut there."""
    line = one_line(str(text))
    if "|" in line:
        return inline(line)
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest or not line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """A block whose fence is longer than any in the text."""
    content = clean(text).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML between its marks."""
    text = yaml.safe_dump(_clean(dict(values)), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def filled(template: str, **values: Any) -> str:
    """A Markdown template of this room, with the filters `inline`, `code` and `fenced`."""
    environment = Environment(
        loader=PackageLoader("agent.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"inline": inline, "code": code, "fenced": fenced}
    return environment.get_template(template).render(**values)
