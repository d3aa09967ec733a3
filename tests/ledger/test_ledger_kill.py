"""SIGKILL in the middle: nothing that was reported is lost, and doing it all again doubles nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.ledger.git import Repository
from agent.ledger.journal import Journal
from agent.ledger.table import append_row, read_rows

PATH = "recipes/tiny.yaml"

APPEND = """
import sys
from pathlib import Path
from agent.ledger.journal import Journal
from agent.ledger.table import append_row
print("ready", flush=True)
folder = Path(sys.argv[1])
journal = Journal(folder / "journal.jsonl")
for _ in range(100_000):
    event = journal.append("note", text="x" * 20_000)
    print(event.seq, flush=True)
    append_row(folder / "results.tsv", {"campaign": "night", "index": event.seq, "reason": "y" * 5_000})
    print(-event.seq, flush=True)
"""

CAMPAIGN = """
import sys
from pathlib import Path
from agent.ledger.git import Repository
from agent.ledger.journal import Journal
from agent.ledger.table import append_row

print("ready", flush=True)
workspace, count = Path(sys.argv[1]), int(sys.argv[2])
path = "recipes/tiny.yaml"
journal = Journal(workspace / ".raft/campaigns/night/journal.jsonl")
repository = Repository(workspace)
state = journal.state()
if state.started is None:
    base = repository.head().commit
    journal.append("campaign_started", campaign="night", recipe_path=path, recipe="lr: 0", base_commit=base)
campaign = repository.start_campaign("night", base=journal.state().started.base_commit, files={path: "lr: 0"})
if journal.state().branched is None:
    journal.append("campaign_branched", commit=campaign.start.commit)

def advance(number):
    idea = journal.state().experiments.get(number)
    if idea is None:
        files = {path: f"lr: {number}"}
        words = dict(hypothesis="h", axis="learner", slug=f"lr-{number}", subject=f"learner: lr {number}")
        journal.append("experiment_planned", experiment=number, files=files, **words)
    elif idea.status == "planned":
        plan = idea.planned
        commit = campaign.commit_experiment(number, plan.slug, plan.files, subject=plan.subject)
        branch = campaign.experiment_branches()[number]
        journal.append("experiment_committed", experiment=number, branch=branch, commit=commit)
    elif idea.status == "committed":
        outcome = "keep" if number % 2 else "discard"
        row = {"campaign": "night", "index": number, "status": outcome, "commit": idea.commit}
        journal.append("experiment_judged", experiment=number, outcome=outcome, reason="r", row=row)
    elif idea.status == "judged":
        done = campaign.push_outcome(number, outcome=idea.outcome, note=f"outcome: {idea.outcome}",
            subject=f"{idea.outcome}: {number}", files=idea.files if idea.outcome == "keep" else None)
        append_row(workspace / "results.tsv", idea.judged.row)
        journal.append("experiment_recorded", experiment=number, commit=done.record)
    else:
        return False
    return True

for number in range(1, count + 1):
    while advance(number):
        pass
print("done", flush=True)
"""


def run_and_kill(script: str, *arguments: str, after_s: float) -> str:
    """Start a script and SIGKILL it with its group so long after it is ready; what it printed since."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        output, _ = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output


@pytest.mark.slow
def test_every_line_that_was_reported_is_there_after_a_kill(tmp_path: Path) -> None:
    """The child reports n when event n is written, -n when row n is."""
    rng = random.Random(0)
    reported: list[int] = []
    for _ in range(3):
        output = run_and_kill(APPEND, str(tmp_path), after_s=rng.uniform(0.2, 0.5))
        whole = output[: output.rfind("\n") + 1]
        reported += [int(line) for line in whole.split()]
    assert len(reported) > 10
    journal = Journal(tmp_path / "journal.jsonl")
    present = [event.seq for event in journal.events()]
    assert present == list(range(1, len(present) + 1))
    assert {seq for seq in reported if seq > 0} <= set(present)
    rows = [int(row["index"]) for row in read_rows(tmp_path / "results.tsv")]
    assert {-seq for seq in reported if seq < 0} <= set(rows)
    assert len(rows) == len(set(rows))
    assert all(len(row["reason"]) == 5_000 for row in read_rows(tmp_path / "results.tsv"))


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("note", text="one")
    with journal.path.open("ab") as file:
        file.write('{"kind":"note","seq":2,"time":1,"text":"tor\u00fc'.encode()[:-1])
    assert Journal(journal.path).append("note", text="two").seq == 2
    assert [note.text for note in journal.state().notes] == ["one", "two"]


def finish(workspace: Path, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CAMPAIGN, str(workspace), str(count)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "ready\ndone\n", done.stderr


def check_story(workspace: Path, run_git, count: int) -> None:
    """Exactly one branch, record, note and row per idea, in order, whatever happened on the way."""
    numbers = list(range(1, count + 1))
    campaign = Repository(workspace).open_campaign("night")
    assert [entry.experiment for entry in campaign.log()] == [None, *numbers]
    assert sorted(campaign.experiment_branches()) == numbers
    for entry in campaign.log()[1:]:
        assert entry.note == f"outcome: {entry.trailers['Outcome']}\n"
    for number in numbers:
        (idea,) = campaign.experiment_log(number)
        assert campaign.repository.read_file(idea.commit, PATH) == f"lr: {number}"
        assert idea.note is not None
    last_kept = max(number for number in numbers if number % 2)
    assert campaign.repository.read_file(campaign.best, PATH) == f"lr: {last_kept}"
    rows = read_rows(workspace / "results.tsv")
    assert [int(row["index"]) for row in rows] == numbers
    state = Journal(workspace / ".raft/campaigns/night/journal.jsonl").state()
    assert state.pending() == []
    assert [state.experiments[number].status for number in numbers] == ["recorded"] * count
    assert run_git(workspace, "fsck", "--strict", "--no-dangling") == ""


def prepare(workspace: Path, run_git) -> None:
    (workspace / "results.tsv").write_text("")
    run_git(workspace, "add", "-A")
    run_git(workspace, "commit", "--quiet", "-m", "table")


@pytest.mark.slow
def test_a_campaign_killed_again_and_again_tells_the_same_story(workspace: Path, run_git) -> None:
    prepare(workspace, run_git)
    rng = random.Random(1)
    kills = 0
    for _ in range(6):
        kills += run_and_kill(CAMPAIGN, str(workspace), "4", after_s=rng.uniform(0.0, 0.12)) != "done\n"
    assert kills >= 3
    finish(workspace, 4)
    check_story(workspace, run_git, 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_many_campaigns_killed_at_many_moments(workspace: Path, run_git, seed: int) -> None:
    prepare(workspace, run_git)
    rng = random.Random(100 + seed)
    kills = 0
    while kills < 20 and run_and_kill(CAMPAIGN, str(workspace), "12", after_s=rng.uniform(0.02, 0.2)) != "done\n":
        kills += 1
    assert kills >= 5
    finish(workspace, 12)
    check_story(workspace, run_git, 12)


def test_a_row_that_was_written_before_the_kill_is_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    row = {"campaign": "night", "index": 1, "status": "keep", "delta": 0.1}
    append_row(path, row)
    append_row(path, row)
    assert len(read_rows(path)) == 1
