"""When no further idea can be had or afforded: the near-misses together, and what the winner can do without.

Near-misses. An idea that measured better and could not be shown to be better was discarded as inconclusive. Several of
them in one recipe add up, and what each alone could not show, all together may. They are one more experiment, filtered
and confirmed like any other.

Drop-one ablation. An idea that was kept may have become a passenger by what was kept after it. The winner without it
is one more experiment; it is kept, as the simpler recipe, where it is shown that less than half of the gain for which
the idea was kept is left (non-inferiority by that margin, from the campaign's level).
"""

from __future__ import annotations

from agent.campaign.budget import holdout_seconds
from agent.campaign.lab import Lab, Past

WORTH_ANOTHER = ("inconclusive", "screened")
"""Kinds of discard under which an idea may still be good."""
FEWEST = 2
"""Kept ideas of which one may be a passenger."""


def last_experiment(lab: Lab) -> int | None:
    """The next experiment of the end, planned; None where there is none, or no time for its confirmation."""
    if _needed(lab) > lab.clock.left_s:
        return None
    return _near_misses_together(lab) or _winner_without(lab)


def last_chance(lab: Lab) -> bool:
    """Whether near-misses wait, and after one more idea there would be no time for them."""
    step = lab.cost(lab.incumbent).total_s * (1 + lab.rules.batch * lab.rules.screen_share)
    return lab.clock.left_s - step < _needed(lab) and bool(_near_misses(lab))


def _needed(lab: Lab) -> float:
    """Seconds of an experiment with the smallest confirmation, and of the holdout."""
    cost = lab.cost(lab.incumbent)
    return (1 + 2 * lab.rules.confirm_seeds) * cost.total_s + holdout_seconds(cost)


def _near_misses_together(lab: Lab) -> int | None:
    missed = _near_misses(lab)
    if not missed:
        return None
    best_first = sorted(missed, key=lambda one: -(one.delta or 0.0))
    return lab.plan_together([one.number for one in best_first])


def _near_misses(lab: Lab) -> list[Past]:
    past = lab.past()
    spent = {part for one in past for part in one.parts}
    return [
        one
        for one in past
        if one.outcome == "discard" and one.kind in WORTH_ANOTHER and not one.parts and one.number not in spent
        and one.p_value is not None and one.p_value < lab.rules.together_p
    ]  # fmt: skip


def _winner_without(lab: Lab) -> int | None:
    """The kept idea with the smallest gain first, each once."""
    past = lab.past()
    kept = [one for one in past if one.outcome == "keep" and one.kind == "gain" and one.delta]
    done = {part for one in past if one.kind != "gain" for part in one.parts}
    if len(kept) < FEWEST:
        return None
    for one in sorted(kept, key=lambda one: one.delta or 0.0):
        if one.number not in done:
            number = lab.plan_without(one.number, margin=(one.delta or 0.0) / 2)
            if number is not None:
                return number
    return None
