"""States that a user's repository can be in: how each is made, and what has to become of a campaign in it.

A state is a function that gets a World with a plain repository in it, `world.top`, and makes of it what its name says.
It gives back the folder of the workspace, or None for `world.top`. Everything that could be touched (the repository,
its worktrees, remotes and superprojects) lies below `world.folder`, and `World.snapshot` is all of that.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from nights import NO_DEDUP, RATE_UP, RECIPE

from agent.ledger.table import HEADER

PATH = "recipes/test.yaml"
USER = ("-c", "user.name=User", "-c", "user.email=user@example.org")
HOOKS = (
    "pre-commit", "commit-msg", "prepare-commit-msg", "post-commit", "post-checkout", "post-merge", "post-rewrite",
    "pre-push", "pre-auto-gc", "reference-transaction", "post-index-change", "fsmonitor-watchman", "update",
    "pre-receive", "post-update",
)  # fmt: skip
OURS = ("refs/heads/raft/", "refs/notes/raft", "logs/refs/heads/raft/", "logs/refs/notes/raft", "raft-agent/")
"""In a git folder, beside new objects."""
OBJECT = re.compile(r"/objects/[0-9a-f]{2}(/[0-9a-f]{38,62})?$")
PARENTS = ("refs/heads/raft", "refs/notes", "logs/refs/heads/raft", "logs/refs/notes", "logs/refs", "logs/refs/heads",
           "raft-agent", "logs")  # fmt: skip
"""Folders that git makes for these."""


@dataclass
class World:
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    """Set for the agent."""
    check: Callable[[], None] = lambda: None
    """What else has to be so afterwards."""

    @property
    def top(self) -> Path:
        return self.folder / "repository"

    def git(self, *arguments: str, at: Path | None = None, check: bool = True) -> str:
        """As the user runs it."""
        environment = {**os.environ, "GIT_EDITOR": "true", "GIT_SEQUENCE_EDITOR": "true"}
        done = subprocess.run(
            ["git", *USER, *arguments], cwd=at or self.top, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0 or not check, (arguments, done.stderr)
        return done.stdout.decode(errors="replace").rstrip("\n")

    def write(self, path: str, text: str, *, at: Path | None = None) -> Path:
        target = (at or self.top) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def commit(self, path: str, text: str, *, at: Path | None = None) -> None:
        self.write(path, text, at=at)
        self.git("add", "--", path, at=at)
        self.git("commit", "--quiet", "--no-verify", "-m", f"{path}: {text.strip()[:20]}", at=at)

    def script(self, path: Path, *lines: str) -> Path:
        """Tells that it ran by a file beside the repositories."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", f"echo ran >> '{self.folder}/{path.name}-ran'", *lines, ""]))
        path.chmod(0o755)
        return path

    def conflict(self) -> None:
        """A branch `other` whose notes.txt conflicts with that of `main`."""
        self.git("switch", "--quiet", "-c", "other")
        self.commit("notes.txt", "theirs\n")
        self.git("switch", "--quiet", "main")
        self.commit("notes.txt", "ours\n")

    def snapshot(self) -> dict[str, str]:
        """Kind, mode and content of everything, but for what a campaign may leave."""
        found = {}
        for folder, names, files in os.walk(self.folder):
            for name in [*names, *files]:
                path = Path(folder) / name
                if not self._is_ours(path):
                    found[path.relative_to(self.folder).as_posix()] = told(path)
        return found

    def _is_ours(self, path: Path) -> bool:
        parts = path.relative_to(self.folder).parts
        if ".raft" in parts or parts[-1] == "results.tsv":
            return True
        inside = git_folder_of(path)
        if inside is None:
            return False
        return inside in PARENTS or (inside + "/").startswith(OURS)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """New objects are none; what objects there were must stay as they are."""
    gone = [f"gone: {name}" for name in before if name not in after]
    new = [f"new: {name}" for name in after if name not in before and not OBJECT.search(name)]
    return gone + new + [f"changed: {name}" for name in before if name in after and before[name] != after[name]]


