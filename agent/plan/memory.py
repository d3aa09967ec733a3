"""What was tried, and what follows from it for the next idea: dead ends and their premises, weights, narrower steps.

An idea is what it moves, whatever the hypothesis is called (`same_idea`). One that was measured and not kept, or
crashed, is a dead end: it is not proposed again, in this campaign or (with the same recipe file) in a later one. Its
result leans on a premise: the keys it moved, and the keys that the playbook says they interact with (`premises`).
Once a later keep has moved one of these, and it still stands elsewhere than it did then, the idea may come again.

What it does not do: notice what a person has edited between two campaigns, or forget with time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from agent.plan.schema import Hypothesis, Playbook, Premise, Variant
from agent.recipe.change import short
from agent.recipe.files import field_at, get_key
from agent.recipe.schema import Recipe

TOLERANCE = math.log(1.1)
"""Numbers nearer than 10% are the same target."""
SAME_STEP = 0.5
"""... unless they are further apart than this share of the shorter step: a step that was halved is another idea."""
TABLE_DIGITS = 1e-3
"""Relative difference that a number may get on its way through results.tsv, which has four digits of it."""
SHOWN_KEYS = 4
TRIED = "tried as"
"""How the reason against a dead end begins."""

FRUITLESS_TRIES = 3
"""Tries in a row on one axis without success after which the axis is changed."""
FRUITLESS_FACTOR = 0.35
FAILED_AGAIN = 0.6
"""For each earlier failure of the same hypothesis."""
EARLIER_WEIGHT = 0.5
"""Of an attempt in an earlier campaign, or before the incumbent was last replaced, beside a fresh one."""
NARROWEST = 0.25

Outcome = Literal["keep", "discard", "crash"]
Moves = Mapping[str, tuple[Any, Any]]
"""Key -> (from, to)."""
UNDERPOWERED = "underpowered"
OPEN_REASONS = (UNDERPOWERED, "tainted", "interrupted", "superseded")
"""Reasons under which an idea counts as not yet tried out, and says nothing about its axis. An underpowered try still
speaks against further forms of the same hypothesis for now: it did not get the training going either."""


REGRESSED = "regressed"
"""How the reason of one that is worse begins."""


@dataclass(frozen=True)
class Attempt:
    """An idea that was tried, in this campaign or an earlier one."""

    hypothesis: str
    axis: str
    values: Moves
    signature: str
    """Recipe.signature() of what was run; empty where it is not known."""
    outcome: Outcome
    reason: str = ""
    delta: float | None = None
    """Candidate minus incumbent, in units of the metric."""
    metric: str = ""
    """Its name; a reward's difference is told in its own unit, that of any other in percentage points."""
    crash_class: str | None = None
    campaign: str | None = None
    number: int | None = None
    """Within its campaign."""
    variant: str = ""
    symptom: str | None = None
    """The symptom that it answered best; None where it was tried without one."""
    ran: Moves = field(default_factory=dict)
    """What differed from the incumbent after fixes; empty where it ran as it was planned."""
    leads: bool = False
    """Its outcome is `keep` because ideas build on it, not because it was confirmed."""

    @property
    def open(self) -> bool:
        return self.outcome != "keep" and self.reason.startswith(OPEN_REASONS)

    @property
    def given_up(self) -> bool:
        """Its training was ended because it could not win any more, before anything was measured on `search`."""
        return self.outcome == "discard" and self.delta is None and self.reason.startswith(REGRESSED)

    @property
    def dead_end(self) -> bool:
        return self.outcome != "keep" and not self.open

    @property
    def stands(self) -> str:
        """How what it changed is in the present recipe: `kept`, or `leading` without a verdict so far."""
        return "leading" if self.leads else "kept"

    def name(self, campaign: str | None) -> str:
        """`#3 lr-peak/up`, with the campaign where it is another one than `campaign`."""
        number = f"#{self.number} " if self.number is not None else ""
        form = f"/{self.variant}" if self.variant else ""
        where = f" in {self.campaign}" if self.campaign not in (None, campaign) else ""
        return f"{number}{self.hypothesis}{form}{where}"

    @property
    def result(self) -> str:
        """`discard, -1.2pp`, `crash, oom`."""
        told = self.crash_class if self.outcome == "crash" else None
        if told is None and self.delta is not None:
            told = f"{self.delta:+.3f}" if self.metric == "mean_reward" else f"{100 * self.delta:+.1f}pp"
        return f"{self.outcome}, {told}" if told else self.outcome


