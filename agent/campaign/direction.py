"""From scores, where larger is better whatever the metric (scores.py), back to the metric's own direction."""

from __future__ import annotations


def as_measured(better: float, *, minimize: bool) -> float:
    """A mean or a difference of scores as the metric has it."""
    return 0.0 - better if minimize else better  # not -better, which makes -0.0 of 0.0


def ends_as_measured(low: float, high: float, *, minimize: bool) -> tuple[float, float]:
    """An interval's ends; those of a metric that is to fall change places with their sign."""
    return (as_measured(high, minimize=True), as_measured(low, minimize=True)) if minimize else (low, high)