def git_folder_of(path: Path) -> str | None:
    """The path inside of its git folder."""
    for parent in path.parents:
        if (parent / "objects").is_dir() and (parent / "HEAD").exists():
            return path.relative_to(parent).as_posix()
    return None


def told(path: Path) -> str:
    status = path.lstat()
    mode = f"{stat.S_IMODE(status.st_mode):o}"
    if path.is_symlink():
        return f"link {path.readlink()}"
    if path.is_dir():
        return f"folder {mode}"
    return f"file {mode} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def new_world(folder: Path, *, init: tuple[str, ...] = ("--quiet", "--initial-branch=main")) -> World:
    """A repository with two commits that is a workspace."""
    world = World(folder / "world")
    world.top.mkdir(parents=True)
    world.git("init", *init)
    fill(world, world.top)
    return world


def fill(world: World, top: Path) -> None:
    world.write(PATH, RECIPE, at=top)
    content = {"axis": "learning-rate", "title": "test", "hypotheses": [RATE_UP, NO_DEDUP]}
    world.write("hypotheses/test.yaml", yaml.safe_dump(content), at=top)
    world.write("notes.txt", "one\ntwo\nthree\n", at=top)
    world.write("results.tsv", HEADER + "\n", at=top)
    world.git("add", "-A", at=top)
    world.git("commit", "--quiet", "-m", "first", at=top)
    world.commit("more.txt", "more\n", at=top)


@dataclass(frozen=True)
class State:
    name: str
    make: Callable[[World], Path | None]
    refused: str | None
    """Words with which a campaign is refused; nothing may have changed then either."""
    init: tuple[str, ...]


STATES: dict[str, State] = {}


def state(
    name: str, *, refused: str | None = None, init: tuple[str, ...] = ("--quiet", "--initial-branch=main")
) -> Callable[[Callable[[World], Path | None]], Callable[[World], Path | None]]:
    def register(make: Callable[[World], Path | None]) -> Callable[[World], Path | None]:
        STATES[name] = State(name, make, refused, init)
        return make

    return register


# --- what is in the checkout and the index -----------------------------------------------------------------


@state("clean")
def _(world: World) -> None:
    pass


@state("dirty: staged, unstaged, untracked, ignored, deleted, renamed, stashed")
def _(world: World) -> None:
    world.write("notes.txt", "stashed\n")
    world.write("also.txt", "untracked in the stash\n")
    world.git("stash", "push", "--quiet", "--include-untracked")
    world.commit(".gitignore", "*.tmp\n")
    world.write("notes.txt", "staged\n")
    world.git("add", "notes.txt")
    world.write("notes.txt", "staged\nunstaged\n")
    world.write(PATH, RECIPE + "# not committed\n")
    world.write("untracked.txt", "mine\n")
    world.write("ignored.tmp", "mine too\n")
    world.git("mv", "more.txt", "renamed.txt")


@state("intent to add, skip-worktree, assume-unchanged")
def _(world: World) -> None:
    world.commit("skipped.txt", "a\n")
    world.commit("assumed.txt", "a\n")
    world.write("new.txt", "new\n")
    world.git("add", "--intent-to-add", "new.txt")
    world.git("update-index", "--skip-worktree", "skipped.txt")
    world.git("update-index", "--assume-unchanged", "assumed.txt")
    world.write("skipped.txt", "local\n")
    world.write("assumed.txt", "local\n")


@state("sparse checkout")
def _(world: World) -> None:
    world.commit("large/file.txt", "not here\n")
    world.git("sparse-checkout", "set", "recipes", "hypotheses")
    assert not (world.top / "large").exists()


@state("split index, version 4, untracked cache")
def _(world: World) -> None:
    world.git("update-index", "--index-version", "4")
    world.git("update-index", "--split-index", "--untracked-cache", check=False)


