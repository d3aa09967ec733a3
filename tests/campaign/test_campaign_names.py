"""A recipe's path with spaces, other letters and 300 characters goes through git, the table, resume and finalize."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from nights import BETTER_RATE, NOTHING, Dies, Night, dying_at

from agent.errors import RecipeError

FOLDERS = [f"größe 行 {number:02d} é" for number in range(20)]
DEEP = "/".join(["recipes", "with spaces", *FOLDERS, "-my 'own' recipe $(x) {é}.yaml"])


@pytest.fixture
def named(night: Night) -> Night:
    path = night.root / DEEP
    path.parent.mkdir(parents=True)
    shutil.move(night.root / "recipes" / "test.yaml", path)
    (path.parent / "base é.yaml").write_text("seed: 5\n")
    path.write_text('extends: "base é.yaml"\n' + path.read_text())
    return night


@pytest.mark.slow
def test_such_a_campaign_runs_dies_is_resumed_and_is_told(named: Night) -> None:
    assert len(DEEP) > 300
    named.playbook(BETTER_RATE, NOTHING)
    with pytest.raises(Dies):
        named.start(recipe_path=DEEP, max_experiments=2, launcher=dying_at(4))
    named.resume()
    assert [row["recipe"] for row in named.rows] == [DEEP] * 3
    assert dict(named.outcomes())["better-rate"] == "keep"
    log = named.root.joinpath(*named.rows[1]["log_path"].split("/"))
    assert log.exists()
    listed = named.git("-c", "core.quotePath=false", "ls-tree", "-r", "--name-only", "raft/night/best")
    assert DEEP in listed.splitlines()
    assert "learning_rate: 0.002" in named.git("show", f"raft/night/best:{DEEP}")
    changed = named.git("-c", "core.quotePath=false", "diff", "--name-only", "raft/night/best~1", "raft/night/best~2")
    assert set(changed.splitlines()) <= {DEEP}
    assert named.session is not None
    assert named.session.branches is not None
    assert named.session.branches.finalize().files == (DEEP,) or DEEP in named.session.branches.finalize().files


@pytest.mark.parametrize("target", ["outside.yaml", "outside"])
def test_what_a_campaign_is_given_does_not_lead_out(night: Night, tmp_path: Path, target: str) -> None:
    """Not only the loader refuses: so does what a run would be given."""
    outside = tmp_path / "outside.yaml"
    outside.write_text((night.root / "recipes" / "test.yaml").read_text())
    (tmp_path / "outside").mkdir()
    shutil.copy(outside, tmp_path / "outside" / "test.yaml")
    link = night.root / "recipes" / "link"
    link.symlink_to(tmp_path / target)
    path = "recipes/link" if target == "outside.yaml" else "recipes/link/test.yaml"
    with pytest.raises(RecipeError, match="workspace"):
        night.open(recipe_path=path)


def test_rows_and_models_that_lead_out_are_refused_before_anything_runs(night: Night, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    (night.root / "rows.jsonl").symlink_to(tmp_path / "rows.jsonl")
    text = (night.root / "recipes" / "test.yaml").read_text()
    for wrong in (
        '{dataset: "jsonl:rows.jsonl"}',
        '{dataset: "jsonl:../rows.jsonl"}',
        '{dataset: "jsonl:/etc/passwd"}',
    ):
        (night.root / "recipes" / "test.yaml").write_text(text.replace('{dataset: "builtin:addition"}', wrong))
        with pytest.raises(RecipeError, match=r"task\.dataset"):
            night.open()
    assert night.workspace.campaign_names() == []
