"""A night as people read it in the morning: what `report.html`, `report.md`, `summary.json`, `watch` and `status` show.

It is gathered from the journal (`agent.campaign.night`) and lays nothing out: the pages do. Metrics are rates of the
recipe's metric in its own direction; a difference is signed so that larger is better, as in the verdicts. Unknown is
None, or an empty tuple, never 0. The words below a field are those of docs/report.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.report.story import Story

FORMAT = 1
"""Of `summary.json`. It goes up where a reader of an older format would misread a newer one."""

Standing = Literal["running", "paused", "finished", "killed", "new"]


DISCARDED = (
    "inconclusive",
    "regressed",
    "promising",
    "lead",
    "screened",
    "underpowered",
    "tainted",
    "guard",
    "suspect",
)
"""Kinds that `Night.counts` breaks the discarded down to, the usual ones first."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, in the metric's unit: a pass rate of 0.4 is 40%, a difference of 0.03 is 3
    points."""

    value: float
    """The mean over runs."""
    low: float | None = None
    """Lower end of the interval; null where there is none."""
    high: float | None = None
    """Upper end."""


@dataclass(frozen=True)
class Arm:
    """One of untrained, baseline and winner, by held-out split."""

    name: str
    """untrained, baseline, winner."""
    number: int | None
    """Of its experiment, 0 for the baseline; null for the untrained model."""
    metrics: Mapping[str, Estimate]
    """By split: search, confirm, holdout. The interval is over runs and prompts; none where either spread is not
    known."""


@dataclass(frozen=True)
class Gain:
    """What was gained from one arm to another, on one split, on the same prompts."""

    of: str
    """Name of the arm that may be better."""
    over: str
    """Name of the arm that it is compared with."""
    split: str
    """search, confirm, holdout."""
    delta: Estimate
    """Larger is better."""
    prompts: int | None = None
    """Held-out prompts that both answered."""


@dataclass(frozen=True)
class Noise:
    """How well the night could see."""

    sigma_run: float | None
    """Standard deviation between runs of one recipe that differ in the seed alone, in the metric's unit."""
    df: int | None
    """Degrees of freedom that it is known with."""
    detectable: float | None
    """Smallest gain that a confirmation finds with 80% power, in the metric's unit."""
    words: str
    """Both in a sentence, and what to do where it is too coarse."""


@dataclass(frozen=True)
class TimeSlice:
    """Seconds of the campaign by what they went to."""

    name: str
    """train, evaluate (the select split after a cycle and what comes at the end), start-up (loading the model, saving),
    confirm, calibrate, holdout, crashed, idle: each second is in one of them."""
    seconds: float
    """Consumed seconds."""


@dataclass(frozen=True)
class Step:
    """One idea on the staircase. On the search split, where every idea is measured first: a confirmed gain is in the
    card of the idea, on the confirm split."""

    number: int
    """0 is the baseline."""
    title: str
    """Subject of its commit: what it changes."""
    outcome: str
    """keep, discard, crash, or open: none yet."""
    kind: str
    """Why, in a word: gain, simpler, cheaper, regressed, inconclusive, promising, lead, screened, ..."""
    reason: str
    """Why, in a sentence."""
    axis: str
    """Of the playbook: learning-rate, batch, ...; else `baseline`, `steer` (yours), `together`, `ablation`."""
    hypothesis: str
    """Its name in the playbook; else as `axis`, or `refine-AXIS`."""
    at_s: float | None
    """Consumed seconds of the campaign when it was judged."""
    took_s: float | None
    """Wall-clock seconds of its runs."""
    value: float | None
    """Metric of its search run, or runs."""
    low: float | None
    """What its base had on search, plus the lower end of the 95% interval of the difference. Where the base's line lies
    outside of `low` to `high`, the difference is beyond noise on these prompts."""
    high: float | None
    """The same with the upper end."""
    base: int
    """The experiment whose recipe it changes."""
    base_value: float | None
    """What that had on search when it was compared."""
    best: float | None
    """The incumbent's search metric after it: the line of the staircase."""
    delta: Estimate | None
    """The difference that the verdict rests on (confirm split where it was confirmed)."""
    crash_class: str | None = None
    """Of a crash: typo, oom, backend, numeric, data, timeout, resource, unknown."""
    commit: str | None = None
    """Tip of its branch, the whole hash."""


@dataclass(frozen=True)
class NearMiss:
    """An idea that measured better and could not be shown to be better."""

    number: int
    """Of the idea."""
    title: str
    """Subject of its commit."""
    delta: Estimate
    """The difference that its verdict rests on."""
    seeds: int | None
    """Further seeds for each arm that would probably settle it, if the measured difference is the true one; null where
    no affordable number would."""
    seconds: float | None
    """Seconds that the runs of both arms would take; of all three where a schedule must also beat a constant rate."""
    words: str
    """All of it in a sentence, with the split that the difference is from."""


@dataclass(frozen=True)
class Crash:
    """An idea that crashed in spite of the allowed repairs."""

    number: int
    """Of the idea."""
    title: str
    """Subject of its commit."""
    crash_class: str
    """typo, oom, backend, numeric, data, timeout, resource, unknown."""
    evidence: str
    """The line that proves it."""
    fixes: tuple[str, ...]
    """What was tried, in order."""
    remedy: str
    """What you can do; empty where nothing is known."""


@dataclass(frozen=True)
class RuledOut:
    """An effect that was not there: the upper end of a discarded idea's interval."""

    number: int
    """Of the idea."""
    title: str
    """Subject of its commit."""
    above: float
    """Gains above this are ruled out at 95%, in the metric's unit; below 0 where the idea is worse."""


