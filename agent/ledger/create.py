"""Making a workspace: packaged recipes, hypotheses, studies, an empty results table, a repository with a first commit.

No file that exists is changed, and a repository of the user's gets no commit and nothing staged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import agent
from agent.errors import Unavailable, UsageError, WorkspaceError
from agent.files import write_atomic
from agent.ledger.commands import GitCommands, failure, identity_environment, without_repository_variables
from agent.ledger.disk import disk_errors
from agent.ledger.messages import commit_message
from agent.ledger.table import HEADER
from agent.ledger.workspace import HYPOTHESES, PRIVATE, RECIPES, RESULTS, STUDIES, Workspace

_GITIGNORE = f"{PRIVATE}/\n__pycache__/\n"
_LITTER = {"__pycache__", ".DS_Store"}
STUDY_RESULTS = "results"
"""Below studies/: what studies have measured here, which is no part of a new workspace."""


@dataclass
class Created:
    """What `create_workspace` did. Paths are relative to the folder."""

    workspace: Workspace
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Files that were there already and are as they were."""
    commit: str | None = None
    """First commit of a repository that was made here; None inside a repository of the user's."""
    next_step: str | None = None
    """A command for the user, where something is left to do."""


def shipped_folder() -> Path:
    """Where the packaged `recipes/`, `hypotheses/` and `studies/` lie: inside the package, or on top of a checkout."""
    package = Path(agent.__file__).resolve().parent
    for folder in (package / "shipped", package.parent):
        if (folder / RECIPES).is_dir() and (folder / HYPOTHESES).is_dir():
            return folder
    raise Unavailable(
        "the recipes and hypotheses that belong to raft-agent are missing from this installation",
        where=str(package / "shipped"),
        hint="install it again: pip install --force-reinstall raft-agent",
    )


def create_workspace(
    folder: Path, *, shipped: Path | None = None, extra: Mapping[str, str | bytes] | None = None
) -> Created:
    """Make `folder` a workspace, or complete one.

    `extra` are further files by path (a recipe of the user's own, a small data set). Outside of any repository one
    is made, and what was written is committed. Raises UsageError where `folder` is a file, ResourceError where it
    cannot be written, WorkspaceError where git is missing.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a workspace is a folder", hint="name a folder, new or existing")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    created = Created(Workspace(folder.resolve()))
    in_repository = _is_in_repository(created.workspace.root)
    files = _shipped_files(shipped or shipped_folder())
    files |= {RESULTS: f"{HEADER}\n".encode(), ".gitignore": _GITIGNORE.encode()}
    files |= {path: text.encode() if isinstance(text, str) else text for path, text in (extra or {}).items()}
    for path, data in sorted(files.items()):
        _write_new(created, path, data)
    created.workspace.prepare()
    if in_repository:
        created.next_step = _step_in_repository(created)
    else:
        created.commit = _first_commit(created)
    return created


def _shipped_files(shipped: Path) -> dict[str, bytes]:
    files = {}
    for name in (RECIPES, HYPOTHESES, STUDIES):
        for path in sorted((shipped / name).rglob("*")):
            if path.is_file() and not _LITTER & set(path.parts) and path.parent.name != STUDY_RESULTS:
                files[path.relative_to(shipped).as_posix()] = path.read_bytes()
    return files


def _write_new(created: Created, path: str, data: bytes) -> None:
    """Write a file that is not there; one that is (a dangling link too) stays."""
    target = created.workspace.root / path
    if os.path.lexists(target):
        created.kept.append(path)
        return
    with disk_errors(target):
        write_atomic(target, data)
    created.written.append(path)


def _is_in_repository(root: Path) -> bool:
    with without_repository_variables():
        status, _, errors = GitCommands(root).attempt("rev-parse", "--git-dir")
    if status != 0 and "not a git repository" not in errors:
        raise failure(("rev-parse",), errors, folder=root)
    if status != 0 and os.path.lexists(root / ".git"):
        raise WorkspaceError(
            "there is a .git here that git does not take for a repository",
            where=str(root / ".git"),
            hint="repair it or move it away first; nothing was changed",
        )
    return status == 0


def _first_commit(created: Created) -> str:
    """A new repository with one commit of what was written; files of the user's in the folder stay untracked."""
    commands = GitCommands(created.workspace.root)
    with without_repository_variables():
        _init(commands)
        commands.environment |= identity_environment(commands)
        # --force: an ignore file of the user's must not leave a recipe out
        commands.run("add", "--force", "--", *created.written)
        message = commit_message(
            "raft-agent workspace", body="Recipes, hypotheses, studies and an empty results table."
        )
        options = ("--quiet", "--allow-empty", "--no-verify", "--no-gpg-sign")
        commands.run("commit", *options, "-F", "-", stdin=message.encode())
        return commands.text("rev-parse", "HEAD")


def _init(commands: GitCommands) -> None:
    """`git init`, on a branch as the user's configuration names it, else `main`."""
    status, _, _ = commands.attempt("config", "--get", "init.defaultBranch")
    if status == 0 and commands.attempt("init", "--quiet")[0] == 0:
        return
    commands.run("init", "--quiet", "--initial-branch=main")


def _step_in_repository(created: Created) -> str | None:
    """What is left to the user in a repository that was there before."""
    with without_repository_variables():
        status, _, _ = GitCommands(created.workspace.root).attempt("rev-parse", "--verify", "--quiet", "HEAD")
    if status == 0 and not created.written:
        return None
    return f"git add {RECIPES} {HYPOTHESES} {STUDIES} {RESULTS} .gitignore && git commit -m 'raft-agent workspace'"
