"""One hypothesis as the experiment that it would be: change, changed recipe, score, the subject of its commit.

A dead end is not proposed again until its premise has moved (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.errors import RecipeError
from agent.plan.context import Context
from agent.plan.fit import build_change, lacking
from agent.plan.memory import Moves, flat
from agent.plan.schema import Hypothesis, Variant
from agent.plan.scoring import answered_by, score_of
from agent.plan.symptoms import Finding
from agent.recipe.change import LR_SCHEDULE, Change, ChangeRefused, short
from agent.recipe.files import get_key, with_keys
from agent.recipe.schema import Recipe

SUBJECT_LENGTH = 100


@dataclass(frozen=True)
class Proposal:
    """One experiment: a hypothesis in one of its forms, ready to commit."""

    hypothesis: str
    axis: str
    change: Change
    recipe: Recipe
    """The result of the change."""
    score: float
    why: list[str]
    symptom: str | None
    """The symptom it answers best."""
    answers: list[str]
    """Every symptom that it answers, best first."""
    evidence: str
    claim: str
    watch: list[str]
    subject: str
    cost: float
    variant: str = ""
    status: str = "experimental"
    comparator: Recipe | None = None
    """The recipe this must beat besides the incumbent, where the incumbent is not that already."""
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    hypothesis: str
    """Its id; `id/form` where other forms of it can be tried and this one is a dead end."""
    reason: str


def proposals_of(hypothesis: Hypothesis, context: Context) -> tuple[list[Proposal], dict[str, str]]:
    """The forms of the hypothesis that can be tried now, and the reasons against the others by name."""
    proposals: list[Proposal] = []
    reasons: dict[str, str] = {}
    for variant in hypothesis.variants:
        found = [finding.symptom for finding in context.findings]
        reason = lacking(hypothesis, variant, context.recipe, machine=context.machine, symptoms=found)
        if reason is None:
            proposal, reason = _propose(hypothesis, variant, context)
            if proposal is not None:
                proposals.append(proposal)
        if reason:
            reasons[variant.name] = reason
    return proposals, reasons


def _propose(hypothesis: Hypothesis, variant: Variant, context: Context) -> tuple[Proposal | None, str]:
    strength, narrowed = context.record.strength(hypothesis, variant)
    built = build_change(variant, context.recipe, facts=context.facts, strength=strength)
    if built.change is None:
        return None, built.why_not
    moves = built.change.values(context.recipe)
    answered = answered_by(hypothesis, variant, context)
    result, words = admitted(built.change, moves, answered, context)
    if result is None:
        return None, words[0]
    score, why = score_of(hypothesis, variant, context, keys=len(moves))
    return Proposal(
        hypothesis=hypothesis.id,
        axis=context.playbook.axis_of[hypothesis.id],
        change=built.change,
        recipe=result,
        score=score,
        why=[*why, *words, narrowed] if narrowed else [*why, *words],
        symptom=answered[0].symptom if answered else None,
        answers=[finding.symptom for finding in answered],
        evidence=answered[0].evidence if answered else "",
        claim=hypothesis.claim,
        watch=context.playbook.watches_of(hypothesis.id),
        subject=subject(context.playbook.axis_of[hypothesis.id], hypothesis, variant, moves),
        cost=variant.cost or hypothesis.cost,
        variant=variant.name,
        status=hypothesis.status,
        comparator=_comparator(hypothesis, result, context.recipe),
        values=moves,
    ), ""


CAP = "selection.max_per_prompt"


def admitted(
    change: Change, moves: Moves, answered: Sequence[Finding], context: Context
) -> tuple[Recipe | None, list[str]]:
    """The changed recipe, and what was in its way and is no longer; or None, and the one reason against it."""
    barred = context.steering.against_keys(moves)
    if barred:
        return None, [barred]
    blocked, returned = context.dead_ends.recall(moves, [finding.symptom for finding in answered])
    if blocked:
        return None, [blocked]
    words = [returned] if returned else []
    for constraint in context.constraints:
        if constraint.key in moves and constraint.broken_by(moves[constraint.key][1]):
            lifted = context.dead_ends.lifted(constraint, moves)
            if not lifted:
                return None, [f"{constraint.key} {short(moves[constraint.key][1])} is ruled out: {constraint.reason}"]
            words.append(lifted)
    held = {one.key: one.reason for one in context.constraints if one.held_at is not None}
    if held and all(key in held for key in flat(moves)):  # to the very value that they are held at
        key = next(iter(flat(moves)))
        return None, [f"{key} {short(flat(moves)[key][1])} is what runs have already: {held[key]}"]
    try:
        result = change.apply(context.recipe)
    except ChangeRefused as error:
        return None, [error.message]
    samples = context.recipe.rollout.samples_per_prompt
    if set(flat(moves)) == {CAP} and min(get_key(context.recipe, CAP), get_key(result, CAP)) >= samples:
        return None, [f"changes nothing: a prompt has {samples} samples, and no more can be kept of it"]
    if result.signature() in context.tried:
        return None, [f"the same recipe again: {context.tried[result.signature()]}"]
    return result, words


def subject(axis: str, hypothesis: Hypothesis, variant: Variant, moves: Moves) -> str:
    """`<axis>: <what changes>, <from> -> <to>`, on one line of at most SUBJECT_LENGTH characters."""
    shown = [key for key in variant.show if key in moves] or list(moves)[:1]
    return subject_of(axis, variant.what or hypothesis.what, moves, shown)


def subject_of(axis: str, what: str, moves: Moves, shown: Iterable[str]) -> str:
    head = f"{axis}: {' '.join(what.split())}, "
    room = max(24, SUBJECT_LENGTH - len(head) - 4)
    old, new = ("/".join(_in_subject(moves[key][side]) for key in shown) for side in (0, 1))
    old = _cut(old, max(room // 2, room - len(new)))
    return f"{head}{old} -> {_cut(new, room - min(len(old), room // 2))}"


def _in_subject(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ", ".join(str(one) if name == "kind" else f"{name} {short(one)}" for name, one in value.items())
    return short(value).strip("'\"").replace("\n", " ") if value not in ("", [], {}) else "none"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def _comparator(hypothesis: Hypothesis, result: Recipe, recipe: Recipe) -> Recipe | None:
    """What the idea has to beat beside the incumbent: the idea itself, but for what the hypothesis takes back."""
    if not hypothesis.comparator:
        return None
    try:
        comparator = with_keys(result, hypothesis.comparator)
    except RecipeError:  # a list of factors has values that no constant rate may have
        comparator = with_keys(result, {LR_SCHEDULE: {"kind": "constant"}})
    return comparator if comparator.signature() not in {result.signature(), recipe.signature()} else None