@dataclass(frozen=True)
class Constraint:
    """A limit learned from a crash: the planner proposes nothing beyond it while what it was learned with stands."""

    key: str
    reason: str
    at_most: float | None = None
    at_least: float | None = None
    not_value: Any = None
    held_at: Any = None
    """What all runs have, whatever their recipe says; None where the recipe decides."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """The other keys that decide it, as they were; a limit without them always holds."""
    experiment: int | None = None
    """Whose crash it was."""

    def broken_by(self, value: Any) -> bool:
        if self.not_value is not None and value == self.not_value:
            return True
        if self.held_at is not None and value != self.held_at:
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        too_high = self.at_most is not None and value > self.at_most
        return too_high or (self.at_least is not None and value < self.at_least)


# --- when two ideas are one ----------------------------------------------------------------------------------


def same_idea(one: Moves, other: Moves) -> bool:
    """Whether two ideas are one: they move the same keys, each to the same value.

    Numbers are the same within 10%, but never further apart than half of the shorter of the two steps, and only where
    both go the same way. A section that is set as a whole counts as its keys.
    """
    ours, theirs = flat(one), flat(other)
    return bool(ours) and ours.keys() == theirs.keys() and all(_same_move(ours[key], theirs[key]) for key in ours)


def flat(moves: Moves) -> dict[str, tuple[Any, Any]]:
    """The moves with sections taken apart: `model.lora` none -> {rank: 8} is `model.lora.rank` none -> 8."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, (old, new) in moves.items():
        old, new = plain(old), plain(new)
        if isinstance(new, dict) and new and all(field_at(f"{key}.{name}") for name in new):
            before = old if isinstance(old, dict) else {}
            found |= flat({f"{key}.{name}": (before.get(name), value) for name, value in new.items()})
        elif old != new:
            found[key] = (old, new)
    return found


