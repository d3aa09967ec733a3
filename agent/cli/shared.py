"""What several commands need: the workspace, a recipe by name, where models are cached."""

from __future__ import annotations

import difflib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.ledger.workspace import Workspace

DEFAULT_RECIPES = ("main.yaml", "tiny-addition.yaml")
CACHE_VARIABLE = "RAFT_AGENT_CACHE"


def here() -> Workspace:
    """The workspace around the current folder."""
    from agent.ledger.workspace import find_workspace

    return find_workspace(Path.cwd())


def model_cache() -> Path:
    """Where bootstrapped, unpacked and dequantized models are kept, for all workspaces of this user."""
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else user_cache_path("raft-agent")


def recipe_path(workspace: Workspace, name: str | None) -> str:
    """Path of a recipe relative to the workspace, from a path, a file name, or its stem; main.yaml where not given."""
    if name is None:
        for default in DEFAULT_RECIPES:
            if (workspace.recipes / default).is_file():
                return f"recipes/{default}"
        raise UsageError("which recipe?", hint=f"there are: {', '.join(recipe_names(workspace)) or 'none'}")
    given = Path(name)
    for candidate in (given, workspace.root / given, workspace.recipes / given, workspace.recipes / f"{name}.yaml"):
        if candidate.is_file():
            return workspace.relative(candidate.absolute())
    known = recipe_names(workspace)
    near = difflib.get_close_matches(given.stem, [Path(one).stem for one in known], n=1)
    hint = f"did you mean recipes/{near[0]}.yaml?" if near else f"there are: {', '.join(known) or 'none'}"
    raise UsageError(f"no recipe {name}", hint=hint)


def recipe_names(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.recipes.glob("*.yaml"))


def print_json(value: Any) -> None:
    """One JSON document on standard output, without secrets; JSON's own escapes keep a terminal safe."""
    from agent.text import redacted

    document = redacted(json.loads(json.dumps(value, default=str)))
    print(json.dumps(document, indent=2), file=getattr(sys.stdout, "beneath", sys.stdout))
