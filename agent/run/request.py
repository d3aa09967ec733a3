"""What the launcher is asked to run, and what it then tells of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.contract import RunLoad, Sample, Split, Summary
from agent.recipe.schema import Recipe
from agent.run.watching import EndedBy

HOW_IT_LEFT = "; the trainer "
"""Stands in the reason of a run that was ended between why that was and how the trainer left."""

FAILED: tuple[EndedBy, ...] = ("hang", "slow", "memory", "disk", "flood")
"""However well the trainer left when it was ended for one of these, it has failed."""
MemoryEvents = Literal["moved", "still", "unreadable"]


@dataclass(frozen=True)
class RunRequest:
    recipe: Recipe
    out: Path
    """Folder of the run; may hold an earlier, unfinished start of the same recipe, which is then gone on with."""
    seed: int
    workspace: Path
    """Current folder of the trainer: paths in a recipe are relative to it."""
    time_limit_s: float
    splits: tuple[Split, ...] = ("search",)
    """Held-out splits to evaluate at the end; empty for none."""
    evaluate: str | None = None
    """A checkpoint folder or `untrained`: evaluate that instead of training."""
    rung: float | None = None
    """Share of the training budget after which `search` is measured once on the way."""
    cache: Path | None = None
    commit: str | None = None
    """Of a model of the hub, where an earlier run has found it."""
    allow_untrusted_code: bool = False
    low_priority: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    """On top of the preset and of the recipe's own."""


@dataclass(frozen=True)
class RunResult:
    out: Path
    exit_code: int | None
    """None where a signal ended it."""
    signal: int | None
    ended_by: EndedBy
    """`itself`, or what made the launcher end it; `stop` where the caller asked for it. A training that was done by
    then has a summary that is not `stopped`. `hang` did nothing in its silence, `slow` did something for too long."""
    reason: str
    """In words; begins with what `stop` said where that ended it."""
    elapsed_s: float
    summary: Summary | None
    """Of this start; the summary of an earlier one in the same folder does not count."""
    peak_rss_gb: float | None
    """Trainer and what it started, GiB, sampled once a second."""
    cgroup_oom_kills: int = 0
    host_oom_kills: int = 0
    """Processes that the kernel killed for memory meanwhile: in our control group; on the whole machine."""
    kernel: str = ""
    """Kernel messages about memory, graphics and disks from that time, where they may be read."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What was set for the trainer on top of the inherited environment; values of secrets are left out."""
    idle_wait_s: float = 0.0
    """Seconds until memory was back after the end."""
    memory_events: MemoryEvents = "unreadable"
    """Whether the kernel's counters of memory kills moved meanwhile, stood still, or could not be read. A SIGKILL from
    outside while they stood still was not the kernel's; systemd-oomd and earlyoom move none of them."""
    memory_back: bool | None = None
    """Host and graphics memory came back, but for what other programs took. None where it cannot be told."""
    held_gb: float = 0.0
    """GiB that did not come back."""
    held_by: str = ""
    """Who holds them, as far as the system tells."""
    notes: tuple[str, ...] = ()
    """What was odd on the way, in words: it crawled, a sensor did not answer."""
    load: RunLoad | None = None
    """How this start used the machine."""
    last_samples: tuple[Sample, ...] = ()
    """The last ones before its end."""
    stayed: bool = False
    """It had written its summary, which is the last thing a trainer does, and was ended because it did not leave."""

    @property
    def ok(self) -> bool:
        return self._told is not None and not self.cut

    @property
    def cut(self) -> bool:
        """It left in good order before it was done, and the caller's `stop` had not asked for it: at its time limit
        with nothing measured, or at somebody else's SIGTERM. What it measured is a part, and no result."""
        told = self._told
        if told is None or not told.stopped:
            return False
        return self.ended_by == "itself" or (self.ended_by == "time_limit" and not told.metrics)

    @property
    def _told(self) -> Summary | None:
        """The summary, where the trainer left in good order."""
        left_well = (self.exit_code == 0 or self.stayed) and self.ended_by not in FAILED
        return self.summary if left_well else None
