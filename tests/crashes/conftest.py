"""One small model for all campaigns of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_model import plant_small_model

sys.path.append(str(Path(__file__).parents[1] / "campaign"))


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_small_model(tmp_path_factory.mktemp("cache"))
