"""What an idea is weighed and admitted by: the incumbent, what its run has shown, and what is known already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.plan.memory import TRIED, Attempt, Constraint, DeadEnds, Record
from agent.plan.schema import Playbook
from agent.plan.steer import FREE, Steering
from agent.plan.symptoms import Finding, Observation, ReadingFinding, diagnose, observed, read_bottleneck
from agent.recipe.schema import Recipe

if TYPE_CHECKING:
    from agent.hardware.probe import Machine


@dataclass(frozen=True)
class Context:
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
) -> Context:
    """What a proposal is weighed and admitted by.

    `observation` is the incumbent's last run. `history` is in order of time, earlier campaigns first; attempts
    whose `campaign` differs from this one weigh half. `tried` are further signatures that may not come again.
    `steering` is what a person pinned and banned.
    """
    dead_ends = DeadEnds(playbook, history, recipe, campaign)
    return Context(
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


def _signatures(history: Sequence[Attempt], campaign: str | None) -> dict[str, str]:
    return {a.signature: f"{TRIED} {a.name(campaign)}: {a.result}" for a in history if a.signature}
