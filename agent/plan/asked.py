"""An idea that a person asked for (`try` in steer.md), admitted as any idea is: by the same change, the same dead ends,
limits and locks. A pin does not bar it, as it was asked for by name; a ban does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from agent.plan.context import context_of
from agent.plan.playbook import Playbook
from agent.plan.proposal import Proposal, admitted, proposals_of, subject_of
from agent.plan.steer import FILE, OWN, Instruction, Steering
from agent.recipe.change import LR_SCHEDULE, Change, ChangeRefused
from agent.recipe.files import with_keys
from agent.recipe.schema import Recipe


def asked_for(
    instruction: Instruction, playbook: Playbook, *, recipe: Recipe, steering: Steering, **known: Any
) -> tuple[Proposal | None, str]:
    """The proposal, or None and why it is refused. `known`: what `context_of` takes beside these."""
    bans = Steering(tuple(steering.of_kind("ban")))
    why = f"asked for by {instruction.words}"
    if instruction.of == "hypothesis":
        found, reason = _form(instruction, playbook, recipe, bans, known)
    else:
        found, reason = _own(instruction, playbook, recipe, bans, known)
    return (dataclasses.replace(found, why=[why, *found.why]), "") if found else (None, reason)


def _form(
    instruction: Instruction, playbook: Playbook, recipe: Recipe, bans: Steering, known: dict[str, Any]
) -> tuple[Proposal | None, str]:
    """Of a hypothesis of the playbook: the form that is named, else the best."""
    name = instruction.name
    barred = bans.against(name, playbook.axis_of[name])
    if barred:
        return None, barred
    context = context_of(playbook, recipe=recipe, steering=bans, **known)
    proposals, reasons = proposals_of(playbook.hypotheses[name], context)
    if instruction.variant:
        proposals = [one for one in proposals if one.variant == instruction.variant]
        reasons = {form: reason for form, reason in reasons.items() if form == instruction.variant}
    if not proposals:
        return None, "; ".join(dict.fromkeys(reasons.values()))
    return max(proposals, key=lambda one: one.score), ""


def _own(
    instruction: Instruction, playbook: Playbook, recipe: Recipe, bans: Steering, known: dict[str, Any]
) -> tuple[Proposal | None, str]:
    """Of no hypothesis: keys and values as they stand there."""
    change = Change(set=dict(instruction.values))
    try:
        moves = change.values(recipe)
        if not moves:
            return None, "the recipe has it already"
        context = context_of(playbook, recipe=recipe, steering=bans, **known)
        result, words = admitted(change, moves, [], context)
    except ChangeRefused as refused:
        return None, refused.message
    if result is None:
        return None, words[0]
    constant = with_keys(result, {LR_SCHEDULE: {"kind": "constant"}})
    scheduled = any(key.startswith(LR_SCHEDULE) for key in moves)
    needless = {result.signature(), recipe.signature()}  # no schedule, or what the incumbent is
    what = " and ".join(key.rsplit(".", 1)[-1] for key in moves)
    proposal = Proposal(
        hypothesis=OWN,
        axis=OWN,
        change=change,
        recipe=result,
        score=0.0,
        why=words,
        symptom=None,
        answers=[],
        evidence="",
        claim=f"Asked for in {FILE}: {instruction.text}",
        watch=[],
        subject=subject_of(OWN, what, moves, moves),
        cost=1.0,
        comparator=constant if scheduled and constant.signature() not in needless else None,
        values=moves,
    )
    return proposal, ""
