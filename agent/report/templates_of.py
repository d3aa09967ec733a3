"""The templates of this room, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates(
    *, autoescape: bool, filters: Mapping[str, Any], finalize: Callable[[Any], Any] | None = None
) -> Environment:
    """A name that a template uses and nobody gives is an error. `finalize` sees each value before it is written."""
    environment = Environment(
        loader=PackageLoader("agent.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    environment.filters |= dict(filters)
    return environment
