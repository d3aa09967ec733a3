"""The arithmetic of the benchmarks: useful tokens, floating-point operations, spreads of repeats. No torch, no clock.

A multiplication and an addition are two operations, so a product of (M, K) and (K, N) matrices takes 2 M K N.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.recipe.shapes import ModelShape

BACKWARD = 2
"""Backward of a product is two products of the same size: one for its input, one for its weight."""


def useful_tokens(tokens: Sequence[int], stop_ids: Collection[int]) -> int:
    """Tokens of a completion up to and including the first that ends it; what follows is padding."""
    for place, token in enumerate(tokens):
        if token in stop_ids:
            return place + 1
    return len(tokens)


@dataclass(frozen=True)
class TrainingFlops:
    """Operations of forward and backward over some samples, by part."""

    linear: int
    """Linear layers of all blocks, for every prompt and completion token."""
    head: int
    """The language-model head, for completion tokens only."""
    attention: int
    """Scores and weighted values, each token against itself and those before it."""

    @property
    def total(self) -> int:
        return self.linear + self.head + self.attention


def training_flops(shape: ModelShape, samples: Sequence[tuple[int, int]]) -> TrainingFlops:
    """Of samples given as (prompt tokens, completion tokens), each computed by itself and without padding.

    As model-FLOPs utilization counts them (arXiv 2204.02311, appendix B), with causal attention counted as the half
    that it is, and the head where there is a loss.
    """
    passes = 1 + BACKWARD
    weights = shape.layers * sum(inputs * outputs for inputs, outputs in shape.matrices().values())
    lengths = [prompt + completion for prompt, completion in samples]
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    return TrainingFlops(
        linear=passes * 2 * weights * sum(lengths),
        head=passes * 2 * shape.hidden * shape.vocabulary * sum(completion for _, completion in samples),
        attention=passes * 2 * 2 * shape.query_size * shape.layers * pairs,
    )


def product_flops(counts: Mapping[tuple[int, int, int], int]) -> int:
    """Of products (M, K, N), each so many times."""
    return sum(2 * m * k * n * times for (m, k, n), times in counts.items())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range of repeats, and the repeats themselves."""
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "repeats": list(values),
    }


def share(part: float | None, whole: float | None) -> float | None:
    """part / whole; None where either is not known or the whole is nothing."""
    return None if part is None or not whole else part / whole


def interpolated(known: Mapping[int, float], at: int) -> float:
    """The value at `at`, in straight lines between the known places and level outside of them."""
    places = sorted(known)
    if at <= places[0]:
        return known[places[0]]
    for low, high in itertools.pairwise(places):
        if at <= high:
            return known[low] + (known[high] - known[low]) * (at - low) / (high - low)
    return known[places[-1]]


def grid(rows: Collection[int], most: int) -> list[int]:
    """At most `most` of the row counts, evenly by rank, the smallest and the largest among them."""
    ordered = sorted(set(rows))
    if len(ordered) <= most:
        return ordered
    return sorted({ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)})
