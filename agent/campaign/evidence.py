"""The runs of a campaign as measurements: arms of runs on a split, and the noise pooled over all of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from agent.campaign.runs import Done, Runner
from agent.campaign.session import Session
from agent.campaign.verdict import RunNoise, run_noise, scores_of
from agent.contract import EvalRow
from agent.recipe.schema import Evaluation

Arm = Literal["baseline", "search", "candidate", "incumbent"]
"""baseline: its calibrating repeats. search: the run that was filtered. candidate: its confirming runs.
incumbent: fresh confirming runs of a recipe that others challenge."""


def arm_scores(runs: Sequence[Done], *, split: str, evaluation: Evaluation) -> list[dict[str, list[float]]]:
    """Scores of each run on the split; runs that were not evaluated there are left out."""
    scored = [scores_of(run.record.evals, split=split, evaluation=evaluation) for run in runs]
    return [scores for scores in scored if scores]


class Evidence:
    """Remembers which runs belong to which recipe and arm. Experiment 0 is the baseline."""

    def __init__(self, evaluation: Evaluation):
        self.evaluation = evaluation
        self._runs: dict[tuple[int, Arm], list[Done]] = defaultdict(list)

    def add(self, run: Done, *, experiment: int, arm: Arm) -> None:
        """Adding a run again changes nothing."""
        known = self._runs[experiment, arm]
        if all(one.key != run.key for one in known):
            known.append(run)

    def baseline(self) -> list[Done]:
        return list(self._runs[0, "baseline"])

    def candidate(self, experiment: int) -> list[Done]:
        """The confirming runs of an experiment as candidate."""
        return list(self._runs[experiment, "candidate"])

    def fresh_incumbent(self, experiment: int) -> list[Done]:
        """Confirming runs of a recipe as incumbent, with seeds it was not kept for."""
        return list(self._runs[experiment, "incumbent"])

    def search_runs(self, experiment: int) -> list[Done]:
        """Runs of a recipe that were measured on the search split, those not chosen for their result first.

        The baseline has its repeats; a kept recipe its fresh runs as incumbent, until there are any its confirming
        runs, which favour it and so make the filter stricter for its challengers.
        """
        for runs in (
            [*self._runs[experiment, "baseline"], *self._runs[experiment, "incumbent"]],
            self._runs[experiment, "candidate"],
            self._runs[experiment, "search"],
        ):
            searched = [run for run in runs if self.search_rows(run)]
            if searched:
                return searched
        return []

    def last_run(self, experiment: int) -> Done | None:
        """The run whose telemetry stands for the recipe."""
        runs = self.search_runs(experiment)
        return runs[-1] if runs else None

    def usual_tokens_per_s(self, experiment: int) -> float | None:
        """Median throughput of the repeated runs of a recipe. None for one that ran once: another recipe's would
        not do, since a longer prompt or more training changes what a token costs."""
        runs = [run for (number, _), some in list(self._runs.items()) if number == experiment for run in some]
        known = [run.summary.tokens_per_s for run in runs if run.summary and run.summary.tokens_per_s]
        return statistics.median(known) if len(known) > 1 else None

    @property
    def noise(self) -> RunNoise | None:
        """Run noise pooled over all recipes that ran with several fresh seeds.

        The run that let an idea through the filter was chosen for being good and does not count.
        """
        groups = [arm_scores(self._runs[0, "baseline"], split="search", evaluation=self.evaluation)]
        for (_, arm), runs in list(self._runs.items()):
            if arm in ("candidate", "incumbent"):
                groups.append(arm_scores(runs, split="confirm", evaluation=self.evaluation))
        return run_noise(groups)

    def search_rows(self, run: Done) -> list[EvalRow]:
        return [row for row in run.record.evals if row.split == "search"]


def gather(session: Session, runner: Runner, evidence: Evidence) -> None:
    """Read back what earlier sessions of the campaign measured."""
    for key, words in runner.finished_well():
        number = int(key[:3]) if key[:3].isdigit() else 0
        if words.arm in ("candidate", "incumbent"):
            arm: Arm = "search" if words.role == "experiment" else words.arm  # type: ignore[assignment]  # tested above
            evidence.add(runner.read_back(key), experiment=number, arm=arm)
        elif words.role == "baseline" and words.arm is None:
            evidence.add(runner.read_back(key), experiment=0, arm="baseline")
