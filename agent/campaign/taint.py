"""A run that was slower or faster than it should be: what it measured is the machine's doing as much as the idea's.

Only where the budget is time (fewer tokens are fewer steps), and only for changes that should not touch speed.
"""

from __future__ import annotations

import statistics

from agent.campaign.comparison import quantile
from agent.campaign.evidence import Evidence
from agent.campaign.lab import Lab, Measured

LEAST_DEVIATION = 0.03
"""Of the usual tokens a second; below it nothing is said, however steady the machine."""
LEVEL = 0.005
"""Chance of a run of the same speed to be called tainted, on either side."""


def tainted(lab: Lab, evidence: Evidence, number: int, run: Measured) -> str | None:
    """In words, how far the run's speed is off; None where it is as it should be or cannot be told.

    The usual speed and its spread are those of the incumbent's repeated runs (Student's prediction interval for one
    more); where the incumbent ran once, its spread is not known and nothing is said.
    """
    if lab.touches_speed(number) or not run.ok or run.summary is None or not run.summary.tokens_per_s:
        return None
    usual = [
        one.summary.tokens_per_s
        for one in evidence.search_runs(lab.planned_against(number))
        if one.summary is not None and one.summary.tokens_per_s
    ]
    if len(usual) < 3:
        return None
    mean, spread = statistics.fmean(usual), statistics.stdev(usual)
    allowed = quantile(1 - LEVEL, len(usual) - 1) * spread * (1 + 1 / len(usual)) ** 0.5
    off = run.summary.tokens_per_s - mean
    if abs(off) <= max(allowed, LEAST_DEVIATION * mean):
        return None
    return f"{run.summary.tokens_per_s:.0f} tokens/s where {mean:.0f} are usual ({off / mean:+.0%})"
