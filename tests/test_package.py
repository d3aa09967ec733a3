"""Children run this package and no other that lies in the folder where they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.hardware.isolation import isolation
from agent.hardware.probe import probe_machine
from agent.package import of_ours, package_path
from agent.plan.sampler import NoSampler, Sampler
from agent.report.vega import _build

ROOT = Path(__file__).parents[1]


def test_a_child_finds_the_same_package() -> None:
    assert package_path(None).split(os.pathsep)[0] == str(ROOT)
    assert package_path("/x").endswith(f"{os.pathsep}/x")


@pytest.fixture
def met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder has modules of the names of ours and of the library's; what ran of them is in this file."""
    found = tmp_path / "met"
    workspace = tmp_path / "workspace"
    for module in ("agent/__init__.py", "json.py", "random.py", "torch.py", "optuna.py"):
        (workspace / module).parent.mkdir(parents=True, exist_ok=True)
        (workspace / module).write_text(f"open({str(found)!r}, 'a').write({module!r})\nraise SystemExit(3)\n")
    monkeypatch.chdir(workspace)
    return found


def test_the_folder_in_which_it_is_started_lends_it_nothing(met: Path) -> None:
    command = [sys.executable, "-m", "agent.errors"]
    assert subprocess.run(command, check=False, env=of_ours(os.environ)).returncode == 0
    assert "nothing that could be found out" not in isolation().words
    assert not met.exists()
    assert subprocess.run(command, check=False).returncode == 3
    assert met.read_text() == "agent/__init__.py"


@pytest.mark.slow
def test_nor_does_it_lend_anything_to_the_other_children_of_a_campaign(met: Path, tmp_path: Path) -> None:
    machine = probe_machine(cache=None)
    assert machine.torch is not None, machine.note
    assert "vega" in _build(tmp_path / "charts.js", 120.0)
    sampler = Sampler()
    with pytest.raises(NoSampler, match="Optuna's sampler failed"):  # it lives, and does not know the question
        sampler.ask({})
    background = [sys.executable, "-P", "-m", "agent.cli", "check"]
    path = {**os.environ, "PYTHONPATH": package_path(None)}
    done = subprocess.run(background, env=path, capture_output=True, text=True, check=False)
    assert "raft-agent init DIR" in done.stderr
    assert not met.exists()
