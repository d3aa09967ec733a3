"""The user's repository is byte-identical after a campaign, in every state that it can be in (`git_states.py`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from git_states import HOOKS, PATH, STATES, World, differences, git_folder_of, new_world
from nights import RECIPE, Night, dying_at
from nights import Dies as Killed

from agent.errors import AgentError
from agent.ledger.git import CampaignBranches, Repository
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace


@pytest.fixture(autouse=True)
def own_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_TEST_FSYNC", "0")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")


def made(tmp_path: Path, name: str) -> tuple[World, Path]:
    """The world in that state, and where the workspace is."""
    state = STATES[name]
    try:
        world = new_world(tmp_path, init=state.init)
    except AssertionError as error:
        if name in ("sha256", "reftable"):
            pytest.skip(f"this git has no such repositories: {error.args[0][1].decode().splitlines()[0]}")
        raise
    folder = state.make(world) or world.top
    return world, folder


def campaign_in_git(folder: Path, name: str = "night") -> CampaignBranches:
    """All that a campaign does to git: its start, an idea that is kept, one that is discarded, one that crashes after a
    fix, its end, and going on after that. Without trainings, so that every state gets one."""
    workspace = Workspace(folder)
    with hold(workspace, what=f"campaign {name}"):
        repository = Repository(folder)
        base, text = repository.head().commit, (folder / PATH).read_text()
        campaign = repository.start_campaign(name, base=base, files={PATH: text})
        for number, outcome in ((1, "keep"), (2, "discard"), (3, "crash")):
            idea = text.replace("5.0e-4", f"{number}.0e-3")
            assert idea != text
            campaign.commit_experiment(number, f"idea {number}", {PATH: idea}, subject=f"learner: idea {number}")
            if outcome == "crash":
                campaign.commit_fix(number, {PATH: idea + "# fixed\n"}, fix=1, subject="fix oom: half of it")
            kept = {PATH: idea} if outcome == "keep" else None
            note = f"outcome: {outcome}\n"
            campaign.push_outcome(number, outcome=outcome, note=note, subject=f"idea {number}", files=kept)
        campaign.finalize()
    with hold(workspace):
        again = Repository(folder).open_campaign(name)
        again.commit_experiment(4, "later", {PATH: text + "# later\n"}, subject="learner: later")
        again.push_outcome(4, outcome="keep", note="outcome: keep\n", subject="later", files={PATH: text + "# later\n"})
        again.finalize()
    return again


QUICK = {
    "dirty: staged, unstaged, untracked, ignored, deleted, renamed, stashed",
    "the index is locked, and so are HEAD, the packed references and the configuration",
    "in an interactive rebase whose command has failed",
    "linked worktree, and the main one in a merge",
    "bare",
    "belongs to somebody else",
}
"""All states take 15 s on a quiet machine; these are in the default suite."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STATES]
)
def test_after_all_that_a_campaign_does_to_git_everything_else_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    world, folder = made(tmp_path, name)
    before = world.snapshot()
    assert len(before) > 20
    for key, value in world.env.items():
        monkeypatch.setenv(key, value)
    refused = STATES[name].refused
    if refused is not None:
        with pytest.raises(AgentError) as caught:
            campaign_in_git(folder)
        assert refused in str(caught.value)
        assert caught.value.hint
    else:
        campaign = campaign_in_git(folder)
        told = [(entry.trailers.get("Outcome"), (entry.note or "").strip()) for entry in campaign.log()]
        assert told == [
            (None, ""),
            *((outcome, f"outcome: {outcome}") for outcome in ("keep", "discard", "crash", "keep")),
        ]
        assert len(campaign.experiment_log(3)) == 2
        assert campaign.repository.read_file(campaign.final_branch, PATH).endswith("# later\n")
    for key in world.env:
        monkeypatch.delenv(key)
    assert differences(before, world.snapshot()) == []
    world.check()


