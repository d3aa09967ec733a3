"""The learning rates that a schedule gives, cycle by cycle, by the trainer's own functions (`agent.recipe.schedules`).

A course is a learner on a training of a number of equally long cycles. Under a budget of seconds or tokens cycles are
not equally long; the shape over the budget is the same.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from agent.recipe.schedules import learner_rate
from agent.recipe.schema import Learner, LrSchedule

DECAYS = (0.95, 0.85, 0.7)
STEPS = 64
"""Places in a cycle at which its mean is taken: a power of two, so that the mean of equal rates is that rate."""


@dataclass(frozen=True)
class Course:
    name: str
    learner: Learner
    steps: list[list[float]]
    """The rate at STEPS places of each cycle, evenly spread."""
    start: list[float]
    """At the first step of each cycle."""

    @functools.cached_property
    def mean(self) -> list[float]:
        """Over each cycle."""
        return [fmean(rates) for rates in self.steps]

    @functools.cached_property
    def end(self) -> list[float]:
        """At the last step of each cycle."""
        return [rates[-1] for rates in self.steps]

    @property
    def schedule(self) -> LrSchedule:
        return self.learner.lr_schedule

    @property
    def whole(self) -> float:
        """Mean over the training."""
        return fmean(self.mean)

    @property
    def left(self) -> float:
        """The last cycle's mean as a share of the peak rate."""
        return self.mean[-1] / self.learner.learning_rate


def course(name: str, learner: Learner, cycles: int) -> Course:
    steps = [
        [
            learner_rate(learner, cycle=cycle, spent=(cycle - 1 + (place + 0.5) / STEPS) / cycles)
            for place in range(STEPS)
        ]
        for cycle in range(1, cycles + 1)
    ]
    start = [learner_rate(learner, cycle=cycle, spent=(cycle - 1) / cycles) for cycle in range(1, cycles + 1)]
    return Course(name, learner, steps, start)


def usual_courses(learner: Learner, cycles: int) -> list[Course]:
    """What is compared: the constant rate, three decays and the other shapes, with rate, warm-up, floor and horizon of
    `learner`."""
    common = learner.lr_schedule.model_dump(include={"by", "horizon", "floor"})
    shapes: list[tuple[str, dict[str, Any]]] = [("constant", {"kind": "constant"})]
    shapes += [(f"exp {decay:g}", {"kind": "exponential", "decay": decay}) for decay in DECAYS]
    shapes.append(("step /2", {"kind": "step", "decay": 0.5, "step_every": 2}))
    shapes += [(kind, {"kind": kind}) for kind in ("wsd", "linear", "cosine")]
    return [course(name, with_schedule(learner, {**common, **keys}), cycles) for name, keys in shapes]


def with_schedule(learner: Learner, keys: dict[str, Any]) -> Learner:
    return learner.model_copy(update={"lr_schedule": LrSchedule.model_validate(keys)})


def in_words(learner: Learner) -> str:
    """`exponential, by cycle, decay 0.85, warmup 0.05`"""
    schedule = learner.lr_schedule
    parts: list[str] = [schedule.kind]
    for name in schedule.keys_read():
        value = getattr(schedule, name)
        if name == "by":
            parts.append(f"by {value}")
        elif name == "values":
            parts.append(f"values {' '.join(f'{one:g}' for one in value)}")
        elif name != "kind" and not (name == "floor" and value == 0):
            parts.append(f"{name} {value:g}")
    return ", ".join([*parts, *([f"warmup {learner.warmup:g}"] if learner.warmup else [])])


def yaml_block(learner: Learner) -> str:
    """A `learner:` section to paste into a recipe. It says all that is read, so that nothing comes from what the recipe
    extends."""
    schedule = learner.lr_schedule
    lines = ["learner:", f"  learning_rate: {_scalar(learner.learning_rate)}", "  lr_schedule:"]
    read = schedule.keys_read()
    lines += [f"    {name}: {_scalar(getattr(schedule, name))}" for name in read]
    lines += ["    values: null"] if "values" not in read else []  # a list that is extended is refused beside this kind
    lines.append(f"  warmup: {_scalar(learner.warmup)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    """As YAML. 5e-05 is a number in YAML 1.2 and text in 1.1, 5.0e-05 is a number in both."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, str):
        return value
    text = json.dumps(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else text
