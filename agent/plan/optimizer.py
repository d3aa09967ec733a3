"""Where several numbers of one axis matter together: the point to try next, from what the ledger has measured.

The playbook says which numbers an axis has (what its hypotheses `scale`); those that attempts have moved and measured
are its knobs. The sampler is Optuna's Gaussian process with expected improvement and noise (Jones et al. 1998), seeded
and warm-started with this campaign's attempts. It draws in a process of its own (`sampler.py`) and may be absent.
Not TPE: from the five to ten points that a night has on an axis it draws hardly better than at random.

The value of a trial is the attempt's difference from the incumbent that it was measured against, plus what keeps that
moved knobs had gained until then, as if such gains added up. A crash, and what was given up in its training, is told
as the worst that was measured: trials that are told as failed or pruned are passed over.

What it does not do: use earlier campaigns (their incumbents' values are not all known), or decide whether a point may
be tried (`proposal.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.plan.fit import lacking
from agent.plan.memory import TOLERANCE, Attempt, Constraint, distance, flat, is_number, way
from agent.plan.sampler import sampler_here
from agent.plan.schema import Hypothesis, Playbook, Variant
from agent.recipe.change import LEARNING_RATE_KEYS, TEMPERATURE_KEYS
from agent.recipe.files import bounds_of, get_key
from agent.recipe.schema import Recipe

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

LEAST_KNOBS = 2
LEAST_ATTEMPTS = 4
REACH = 1.05
"""How far from the incumbent's value a knob is looked at, in the playbook's smallest full step that way: up to 2.1
times where a step is a factor 2. So much beyond the step that what it has shown lies inside; what lies further was seen
by nobody."""
FARTHEST = 2.5
"""... but no further than this factor, where a step is not longer than that."""
ROUNDED = 1.01
"""A step's value is rounded, and has to lie inside all the same."""


@dataclass(frozen=True)
class Knob:
    key: str
    now: float
    low: float
    high: float
    whole: bool


@dataclass(frozen=True)
class Trial:
    """A point in the knobs' space that was tried."""

    point: Mapping[str, float]
    gain: float | None
    """Above the campaign's first incumbent, larger is better; None where it crashed or was given up."""


@dataclass(frozen=True)
class _Steps:
    """As factors above 1."""

    down: float
    up: float


@dataclass(frozen=True)
class Refinement:
    """An axis whose numbers are worth looking at together."""

    axis: str
    knobs: tuple[Knob, ...]
    trials: tuple[Trial, ...]
    forms: tuple[tuple[Hypothesis, Variant], ...]
    """The axis' own numeric forms of these knobs."""
    bracketed: str
    """The first knob that was tried both ways; empty where none was."""

    @property
    def lost(self) -> int:
        """Trials that crashed or were given up."""
        return sum(trial.gain is None for trial in self.trials)


def refinement_of(
    axis: str,
    playbook: Playbook,
    recipe: Recipe,
    attempts: Sequence[Attempt],
    *,
    machine: Machine | None,
    constraints: Sequence[Constraint] = (),
) -> Refinement | None:
    """The axis' knobs and what is known of them; None where fewer than two matter or too little was tried.

    `attempts` are those of this campaign in order of time; `constraints` those that still hold.
    """
    forms = _numeric_forms(axis, playbook, recipe, machine)
    steps = _steps(forms)
    measured = [one for one in attempts if not one.open and _only_moves(one, steps)]
    known = {key for one in measured if one.delta is not None for key in _ran(one)}
    knobs = tuple(
        knob
        for key, both in steps.items()
        if key in known and (knob := _knob(key, both, recipe, constraints)) is not None
    )
    keys = [knob.key for knob in knobs]
    usable = [one for one in measured if _only_moves(one, keys)]
    if len(knobs) < LEAST_KNOBS or len(usable) < LEAST_ATTEMPTS:
        return None
    return Refinement(
        axis=axis,
        knobs=knobs,
        trials=tuple(_trials(knobs, attempts, sign=-1 if recipe.evaluation.minimize else 1)),
        forms=tuple((h, v) for h, v in forms if set(v.scale) & set(keys)),
        bracketed=next((key for key in keys if {way(*_ran(one).get(key, (0, 0))) for one in usable} >= {1, -1}), ""),
    )


def _numeric_forms(
    axis: str, playbook: Playbook, recipe: Recipe, machine: Machine | None
) -> list[tuple[Hypothesis, Variant]]:
    return [
        (hypothesis, variant)
        for hypothesis in playbook.hypotheses.values()
        if playbook.axis_of[hypothesis.id] == axis
        for variant in hypothesis.variants
        # what sets other keys too (adapters at ten times the rate) says nothing about the numbers alone
        if variant.scale
        and not (variant.set or variant.toggle)
        and lacking(hypothesis, variant, recipe, machine=machine) is None
    ]


def _steps(forms: Iterable[tuple[Hypothesis, Variant]]) -> dict[str, _Steps]:
    """Key -> its smallest full step each way. Learning rate and temperature never move together: of an axis with both
    the learning rate stays."""
    factors: dict[str, list[float]] = {}
    for _, variant in forms:
        for key, factor in variant.scale.items():
            factors.setdefault(key, []).append(factor)
    if any(key.startswith(LEARNING_RATE_KEYS) for key in factors):
        factors = {key: some for key, some in factors.items() if not key.startswith(TEMPERATURE_KEYS)}
    return {key: _smallest(some) for key, some in factors.items()}


