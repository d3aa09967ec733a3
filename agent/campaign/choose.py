"""Which idea next: gives the planner what the campaign knows, and turns its first proposal into an experiment."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent.campaign.evidence import Evidence
from agent.campaign.lab import standing_leads
from agent.campaign.past import past_of
from agent.campaign.runs import Done
from agent.campaign.session import Session
from agent.errors import AgentError
from agent.ledger.events import CampaignStarted, ConstraintLearned
from agent.ledger.journal import Journal
from agent.ledger.messages import experiment_body, slug_of
from agent.ledger.table import read_rows
from agent.plan.memory import Moves
from agent.plan.planner import REFINE, Attempt, Constraint, Proposal, Ranking, plan
from agent.plan.schema import Playbook
from agent.plan.symptoms import Observation
from agent.recipe.change import Change, short
from agent.recipe.files import edit_text, get_key
from agent.recipe.schema import Recipe
from agent.report.words import points
from agent.run.remedies import moved_keys


def rank(session: Session, evidence: Evidence | None) -> Ranking:
    """The planner's ranking for the recipe that the next idea changes, as things stand."""
    lead = session.lead
    recipe = session.recipe_of(lead)
    last = evidence.last_run(lead) if evidence else None
    return plan(
        session.playbook,
        recipe=recipe,
        observation=observe(session, evidence, last, experiment=lead) if last and evidence else None,
        history=[*earlier_attempts(session), *attempts(session)],
        machine=session.machine,
        only=session.settings.only,
        seed=recipe.seed,
        campaign=session.settings.campaign,
        constraints=[_constraint(event) for event in session.state.constraints],
        tried=_tried_signatures(session),
    )


def observe(session: Session, evidence: Evidence, run: Done, *, experiment: int) -> Observation:
    """All that is known about a run of an experiment's recipe, for the symptoms."""
    calibration = session.state.calibration
    noise = evidence.noise
    return Observation(
        recipe=session.recipe_of(experiment),
        cycles=run.record.cycles,
        summary=run.record.summary,
        evals=run.rows("search"),
        untrained_metric=calibration.get("untrained"),
        noise=noise.sigma if noise else None,
        reference_tokens_per_s=evidence.usual_tokens_per_s(experiment),
        machine=session.machine,
    )


def attempts(session: Session) -> list[Attempt]:
    """The ideas of this campaign that have an outcome, in order of time.

    What leads, and what has led and was confirmed as a part of something, is like a keep to the planner: the ideas
    after it are changes of it.
    """
    found = []
    standing = standing_leads(past_of(session.state))
    for number in session.state.judged_order:
        experiment = session.state.experiments[number]
        planned, judged = experiment.planned, experiment.judged
        if number == 0 or planned is None or judged is None or judged.outcome == "interrupted":
            continue
        values: Moves = {key: (move[0], move[1]) for key, move in planned.changes.items()}
        delta = judged.numbers.get("delta")
        known = planned.model_extra or {}
        led = next((part for part in known.get("together") or () if part in standing), None)
        if led is not None and judged.outcome == "keep":
            # its lead was told already: here is what it has beyond that
            values, delta = _moves_between(session, led, number), None
        found.append(
            Attempt(
                hypothesis=planned.hypothesis,
                axis=planned.axis,
                values=values,
                signature=planned.recipe_signature or "",
                outcome="keep" if number in standing else judged.outcome,
                reason=judged.reason,
                delta=delta,
                crash_class=judged.crash_class,
                campaign=session.settings.campaign,
                number=number,
                variant=known.get("variant", ""),
                symptom=planned.symptom,
                ran=_as_it_ran(session, number) if experiment.fixes else {},
            )
        )
    return found


def _as_it_ran(session: Session, number: int) -> Moves:
    """What differed after fixes from what it was a change of."""
    return _moves_between(session, session.base_of(number), number)


