"""Small models for the tests of the trainer. Nothing is downloaded and nothing waits for the bootstrap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raft_recipes import no_beat, small_recipe

from agent.raft import tiny
from agent.raft.model import Policy, load_policy

torch.set_num_threads(1)

SMALL = replace(tiny.SHAPE, hidden_size=64, intermediate_size=128, num_hidden_layers=2)


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a smaller built-in model in it, taught for a moment, so that it is right now and then."""
    cache = tmp_path_factory.mktemp("cache")
    lesson = replace(tiny.LESSON, most_steps=120, check_every=120, learning_rate=2e-3, wrong_shares=(0.0, 0.0))
    model, _ = tiny.teach(lesson, beat=no_beat, shape=SMALL)
    folder = tiny.home(cache)
    folder.mkdir(parents=True)
    tiny.save_model(model, folder)
    tiny.CharTokenizer().save_pretrained(str(folder))
    return cache


@pytest.fixture
def policy(model_cache: Path) -> Policy:
    return load_policy(small_recipe(), cache=model_cache, seed=0, beat=no_beat)
