"""The night that this repository shows: its rows, its report and its git history are of one campaign."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from agent.ledger.table import read_rows

ROOT = Path(__file__).parents[1]
NIGHT = ROOT / "docs" / "night"
CAMPAIGN = json.loads((NIGHT / "summary.json").read_text())["campaign"]
ROWS = [row for row in read_rows(ROOT / "results.tsv") if row["campaign"] == CAMPAIGN]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/night.md says to fetch it."""
    folder = tmp_path_factory.mktemp("clone")
    git(folder, "init", "--quiet")
    for references in ("refs/heads/raft/*:refs/heads/raft/*", "refs/notes/raft:refs/notes/raft"):
        git(folder, "fetch", "--quiet", str(NIGHT / "night.bundle"), references)
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_commit_that_a_row_names_is_in_the_bundle(clone: Path) -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        for column in ("commit", "parent_commit") if row["index"] != "0" else ("commit",):  # the baseline has no parent
            assert git(clone, "cat-file", "-t", row[column]) == "commit", (row["index"], column)


def test_its_notes_and_branches_tell_what_the_rows_tell(clone: Path) -> None:
    for row in ROWS:
        note = git(clone, "notes", "--ref=raft", "show", row["commit"])
        assert f"outcome: {row['status']}" in note, row["index"]
    best = git(clone, "log", "--format=%s", f"raft/{CAMPAIGN}/best")
    kept = [row for row in ROWS if row["status"] == "keep"]
    assert all(f"keep #{row['index']}: " in best for row in kept)


def test_report_and_page_have_the_outcomes_of_the_rows() -> None:
    summary = json.loads((NIGHT / "summary.json").read_text())
    told = Counter(step["outcome"] for step in summary["steps"])
    assert told == Counter(row["status"] for row in ROWS)
    words = (ROOT / "docs" / "night.md").read_text()
    ideas = Counter(row["status"] for row in ROWS if row["index"] != "0")
    assert f"{sum(ideas.values())} ideas" in words
    assert all(f"{ideas[status]} {word}" in words for status, word in (("keep", "kept"), ("discard", "discarded")))
