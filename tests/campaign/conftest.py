"""A fresh workspace for each test, and one night for those that only look at what it left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from nights import BETTER_RATE, NOTHING, Night, hypothesis, new_night


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return new_night(tmp_path)


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """#1 is kept, #2 does nothing, #3 crashes. Not to be changed: copy its folder."""
    night = new_night(tmp_path_factory.mktemp("judged"))
    night.playbook(BETTER_RATE, NOTHING, hypothesis("nan", 0.5, set={"learner.optimizer": "sgd"}))
    with pytest.MonkeyPatch.context() as patch:  # no power cut is coming
        patch.setattr(os, "fsync", lambda _: None)
        patch.setenv("GIT_TEST_FSYNC", "0")
        night.start(max_experiments=3)
    return night


@pytest.fixture
def copy(judged: Night, tmp_path: Path) -> Path:
    """Of that night's workspace, to be changed."""
    root = tmp_path / "ws"
    shutil.copytree(judged.root, root)
    return root