def _moves_between(session: Session, before: int, after: int) -> Moves:
    """Nothing where one of the two recipes is not valid."""
    try:
        return moved_keys(session.recipe_of(before), session.recipe_of(after))
    except AgentError:
        return {}


def earlier_attempts(session: Session) -> list[Attempt]:
    """What `results.tsv` tells of other campaigns with this recipe file, this model and this task.

    A campaign whose journal is gone is taken to have had them.
    """
    rows = read_rows(session.table) if session.table.exists() else []
    rows = [row for row in rows if row.get("recipe") == session.recipe_path]
    names = {row.get("campaign", "") for row in rows} - {session.settings.campaign}
    alike = {name for name in names if _same_model_and_task(session, name)}
    found = [_attempt_of_row(row, session.playbook) for row in rows if row.get("campaign", "") in alike]
    return [attempt for attempt in found if attempt is not None]


def _same_model_and_task(session: Session, campaign: str) -> bool:
    """The file's name tells neither: what failed with another model or on another data set says little here."""
    journal = Journal(session.folder.parent / campaign / "journal.jsonl")
    started = next((event for event in journal.events() if isinstance(event, CampaignStarted)), None)
    if started is None:
        return True
    files = started.files or {started.recipe_path: started.recipe}
    try:
        theirs = session.recipe_from(files, label=f"of-{campaign}")
    except AgentError:
        return True
    return _model_and_task(theirs) == _model_and_task(session.recipe_of(0))


