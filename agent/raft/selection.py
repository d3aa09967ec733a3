"""Which samples are trained on: per prompt, with seeded tie-breaks, never the first in file order.

For each prompt (one that is drawn twice in a cycle counts as two), in this order: `drop_solved`; candidates are samples
with at least the threshold's reward that were not cut (unless `truncated_as_positive`); identical completions count
once (`dedup`); of the candidates the best `keep_top_percent`, at least one, and at most `max_per_prompt`. Equal rewards
are ordered at random.

`reinforce_rej` takes only prompts that have both candidates and failures, and up to `max_per_prompt` failures of
each beside them (arXiv 2504.11343). Under the other algorithms a failure is never trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from agent.recipe.schema import Selection

SMALLEST = 1e-9
"""Difference of rewards that is one."""


@dataclass(frozen=True)
class Graded:
    """A sample as far as selection needs to know it."""

    reward: float
    passed: bool
    truncated: bool
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """One sample to train on: its prompt, its place among the prompt's samples, and +1 or -1."""

    prompt: int
    sample: int
    sign: int = 1


def select(
    groups: Sequence[Sequence[Graded]], selection: Selection, *, seed: int, with_negatives: bool = False
) -> list[Chosen]:
    """The samples to train on, in prompt and sample order. Fewer than `min_samples` are still returned."""
    chosen: list[Chosen] = []
    for prompt, group in enumerate(groups):
        source = random.Random(f"select/{seed}/{prompt}")
        if selection.drop_solved and group and all(sample.passed for sample in group):
            continue
        positives, negatives = _split(group, selection)
        if with_negatives and not (positives and negatives):
            continue
        kept = _best(group, positives, selection, source)
        chosen += [Chosen(prompt, sample) for sample in sorted(kept)]
        if with_negatives:
            failures = _distinct(group, negatives, selection, source)[: selection.max_per_prompt]
            chosen += [Chosen(prompt, sample, sign=-1) for sample in sorted(failures)]
    return chosen


def _split(group: Sequence[Graded], selection: Selection) -> tuple[list[int], list[int]]:
    """Places of candidates and of failures. Neither is a cut sample that would have been a candidate, nor a right
    answer whose reward is too small, by its length or its form."""
    positives, negatives = [], []
    for place, sample in enumerate(group):
        if sample.reward < selection.reward_threshold - SMALLEST:  # 0.7 + 0.1 is a little less than 0.8
            if not sample.passed:
                negatives.append(place)
        elif not sample.truncated or selection.truncated_as_positive:
            positives.append(place)
    return positives, negatives


def _best(group: Sequence[Graded], positives: list[int], selection: Selection, source: random.Random) -> list[int]:
    """The best of a prompt's candidates, ties at random."""
    distinct = _distinct(group, positives, selection, source)
    if not distinct:
        return []
    # The small term keeps 0.2 of 10 at 2 where binary fractions would make it 1.9999.
    share = math.floor(len(distinct) * selection.keep_top_percent / 100 + 1e-9)
    ranked = sorted(distinct, key=lambda place: -group[place].reward)
    return ranked[: min(max(1, share), selection.max_per_prompt)]


def _distinct(group: Sequence[Graded], places: list[int], selection: Selection, source: random.Random) -> list[int]:
    """The places in random order; under `dedup` one of each token sequence, that with the highest reward."""
    shuffled = list(places)
    source.shuffle(shuffled)
    if not selection.dedup:
        return shuffled
    best: dict[tuple[int, ...], int] = {}
    for place in shuffled:
        other = best.get(group[place].tokens)
        if other is None or group[place].reward > group[other].reward:
            best[group[place].tokens] = place
    return list(best.values())
