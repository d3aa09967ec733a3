"""All that is known of one idea, gathered by `agent.campaign.story`; `evidence.py` lays it out for a screen.

Apart from that, because what only carries it (a night, its page) needs no terminal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunLine:
    """One execution. What is not known is None."""

    run: str
    """Its id in the journal."""
    arm: str
    """baseline, search, screen, confirm, incumbent, comparator, again, probe, untrained."""
    seed: int | None
    """Of the run."""
    metrics: dict[str, float]
    """By held-out split."""
    steps: int | None
    """Optimizer steps."""
    kept: int | None
    """Samples that were trained on."""
    tokens_per_s: float | None
    """Generated and trained tokens a second of training."""
    memory_gb: float | None
    """Largest peak, 10^9 bytes."""
    seconds: float | None
    """Wall-clock seconds."""
    state: str
    """done, running, paused, given up, set aside (it counts for nothing), or what went wrong."""
    reason: str = ""
    """Why it ended, in words."""


@dataclass(frozen=True)
class Paired:
    """Candidate against incumbent on the same prompts of one split."""

    split: str
    """search or confirm; `search, so far` of one that was cut short."""
    against: str
    """What it was compared with: incumbent, lead, untrained model, constant rate."""
    prompts: int
    """That both answered."""
    better: int
    """Prompts on which the candidate is better, on average over its runs."""
    worse: int
    """Prompts on which it is worse."""
    equal: int
    """All others."""
    seeds_candidate: int
    """Runs of the candidate."""
    seeds_incumbent: int
    """Runs of what it was compared with."""
    candidate: float
    """Metric of the candidate."""
    incumbent: float
    """Metric of the other."""
    delta: float
    """Their difference, larger is better."""
    low: float
    """Lower end of its 95% interval."""
    high: float
    """Upper end."""
    p_value: float
    """One-sided: how probable so large a difference would be without a true one."""
    error: float
    """Standard error of `delta`: both of the following."""
    pair_error: float
    """The part of the prompts."""
    run_error: float
    """The part of the runs."""
    df: float
    """Degrees of freedom of the interval."""
    sigma_run: float | None
    """Standard deviation between runs that `run_error` is from."""
    noise_df: int | None
    """Degrees of freedom of `sigma_run`."""


@dataclass(frozen=True)
class GuardLine:
    """What forbids a keep whatever the metric says, with what it saw."""

    name: str
    """evaluation, truncation, length, unique, or a metric."""
    incumbent: float | None
    """The incumbent's reading."""
    candidate: float | None
    """The candidate's reading."""
    unit: str
    """`%` of a share (0.4 is 40%), `tokens`, `samples`, or nothing."""
    limit: str
    """What breaks it, in words."""
    broken: str
    """The evidence in words where it is broken; empty where it held."""


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
    """0 is the baseline."""
    campaign: str
    """Name of the campaign."""
    title: str
    """Subject of its commit: what it changes."""
    outcome: str
    """keep, discard, crash; `open` where there is none yet."""
    kind: str
    """Why, in a word."""
    reason: str
    """Why, in a sentence."""
    rule: str
    """The rule that decided, in a sentence."""
    metric: str
    """What it was measured by."""
    why: tuple[tuple[str, str], ...]
    """Label and text: what the idea changes, the symptom that asked for it, its claim."""
    runs: tuple[RunLine, ...]
    """Its own, and those that it was compared with."""
    paired: tuple[Paired, ...]
    """Search first, then confirm."""
    level: float | None
    """Of the whole confirmation."""
    level_left: float | None
    """Of the campaign's, after this verdict."""
    alpha: float
    """Of the whole campaign."""
    looks: tuple[str, ...]
    """Of its confirmation, each in a sentence."""
    guards: tuple[GuardLine, ...]
    """Those that were looked at, held or broken."""
    flags: tuple[str, ...]
    """What looked too good, and what a second look said."""
    watches: tuple[str, ...]
    """What the playbook wanted to be watched, and what was seen."""
    fixes: tuple[str, ...]
    """Repairs after a crash, with their commits."""
    crash: tuple[tuple[str, str], ...]
    """Label and text: the line that proves the last crash, how sure its class is, what may have caused it, a remedy."""
    holdout: str
    """What the end of the campaign said, for its winner."""
    commit: str | None
    """Tip of its branch, the whole hash."""
    branch: str | None
    """Its name in git."""
    minimize: bool = False
    """Smaller is better."""
