"""Which change to try next, and why: ranks the playbook's hypotheses for one recipe, without a language model.

The score of a proposal is a product whose factors are all told in `why`:

    need        how badly the symptoms it answers are (1 - product of 1 - severity x fit), or its prior
    reading     the bottleneck readings that point at its axis or tags
    machine     the resource rules for this number and kind of accelerators
    record      what became of its axis and of itself, here and in earlier campaigns
    cost, size  what it costs to try, and how many keys it moves

A dead end is not proposed again until its premise has moved (`memory.py`). Where two numbers or more of one axis were
tried, one further proposal moves them together (`optimizer.py`).

What it does not do: run anything, judge a result, or touch a locked key (agent.recipe.change refuses).
The same arguments give the same ranking; `seed` only breaks ties.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.errors import UsageError
from agent.plan.fit import build_change, fails, in_spite_of, lacking
from agent.plan.memory import TRIED, Attempt, Constraint, DeadEnds, Moves, Record
from agent.plan.optimizer import Refinement, points, refinement_of
from agent.plan.sampler import NoSampler
from agent.plan.schema import Hypothesis, Playbook, ResourceRule, Variant
from agent.plan.steer import FILE, FREE, REFINE, Steering
from agent.plan.symptoms import Finding, Observation, ReadingFinding, diagnose, observed, read_bottleneck
from agent.recipe.change import Change, ChangeRefused, short
from agent.recipe.files import with_keys
from agent.recipe.schema import Recipe
from agent.recipe.validating import nearest

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

__all__ = ["REFINE", "Attempt", "Constraint", "Proposal", "Ranking", "Skipped", "plan", "random_order"]

READING_FACTOR = 1.15
SAME_HYPOTHESIS = 0.5
"""For each further form of a hypothesis that already stands higher in the list."""
VALIDATED = 1.1
REFINED = 1.2
"""Of a refinement beside the best numeric form of its axis ..."""
REFINED_LATER = 0.8
"""... and while it is the turn of one number at a time: until one was tried both ways, and after a refinement that was
not kept. On a slanted optimum it is far ahead, on a round one single steps are; turns lose little on either."""
REFINED_TRIES = 16
"""Points that are asked for before a refinement is given up: the others were dead ends, or no valid recipe."""
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


@dataclass(frozen=True)
class Advice:
    """An action that no experiment may take, because it moves the yardstick."""

    action: str
    does: str
    why: str
    values: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Ranking:
    proposals: list[Proposal]
    skipped: list[Skipped]
    findings: list[Finding]
    readings: list[ReadingFinding]
    actions: list[Advice]
    note: str
    """In words: how many ideas there are, or why there is none."""

    def best(self) -> tuple[Proposal | None, str]:
        """The first proposal, or None, and why."""
        return (self.proposals[0], "; ".join(self.proposals[0].why)) if self.proposals else (None, self.note)


def plan(
    playbook: Playbook,
    *,
    recipe: Recipe,
    observation: Observation | None = None,
    history: Sequence[Attempt] = (),
    machine: Machine | None = None,
    only: str | None = None,
    seed: int = 0,
    campaign: str | None = None,
    constraints: Sequence[Constraint] = (),
    tried: Iterable[str] = (),
    steering: Steering = FREE,
) -> Ranking:
    """Rank every form of every hypothesis for `recipe`, the incumbent.

    `only` is an axis or hypothesis id; UsageError names the nearest for an unknown one. `seed` breaks ties. The rest is
    as `context_of` has it.
    """
    _check_only(playbook, only)
    context = context_of(
        playbook,
        recipe=recipe,
        observation=observation,
        history=history,
        machine=machine,
        campaign=campaign,
        constraints=constraints,
        tried=tried,
        steering=steering,
    )
    proposals: list[Proposal] = []
    skipped: list[Skipped] = []
    for hypothesis in playbook.hypotheses.values():
        axis = playbook.axis_of[hypothesis.id]
        if only not in (None, hypothesis.id, axis):
            continue
        barred = steering.against(hypothesis.id, axis)
        if barred:
            skipped.append(Skipped(hypothesis.id, barred))
            continue
        found, reasons = proposals_of(hypothesis, context)
        proposals += found
        if not found:
            skipped.append(Skipped(hypothesis.id, "; ".join(dict.fromkeys(reasons.values()))))
        else:
            told = {form: reason for form, reason in reasons.items() if reason.startswith(TRIED) or FILE in reason}
            skipped += [Skipped(f"{hypothesis.id}/{form}", reason) for form, reason in told.items()]
    proposals.sort(key=lambda proposal: _order(proposal, seed))
    refined, given_up = _refinement(proposals, context, only=only, seed=seed)
    proposals += [refined] if refined else []
    skipped += [given_up] if given_up else []
    ranked = _spread(_without_twins(sorted(proposals, key=lambda proposal: _order(proposal, seed))), seed)
    return Ranking(
        proposals=ranked,
        skipped=skipped,
        findings=context.findings,
        readings=context.readings,
        actions=_advice(playbook, recipe, context.findings),
        note=_note(ranked, skipped, only),
    )


def context_of(
    playbook: Playbook,
    *,
    recipe: Recipe,
    observation: Observation | None = None,
    history: Sequence[Attempt] = (),
    machine: Machine | None = None,
    campaign: str | None = None,
    constraints: Sequence[Constraint] = (),
    tried: Iterable[str] = (),
    steering: Steering = FREE,
) -> _Context:
    """What a proposal is weighed and admitted by.

    `observation` is the incumbent's last run. `history` is in order of time, earlier campaigns first; attempts
    whose `campaign` differs from this one weigh half. `tried` are further signatures that may not come again.
    `steering` is what a person pinned and banned.
    """
    dead_ends = DeadEnds(playbook, history, recipe, campaign)
    return _Context(
        playbook=playbook,
        recipe=recipe,
        machine=machine,
        findings=diagnose(observation, playbook) if observation else [],
        readings=read_bottleneck(observation, playbook) if observation else [],
        facts=observed(observation) if observation else {},
        record=Record(playbook, history, campaign, dead_ends),
        dead_ends=dead_ends,
        constraints=constraints,
        tried={recipe.signature(): "it is the incumbent"}
        | dict.fromkeys(tried, "tried before")
        | _signatures(history, campaign),
        steering=steering,
    )


def random_order(
    playbook: Playbook,
    *,
    recipe: Recipe,
    rng: random.Random,
    observation: Observation | None = None,
    machine: Machine | None = None,
) -> list[Proposal]:
    """The same admissible proposals in a random order: what a planner must beat."""
    proposals = plan(playbook, recipe=recipe, observation=observation, machine=machine).proposals
    rng.shuffle(proposals)
    return proposals


def _check_only(playbook: Playbook, only: str | None) -> None:
    known = [*playbook.axes, *playbook.hypotheses]
    if only is not None and only not in known:
        raise UsageError(f"--only {only}: no such axis or hypothesis", hint=nearest(only, known))


# --- one hypothesis ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Context:
    playbook: Playbook
    recipe: Recipe
    machine: Machine | None
    findings: list[Finding]
    readings: list[ReadingFinding]
    facts: Mapping[str, str]
    record: Record
    dead_ends: DeadEnds
    constraints: Sequence[Constraint]
    tried: Mapping[str, str]
    steering: Steering = FREE


def proposals_of(hypothesis: Hypothesis, context: _Context) -> tuple[list[Proposal], dict[str, str]]:
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


def _propose(hypothesis: Hypothesis, variant: Variant, context: _Context) -> tuple[Proposal | None, str]:
    strength, narrowed = context.record.strength(hypothesis, variant)
    built = build_change(variant, context.recipe, facts=context.facts, strength=strength)
    if built.change is None:
        return None, built.why_not
    moves = built.change.values(context.recipe)
    answered = _answered(hypothesis, variant, context)
    result, words = admitted(built.change, moves, answered, context)
    if result is None:
        return None, words[0]
    score, why = _score(hypothesis, variant, context, keys=len(moves))
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
        comparator=_comparator(hypothesis, context.recipe),
        values=moves,
    ), ""


def admitted(
    change: Change, moves: Moves, answered: Sequence[Finding], context: _Context
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
    try:
        result = change.apply(context.recipe)
    except ChangeRefused as error:
        return None, [error.message]
    if result.signature() in context.tried:
        return None, [f"the same recipe again: {context.tried[result.signature()]}"]
    return result, words


def subject(axis: str, hypothesis: Hypothesis, variant: Variant, moves: Moves) -> str:
    """`<axis>: <what changes>, <from> -> <to>`, on one line of at most SUBJECT_LENGTH characters."""
    shown = [key for key in variant.show if key in moves] or list(moves)[:1]
    return subject_of(axis, variant.what or hypothesis.what, moves, shown)


def subject_of(axis: str, what: str, moves: Moves, shown: Iterable[str]) -> str:
    head = f"{axis}: {' '.join(what.split())}, "
    room = max(12, (SUBJECT_LENGTH - len(head) - 4) // 2)
    old, new = ("/".join(_in_subject(moves[key][side]) for key in shown) for side in (0, 1))
    return f"{head}{_cut(old, room)} -> {_cut(new, room)}"


def _in_subject(value: Any) -> str:
    return short(value).strip("'\"").replace("\n", " ") if value not in ("", [], {}) else "none"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def _comparator(hypothesis: Hypothesis, recipe: Recipe) -> Recipe | None:
    if not hypothesis.comparator:
        return None
    comparator = with_keys(recipe, hypothesis.comparator)
    return comparator if comparator.signature() != recipe.signature() else None


# --- the score ---------------------------------------------------------------------------------------------


def _score(hypothesis: Hypothesis, variant: Variant, context: _Context, *, keys: int) -> tuple[float, list[str]]:
    """(score, its factors in words) of a form that moves this many keys."""
    need, why = _need(hypothesis, variant, context)
    symptoms = [finding.symptom for finding in context.findings]
    why += in_spite_of(hypothesis, variant, machine=context.machine, symptoms=symptoms)
    factors = [
        _reading_factor(hypothesis, context),
        *_machine_factors(hypothesis, variant, context),
        *context.record.factors(hypothesis, variant),
        _cost_factor(variant.cost or hypothesis.cost, keys),
        (VALIDATED, "the claim is validated elsewhere") if hypothesis.status == "validated" else (1.0, ""),
    ]
    why += [f"x{factor:.2f} {reason}" for factor, reason in factors if factor != 1]
    return need * math.prod(factor for factor, _ in factors), why


def _need(hypothesis: Hypothesis, variant: Variant, context: _Context) -> tuple[float, list[str]]:
    """How much this is called for: by symptoms, by the queue, or by its prior alone."""
    answered = _fits(hypothesis, variant, context)
    left = math.prod(1 - finding.severity * fit for finding, fit in answered)
    why = [
        f"answers {finding.symptom} (severity {finding.severity:.2f}, fit {fit:.2f}): {finding.evidence}"
        for finding, fit in answered
    ]
    boost, reason = context.record.queued(hypothesis)
    if boost:
        left *= 1 - boost
        why.append(reason)
    need = max(1 - left, hypothesis.prior)
    if not why:
        why = [f"no symptom asks for it; worth {hypothesis.prior:.2f} by itself"]
    return need, [f"need {need:.2f}", *why]


def _fits(hypothesis: Hypothesis, variant: Variant, context: _Context) -> list[tuple[Finding, float]]:
    fits = hypothesis.answers | variant.answers
    return [(finding, fits[finding.symptom]) for finding in context.findings if fits.get(finding.symptom)]


def _answered(hypothesis: Hypothesis, variant: Variant, context: _Context) -> list[Finding]:
    """The symptoms that it answers, best first."""
    best_first = sorted(_fits(hypothesis, variant, context), key=lambda pair: -pair[0].severity * pair[1])
    return [finding for finding, _ in best_first]


def _reading_factor(hypothesis: Hypothesis, context: _Context) -> tuple[float, str]:
    tags = context.playbook.tags_of(hypothesis.id)
    pointing = [reading.reading for reading in context.readings if tags & set(reading.points_to)]
    return (READING_FACTOR, f"the run reads as {' and '.join(pointing)}") if pointing else (1.0, "")


def _machine_factors(hypothesis: Hypothesis, variant: Variant, context: _Context) -> list[tuple[float, str]]:
    """The strongest rule for the idea on this machine, and the strongest against it."""
    named = {*context.playbook.tags_of(hypothesis.id), hypothesis.id, f"{hypothesis.id}/{variant.name}"}
    first, last = (1.0, ""), (1.0, "")
    for rule in context.playbook.resources.values():
        if not _holds(rule, context):
            continue
        says = f"{rule.says} (rule {rule.id})"
        if named & set(rule.prefer) and rule.factor > first[0]:
            first = rule.factor, says
        if named & set(rule.defer) and 1 / rule.factor < last[0]:
            last = 1 / rule.factor, says
    return [first, last]


def _holds(rule: ResourceRule, context: _Context) -> bool:
    """Whether the machine and the recipe are those that the rule is for. What is not known is not of a kind."""
    machine = context.machine
    accelerators = machine.accelerators if machine else 0
    if not (rule.at_least <= accelerators and (rule.at_most is None or accelerators <= rule.at_most)):
        return False
    if rule.machine and (machine is None or machine.kind not in rule.machine):
        return False
    if rule.arch and (machine is None or machine.arch not in rule.arch):
        return False
    return fails(rule.when, context.recipe) is None


def _cost_factor(cost: float, keys: int) -> tuple[float, str]:
    """A costly idea has to promise more; of two equal ideas the one that moves fewer keys comes first."""
    factor = 1 / math.sqrt(cost) / (1 + 0.04 * (keys - 1))
    parts = [f"costs {cost:g} runs"] if cost != 1 else []
    parts += [f"moves {keys} keys"] if keys > 1 else []
    return factor, " and ".join(parts)


# --- numbers of one axis together ---------------------------------------------------------------------------


def _refinement(
    ranked: Sequence[Proposal], context: _Context, *, only: str | None, seed: int
) -> tuple[Proposal | None, Skipped | None]:
    """A proposal for the best axis whose numbers matter together, or why it has none. Most often neither."""
    for axis in dict.fromkeys([*(proposal.axis for proposal in ranked), *context.playbook.axes]):
        if only not in (None, axis) or context.steering.against(f"{REFINE}{axis}", axis):
            continue
        refinement = refinement_of(
            axis,
            context.playbook,
            context.recipe,
            context.record.here,
            machine=context.machine,
            constraints=[limit for limit in context.constraints if not context.dead_ends.lifted(limit, {})],
        )
        if refinement is not None:
            barred = context.steering.against_keys(knob.key for knob in refinement.knobs)
            return (None, Skipped(f"{REFINE}{axis}", barred)) if barred else _refined(refinement, context, seed)
    return None, None


def _refined(refinement: Refinement, context: _Context, seed: int) -> tuple[Proposal | None, Skipped | None]:
    name = f"{REFINE}{refinement.axis}"
    score, why, (hypothesis, variant) = _refined_score(refinement, name, context)
    answered = _answered(hypothesis, variant, context)
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
    refinement: Refinement, answered: Sequence[Finding], context: _Context, seed: int
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
    refinement: Refinement, name: str, context: _Context
) -> tuple[float, list[str], tuple[Hypothesis, Variant]]:
    """That of the axis' best numeric form, times REFINED or REFINED_LATER; its factors in words; the form."""
    scored = [
        (*_score(hypothesis, variant, context, keys=len(variant.scale)), (hypothesis, variant))
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
    from_ = f"Gaussian process over {knobs} from {len(refinement.trials)} points, {refinement.crashes} of them crashed"
    why += [f"scored as {form[0].id}/{form[1].name}", from_, f"x{factor:.2f} {reason}"]
    return score * factor, why, form


# --- order, advice, words ----------------------------------------------------------------------------------


def _signatures(history: Sequence[Attempt], campaign: str | None) -> dict[str, str]:
    return {a.signature: f"{TRIED} {a.name(campaign)}: {a.result}" for a in history if a.signature}


def _order(proposal: Proposal, seed: int) -> tuple[float, str]:
    """Equal scores: hypotheses by lot, the forms of one hypothesis in the order of its file (sorting is stable)."""
    return (-round(proposal.score, 9), hashlib.sha256(f"{seed}:{proposal.hypothesis}".encode()).hexdigest())


def _without_twins(proposals: list[Proposal]) -> list[Proposal]:
    """Two hypotheses may lead to the same recipe; the better placed one stays."""
    seen: set[str] = set()
    kept = []
    for proposal in proposals:
        signature = proposal.recipe.signature()
        if signature not in seen:
            seen.add(signature)
            kept.append(proposal)
    return kept


def _spread(proposals: list[Proposal], seed: int) -> list[Proposal]:
    """Further forms of the same hypothesis step back, so that the head of the list is different ideas."""
    above: dict[str, int] = {}
    spread = []
    for proposal in proposals:
        count = above.get(proposal.hypothesis, 0)
        above[proposal.hypothesis] = count + 1
        if count:
            factor = SAME_HYPOTHESIS**count
            words = f"x{factor:.2f} another form of {proposal.hypothesis} stands above"
            proposal = replace(proposal, score=proposal.score * factor, why=[*proposal.why, words])
        spread.append(proposal)
    return sorted(spread, key=lambda proposal: _order(proposal, seed))


def _advice(playbook: Playbook, recipe: Recipe, findings: list[Finding]) -> list[Advice]:
    advice = []
    for action in playbook.actions.values():
        asked = [finding for finding in findings if finding.symptom in action.answers]
        if not asked:
            continue
        values = Change(scale=action.scale).values(recipe) if _scalable(action.scale, recipe) else {}
        why = "; ".join(f"{finding.symptom}: {finding.evidence}" for finding in asked)
        advice.append(Advice(action.id, " ".join(action.does.split()), why, values))
    return advice


def _scalable(scale: Mapping[str, float], recipe: Recipe) -> bool:
    try:
        Change(scale=dict(scale)).values(recipe)
    except (ChangeRefused, ValueError):
        return False
    return True


def _note(proposals: list[Proposal], skipped: list[Skipped], only: str | None) -> str:
    scope = f" of {only}" if only else ""
    if proposals:
        left = {proposal.hypothesis for proposal in proposals}
        without = len({skip.hypothesis.partition("/")[0] for skip in skipped} - left)
        ideas = "1 hypothesis" if len(left) == 1 else f"{len(left)} hypotheses"
        forms = "" if len(proposals) == len(left) else f" in {len(proposals)} forms"
        rest = f", {without} {'is' if without == 1 else 'are'} skipped" if without else ""
        return f"{ideas}{scope}{forms} can be tried{rest}"
    reasons: dict[str, int] = {}
    for skip in skipped:
        tried = "the same recipe again" in skip.reason or TRIED in skip.reason
        kind = "tried already" if tried else "do not fit this recipe or machine"
        kind = f"barred by {FILE}" if FILE in skip.reason else kind
        reasons[kind] = reasons.get(kind, 0) + 1
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(reasons.items()))
    return f"no idea{scope} is left: {words}" if words else f"no idea{scope} is left"