def plain(value: Any) -> Any:
    """Sections and tuples as YAML or the journal would hold them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _same_move(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    if not (is_number(one[1]) and is_number(other[1])):
        return same_value(one[1], other[1])
    if way(*one) * way(*other) < 0:
        return False
    steps = [distance(*move) for move in (one, other) if is_number(move[0])]
    nearest = min([TOLERANCE, *(SAME_STEP * step for step in steps if step > 0)])
    return distance(one[1], other[1]) < nearest or one[1] == other[1]


def same_value(one: Any, other: Any) -> bool:
    """Equal, as far as results.tsv tells: it has four digits of a number and the beginning of a long text."""
    one, other = plain(one), plain(other)
    if is_number(one) and is_number(other):
        return distance(one, other) <= TABLE_DIGITS
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other) or _cut_from(one, other) or _cut_from(other, one)


def _cut_from(text: Any, value: Any) -> bool:
    return isinstance(text, str) and text.endswith("...") and short(value) == text


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def distance(one: float, other: float) -> float:
    """Between two numbers on the logarithmic scale; infinite from zero, across it, and from what is not finite."""
    if one == other:
        return 0.0
    try:
        return abs(math.log(one / other)) if one * other > 0 else math.inf
    except (ValueError, OverflowError):  # infinity, or as far apart; a person may have written either
        return math.inf


def way(old: Any, new: Any) -> int:
    """1 up, -1 down, 0 where it is no number."""
    if not (is_number(old) and is_number(new)) or old == new:
        return 0
    return 1 if new > old else -1


def below(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


# --- dead ends -----------------------------------------------------------------------------------------------


class DeadEnds:
    """The ideas that are not tried again, and those that may be, because their premise has moved."""

    def __init__(self, playbook: Playbook, history: Sequence[Attempt], recipe: Recipe, campaign: str | None):
        self.playbook = playbook
        self.history = list(history)
        self.recipe = recipe
        self.campaign = campaign
        self.released = [
            self._release(position) if attempt.dead_end else "" for position, attempt in enumerate(self.history)
        ]
        """For each attempt of the history why it stands in nobody's way any more; empty where it does."""

    def recall(self, moves: Moves, symptoms: Iterable[str]) -> tuple[str, str]:
        """(why this may not be tried again, or why it may be); both empty where it is new.

        `symptoms` are those that the idea answers now.
        """
        returned = ""
        for position in range(len(self.history) - 1, -1, -1):
            attempt = self.history[position]
            if not attempt.dead_end or not (same_idea(attempt.values, moves) or same_idea(attempt.ran, moves)):
                continue
            why = self.released[position] or self._asked_for(position, symptoms)
            if not why:
                return f"{TRIED} {attempt.name(self.campaign)}: {attempt.result}; {self._until(attempt)}", ""
            returned = returned or f"back in the queue: {why}"
        return "", returned

    def premise(self, attempt: Attempt) -> list[str]:
        """Keys (a section stands for all below it) that the attempt's result leans on, its own last.

        A crash of a class that has a premise of its own leans on that alone.
        """
        own = list(flat(attempt.values))
        special = self._special(attempt)
        if special is not None:
            return list(special.keys)
        groups = [premise.keys for premise in self.playbook.premises.values() if premise.crash_class is None]
        leant_on = [key for keys in groups if any(below(moved, keys) for moved in own) for key in keys]
        hypothesis = self.playbook.hypotheses.get(attempt.hypothesis)
        leant_on += hypothesis.premise if hypothesis else []
        others = [key for key in dict.fromkeys(leant_on) if not any(below(moved, [key]) for moved in own)]
        return [*others, *own]

    def lifted(self, constraint: Constraint, moves: Moves) -> str:
        """Why a limit does not bind an idea with these moves: a later keep needs less than there was then."""
        for premise in self.playbook.premises.values():
            if premise.crash_class is None:
                continue
            for key, then in constraint.context.items():
                keep = self._last_keep_of(key, after=constraint.experiment)
                if keep is None or key in flat(moves) or key not in premise.keys:
                    continue
                now = get_key(self.recipe, key)
                if lighter(premise, key, now, then):
                    by = f"the {keep.stands} {keep.name(self.campaign)}"
                    return f"limit lifted: {by} moved {key} {short(then)} -> {short(now)} since {constraint.reason}"
        return ""

    def _last_keep_of(self, key: str, *, after: int | None) -> Attempt | None:
        """The last keep of this campaign that moved the key."""
        for attempt in reversed(self.history):
            later = after is None or attempt.number is None or attempt.number > after
            if attempt.outcome == "keep" and attempt.campaign == self.campaign and later and key in _in_effect(attempt):
                return attempt
        return None

    def _release(self, position: int) -> str:
        """The first later keep that moved the premise to where it now is, in words."""
        attempt = self.history[position]
        premise, special = self.premise(attempt), self._special(attempt)
        for keep, key, then in self._moved_since(position):
            if not (below(key, premise) or any(below(leant_on, [key]) for leant_on in premise)):
                continue
            now = plain(get_key(self.recipe, key))
            if lighter(special, key, now, then) if special is not None else not same_value(now, then):
                told = f"{attempt.name(self.campaign)}, {attempt.result}"
                return f"the {keep.stands} {keep.name(self.campaign)} moved {key}, on which {told}, rested"
        return ""

    def _moved_since(self, position: int) -> Iterator[tuple[Attempt, str, Any]]:
        """(keep, key, the key's value at the time of the attempt) for each key that keeps have moved since."""
        seen: set[str] = set()
        for keep in self.history[position + 1 :]:
            if keep.outcome != "keep":
                continue
            for key, (old, _) in _in_effect(keep).items():
                if key not in seen and field_at(key) is not None:
                    seen.add(key)
                    yield keep, key, old

    def _asked_for(self, position: int, symptoms: Iterable[str]) -> str:
        """An idea that was tried without a symptom and now answers one, of an incumbent that is another since."""
        attempt = self.history[position]
        symptom = next(iter(symptoms), None)
        another = any(later.outcome == "keep" for later in self.history[position + 1 :])
        if attempt.outcome == "crash" or attempt.symptom is not None or symptom is None or not another:
            return ""
        return f"it answers {symptom} of the new incumbent; {attempt.name(self.campaign)}, {attempt.result}, had none"

    def _special(self, attempt: Attempt) -> Premise | None:
        if attempt.outcome != "crash" or attempt.crash_class is None:
            return None
        found = (one for one in self.playbook.premises.values() if one.crash_class == attempt.crash_class)
        return next(found, None)

    def _until(self, attempt: Attempt) -> str:
        keys = self.premise(attempt)
        shown = ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
        change = "needs less" if self._special(attempt) is not None else "changes"
        return f"returns when one of {shown} {change}" if len(keys) > 1 else f"returns when {shown} {change}"


