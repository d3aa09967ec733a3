"""Text for Markdown that may come from anywhere: it cannot end a table, a fence or a front matter, nor become markup.

Templates of this folder are filled without jinja's own escaping, which is for HTML, so every value goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from agent.report.templates_of import templates
from agent.text import clean, one_line

SPECIAL = re.compile(
    r"([\\`*|~<$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])|^[#>\[]|^[=+-](?=[=+\s-]|$)|^:(?=-))"
)
"""What Markdown takes for markup where it stands: not an underscore within a word, nor brackets without a link, nor the
sign of a number."""
LINKS = re.compile(r"@|://|www\.|mailto:|xmpp:", re.IGNORECASE)
"""GitHub makes a link of what stands around one of these, whatever is escaped."""


def prose(text: object) -> str:
    """On one line, as the words that they are: in a table's cell, a list's item, a paragraph."""
    line = one_line(str(text))
    if LINKS.search(line):
        return code(line)
    escaped = SPECIAL.sub(r"\\\1", line).replace("&", "&amp;")
    return re.sub(r"^(\d+)(?=[.)](?:\s|$))", r"\1\\", escaped)  # what would begin a list


def code(text: object) -> str:
    """On one line, in a fixed width; a bar could still end a table's cell, and is shown as a broken one."""
    line = one_line(str(text)).replace("|", "¦") or " "
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """A block of code, its lines as they are; the fence is longer than any in the text."""
    content = clean(text)
    fence = "`" * max(3, _longest_run(content) + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned, so that it can be read as it stands. Cells are escaped already."""
    widths = [max(3, *(len(row[place]) for row in [head, *rows])) for place in range(len(head))]
    yield _row(head, widths)
    yield _row(["-" * width for width in widths], widths)
    for row in rows:
        yield _row(row, widths)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(f'{text:<{width}}' for text, width in zip(cells, widths, strict=True))} |"


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
    """A Markdown template of this room, with the filters `prose`, `code` and `fenced`."""
    filters = {"prose": prose, "code": code, "fenced": fenced}
    return templates(autoescape=False, filters=filters).get_template(template).render(**values)
