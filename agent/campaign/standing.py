"""Where a campaign stands, from its journal alone: the part of a snapshot that changes only with a line of it."""

from __future__ import annotations

import contextlib
import datetime
import functools
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

from agent.campaign.budget import RunCost, reserve_seconds
from agent.campaign.night_recipe import measuring_of
from agent.campaign.one_split import number_or_none, on_one_split
from agent.campaign.past import lead_now
from agent.campaign.stairs import Stair, stairs_of
from agent.ledger.journal import CampaignState, Experiment, Run
from agent.report.night import Standing
from agent.report.snapshot import Mark, Snapshot
from agent.text import one_line


def standing(state: CampaignState, *, name: str, at: float, process: int | None) -> Snapshot:
    """`process` holds the workspace; None where nobody does, so that what looks as if it ran was killed."""
    ideas = [one for number, one in sorted(state.experiments.items()) if number > 0]
    numbers, started = state.calibration, state.started
    incumbent = state.incumbent
    best = (incumbent.experiment if incumbent else None) or 0
    outcomes = Counter(one.outcome or "open" for one in ideas)
    lead = lead_now(state)
    cost = cost_so_far(state)
    measuring = measuring_of(state)
    stairs = list(stairs_of(state))
    base = next((stair.value for stair in stairs if not stair.number), None)
    stands = standing_of(state, running=process is not None)
    return Snapshot(
        at=at,
        campaign=one_line(name),
        state=stands,
        process=process,
        recipe=one_line(started.recipe_path) if started else "",
        metric=one_line(measuring.metric),
        minimize=measuring.minimize,
        budget_s=state.budget_s,
        used_s=state.consumed_s,
        left_s=time_left(state, used_s=state.consumed_s, at=at),
        arms=on_one_split(state, best, minimize=measuring.minimize),
        best_number=best,
        best_title=_title(state.experiments.get(best)) if best else "",
        best_commit=incumbent.commit if incumbent and numbers else None,
        lead=_metric(state.experiments[lead]) if lead != best else None,
        lead_number=lead if lead != best else None,
        lead_title=_title(state.experiments[lead]) if lead != best else "",
        sigma_run=number_or_none(numbers.get("sigma_run")),
        detectable=number_or_none(numbers.get("smallest_detectable")),
        counts={
            "ideas": len(ideas),
            **{what: outcomes[what] for what in ("keep", "discard", "crash", "open")},
        },
        marks=tuple(_mark(stair) for stair in stairs if stair.number),
        base=base if base is not None else number_or_none(numbers.get("baseline")),
        judged=tuple(number for number in state.judged_order if number > 0),
        idea_s=cost.total_s if cost else None,
        reserve_s=reserve_seconds(cost) if cost else None,
        stops=tuple(_stops(state.options)),
        stopped=one_line(state.stop_reason or ""),
        headline=one_line(str(state.ending.get("headline") or "")),
        next=f"raft-agent resume {name}" if stands in ("paused", "killed") else _after(state, name, stands),
        trouble=f"{state.unknown} lines of the journal are of a newer version" if state.unknown else "",
    )


def standing_of(state: CampaignState, *, running: bool) -> Standing:
    """A journal that says `running` without a process behind it is of a campaign that was killed."""
    if state.status == "running":
        return "running" if running else "killed"
    return state.status


def _after(state: CampaignState, name: str, stands: Standing) -> str:
    kept = any(one.outcome == "keep" for number, one in state.experiments.items() if number > 0)
    if stands != "finished":
        return ""
    return f"raft-agent finalize {name}" if kept else f"raft-agent log --campaign {name}"


def time_left(state: CampaignState, *, used_s: float, at: float) -> float | None:
    """Seconds until the budget or the deadline, whichever is nearer; None where there is neither, and of a campaign
    that is finished: it uses no more."""
    if state.status == "finished":
        return None
    left = [state.budget_s - used_s] if state.budget_s is not None else []
    deadline = state.options.get("deadline")
    if isinstance(deadline, str):
        with contextlib.suppress(ValueError):
            left.append(datetime.datetime.fromisoformat(deadline).timestamp() - at)
    return max(0.0, min(left)) if left else None


@functools.lru_cache(maxsize=20_000)
def _clean(text: str) -> str:
    """Cleaning takes longer than all else here, and thousands of ideas say the same at each look."""
    return one_line(text)


def _mark(stair: Stair) -> Mark:
    words = {"title": _clean(stair.title), "kind": _clean(stair.kind), "reason": _clean(stair.reason)}
    best = stair.best_by_number if stair.outcome != "open" else None  # the line goes on past what has no outcome
    return Mark(number=stair.number, outcome=stair.outcome, value=stair.value, best=best, **words)


def _title(experiment: Experiment | None) -> str:
    return one_line(experiment.planned.subject) if experiment and experiment.planned else ""


def _metric(experiment: Experiment) -> float | None:
    return number_or_none(experiment.judged.row.get("metric_value")) if experiment.judged else None


def _stops(options: dict[str, Any]) -> Iterator[str]:
    """Beside the time."""
    if options.get("max_experiments"):
        yield f"after {options['max_experiments']} ideas"
    if options.get("target"):
        yield f"at {one_line(str(options['target']))}"
    if options.get("only"):
        yield f"when {one_line(str(options['only']))} has no further idea"


# --- time --------------------------------------------------------------------------------------------------


def cost_so_far(state: CampaignState) -> RunCost | None:
    """Of a run of any recipe, medians of the whole trainings so far; None before the first one has ended. What the
    loop plans with is finer: it looks at each recipe."""
    trained, alone = [], []
    for run in state.runs.values():
        told = _whole(run)
        if told is None:
            continue
        elapsed, summary = told
        evaluate = float(summary.get("evaluate_s") or 0.0)
        if summary.get("train_s"):
            rest = elapsed - float(summary["train_s"]) - float(summary.get("rung_s") or 0.0) - evaluate
            trained.append((max(0.0, rest), float(summary["train_s"]), evaluate))
        elif summary.get("ended_by") == "evaluated":
            alone.append(elapsed)
    if not trained:
        return None
    overhead, train, evaluate = (statistics.median(column) for column in zip(*trained, strict=True))
    evaluation = min(statistics.median(alone), overhead + evaluate) if alone else None
    return RunCost(overhead, train, evaluate, alone_s=evaluation)


def _whole(run: Run) -> tuple[float, dict[str, Any]] | None:
    """(seconds, summary) of a run that ended by itself."""
    finished = run.finished
    if run.words is None or run.words.arm == "probe" or finished is None or not finished.summary:
        return None
    if finished.summary.get("stopped") or finished.elapsed_s is None:
        return None
    return finished.elapsed_s, finished.summary


def predicted_s(state: CampaignState, run: Run) -> float | None:
    """Seconds that a run was predicted to take: as the loop wrote it down, else as long as those before it."""
    told = number_or_none((run.planned.model_extra or {}).get("predicted_s")) if run.planned else None
    if told is not None:
        return told
    cost = cost_so_far(state)
    if cost is None or run.words is None:
        return None
    return cost.evaluation_s if run.words.arm == "untrained" or run.words.role == "holdout" else cost.total_s
