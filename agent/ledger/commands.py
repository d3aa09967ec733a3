"""Runs git so that nothing of the user's can reach in, and nothing of ours can reach out.

What is shut off, for the agent's commands only (the user's configuration is read, never written): hooks
(`core.hooksPath` points at no folder, so not even `reference-transaction` runs), signing, the file system monitor,
automatic garbage collection, replacement objects, every transport (what a partial clone lacks is not fetched), prompts
for a password, pagers and editors. git runs in a session of its own: a Ctrl-C meant for the agent does not kill it
between two writes. Objects and references are flushed to the disk before a command ends.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from agent.errors import AgentError, ResourceError, WorkspaceError

AGENT_NAME = "raft-agent"
AGENT_EMAIL = "raft-agent@localhost"

_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.fsync": "committed,loose-object,reference",
    "core.quotePath": "false",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "log.showSignature": "false",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    "advice.detachedHead": "false",
}
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "true",
    "GIT_LITERAL_PATHSPECS": "1",
}
_REPOSITORY_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_QUARANTINE_PATH",
    "GIT_NOTES_REF",
    "GIT_NOTES_DISPLAY_REF",
    "GIT_NOTES_REWRITE_REF",
)
"""Set by git for its hooks and by `git rebase --exec`; they would point our commands at another repository, or forbid
them to move a reference."""


class GitCommands:
    """git in one folder. Failures are AgentErrors: WorkspaceError, or ResourceError for a full or closed disk."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None):
        self.folder = folder
        self.environment = {**_ENVIRONMENT, **(environment or {})}

    def run(self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> bytes:
        """Standard output as bytes. Raises where git ends with anything but 0."""
        status, output, errors = self.attempt(*arguments, stdin=stdin, env=env)
        if status != 0:
            raise failure(arguments, errors, folder=self.folder)
        return output

    def text(self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """Standard output as text without the last newline."""
        return self.run(*arguments, stdin=stdin, env=env).decode("utf-8", "replace").rstrip("\n")

    def attempt(
        self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, str]:
        """Exit status, standard output, standard error, for commands whose failure is an answer."""
        if not os.access(self.folder, os.X_OK):
            # GitPython would quietly run in the current folder instead, and so in another repository
            raise WorkspaceError("no such folder, or it may not be entered", where=str(self.folder))
        settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
        with tempfile.TemporaryFile() as file:
            file.write(stdin or b"")
            file.seek(0)
            git = _git()
            try:
                with without_repository_variables():
                    status, output, errors = git.Git(self.folder).execute(
                        ["git", "--no-pager", *settings, *arguments],
                        istream=file,
                        with_extended_output=True,
                        with_exceptions=False,
                        stdout_as_string=False,
                        strip_newline_in_stdout=False,
                        env={**self.environment, **(env or {})},
                        start_new_session=True,
                    )
            except git.GitCommandNotFound as error:
                raise _cannot_start(self.folder) from error
        return status, output if isinstance(output, bytes) else b"", errors


def _git() -> ModuleType:
    """GitPython, imported where git is run: whoever only reads a journal does not wait for it. Where there is no git it
    refuses to be imported; we want to say so ourselves."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import git

    return git


def _cannot_start(folder: Path) -> WorkspaceError:
    if shutil.which("git") is None:
        return WorkspaceError(
            "git is not installed, or not on the PATH",
            hint="install it (for example `sudo apt install git`): every experiment is a commit",
        )
    return WorkspaceError("git cannot be started", where=str(folder), hint="try `git --version` in this folder")


def failure(arguments: tuple[str, ...], errors: str, *, folder: Path) -> AgentError:
    """What git complained about, as an error that says what to do."""
    where = str(folder)
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "no message")
    if "dubious ownership" in errors:
        owned = shlex.quote(_owned(errors) or str(folder))
        return WorkspaceError(
            "the repository belongs to another user, and git refuses to work in it",
            where=where,
            hint=f"if you trust it: git config --global --add safe.directory {owned}",
        )
    if re.search(r"No space left on device|Disk quota exceeded", errors):
        return ResourceError("git cannot write: the disk is full", where=where, hint="free some space, then resume")
    if "Input/output error" in errors:
        return ResourceError(
            "git cannot write: the disk reports an error", where=where, hint="check it before going on"
        )
    if re.search(r"Permission denied|insufficient permission|Read-only file system", errors):
        return ResourceError(f"git cannot write: {said}", where=where, hint="check who owns the .git folder")
    if "not a git repository" in errors:
        return not_a_repository(folder)
    return WorkspaceError(f"git {arguments[0]} failed: {said}", where=where)


def _owned(errors: str) -> str | None:
    """The repository that git means, which a workspace may be a folder of."""
    named = re.search(r"ownership in repository at '(.+)'", errors)
    return named[1] if named else None


def not_a_repository(folder: Path) -> WorkspaceError:
    return WorkspaceError(
        "this is not a git repository, and every experiment is a commit",
        where=str(folder),
        hint="run `git init && git add -A && git commit -m start` here, or `raft-agent init DIR` for a new workspace",
    )


@contextmanager
def without_repository_variables() -> Iterator[None]:
    """Inside, git finds the repository from the folder alone."""
    saved = {name: os.environ.pop(name) for name in _REPOSITORY_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def identity_environment(commands: GitCommands) -> dict[str, str]:
    """Variables that give the agent's commits an author where the user has configured none, else none."""
    environment: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        status, _, _ = commands.attempt("-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT")
        if status != 0:
            environment |= {f"GIT_{role}_NAME": AGENT_NAME, f"GIT_{role}_EMAIL": AGENT_EMAIL}
    return environment
