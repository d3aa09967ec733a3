"""What the playbook knows and supposes about the learning rate, as recommendations with their sources.

The words are the playbook's: a fact whose status changes, or a hypothesis that is found to hold, changes what is
recommended, and nothing has to be changed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agent.plan.schema import Fact, Hypothesis, Playbook, Variant

AXIS = "learning-rate"
SCHEDULE = "lr_schedule"
SOURCES = {
    "seed": "seed document on RLVR experiments",
    "reference": "published trainers",
    "own": "this project's own idea",
}


@dataclass(frozen=True)
class Recommendation:
    kind: Literal["measured", "hypothesis"]
    says: str
    do: str
    """What follows from it; nothing where nothing does."""
    source: str
    name: str
    """`fact:ID` or `HYPOTHESIS/FORM`: where the words are in the playbook."""
    status: str
    """As the playbook has it: validated, hypothesis, unknown, experimental."""
    tested_by: list[str]
    """What puts it to the test, for `raft-agent run --only`."""
    answers: dict[str, float]
    """Symptoms for which it is tried, with how well it fits, the best first."""
    schedule: dict[str, Any] | None
    """Keys of `learner.lr_schedule` that a form sets."""


def recommendations(playbook: Playbook) -> list[Recommendation]:
    """First the facts that have an advice, then the schedules to try; in both what was measured comes first."""
    facts = [_of_fact(fact) for fact in playbook.facts.values() if fact.advice]
    forms = [
        _of_form(hypothesis, variant, playbook)
        for hypothesis in playbook.hypotheses.values()
        if playbook.axis_of[hypothesis.id] == AXIS
        for variant in hypothesis.variants
        if any(SCHEDULE in key for key in variant.set)
    ]
    forms.sort(key=lambda one: max(one.answers.values(), default=0.0), reverse=True)
    return sorted(facts, key=_order) + sorted(forms, key=_order)


def _order(one: Recommendation) -> bool:
    return one.kind != "measured"


def _of_fact(fact: Fact) -> Recommendation:
    return Recommendation(
        kind="measured" if fact.status == "validated" else "hypothesis",
        says=fact.says,
        do=fact.advice,
        source=fact.source,
        name=f"fact:{fact.id}",
        status=fact.status,
        tested_by=list(fact.tested_by),
        answers={},
        schedule=None,
    )


def _of_form(hypothesis: Hypothesis, variant: Variant, playbook: Playbook) -> Recommendation:
    answers = {**hypothesis.answers, **variant.answers}
    return Recommendation(
        kind="measured" if hypothesis.status == "validated" else "hypothesis",
        says=hypothesis.claim,
        do=variant.what or hypothesis.what,
        source=SOURCES[hypothesis.source],
        name=f"{hypothesis.id}/{variant.name}",
        status=hypothesis.status,
        tested_by=[hypothesis.id],
        answers=dict(sorted(((s, fit) for s, fit in answers.items() if fit), key=lambda pair: -pair[1])),
        schedule={key.rsplit(".", 1)[1]: value for key, value in variant.set.items() if SCHEDULE in key},
    )
