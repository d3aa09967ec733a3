"""Reading and writing git objects and references without a checkout.

Commits are put together from objects (`hash-object`, `mktree`, `commit-tree`) and one reference is moved at the
very end by compare-and-swap. So there is no working tree or index of ours that could be stale, nothing of the
user's is read, locked or rewritten (checkout, index, stash, HEAD, a merge under way), no filter or line-ending
conversion touches a byte, and an effect is either done or not begun. Nothing here knows what a campaign is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.errors import UsageError, WorkspaceError
from agent.files import Stamp, stamp_or_none
from agent.ledger.commands import (
    GitCommands,
    failure,
    identity_environment,
    not_a_repository,
    without_repository_variables,
)
from agent.ledger.messages import one_line, parse_trailers

NOTES_REF = "refs/notes/raft"
BRANCHES = "refs/heads/"
_PLAIN_FILE = "100644"


@dataclass(frozen=True)
class Head:
    """What the user has checked out. `branch` is None on a detached HEAD."""

    commit: str
    branch: str | None


@dataclass(frozen=True)
class Place:
    """Where things are: top of the working tree, git folder (of this checkout, and the one that linked worktrees
    share), and the workspace's path below the top, empty or ending in a slash."""

    root: Path
    git_dir: Path
    common_dir: Path
    prefix: str

    def environment(self) -> dict[str, str]:
        """Names this repository in every command, whatever the caller's variables say; an index that is nobody's."""
        return {
            "GIT_DIR": str(self.git_dir),
            "GIT_COMMON_DIR": str(self.common_dir),
            "GIT_OBJECT_DIRECTORY": str(self.common_dir / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
            "GIT_WORK_TREE": str(self.root),
            "GIT_INDEX_FILE": str(self.git_dir / "raft-agent-has-no-index"),
        }


@dataclass(frozen=True)
class LogEntry:
    """One commit of a campaign. `time` is the commit time, Unix seconds; `note` the outcome, where there is one."""

    commit: str
    tree: str
    time: int
    subject: str
    message: str
    trailers: Mapping[str, str]
    note: str | None

    @property
    def experiment(self) -> int | None:
        value = self.trailers.get("Experiment", "")
        return int(value) if value.isdigit() else None


class ObjectStore:
    """The git repository around a workspace. Paths are relative to the workspace, with forward slashes.

    Raises WorkspaceError on construction where there is no git, no repository, a bare one, or no commit yet.
    """

    def __init__(self, workspace: Path):
        self.workspace = workspace.resolve()
        self.place = _locate(self.workspace)
        self.git = GitCommands(self.place.root, environment=self.place.environment())
        self.git.environment |= identity_environment(self.git)
        self._check_has_commit()

    def _check_has_commit(self) -> None:
        status, _, _ = self.git.attempt("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if status != 0:
            raise WorkspaceError(
                "the repository has no commit yet, and a campaign needs one to start from",
                where=str(self.workspace),
                hint="git add -A && git commit -m 'first commit'",
            )

    # ---- reading

    def head(self) -> Head:
        branch = self._symbolic_head()
        return Head(self.resolve("HEAD"), branch.removeprefix(BRANCHES) if branch else None)

    def _symbolic_head(self) -> str | None:
        status, output, _ = self.git.attempt("symbolic-ref", "--quiet", "HEAD")
        return output.decode().strip() if status == 0 else None

    def resolve(self, revision: str) -> str:
        """Full id of a commit. Raises WorkspaceError where there is none of that name."""
        commit = self.find(revision)
        if commit is None:
            raise WorkspaceError(f"no commit called {revision!r}", where=str(self.workspace))
        return commit

    def find(self, revision: str) -> str | None:
        """Full id of a commit, or None."""
        if revision.startswith("-"):
            return None
        status, output, _ = self.git.attempt("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        return output.decode().strip() if status == 0 else None

    def contains(self, revision: str, commit: str) -> bool:
        """Whether `commit` is in the history of `revision`."""
        status, _, _ = self.git.attempt("merge-base", "--is-ancestor", commit, revision)
        return status == 0

    def read_file(self, commit: str, path: str) -> str:
        """Text of a file as it is in `commit`. Raises WorkspaceError where the commit has no such file."""
        status, output, _ = self.git.attempt("cat-file", "blob", f"{self.resolve(commit)}:{self._in_tree(path)}")
        if status != 0:
            raise WorkspaceError(f"commit {commit[:12]} has no file {path}", where=str(self.workspace))
        return output.decode("utf-8", "replace")

    def diff(self, old: str, new: str, path: str | None = None) -> str:
        """Unified diff from commit `old` to `new`, of one file or of everything; empty where nothing differs."""
        only = ["--", self._in_tree(path)] if path else []
        options = ("-p", "-r", "--no-color", "--no-ext-diff", "--no-textconv")
        return self.git.text("diff-tree", *options, self.resolve(old), self.resolve(new), *only)

    def changed_files(self, old: str, new: str) -> list[str]:
        """Paths inside the workspace that differ between two commits."""
        output = self.git.run("diff-tree", "-r", "-z", "--name-only", self.resolve(old), self.resolve(new))
        paths = [part.decode("utf-8", "surrogateescape") for part in output.split(b"\0") if part]
        prefix = self.place.prefix
        return [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]

    def note(self, commit: str) -> str | None:
        """The outcome attached to a commit, or None."""
        status, output, _ = self.git.attempt("notes", f"--ref={NOTES_REF}", "show", self.resolve(commit))
        return output.decode("utf-8", "replace") if status == 0 else None

    def log(self, revisions: Sequence[str]) -> list[LogEntry]:
        """Commits in the order of time, oldest first, along first parents; `revisions` as for `git rev-list`."""
        form = "--format=%H%x00%T%x00%ct%x00%B%x00%N%x00"
        options = ("--no-color", "--no-notes", f"--notes={NOTES_REF}", "--first-parent", "--reverse")
        output = self.git.run("log", *options, form, *revisions, "--").decode("utf-8", "replace")
        parts = output.split("\0")[:-1]
        return [_log_entry(parts[at : at + 5]) for at in range(0, len(parts), 5)]

    def refs(self, pattern: str) -> dict[str, str]:
        """Full name -> commit of the references under `pattern`."""
        output = self.git.text("for-each-ref", "--format=%(refname) %(objectname)", pattern)
        pairs = [line.split(" ", 1) for line in output.splitlines() if line]
        return dict(pairs)

    def checked_out(self, ref: str) -> Path | None:
        """The working tree in which a branch is checked out, if any."""
        status, output, _ = self.git.attempt("worktree", "list", "--porcelain", "-z")  # git 2.36
        separator = b"\0" if status == 0 else b"\n"
        output = output if status == 0 else self.git.run("worktree", "list", "--porcelain")
        tree: Path | None = None
        for line in output.split(separator):
            if line.startswith(b"worktree "):
                tree = Path(os.fsdecode(line.removeprefix(b"worktree ")))
            elif line == b"branch " + ref.encode():
                return tree
        return None

    # ---- writing: objects first, then one reference

    def commit(self, parent: str, files: Mapping[str, str], message: str) -> str:
        """A commit object on top of `parent` whose tree has `files` changed and all else as it was. Moves no branch."""
        tree = self.git.text("rev-parse", f"{parent}^{{tree}}")
        if not files:
            return self._commit_tree(tree, parent, message)
        blobs = {PurePosixPath(self._in_tree(path)).parts: self._blob(text) for path, text in files.items()}
        return self._commit_tree(self._tree_with(tree, blobs), parent, message)

    def _commit_tree(self, tree: str, parent: str, message: str) -> str:
        return self.git.text("commit-tree", "--no-gpg-sign", tree, "-p", parent, "-F", "-", stdin=message.encode())

    def _blob(self, text: str) -> str:
        return self.git.text("hash-object", "-w", "--stdin", "--no-filters", stdin=text.encode())

    def _tree_with(self, tree: str | None, blobs: Mapping[tuple[str, ...], str]) -> str:
        """Id of `tree` (None: an empty one) with the blobs put at their paths."""
        entries = self._entries(tree) if tree else {}
        for name in {parts[0] for parts in blobs}:
            mode, kind, known = entries.get(name, (_PLAIN_FILE, "blob", ""))
            inner = {parts[1:]: blob for parts, blob in blobs.items() if parts[0] == name and len(parts) > 1}
            if inner and kind != "tree" and known:
                raise WorkspaceError(
                    f"{name} is a file, a link or a submodule in the repository; files below it cannot be committed",
                    where=str(self.workspace),
                    hint="make it a plain folder of this repository",
                )
            if inner:
                subtree = self._tree_with(known if kind == "tree" else None, inner)
                entries[name] = ("040000", "tree", subtree)
            else:
                mode = mode if kind == "blob" and mode != "120000" else _PLAIN_FILE
                entries[name] = (mode, "blob", blobs[(name,)])
        lines = b"".join(
            f"{mode} {kind} {known}\t".encode() + name.encode("utf-8", "surrogateescape") + b"\0"
            for name, (mode, kind, known) in entries.items()
        )
        return self.git.text("mktree", "-z", "--missing", stdin=lines)

    def _entries(self, tree: str) -> dict[str, tuple[str, str, str]]:
        """Name -> (mode, kind, id) of one level of a tree."""
        entries = {}
        for line in self.git.run("ls-tree", "-z", "--full-tree", tree).split(b"\0"):
            if line:
                words, name = line.split(b"\t", 1)
                mode, kind, known = words.decode().split(" ")
                entries[name.decode("utf-8", "surrogateescape")] = (mode, kind, known)
        return entries

    def _in_tree(self, path: str) -> str:
        """Path from the root of the repository. Raises UsageError for one that leaves the workspace."""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or ".git" in (part.lower() for part in parts):
            raise UsageError(
                f"{path!r} is not inside the workspace", hint="copy the recipe into recipes/ and name it from there"
            )
        return self.place.prefix + "/".join(parts)

    def move(self, ref: str, commit: str, *, old: str | None, why: str) -> bool:
        """Point `ref` at `commit` if it still is at `old` (None: if there is no such ref). False where it is not."""
        expected = old or "0" * len(commit)
        arguments = ("update-ref", "-m", f"raft-agent: {one_line(why)}", ref, commit, expected)
        status, errors = self._with_lock_of(ref, arguments)
        if status == 0:
            return True
        if self.find(ref) != old:
            return False
        raise failure(arguments, errors, folder=self.workspace)

    def add_note(self, commit: str, text: str) -> None:
        """Attach `text` to a commit under refs/notes/raft, instead of what was there."""
        commit = self.resolve(commit)
        if (self.note(commit) or "").strip() == text.strip():
            return
        arguments = ("notes", f"--ref={NOTES_REF}", "add", "--force", "-F", "-", commit)
        status, errors = self._with_lock_of(NOTES_REF, arguments, stdin=text.encode("utf-8", "replace"))
        if status != 0:
            raise failure(arguments, errors, folder=self.workspace)

    def _with_lock_of(
        self, ref: str, arguments: tuple[str, ...], *, stdin: bytes | None = None, patience_s: float = 2.0
    ) -> tuple[int, str]:
        """Run a command that locks `ref`. A lock that a killed git left behind is removed.

        The references are the agent's own and one agent at a time works in a repository, so a lock that stands there
        unchanged for `patience_s` (git holds one for milliseconds) has no owner. No lock of anything else is touched:
        those of the index, HEAD and the packed references are in nobody's way here.
        """
        lock = self.place.common_dir / f"{ref}.lock"
        seen: Stamp | None = None
        began = since = time.monotonic()
        while True:
            status, _, errors = self.git.attempt(*arguments, stdin=stdin)
            if status == 0:
                return status, errors
            found = stamp_or_none(lock)
            if found is None:
                return status, errors
            if found != seen:
                if time.monotonic() - began > 10 * patience_s:
                    return status, errors  # a new one each time: somebody works on it
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > patience_s:
                lock.unlink(missing_ok=True)
                status, _, errors = self.git.attempt(*arguments, stdin=stdin)
                return status, errors
            time.sleep(0.1)


def common_folder(workspace: Path) -> Path:
    """The git folder that all worktrees of the repository share. WorkspaceError where there is none."""
    commands = GitCommands(workspace)
    with without_repository_variables():
        return (workspace / os.fsdecode(_line(commands.run("rev-parse", "--git-common-dir")))).resolve()


def _line(output: bytes) -> bytes:
    """Without the newline that git ends it with; a path may have others, and bytes that are no UTF-8."""
    return output.removesuffix(b"\n")


def _locate(workspace: Path) -> Place:
    """Find the repository as git does. The one place where git chooses it, and may refuse its owner."""
    commands = GitCommands(workspace)
    with without_repository_variables():
        status, output, errors = commands.attempt("rev-parse", "--is-bare-repository", "--is-inside-work-tree")
        if status != 0:
            raise failure(("rev-parse",), errors, folder=workspace)
        is_bare, is_inside = (word == "true" for word in output.decode().split())
        if not is_inside:
            raise _no_working_tree(workspace, is_bare=is_bare)
        root, git_dir, prefix = (
            os.fsdecode(_line(commands.run("rev-parse", option)))
            for option in ("--show-toplevel", "--absolute-git-dir", "--show-prefix")
        )
        return Place(root=Path(root), git_dir=Path(git_dir), common_dir=common_folder(workspace), prefix=prefix)


def _no_working_tree(workspace: Path, *, is_bare: bool) -> WorkspaceError:
    if is_bare:
        return WorkspaceError(
            "this is a bare repository; a campaign needs one with files",
            where=str(workspace),
            hint="clone it: git clone THIS-FOLDER my-workspace",
        )
    return not_a_repository(workspace)


def _log_entry(parts: list[str]) -> LogEntry:
    commit, tree, when, message, note = parts
    return LogEntry(
        commit=commit.strip(),
        tree=tree,
        time=int(when),
        subject=message.partition("\n")[0],
        message=message.strip() + "\n",
        trailers=parse_trailers(message),
        note=note.strip() + "\n" if note.strip() else None,
    )
