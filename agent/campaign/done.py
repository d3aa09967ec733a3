"""A run that has come to an end, as those see it who choose, judge and repair: what it measured, or why it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.campaign.health import faults_of, health_of
from agent.campaign.lab import Health
from agent.campaign.scores import Scores, scores_of, select_scores
from agent.campaign.stopping import HOPELESS
from agent.contract import EvalRow, Summary
from agent.errors import AgentError, ResourceError, error_named
from agent.recipe.schema import Evaluation
from agent.run.diagnosis import Diagnosis
from agent.run.request import HOW_IT_LEFT
from agent.run.telemetry import RunRecord


@dataclass(frozen=True)
class Done:
    """A run that has come to an end of its own, with what it left on disk."""

    key: str
    record: RunRecord
    elapsed_s: float | None
    diagnosis: Diagnosis | None
    """Why it failed; None for a run with a summary."""
    evaluation: Evaluation
    ended_s: float | None = None
    """Consumed seconds of the campaign when it ended."""
    ended_early: str | None = None
    """Why the campaign ended it: it begins with PAUSED or HOPELESS. None for a run that ended by itself."""
    rewards: tuple[float, float] = (0.0, 1.0)
    """Between which a reward lies."""
    free_gb: float | None = None
    """Host memory that was free before it was started, GiB; None where it was read back."""
    took_the_memory: bool = False
    """It held at least half of what was free, on the host or on the card: what ran out was its own doing."""
    prompts: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    """Ids of the prompts by held-out split, as the first run on it has shown."""
    _known: dict[tuple[str, str | None], Scores | None] = field(default_factory=dict, repr=False)

    @property
    def summary(self) -> Summary | None:
        return self.record.summary

    @property
    def ok(self) -> bool:
        return self.diagnosis is None and self.record.summary is not None and self.ended_early is None

    @property
    def gave_up(self) -> str | None:
        reason = (self.ended_early or "").partition(HOW_IT_LEFT)[0]
        return reason.removeprefix(HOPELESS).lstrip(": ") if reason.startswith(HOPELESS) else None

    @property
    def crash_words(self) -> str | None:
        if self.ok or self.ended_early:
            return None
        return f"{self.diagnosis.crash_class}: {self.diagnosis.reason}" if self.diagnosis else "it left no summary"

    @property
    def named_error(self) -> AgentError | None:
        """The trainer's own error, where it named one (no such model, a bad data row), or a resource that ran out."""
        failure, diagnosis = self.record.failure, self.diagnosis
        named = None
        if failure is not None:
            named = error_named(failure.exception, failure.message, where=failure.where, hint=failure.hint)
        if named is None and diagnosis is not None and diagnosis.crash_class == "resource":
            hint = "make room (disk, shared memory, processes, open files); raft-agent resume then goes on"
            named = ResourceError(diagnosis.reason, where=self.key, hint=hint)
        return named

    # --- what it measured -----------------------------------------------------------------------------------

    def rows(self, split: str) -> list[EvalRow]:
        return [row for row in self.record.evals if row.split == split]

    def scores(self, split: str, metric: str | None = None) -> Scores | None:
        if (split, metric) not in self._known:
            found = scores_of(self.record.evals, split=split, evaluation=self.evaluation, metric=metric)
            self._known[split, metric] = found
        return self._known[split, metric]

    def scores_alone(self) -> Done:
        """The same run without its rows, curves and samples, which take two megabytes: what it measured by the metric
        and by those of the guards is known still, and its summary."""
        metrics = [None, *(guard.metric for guard in self.evaluation.guards)]
        for split in {row.split for row in self.record.evals}:
            for metric in metrics:
                self.scores(split, metric)
        return replace(self, record=replace(self.record, cycles=[], evals=[], select=[], samples=[], texts=[]))

    def on_the_way(self) -> Scores | None:
        return select_scores([self.record.rung], self.evaluation) if self.record.rung else None

    def health(self, split: str) -> Health | None:
        return health_of(self.rows(split))

    def faults(self) -> list[str]:
        return faults_of(self.record, self.evaluation, rewards=self.rewards, prompts=self.prompts) if self.ok else []
