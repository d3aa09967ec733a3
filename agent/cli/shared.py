"""What several commands need: the workspace, a recipe by name, where models are cached."""

from __future__ import annotations

import difflib
import json
import os
import stat
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
    return _yaml_path(workspace, name, folder=workspace.recipes, what="recipe")


def study_path(workspace: Workspace, name: str) -> str:
    """Path of a study file relative to the workspace, from a path, a file name, or its stem."""
    return _yaml_path(workspace, name, folder=workspace.studies, what="study")


def _yaml_path(workspace: Workspace, name: str, *, folder: Path, what: str) -> str:
    _refuse_unseen(name, what)
    given = Path(name)
    for candidate in (given, workspace.root / given, folder / given, folder / f"{name}.yaml"):
        kind = kind_of_path(candidate)
        if kind == "file":
            return _in_workspace(workspace, candidate, folder)
        if kind not in ("", "folder"):
            raise UsageError(f"{name} is no {what}: {kind}", hint="name a YAML file")
    known = _names_in(folder)
    near = difflib.get_close_matches(given.stem, [Path(one).stem for one in known], n=1)
    hint = f"did you mean {folder.name}/{near[0]}.yaml?" if near else f"there are: {', '.join(known) or 'none'}"
    raise UsageError(f"no {what} {name or repr(name)}", hint=hint)


def _refuse_unseen(name: str, what: str) -> None:
    """Such a name could not be told from another one in the table, the commits or on a terminal."""
    from agent.text import visible

    if visible(name) != name or "\n" in name or "\t" in name:
        raise UsageError(
            f"a {what}'s name may not have characters that cannot be seen: {visible(name)!r}", hint="rename the file"
        )


def kind_of_path(path: Path) -> str:
    """`file`, `folder`, what is wrong with it, or nothing where there is none. It opens nothing: a pipe would wait."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:
        return "no file can have such a name"
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "it is a pipe, a device or a socket"


def _in_workspace(workspace: Workspace, path: Path, folder: Path) -> str:
    """The path of the file itself from the workspace; UsageError where it, or what it is a link to, lies outside."""
    real = path.resolve()
    if real.is_relative_to(workspace.root.resolve()):
        return workspace.relative(real)
    workspace.relative(path.absolute())  # refuses a path that does not even look as if it were inside
    raise UsageError(
        f"{path} is a link that leads out of the workspace {workspace.root}",
        hint=f"copy it there: cp {path} {folder}/",
    )


def recipe_names(workspace: Workspace) -> list[str]:
    return _names_in(workspace.recipes)


def _names_in(folder: Path) -> list[str]:
    from agent.text import one_line

    return sorted(one_line(path.name) for path in folder.glob("*.yaml"))


def print_json(value: Any) -> None:
    """One JSON document on standard output, without secrets; JSON's own escapes keep a terminal safe."""
    from agent.text import redacted

    document = redacted(json.loads(json.dumps(value, default=str)))
    print(json.dumps(document, indent=2), file=getattr(sys.stdout, "beneath", sys.stdout))