@state("the index is locked, and so are HEAD, the packed references and the configuration")
def _(world: World) -> None:
    for name in ("index.lock", "HEAD.lock", "packed-refs.lock", "config.lock", "refs/heads/main.lock"):
        world.write(f".git/{name}", "left by a git of the user's\n")


@state("a damaged index")
def _(world: World) -> None:
    world.write(".git/index", "not an index\n")


# --- where HEAD is -----------------------------------------------------------------------------------------


@state("detached")
def _(world: World) -> None:
    world.git("switch", "--quiet", "--detach", "HEAD~1")


@state("no commit yet", refused="has no commit yet")
def _(world: World) -> None:
    world.git("switch", "--quiet", "--orphan", "empty")
    fill_plain(world.top)


def fill_plain(top: Path) -> None:
    for path, text in ((PATH, RECIPE), ("hypotheses/test.yaml", "axis: learning-rate\n")):
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(text)


@state("in a merge with conflicts")
def _(world: World) -> None:
    world.conflict()
    world.git("merge", "other", check=False)
    assert (world.top / ".git/MERGE_HEAD").exists()


@state("in a rebase with conflicts")
def _(world: World) -> None:
    world.conflict()
    world.git("rebase", "other", check=False)
    assert (world.top / ".git/rebase-merge").exists()


@state("in an interactive rebase whose command has failed")
def _(world: World) -> None:
    world.git("rebase", "--interactive", "--exec", "false", "HEAD~1", check=False)
    assert (world.top / ".git/rebase-merge").exists()


@state("in a rebase with an autostash")
def _(world: World) -> None:
    world.conflict()
    world.write("more.txt", "changed\n")
    world.git("rebase", "--autostash", "other", check=False)
    assert (world.top / ".git/rebase-merge/autostash").exists()


@state("in a cherry-pick")
def _(world: World) -> None:
    world.conflict()
    world.git("cherry-pick", "other", check=False)
    assert (world.top / ".git/CHERRY_PICK_HEAD").exists()


@state("in a revert")
def _(world: World) -> None:
    world.commit("notes.txt", "second\n")
    world.commit("notes.txt", "third\n")
    world.git("revert", "HEAD~1", check=False)
    assert (world.top / ".git/REVERT_HEAD").exists()


@state("in a bisect")
def _(world: World) -> None:
    for number in range(4):
        world.commit("notes.txt", f"{number}\n")
    world.git("bisect", "start", "HEAD", "HEAD~4")
    assert (world.top / ".git/BISECT_LOG").exists()


@state("in an am whose patch does not apply")
def _(world: World) -> None:
    world.conflict()
    patch = world.git("format-patch", "-1", "other", "--stdout")
    (world.folder / "patch").write_text(patch + "\n")
    world.git("am", str(world.folder / "patch"), check=False)
    assert (world.top / ".git/rebase-apply").exists()


# --- where the repository is -------------------------------------------------------------------------------


@state("workspace in a sub-folder")
def _(world: World) -> Path:
    inner = world.top / "projects" / "inner"
    inner.mkdir(parents=True)
    fill_plain(inner)
    world.git("add", "-A")
    world.git("commit", "--quiet", "-m", "inner")
    return inner


@state("workspace in a folder that is not committed")
def _(world: World) -> Path:
    inner = world.top / "new"
    inner.mkdir()
    fill_plain(inner)
    return inner


@state("workspace is a submodule")
def _(world: World) -> Path:
    outer = world.folder / "outer"
    outer.mkdir()
    world.git("init", "--quiet", at=outer)
    world.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(world.top), "sub", at=outer)
    world.git("commit", "--quiet", "-m", "outer", at=outer)
    return outer / "sub"


@state("workspace with a submodule")
def _(world: World) -> None:
    lib = world.folder / "lib"
    lib.mkdir()
    world.git("init", "--quiet", at=lib)
    world.commit("lib.txt", "lib\n", at=lib)
    world.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(lib), "lib")
    world.git("commit", "--quiet", "-m", "with lib")
    world.write("lib/lib.txt", "changed in the submodule\n")


