"""The run that goes on, and the machine under it, as a snapshot has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from agent.contract import Sample
from agent.ledger.journal import CampaignState, Run
from agent.report.snapshot import CardNow, MachineNow, Running
from agent.run.view import RunView
from agent.text import one_line

MOST_CURVE = 200
"""Cycles of the curve that are kept for showing."""


def running_of(
    view: RunView,
    *,
    run: str,
    what: str,
    seed: int | None,
    number: int | None,
    elapsed_s: float | None,
    predicted_s: float | None,
) -> Running:
    """Of a view that has just looked."""
    beat, cycles = view.heartbeat, view.cycles
    curve = tuple(row.select_metric for row in cycles if row.select_metric is not None)[-MOST_CURVE:]
    metric = beat.select_metric if beat else None
    return Running(
        run=one_line(run),
        what=one_line(what),
        seed=seed,
        number=number,
        phase=beat.phase if beat else "start",
        elapsed_s=elapsed_s,
        predicted_s=predicted_s,
        share=beat.budget_spent if beat else None,
        share_before=_share_before(view),
        cycle=beat.cycle if beat else None,
        note=one_line(beat.note or "") if beat else "",
        metric=metric if metric is not None else curve[-1] if curve else None,
        curve=curve,
        pass_rate=cycles[-1].pass_rate if cycles else None,
    )


def _share_before(view: RunView) -> float | None:
    """A trainer that does not tell has spent nothing before its first start."""
    told = view.heartbeat.budget_before if view.heartbeat else None
    if told is not None:
        return told
    return 0.0 if view.sample is None or view.sample.start <= 1 else None


class RunNow:
    """Looks at the run that the loop has just started, for whoever shows it."""

    def __init__(
        self,
        out: Path,
        *,
        what: str,
        seed: int | None,
        number: int | None,
        predicted_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._clock, self._began = RunView(out), clock, clock()
        self._run, self._what, self._seed, self._number, self._predicted = out.name, what, seed, number, predicted_s

    def look(self) -> tuple[Running, MachineNow | None]:
        """Never raises for what a trainer wrote."""
        self._view.look()
        running = running_of(
            self._view,
            run=self._run,
            what=self._what,
            seed=self._seed,
            number=self._number,
            elapsed_s=self._clock() - self._began,
            predicted_s=self._predicted,
        )
        return running, machine_of(self._view.sample) if self._view.sample else None


def what_runs(state: CampaignState, run: Run) -> str:
    """`#3 learning-rate: raise the rate`, `baseline 1 of 3`: as the loop calls it, where the journal tells."""
    told = (run.planned.model_extra or {}).get("what") if run.planned else None
    if told:
        return one_line(str(told))
    words = run.words
    experiment = state.experiments.get(words.experiment) if words and words.experiment else None
    arm = words.arm or words.role if words else ""
    if experiment is None or experiment.planned is None:
        return one_line(f"holdout, {arm}" if words and words.role == "holdout" else arm)
    role = " (confirmation)" if run.is_confirmation else ""
    return one_line(f"#{experiment.number} {experiment.planned.subject}{role}")


def machine_of(sample: Sample) -> MachineNow:
    return MachineNow(
        available_gb=sample.available_gb,
        total_gb=sample.total_gb,
        trainer_gb=sample.resident_gb,
        cores=sample.cores,
        cores_there=sample.cores_there,
        cards=tuple(
            CardNow(
                one_line(card.card),
                card.busy_percent,
                _sum(card.vram_used_gb, card.gtt_used_gb),
                _sum(card.vram_total_gb, card.gtt_total_gb),
                card.power_w,
                card.temperature_c,
            )
            for card in sample.cards
        ),
    )


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
