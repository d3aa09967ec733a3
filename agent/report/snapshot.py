"""A campaign at one moment: what `watch`, `run` and `status` show. One model, whoever fills it.

`watch` and `status` gather it from files (`agent.campaign.onlooker`), `run` from the loop. Texts in it are clean (no
control characters, no secrets). Unknown is None or empty, never 0. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.report.night import Estimate, Standing


@dataclass(frozen=True)
class Arms:
    """Untrained, baseline and best as one split has measured them, so that they can be compared
    (`agent.campaign.one_split`). None is not known on that split, whatever another one says."""

    split: str = "search"
    """search, confirm or holdout."""
    untrained: float | None = None
    baseline: float | None = None
    best: float | None = None
    """The baseline's where nothing is kept."""
    gain: Estimate | None = None
    """Of the best over the baseline, on the same prompts; larger is better. None where the baseline is the best."""


@dataclass(frozen=True)
class Mark:
    """An idea on the staircase."""

    number: int
    title: str
    outcome: str
    """keep, discard, crash, or `open`."""
    kind: str
    """Why, in a word: gain, regressed, lead, screened, ..."""
    reason: str
    value: float | None
    """The metric of its first runs, on the search split."""
    best: float | None
    """What the incumbent had there, after it and all of a smaller number; None where it has no outcome."""


@dataclass(frozen=True)
class Running:
    """The run that goes on."""

    run: str
    what: str
    """`#3 learning-rate: raise the rate, 0.0005 -> 0.001`, `baseline`."""
    seed: int | None
    number: int | None
    """Of its experiment."""
    phase: str
    """start, load, compile, generate, verify, train, evaluate, save."""
    elapsed_s: float | None
    predicted_s: float | None
    """Seconds that this start of the run was predicted to take, by runs before it."""
    share: float | None = None
    """Of the training's budget that is spent, by all starts."""
    cycle: int | None = None
    note: str = ""
    metric: float | None = None
    """On the `select` split, last."""
    curve: tuple[float, ...] = ()
    """The same, cycle by cycle."""
    pass_rate: float | None = None
    """Of the samples of the last cycle."""
    share_before: float | None = 0.0
    """What of `share` earlier starts have spent; None where that is not known."""

    @property
    def left_s(self) -> float | None:
        """Seconds that it will still take; negative where it is late.

        At first as predicted; the more is spent of what this start has to spend, the more by how fast it was.
        """
        if self.predicted_s is None or self.elapsed_s is None:
            return None
        by_prediction = self.predicted_s - self.elapsed_s
        share, before = self.share, self.share_before
        if share is None or before is None or not before < share < 1:
            return by_prediction
        by_pace = self.elapsed_s * (1 - share) / (share - before)
        done = (share - before) / (1 - before)
        return done * by_pace + (1 - done) * max(0.0, by_prediction)


@dataclass(frozen=True)
class CardNow:
    name: str
    busy_percent: float | None = None
    used_gb: float | None = None
    total_gb: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True)
class MachineNow:
    """GiB, cores, degrees Celsius."""

    available_gb: float | None = None
    total_gb: float | None = None
    trainer_gb: float | None = None
    cores: float | None = None
    """Busy with the trainer."""
    cores_there: int | None = None
    cards: tuple[CardNow, ...] = ()
    temperature_c: float | None = None
    """Of the warmest sensor of the host."""


@dataclass(frozen=True)
class Snapshot:
    at: float
    campaign: str
    state: Standing
    process: int | None = None
    """Of the agent that works on it."""
    recipe: str = ""
    metric: str = ""
    minimize: bool = False
    budget_s: float | None = None
    used_s: float = 0.0
    left_s: float | None = None
    """Until the budget or the deadline, whichever is nearer; None where neither is known, and once it is finished."""
    arms: Arms = field(default_factory=Arms)
    best_number: int = 0
    """0 is the baseline."""
    best_title: str = ""
    best_commit: str | None = None
    lead: float | None = None
    """What the next ideas build on unconfirmed, on the search split; None where nothing does."""
    lead_number: int | None = None
    lead_title: str = ""
    sigma_run: float | None = None
    detectable: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    """ideas, keep, discard, crash, open."""
    marks: tuple[Mark, ...] = ()
    """Every idea in the order of their numbers; the baseline is not among them."""
    base: float | None = None
    """The baseline's metric on the search split, as that of the marks."""
    judged: tuple[int, ...] = ()
    """Numbers of the ideas with an outcome, in the order in which they were judged."""
    running: Running | None = None
    machine: MachineNow | None = None
    idea_s: float | None = None
    """Predicted seconds of an idea."""
    reserve_s: float | None = None
    """Held back for the last confirmation and the holdout."""
    stops: tuple[str, ...] = ()
    """What ends it beside the time, in words: `after 20 ideas`."""
    stopped: str = ""
    """Why it ended or stands still."""
    headline: str = ""
    """What a finished campaign came to."""
    report: str | None = None
    """Path of the report, from the workspace."""
    next: str = ""
    """The command that goes on from here."""
    busy: str = ""
    """What else works in the workspace just now, and keeps the campaign from going on: a study, a replay."""
    trouble: str = ""
    """What is wrong with the record itself."""

    @property
    def last(self) -> Mark | None:
        """The idea that was judged last."""
        if not self.judged:
            return None
        return next((mark for mark in self.marks if mark.number == self.judged[-1]), None)


def waiting(at: float, trouble: str = "") -> Snapshot:
    """No campaign yet, or none that can be read."""
    return Snapshot(at, "", "new", next="raft-agent run --budget 8h", trouble=trouble)
