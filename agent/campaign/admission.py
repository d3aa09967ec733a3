"""The gate in front of every run: its recipe differs from the baseline's in what was planned, and in nothing else.

Whatever way another value may have come in (a file that is extended, an anchor or a merge key, a symbolic link, a fix,
an edited journal), what is compared here are the two resolved recipes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.recipe.change import LEARNING_RATE_KEYS, ChangeRefused, refuse_moved_yardstick, short
from agent.run.remedies import moved_keys

if TYPE_CHECKING:
    from agent.campaign.jobs import Job
    from agent.campaign.session import Session

SHARED = "backend"
"""Section that a step of the shared layer may change for a run or for all. One that it tries may be another key, as
that of the type that the model is computed in (`Job.trying`)."""


def refusal(session: Session, job: Job) -> ChangeRefused | None:
    """Why this job may not run; None where it may. A trial of the smallest training measures nothing, and may."""
    if job.arm == "probe":
        return None
    baseline = session.with_shared_layer(session.recipe_of(0))
    try:
        refuse_moved_yardstick(baseline, job.recipe)
        refuse_unplanned(session, job, moved_keys(baseline, job.recipe))
    except ChangeRefused as refused:
        return refused
    return None


def refuse_unplanned(session: Session, job: Job, moved: dict[str, tuple[Any, Any]]) -> None:
    """ChangeRefused for a key that nobody planned to move, or that has another value than was planned."""
    number = job.experiment if job.experiment is not None else _number_in(job.key)
    planned = planned_values(session, number)
    if job.arm == "comparator":
        planned |= dict.fromkeys(LEARNING_RATE_KEYS)
    for key, (old, new) in moved.items():
        if key == SHARED or key.startswith(f"{SHARED}.") or (key in job.trying and _alike(job.trying[key], new)):
            continue
        near = [known for known in planned if known == key or _below(known, key) or _below(key, known)]
        what = f"{key} would go from {short(old)} to {short(new)}"
        if not near:
            raise ChangeRefused(f"{what}, which no change or fix of #{number} says", key=key)
        wanted = planned.get(key)
        if key in planned and job.arm != "comparator" and not isinstance(wanted, dict) and not _alike(wanted, new):
            raise ChangeRefused(f"{what}, and the change or fix of #{number} says {short(wanted)}", key=key)


def planned_values(session: Session, number: int) -> dict[str, Any]:
    """Key -> value of all that the experiment, and those that it builds on, set or had fixed; later ones count."""
    chain = [number]
    while chain[-1]:
        chain.append(session.base_of(chain[-1]))
    values: dict[str, Any] = {}
    for one in reversed(chain):
        experiment = session.state.experiments.get(one)
        if experiment is None:
            continue
        if experiment.planned is not None:
            values |= {key: move[1] for key, move in experiment.planned.changes.items()}
        for _, fix in sorted(experiment.fixes.items()):
            values |= ((fix.model_extra or {}).get("remedy") or {}).get("values") or {}
    return values


def _number_in(key: str) -> int:
    """Of a run of an incumbent, or of the holdout's baseline or winner, which belong to no experiment."""
    digits = next((part for part in key.split("-") if len(part) >= 3 and part.isdecimal()), "0")
    return int(digits)


def _below(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _alike(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        return abs(wanted - found) <= 1e-12 * max(abs(wanted), abs(found))
    return json.dumps(wanted, sort_keys=True, default=str) == json.dumps(found, sort_keys=True, default=str)
