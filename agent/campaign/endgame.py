"""When no further idea can be had or afforded: the lead, the near-misses together, what the winner can do without.

The lead. What was promising and was built on without a verdict (`lead.py`) is confirmed as one recipe.

Near-misses. An idea that measured better and could not be shown to be better was discarded as inconclusive. Several of
them in one recipe add up, and what each alone could not show, all together may. They are one more experiment, filtered
and confirmed like any other.

Drop-one ablation. An idea that was kept may have become a passenger by what was kept after it, and one that was kept
together with others may never have done anything. The winner without it is one more experiment; it is kept, as the
simpler recipe, where it is shown that less than half of the gain for which the idea was kept, or of its equal share of
what was kept together, is lost (non-inferiority by that margin, from the campaign's level).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.campaign.budget import RunCost, holdout_seconds
from agent.campaign.lab import Lab
from agent.campaign.past import Past, best_first

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
    return _to_confirm(lab) != [] or (not _times(lab.past()) and near_misses_wait(lab))


def seconds_of_the_end(lab: Lab) -> float:
    """Of an experiment with the smallest confirmation, and of the holdout: what is kept for them. And of a run of what
    waits beside the lead, on top of it."""
    waits = [one.number for one in waits_beside_the_lead(lab)]
    if not waits:
        return least_seconds(lab, slower=SLOWER)
    return _least(lab, [lab.lead, *waits], slower=SLOWER) + SLOWER * dearest(lab, waits).total_s


def least_seconds(lab: Lab, *, slower: float = 1.0) -> float:
    """The same as predicted: with less time it is not begun."""
    return _least(lab, _to_confirm(lab) or [lab.incumbent], slower=slower)


def fits(lab: Lab, number: int) -> bool:
    """Whether there is time to confirm what the idea is a part of: where something else leads, after a run on top of
    that."""
    parts = [number, lab.lead]
    first = SLOWER * dearest(lab, parts).total_s if lab.lead != lab.incumbent else 0.0
    return first + _least(lab, parts) <= lab.clock.left_s


def crowds_out(lab: Lab, number: int) -> bool:
    """Whether confirming the idea now would take more time than confirming what waits for the end, and leave too little
    for that."""
    if not _to_confirm(lab):
        return False
    needed = lab.seconds_to_confirm([number], seeds=lab.rules.confirm_seeds)
    return needed > least_seconds(lab) > lab.clock.left_s - needed


def dearest(lab: Lab, numbers: Iterable[int]) -> RunCost:
    """Of a run of each of these recipes, the dearest: as much as all together may cost."""
    return max((lab.cost(number) for number in numbers), key=lambda cost: cost.total_s)


def _least(lab: Lab, parts: Sequence[int], *, slower: float = 1.0) -> float:
    """Of a recipe that has these in it: a run on search, the first look of a confirmation, and the holdout."""
    ours, confirmation = dearest(lab, parts), lab.seconds_to_confirm(parts, seeds=lab.rules.confirm_seeds)
    return slower * (ours.total_s + confirmation) + holdout_seconds(ours)


def waits_beside_the_lead(lab: Lab) -> list[Past]:
    """Promising ideas that have not run together with what leads, as far as there is time for it. None of them is
    confirmed with the lead unseen."""
    if lab.lead == lab.incumbent:
        return []
    return [one for one in lab.promises() if fits(lab, one.number)]


def confirm_lead(lab: Lab) -> int | None:
    """What leads against the incumbent; what was promising where nothing leads."""
    numbers = _to_confirm(lab) if least_seconds(lab) <= lab.clock.left_s else []
    return lab.plan_together(numbers, of_lead=True) if numbers else None


def _to_confirm(lab: Lab) -> list[int]:
    if lab.lead != lab.incumbent:
        return [lab.lead]
    return [one.number for one in lab.promises() if fits(lab, one.number)]


def near_misses_wait(lab: Lab) -> bool:
    """For their next time, with something new among them."""
    next_p = lab.rules.together_p[_times(lab.past()) :][:1]
    missed = [one.number for p_value in next_p for one in _affordable_misses(lab, p_value)]
    return _never_together(lab.past(), missed) != []


def _near_misses_together(lab: Lab) -> int | None:
    """Less is asked of each where there is time for a second time, or nothing for a first."""
    for p_value in lab.rules.together_p[_times(lab.past()) :]:
        missed = [one.number for one in best_first(_affordable_misses(lab, p_value))]
        new = _never_together(lab.past(), missed)
        # where the best of them move the same keys as others, what was together before may be all that goes together
        for numbers in (missed, new) if new else ():
            planned = lab.plan_together(numbers)
            if planned is not None:
                return planned
    return None


def _affordable_misses(lab: Lab, p_value: float) -> list[Past]:
    return [one for one in _near_misses(lab, p_value) if _least(lab, [one.number]) <= lab.clock.left_s]


def _near_misses(lab: Lab, p_value: float) -> list[Past]:
    """What was discarded as inconclusive, and is not in the winner."""
    past = lab.past()
    parts = {one.number: one.together for one in past}
    kept = {part for one in past if one.outcome == "keep" for part in _all_parts(one.number, parts)}
    return [
        one
        for one in past
        if one.outcome == "discard" and one.kind in WORTH_ANOTHER and not one.together and one.without is None
        and one.p_value is not None and one.p_value < p_value and one.number not in kept
    ]  # fmt: skip


def _never_together(past: Sequence[Past], numbers: Sequence[int]) -> list[int]:
    """Those that no experiment of the end had in it."""
    parts = {one.number: one.together for one in past}
    before = {part for one in past if not one.advance for part in _all_parts(one.number, parts)}
    return [number for number in numbers if number not in before]


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
    """The idea with the smallest gain first, each once."""
    ideas = _in_the_winner(lab.past())
    done = {one.without for one in lab.past()}
    if len(ideas) < FEWEST:
        return None
    for number, gain in ideas.items():
        if number not in done:
            planned = lab.plan_without(number, margin=gain / 2)
            if planned is not None:
                return planned
    return None


def _in_the_winner(past: Sequence[Past]) -> dict[int, float]:
    """Ideas that were kept for a gain, alone or together with others -> the gain, or an equal share of it; the ones
    that measured least first. What was left out is in the winner no more, and having left it out is no idea that could
    be taken back."""
    gone = {one.without for one in past if one.outcome == "keep"}
    parts = {one.number: one.together for one in past}
    leads = {one.number for one in past if one.kind == "lead"}
    measured = {one.number: one.delta or 0.0 for one in past}
    gains: dict[int, float] = {}
    for one in past:
        if one.outcome == "keep" and one.kind == "gain" and one.without is None and one.delta:
            whole = _all_parts(one.number, parts) or {one.number}
            if one.base in leads:
                whole |= _all_parts(one.base, parts)
            ideas = [part for part in whole if not parts.get(part)]
            gains |= {idea: one.delta / len(ideas) for idea in ideas}
    return {idea: gains[idea] for idea in sorted(gains, key=lambda idea: measured.get(idea, 0.0)) if idea not in gone}
