"""How a child process gets this package and takes no other for it.

`python -m` puts the current folder first on the module path: in a workspace, which is data, a folder `agent` or a file
`json.py` would be run as ours (PYTHONSAFEPATH, or `-P`, keeps it off).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def package_path(before: str | None) -> str:
    """A PYTHONPATH on which a child finds this same `agent` package, wherever it runs.

    An installed package is found anyway; putting site-packages first would let it shadow the standard library.
    """
    parent = Path(__file__).resolve().parents[1]
    if parent.name in ("site-packages", "dist-packages"):
        return before or ""
    return os.pathsep.join([str(parent), *([before] if before else [])])


def of_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that runs a module of ours, and so do the children that it starts."""
    path = package_path(environment.get("PYTHONPATH"))
    return {**environment, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