@state("linked worktree, and the main one in a merge")
def _(world: World) -> Path:
    world.conflict()
    linked = world.folder / "linked"
    world.git("worktree", "add", "--quiet", "-b", "side", str(linked))
    world.git("merge", "other", check=False)
    return linked


@state("the main worktree, and linked ones detached, locked and gone")
def _(world: World) -> None:
    for name in ("detached", "locked", "gone"):
        world.git("worktree", "add", "--quiet", "--detach", str(world.folder / name))
    world.git("worktree", "lock", str(world.folder / "locked"))
    for path in sorted((world.folder / "gone").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (world.folder / "gone").rmdir()


@state("worktrees with a configuration of their own")
def _(world: World) -> Path:
    linked = world.folder / "linked"
    world.git("worktree", "add", "--quiet", "-b", "side", str(linked))
    world.git("config", "extensions.worktreeConfig", "true")
    world.git("config", "--worktree", "core.sparseCheckout", "false", at=linked)
    return linked


@state("bare clone beside")
def _(world: World) -> None:
    world.git("clone", "--quiet", "--bare", str(world.top), str(world.folder / "beside.git"))
    world.git("remote", "add", "origin", str(world.folder / "beside.git"))
    world.git("fetch", "--quiet", "origin")
    world.git("branch", "--set-upstream-to=origin/main")
    world.git("config", "push.default", "matching")
    world.git("config", "--add", "remote.origin.push", "refs/heads/*:refs/heads/*")
    for name in ("pre-receive", "update", "post-update"):
        world.script(world.folder / "beside.git" / "hooks" / name)


@state("bare", refused="this is a bare repository")
def _(world: World) -> Path:
    world.git("clone", "--quiet", "--bare", str(world.top), str(world.folder / "bare.git"))
    return world.folder / "bare.git"


@state("separate git folder", init=("--quiet", "--initial-branch=main", "--separate-git-dir=../elsewhere.git"))
def _(world: World) -> None:
    assert (world.top / ".git").is_file()


@state("checkout elsewhere by core.worktree", init=("--quiet", "--initial-branch=main"))
def _(world: World) -> Path:
    world.git("clone", "--quiet", "--bare", str(world.top), str(world.folder / "store.git"))
    tree = world.folder / "tree"
    tree.mkdir()
    (tree / ".git").write_text("gitdir: ../store.git\n")
    world.git("config", "core.bare", "false", at=tree)
    world.git("config", "core.worktree", str(tree), at=world.folder / "store.git")
    world.git("reset", "--quiet", "--hard", at=tree)
    return tree


@state("objects borrowed from another repository")
def _(world: World) -> Path:
    world.git("clone", "--quiet", "--shared", str(world.top), str(world.folder / "borrower"))
    return world.folder / "borrower"


@state("shallow clone")
def _(world: World) -> Path:
    world.git("clone", "--quiet", "--depth=1", f"file://{world.top}", str(world.folder / "shallow"))
    return world.folder / "shallow"


@state("partial clone that lacks old files, and its remote is there")
def _(world: World) -> Path:
    world.commit("notes.txt", "newer, so that the older one is not fetched\n")
    world.git("config", "uploadpack.allowFilter", "true")
    world.git("config", "uploadpack.allowAnySHA1InWant", "true")
    world.script(world.folder / "upload", 'exec git-upload-pack "$@"')
    source = f"file://{world.top}"
    world.git("clone", "--quiet", "--filter=blob:none", source, str(world.folder / "partial"))
    partial = world.folder / "partial"
    world.git("config", "remote.origin.uploadpack", str(world.folder / "upload"), at=partial)
    return partial


@state("packed references and objects")
def _(world: World) -> None:
    world.git("branch", "side")
    world.git("tag", "-a", "-m", "v1", "v1")
    world.git("pack-refs", "--all")
    world.git("repack", "-adq")


@state("sha256", init=("--quiet", "--initial-branch=main", "--object-format=sha256"))
def _(world: World) -> None:
    pass


@state("reftable", init=("--quiet", "--initial-branch=main", "--ref-format=reftable"))
def _(world: World) -> None:
    pass


# --- variables of whoever runs the agent -------------------------------------------------------------------


@state("variables that point at another repository")
def _(world: World) -> None:
    other = world.folder / "other"
    other.mkdir()
    world.git("init", "--quiet", at=other)
    world.commit("other.txt", "other\n", at=other)
    world.env = {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects"),
        "GIT_COMMON_DIR": str(other / ".git"),
        "GIT_PREFIX": "sub/",
    }


@state("variables of a hook and of a push that is being received")
def _(world: World) -> None:
    world.env = {
        "GIT_DIR": ".git",
        "GIT_INDEX_FILE": ".git/index",
        "GIT_QUARANTINE_PATH": str(world.top / ".git" / "objects" / "tmp_objdir"),
        "GIT_NAMESPACE": "elsewhere",
        "GIT_NOTES_REF": "refs/notes/of-mine",
        "GIT_REFLOG_ACTION": "rebase",
    }


@state("a configuration in variables that signs, hooks and edits")
def _(world: World) -> None:
    hooks = world.folder / "hooks"
    for name in HOOKS:
        world.script(hooks / name, "exit 1")
    settings = {
        "core.hooksPath": str(hooks),
        "commit.gpgSign": "true",
        "gpg.program": "false",
        "core.editor": "sleep 1000",
        "gc.auto": "1",
    }
    world.env = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        world.env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}


