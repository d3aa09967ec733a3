"""Numbers of one axis moved together (`optimizer.py`), as one more proposal where two of them or more were tried."""

from __future__ import annotations

from collections.abc import Sequence

from agent.plan.context import Context
from agent.plan.optimizer import Refinement, points, refinement_of
from agent.plan.proposal import Proposal, Skipped, admitted, subject_of
from agent.plan.sampler import NoSampler
from agent.plan.schema import Hypothesis, Variant
from agent.plan.scoring import answered_by, score_of
from agent.plan.steer import REFINE
from agent.plan.symptoms import Finding
from agent.recipe.change import Change
from agent.recipe.schema import Recipe

REFINED = 1.2
"""Of a refinement beside the best numeric form of its axis ..."""
REFINED_LATER = 0.8
"""... and while it is the turn of one number at a time: until one was tried both ways, and after a refinement that was
not kept. On a slanted optimum it is far ahead, on a round one single steps are; turns lose little on either."""
REFINED_TRIES = 16
"""Points that are asked for before a refinement is given up: the others were dead ends, or no valid recipe."""


def refinement(
    ranked: Sequence[Proposal], context: Context, *, only: str | None, seed: int
) -> tuple[Proposal | None, Skipped | None]:
    """A proposal for the best axis whose numbers matter together, or why it has none. Most often neither."""
    for axis in dict.fromkeys([*(proposal.axis for proposal in ranked), *context.playbook.axes]):
        if only not in (None, axis) or context.steering.against(f"{REFINE}{axis}", axis):
            continue
        found = refinement_of(
            axis,
            context.playbook,
            context.recipe,
            context.record.here,
            machine=context.machine,
            constraints=[limit for limit in context.constraints if not context.dead_ends.lifted(limit, {})],
        )
        if found is not None:
            barred = context.steering.against_keys(knob.key for knob in found.knobs)
            return (None, Skipped(f"{REFINE}{axis}", barred)) if barred else _refined(found, context, seed)
    return None, None


def _refined(refinement: Refinement, context: Context, seed: int) -> tuple[Proposal | None, Skipped | None]:
    name = f"{REFINE}{refinement.axis}"
    score, why, (hypothesis, variant) = _refined_score(refinement, name, context)
    answered = answered_by(hypothesis, variant, context)
    try:
        found = _first_admitted(refinement, answered, context, seed)
    except NoSampler as error:
        return None, Skipped(name, str(error))
    if found is None:
        return None, Skipped(name, f"none of {REFINED_TRIES} points that the sampler gave is new and may be tried")
    change, result, words = found
    moves = change.values(context.recipe)
    keys = " and ".join(knob.key for knob in refinement.knobs)
    return Proposal(
        hypothesis=name,
        axis=refinement.axis,
        change=change,
        recipe=result,
        score=score,
        why=[*why, *words],
        symptom=answered[0].symptom if answered else None,
        answers=[finding.symptom for finding in answered],
        evidence=answered[0].evidence if answered else "",
        claim=f"{keys} have their best values together, near those that have done best so far.",
        watch=list(context.playbook.axes[refinement.axis].watch),
        subject=subject_of(refinement.axis, "numbers refined", moves, moves),
        cost=variant.cost or hypothesis.cost,
        variant="gp",
        values=moves,
    ), None


def _first_admitted(
    refinement: Refinement, answered: Sequence[Finding], context: Context, seed: int
) -> tuple[Change, Recipe, list[str]] | None:
    """The first point that may be tried: its change, the recipe, and what was in its way and is no longer.

    NoSampler where Optuna is absent or fails."""
    for values in points(refinement, seed=seed + len(refinement.trials), most=REFINED_TRIES):
        if not values:
            continue
        change = Change(set=values)
        result, words = admitted(change, change.values(context.recipe), answered, context)
        if result is not None:
            return change, result, words
    return None


def _refined_score(
    refinement: Refinement, name: str, context: Context
) -> tuple[float, list[str], tuple[Hypothesis, Variant]]:
    """That of the axis' best numeric form, times REFINED or REFINED_LATER; its factors in words; the form."""
    scored = [
        (*score_of(hypothesis, variant, context, keys=len(variant.scale)), (hypothesis, variant))
        for hypothesis, variant in refinement.forms
    ]
    score, why, form = max(scored, key=lambda entry: entry[0])
    last = next((attempt for attempt in reversed(context.record.here) if attempt.axis == refinement.axis), None)
    if last is not None and last.hypothesis == name and last.outcome != "keep":
        factor, reason = REFINED_LATER, "the last refinement was not kept, so single numbers have their turn"
    elif not refinement.bracketed:
        factor, reason = REFINED_LATER, "no number was tried both ways yet"
    else:
        factor, reason = REFINED, f"{refinement.bracketed} was tried both ways"
    knobs = ", ".join(knob.key for knob in refinement.knobs)
    lost = f"{refinement.lost} of them crashed or given up"
    from_ = f"Gaussian process over {knobs} from {len(refinement.trials)} points, {lost}"
    why += [f"scored as {form[0].id}/{form[1].name}", from_, f"x{factor:.2f} {reason}"]
    return score * factor, why, form