def _smallest(factors: Sequence[float]) -> _Steps:
    """Where the playbook has one way only, the other is as long."""
    up = min((factor for factor in factors if factor > 1), default=None)
    down = min((1 / factor for factor in factors if factor < 1), default=None)
    return _Steps(down or up or 1.0, up or down or 1.0)


def _knob(key: str, steps: _Steps, recipe: Recipe, constraints: Sequence[Constraint]) -> Knob | None:
    """The knob with its range, or None where there is no room around a positive number."""
    now = get_key(recipe, key)
    if not is_number(now) or now <= 0 or key in recipe.unread_keys():
        return None
    limits = bounds_of(key)
    lows = [now / _reach(steps.down), *(limits[name] for name in ("ge", "gt") if name in limits)]
    highs = [now * _reach(steps.up), *(limits[name] for name in ("le", "lt") if name in limits)]
    for constraint in constraints:
        if constraint.key == key:
            lows += [constraint.at_least] if constraint.at_least is not None else []
            highs += [constraint.at_most] if constraint.at_most is not None else []
    low, high = max(lows), min(highs)
    return Knob(key, now, low, high, isinstance(now, int)) if low < high else None


def _reach(step: float) -> float:
    return max(ROUNDED * step, min(math.pow(step, REACH), FARTHEST))


def _ran(attempt: Attempt) -> dict[str, tuple[Any, Any]]:
    return flat(attempt.ran or attempt.values)


def _only_moves(attempt: Attempt, keys: Iterable[str]) -> bool:
    """It moves some of the keys, as numbers, and nothing else, so its result is theirs."""
    moves = _ran(attempt)
    told = attempt.delta is not None or attempt.outcome == "crash" or attempt.given_up
    return told and bool(moves) and moves.keys() <= set(keys) and all(way(*move) for move in moves.values())


def _trials(knobs: Sequence[Knob], attempts: Sequence[Attempt], *, sign: int) -> Iterator[Trial]:
    """What was measured inside the knobs' ranges, the first incumbent at 0 before all others."""
    keys = {knob.key for knob in knobs}
    bases = _incumbents(knobs, attempts)
    start = bases[0] if bases else {knob.key: knob.now for knob in knobs}
    gain = 0.0
    found = [Trial(start, gain)]
    for attempt, base in zip(attempts, bases, strict=True):
        moves = _ran(attempt)
        if not attempt.open and _only_moves(attempt, keys):
            point = base | {key: new for key, (_, new) in moves.items()}
            lost = attempt.outcome == "crash" or attempt.delta is None
            found.append(Trial(point, None if lost else gain + sign * (attempt.delta or 0.0)))
        if attempt.outcome == "keep" and moves.keys() & keys:
            gain += sign * (attempt.delta or 0.0)
    yield from (trial for trial in found if _inside(trial.point, knobs))


def _incumbents(knobs: Sequence[Knob], attempts: Sequence[Attempt]) -> list[dict[str, float]]:
    """The knobs' values of the incumbent that each attempt was measured against: from now backwards, keeps undone."""
    values = {knob.key: knob.now for knob in knobs}
    found = []
    for attempt in reversed(attempts):
        if attempt.outcome == "keep":
            undone = {key: old for key, (old, _) in _ran(attempt).items() if key in values and is_number(old)}
            values = values | undone
        found.append(values)
    return found[::-1]


def _inside(point: Mapping[str, float], knobs: Iterable[Knob]) -> bool:
    return all(knob.low <= point[knob.key] <= knob.high for knob in knobs)


def points(refinement: Refinement, *, seed: int, most: int) -> Iterator[dict[str, float]]:
    """Up to `most` points, the most promising first; key -> value for the knobs that leave the incumbent's value.

    Two significant digits, whole numbers for whole keys; a value within 10% of the incumbent's is left as it is. A
    point that is not taken is told as a bad one, so the next lies elsewhere. NoSampler where Optuna is absent or fails.
    """
    sampler, worst = sampler_here(), _worst(refinement)
    names = [knob.key for knob in refinement.knobs]
    trials = [
        ({name: float(trial.point[name]) for name in names}, worst if trial.gain is None else trial.gain)
        for trial in refinement.trials
    ]
    knobs = {knob.key: (knob.low, knob.high) for knob in refinement.knobs}
    sampler.ask({"knobs": knobs, "trials": trials, "worst": worst, "seed": seed})
    for _ in itertools.repeat(None, most):
        yield _as_moves(refinement.knobs, sampler.ask({"next": True})["point"])


def _worst(refinement: Refinement) -> float:
    """Of what was measured; the first incumbent's 0 is among it, or would be."""
    return min((trial.gain for trial in refinement.trials if trial.gain is not None), default=0.0)


def _as_moves(knobs: Iterable[Knob], params: Mapping[str, float]) -> dict[str, float]:
    moves: dict[str, float] = {}
    for knob in knobs:
        value = float(f"{params[knob.key]:.2g}")
        value = round(value) if knob.whole else value
        if value > 0 and distance(value, knob.now) >= TOLERANCE:
            moves[knob.key] = value
    return moves
