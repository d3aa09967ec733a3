"""Finding, naming, locking and making workspaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Busy, Unavailable, UsageError, WorkspaceError
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.git import Repository
from agent.ledger.lock import hold, holder_of
from agent.ledger.table import HEADER
from agent.ledger.workspace import Workspace, check_campaign_name, default_campaign_name, find_workspace


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    for name in ("recipes/tiny.yaml", "recipes/more/deep.yaml", "hypotheses/prompt.yaml", "recipes/__pycache__/x.pyc"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file: {name}\n")
    return folder


# ---- finding


def test_a_workspace_is_found_from_below(workspace: Path) -> None:
    below = workspace / "a" / "b"
    below.mkdir(parents=True)
    assert find_workspace(below).root == workspace.resolve()


def test_outside_of_a_workspace_the_way_in_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="raft-agent init DIR"):
        find_workspace(tmp_path)
    (tmp_path / "results.tsv").write_text(HEADER)
    (tmp_path / "recipes").mkdir()
    with pytest.raises(WorkspaceError, match="no hypotheses/; `raft-agent init"):
        find_workspace(tmp_path)


def test_paths_are_named_from_the_workspace(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Workspace(workspace)
    assert found.relative(workspace / "recipes" / "tiny.yaml") == "recipes/tiny.yaml"
    monkeypatch.chdir(workspace / "recipes")
    assert found.relative(Path("tiny.yaml")) == "recipes/tiny.yaml"
    (tmp_path / "link").symlink_to(workspace)
    assert found.relative(tmp_path / "link" / "recipes" / "tiny.yaml") == "recipes/tiny.yaml"
    with pytest.raises(UsageError, match="not inside the workspace"):
        found.relative(tmp_path / "elsewhere.yaml")


def test_the_private_folder_ignores_itself(workspace: Path, run_git) -> None:
    Workspace(workspace).prepare()
    assert run_git(workspace, "status", "--porcelain", "--untracked-files=all") == ""


# ---- names


def test_a_taken_name_suggests_the_next_free_one() -> None:
    with pytest.raises(UsageError, match="--name night-3 is free"):
        check_campaign_name("night", ["Night", "night-2"])
    assert check_campaign_name("night", ["other"]) == "night"


@pytest.mark.parametrize("name", ["alone", "Alone"])
def test_a_name_under_which_single_runs_are_kept_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--name {name}-3") as refused:
        check_campaign_name(name, ["alone-2"])
    assert "`train` and `eval` keep their runs under that name" in refused.value.message
    with pytest.raises(UsageError, match="--name alone-2"):
        check_campaign_name("-alone")


def test_the_default_name_is_the_date_and_the_recipe() -> None:
    day = date(2026, 11, 21)
    assert default_campaign_name("tiny_addition", today=day) == "2026-11-21-tiny-addition"
    taken = ["2026-11-21-tiny-addition", "2026-11-21-tiny-addition-2"]
    assert default_campaign_name("tiny_addition", today=day, taken=taken) == "2026-11-21-tiny-addition-3"


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("a b", "a-b"),
        ("a..b", "a.b"),
        ("x.lock", "x"),
        ("-x", "x"),
        ("../up", "up"),
        ("ü", "night"),
        ("", "night"),
        ("a/b", "a-b"),
    ],
)
def test_a_name_that_git_would_not_have_suggests_a_better_one(name: str, better: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_campaign_name(name)
    assert f"--name {better}" in str(caught.value)


@given(st.text(max_size=80))
def test_names_that_pass_are_names_for_git_and_suggestions_pass(name: str) -> None:
    try:
        good = check_campaign_name(name)
    except UsageError as error:
        good = check_campaign_name(str(error.hint).rpartition("--name ")[2])
    assert "/" not in good
    assert not good.startswith((".", "-"))
    assert not good.endswith((".", ".lock"))
    assert ".." not in good
    assert set(good) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


# ---- the lock

HOLD = """
import sys, time
from pathlib import Path
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace
with hold(Workspace(Path(sys.argv[1])), what="campaign night"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_holds_the_workspace(workspace: Path) -> None:
    found = Workspace(workspace)
    with hold(found, what="campaign night", clock=lambda: 0.0) as holder:
        assert holder.pid == os.getpid()
        with pytest.raises(Busy) as caught, hold(found, clock=lambda: 600.0, patience_s=0.0):
            pass
        message = str(caught.value)
        assert f"process {os.getpid()} on " in message
        assert "(campaign night), since 19" in message
        assert "10 min ago" in message
        seen = holder_of(found)
        assert seen is not None
        assert seen.pid == os.getpid()
    assert holder_of(found) is None
    with hold(found):
        pass


def test_a_killed_holder_holds_nothing(workspace: Path) -> None:
    found = Workspace(workspace)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(workspace)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        seen = holder_of(found)
        assert seen is not None
        assert (seen.pid, seen.what) == (other.pid, "campaign night")
        with pytest.raises(Busy, match=f"process {other.pid} "), hold(found, patience_s=0.0):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    assert holder_of(found) is None
    with hold(found) as holder:
        assert holder.pid == os.getpid()


def test_a_child_process_does_not_inherit_the_lock(workspace: Path) -> None:
    found = Workspace(workspace)
    with hold(found):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with hold(found, patience_s=0.0):
            pass
    finally:
        child.kill()
        child.wait()


# ---- making one


def test_a_new_workspace_is_ready_to_start_from(tmp_path: Path, shipped: Path, run_git) -> None:
    created = create_workspace(tmp_path / "new" / "ws", shipped=shipped, extra={"recipes/mine.yaml": "a: 1\n"})
    root = created.workspace.root
    assert created.written == [
        ".gitignore",
        "hypotheses/prompt.yaml",
        "recipes/mine.yaml",
        "recipes/more/deep.yaml",
        "recipes/tiny.yaml",
        "results.tsv",
    ]
    assert (root / "results.tsv").read_text() == HEADER + "\n"
    assert run_git(root, "status", "--porcelain") == ""
    assert run_git(root, "ls-files").splitlines() == created.written
    assert run_git(root, "log", "--format=%an") == "raft-agent"
    assert run_git(root, "branch", "--show-current") == "main"
    assert find_workspace(root / "recipes" / "more").root == root
    assert Repository(root).head().commit == created.commit


def test_an_existing_folder_keeps_every_file(tmp_path: Path, shipped: Path, run_git) -> None:
    root = tmp_path / "ws"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes" / "tiny.yaml").write_text("mine\n")
    (root / "data.bin").write_bytes(b"\0" * 10)
    created = create_workspace(root, shipped=shipped)
    assert created.kept == ["recipes/tiny.yaml"]
    assert (root / "recipes" / "tiny.yaml").read_text() == "mine\n"
    assert run_git(root, "status", "--porcelain").splitlines() == ["?? data.bin", "?? recipes/tiny.yaml"]
    again = create_workspace(root, shipped=shipped)
    assert again.written == []
    assert again.commit is None
    assert again.next_step is None


def test_inside_a_repository_of_the_users_nothing_is_staged(
    workspace: Path, shipped: Path, fingerprint, run_git
) -> None:
    head = run_git(workspace, "rev-parse", "HEAD")
    before = fingerprint(workspace)
    created = create_workspace(workspace / "inner", shipped=shipped)
    assert created.commit is None
    assert "git add" in (created.next_step or "")
    after = fingerprint(workspace)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("inner/") for name in set(after) - set(before))
    assert run_git(workspace, "rev-parse", "HEAD") == head


