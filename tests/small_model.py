"""A smaller built-in model, taught for a moment: tests that train for real need no bootstrap of a minute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agent.raft import tiny

SMALL = replace(tiny.SHAPE, hidden_size=64, intermediate_size=128, num_hidden_layers=2)


def plant_small_model(cache: Path) -> Path:
    """Put it into the cache as the built-in model, right now and then; the cache comes back."""
    lesson = replace(tiny.LESSON, most_steps=120, check_every=120, learning_rate=2e-3, wrong_shares=(0.0, 0.0))
    model, _ = tiny.teach(lesson, beat=lambda *_, **__: None, shape=SMALL)
    folder = tiny.home(cache)
    folder.mkdir(parents=True)
    tiny.save_model(model, folder)
    tiny.CharTokenizer().save_pretrained(str(folder))
    return cache
