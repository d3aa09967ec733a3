"""Which idea next: gives the planner what the campaign knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.campaign.announce import text_with
from agent.campaign.done import Done
from agent.campaign.evidence import Evidence
from agent.campaign.past import past_of, standing_leads
from agent.campaign.session import Session
from agent.campaign.steering import in_force
from agent.errors import AgentError, InvalidFile, RecipeError, ResourceError
from agent.ledger.events import CampaignStarted, ConstraintLearned
from agent.ledger.journal import Experiment, Journal
from agent.ledger.table import read_rows
from agent.ledger.workspace import Workspace
from agent.plan.asked import asked_for
from agent.plan.memory import Attempt, Constraint
from agent.plan.planner import Ranking, plan
from agent.plan.proposal import Proposal
from agent.plan.schema import Playbook
from agent.plan.steer import OWN, REFINE, Instruction
from agent.plan.symptoms import Observation
from agent.recipe.change import short
from agent.recipe.schema import Recipe
from agent.text import one_line


@dataclass(frozen=True)
class Ranked:
    """A ranking for the report, which shows it until another idea has an outcome."""

    ranking: Ranking
    judged: int
    """How many ideas had one when it was made, the baseline counted."""
    seconds: Mapping[str, float]
    """Signature of a proposal's recipe -> predicted length of its first run; of the first few proposals."""


def rank_for_report(session: Session, ranking: Ranking, *, most: int = 12) -> Ranked:
    lead = session.recipe_of(session.lead)
    seconds = {
        one.recipe.signature(): session.cost(one.recipe, else_of=[lead]).total_s for one in ranking.proposals[:most]
    }
    return Ranked(ranking, len(session.state.judged_order), seconds)


def rank(session: Session, evidence: Evidence | None) -> Ranking:
    """The planner's ranking for the recipe that the next idea changes, as things stand."""
    recipe = session.recipe_of(session.lead)
    known = _known(session, evidence)
    return plan(session.playbook, only=session.settings.only, seed=recipe.seed, steering=in_force(session), **known)


def asked_of(session: Session, evidence: Evidence | None, instruction: Instruction) -> tuple[Proposal | None, str]:
    """What a person asks to try, as a proposal; None, and why it is refused. A line that the planner trips over is not
    worth a night."""
    known = _known(session, evidence)
    try:
        proposal, why_not = asked_for(instruction, session.playbook, steering=in_force(session), **known)
        if proposal is not None:
            text_with(session, proposal, base=session.lead)
    except RecipeError as refused:
        return None, f"{refused.where}: {refused.message}" if refused.where else refused.message
    except (AgentError, OSError, MemoryError):  # of the disk or the machine, not of what was asked for
        raise
    except Exception as mistake:
        return None, f"a mistake in raft-agent itself: {type(mistake).__name__}: {one_line(str(mistake))}"
    return proposal, why_not


def _known(session: Session, evidence: Evidence | None) -> dict[str, Any]:
    """What the campaign knows of the recipe that the next idea changes, in the planner's words."""
    lead = session.lead
    last = evidence.last_run(lead) if evidence else None
    return {
        "recipe": session.recipe_of(lead),
        "observation": observe(session, evidence, last, experiment=lead) if last and evidence else None,
        "history": [*earlier_attempts(session), *attempts(session)],
        "machine": session.machine,
        "campaign": session.settings.campaign,
        "constraints": [*map(_constraint, session.state.constraints), *_held(session)],
        "tried": _tried_signatures(session),
    }


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
        load=run.record.load,
    )


FOR_LACK_OF_TIME = ("unconfirmed:", "not gone on with", "it would take")
"""In the reason of a row: an idea that was promising and was not tried out is no dead end of a later campaign."""


def attempts(session: Session) -> list[Attempt]:
    """The ideas of this campaign that have an outcome, in order of time.

    What leads, and what has led and was confirmed as a part of something, is like a keep to the planner: the ideas
    after it are changes of it. So is what it put together, each part at the place where it was: a part did not fail.
    """
    found = []
    standing = standing_leads(past_of(session.state))
    experiments = session.state.experiments
    good = {
        number for number in session.state.judged_order if number in standing or experiments[number].outcome == "keep"
    }
    parts = {number: _parts(experiments[number], but=standing) for number in good}
    inside = {part for some in parts.values() for part in some}
    for number in session.state.judged_order:
        experiment = experiments[number]
        planned, judged = experiment.planned, experiment.judged
        if number == 0 or number in inside or planned is None or judged is None or judged.outcome == "interrupted":
            continue
        if parts.get(number):
            delta = judged.numbers.get("delta")
            each = delta / len(parts[number]) if delta is not None else None
            found += [_part(session, part, of=number, leads=number in standing, delta=each) for part in parts[number]]
            continue
        found.append(_attempt(session, number, leads=number in standing, delta=judged.numbers.get("delta")))
    return found


