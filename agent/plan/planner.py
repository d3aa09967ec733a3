"""Which change to try next, and why: ranks the playbook's hypotheses for one recipe, without a language model.

The score of a proposal is a product whose factors are all told in `why`:

    need        how badly the symptoms it answers are (1 - product of 1 - severity x fit), or its prior
    reading     the bottleneck readings that point at its axis or tags
    machine     the resource rules for this number of accelerators
    record      what became of its axis and of itself, here and in earlier campaigns
    cost, size  what it costs to try, and how many keys it moves

What it does not do: run anything, judge a result, or touch a locked key (agent.recipe.change refuses).
The same arguments give the same ranking; `seed` only breaks ties.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from agent.errors import UsageError
from agent.plan.fit import build_change, lacking
from agent.plan.playbook import nearest
from agent.plan.schema import Hypothesis, Playbook, Variant
from agent.plan.symptoms import Finding, Observation, ReadingFinding, diagnose, observed, read_bottleneck
from agent.recipe.change import Change, ChangeRefused, short
from agent.recipe.files import with_keys
from agent.recipe.schema import Recipe

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

READING_FACTOR = 1.15
FRUITLESS_TRIES = 3
"""Tries in a row on one axis without success after which the axis is changed."""
FRUITLESS_FACTOR = 0.35
FAILED_AGAIN = 0.6
"""For each earlier failure of the same hypothesis."""
EARLIER_WEIGHT = 0.5
"""Of an attempt in an earlier campaign, or before the incumbent was last replaced, beside a fresh one."""
SAME_HYPOTHESIS = 0.5
"""For each further form of a hypothesis that already stands higher in the list."""
NARROWEST = 0.25
VALIDATED = 1.1
SUBJECT_LENGTH = 100

Outcome = Literal["keep", "discard", "crash"]
UNDERPOWERED = "underpowered"
OPEN_REASONS = (UNDERPOWERED, "tainted", "interrupted")
"""Reasons under which an idea counts as not yet tried out, and says nothing about its axis. An underpowered try still
speaks against further forms of the same hypothesis for now: it did not get the training going either."""


@dataclass(frozen=True)
class Attempt:
    """An idea that was tried, in this campaign or an earlier one."""

    hypothesis: str
    axis: str
    values: Mapping[str, tuple[Any, Any]]
    """Key -> (from, to)."""
    signature: str
    """Recipe.signature() of what was run; empty where it is not known."""
    outcome: Outcome
    reason: str = ""
    delta: float | None = None
    crash_class: str | None = None
    campaign: str | None = None

    @property
    def open(self) -> bool:
        return self.outcome != "keep" and self.reason.startswith(OPEN_REASONS)


@dataclass(frozen=True)
class Constraint:
    """A limit learned from a crash: the planner proposes nothing beyond it."""

    key: str
    reason: str
    at_most: float | None = None
    at_least: float | None = None
    not_value: Any = None

    def broken_by(self, value: Any) -> bool:
        if self.not_value is not None and value == self.not_value:
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        too_high = self.at_most is not None and value > self.at_most
        return too_high or (self.at_least is not None and value < self.at_least)


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
) -> Ranking:
    """Rank every form of every hypothesis for `recipe`, the incumbent.

    `observation` is the incumbent's last run. `history` is in order of time, earlier campaigns first; attempts
    whose `campaign` differs from this one weigh half. `tried` are further signatures that may not come again.
    `only` is an axis or hypothesis id; UsageError names the nearest for an unknown one.
    """
    _check_only(playbook, only)
    findings = diagnose(observation, playbook) if observation else []
    readings = read_bottleneck(observation, playbook) if observation else []
    context = _Context(
        playbook=playbook,
        recipe=recipe,
        machine=machine,
        findings=findings,
        readings=readings,
        facts=observed(observation) if observation else {},
        record=_Record(playbook, history, campaign),
        constraints=constraints,
        tried={recipe.signature(): "it is the incumbent"} | dict.fromkeys(tried, "tried before") | _signatures(history),
    )
    proposals: list[Proposal] = []
    skipped: list[Skipped] = []
    for hypothesis in playbook.hypotheses.values():
        if only not in (None, hypothesis.id, playbook.axis_of[hypothesis.id]):
            continue
        found, reasons = _proposals_of(hypothesis, context)
        proposals += found
        if not found:
            skipped.append(Skipped(hypothesis.id, "; ".join(dict.fromkeys(reasons))))
    ranked = _spread(_without_twins(sorted(proposals, key=lambda proposal: _order(proposal, seed))), seed)
    return Ranking(
        proposals=ranked,
        skipped=skipped,
        findings=findings,
        readings=readings,
        actions=_advice(playbook, recipe, findings),
        note=_note(ranked, skipped, only),
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
    record: _Record
    constraints: Sequence[Constraint]
    tried: Mapping[str, str]


def _proposals_of(hypothesis: Hypothesis, context: _Context) -> tuple[list[Proposal], list[str]]:
    """The forms of the hypothesis that can be tried now, and the reasons against the others."""
    proposals, reasons = [], []
    for variant in hypothesis.variants:
        reason = lacking(hypothesis, variant, context.recipe, machine=context.machine)
        if reason is None:
            proposal, reason = _propose(hypothesis, variant, context)
            if proposal is not None:
                proposals.append(proposal)
        if reason:
            reasons.append(reason)
    return proposals, reasons


def _propose(hypothesis: Hypothesis, variant: Variant, context: _Context) -> tuple[Proposal | None, str]:
    strength, narrowed = context.record.strength(hypothesis, variant)
    built = build_change(variant, context.recipe, facts=context.facts, strength=strength)
    if built.change is None:
        return None, built.why_not
    moves = built.change.values(context.recipe)
    for constraint in context.constraints:
        if constraint.key in moves and constraint.broken_by(moves[constraint.key][1]):
            return None, f"{constraint.key} {short(moves[constraint.key][1])} is ruled out: {constraint.reason}"
    try:
        result = built.change.apply(context.recipe)
    except ChangeRefused as error:
        return None, error.message
    if result.signature() in context.tried:
        return None, f"the same recipe again: {context.tried[result.signature()]}"
    score, why, answered = _score(hypothesis, variant, moves, context)
    return Proposal(
        hypothesis=hypothesis.id,
        axis=context.playbook.axis_of[hypothesis.id],
        change=built.change,
        recipe=result,
        score=score,
        why=[*why, narrowed] if narrowed else why,
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


def subject(axis: str, hypothesis: Hypothesis, variant: Variant, moves: Mapping[str, tuple[Any, Any]]) -> str:
    """`<axis>: <what changes>, <from> -> <to>`, on one line of at most SUBJECT_LENGTH characters."""
    shown = [key for key in variant.show if key in moves] or list(moves)[:1]
    head = f"{axis}: {variant.what or hypothesis.what}, "
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


def _score(
    hypothesis: Hypothesis, variant: Variant, moves: Mapping[str, tuple[Any, Any]], context: _Context
) -> tuple[float, list[str], list[Finding]]:
    """(score, its factors in words, the symptoms answered, best first)."""
    need, why, answered = _need(hypothesis, variant, context)
    factors = [
        _reading_factor(hypothesis, context),
        _machine_factor(hypothesis, context),
        *context.record.factors(hypothesis, variant),
        _cost_factor(variant.cost or hypothesis.cost, len(moves)),
        (VALIDATED, "the claim is validated elsewhere") if hypothesis.status == "validated" else (1.0, ""),
    ]
    why += [f"x{factor:.2f} {reason}" for factor, reason in factors if factor != 1]
    return need * math.prod(factor for factor, _ in factors), why, answered


def _need(hypothesis: Hypothesis, variant: Variant, context: _Context) -> tuple[float, list[str], list[Finding]]:
    """How much this is called for: by symptoms, by the queue, or by its prior alone."""
    fits = hypothesis.answers | variant.answers
    answered = [(finding, fits[finding.symptom]) for finding in context.findings if fits.get(finding.symptom)]
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
    best_first = sorted(answered, key=lambda pair: -pair[0].severity * pair[1])
    return need, [f"need {need:.2f}", *why], [finding for finding, _ in best_first]


def _reading_factor(hypothesis: Hypothesis, context: _Context) -> tuple[float, str]:
    tags = context.playbook.tags_of(hypothesis.id)
    pointing = [reading.reading for reading in context.readings if tags & set(reading.points_to)]
    return (READING_FACTOR, f"the run reads as {' and '.join(pointing)}") if pointing else (1.0, "")


def _machine_factor(hypothesis: Hypothesis, context: _Context) -> tuple[float, str]:
    accelerators = context.machine.accelerators if context.machine else 0
    tags = context.playbook.tags_of(hypothesis.id)
    factor, says = 1.0, ""
    for rule in context.playbook.resources.values():
        fits = rule.at_least <= accelerators and (rule.at_most is None or accelerators <= rule.at_most)
        if fits and tags & set(rule.prefer) and rule.factor > factor:
            factor, says = rule.factor, rule.says
    return factor, says


def _cost_factor(cost: float, keys: int) -> tuple[float, str]:
    """A costly idea has to promise more; of two equal ideas the one that moves fewer keys comes first."""
    factor = 1 / math.sqrt(cost) / (1 + 0.04 * (keys - 1))
    parts = [f"costs {cost:g} runs"] if cost != 1 else []
    parts += [f"moves {keys} keys"] if keys > 1 else []
    return factor, " and ".join(parts)


# --- what was tried ----------------------------------------------------------------------------------------


class _Record:
    """What became of earlier attempts, weighted: fresh ones count whole, older and foreign ones half."""

    def __init__(self, playbook: Playbook, history: Sequence[Attempt], campaign: str | None):
        self.playbook = playbook
        self.history = list(history)
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
            self._own_factor(hypothesis, variant),
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
        return 0.5 + rate, f"{axis}: {count} of {len(closed)} tries kept"

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

    def _own_factor(self, hypothesis: Hypothesis, variant: Variant) -> tuple[float, str]:
        failures = sum(
            weight
            for attempt, weight in zip(self.history, self.weights, strict=True)
            if attempt.hypothesis == hypothesis.id
            and attempt.outcome != "keep"
            and (not attempt.open or attempt.reason.startswith(UNDERPOWERED))
            and not _opposite(attempt, variant)
        )
        if not failures:
            return 1.0, ""
        return FAILED_AGAIN**failures, f"{hypothesis.id} has failed before (weight {failures:g})"

    def strength(self, hypothesis: Hypothesis, variant: Variant) -> tuple[float, str]:
        """Exponent of the variant's factors: halved for each success of the knob, and each time that both ways have
        failed around the value it has now; and the words for it."""
        if not variant.scale:
            return 1.0, ""
        keys = set(variant.scale)
        same = [attempt for attempt in self.here if _moved(attempt, keys) and attempt.hypothesis == hypothesis.id]
        keeps = sum(attempt.outcome == "keep" for attempt in same)
        since = same[max((i + 1 for i, a in enumerate(same) if a.outcome == "keep"), default=0) :]
        ways = [_direction(attempt, keys) for attempt in since if attempt.outcome != "keep" and not attempt.open]
        both = min(ways.count(1), ways.count(-1))
        strength = max(NARROWEST, 0.5 ** (keeps + both))
        if strength == 1:
            return 1.0, ""
        reason = f"{keeps} success{'es' if keeps > 1 else ''}" if keeps else "both ways failed"
        reason += " and both ways failed since" if keeps and both else ""
        factors = ", ".join(f"x{factor**strength:.3g} instead of x{factor:g}" for factor in variant.scale.values())
        return strength, f"narrowed after {reason}: {factors}"

    def queued(self, hypothesis: Hypothesis) -> tuple[float, str]:
        """(boost, why) where a kept change has queued this hypothesis and nothing of its kind was tried since."""
        for queue in self.playbook.queues.values():
            if hypothesis.id not in queue.then:
                continue
            for attempt in reversed(self.here):
                if attempt.hypothesis in queue.then and not attempt.open:
                    break
                if attempt.outcome == "keep" and any(_below(key, queue.after_kept) for key in attempt.values):
                    return queue.boost, f"queued by the kept {attempt.hypothesis}: {queue.says}"
        return 0.0, ""


def _below(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _moved(attempt: Attempt, keys: set[str]) -> bool:
    return keys <= set(attempt.values)


def _direction(attempt: Attempt, keys: Iterable[str]) -> int:
    """1 up, -1 down, 0 not a number, of the first of the keys that the attempt moved."""
    for key in keys:
        old, new = attempt.values.get(key, (None, None))
        if isinstance(old, int | float) and isinstance(new, int | float) and old != new:
            return 1 if new > old else -1
    return 0


def _opposite(attempt: Attempt, variant: Variant) -> bool:
    """Whether the attempt moved a number the other way: its failure does not speak against this form."""
    first = next(iter(variant.scale), None)
    if first is None:
        return False
    return _direction(attempt, [first]) == (-1 if variant.scale[first] > 1 else 1)


def _signatures(history: Sequence[Attempt]) -> dict[str, str]:
    words = {}
    for attempt in history:
        if attempt.signature:
            where = f" in {attempt.campaign}" if attempt.campaign else ""
            words[attempt.signature] = f"tried as {attempt.hypothesis}{where}: {attempt.outcome}"
    return words


# --- order, advice, words ----------------------------------------------------------------------------------


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
        hypotheses = len({proposal.hypothesis for proposal in proposals})
        return f"{hypotheses} hypotheses{scope} in {len(proposals)} forms can be tried, {len(skipped)} are skipped"
    reasons: dict[str, int] = {}
    for skip in skipped:
        kind = "tried already" if "the same recipe again" in skip.reason else "do not fit this recipe or machine"
        reasons[kind] = reasons.get(kind, 0) + 1
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(reasons.items()))
    return f"no idea{scope} is left: {words}" if words else f"no idea{scope} is left"
