"""What the loop orders, as jobs for the runner: the recipe, the seed, the folder, the words; and back from the journal.

What is repaired while it runs (a baseline's repeat, an idea's search run) becomes its jobs in `repair.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.campaign.lab import MEASURED_ON, Arm, Order
from agent.campaign.session import Session, run_key, title
from agent.contract import CHECKPOINT, UNTRAINED, Split
from agent.ledger.events import RunPlanned, RunStarted
from agent.recipe.files import recipe_from
from agent.recipe.schema import Recipe

SEED_OF: dict[Arm, int] = {"search": 0, "candidate": 100, "incumbent": 500, "comparator": 700}
"""Added to the experiment's own thousand, so that no two runs of a campaign share a seed."""


@dataclass(frozen=True)
class Job:
    key: str
    """Names the run and its folder; unique in the campaign."""
    what: str
    """For people."""
    recipe: Recipe
    seed: int
    role: str
    rung: str
    experiment: int | None = None
    arm: str | None = None
    splits: tuple[Split, ...] = ("search",)
    evaluate: str | None = None
    rung_at: float | None = None
    """Share of the training budget after which it is measured on the way."""
    trying: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the layer below, with their values, that this run tries on behalf of all later ones."""


def seed_of(session: Session, order: Order) -> int:
    first = session.recipe_of(0).seed
    if order.arm == "baseline":
        return first + 1 + order.index
    return first + 1000 * order.experiment + SEED_OF[order.arm] + order.index


def words_for(session: Session, order: Order) -> str:
    """What a person is told that it is."""
    number = order.experiment
    if order.arm == "baseline":
        return f"baseline {order.index + 1} of {session.settings.baseline_seeds}"
    if order.arm == "search":
        return f"{title(session.state.experiments[number])}{', once more' if order.index else ''}"
    if order.arm == "candidate":
        return f"confirming {title(session.state.experiments[number])}"
    if order.arm == "comparator":
        return f"constant-rate comparator of #{number}"
    return f"{f'incumbent #{number}' if number else 'baseline'} beside #{order.beside}"


def untrained(session: Session) -> Job:
    """The model as it comes, evaluated."""
    recipe = session.recipe_of(0)
    return Job(
        key="untrained-search",
        what="untrained model",
        recipe=session.with_shared_layer(recipe),
        seed=recipe.seed,
        role="baseline",
        rung="calibrate",
        arm=UNTRAINED,
        evaluate=UNTRAINED,
    )


def confirming(session: Session, order: Order) -> Job:
    """A run of a candidate, of the incumbent or of a constant-rate comparator on the confirm split.

    An incumbent's runs serve for every candidate that challenges it. A recipe that was kept was kept for its own
    confirming runs: as the incumbent it needs fresh ones.
    """
    of, seed = order.experiment, seed_of(session, order)
    recipe = _comparator(session, of) if order.arm == "comparator" else session.recipe_of(of)
    name = "confirm" if order.arm == "candidate" else order.arm
    return Job(
        key=run_key([f"{of:03d}-{name}", f"s{seed}"]),
        what=words_for(session, order),
        recipe=session.with_shared_layer(recipe),
        seed=seed,
        role="confirm",
        rung="confirm",
        experiment=None if order.arm == "incumbent" else of,
        arm=order.arm,
        splits=MEASURED_ON[order.arm],
    )


def _comparator(session: Session, number: int) -> Recipe:
    planned = session.state.experiments[number].planned
    assert planned is not None
    assert planned.model_extra is not None
    return recipe_from(planned.model_extra["comparator"], where=f"comparator of #{number}")


def second_look(session: Session, key: str, order: Order) -> Job:
    """What the run of that key delivered, evaluated once more in a process of its own."""
    recipe = session.recipe_of(order.experiment)
    return Job(
        key=run_key([key, "again"]),
        what=f"a second look at {key}",
        recipe=session.with_shared_layer(recipe),
        seed=recipe.seed,
        role="confirm",
        rung="confirm",
        experiment=order.experiment,
        arm="again",
        splits=("confirm",),
        evaluate=str(session.runs_folder / key / CHECKPOINT),
    )


def arm_of(words: RunPlanned | RunStarted) -> Arm | None:
    """The arm of evidence that a journalled run belongs to; None for probes, holdout and the untrained model."""
    if words.role == "experiment":
        return "search" if words.arm == "candidate" else None
    if words.role == "confirm":
        known: dict[str | None, Arm] = {"candidate": "candidate", "incumbent": "incumbent", "comparator": "comparator"}
        return known.get(words.arm)
    return "baseline" if words.role == "baseline" and words.arm is None else None