# --- configuration -----------------------------------------------------------------------------------------


@state("signing required, and the program fails")
def _(world: World) -> None:
    for key in ("commit.gpgSign", "tag.gpgSign", "push.gpgSign"):
        world.git("config", key, "true")
    world.git("config", "gpg.program", str(world.script(world.folder / "gpg", "exit 1")))
    world.git("config", "user.signingKey", "0000")


@state("every hook fails")
def _(world: World) -> None:
    for name in HOOKS:
        world.script(world.top / ".git" / "hooks" / name, "exit 1")


@state("hooks for all repositories, and those of this one closed")
def _(world: World) -> None:
    for name in HOOKS:
        world.script(world.folder / "hooks" / name, "exit 1")
    world.git("config", "core.hooksPath", str(world.folder / "hooks"))
    (world.top / ".git" / "hooks").mkdir(exist_ok=True)
    (world.top / ".git" / "hooks").chmod(0o555)


@state("no name, and git told not to guess one")
def _(world: World) -> None:
    world.git("config", "user.useConfigOnly", "true")


@state("line ends, filters and large files")
def _(world: World) -> None:
    clean = world.script(world.folder / "clean", "tr a-z A-Z")
    world.git("config", "core.autocrlf", "true")
    world.git("config", "core.safecrlf", "true")
    world.write(".gitattributes", "*.yaml text eol=crlf filter=large working-tree-encoding=UTF-16\n")
    for key in ("clean", "smudge", "process"):
        world.git("config", f"filter.large.{key}", str(clean))
    world.git("config", "filter.large.required", "true")


@state("a file system monitor")
def _(world: World) -> None:
    world.git("config", "core.fsmonitor", str(world.script(world.folder / "monitor")))
    world.git("config", "core.untrackedCache", "true")


@state("garbage is collected at every chance")
def _(world: World) -> None:
    for number in range(20):
        world.commit("notes.txt", f"{number}\n")
    for key, value in {
        "gc.auto": "1",
        "gc.autoDetach": "false",
        "gc.pruneExpire": "now",
        "maintenance.auto": "true",
    }.items():
        world.git("config", key, value)
    world.git("commit", "--quiet", "--amend", "-m", "amended", "--no-verify")


