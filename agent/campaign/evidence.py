"""The runs of a campaign as measurements: arms of runs on a split, and the noise pooled over all of them."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, get_args

from agent.campaign.comparison import Comparison, RunNoise, compare, group_noise, interval_of, pool
from agent.campaign.direction import as_measured, ends_as_measured
from agent.campaign.lab import Arm, Measured
from agent.campaign.scores import Scores


def arm_scores(runs: Sequence[Measured], split: str, metric: str | None = None) -> list[Scores]:
    """Scores of each run on the split; runs that were not evaluated there are left out."""
    scored = [run.scores(split, metric) for run in runs]
    return [scores for scores in scored if scores is not None]


def estimate_of(scores: Sequence[Scores], noise: RunNoise | None, *, minimize: bool) -> dict[str, float]:
    """Value, ends of its 95% interval and number of runs, in the metric's own direction."""
    mean, low, high = interval_of(scores, noise)
    mean, (low, high) = as_measured(mean, minimize=minimize), ends_as_measured(low, high, minimize=minimize)
    return {"value": mean, "low": low, "high": high, "runs": len(scores)}


M = TypeVar("M", bound=Measured)


class Evidence(Generic[M]):
    """Remembers which runs belong to which recipe and arm. Experiment 0 is the baseline."""

    def __init__(self) -> None:
        self._runs: dict[tuple[int, Arm], list[M]] = defaultdict(list)
        self._noise: dict[tuple[int, Arm, str | None], tuple[int, RunNoise | None]] = {}
        self.aside: dict[str, str] = {}
        """Keys of runs of a confirmation that count for nothing, each with why."""
        self.paces: dict[str, float] = {}
        """Speed of each run that was looked at, over the usual one, in order of time."""

    def add(self, run: M, *, experiment: int, arm: Arm) -> None:
        """Adding a run again changes nothing."""
        if not self.has(run, experiment=experiment, arm=arm):
            self._runs[experiment, arm].append(run)

    def replace_runs(self, experiment: int, other: Callable[[M], M]) -> None:
        """Each run of the experiment by another one of the same key."""
        for arm in get_args(Arm):
            if (experiment, arm) in self._runs:
                self._runs[experiment, arm] = [other(run) for run in self._runs[experiment, arm]]

    def has(self, run: M, *, experiment: int, arm: Arm) -> bool:
        return any(one.key == run.key for one in self._runs.get((experiment, arm), ()))

    @property
    def count(self) -> int:
        """Runs, all in all."""
        return sum(len(runs) for runs in self._runs.values())

    def runs(self, experiment: int, arm: Arm) -> list[M]:
        return list(self._runs.get((experiment, arm), ()))

    def baseline(self) -> list[M]:
        return self.runs(0, "baseline")

    def candidate(self, experiment: int) -> list[M]:
        """The confirming runs of an experiment as candidate."""
        return self.runs(experiment, "candidate")

    def fresh_incumbent(self, experiment: int) -> list[M]:
        """Confirming runs of a recipe as incumbent, with seeds it was not kept for."""
        return self.runs(experiment, "incumbent")

    def search_runs(self, experiment: int) -> list[M]:
        """Runs of a recipe that stand for it on the search split: the baseline's repeats; of a kept recipe its
        confirming runs, which favour it a little and so make the filter stricter for its challengers."""
        for runs in (
            self.runs(experiment, "baseline"),
            self.runs(experiment, "candidate"),
            self.runs(experiment, "search"),
        ):
            searched = [run for run in runs if run.scores("search") is not None]
            if searched:
                return searched
        return []

    def last_run(self, experiment: int) -> M | None:
        """The run whose telemetry stands for the recipe."""
        runs = self.search_runs(experiment)
        return runs[-1] if runs else None

    def usual_tokens_per_s(self, experiment: int) -> float | None:
        """Median throughput of the repeated runs of a recipe. None for one that ran once: another recipe's would
        not do, since a longer prompt or more training changes what a token costs."""
        known = self.speeds(experiment)
        return statistics.median(known) if len(known) > 1 else None

    def speeds(self, experiment: int, *, but: str = "") -> list[float]:
        """Tokens a second of the runs of a recipe, the one that was filtered only where there is no other. `but`: the
        key of one that is left out."""
        arms = [(arm, some) for (number, arm), some in list(self._runs.items()) if number == experiment and some]
        runs = [run for arm, some in arms for run in some if arm != "search" or len(arms) == 1]
        return [run.summary.tokens_per_s for run in runs if run.key != but and run.summary and run.summary.tokens_per_s]

    def pace(self, *, but: str = "") -> float:
        """Of the machine now: what two of the last three runs at least had, 1 where it is as it was."""
        last = [1.0, 1.0, 1.0, *(pace for key, pace in self.paces.items() if key != but)][-3:]
        return statistics.median(last)

    def speed_spread(self, *, but: str = "") -> tuple[float, int]:
        """Standard deviation of tokens a second between runs of one recipe, as a share of their mean, with its degrees
        of freedom."""
        squares, df = 0.0, 0
        for experiment in {number for number, _ in self._runs}:
            known = self.speeds(experiment, but=but)
            if len(known) > 1:
                mean = statistics.fmean(known)
                squares += math.fsum((speed / mean - 1) ** 2 for speed in known)
                df += len(known) - 1
        return (squares / df) ** 0.5 if df else 0.0, df

    # --- comparisons ----------------------------------------------------------------------------------------

    @property
    def noise(self) -> RunNoise | None:
        """Run noise of the metric."""
        return self.noise_of()

    def noise_of(self, metric: str | None = None) -> RunNoise | None:
        """Run noise pooled over all recipes that ran with several fresh seeds.

        The run that let an idea through the filter was chosen for being good and does not count.
        """
        found = [self._group(0, "baseline", "search", metric)]
        for number, arm in list(self._runs):
            if arm in ("candidate", "incumbent"):
                found.append(self._group(number, arm, "confirm", metric))
        return pool([noise for noise in found if noise is not None])

    def _group(self, experiment: int, arm: Arm, split: str, metric: str | None) -> RunNoise | None:
        runs = self._runs.get((experiment, arm), [])
        known = self._noise.get((experiment, arm, metric))
        if known is None or known[0] != len(runs):
            known = len(runs), group_noise(arm_scores(runs, split, metric))
            self._noise[experiment, arm, metric] = known
        return known[1]

    def on_search(self, run: M, incumbent: int, metric: str | None = None) -> Comparison:
        """An idea's run against the incumbent's, on the split that filters."""
        theirs = [one for one in self.search_runs(incumbent) if one.key != run.key]
        ours = arm_scores([run], "search", metric)
        return compare(ours, arm_scores(theirs, "search", metric), self.noise_of(metric))

    def standing(self, incumbent: int) -> list[M]:
        """All runs that a challenger is confirmed against: fresh ones, and those for which the incumbent was kept
        itself, which favour it a little and so can only hold a challenger back."""
        return [*self.candidate(incumbent), *self.fresh_incumbent(incumbent)]

    def on_confirm(self, number: int, incumbent: int, metric: str | None = None) -> Comparison:
        """The confirming runs of both, on prompts that the search never saw."""
        ours = arm_scores(self.candidate(number), "confirm", metric)
        theirs = arm_scores(self.standing(incumbent), "confirm", metric)
        return compare(ours, theirs, self.noise_of(metric))

    def on_comparator(self, number: int) -> Comparison:
        """An idea's confirming runs against the same recipe at a constant rate."""
        ours = arm_scores(self.candidate(number), "confirm")
        return compare(ours, arm_scores(self.runs(number, "comparator"), "confirm"), self.noise)

    def arms(self, number: int, *, minimize: bool) -> dict[str, dict[str, float]]:
        """By split, what a recipe's own runs measured, with the 95% interval over prompts and runs, in the metric's own
        direction. For people: a comparison on the same prompts is much sharper than two of these."""
        found = {}
        for split, runs in (("search", self.search_runs(number)), ("confirm", self.standing(number))):
            scores = arm_scores(runs, split)
            if scores:
                found[split] = estimate_of(scores, self.noise, minimize=minimize)
        return found

    def over_baseline(self, number: int) -> dict[str, Comparison]:
        """By split, a kept recipe against the baseline on the same prompts, all that was kept on the way included. For
        people: no verdict rests on it. Left out is a split on which one of the two was not measured."""
        ours, theirs = self.standing(number), {"search": self.baseline(), "confirm": self.fresh_incumbent(0)}
        found = {}
        for split, runs in theirs.items():
            arms = arm_scores(ours, split), arm_scores(runs, split)
            if all(arms):
                with contextlib.suppress(ValueError):  # no prompts in common: something was repaired on the way
                    found[split] = compare(*arms, self.noise)
        return found
