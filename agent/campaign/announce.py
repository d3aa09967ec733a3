"""Writes an experiment into the journal with all that its commit needs: an idea of the playbook, or what the loop
puts together, leaves out or tries again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent.campaign.past import MEASURED_NOTHING
from agent.campaign.session import Session
from agent.errors import AgentError
from agent.ledger.messages import change_subject, experiment_body, slug_of
from agent.plan.memory import Moves
from agent.plan.proposal import Proposal
from agent.recipe.change import LR_SCHEDULE, Change
from agent.recipe.editing import edit_text
from agent.recipe.files import get_key, with_keys
from agent.recipe.schema import Recipe
from agent.run.remedies import moved_keys

MOST_TRIES = 2
"""Of one recipe's confirmation, where the first measured nothing."""


def announce_together(
    session: Session, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False
) -> int | None:
    """One experiment of what several ideas change, the first ones first; the lead among them brings all that it has.

    What does not go with those before it is left out: a key that stands elsewhere than where the idea found it, or a
    change that is refused. None where nothing is left, or this very recipe was put to its confirmation before.
    """
    lead, incumbent = session.lead, session.incumbent
    base = lead if advance else incumbent
    brought = [lead] if lead != incumbent and (advance or lead in numbers) else []
    recipe = session.recipe_of(brought[0] if brought else base)
    values: dict[str, Any] = {}
    parts = [number for number in numbers if number in brought]
    for number in numbers:
        theirs = {} if number in brought else _moves_that_ran(session, number)
        now = _applied(recipe, values)
        fits = now is not None and all(_plain(get_key(now, key)) == old for key, (old, _) in theirs.items())
        more = values | {key: new for key, (_, new) in theirs.items()}
        if theirs and fits and _applied(recipe, more) is not None:
            values = more
            parts.append(number)
    whole = _applied(recipe, values)
    assert whole is not None
    moved = moved_keys(session.recipe_of(base), whole)
    moves = {key: moved[key] for key in (*values, *moved) if key in moved}
    if not parts or not moves or (not advance and _was_put_together(session, whole)):
        return None
    names = ", ".join(f"#{number}" for number in parts)
    what, claim = f"near-misses {names}", f"What {names} could not show alone shows together."
    why = "an experiment of the end: no further idea can be had or afforded"
    if advance:
        helps = "change helps together" if len(parts) > 1 else "changes helps"
        what, claim = f"promising {names}", f"What {names} {helps}, and others can build on it."
        why = "promising, and run once more before others build on it: there is no time to confirm it alone"
    elif of_lead:
        what, claim = (
            f"what led, {names}",
            f"What {names} {'have' if len(parts) > 1 else 'has'} beyond the incumbent helps.",
        )
        why = "built on without a verdict, and to be confirmed now"
    proposal = _put_together(whole, moves, hypothesis="together", what=what, claim=claim, why=why)
    together = list(dict.fromkeys([*brought, *parts]))
    comparator = None if advance else _comparator(session, whole, together)
    return announce(
        session, replace(proposal, comparator=comparator), base=base,
        together=together, advance=advance or None, of_lead=of_lead or None,
    )  # fmt: skip


def _was_put_together(session: Session, recipe: Recipe) -> bool:
    """For its confirmation, and something was measured; or often enough."""
    signature, tries = recipe.signature(), 0
    for one in session.state.experiments.values():
        known = (one.planned.model_extra or {}) if one.planned else {}
        if known.get("together") and not known.get("advance") and one.recipe_signature == signature:
            tries += 1
            kind = one.judged.numbers.get("kind") if one.judged else None
            if kind not in MEASURED_NOTHING or tries >= MOST_TRIES:
                return True
    return False


def _comparator(session: Session, recipe: Recipe, parts: Sequence[int]) -> Recipe | None:
    """The recipe at a constant rate, where one of the parts has to beat that: a schedule is kept for nothing less."""
    if not any(needs_comparator(session, part) for part in parts):
        return None
    constant = with_keys(recipe, {LR_SCHEDULE: {"kind": "constant"}})
    needless = {recipe.signature(), session.recipe_of(session.incumbent).signature()}
    return constant if constant.signature() not in needless else None


def needs_comparator(session: Session, number: int) -> bool:
    """Whether a recipe with the idea in it must also beat itself at a constant rate."""
    planned = session.state.experiments[number].planned
    if planned is None:
        return False
    known = planned.model_extra or {}
    parts = known.get("together") or ()
    # the comparator of a schedule alone may be the incumbent, and in company it is not
    scheduled = any(key.startswith(LR_SCHEDULE) for key in planned.changes)
    return scheduled or bool(known.get("comparator")) or any(needs_comparator(session, part) for part in parts)


def announce_again(session: Session, number: int) -> int | None:
    """A screened idea on what leads now; None where its keys stand elsewhere than where it found them, or where that
    ran whole since."""
    planned, theirs = session.state.experiments[number].planned, _moves_that_ran(session, number)
    recipe = session.recipe_of(session.lead)
    values = {key: new for key, (_, new) in theirs.items()}
    changed = _applied(recipe, values)
    if planned is None or not theirs or changed is None or not stands(session, number, recipe):
        return None
    proposal = _put_together(
        changed, theirs, hypothesis=planned.hypothesis, what=f"#{number} whole",
        why="screened out, and there is time left",
        claim=f"#{number} was screened out by the first part of its training, and helps in the end.",
    )  # fmt: skip
    proposal = replace(proposal, axis=planned.axis, comparator=_comparator(session, changed, [number]))
    return announce(session, proposal, base=session.lead, again=number)


