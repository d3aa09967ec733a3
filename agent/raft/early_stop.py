"""When a training has passed its peak: the last measurement is worse than those before it, beyond noise.

Compared are the same prompts with the same random numbers, so the difference is taken prompt by prompt (a one-sided
paired t-test against each prompt's mean over the measurements before). The predecessors' mean and not their best,
because the best of several noisy measurements is too good and every training would seem to fall behind it.

It does not: choose what is delivered (the best cycle is, whether or not the training stops), or know about time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from agent.contract import EvalRow
from agent.raft.evaluate import sample_scores
from agent.raft.measure import deviation, mean
from agent.recipe.schema import EarlyStop


class Decline:
    """The measurements so far, by prompt, and how often in a row the last one was worse."""

    def __init__(self, settings: EarlyStop | None, *, metric: str, maximize: bool):
        self.settings = settings
        self.metric = metric
        self.sign = 1.0 if maximize else -1.0
        self.history: list[dict[str, float]] = []
        self.worse_in_a_row = 0

    def add(self, rows: Sequence[EvalRow]) -> str | None:
        """Take in one measurement. Returns why the training should stop, or None."""
        if self.settings is None:
            return None
        now = prompt_scores(rows, self.metric)
        before, self.history = self.history, [*self.history, now][-self.settings.window :]
        if len(before) < self.settings.window:
            return None
        found = self._compare(now, before)
        self.worse_in_a_row = self.worse_in_a_row + 1 if found else 0
        return found if self.worse_in_a_row >= self.settings.patience else None

    def _compare(self, now: dict[str, float], before: list[dict[str, float]]) -> str | None:
        """What is worse, in words; None where it is not, or not beyond noise."""
        assert self.settings is not None
        gains = [self.sign * (now[prompt] - _mean([past[prompt] for past in before])) for prompt in now]
        center, spread = _mean(gains), deviation(gains)
        if center >= 0 or len(gains) < 2 or spread is None:
            return None
        error = spread / math.sqrt(len(gains) - 1)
        from scipy.stats import t as student

        # Where every prompt lost as much there is no spread to go by: the sign test's chance that all of them fall.
        chance = float(student.cdf(center / error, len(gains) - 1)) if error else 0.5 ** len(gains)
        if chance >= self.settings.level:
            return None
        fall = f"{-center:.3f}" if self.metric == "mean_reward" else f"{-100 * center:.1f}pp"
        return f"{fall} worse than the {len(before)} measurements before (p = {chance:.3f})"

    def state(self) -> dict[str, Any]:
        return {"history": self.history, "worse_in_a_row": self.worse_in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        self.history, self.worse_in_a_row = state["history"], state["worse_in_a_row"]


def prompt_scores(rows: Sequence[EvalRow], metric: str) -> dict[str, float]:
    """What the metric is the mean of, by prompt."""
    by_prompt = sample_scores(rows, metric)
    return {prompt: max(values) if metric == "pass_at_k" else _mean(values) for prompt, values in by_prompt.items()}


def _mean(values: Sequence[float]) -> float:
    found = mean(values)
    assert found is not None
    return found
