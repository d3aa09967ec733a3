"""Changed keys of a recipe as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from agent.text import one_line


def changes_table(moves: Mapping[str, tuple[Any, Any]]) -> Table:
    """Key, from, to: whole values, as a recipe would have them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("key", overflow="fold")
    for name in ("from", "to"):
        table.add_column(name, overflow="fold")
    for key, (old, new) in moves.items():
        table.add_row(one_line(key), one_line(shown(old)), one_line(shown(new)))
    return table


def shown(value: Any) -> str:
    """As YAML and JSON write it; a text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