def stands(session: Session, number: int, recipe: Recipe) -> bool:
    """Whether the recipe has what an idea changes as the idea found it, and has not run with it yet."""
    theirs = _moves_that_ran(session, number)
    if any(_plain(get_key(recipe, key)) != old for key, (old, _) in theirs.items()):
        return False
    changed = _applied(recipe, {key: new for key, (_, new) in theirs.items()})
    return changed is not None and not _ran_whole(session, changed)


def _ran_whole(session: Session, recipe: Recipe) -> bool:
    """And was measured."""
    signature, not_whole = recipe.signature(), ("screened", *MEASURED_NOTHING)
    return any(
        one.recipe_signature == signature and one.judged is not None and one.judged.numbers.get("kind") not in not_whole
        for one in session.state.experiments.values()
    )


def announce_without(session: Session, number: int, *, margin: float) -> int | None:
    """The incumbent with the keys of a kept idea put back; None where they were moved on since."""
    recipe = session.recipe_of(session.incumbent)
    theirs = _moves_that_ran(session, number)
    moves = {key: (new, old) for key, (old, new) in theirs.items()}
    stands = all(_plain(get_key(recipe, key)) == now for key, (now, _) in moves.items())
    changed = _applied(recipe, {key: new for key, (_, new) in moves.items()}) if moves and stands else None
    if changed is None:
        return None
    gain = session.numbers.difference(2 * margin)
    claim = f"Without #{number} less than half of its gain ({gain}) is lost; it is a passenger."
    why = "an experiment of the end: no further idea can be had or afforded"
    proposal = _put_together(changed, moves, hypothesis="ablation", what=f"without #{number}", claim=claim, why=why)
    return announce(session, proposal, base=session.incumbent, without=number, margin=margin)


def _moves_that_ran(session: Session, number: int) -> Moves:
    """What an idea changed, with its fixes. Nothing of one that was itself put together at the end."""
    experiment = session.state.experiments[number]
    planned = experiment.planned
    if planned is None:
        return {}
    if experiment.fixes:
        return session.moves_between(session.base_of(number), number)
    return {key: (move[0], move[1]) for key, move in planned.changes.items()}


def _applied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe | None:
    try:
        return Change(set=dict(values)).apply(recipe) if values else recipe
    except AgentError:
        return None


def _plain(value: Any) -> Any:
    """A recipe's value as the journal holds it."""
    return json.loads(json.dumps(value, default=lambda section: section.model_dump(mode="json")))


def _put_together(recipe: Recipe, moves: Moves, *, hypothesis: str, what: str, claim: str, why: str) -> Proposal:
    """A proposal that no playbook holds (`endgame.py`, `lead.py`): `recipe` with the moves made."""
    return Proposal(
        hypothesis=hypothesis,
        axis=hypothesis,
        change=Change(set={key: new for key, (_, new) in moves.items()}),
        recipe=recipe,
        score=0.0,
        why=[why],
        symptom=None,
        answers=[],
        evidence="",
        claim=claim,
        watch=[],
        subject=change_subject(hypothesis, what, moves),
        cost=1.0,
        values=dict(moves),
    )


def announce(session: Session, proposal: Proposal, *, base: int, **known: Any) -> int:
    """Write the idea into the journal with everything that its commit needs; returns its number.

    `base` is the experiment whose recipe it changes: the incumbent, or what leads. `known` is further things to know of
    it: its batch, what it puts together or leaves out.
    """
    number = session.state.next_number
    path, text = session.recipe_path, text_with(session, proposal, base=base)
    incumbent = session.incumbent
    session.tell(
        "experiment_planned",
        experiment=number,
        hypothesis=proposal.hypothesis,
        axis=proposal.axis,
        slug=slug_of(f"{proposal.hypothesis}-{proposal.variant}"),
        subject=proposal.subject,
        body=experiment_body(
            symptom=proposal.symptom,
            evidence=proposal.evidence,
            claim=proposal.claim,
            watch=[f"{watch}: {session.playbook.watches[watch].read}" for watch in proposal.watch],
        ),
        files={path: text},
        trailers={
            "Hypothesis": "/".join(name for name in (proposal.hypothesis, proposal.variant) if name),
            "Symptom": proposal.symptom or "none",
            "Incumbent": f"{incumbent:03d}",
            **({"Lead": f"{base:03d}"} if base != incumbent else {}),
        },
        symptom=proposal.symptom,
        changes={key: list(move) for key, move in proposal.values.items()},
        recipe_signature=proposal.recipe.signature(),
        parent_commit=_commit_of(session, base),
        incumbent=base or None,
        variant=proposal.variant,
        evidence=proposal.evidence,
        claim=proposal.claim,
        why=proposal.why,
        watch=proposal.watch,
        score=proposal.score,
        comparator=proposal.comparator.model_dump(mode="json") if proposal.comparator else None,
        **{name: value for name, value in known.items() if value is not None},
    )
    return number


def text_with(session: Session, proposal: Proposal, *, base: int) -> str:
    """The recipe's file with the idea in it. RecipeError where its layout does not take it."""
    path = session.recipe_path
    changes = {key: new for key, (_, new) in proposal.values.items()}
    return edit_text(session.files_of(base)[path], changes, where=path)


def _commit_of(session: Session, base: int) -> str | None:
    """What an idea's commit starts from: the tip of `best`, or of the branch of what leads."""
    if base != session.incumbent:
        return session.state.experiments[base].commit
    return session.branches.best if session.branches else None
