"""A fresh workspace for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from nights import Night, new_night


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return new_night(tmp_path)