@state("an editor that hangs, a template, a pager and an external diff")
def _(world: World) -> None:
    world.write("template", "# fill this in\n")
    for key, value in {
        "core.editor": "sleep 1000",
        "sequence.editor": "sleep 1000",
        "commit.template": str(world.top / "template"),
        "commit.cleanup": "scissors",
        "core.commentChar": "S",
        "core.pager": "sleep 1000",
        "diff.external": "false",
        "diff.noprefix": "true",
        "color.ui": "always",
        "core.quotePath": "true",
        "log.showSignature": "true",
        "i18n.commitEncoding": "ISO-8859-1",
        "core.logAllRefUpdates": "always",
        "core.sharedRepository": "group",
    }.items():
        world.git("config", key, value)


@state("aliases and replaced objects")
def _(world: World) -> None:
    for name in ("update-ref", "notes", "commit-tree", "log"):
        world.git("config", f"alias.{name}", "!false")
    world.git("replace", "HEAD", "HEAD~1")


@state("belongs to somebody else", refused="git config --global --add safe.directory")
def _(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a repository away")
    for path in (world.top, world.top / ".git"):
        os.chown(path, 54321, 54321)


# --- names -------------------------------------------------------------------------------------------------


@state("odd names of branches and tags")
def _(world: World) -> None:
    for name in ("HEAD", "-dash", "ünï-cödé", "best", "x/raft", "main.locked", "exp/001-idea", "raft-old"):
        world.git("update-ref", f"refs/heads/{name}", "HEAD")
    for name in ("raft/night/best", "HEAD", "night"):
        world.git("update-ref", f"refs/tags/{name}", "HEAD~1")


@state("odd names of folders")
def _(world: World) -> Path:
    odd = world.folder / '-a folder\'s "nämë" * \t.lock\nand another line'
    world.top.rename(odd)
    world.git("worktree", "add", "--quiet", "--detach", str(world.folder / "line\nbranch refs/heads/raft"), at=odd)
    return odd


@state("odd names in the tree")
def _(world: World) -> None:
    for name in ("-dash", "a b", "tab\there", "line\nbreak", "ünï", '"quoted"', "x.lock", "HEAD"):
        world.write(name, name)
    (world.top / os.fsdecode(b"latin-\xfc")).write_text("x")
    (world.top / "link").symlink_to("nowhere")
    world.git("add", "-A")
    world.git("commit", "--quiet", "-m", "odd")


@state("a branch called raft", refused="a branch called raft is in the way")
def _(world: World) -> None:
    world.git("branch", "raft")


@state("branches of the user's below raft/")
def _(world: World) -> None:
    for name in ("raft/mine", "raft/other/best"):
        world.git("branch", name)
    before = world.git("for-each-ref", "refs/heads/raft/mine", "refs/heads/raft/other")

    def check() -> None:
        assert world.git("for-each-ref", "refs/heads/raft/mine", "refs/heads/raft/other") == before

    world.check = check


@state("notes of the user's, and their rewriting")
def _(world: World) -> None:
    world.git("config", "notes.rewriteRef", "refs/notes/*")
    world.git("config", "notes.displayRef", "refs/notes/*")
    for ref, revision in (("raft", "HEAD"), ("raft", "HEAD~1"), ("commits", "HEAD")):
        world.git("notes", f"--ref={ref}", "add", "-m", f"mine on {revision}", revision)

    def check() -> None:
        for revision in ("HEAD", "HEAD~1"):
            assert world.git("notes", "--ref=raft", "show", revision) == f"mine on {revision}"

    world.check = check


@state("notes in the way", refused="refs/notes/raft/deep is in the way of refs/notes/raft")
def _(world: World) -> None:
    world.git("notes", "--ref=raft/deep", "add", "-m", "mine", "HEAD")


@state("notes that are no notes", refused="refs/notes/raft is not a commit")
def _(world: World) -> None:
    world.git("update-ref", "refs/notes/raft", world.git("rev-parse", "HEAD:notes.txt"))
