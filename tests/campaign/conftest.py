"""A fresh workspace for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from nights import RECIPE, Night

from agent.ledger.create import create_workspace, shipped_folder


@pytest.fixture
def night(tmp_path: Path) -> Night:
    created = create_workspace(tmp_path / "ws", shipped=shipped_folder(), extra={"recipes/test.yaml": RECIPE})
    return Night(created.workspace)
