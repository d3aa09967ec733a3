"""A night as people read it in the morning: what `report.html`, `report.md`, `summary.json`, `watch` and `status` show.

It is gathered from the journal (`agent.campaign.night`) and lays nothing out: the pages do. Metrics are rates of the
recipe's metric in its own direction; a difference is signed so that larger is better, as in the verdicts. Unknown is
None, or an empty tuple, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.report.story import Story

FORMAT = 1
"""Of `summary.json`. It goes up where a reader of an older format would misread a newer one."""

Standing = Literal["running", "paused", "finished", "killed", "new"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Arm:
    """One of untrained, baseline and winner, by held-out split."""

    name: str
    number: int | None
    """Of its experiment; None for the untrained model."""
    metrics: Mapping[str, Estimate]
    """Split -> its metric. The interval is over runs and prompts; none where one run tells no spread."""


@dataclass(frozen=True)
class Gain:
    """What was gained from one arm to another, on one split, on the same prompts."""

    of: str
    over: str
    split: str
    delta: Estimate
    prompts: int | None = None


@dataclass(frozen=True)
class Noise:
    """How well the night could see."""

    sigma_run: float | None
    """Standard deviation between runs of one recipe that differ in the seed alone."""
    df: int | None
    detectable: float | None
    """Smallest gain that a confirmation finds with 80% power."""
    words: str
    """Both in a sentence, and what to do where it is too coarse."""


@dataclass(frozen=True)
class TimeSlice:
    """Seconds of the campaign by what they went to."""

    name: str
    """train, evaluate, start-up, confirm, calibrate, holdout, crashed, idle: each second is in one of them."""
    seconds: float


@dataclass(frozen=True)
class Step:
    """One idea on the staircase. On the search split, where every idea is measured first: a confirmed gain is in the
    card of the idea, on the confirm split."""

    number: int
    """0 is the baseline."""
    title: str
    outcome: str
    """keep, discard, crash, or `open`."""
    kind: str
    """Why, in a word: gain, regressed, inconclusive, lead, screened, ..."""
    reason: str
    axis: str
    hypothesis: str
    at_s: float | None
    """Consumed seconds of the campaign when it was judged."""
    took_s: float | None
    """Wall-clock seconds of its runs."""
    value: float | None
    """Metric of its search run, or runs."""
    low: float | None
    high: float | None
    """What its base had on search, plus the ends of the 95% interval of the difference: where the base's line lies
    outside, the difference is beyond noise on these prompts."""
    base: int
    """The experiment whose recipe it changes."""
    base_value: float | None
    """What that had on search when it was compared."""
    best: float | None
    """The incumbent's search metric after it: the line of the staircase."""
    delta: Estimate | None
    """The difference that the verdict rests on (confirm split where it was confirmed)."""
    crash_class: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class NearMiss:
    """An idea that measured better and could not be shown to be better."""

    number: int
    title: str
    delta: Estimate
    seeds: int | None
    """Further seeds for each arm that would probably settle it, if the measured difference is the true one; None where
    no affordable number would."""
    seconds: float | None
    """What they would take."""
    words: str


@dataclass(frozen=True)
class Crash:
    number: int
    title: str
    crash_class: str
    evidence: str
    """The line that proves it."""
    fixes: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class RuledOut:
    """An effect that was not there: the upper end of a discarded idea's interval."""

    number: int
    title: str
    above: float
    """Gains above this are ruled out at 95%; below 0 where it is worse."""


@dataclass(frozen=True)
class Next:
    """What it would try next."""

    subject: str
    why: str
    score: float
    seconds: float | None = None
    """Of its first run, as the campaign's own runs predict it; a confirmation takes at least four more."""


@dataclass(frozen=True)
class Shown:
    """The same held-out prompt before and after. From `samples.jsonl` of the runs; texts of a model are data."""

    prompt: str
    before: str
    before_passed: bool | None
    after: str
    after_passed: bool | None


@dataclass(frozen=True)
class Curves:
    """One run over its cycles and seconds, thinned. Lists are of equal length within `cycles` and within `seconds`."""

    run: str
    experiment: int
    arm: str
    seed: int | None
    cycles: Mapping[str, list[float | None]]
    """`cycle`, and by name: select (held-out metric), pass_rate, entropy, unique_share, truncation_rate, reward_mean,
    learning_rate, tokens_per_s, peak_memory_gb, loss, grad_norm."""
    seconds: Mapping[str, list[float | None]] = field(default_factory=dict)
    """`t`, and by name: resident_gb, cores, available_gb, power_w, temperature_c, busy_percent, device_used_gb."""


@dataclass(frozen=True)
class Card:
    """An idea in full: kept, crashed, or a near-miss."""

    story: Story
    diff: str
    """Of its recipe against the recipe that it changes."""
    parts: tuple[int, ...] = ()
    """Ideas that it put together."""


@dataclass(frozen=True)
class Night:
    """Everything. `summary.json` is this, as JSON, with `format` first."""

    campaign: str
    state: Standing
    verdict: str
    """One sentence: whether anything improved and whether it is real; on a bad night that nothing did, and what was
    ruled out."""
    recipe: str
    model: str
    task: str
    metric: str
    minimize: bool
    machine: str
    started_at: float | None
    """Unix seconds."""
    renewed_at: float
    """When this was gathered, Unix seconds."""
    budget_s: float | None
    consumed_s: float
    stopped: str
    """Why it ended or stands still, in words."""
    arms: tuple[Arm, ...]
    gains: tuple[Gain, ...]
    noise: Noise
    counts: Mapping[str, int]
    """ideas, keep, discard, crash, open, and inconclusive, regressed, underpowered, tainted, screened, lead among the
    discarded."""
    time: tuple[TimeSlice, ...]
    steps: tuple[Step, ...]
    """In the order of their numbers, the baseline first."""
    cards: tuple[Card, ...]
    near_misses: tuple[NearMiss, ...]
    crashes: tuple[Crash, ...]
    limits: tuple[str, ...]
    """Learned from crashes: `learner.microbatch_tokens below 8192: ...`."""
    shared_layer: tuple[str, ...]
    """Changed for all runs after a fault of a layer."""
    ruled_out: tuple[RuledOut, ...]
    next: tuple[Next, ...]
    next_note: str
    """Why there is nothing, or what to know of the ranking."""
    samples: tuple[Shown, ...]
    samples_of: str
    """Which runs they are from, in words."""
    curves: tuple[Curves, ...]
    curves_left_out: int
    """Runs whose curves would have made the page too large."""
    reproduce: tuple[tuple[str, str], ...]
    """(command, what it does)."""
    warnings: tuple[str, ...]
    """What is wrong with the record itself: events of a newer version, run folders that are gone, a journal's gap."""
    next_after: int | None = None
    """Verdicts, the baseline's among them, after which `next` was ranked; None where it was not since the last one."""
    format: int = FORMAT
    extra: Mapping[str, Any] = field(default_factory=dict)
