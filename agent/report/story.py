"""All that is known of one idea, gathered by `agent.campaign.story`; `evidence.py` lays it out for a screen.

Apart from that, because what only carries it (a night, its page) needs no terminal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunLine:
    """One execution. What is not known is None."""

    run: str
    arm: str
    """baseline, search, screen, confirm, incumbent, comparator, again, probe, untrained."""
    seed: int | None
    metrics: dict[str, float]
    """By held-out split."""
    steps: int | None
    kept: int | None
    tokens_per_s: float | None
    memory_gb: float | None
    seconds: float | None
    state: str
    """A word: done, running, paused, given up, or what went wrong."""
    reason: str = ""


@dataclass(frozen=True)
class Paired:
    """Candidate against incumbent on the same prompts of one split."""

    split: str
    against: str
    prompts: int
    better: int
    worse: int
    equal: int
    seeds_candidate: int
    seeds_incumbent: int
    candidate: float
    incumbent: float
    delta: float
    low: float
    high: float
    p_value: float
    error: float
    pair_error: float
    run_error: float
    df: float
    sigma_run: float | None
    noise_df: int | None


@dataclass(frozen=True)
class GuardLine:
    name: str
    incumbent: float | None
    candidate: float | None
    unit: str
    limit: str
    broken: str


@dataclass(frozen=True)
class PromptLine:
    """One held-out prompt, over all runs of each arm."""

    id: str
    incumbent_passed: int
    incumbent_samples: int
    candidate_passed: int
    candidate_samples: int
    difference: float
    """Of the share of samples that pass, or of the mean reward where that is the metric."""


@dataclass(frozen=True)
class Story:
    """All that is known of one idea. Empty is what there is none of, or what an older journal does not tell."""

    number: int
    campaign: str
    title: str
    outcome: str
    """keep, discard, crash; `open` where there is none yet."""
    kind: str
    reason: str
    rule: str
    """The rule that decided, in a sentence."""
    metric: str
    why: tuple[tuple[str, str], ...]
    """Label and text: what the idea changes, the symptom that asked for it, its claim."""
    runs: tuple[RunLine, ...]
    paired: tuple[Paired, ...]
    level: float | None
    """Of the whole confirmation."""
    level_left: float | None
    """Of the campaign's, after this verdict."""
    alpha: float
    looks: tuple[str, ...]
    guards: tuple[GuardLine, ...]
    flags: tuple[str, ...]
    watches: tuple[str, ...]
    fixes: tuple[str, ...]
    crash: tuple[tuple[str, str], ...]
    """Label and text: the line that proves the last crash, how sure its class is, what may have caused it, a remedy."""
    holdout: str
    """What the end of the campaign said, for its winner."""
    commit: str | None
    branch: str | None
    minimize: bool = False
