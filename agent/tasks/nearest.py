"""The nearest valid name, for messages about a name that is not valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`. `known` must not be empty."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
