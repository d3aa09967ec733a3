"""Real repositories in temporary folders, cut off from the configuration of whoever runs the tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = "# a comment that must stay\nlearner:\n  learning_rate: 5e-5  # peak\n"

Git = Callable[..., str]


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill of a process loses nothing that was written; only a power cut would, and no test can cut it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("GIT_TEST_FSYNC", "0")


@pytest.fixture(autouse=True)
def no_git_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "EMAIL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_git() -> Git:
    """`run_git(folder, "log", ...)`: the user's own git, as another person."""

    def run(folder: Path, *arguments: str, check: bool = True) -> str:
        identity = ("-c", "user.name=User", "-c", "user.email=user@example.org")
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.rstrip("\n")

    return run


@pytest.fixture
def workspace(tmp_path: Path, run_git: Git) -> Path:
    """A repository with one commit: recipes/tiny.yaml, hypotheses/ and results.tsv."""
    folder = tmp_path / "workspace"
    (folder / "recipes").mkdir(parents=True)
    (folder / "hypotheses").mkdir()
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE)
    (folder / "hypotheses" / "prompt.yaml").write_text("axis: prompt\n")
    (folder / "notes.txt").write_text("one\ntwo\nthree\n")
    run_git(folder, "init", "--quiet", "--initial-branch=trunk")
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.fixture
def fingerprint() -> Callable[[Path], dict[str, str]]:
    """Path -> digest of every file of a repository, leaving out what the agent is allowed to add.

    Allowed are objects, the branches raft/*, the notes raft, their logs, and `.raft/`.
    """
    allowed = (
        ".git/objects/",
        ".git/refs/heads/raft/",
        ".git/refs/notes/",
        ".git/logs/refs/heads/raft/",
        ".git/logs/refs/notes/",
        ".raft/",
    )

    def take(folder: Path) -> dict[str, str]:
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        kept = {name: path for name, path in files.items() if not name.startswith(allowed)}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept.items()}

    return take