def _parts(experiment: Experiment, *, but: set[int]) -> list[int]:
    """What it put together, less what is told already."""
    known = (experiment.planned.model_extra or {}) if experiment.planned else {}
    return [part for part in known.get("together") or () if part not in but]


def _attempt(session: Session, number: int, *, leads: bool, delta: float | None) -> Attempt:
    experiment = session.state.experiments[number]
    planned, judged = experiment.planned, experiment.judged
    assert planned is not None
    assert judged is not None
    assert judged.outcome != "interrupted"
    known = planned.model_extra or {}
    confirms_lead = judged.outcome == "keep" and bool(known.get("together"))
    return Attempt(
        hypothesis=planned.hypothesis,
        axis=planned.axis,
        # its lead was told already, and it has nothing beyond that
        values={} if confirms_lead else {key: (move[0], move[1]) for key, move in planned.changes.items()},
        signature=planned.recipe_signature or "",
        outcome="keep" if leads else judged.outcome,
        leads=leads,
        reason=judged.reason,
        delta=None if confirms_lead else delta,
        metric=session.evaluation.metric,
        crash_class=judged.crash_class,
        campaign=session.settings.campaign,
        number=number,
        variant=known.get("variant", ""),
        symptom=planned.symptom,
        ran=session.moves_between(session.base_of(number), number) if experiment.fixes else {},
    )


def _part(session: Session, part: int, *, of: int, leads: bool, delta: float | None) -> Attempt:
    """An idea that is in what was kept or leads, as good as that is."""
    judged = session.state.experiments[of].judged
    reason = judged.reason if judged else ""
    return replace(_attempt(session, part, leads=leads, delta=delta), outcome="keep", reason=reason, crash_class=None)


def earlier_attempts(session: Session) -> list[Attempt]:
    """What `results.tsv` tells of other campaigns with this recipe file, this model and this task.

    A campaign whose journal is gone is taken to have had them.
    """
    try:
        rows = read_rows(session.table) if session.table.exists() else []
    except (InvalidFile, ResourceError, OSError):
        rows = []  # it was spoiled in mid-run: what it told of others is not known any more
    rows = [row for row in rows if row.get("recipe") == session.recipe_path]
    names = {row.get("campaign", "") for row in rows} - {session.settings.campaign}
    alike = {name for name in names if _same_model_and_task(session, name)}
    found = [_attempt_of_row(row, session.playbook) for row in rows if row.get("campaign", "") in alike]
    return [attempt for attempt in found if attempt is not None]


def _same_model_and_task(session: Session, campaign: str) -> bool:
    """The file's name tells neither: what failed with another model or on another data set says little here."""
    journal = Journal(Workspace(session.workspace).journal_path(campaign))
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
    undecided = any(words in row.get("reason", "") for words in FOR_LACK_OF_TIME)
    if outcome not in ("keep", "discard", "crash") or axis is None or undecided:
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
        metric=row.get("metric_name", ""),
        crash_class=row.get("crash_class") or None,
        campaign=row.get("campaign") or None,
        number=int(index) if index.isdecimal() else None,
        symptom=row.get("symptom") or None,
    )


def _axis_of(hypothesis: str, playbook: Playbook) -> str | None:
    """The axis of a hypothesis, of a refinement (`refine-<axis>`) or of a person's own idea; None where the playbook
    does not have it."""
    if hypothesis == OWN:
        return OWN  # a person's idea that failed is a dead end whatever a playbook calls it
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


def _held(session: Session) -> list[Constraint]:
    """What the shared layer has for all runs: an idea that moves it would run as what it is a change of."""
    return [
        Constraint(key, f"all runs have {short(value)}, {change.why}", held_at=value, experiment=change.experiment)
        for change in session.state.shared_changes
        for key, value in change.values.items()
        if session.state.shared_values[key] == value
    ]


def first_other(ranking: Ranking, session: Session) -> Proposal | None:
    """The best proposal of a hypothesis that is not under way already."""
    under_way = {one.planned.hypothesis for one in session.state.experiments.values() if one.planned and not one.judged}
    return next((proposal for proposal in ranking.proposals if proposal.hypothesis not in under_way), None)


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
