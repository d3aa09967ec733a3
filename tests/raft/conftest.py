"""Small models for the tests of the trainer. Nothing is downloaded and nothing waits for the bootstrap."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from small_model import plant_small_model

from agent.raft.engine import Training
from agent.raft.evaluate import Examiner
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.pulse import Pulse
from agent.tasks.tasks import load_splits
from agent.tasks.verifiers import build_verifier

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a smaller built-in model in it, taught for a moment, so that it is right now and then."""
    return plant_small_model(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def policy(model_cache: Path) -> Policy:
    return load_policy(small_recipe(), cache=model_cache, seed=0, beat=no_beat)


@pytest.fixture
def make(model_cache: Path, tmp_path: Path) -> Iterator[Any]:
    """Builds a training of a small recipe in a folder of its own."""
    verifiers = []

    def build(over: dict[str, Any] | None = None, *, pulse: Pulse | None = None) -> Training:
        recipe = small_recipe(over)
        policy = load_policy(recipe, cache=model_cache, seed=0, beat=no_beat)
        splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
        verifier = build_verifier(recipe.task.verifier, base=tmp_path)
        verifiers.append(verifier)
        return Training(
            recipe,
            policy=policy,
            examiner=Examiner(recipe, policy, verifier, ()),
            splits=splits,
            seed=0,
            out=tmp_path,
            pulse=pulse or Pulse(None),
            save_seconds=1000.0,
            clock=pulse.clock if pulse else time.monotonic,
        )

    yield build
    for verifier in verifiers:
        verifier.close()


@pytest.fixture
def undisturbed() -> Iterator[None]:
    """The worker sets environment variables, a signal handler and the folder; a process of its own would end."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before, handlers, folder = dict(os.environ), [signal.getsignal(number) for number in numbers], Path.cwd()
    yield
    os.environ.clear()
    os.environ.update(before)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    os.chdir(folder)