def _in_effect(attempt: Attempt) -> dict[str, tuple[Any, Any]]:
    """What a keep has changed, fixes included."""
    return flat(attempt.ran or attempt.values)


def lighter(premise: Premise, key: str, now: Any, then: Any) -> bool:
    """Whether the key needs less than it did: it comes earlier in the premise's order, or is a smaller number.

    Adapters of any rank need less than all weights, for which the key has no value.
    """
    order = premise.order.get(key)
    if order is not None:
        return now in order and then in order and order.index(now) < order.index(then)
    if then is None or now is None:
        return then is None and now is not None
    return is_number(now) and is_number(then) and now < then


# --- weights, boosts, steps ----------------------------------------------------------------------------------


class Record:
    """What became of earlier attempts, weighted: fresh ones count whole, older and foreign ones half."""

    def __init__(self, playbook: Playbook, history: Sequence[Attempt], campaign: str | None, dead_ends: DeadEnds):
        self.playbook = playbook
        self.history = list(history)
        self.dead_ends = dead_ends
        self.here = [attempt for attempt in history if campaign is None or attempt.campaign == campaign]
        keeps = [position for position, attempt in enumerate(self.history) if attempt.outcome == "keep"]
        last_keep = keeps[-1] if keeps else -1
        self.weights = [
            1.0 if position >= last_keep and (campaign is None or attempt.campaign == campaign) else EARLIER_WEIGHT
            for position, attempt in enumerate(self.history)
        ]

    def factors(self, hypothesis: Hypothesis, variant: Variant) -> list[tuple[float, str]]:
        axis = self.playbook.axis_of[hypothesis.id]
        return [
            self._axis_factor(axis),
            self._fruitless_factor(axis),
            self.own_factor(hypothesis.id, variant),
        ]

    def _axis_factor(self, axis: str) -> tuple[float, str]:
        """Success rate of the axis with one success and one failure added, relative to an even chance."""
        closed = [(a, w) for a, w in zip(self.history, self.weights, strict=True) if a.axis == axis and not a.open]
        if not closed:
            return 1.0, ""
        kept = sum(weight for attempt, weight in closed if attempt.outcome == "keep")
        total = sum(weight for _, weight in closed)
        count = sum(attempt.outcome == "keep" for attempt, _ in closed)
        rate = (1 + kept) / (2 + total)
        return 0.5 + rate, f"{axis}: {count} of {len(closed)} tries kept or led"

    def _fruitless_factor(self, axis: str) -> tuple[float, str]:
        row = 0
        for attempt in reversed(self.here):
            if attempt.axis != axis:
                break
            if attempt.outcome == "keep":
                break
            row += not attempt.open
        if row < FRUITLESS_TRIES:
            return 1.0, ""
        return FRUITLESS_FACTOR, f"the last {row} tries were all of {axis} and kept nothing: time for another axis"

    def own_factor(self, hypothesis: str, variant: Variant | None = None) -> tuple[float, str]:
        failures = sum(
            weight
            for attempt, weight in zip(self.history, self.weights, strict=True)
            if attempt.hypothesis == hypothesis
            and attempt.outcome != "keep"
            and (not attempt.open or attempt.reason.startswith(UNDERPOWERED))
            and not (variant is not None and _opposite(attempt, variant))
        )
        if not failures:
            return 1.0, ""
        return FAILED_AGAIN**failures, f"{hypothesis} has failed before (weight {failures:g})"

    def strength(self, hypothesis: Hypothesis, variant: Variant) -> tuple[float, str]:
        """Exponent of the variant's factors: halved for each success of the knob, and each time that both ways have
        failed around the value it has now, here or in an earlier campaign; and the words for it.

        A failure whose premise has moved since narrows nothing."""
        if not variant.scale or variant.set:  # adapters at ten times the rate are no step of the rate
            return 1.0, ""
        keys = set(variant.scale)
        keeps = sum(
            attempt.outcome == "keep" and attempt.hypothesis == hypothesis.id and keys <= set(attempt.values)
            for attempt in self.here
        )
        ways = [
            _direction(attempt, keys)
            for attempt, released in zip(self.history, self.dead_ends.released, strict=True)
            if attempt.dead_end and not released and self._around(attempt, hypothesis, keys)
        ]
        both = min(ways.count(1), ways.count(-1))
        strength = max(NARROWEST, 0.5 ** (keeps + both))
        if strength == 1:
            return 1.0, ""
        reason = f"{keeps} success{'es' if keeps > 1 else ''}" if keeps else "both ways failed"
        reason += " and both ways failed since" if keeps and both else ""
        factors = ", ".join(f"x{factor**strength:.3g} instead of x{factor:g}" for factor in variant.scale.values())
        return strength, f"narrowed after {reason}: {factors}"

    def _around(self, attempt: Attempt, hypothesis: Hypothesis, keys: set[str]) -> bool:
        """A try of the hypothesis, or of its keys alone under another name, that began where the keys are now."""
        if not keys <= set(attempt.values) or (attempt.hypothesis != hypothesis.id and keys != set(attempt.values)):
            return False
        return all(same_value(attempt.values[key][0], get_key(self.dead_ends.recipe, key)) for key in keys)

    def queued(self, hypothesis: Hypothesis) -> tuple[float, str]:
        """(boost, why) where a kept change has queued this hypothesis and nothing of its kind was tried since."""
        for queue in self.playbook.queues.values():
            if hypothesis.id not in queue.then:
                continue
            for attempt in reversed(self.here):
                if attempt.hypothesis in queue.then and not attempt.open:
                    break
                if attempt.outcome == "keep" and any(below(key, queue.after_kept) for key in attempt.values):
                    return queue.boost, f"queued by the {attempt.stands} {attempt.hypothesis}: {queue.says}"
        return 0.0, ""


def _direction(attempt: Attempt, keys: Iterable[str]) -> int:
    """1 up, -1 down, 0 not a number, of the first of the keys that the attempt moved."""
    return next((step for key in keys if (step := way(*attempt.values.get(key, (None, None))))), 0)


def _opposite(attempt: Attempt, variant: Variant) -> bool:
    """Whether the attempt moved a number the other way: its failure does not speak against this form."""
    first = next(iter(variant.scale), None)
    if first is None:
        return False
    return _direction(attempt, [first]) == (-1 if variant.scale[first] > 1 else 1)
