"""Where the seconds of a campaign went: each consumed second in one slice, so that they add up to what was consumed.

A run has the seconds of the campaign's own clock between its start and its end, and no more than it says it took; what
two runs would both have goes to the first. The rest is `idle`: the agent's own share (planning, reading, git) and
waiting. Of a run whose session was killed, the time until the next run began is taken, or what is consumed now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.ledger.state import CampaignState, Run
from agent.report.night import TimeSlice

SLICES = ("train", "evaluate", "start-up", "confirm", "calibrate", "holdout", "crashed", "idle")
BY_ROLE = {"confirm": "confirm", "baseline": "calibrate", "holdout": "holdout"}


def time_slices(state: CampaignState) -> tuple[TimeSlice, ...]:
    """In the order of SLICES; those without a second are left out."""
    spent = dict.fromkeys(SLICES, 0.0)
    told: dict[str, tuple[float, float]] = {}
    for run, seconds in _seconds_of_runs(state):
        for name, share in _shares(run, seconds, told):
            spent[name] += share
    spent["idle"] = max(0.0, state.consumed_s - sum(spent.values()))
    return tuple(TimeSlice(name, seconds) for name, seconds in spent.items() if seconds > 0)


def _seconds_of_runs(state: CampaignState) -> Iterator[tuple[Run, float]]:
    """Each run that was started, with the seconds that are its own."""
    started = [(_began(run), run) for run in state.runs.values() if run.started or run.finished]
    known = sorted(((at, run) for at, run in started if at is not None), key=lambda pair: pair[0])
    taken = 0.0
    for place, (at, run) in enumerate(known):
        after = known[place + 1][0] if place + 1 < len(known) else state.consumed_s
        begin, end = max(taken, at), min(_ended(run, after), state.consumed_s)
        took = run.finished.elapsed_s if run.finished else None
        seconds = max(0.0, end - begin)
        yield run, seconds if took is None else min(seconds, took)
        taken = max(taken, end)
    left = max(0.0, state.consumed_s - taken)
    for run in (run for at, run in started if at is None):  # journals that do not tell the clock at each line
        seconds = min(left, (run.finished.elapsed_s if run.finished else None) or 0.0)
        left -= seconds
        yield run, seconds


def _began(run: Run) -> float | None:
    event = run.started or run.planned
    if event is not None and event.consumed_s is not None:
        return event.consumed_s
    ended = run.finished
    if ended is None or ended.consumed_s is None or ended.elapsed_s is None:
        return None
    return max(0.0, ended.consumed_s - ended.elapsed_s)


def _ended(run: Run, after: float) -> float:
    """`after`: when the next run began."""
    ended = run.finished
    if ended is None or ended.consumed_s is None or ended.ended_by == "lost":
        return after
    return ended.consumed_s


def _shares(run: Run, seconds: float, told: dict[str, tuple[float, float]]) -> Iterator[tuple[str, float]]:
    """Its seconds by slice. `told`: what trainings said of their folder before, which a further start repeats."""
    ended, words = run.finished, run.words
    summary: dict[str, Any] = (ended.summary if ended else None) or {}
    if ended is not None and _crashed(run):
        yield "crashed", seconds
        return
    if words is not None and words.role in BY_ROLE:
        yield BY_ROLE[words.role], seconds
        return
    if not summary:  # it runs, or was stopped before it could say
        yield "train", seconds
        return
    folder = words.out if words else run.id
    before = told.get(folder, (0.0, 0.0))
    measured = sum(_number(summary, name) for name in ("select_s", "evaluate_s", "rung_s"))
    now = _number(summary, "train_s"), measured
    told[folder] = max(before[0], now[0]), max(before[1], now[1])
    train = min(seconds, max(0.0, now[0] - before[0]))
    evaluate = min(seconds - train, max(0.0, now[1] - before[1]))
    if summary.get("select_s") is None and summary.get("load_s") is not None:
        # a trainer that does not tell: what is neither training nor start-up is the `select` split, most of it
        evaluate = max(evaluate, seconds - train - _outside(summary, seconds))
    yield "train", train
    yield "evaluate", evaluate
    yield "start-up", seconds - train - evaluate


def _outside(summary: dict[str, Any], seconds: float) -> float:
    """Seconds before the trainer ran, after it, and until its model was loaded."""
    return _number(summary, "load_s") + max(0.0, seconds - _number(summary, "elapsed_s"))


def _crashed(run: Run) -> bool:
    """It died by itself. What the campaign or a person stopped, and what a killed session left, did not."""
    ended = run.finished
    if ended is None or ended.ended_by in ("stop", "lost"):
        return False
    return ended.summary is None or bool((ended.model_extra or {}).get("diagnosis"))


def _number(summary: dict[str, Any], name: str) -> float:
    value = summary.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
