"""Schedules across cycles, shared by the trainer and the `lr` calculator. Pure functions, factors in [0, 1+].

A cycle is numbered from 1. Under `by: budget` the share of the budget spent stands in for it: share 0 is the
start of cycle 1, share 1 the end of cycle `horizon`.
"""

from __future__ import annotations

import math

from agent.recipe.schema import Learner, LrSchedule, Recipe, TemperatureSchedule, ThresholdSchedule


def lr_factor(schedule: LrSchedule, *, cycle: int, spent: float) -> float:
    """Factor on the peak learning rate in `cycle` (from 1), with share `spent` of the budget behind it."""
    if schedule.by == "cycle":
        done = float(cycle - 1)
    else:
        done = min(max(spent, 0.0), 1.0) * schedule.horizon
    return max(schedule.floor, _shape(schedule, done))


def _shape(schedule: LrSchedule, done: float) -> float:
    """The bare factor after `done` cycles (fractional under `by: budget`)."""
    match schedule.kind:
        case "constant":
            return 1.0
        case "exponential":
            return float(schedule.decay**done)
        case "step":
            return float(schedule.decay ** math.floor(done / schedule.step_every))
        case "wsd":
            decay_cycles = schedule.decay_share * schedule.horizon
            left = (schedule.horizon - done) / decay_cycles
            return min(1.0, max(0.0, left))
        case "linear":
            return max(0.0, 1.0 - done / schedule.horizon)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done / schedule.horizon)))
        case "list":
            values = schedule.values or [1.0]
            return values[min(int(done), len(values) - 1)]


def warmup_factor(warmup: float, spent: float, first: float = 0.0) -> float:
    """Rises from just above 0 to 1 over the `warmup` share of what the budget had left at the first optimizer step.

    Tied to the share and not to a step count, so it always fits the training there will be. `first` is the share that
    was spent before that step: under a budget of seconds or tokens the first samples, which may be more than `warmup`.
    """
    since = (spent - first) / (1.0 - first) if first < 1.0 else 1.0
    if warmup <= 0 or since >= warmup:
        return 1.0
    return max(since / warmup, 0.01)


def learning_rate(recipe: Recipe, *, cycle: int, spent: float, first: float = 0.0) -> float:
    """Learning rate of an optimizer step in `cycle` after share `spent` of the budget; `first`: see `warmup_factor`."""
    return learner_rate(recipe.learner, cycle=cycle, spent=spent, first=first)


def learner_rate(learner: Learner, *, cycle: int, spent: float, first: float = 0.0) -> float:
    """`learning_rate`, from the learner's keys alone."""
    factor = lr_factor(learner.lr_schedule, cycle=cycle, spent=spent)
    return learner.learning_rate * factor * warmup_factor(learner.warmup, spent, first)


def temperature(start: float, schedule: TemperatureSchedule | None, spent: float) -> float:
    """Sampling temperature after share `spent` of the budget."""
    if schedule is None:
        return start
    share = min(max(spent, 0.0), 1.0)
    if schedule.kind == "linear":
        return start + (schedule.end - start) * share
    return float(start * (schedule.end / start) ** share)


def threshold(start: float, schedule: ThresholdSchedule | None, spent: float) -> float:
    """Reward threshold after share `spent` of the budget: `start` at 0, the schedule's end at 1, linear between."""
    if schedule is None:
        return start
    share = min(max(spent, 0.0), 1.0)
    between = start * (1.0 - share) + schedule.end * share
    # Never past an end by rounding: rewards of exactly the threshold are the rule.
    return min(max(between, min(start, schedule.end)), max(start, schedule.end))
