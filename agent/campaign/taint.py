"""A run that was slower or faster than it should be: what it measured is the machine's doing as much as the recipe's.

Where the budget is time, fewer tokens a second are fewer steps; under every budget a training is cut by its time limit
where it takes more than twice as long as others. Such a run is repeated once, with the next seed.
"""

from __future__ import annotations

import statistics

from agent.campaign.comparison import quantile
from agent.campaign.evidence import Evidence
from agent.campaign.health import cut_short
from agent.campaign.lab import Lab, Measured

LEAST_DEVIATION = 0.03
"""Of the usual tokens a second; below it nothing is said, however steady the machine."""
LEAST_OF_A_PART = 0.15
"""The same for a training that was given up: its beginning has a larger share in it."""
LEVEL = 0.005
"""Chance of a run of the same speed to be called tainted, on either side."""
FEWEST = 2
"""Degrees of freedom from which the spread of speeds is known well enough."""


def tainted(lab: Lab, evidence: Evidence, number: int, run: Measured) -> str | None:
    """In words, how far the speed of a run of experiment `number` is off, or where its time limit cut it; None where it
    is as it should be or cannot be told.

    The usual speed is that of other runs of the recipe, and of what it changes where the change should not touch speed;
    faster or slower by as much as most of the last three runs were: a machine may have another speed from some time on.
    The spread is that between runs of one recipe, relative to their mean and pooled over all recipes that ran more than
    once (Student's prediction interval for one more).
    """
    cut = cut_short(lab.budget, run, evidence.baseline())
    if cut is not None:
        return cut
    pace = evidence.pace(but=run.key)
    usual = note_pace(lab, evidence, number, run)
    if not usual:
        return None
    spread, known = evidence.speed_spread(but=run.key)
    allowed = quantile(1 - LEVEL, known) * spread * (1 + 1 / len(usual)) ** 0.5
    off = evidence.paces[run.key] / pace - 1
    if abs(off) <= max(allowed, LEAST_DEVIATION if run.ok else LEAST_OF_A_PART):
        return None
    as_usual = statistics.fmean(usual)
    return f"{evidence.paces[run.key] * as_usual:.0f} tokens/s where {as_usual * pace:.0f} are usual ({off:+.0%})"


def note_pace(lab: Lab, evidence: Evidence, number: int, run: Measured) -> list[float]:
    """Remember how fast the machine was in this run, beside the speeds that are usual, which come back; none where it
    cannot be told."""
    summary = run.summary
    if lab.budget.train_seconds is None or not (run.ok or run.gave_up) or summary is None or not summary.tokens_per_s:
        return []
    usual = _usual(lab, evidence, number, run)
    _, known = evidence.speed_spread(but=run.key)
    if not usual or known < FEWEST:
        return []
    evidence.paces[run.key] = summary.tokens_per_s / statistics.fmean(usual)
    return usual


def set_aside(lab: Lab, evidence: Evidence, run: Measured, why: str) -> None:
    """The run counts for nothing, in this session and later ones; said and written down once."""
    if run.key not in evidence.aside:
        lab.set_aside(run, why)
        evidence.aside[run.key] = why


def _usual(lab: Lab, evidence: Evidence, number: int, run: Measured) -> list[float]:
    alike = {number} if lab.touches_speed(number) else {number, lab.planned_against(number)}
    return [speed for one in sorted(alike) for speed in evidence.speeds(one, but=run.key)]


def at_another_speed(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> bool:
    """Whether the candidate's last run and the incumbent's fresh ones do not have one speed, though they should."""
    runs, beside = evidence.candidate(number), evidence.fresh_incumbent(incumbent)
    summary = runs[-1].summary if runs else None
    theirs = [run.summary.tokens_per_s for run in beside if run.summary and run.summary.tokens_per_s]
    if lab.budget.train_seconds is None or lab.touches_speed(number) or not theirs:
        return False
    if summary is None or not summary.tokens_per_s:
        return False
    return bool(abs(summary.tokens_per_s / theirs[-1] - 1) > LEAST_DEVIATION)
