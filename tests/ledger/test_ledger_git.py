"""The campaign's history: what git holds afterwards, and that nothing of the user's was touched."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import ResourceError, UsageError, WorkspaceError
from agent.ledger.commands import failure
from agent.ledger.git import CampaignBranches, KeptIdea, Repository

RECIPE = "# a comment that must stay\nlearner:\n  learning_rate: 5e-5  # peak\n"
FASTER = RECIPE.replace("5e-5", "1e-4")
FIXED = RECIPE.replace("5e-5", "2e-4")
PATH = "recipes/tiny.yaml"


def start(folder: Path, name: str = "night") -> CampaignBranches:
    repository = Repository(folder)
    return repository.start_campaign(name, base=repository.head().commit, files={PATH: RECIPE})


def try_idea(campaign: CampaignBranches, number: int, text: str, outcome: str) -> str:
    """One idea from its commit to its record, with the text of a keep put on best."""
    commit = campaign.commit_experiment(
        number,
        f"idea {number}",
        {PATH: text},
        subject=f"learner: learning_rate, 5e-05 -> idea {number}",
        body="Symptom: plateau - select_metric flat for 6 cycles",
        trailers={"Hypothesis": "raise-lr", "Symptom": "plateau", "Incumbent": "baseline"},
    )
    campaign.push_outcome(
        number,
        outcome=outcome,
        note=f"outcome: {outcome}\nreason: because of {number}\n",
        subject=f"learner: idea {number}: {outcome}",
        files={PATH: text} if outcome == "keep" else None,
    )
    return commit


def test_a_campaign_leaves_the_branches_notes_and_story_that_it_should(workspace: Path, run_git) -> None:
    base = run_git(workspace, "rev-parse", "HEAD")
    campaign = start(workspace)
    commit = try_idea(campaign, 1, FASTER, "keep")
    try_idea(campaign, 2, FIXED, "discard")

    branches = run_git(workspace, "for-each-ref", "--format=%(refname:short)", "refs/heads/raft").splitlines()
    assert branches == ["raft/night/best", "raft/night/exp/001-idea-1", "raft/night/exp/002-idea-2"]
    assert run_git(workspace, "rev-list", "--count", "--merges", "raft/night/best") == "0"
    assert run_git(workspace, "rev-list", "--count", f"{base}..raft/night/best") == "3"
    assert run_git(workspace, "show", "raft/night/best:" + PATH) + "\n" == FASTER
    assert run_git(workspace, "show", "raft/night/exp/002-idea-2:" + PATH) + "\n" == FIXED
    assert run_git(workspace, "show", "--format=", "--name-only", commit) == PATH
    story = run_git(workspace, "log", "--notes=raft", "raft/night/best")
    assert "reason: because of 1" in story
    assert "reason: because of 2" in story
    note = run_git(workspace, "notes", "--ref=raft", "show", "raft/night/exp/001-idea-1")
    assert note == "outcome: keep\nreason: because of 1"
    trailers = run_git(workspace, "log", "-1", "--format=%(trailers:only)", commit).splitlines()
    assert trailers[:5] == [
        "Experiment: 1",
        "Hypothesis: raise-lr",
        "Symptom: plateau",
        "Campaign: night",
        "Incumbent: baseline",
    ]


def test_the_second_idea_starts_from_the_kept_first_one(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    record = campaign.best
    second = try_idea(campaign, 2, FIXED, "discard")
    assert run_git(workspace, "rev-parse", f"{second}^") == record
    assert "-  learning_rate: 1e-4" in campaign.repository.diff(record, second, PATH)


def test_every_step_done_twice_is_done_once(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    fix = campaign.commit_fix(1, {PATH: FIXED}, fix=1, subject="fix: shape")
    refs = run_git(workspace, "for-each-ref")

    again = start(workspace)
    try_idea(again, 1, FASTER, "keep")
    assert again.commit_fix(1, {PATH: FIXED}, fix=1, subject="fix: shape") == fix
    campaign.push_outcome(1, outcome="keep", note="outcome: keep\nreason: because of 1\n", subject="other words")
    changed = {
        line.split()[-1] for line in set(run_git(workspace, "for-each-ref").splitlines()) - set(refs.splitlines())
    }
    assert changed == {"refs/notes/raft"}  # the tip has become the fix, so the fix got its note
    assert len(again.log()) == 2
    assert [entry.commit for entry in again.experiment_log(1)][1:] == [fix]


def test_another_change_under_a_number_that_is_taken_is_refused(workspace: Path) -> None:
    campaign = start(workspace)
    campaign.commit_experiment(1, "a", {PATH: FASTER}, subject="a")
    with pytest.raises(WorkspaceError, match="raft/night/exp/001-a already holds another change"):
        campaign.commit_experiment(1, "b", {PATH: FIXED}, subject="b")


def test_a_note_is_replaced(workspace: Path) -> None:
    repository = Repository(workspace)
    head = repository.head().commit
    repository.add_note(head, "outcome: discard")
    repository.add_note(head, "outcome: keep")
    assert repository.note(head) == "outcome: keep\n"


def test_the_users_state_is_byte_identical(workspace: Path, run_git, fingerprint) -> None:
    """Staged hunk, unstaged hunk, untracked file, stash and a merge with conflicts, all at once."""
    (workspace / "notes.txt").write_text("stashed\n")
    run_git(workspace, "stash")
    run_git(workspace, "switch", "--quiet", "-c", "other")
    (workspace / "notes.txt").write_text("theirs\n")
    run_git(workspace, "commit", "--quiet", "-am", "theirs")
    run_git(workspace, "switch", "--quiet", "trunk")
    (workspace / "notes.txt").write_text("ours\n")
    run_git(workspace, "commit", "--quiet", "-am", "ours")
    run_git(workspace, "merge", "other", check=False)
    (workspace / PATH).write_text(RECIPE + "# staged\n")
    run_git(workspace, "add", PATH)
    (workspace / PATH).write_text(RECIPE + "# staged\n# unstaged\n")
    (workspace / "untracked.txt").write_text("mine\n")
    before = fingerprint(workspace)
    assert {".git/index", ".git/MERGE_HEAD", ".git/refs/stash", "untracked.txt"} <= set(before)

    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    campaign.commit_fix(1, {PATH: FIXED}, fix=1, subject="fix")
    try_idea(campaign, 2, FIXED, "discard")
    campaign.finalize()

    assert fingerprint(workspace) == before


def test_hooks_signing_filters_and_line_endings_of_the_user_do_nothing(workspace: Path, run_git) -> None:
    hooks = workspace / ".git" / "hooks"
    for name in ("pre-commit", "commit-msg", "post-commit", "reference-transaction", "post-rewrite"):
        hook = hooks / name
        hook.write_text(f"#!/bin/sh\necho ran >> {workspace}/hook-ran\nexit 1\n")
        hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    for key, value in {
        "commit.gpgsign": "true",
        "gpg.program": "/bin/false",
        "core.autocrlf": "true",
        "core.splitIndex": "true",
        "filter.shout.clean": "tr a-z A-Z",
        "log.showSignature": "true",
        "diff.external": "/bin/false",
        "diff.noprefix": "true",
    }.items():
        run_git(workspace, "config", key, value)
    (workspace / ".gitattributes").write_text("*.yaml text eol=crlf filter=shout\n")
    mixed = 'a: 1\r\nb: 2\nc: "tab\there"  # no newline at the end'

    campaign = start(workspace)
    commit = campaign.commit_experiment(1, "crlf", {PATH: mixed}, subject="prompt: mixed line ends")
    campaign.push_outcome(1, outcome="keep", note="outcome: keep", subject="prompt: mixed", files={PATH: mixed})
    assert campaign.repository.read_file(commit, PATH) == mixed
    assert campaign.repository.read_file(campaign.best, PATH) == mixed
    assert campaign.repository.diff(campaign.base, commit).startswith(f"diff --git a/{PATH} b/{PATH}")
    assert not (workspace / "hook-ran").exists()


def test_without_an_identity_the_agent_uses_its_own_and_with_one_the_users(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    assert run_git(workspace, "log", "-1", "--format=%an <%ae> %cn", campaign.best) == (
        "raft-agent <raft-agent@localhost> raft-agent"
    )
    run_git(workspace, "config", "user.name", "Ada")
    run_git(workspace, "config", "user.email", "ada@example.org")
    commit = start(workspace).commit_experiment(1, "x", {PATH: FASTER}, subject="x")
    assert run_git(workspace, "log", "-1", "--format=%an <%ae>", commit) == "Ada <ada@example.org>"


def test_a_detached_head_is_a_base_like_any_other(workspace: Path, run_git) -> None:
    run_git(workspace, "switch", "--quiet", "--detach")
    head = Repository(workspace).head()
    assert head.branch is None
    assert start(workspace).base == head.commit


def test_a_workspace_in_a_subfolder_commits_below_it_only(tmp_path: Path, workspace: Path, run_git) -> None:
    inner = workspace / "projects" / "raft ü"
    (inner / "recipes").mkdir(parents=True)
    (inner / PATH).write_text(RECIPE)
    run_git(workspace, "add", "-A")
    run_git(workspace, "commit", "--quiet", "-m", "inner")
    campaign = start(inner)
    commit = campaign.commit_experiment(1, "x", {PATH: FASTER}, subject="x")
    assert campaign.repository.changed_files(campaign.best, commit) == [PATH]
    assert campaign.repository.read_file(commit, PATH) == FASTER
    assert run_git(workspace, "-c", "core.quotePath=false", "show", "--format=", "--name-only", commit) == (
        f"projects/raft ü/{PATH}"
    )
    assert FASTER.splitlines()[2] in campaign.repository.diff(campaign.best, commit, PATH)
    assert run_git(workspace, "show", f"{commit}:{PATH}") + "\n" == RECIPE  # the one of the same name at the top


def test_linked_worktrees_and_submodules_are_repositories_too(
    tmp_path: Path, workspace: Path, run_git, fingerprint
) -> None:
    linked = tmp_path / "linked"
    run_git(workspace, "worktree", "add", "--quiet", "--detach", str(linked))
    campaign = start(linked, "linked")
    try_idea(campaign, 1, FASTER, "keep")
    assert "raft/linked/best" in run_git(workspace, "branch", "--list", "raft/*")

    outer = tmp_path / "outer"
    outer.mkdir()
    run_git(outer, "init", "--quiet")
    run_git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(workspace), "sub")
    run_git(outer, "commit", "--quiet", "-m", "outer")
    before = fingerprint(outer)
    inside = start(outer / "sub", "inside")
    try_idea(inside, 1, FASTER, "keep")
    added = set(fingerprint(outer)) - set(before)
    assert added
    assert all(
        name.startswith((".git/modules/sub/objects", ".git/modules/sub/refs", ".git/modules/sub/logs"))
        for name in added
    )
    assert run_git(outer, "for-each-ref", "refs/heads/raft") == ""


def test_variables_of_a_hook_do_not_lead_the_agent_to_another_repository(
    tmp_path: Path, workspace: Path, run_git, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    run_git(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git" / "objects"))
    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    assert (workspace / ".git/refs/heads/raft/night/best").exists()
    assert not list((other / ".git" / "objects").glob("??/*"))
    assert os.environ["GIT_DIR"] == str(other / ".git")


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        ("nothing", "not a git repository", "raft-agent init"),
        ("empty", "no commit yet", "git commit"),
        ("bare", "bare repository", "git clone"),
        ("missing", "no such folder", ""),
    ],
)
def test_a_state_that_git_cannot_work_in_is_named(tmp_path: Path, run_git, make: str, message: str, hint: str) -> None:
    folder = tmp_path / make
    if make != "missing":
        folder.mkdir()
    if make in ("empty", "bare"):
        run_git(folder, "init", "--quiet", *(["--bare"] if make == "bare" else []))
    with pytest.raises(WorkspaceError, match=message) as caught:
        Repository(folder)
    assert hint in (caught.value.hint or "")


def test_a_missing_git_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(WorkspaceError, match="git is not installed"):
        Repository(workspace)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("error: file write error: No space left on device\nfatal: unable", ResourceError, "the disk is full"),
        ("error: insufficient permission for adding an object", ResourceError, "insufficient permission"),
        ("fatal: detected dubious ownership in repository at '/x'", WorkspaceError, "--add safe.directory /x"),
        ("fatal: detected dubious ownership in repository at '/x y'", WorkspaceError, "--add safe.directory '/x y'"),
        ("warning: noise\nfatal: bad object 12\nhint: more", WorkspaceError, "git mktree failed: fatal: bad object 12"),
    ],
)
def test_what_git_says_becomes_what_to_do(tmp_path: Path, said: str, kind: type, message: str) -> None:
    error = failure(("mktree",), said, folder=tmp_path)
    assert type(error) is kind
    assert message in str(error)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.yaml", "recipes/../../x", ".git/config", ""])
def test_a_path_outside_of_the_workspace_is_refused(workspace: Path, path: str) -> None:
    repository = Repository(workspace)
    with pytest.raises(UsageError, match="not inside the workspace"):
        repository.commit(repository.head().commit, {path: "x"}, "x\n")


def test_new_folders_and_modes_come_out_right(workspace: Path, run_git) -> None:
    script = workspace / "recipes" / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    run_git(workspace, "add", "-A")
    run_git(workspace, "commit", "--quiet", "-m", "script")
    repository = Repository(workspace)
    files = {"recipes/run.sh": "#!/bin/sh\ntrue\n", "deep/er/new.yaml": "a: 1\n", "deep/top.yaml": "b: 2\n"}
    commit = repository.commit(repository.head().commit, files, "x\n")
    listed = [line.split(maxsplit=3)[::3] for line in run_git(workspace, "ls-tree", "-r", commit).splitlines()]
    assert ["100755", "recipes/run.sh"] in listed
    assert ["100644", "deep/er/new.yaml"] in listed
    assert ["100644", "deep/top.yaml"] in listed
    assert repository.changed_files(repository.head().commit, commit) == [
        "deep/er/new.yaml",
        "deep/top.yaml",
        "recipes/run.sh",
    ]
    assert run_git(workspace, "fsck", "--strict", "--no-dangling") == ""


def test_a_folder_that_is_a_link_in_the_repository_is_not_replaced(workspace: Path, run_git) -> None:
    (workspace / "linked").symlink_to("recipes")
    run_git(workspace, "add", "-A")
    run_git(workspace, "commit", "--quiet", "-m", "link")
    repository = Repository(workspace)
    with pytest.raises(WorkspaceError, match="linked is a file, a link or a submodule"):
        repository.commit(repository.head().commit, {"linked/x.yaml": "x"}, "x\n")


def test_names_that_are_in_the_way_are_named(workspace: Path, run_git) -> None:
    run_git(workspace, "branch", "raft")
    with pytest.raises(WorkspaceError, match="a branch called raft is in the way") as caught:
        start(workspace)
    assert "git branch -m raft raft-old" in str(caught.value)


def test_a_name_taken_by_a_campaign_with_another_base(workspace: Path, run_git) -> None:
    start(workspace)
    (workspace / "notes.txt").write_text("later\n")
    run_git(workspace, "commit", "--quiet", "-am", "later")
    repository = Repository(workspace)
    assert repository.campaign_exists("night")
    assert not repository.campaign_exists("nigh")
    assert repository.list_campaigns() == ["night"]
    with pytest.raises(UsageError, match="there is a campaign night already"):
        start(workspace)
    assert repository.open_campaign("night").start.trailers["Campaign"] == "night"


def test_a_branch_that_the_user_has_checked_out_is_not_moved(workspace: Path, run_git) -> None:
    start(workspace)
    run_git(workspace, "switch", "--quiet", "raft/night/best")
    with pytest.raises(WorkspaceError, match="raft/night/best is checked out"):
        Repository(workspace).open_campaign("night")


def test_a_deleted_best_is_put_back_from_the_journals_word(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    tip = campaign.best
    run_git(workspace, "branch", "-D", "raft/night/best")
    with pytest.raises(WorkspaceError, match="no branch raft/night/best"):
        Repository(workspace).open_campaign("night")
    with pytest.raises(WorkspaceError, match="its last commit 000000000000 is not in this repository") as gone:
        Repository(workspace).open_campaign("night", last_known_best="0" * 40)
    assert "git fetch FOLDER 'refs/heads/raft/night/*:refs/heads/raft/night/*'" in (gone.value.hint or "")
    assert Repository(workspace).open_campaign("night", last_known_best=tip).best == tip
    with pytest.raises(UsageError, match="started from"):
        Repository(workspace).open_campaign("night", base=tip)


def test_a_record_goes_on_top_of_what_the_user_put_on_best(workspace: Path, run_git, tmp_path: Path) -> None:
    campaign = start(workspace)
    campaign.commit_experiment(1, "x", {PATH: FASTER}, subject="x")
    elsewhere = tmp_path / "elsewhere"
    run_git(workspace, "worktree", "add", "--quiet", str(elsewhere), "raft/night/best")
    (elsewhere / "notes.txt").write_text("mine\n")
    run_git(elsewhere, "commit", "--quiet", "-am", "mine")
    mine = run_git(elsewhere, "rev-parse", "HEAD")
    record = campaign.record_on_best(1, outcome="keep", subject="kept", files={PATH: FASTER})
    assert run_git(workspace, "rev-parse", f"{record}^") == mine
    assert campaign.repository.read_file(record, "notes.txt") == "mine\n"


@pytest.mark.slow
def test_a_lock_that_a_killed_git_left_behind_is_taken_away(workspace: Path) -> None:
    campaign = start(workspace)
    lock = workspace / ".git" / "refs" / "heads" / "raft" / "night" / "best.lock"
    lock.write_text("")
    began = time.monotonic()
    try_idea(campaign, 1, FASTER, "keep")
    assert not lock.exists()
    assert 1.5 < time.monotonic() - began < 10
    assert len(campaign.log()) == 2


def test_a_move_from_a_place_the_branch_is_not_at_is_refused(workspace: Path) -> None:
    campaign = start(workspace)
    repository, tip = campaign.repository, campaign.best
    commit = repository.commit(tip, {PATH: FASTER}, "x\n")
    assert not repository.move(campaign.best_ref, commit, old=campaign.base, why="stale")
    assert campaign.best == tip


def test_final_has_one_commit_per_kept_idea_and_recipes_only(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    for number in range(1, 5):
        try_idea(campaign, number, RECIPE.replace("5e-5", f"{number}e-4"), "keep" if number % 2 else "discard")
    final = campaign.finalize()
    assert final.branch == "raft/night/final"
    assert final.files == (PATH,)
    subjects = run_git(workspace, "log", "--format=%s", "--reverse", f"{final.base}..{final.branch}").splitlines()
    assert subjects == [f"learner: learning_rate, 5e-05 -> idea {number}" for number in (1, 3)]
    told = run_git(workspace, "log", "-1", "--format=%b", final.branch)
    assert (
        "Symptom: plateau - select_metric flat for 6 cycles\n\nResult:\n- outcome: keep\n- reason: because of 3\n"
        in told
    )
    assert run_git(workspace, "diff", "--name-only", final.base, final.branch) == PATH
    assert campaign.repository.read_file(final.commit, PATH) == RECIPE.replace("5e-5", "3e-4")
    assert campaign.finalize() == replace(final, added=0)

    try_idea(campaign, 5, FASTER, "keep")
    longer = campaign.finalize()
    assert longer.commits[:2] == final.commits
    assert len(longer.commits) == 3


def test_final_begins_with_the_recipe_that_was_not_committed(workspace: Path, run_git) -> None:
    dirty = RECIPE + "# not committed\n"
    repository = Repository(workspace)
    campaign = repository.start_campaign("night", base="HEAD", files={PATH: dirty})
    try_idea(campaign, 1, FASTER, "keep")
    final = campaign.finalize()
    subjects = run_git(workspace, "log", "--format=%s", "--reverse", f"{final.base}..{final.branch}").splitlines()
    assert subjects == ["recipe as campaign night found it", "learner: learning_rate, 5e-05 -> idea 1"]


def test_final_does_not_overwrite_commits_of_the_user(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    with pytest.raises(WorkspaceError, match="kept nothing"):
        campaign.finalize()
    run_git(workspace, "branch", "raft/night/final")
    try_idea(campaign, 1, FASTER, "keep")
    assert len(campaign.finalize().commits) == 1  # a branch that is still at the base is no obstacle
    other = KeptIdea({PATH: FIXED}, "another choice")
    with pytest.raises(WorkspaceError, match="has other commits than those that were kept"):
        campaign.finalize([other])


def test_what_somebody_else_has_committed_on_best_stays_out_of_final(workspace: Path, run_git, tmp_path: Path) -> None:
    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    elsewhere = tmp_path / "elsewhere"
    run_git(workspace, "worktree", "add", "--quiet", str(elsewhere), "raft/night/best")
    (elsewhere / "notes.txt").write_text("mine\n")
    run_git(elsewhere, "commit", "--quiet", "-am", "mine")
    run_git(workspace, "worktree", "remove", "--force", str(elsewhere))
    try_idea(campaign, 2, FIXED, "keep")
    final = campaign.finalize()
    assert final.files == (PATH,)
    assert (len(final.commits), final.added, final.kept) == (2, 2, 2)
    assert run_git(workspace, "diff", "--name-only", final.base, final.branch) == PATH
    assert campaign.repository.read_file(final.commit, PATH) == FIXED


def test_a_kept_idea_that_contains_others_is_one_commit_of_final(workspace: Path, run_git) -> None:
    """What led was built on unconfirmed, and is kept as one recipe."""
    campaign = start(workspace)
    lead = campaign.commit_experiment(1, "lead", {PATH: FASTER}, subject="learner: what leads")
    campaign.record_on_best(1, outcome="discard", subject="discard #1")
    both = RECIPE.replace("5e-5", "9e-5") + "selection: {dedup: false}\n"
    campaign.commit_experiment(2, "together", {PATH: both}, subject="together: what led, #1", parent=lead)
    campaign.record_on_best(2, outcome="keep", subject="keep #2", files={PATH: both})
    final = campaign.finalize()
    assert (final.subjects, final.kept) == (("together: what led, #1",), 1)
    assert run_git(workspace, "show", f"{final.commit}:{PATH}") == both.rstrip("\n")
    assert run_git(workspace, "rev-parse", f"{final.commit}^") == final.base


def test_a_baseline_that_had_to_be_mended_comes_first_and_is_no_kept_idea(workspace: Path) -> None:
    campaign = start(workspace)
    campaign.commit_experiment(0, "baseline", {}, subject="baseline")
    campaign.commit_fix(0, {PATH: FIXED}, fix=1, subject="fix oom: smaller pieces")
    campaign.record_on_best(0, outcome="keep", subject="keep #0: baseline", files={PATH: FIXED})
    final = campaign.finalize()
    assert (final.subjects, final.kept) == (("fix oom: smaller pieces",), 0)
    try_idea(campaign, 1, FASTER, "keep")
    final = campaign.finalize()
    assert (len(final.subjects), final.kept, final.added) == (2, 1, 1)


def test_final_keeps_what_was_put_on_top_of_it(workspace: Path, run_git, tmp_path: Path) -> None:
    campaign = start(workspace)
    try_idea(campaign, 1, FASTER, "keep")
    first = campaign.finalize()
    elsewhere = tmp_path / "elsewhere"
    run_git(workspace, "worktree", "add", "--quiet", str(elsewhere), "raft/night/final")
    (elsewhere / "notes.txt").write_text("mine\n")
    run_git(elsewhere, "commit", "--quiet", "-am", "mine")
    mine = run_git(elsewhere, "rev-parse", "HEAD")
    again = campaign.finalize()
    assert (again.commits, again.added, again.beyond) == (first.commits, 0, 1)
    assert run_git(workspace, "rev-parse", "raft/night/final") == mine
    run_git(workspace, "worktree", "remove", "--force", str(elsewhere))
    try_idea(campaign, 2, FIXED, "keep")
    with pytest.raises(WorkspaceError, match="has other commits than those that were kept") as caught:
        campaign.finalize()
    assert "git branch -m raft/night/final my-night" in str(caught.value)
    assert run_git(workspace, "rev-parse", "raft/night/final") == mine
    assert not campaign.repository.contains(campaign.base, mine)
    assert campaign.repository.contains(mine, campaign.base)


def test_messages_survive_what_a_log_may_hold(workspace: Path, run_git) -> None:
    campaign = start(workspace)
    commit = campaign.commit_experiment(
        1,
        "Ünïcode / slash..lock",
        {PATH: FASTER},
        subject="prompt: a\nb\x00",
        body="# no comment\n\n--\n\nend: of it\n",
    )
    assert campaign.experiment_branches()[1] == "raft/night/exp/001-n-code-slash-lock"
    message = run_git(workspace, "log", "-1", "--format=%B", commit)
    assert message.startswith("prompt: a b\\x00\n\n# no comment\n\n--\n\nend: of it\n\nExperiment: 1\n")
    entry = campaign.experiment_log(1)[0]
    assert dict(entry.trailers) == {"Experiment": "1", "Campaign": "night"}


def test_sha256_repositories_work(tmp_path: Path, run_git) -> None:
    folder = tmp_path / "sha256"
    folder.mkdir()
    made = subprocess.run(["git", "init", "-q", "--object-format=sha256"], cwd=folder, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this git has no sha256 repositories")
    run_git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
    campaign = start(folder)
    assert len(try_idea(campaign, 1, FASTER, "keep")) == 64