@pytest.mark.parametrize("branch", ["trunk", "not..valid", None])
def test_any_default_branch_and_hostile_configuration_will_do(
    tmp_path: Path, shipped: Path, run_git, branch: str | None
) -> None:
    config = Path(os.environ["GIT_CONFIG_GLOBAL"])
    lines = [
        "[commit]",
        "gpgsign = true",
        "[gpg]",
        "program = /bin/false",
        "[core]",
        f"excludesFile = {tmp_path}/ignore",
    ]
    lines += ["[init]", f"defaultBranch = {branch}"] if branch else []
    config.write_text("\n".join(lines) + "\n")
    (tmp_path / "ignore").write_text("*.yaml\n")
    created = create_workspace(tmp_path / "ws", shipped=shipped)
    root = created.workspace.root
    assert run_git(root, "branch", "--show-current") == ("trunk" if branch == "trunk" else "main")
    assert "recipes/tiny.yaml" in run_git(root, "ls-files").splitlines()


def test_a_broken_git_folder_is_not_touched(tmp_path: Path, shipped: Path) -> None:
    root = tmp_path / "ws"
    (root / ".git").mkdir(parents=True)
    (root / ".git" / "precious").write_text("history\n")
    with pytest.raises(WorkspaceError, match="does not take for a repository"):
        create_workspace(root, shipped=shipped)
    assert [path.name for path in root.rglob("*")] == [".git", "precious"]


def test_a_file_is_no_folder(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "ws").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        create_workspace(tmp_path / "ws", shipped=shipped)


def test_the_shipped_files_are_found_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import agent

    assert (shipped_folder() / "recipes").is_dir()
    package = tmp_path / "site-packages" / "agent"
    package.mkdir(parents=True)
    monkeypatch.setattr(agent, "__file__", str(package / "__init__.py"))
    with pytest.raises(Unavailable, match="missing from this installation"):
        shipped_folder()
    for name in ("recipes", "hypotheses"):
        (package / "shipped" / name).mkdir(parents=True)
    assert shipped_folder() == package / "shipped"
