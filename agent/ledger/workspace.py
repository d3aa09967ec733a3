"""The workspace: where it is, what lies where in it, and what a campaign in it may be called.

A workspace is a folder with `recipes/`, `hypotheses/` and `results.tsv` inside a git repository. What the agent
keeps for itself is under `.raft/`, which ignores itself. Whether git is in a state to work in is for `git.py` to
say; `lock.py` says who holds the workspace, `create.py` makes a new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from agent.errors import ResourceError, UsageError, WorkspaceError
from agent.files import read_jsonl, write_atomic
from agent.ledger.disk import disk_errors

RECIPES = "recipes"
HYPOTHESES = "hypotheses"
STUDIES = "studies"
RESULTS = "results.tsv"
PRIVATE = ".raft"
ALONE = "alone"
"""Where runs without a campaign are kept, beside those of campaigns: none may be called so."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Workspace:
    """Paths of a workspace; making one touches nothing."""

    root: Path

    @property
    def recipes(self) -> Path:
        return self.root / RECIPES

    @property
    def hypotheses(self) -> Path:
        return self.root / HYPOTHESES

    @property
    def studies(self) -> Path:
        """Study files; a workspace need not have any."""
        return self.root / STUDIES

    @property
    def results(self) -> Path:
        return self.root / RESULTS

    @property
    def private(self) -> Path:
        return self.root / PRIVATE

    @property
    def campaigns(self) -> Path:
        return self.private / "campaigns"

    @property
    def cache(self) -> Path:
        return self.private / "cache"

    @property
    def lock_path(self) -> Path:
        return self.private / "lock"

    def campaign_folder(self, name: str) -> Path:
        return self.campaigns / name

    def journal_path(self, name: str) -> Path:
        return self.campaigns / name / "journal.jsonl"

    def runs_folder(self, name: str) -> Path:
        """Output folders of a campaign's runs."""
        return self.private / "runs" / name

    def study_folder(self, name: str) -> Path:
        """Output folders of a study's runs, which has the name of its file."""
        return self.private / "studies" / name

    @property
    def scratch(self) -> Path:
        """For whoever looks at a campaign, which may run beside: nothing of it is kept."""
        return self.private / "scratch"

    def report_folder(self, name: str) -> Path:
        return self.private / "report" / name

    def campaign_names(self) -> list[str]:
        """Campaigns with a journal, the one written last at the end. One whose first line was never written whole, for
        a kill or a full disk, was not started: its name is free. Raises ResourceError where it may not be looked."""
        if self.campaigns.exists() and not os.access(self.campaigns, os.R_OK | os.X_OK):
            raise ResourceError(
                "cannot be read: permission denied",
                where=str(self.campaigns),
                hint="check who owns the folder and its permissions",
            )
        journals = [path for path in self.campaigns.glob("*/journal.jsonl") if path.is_file() and _has_a_line(path)]
        journals.sort(key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
        return [path.parent.name for path in journals]

    def prepare(self) -> None:
        """Make `.raft/`, which git is told to ignore from within. Raises ResourceError where it cannot be written."""
        with disk_errors(self.private):
            self.private.mkdir(exist_ok=True)
            ignore = self.private / ".gitignore"
            if not ignore.exists():
                write_atomic(ignore, "*\n")

    def relative(self, path: Path) -> str:
        """`path` from the workspace, with forward slashes, as git and the journal name it.

        A relative `path` is taken from the current folder. Raises UsageError for a file outside: nothing there can
        be committed.
        """
        absolute = path if path.is_absolute() else Path.cwd() / path
        for candidate in (Path(os.path.normpath(absolute)), absolute.resolve()):
            for root in (self.root, self.root.resolve()):
                if candidate.is_relative_to(root):
                    return candidate.relative_to(root).as_posix()
        raise UsageError(
            f"{path} is not inside the workspace {self.root}",
            hint=f"copy it there: cp {path} {self.recipes}/",
        )


def find_workspace(start: Path) -> Workspace:
    """The workspace that `start` lies in, looking upward. Raises WorkspaceError where there is none."""
    start = start.resolve()
    nearest: Path | None = None
    for folder in (start, *start.parents):
        missing = [name for name in (RECIPES, HYPOTHESES) if not (folder / name).is_dir()]
        if not missing:
            return Workspace(folder)
        if nearest is None and (folder / RESULTS).is_file():
            nearest = folder
    hint = "`raft-agent init DIR` makes one; or change into the folder that has recipes/ and hypotheses/"
    if nearest is not None:
        lacking = " and ".join(f"{name}/" for name in (RECIPES, HYPOTHESES) if not (nearest / name).is_dir())
        hint = f"{nearest} has a {RESULTS} but no {lacking}; `raft-agent init {nearest}` puts back what is missing"
    raise WorkspaceError("not inside a raft-agent workspace", where=str(start), hint=hint)


def check_campaign_name(name: str, taken: Collection[str] = ()) -> str:
    """`name`, if it can be part of a branch name and is free. Raises UsageError that suggests one which is."""
    if not _is_valid_name(name):
        raise UsageError(
            f"{name!r} cannot be a campaign's name: use letters, digits, dots and dashes, at most 64 of them",
            hint=f"for example --name {next_free_name(_mended_name(name), taken)}",
        )
    if name.lower() == ALONE:
        raise UsageError(
            f"a campaign cannot be called {name}: `train` and `eval` keep their runs under that name",
            hint=f"for example --name {next_free_name(name, taken)}",
        )
    if _is_taken(name, taken):
        raise UsageError(
            f"there is a campaign {name} already",
            hint=f"`raft-agent resume {name}` goes on with it; --name {next_free_name(name, taken)} is free",
        )
    return name


def default_campaign_name(recipe: str, *, today: date, taken: Collection[str] = ()) -> str:
    """`2026-11-21-tiny-addition`, with a number behind it where that is taken. `recipe` is its file's stem."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", recipe).strip("-").lower()[:40].strip("-") or "recipe"
    return next_free_name(f"{today.isoformat()}-{stem}", taken)


def next_free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of name-2, name-3, ... that is free."""
    if not _is_taken(name, taken):
        return name
    number = 2
    while _is_taken(candidate := f"{name[: 63 - len(str(number))]}-{number}", taken):
        number += 1
    return candidate


def _has_a_line(path: Path) -> bool:
    with disk_errors(path, "read"):
        return next(read_jsonl(path), None) is not None


def _mended_name(name: str) -> str:
    """The nearest valid name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    name = re.sub(r"\.\.+", ".", name).strip("-._")[:64]
    while name.endswith((".lock", "-", ".", "_")):
        name = name.removesuffix(".lock").rstrip("-._")
    return name if _is_valid_name(name) else "night"


def _is_valid_name(name: str) -> bool:
    """A component that `git check-ref-format` accepts, and that is safe as a folder's name."""
    return bool(_NAME.fullmatch(name)) and ".." not in name and not name.endswith((".", ".lock"))


def _is_taken(name: str, taken: Collection[str]) -> bool:
    """Without regard to case: some file systems cannot tell Night from night."""
    return name.lower() in {ALONE, *(other.lower() for other in taken)}
