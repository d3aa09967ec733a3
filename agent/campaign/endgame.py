"""When no further idea can be had or afforded: the lead, the near-misses together, what the winner can do without.

The lead. What was promising and was built on without a verdict (`lead.py`) is confirmed as one recipe.

Near-misses. An idea that measured better and could not be shown to be better was discarded as inconclusive. Several of
them in one recipe add up, and what each alone could not show, all together may. They are one more experiment, filtered
and confirmed like any other.

Drop-one ablation. An idea that was kept may have become a passenger by what was kept after it. The winner without it
is one more experiment; it is kept, as the simpler recipe, where it is shown that less than half of the gain for which
the idea was kept is left (non-inferiority by that margin, from the campaign's level).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.campaign.budget import RunCost, holdout_seconds
from agent.campaign.lab import Lab, Past, best_first

WORTH_ANOTHER = ("inconclusive", "promising", "screened")
"""Kinds of discard under which an idea may still be good."""
SLOWER = 1.2
"""Than predicted: what is put off to the end must have time there."""
FEWEST = 2
"""Kept ideas of which one may be a passenger."""


def last_experiment(lab: Lab) -> int | None:
    """The next experiment of the end, planned; None where there is none, or no time for its confirmation."""
    if least_seconds(lab) > lab.clock.left_s:
        return None
    return confirm_lead(lab) or _near_misses_together(lab) or _winner_without(lab)


def last_chance(lab: Lab, needed: float) -> bool:
    """Whether a lead or near-misses wait that had no experiment of the end yet, and would have no time for it after
    something else that takes so many seconds."""
    if not least_seconds(lab) <= lab.clock.left_s < needed + seconds_of_the_end(lab):
        return False
    return _what_leads(lab) != [] or (not _times(lab.past()) and bool(near_misses(lab)))


def seconds_of_the_end(lab: Lab) -> float:
    """Of an experiment with the smallest confirmation, and of the holdout: what is kept for them. And of a run of what
    waits from before the lead, on top of it."""
    first = dearest(lab).total_s if waits_from_before(lab) else 0.0
    return least_seconds(lab, slower=SLOWER) + SLOWER * first


def waits_from_before(lab: Lab) -> bool:
    """Whether something is promising that was measured on another recipe than the one that leads now."""
    lead = lab.lead
    return any(one.base != lead for one in lab.promises())


def least_seconds(lab: Lab, *, slower: float = 1.0) -> float:
    """The same as predicted: with less time it is not begun."""
    ours, theirs, seeds = dearest(lab), lab.cost(lab.incumbent), lab.rules.confirm_seeds
    return slower * ((1 + seeds) * ours.total_s + seeds * theirs.total_s) + holdout_seconds(ours)


def dearest(lab: Lab) -> RunCost:
    """Of a run of the lead, or of an idea that waits to be put together with it: as much as all together may cost."""
    numbers = [lab.lead, *(one.number for one in lab.promises())]
    return max((lab.cost(number) for number in numbers), key=lambda cost: cost.total_s)


def confirm_lead(lab: Lab) -> int | None:
    """What leads, and what was promising on top of it, against the incumbent."""
    numbers = _what_leads(lab) if least_seconds(lab) <= lab.clock.left_s else []
    return lab.plan_together(numbers, of_lead=True) if numbers else None


def _what_leads(lab: Lab) -> list[int]:
    lead = lab.lead
    return [*([lead] if lead != lab.incumbent else []), *(one.number for one in lab.promises() if one.base == lead)]


def _near_misses_together(lab: Lab) -> int | None:
    missed = near_misses(lab)
    if not missed:
        return None
    return lab.plan_together([one.number for one in best_first(missed)])


def near_misses(lab: Lab) -> list[Past]:
    """What was discarded as inconclusive: less of it the first time on an incumbent, more of it where there is time for
    a second."""
    past = lab.past()
    times = _times(past)
    if times >= len(lab.rules.together_p):
        return []
    parts = {one.number: one.together for one in past}
    kept = {part for one in past if one.outcome == "keep" for part in _all_parts(one.number, parts)}
    before = {part for one in past if not one.advance for part in _all_parts(one.number, parts)}
    found = [
        one
        for one in past
        if one.outcome == "discard" and one.kind in WORTH_ANOTHER and not one.together and one.without is None
        and one.p_value is not None and one.p_value < lab.rules.together_p[times] and one.number not in kept
    ]  # fmt: skip
    return found if any(one.number not in before for one in found) else []


def _all_parts(number: int, parts: Mapping[int, Sequence[int]]) -> set[int]:
    """What an experiment put together, and what these had put together."""
    found = set(parts.get(number, ()))
    return found.union(*(_all_parts(part, parts) for part in found))


def _times(past: Sequence[Past]) -> int:
    """Experiments of near-misses together since the last keep."""
    times = 0
    for one in reversed(past):
        if one.outcome == "keep":
            break
        times += bool(one.together) and not one.advance and not one.of_lead
    return times


def _winner_without(lab: Lab) -> int | None:
    """The kept idea with the smallest gain first, each once. What was left out is in the winner no more, and having
    left it out is no idea that could be taken back."""
    past = lab.past()
    gone = {one.without for one in past if one.outcome == "keep"}
    ideas = [one for one in past if one.outcome == "keep" and one.without is None and one.number not in gone]
    kept = [one for one in ideas if one.kind == "gain" and one.delta]
    done = {one.without for one in past}
    if len(kept) < FEWEST:
        return None
    for one in sorted(kept, key=lambda one: one.delta or 0.0):
        if one.number not in done:
            number = lab.plan_without(one.number, margin=(one.delta or 0.0) / 2)
            if number is not None:
                return number
    return None
