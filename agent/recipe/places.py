"""Where the files lie that a recipe names: inside the workspace, whatever is written or linked.

Data sets, verifiers and the recipes that are extended belong to the workspace: its commits have to hold what decides a
result, and a recipe that somebody else wrote must not read the rest of the disk. A model is the one exception: it may
lie elsewhere, if the recipe says so openly, by an absolute path or one from the home folder.

What this does not do: watch a file after it was looked up, or tell the text of two names apart that the file system
takes for one. What is compared is where a name leads, not how it is spelt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent.errors import RecipeError
from agent.text import visible

if TYPE_CHECKING:
    from agent.recipe.schema import Recipe

SourceKind = Literal["builtin", "pypi", "gguf", "folder", "hub"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
"""huggingface_hub's `validate_repo_id` asks for as much."""
LONGEST_NAME = 255
LONGEST_PATH = 4000
"""Bytes of a file's name and of a path (Linux: NAME_MAX 255, PATH_MAX 4096)."""


def kind_of(source: str, *, base: Path) -> SourceKind:
    """What `model.source` names. A folder below `base` counts before a hub id that is spelt alike."""
    if source.startswith("builtin:"):
        return "builtin"
    if source.startswith("pypi:"):
        return "pypi"
    if source.endswith(".gguf"):
        return "gguf"
    if source.startswith((".", "/", "~")) or HUB_ID.fullmatch(source) is None:
        return "folder"
    there = base / source
    return "folder" if there.is_dir() or there.is_symlink() else "hub"


def refuse_name(name: str, *, key: str, anywhere: bool = False) -> None:
    """ValueError for a name that leads out of the workspace, or that no file can have. It looks at the name alone.

    `anywhere`: an absolute path, or one from the home folder, is allowed.
    """
    if not name.strip():
        raise ValueError(f"{key} must name a file, got {name!r}")
    if "\0" in name or visible(name) != name or "\n" in name or "\t" in name:
        raise ValueError(f"{key} must not have characters that cannot be seen, got {visible(name)!r}")
    size = len(name.encode("utf-8", "replace"))
    longest = max(len(part.encode("utf-8", "replace")) for part in name.split("/"))
    if size > LONGEST_PATH or longest > LONGEST_NAME:
        raise ValueError(f"{key} must be shorter: no file has a name of {max(longest, size)} bytes")
    if ".." in name.split("/"):
        raise ValueError(f"{key} must not lead upward by `..`, got {name!r}; write the path from the workspace on")
    if name.startswith(("/", "~")) and not anywhere:
        raise ValueError(f"{key} must be a path inside the workspace, got {name!r}; copy the file there")


def inside(base: Path, name: str, *, key: str) -> Path:
    """Where `name` lies below the workspace `base`. RecipeError where it leads out of it, by its name or by a link."""
    try:
        refuse_name(name, key=key)
    except ValueError as error:
        raise RecipeError(str(error), key=key) from None
    return contained(base / name, base, name=name, key=key)


def model_place(base: Path, source: str, *, key: str = "model.source") -> Path:
    """Where a model's folder or file lies: below `base`, or anywhere by an absolute path or one from the home folder.

    RecipeError where a relative path leads out, by `..` or by a link.
    """
    try:
        refuse_name(source, key=key, anywhere=True)
    except ValueError as error:
        raise RecipeError(str(error), key=key) from None
    if not source.startswith(("/", "~")):
        hint = "a model may lie elsewhere: write its absolute path, or one that begins with ~"
        return contained(base / source, base, name=source, key=key, hint=hint)
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise RecipeError(f"{key}: there is no such home folder, got {source!r}", key=key) from None


def refuse_outside(recipe: Recipe, *, base: Path) -> None:
    """RecipeError where something that the recipe names leads out of the workspace."""
    task, model = recipe.task, recipe.model
    if task.dataset.startswith("jsonl:"):
        inside(base, task.dataset.removeprefix("jsonl:"), key="task.dataset")
    own = task.verifier.own_function()
    if own is not None:
        inside(base, own[0], key="task.verifier.kind")
    if kind_of(model.source, base=base) in ("gguf", "folder"):
        model_place(base, model.source)


def contained(path: Path, root: Path, *, name: str, key: str, hint: str | None = None) -> Path:
    """`path`, if what it leads to is below `root`. RecipeError where it is not, or leads in a circle."""
    try:
        real = path.resolve()
        if real.is_relative_to(root.resolve()):
            return path
    except (OSError, RuntimeError) as error:  # too long a name, or links in a circle
        words = getattr(error, "strerror", None) or "its links go in a circle"
        raise RecipeError(f"{key}: {name!r} leads nowhere: {words}", key=key) from None
    raise RecipeError(
        f"{key}: {name!r} leads out of the workspace, to {real}",
        hint=hint or "copy what it names into the workspace; a link to outside does not count as inside",
        key=key,
    )
