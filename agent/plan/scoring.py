"""How much a form of a hypothesis is worth trying now: a product of factors, each told in words.

need        how badly the symptoms it answers are (1 - product of 1 - severity x fit), or its prior
reading     the bottleneck readings that point at its axis or tags
machine     the resource rules for this number and kind of accelerators
record      what became of its axis and of itself, here and in earlier campaigns
cost, size  what it costs to try, and how many keys it moves
"""

from __future__ import annotations

import math

from agent.plan.context import Context
from agent.plan.fit import fails, in_spite_of
from agent.plan.schema import Hypothesis, ResourceRule, Variant
from agent.plan.symptoms import Finding

READING_FACTOR = 1.15
VALIDATED = 1.1


def score_of(hypothesis: Hypothesis, variant: Variant, context: Context, *, keys: int) -> tuple[float, list[str]]:
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


def _need(hypothesis: Hypothesis, variant: Variant, context: Context) -> tuple[float, list[str]]:
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


def _fits(hypothesis: Hypothesis, variant: Variant, context: Context) -> list[tuple[Finding, float]]:
    fits = hypothesis.answers | variant.answers
    return [(finding, fits[finding.symptom]) for finding in context.findings if fits.get(finding.symptom)]


def answered_by(hypothesis: Hypothesis, variant: Variant, context: Context) -> list[Finding]:
    """The symptoms that it answers, best first."""
    best_first = sorted(_fits(hypothesis, variant, context), key=lambda pair: -pair[0].severity * pair[1])
    return [finding for finding, _ in best_first]


def _reading_factor(hypothesis: Hypothesis, context: Context) -> tuple[float, str]:
    tags = context.playbook.tags_of(hypothesis.id)
    pointing = [reading.reading for reading in context.readings if tags & set(reading.points_to)]
    return (READING_FACTOR, f"the run reads as {' and '.join(pointing)}") if pointing else (1.0, "")


def _machine_factors(hypothesis: Hypothesis, variant: Variant, context: Context) -> list[tuple[float, str]]:
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


def _holds(rule: ResourceRule, context: Context) -> bool:
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