def test_the_snapshot_sees_what_a_campaign_must_not_touch(tmp_path: Path) -> None:
    """A test of the test: each of these is seen, and what is allowed is not."""
    world = new_world(tmp_path)
    (world.top / ".git" / "hooks").mkdir(exist_ok=True)
    before = world.snapshot()
    seen = {
        "index": lambda: world.git("add", str(world.write("x.txt", "x\n"))),
        "config": lambda: world.git("config", "user.name", "somebody"),
        "refs/heads/other": lambda: world.git("branch", "other"),
        "refs/stash": lambda: world.git("stash", "push", "--quiet"),
        "refs/notes/commits": lambda: world.git("notes", "add", "-m", "x"),
        "hooks/pre-commit": lambda: world.script(world.top / ".git/hooks/pre-commit"),
        "packed-refs": lambda: world.git("pack-refs", "--all"),
        "logs/HEAD": lambda: world.git("commit", "--quiet", "--allow-empty", "-m", "x"),
        "objects/info/packs": lambda: world.git("repack", "-adq"),
    }
    for name, touch in seen.items():
        touch()
        found = differences(before, world.snapshot())
        assert any(name in one for one in found), (name, found)
        before = world.snapshot()
    world.git("update-ref", "refs/heads/raft/night/best", "HEAD")
    world.git("notes", "--ref=raft", "add", "-m", "x")
    world.write("results.tsv", "x")
    world.write(".raft/anything", "x")
    assert differences(before, world.snapshot()) == []
    assert git_folder_of(world.top / ".git" / "refs" / "heads" / "main") == "refs/heads/main"


@pytest.mark.slow
def test_what_a_partial_clone_lacks_is_not_fetched(tmp_path: Path) -> None:
    world, folder = made(tmp_path, "partial clone that lacks old files, and its remote is there")
    old = world.git("rev-parse", "HEAD~1:notes.txt")
    lacks = ["cat-file", "--batch-check", "--batch-all-objects"]
    assert old not in world.git(*lacks, at=folder)
    repository = Repository(folder)
    with pytest.raises(AgentError):
        repository.read_file(repository.resolve("HEAD~1"), "notes.txt")
    campaign_in_git(folder)
    assert old not in world.git(*lacks, at=folder)
    assert not (world.folder / "upload-ran").exists()
    assert world.git("cat-file", "blob", old, at=folder).startswith("one")  # the user's own git fetches it as ever
    assert (world.folder / "upload-ran").exists()


@pytest.mark.slow
def test_a_lock_of_the_agents_own_that_stands_still_is_taken_away_and_one_that_changes_is_not(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    campaign = campaign_in_git(world.top)
    repository = campaign.repository
    lock = world.top / ".git/refs/notes/raft.lock"
    lock.write_text("")
    repository.add_note(campaign.best, "outcome: other\n")
    assert not lock.exists()
    attempt, calls = repository.git.attempt, []

    def busy(*arguments: str, **keys: object) -> tuple[int, bytes, str]:
        """Somebody takes the lock and gives it back all the time."""
        if arguments[0] == "notes" and "add" in arguments:
            calls.append(1)
            lock.unlink(missing_ok=True)
            lock.write_text(f"{len(calls)}" * len(calls))
            os.utime(lock, ns=(len(calls), len(calls)))
        return attempt(*arguments, **keys)  # type: ignore[arg-type]  # passed on

    repository.git.attempt = busy  # type: ignore[method-assign]  # for this test
    arguments = ("notes", "--ref=refs/notes/raft", "add", "--force", "-F", "-", campaign.best)
    status, errors = repository._with_lock_of("refs/notes/raft", arguments, stdin=b"x", patience_s=0.1)
    assert status != 0
    assert "lock" in errors
    assert lock.exists()


# --- whole campaigns ---------------------------------------------------------------------------------------


WHOLE = [
    "dirty: staged, unstaged, untracked, ignored, deleted, renamed, stashed",
    "in an interactive rebase whose command has failed",
    "linked worktree, and the main one in a merge",
    "workspace is a submodule",
    "every hook fails",
    "signing required, and the program fails",
    "a configuration in variables that signs, hooks and edits",
    "the index is locked, and so are HEAD, the packed references and the configuration",
    "separate git folder",
    "odd names of folders",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_campaign_that_is_killed_and_resumed_touches_nothing_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    world, folder = made(tmp_path, name)
    before = world.snapshot()
    for key, value in world.env.items():
        monkeypatch.setenv(key, value)
    night = Night(Workspace(folder))
    with pytest.raises(Killed), hold(night.workspace):
        night.start(launcher=dying_at(6), max_experiments=2)
    with hold(night.workspace):
        ending = night.resume()
        assert night.session is not None
        assert night.session.branches is not None
        night.session.branches.finalize()
    assert ending.kept
    assert len(night.rows) == 3
    for key in world.env:
        monkeypatch.delenv(key)
    assert differences(before, world.snapshot()) == []
    recipe = subprocess.run(
        ["git", "show", "raft/night/final:./recipes/test.yaml"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert recipe.stdout.startswith(RECIPE.splitlines()[0])


def test_what_is_quick_is_a_state() -> None:
    assert set(STATES) >= QUICK
    assert len(STATES) >= 50
    assert len(set(HOOKS)) == len(HOOKS)
