"""The metric of a run by prompt: what every comparison is made of.

One number a prompt (the mean over its samples), signed so that larger is better. The spread among samples is not
kept: what of it matters for a comparison shows in how two runs differ prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.contract import EvalRow, SelectRow
from agent.recipe.schema import Evaluation

FEWEST_PROMPTS = 2
"""Of fewer the error of a mean is not known."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One run on one split."""

    ids: tuple[str, ...]
    """Prompt ids, sorted."""
    values: np.ndarray
    """(prompts,): the prompt's value, larger is better."""

    @property
    def mean(self) -> float:
        """Larger is better; direction.py makes the metric of it."""
        return float(self.values.mean())


def scores_of(
    rows: Sequence[EvalRow], *, split: str, evaluation: Evaluation, metric: str | None = None
) -> Scores | None:
    """The rows of one split under `evaluation.metric` and its direction; None where there are none.

    `metric` reads another metric of the same rows instead, its larger values being the better ones.
    """
    sign = 1.0 if metric is not None or not evaluation.minimize else -1.0
    chosen = metric or evaluation.metric
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        if row.split == split:
            by_prompt.setdefault(row.id, []).append(_value(row, chosen))
    if not by_prompt:
        return None
    ids = tuple(sorted(by_prompt))
    combine = max if chosen == "pass_at_k" else _mean
    return Scores(ids, sign * np.array([combine(by_prompt[prompt]) for prompt in ids]))


def _value(row: EvalRow, metric: str) -> float:
    if metric == "mean_reward":
        return row.reward
    return float(row.tokens) if metric == "mean_tokens" else float(row.passed)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def select_scores(rows: Sequence[SelectRow], evaluation: Evaluation) -> Scores | None:
    """By prompt, the mean over several measurements of the `select` split; None without one, and where there are not
    the two prompts that a comparison needs, or a value is no number."""
    if not rows:
        return None
    sign = -1.0 if evaluation.minimize else 1.0
    combine = max if evaluation.metric == "pass_at_k" else _mean
    answered = [{prompt for prompt, samples in row.scores.items() if samples} for row in rows]
    ids = tuple(sorted(set.intersection(*answered)))
    if len(ids) < FEWEST_PROMPTS:
        return None
    values = np.array([_mean([combine(row.scores[prompt]) for row in rows]) for prompt in ids])
    return Scores(ids, sign * values) if np.isfinite(values).all() else None


def table(runs: Sequence[Scores]) -> np.ndarray:
    """(runs, prompts): the values of the prompts that all runs have. ValueError where there is none, or no run."""
    if not runs:
        raise ValueError("each arm needs a run")
    ids = runs[0].ids
    if all(run.ids == ids for run in runs):
        return np.stack([run.values for run in runs])
    shared = sorted(set.intersection(*(set(run.ids) for run in runs)))
    if not shared:
        raise ValueError("the runs have no prompts in common: they were not measured on the same split")
    return np.stack([run.values[np.searchsorted(run.ids, shared)] for run in runs])
