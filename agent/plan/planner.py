"""Which change to try next, and why: ranks the playbook's hypotheses for one recipe, without a language model.

`context.py` has what an idea is weighed by, `scoring.py` how, `proposal.py` makes a hypothesis an experiment, and
`refining.py` adds one that moves several numbers of an axis together. Here they are put in order.

What it does not do: run anything, judge a result, or touch a locked key (agent.recipe.change refuses).
The same arguments give the same ranking; `seed` only breaks ties.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.errors import UsageError
from agent.plan.context import context_of
from agent.plan.memory import TRIED, Attempt, Constraint
from agent.plan.proposal import Proposal, Skipped, proposals_of
from agent.plan.refining import refinement
from agent.plan.schema import Playbook
from agent.plan.steer import BARRED, FILE, FREE, Steering
from agent.plan.symptoms import Finding, Observation, ReadingFinding
from agent.recipe.change import Change, ChangeRefused
from agent.recipe.schema import Recipe
from agent.recipe.validating import nearest

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

SAME_HYPOTHESIS = 0.5
"""For each further form of a hypothesis that already stands higher in the list."""


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
    refined, given_up = refinement(proposals, context, only=only, seed=seed)
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
        kind = BARRED if FILE in skip.reason else kind
        reasons[kind] = reasons.get(kind, 0) + 1
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(reasons.items()))
    return f"no idea{scope} is left: {words}" if words else f"no idea{scope} is left"
