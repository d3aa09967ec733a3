"""A workspace in the current folder, and the machine asked only once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.hardware.probe import MACHINE, probe_machine
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.workspace import Workspace


@pytest.fixture(scope="session")
def asked_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine says of itself, which takes seconds of `import torch`; workspaces get it in their cache."""
    path = tmp_path_factory.mktemp("machine") / MACHINE
    probe_machine(cache=path)
    return path


KnowMachine = Callable[[Path], None]


@pytest.fixture
def know_machine(asked_once: Path) -> KnowMachine:
    """Put it into a workspace."""

    def know(root: Path) -> None:
        cache = Workspace(root).cache
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copy(asked_once, cache / MACHINE)

    return know


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, know_machine: KnowMachine) -> Workspace:
    created = create_workspace(tmp_path / "ws", shipped=shipped_folder())
    know_machine(created.workspace.root)
    monkeypatch.chdir(created.workspace.root)
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(tmp_path / "cache"))
    return created.workspace