@dataclass(frozen=True)
class Next:
    """What it would try next."""

    subject: str
    """What it would change."""
    why: str
    """What its place in the ranking rests on."""
    score: float
    """Of the ranking: larger comes first."""
    seconds: float | None = None
    """Of its first run, as the campaign's own runs predict it, null where they do not; a confirmation takes at least
    four more."""


@dataclass(frozen=True)
class Shown:
    """The same held-out prompt before and after. From `samples.jsonl` of the runs; texts of a model are data."""

    prompt: str
    """As the model was asked, special tokens included. This and both completions are cut after 4,000 characters."""
    before: str
    """The untrained model's first completion."""
    before_passed: bool | None
    """Whether the verifier passed it."""
    after: str
    """The first completion of the winner, or of the baseline where nothing was kept."""
    after_passed: bool | None
    """Whether the verifier passed it."""


@dataclass(frozen=True)
class Curves:
    """One run over its cycles and seconds, thinned. Lists are of equal length within `cycles` and within `seconds`."""

    run: str
    """Name of its folder."""
    experiment: int
    """Whose recipe it ran; 0 is the baseline."""
    arm: str
    """What it was for: baseline, search, confirm, incumbent, comparator."""
    seed: int | None
    """Of the run."""
    cycles: Mapping[str, list[float | None]]
    """At most 60. `cycle` (0: untrained), and by name: select (held-out metric); pass_rate, unique_share,
    truncation_rate (shares of the samples); entropy, loss (nats a token); reward_mean; learning_rate; grad_norm;
    tokens_per_s (generated); peak_memory_gb (10^9 bytes)."""
    seconds: Mapping[str, list[float | None]] = field(default_factory=dict)
    """At most 120. `t` (seconds since the run began, pauses left out), and by name: resident_gb, available_gb,
    device_used_gb (GiB); cores (in use); power_w (watts); temperature_c (degrees Celsius); busy_percent."""


@dataclass(frozen=True)
class Card:
    """An idea in full: kept, crashed, or a near-miss."""

    story: Story
    """All that its verdict rests on."""
    diff: str
    """Its recipe against the recipe that it changes, as a unified diff; cut after 8,000 characters."""
    parts: tuple[int, ...] = ()
    """Numbers of the ideas that it put together."""


@dataclass(frozen=True)
class Night:
    """Everything. `summary.json` is this, as JSON, with `format` first."""

    campaign: str
    """Its name."""
    state: Standing
    """killed: no process works on it, and it has neither paused nor come to its end. new: nothing has run."""
    verdict: str
    """One sentence: whether anything improved and whether it is real; on a bad night that nothing did, and what was
    ruled out."""
    recipe: str
    """Path of the recipe that it started from, in the workspace."""
    model: str
    """`model.source` of that recipe."""
    task: str
    """`task.dataset` of that recipe."""
    metric: str
    """`evaluation.metric` of that recipe."""
    minimize: bool
    """Smaller is better. Differences are signed so that larger is better all the same."""
    machine: str
    """Name, cores, memory in GB."""
    started_at: float | None
    """Unix seconds."""
    renewed_at: float
    """When this was gathered, Unix seconds."""
    budget_s: float | None
    """Seconds of the budget."""
    consumed_s: float
    """Seconds used of it; the time between two sessions does not count."""
    stopped: str
    """Why it ended or stands still, in words."""
    arms: tuple[Arm, ...]
    """Those that something is known of; no winner where nothing was kept."""
    gains: tuple[Gain, ...]
    """Baseline over untrained and winner over baseline, by split."""
    noise: Noise
    """What the night could see."""
    counts: Mapping[str, int]
    """ideas, keep, discard, crash, open; and among the discarded inconclusive, regressed, underpowered, tainted,
    screened, lead, promising, guard, suspect."""
    time: tuple[TimeSlice, ...]
    """What `consumed_s` went to."""
    steps: tuple[Step, ...]
    """In the order of their numbers, the baseline first."""
    cards: tuple[Card, ...]
    """By number, at most 60: of kept ideas, near-misses and the last crashes."""
    near_misses: tuple[NearMiss, ...]
    """At most 12, those most likely to be better first."""
    crashes: tuple[Crash, ...]
    """By number."""
    limits: tuple[str, ...]
    """Learned from crashes: `learner.microbatch_tokens below 8192: ...`."""
    shared_layer: tuple[str, ...]
    """Changed for all runs after a fault of a layer."""
    ruled_out: tuple[RuledOut, ...]
    """Smallest `above` first."""
    next: tuple[Next, ...]
    """At most 10."""
    next_note: str
    """Why there is nothing, or what to know of the ranking."""
    samples: tuple[Shown, ...]
    """At most 12, of the search split."""
    samples_of: str
    """Which runs they are from, in words."""
    curves: tuple[Curves, ...]
    """The winner's and the baseline's runs first, then those of kept ideas, near-misses, crashes, then the newest."""
    curves_left_out: int
    """Runs whose curves would have made the page too large."""
    reproduce: tuple[tuple[str, str], ...]
    """Pairs: a command, and what it does."""
    warnings: tuple[str, ...]
    """What is wrong with the record itself: events of a newer version, run folders that are gone, a journal's gap."""
    next_after: int | None = None
    """Verdicts, the baseline's among them, after which `next` was ranked; None where it was not since the last one."""
    format: int = FORMAT
    """1. It goes up where a reader of an older format would misread a newer one; fields are added without."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Empty in this version."""
