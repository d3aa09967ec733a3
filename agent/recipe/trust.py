"""Code that comes with a model: run only where the recipe asks for it and the user has confirmed that very code.

A model's folder may hold Python files that its configuration names (`auto_map`), and transformers runs them if it is
told to trust them. The recipe alone cannot say so, because a workspace may come from somebody else: what was confirmed
is kept in the user's configuration folder, by the content of the code. Of a model of the hub the code is that of one
commit, so `model.revision` has to be that commit.

What this does not do: say whether the code is harmless, or put it into a sandbox. It runs with the user's rights.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import UsageError, WorkspaceError
from agent.files import write_atomic
from agent.recipe.places import kind_of, model_place
from agent.recipe.schema import Model
from agent.text import one_line

COMMIT = re.compile(r"[0-9a-f]{40}")
CONFIRMED = "trusted-code.json"
FLAG = "--trust-remote-code"
MOST_FILES = 1000


@dataclass(frozen=True)
class RemoteCode:
    """What would be run."""

    source: str
    """`model.source`, a folder by its real path."""
    digest: str
    """Of the code: the hub's commit, or a SHA-256 over the names and contents of a folder's Python files."""
    files: tuple[str, ...] = ()
    """Python files of a folder; of a model of the hub they are not known here."""

    @property
    def words(self) -> str:
        if not self.files:
            return f"whatever Python files {self.source} has at commit {self.digest[:12]}"
        shown = ", ".join(self.files[:8]) + (f" and {len(self.files) - 8} more" if len(self.files) > 8 else "")
        return f"{shown} in {self.source}"


def confirmed_in() -> Path:
    """The file with what the user has confirmed."""
    from platformdirs import user_config_path

    return user_config_path("raft-agent") / CONFIRMED


def code_of(model: Model, *, base: Path) -> RemoteCode | None:
    """The code that the recipe asks to trust; None where it does not ask.

    UsageError where the code is not of one commit, RecipeError where the folder is none that a recipe may name.
    """
    if not model.trust_remote_code:
        return None
    if kind_of(model.source, base=base) == "hub":
        if COMMIT.fullmatch(model.revision or "") is None:
            raise UsageError(
                f"model.trust_remote_code: {model.source} may change its code at any time",
                hint="set model.revision to the full commit (40 hexadecimal digits) whose code you have read",
            )
        return RemoteCode(model.source, str(model.revision))
    folder = model_place(base, model.source).resolve()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if path.is_file())
    if len(files) > MOST_FILES:
        raise UsageError(
            f"model.trust_remote_code: {folder} has {len(files)} Python files, which nobody has read",
            hint="name the folder of the model alone",
        )
    digest = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        digest.update(f"{len(name)}:{name}:{content}\n".encode("utf-8", "surrogateescape"))
    return RemoteCode(str(folder), digest.hexdigest(), tuple(files))


def refuse_unconfirmed(
    model: Model, *, base: Path, confirmed: Path | None = None, recipe: str = "RECIPE"
) -> RemoteCode | None:
    """The confirmed code that may be run; None where the recipe asks for none.

    UsageError, with the command that confirms it, where the user has not. `recipe` is the recipe's name in it.
    """
    code = code_of(model, base=base)
    if code is None or _entry(code) in _entries(confirmed or confirmed_in()):
        return code
    raise UsageError(
        f"model.trust_remote_code: you have not confirmed the code of this model: {one_line(code.words)}",
        hint="it would run with your rights; read it, then confirm it once: "
        f"raft-agent check {shlex.quote(recipe)} {FLAG}",
    )


def confirm(code: RemoteCode, *, confirmed: Path | None = None) -> Path:
    """Remember that the user trusts this code; the file that says so. WorkspaceError where it cannot be written."""
    path = confirmed or confirmed_in()
    entries = _entries(path)
    if _entry(code) not in entries:
        entries.append(_entry(code))
        try:
            write_atomic(path, json.dumps({"trusted": entries}, indent=1) + "\n")
        except OSError as error:
            raise WorkspaceError(f"cannot be written: {error.strerror or error}", where=str(path)) from None
    return path


def _entry(code: RemoteCode) -> dict[str, str]:
    return {"source": code.source, "digest": code.digest}


def _entries(path: Path) -> list[dict[str, str]]:
    """What the file says; nothing where it is not there or not ours."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = content.get("trusted") if isinstance(content, Mapping) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
