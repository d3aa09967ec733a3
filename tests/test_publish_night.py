"""A night from another workspace, put into a repository: all of it or nothing, and nothing of the machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from agent.ledger.table import create_table, read_rows

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "campaign"))
from nights import NOTHING, RATE_UP, Night, new_night  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the JavaScript of the charts is built anew


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    night = new_night(tmp_path_factory.mktemp("published"))
    night.playbook(RATE_UP, NOTHING)
    night.start(max_experiments=2)
    return night


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish_night", ROOT / "scripts" / "publish_night.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CHROMIUM", None)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    create_table(root / "results.tsv")
    return root


def test_rows_report_and_a_bundle_whose_commits_are_those_of_the_rows(
    night: Night, script: ModuleType, repository: Path
) -> None:
    table = repository / "results.tsv"
    other = "9\tb" + "\t" * 14 + "another" + "\t" * 13
    stale = "7\tb" + "\t" * 14 + "night" + "\t" * 13
    table.write_text(f"{table.read_text()}{other}\n{stale}\n")
    script.main([str(night.root), "night"], root=repository)
    assert [(row["campaign"], row["index"]) for row in read_rows(table)] == [
        ("another", "9"), ("night", "0"), ("night", "1"), ("night", "2"),
    ]  # fmt: skip
    names = sorted(path.name for path in (repository / "docs" / "night").iterdir())
    assert names == ["night.bundle", "report.html", "report.md", "summary.json"]
    clone = repository / "clone"
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    bundle = str(repository / "docs" / "night" / "night.bundle")
    subprocess.run(["git", "fetch", "-q", bundle, "refs/*:refs/*"], cwd=clone, check=True)
    for row in read_rows(table)[1:]:
        told = subprocess.run(["git", "notes", "--ref=raft", "show", row["commit"]], cwd=clone, capture_output=True)
        assert row["status"].encode() in told.stdout
    assert not [path for path in repository.iterdir() if path.name.startswith(".night-")]


def test_a_path_of_this_machine_is_published_nowhere(night: Night, script: ModuleType, repository: Path) -> None:
    """Here in a note, in the bundle alone, where nobody looks."""
    before = (repository / "results.tsv").read_bytes()
    note = ["git", "notes", "--ref=raft"]
    text = f"trained on {night.root}/data.jsonl"
    subprocess.run([*note, "add", "-f", "-m", text, "HEAD"], cwd=night.root, check=True, capture_output=True)
    with pytest.raises(SystemExit, match="has the path"):
        script.main([str(night.root), "night"], root=repository)
    subprocess.run([*note, "remove", "HEAD"], cwd=night.root, check=True, capture_output=True)
    assert not (repository / "docs" / "night").exists()
    assert (repository / "results.tsv").read_bytes() == before


@pytest.mark.parametrize(("name", "said"), [("nights", "has no campaign nights; it has: night")])
def test_what_is_not_there_is_named(night: Night, script: ModuleType, repository: Path, name: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        script.main([str(night.root), name], root=repository)
