"""What the ideas measured on the search split, one stair each: all that `status` and `watch` draw of a verdict.

A journal of thousands of ideas is looked at every few seconds, so nothing here computes an interval, or imports what
does (`night_steps.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.ledger.state import CampaignState, Experiment, Run


@dataclass(frozen=True)
class Stair:
    """Of the baseline or of an idea."""

    experiment: Experiment
    value: float | None
    """What it measured on search; None of a crash."""
    best: float | None
    """What the incumbent had on search once it was judged."""
    best_by_number: float | None = None
    """The same of the one that was judged last among it and those before it: a line over the numbers. Of a batch that
    was screened the losers are judged before what was kept of it, and have higher numbers."""

    @property
    def number(self) -> int:
        return self.experiment.number

    @property
    def title(self) -> str:
        return self.experiment.planned.subject if self.experiment.planned else ""

    @property
    def outcome(self) -> str:
        return self.experiment.judged.outcome if self.experiment.judged else "open"

    @property
    def kind(self) -> str:
        judged = self.experiment.judged
        return str((judged.numbers if judged else {}).get("kind") or "")

    @property
    def reason(self) -> str:
        judged = self.experiment.judged
        return judged.reason if judged else f"{self.experiment.status}, without an outcome so far"


def stairs_of(state: CampaignState) -> Iterator[Stair]:
    """The baseline and all ideas, by number."""
    on_search = SearchMetrics(state)
    best = _best_line(state, on_search)
    last = best.get(state.judged_order[-1]) if state.judged_order else None
    places = {number: place for place, number in enumerate(state.judged_order)}
    latest: int | None = None
    for number, experiment in sorted(state.experiments.items()):
        if number in places and (latest is None or places[number] > places[latest]):
            latest = number
        if experiment.planned or experiment.judged:
            value = None if experiment.outcome == "crash" else on_search.of_idea(experiment)
            yield Stair(experiment, value, best.get(number, last), best[latest] if latest is not None else None)


def key_of(run: Run) -> str:
    """The name of the run's folder; a run that was begun again has another id in the same folder."""
    if not run.words:
        return run.id
    name = run.words.out.rpartition("/")[2]  # a Path takes ten times as long, and there are thousands of runs
    return name if name not in ("", ".") else Path(run.words.out).name


def number_in(key: str) -> int:
    """The number of the experiment whose recipe the run had, with which its name begins (1000 is not 100); 0 where it
    begins with none."""
    number = key.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def no_more(state: CampaignState) -> set[str]:
    """Ids of runs that were set aside because somebody had changed their files: they count no more. The run that is
    made in the place of one has the same key."""
    return {str(told["void"]) for note in state.notes if "void" in (told := note.model_extra or {})}


class SearchMetrics:
    """What recipes measured on the search split, by what their runs told the journal."""

    def __init__(self, state: CampaignState):
        self._state = state
        self._by_key: dict[str, float] = {}
        aside = no_more(state)
        for run in state.runs.values():
            value = None if run.id in aside else _on_search(run)
            if value is not None:
                self._by_key[str(key_of(run))] = value

    def of_idea(self, experiment: Experiment) -> float | None:
        """Its run that was filtered; the baseline's repeats."""
        told = _told_runs(experiment)
        keys = list(told.get("search") or ()) if experiment.number else list(told.get("candidate") or ())
        if experiment.judged is None:
            keys = [str(key_of(run)) for run in experiment.attempt if _is_whole(run)]
        return self._mean(keys)

    def of_recipe(self, experiment: Experiment) -> float | None:
        """As the next ideas are compared with: a kept idea's confirming runs, where they were measured there."""
        confirmed = self._mean(list(_told_runs(experiment).get("candidate") or ()))
        return self.of_idea(experiment) if confirmed is None else confirmed

    def _mean(self, keys: Sequence[str]) -> float | None:
        known = [self._by_key[key] for key in keys if key in self._by_key]
        return statistics.fmean(known) if known else None


def _told_runs(experiment: Experiment) -> Mapping[str, Any]:
    return (experiment.judged.numbers.get("runs") or {}) if experiment.judged else {}


def _is_whole(run: Run) -> bool:
    words = run.words
    return words is not None and words.role in ("baseline", "experiment") and words.arm in (None, "candidate")


def _on_search(run: Run) -> float | None:
    if run.words is None or run.finished is None or run.finished.ended_by == "stop":
        return None
    value = ((run.finished.summary or {}).get("metrics") or {}).get("search")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _best_line(state: CampaignState, on_search: SearchMetrics) -> dict[int, float | None]:
    """By idea, what the incumbent had on search once it was judged."""
    line: dict[int, float | None] = {}
    best: float | None = None
    for number in state.judged_order:
        experiment = state.experiments[number]
        if experiment.outcome == "keep":
            value = on_search.of_recipe(experiment)
            best = best if value is None else value
        line[number] = best
    return line