def _model_and_task(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.model.source, recipe.task.dataset, recipe.task.parameters, recipe.task.verifier


def _attempt_of_row(row: Mapping[str, str], playbook: Playbook) -> Attempt | None:
    outcome, hypothesis = row.get("status"), row.get("hypothesis", "")
    axis = _axis_of(hypothesis, playbook)
    if outcome not in ("keep", "discard", "crash") or axis is None:
        return None
    index, delta = row.get("index", ""), row.get("delta", "")
    return Attempt(
        hypothesis=hypothesis,
        axis=axis,
        values=_moves_of(row.get("change", "")),
        signature="",
        outcome=outcome,  # type: ignore[arg-type]  # narrowed by the test above, which mypy does not follow on a str
        reason=row.get("reason", ""),
        delta=_float(delta),
        crash_class=row.get("crash_class") or None,
        campaign=row.get("campaign") or None,
        number=int(index) if index.isdecimal() else None,
        symptom=row.get("symptom") or None,
    )


def _axis_of(hypothesis: str, playbook: Playbook) -> str | None:
    """The axis of a hypothesis or of a refinement (`refine-<axis>`); None where the playbook does not have it."""
    refined = hypothesis.removeprefix(REFINE)
    if refined != hypothesis and refined in playbook.axes:
        return refined
    return playbook.axis_of.get(hypothesis)


def _moves_of(text: str) -> dict[str, tuple[Any, Any]]:
    """`key from -> to, key from -> to`, as `describe_moves` writes it; numbers become numbers again."""
    moves: dict[str, tuple[Any, Any]] = {}
    for key, old, new in re.findall(r"([a-z_]+(?:\.[a-z_0-9]+)+) (.+?) -> (.+?)(?=, [a-z_]+\.[a-z_]|$)", text):
        moves[key] = (_value(old), _value(new))
    return moves


def _value(text: str) -> Any:
    """As `agent.recipe.change.short` wrote it; what that has cut stays as it stands, with its `...`."""
    number = _float(text)
    if number is not None or text == "none":
        return number
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _tried_signatures(session: Session) -> list[str]:
    """Recipes of all experiments of this campaign, the baseline and those under way among them, with the fixes they
    were given."""
    return [one.recipe_signature for one in session.state.experiments.values() if one.recipe_signature]


def _constraint(event: ConstraintLearned) -> Constraint:
    context = (event.model_extra or {}).get("context", {})
    limit = Constraint(key=event.key, reason=event.why, context=context, experiment=event.experiment)
    if event.relation == "<":
        return replace(limit, at_most=event.value - 1 if isinstance(event.value, int) else event.value * (1 - 1e-9))
    if event.relation == "<=":
        return replace(limit, at_most=event.value)
    if event.relation == ">=":
        return replace(limit, at_least=event.value)
    return replace(limit, not_value=event.value)


def first_other(ranking: Ranking, session: Session) -> Proposal | None:
    """The best proposal of a hypothesis that is not under way already."""
    under_way = {one.planned.hypothesis for one in session.state.experiments.values() if one.planned and not one.judged}
    return next((proposal for proposal in ranking.proposals if proposal.hypothesis not in under_way), None)


def announce_together(session: Session, numbers: Sequence[int], *, advance: bool = False) -> int | None:
    """One experiment of what several ideas change, the first ones first. What does not go with those before it is left
    out: a key that stands elsewhere than where the idea found it, or a change that is refused. None where nothing is
    left, or this very recipe was put together for its confirmation before."""
    base = session.lead if advance else session.incumbent
    recipe = session.recipe_of(base)
    values: dict[str, Any] = {}
    parts = []
    for number in numbers:
        theirs = _brought_by(session, number)
        now = _applied(recipe, values) if values else recipe
        fits = now is not None and all(_plain(get_key(now, key)) == old for key, (old, _) in theirs.items())
        together = values | {key: new for key, (_, new) in theirs.items()}
        if theirs and fits and _applied(recipe, together) is not None:
            values = together
            parts.append(number)
    moves = {key: (_plain(get_key(recipe, key)), new) for key, new in values.items()}
    moves = {key: move for key, move in moves.items() if move[0] != move[1]}
    if not parts or not moves or (not advance and _was_put_together(session, recipe, moves)):
        return None
    names = ", ".join(f"#{number}" for number in parts)
    what, claim = f"near-misses {names}", f"What {names} could not show alone shows together."
    why = "an experiment of the end: no further idea can be had or afforded"
    if advance:
        what, claim = f"promising {names}", f"What {names} change helps together, and others can build on it."
        why = "promising, and no time to confirm it alone"
    proposal = _put_together(recipe, moves, hypothesis="together", what=what, claim=claim, why=why)
    return announce(session, proposal, base=base, together=parts, advance=advance or None)


def _brought_by(session: Session, number: int) -> Moves:
    """What an idea changed, with its fixes; all that the lead has on top of the incumbent."""
    if number == session.lead != session.incumbent:
        return _moves_between(session, session.incumbent, number)
    return _moves_that_ran(session, number)


def _was_put_together(session: Session, recipe: Recipe, moves: Moves) -> bool:
    """An experiment of the end, with this recipe."""
    changed = _applied(recipe, {key: new for key, (_, new) in moves.items()})
    ends = [one.planned for one in session.state.experiments.values() if one.planned]
    known = [
        one for one in ends if (one.model_extra or {}).get("together") and not (one.model_extra or {}).get("advance")
    ]
    return changed is not None and changed.signature() in [one.recipe_signature for one in known]


def announce_again(session: Session, number: int) -> int | None:
    """A screened idea on what leads now; None where its keys stand elsewhere than where it found them."""
    planned = session.state.experiments[number].planned
    theirs = _moves_that_ran(session, number)
    recipe = session.recipe_of(session.lead)
    stands = all(_plain(get_key(recipe, key)) == old for key, (old, _) in theirs.items())
    if (
        planned is None
        or not theirs
        or not stands
        or _applied(recipe, {k: new for k, (_, new) in theirs.items()}) is None
    ):
        return None
    proposal = _put_together(
        recipe, theirs, hypothesis=planned.hypothesis, what=f"#{number} whole",
        why="screened out, and there is time left",
        claim=f"#{number} was screened out by the first part of its training, and helps in the end.",
    )  # fmt: skip
    return announce(session, replace(proposal, axis=planned.axis), base=session.lead, again=number)


def announce_without(session: Session, number: int, *, margin: float) -> int | None:
    """The incumbent with the keys of a kept idea put back; None where they were moved on since."""
    recipe = session.recipe_of(session.incumbent)
    theirs = _moves_that_ran(session, number)
    moves = {key: (new, old) for key, (old, new) in theirs.items()}
    stands = all(_plain(get_key(recipe, key)) == now for key, (now, _) in moves.items())
    if not moves or not stands or _applied(recipe, {key: new for key, (_, new) in moves.items()}) is None:
        return None
    claim = (
        f"Less than half of the gain for which #{number} was kept ({points(2 * margin)}) is left; it is a passenger."
    )
    why = "an experiment of the end: no further idea can be had or afforded"
    proposal = _put_together(recipe, moves, hypothesis="ablation", what=f"without #{number}", claim=claim, why=why)
    return announce(session, proposal, base=session.incumbent, without=number, margin=margin)


def _moves_that_ran(session: Session, number: int) -> Moves:
    """What an idea changed, with its fixes. Nothing of one that was itself put together at the end."""
    experiment = session.state.experiments[number]
    planned = experiment.planned
    if planned is None:
        return {}
    if experiment.fixes:
        return _as_it_ran(session, number)
    return {key: (move[0], move[1]) for key, move in planned.changes.items()}


def _applied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe | None:
    try:
        return Change(set=dict(values)).apply(recipe)
    except AgentError:
        return None


def _plain(value: Any) -> Any:
    """A recipe's value as the journal holds it."""
    return json.loads(json.dumps(value, default=lambda section: section.model_dump(mode="json")))


def _put_together(recipe: Recipe, moves: Moves, *, hypothesis: str, what: str, claim: str, why: str) -> Proposal:
    """A proposal that no playbook holds (`endgame.py`, `lead.py`)."""
    values = {key: new for key, (_, new) in moves.items()}
    changed = _applied(recipe, values)
    assert changed is not None
    shown = [short(move[side]) for side in (0, 1) for move in [next(iter(moves.values()))]]
    return Proposal(
        hypothesis=hypothesis,
        axis=hypothesis,
        change=Change(set=values),
        recipe=changed,
        score=0.0,
        why=[why],
        symptom=None,
        answers=[],
        evidence="",
        claim=claim,
        watch=[],
        subject=f"{hypothesis}: {what}, {' -> '.join(shown)}",
        cost=1.0,
        values=dict(moves),
    )


def announce(session: Session, proposal: Proposal, *, base: int, **known: Any) -> int:
    """Write the idea into the journal with everything that its commit needs; returns its number.

    `base` is the experiment whose recipe it changes: the incumbent, or what leads. `known` is further things to know of
    it: its batch, what it puts together or leaves out.
    """
    number = session.state.next_number
    files = session.files_of(base)
    path = session.recipe_path
    text = edit_text(files[path], {key: new for key, (_, new) in proposal.values.items()}, where=path)
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


def _commit_of(session: Session, base: int) -> str | None:
    """What an idea's commit starts from: the tip of `best`, or of the branch of what leads."""
    if base != session.incumbent:
        return session.state.experiments[base].commit
    return session.branches.best if session.branches else None


def explain(ranking: Ranking, *, most: int = 3) -> str:
    """The reasoning in a few lines: what is wrong, what comes first and which symptoms it answers.

    `raft-agent plan` and the commit have it in full.
    """
    lines = []
    for finding in ranking.findings[:4]:
        cause = f", follows from {finding.explained_by}" if finding.explained_by else ""
        lines.append(f"  symptom {finding.symptom} ({finding.severity:.2f}{cause}): {finding.evidence}")
    for place, proposal in enumerate(ranking.proposals[:most], start=1):
        reason = f"answers {', '.join(proposal.answers[:3])}" if proposal.answers else "no symptom asks for it"
        lines.append(f"  {place}. {proposal.score:.2f} {proposal.subject}; {reason}")
    return "\n".join(lines)
