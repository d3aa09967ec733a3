"""A cheap rung before the full run, where more ideas wait than the night affords: it rejects, and never keeps.

Successive halving (Jamieson and Talwalkar 2016) in its simplest form. A batch of ideas is trained for the first part of
their budget, measured on the search split and paused; the best of them go on where they stopped, the others are
discarded as screened. The rank goes by the difference to the incumbent's runs at the same part of their budget. No
verdict is spent: what goes on is filtered and confirmed like any idea.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.campaign.comparison import Comparison, compare
from agent.campaign.endgame import seconds_of_the_end
from agent.campaign.evidence import Evidence
from agent.campaign.health import underpowered
from agent.campaign.lab import Lab
from agent.campaign.scores import Scores
from agent.campaign.verdict import Judgement, Verdict, span_of


def worth_screening(lab: Lab, evidence: Evidence) -> int:
    """How many ideas to screen together: 0 unless enough wait, not all of them can be afforded whole, there is room for
    them, and a part of a training tells something and is much cheaper than the whole.

    It tells nothing where the incumbent was not measured on its way (another trainer may not do it), or hardly trains:
    then the first idea is the one that mends it.
    """
    share, cost = lab.screen_share, lab.cost(lab.lead)
    if share is None or _first_part_s(lab, share) > lab.rules.most_part * cost.total_s:
        return 0
    last = evidence.last_run(lab.lead)
    if last is None or underpowered(lab.budget, last) or not _on_the_way(evidence, lab.lead):
        return 0
    if not lab.ideas_abound():
        return 0
    most = min(lab.rules.batch, lab.waiting(), lab.room_for_paused())
    if lab.max_experiments is not None:
        most = min(most, lab.max_experiments - len(lab.outcomes()))
    spare = lab.clock.left_s - seconds_of_the_end(lab)
    fitting = [size for size in range(lab.rules.least_batch, most + 1) if _seconds(lab, size) <= spare]
    return max(fitting, default=0)


def _seconds(lab: Lab, size: int) -> float:
    """Of a batch, the full runs of those that go on included."""
    return size * _first_part_s(lab, lab.screen_share or 1.0) + _survivors(lab, size) * seconds_to_go_on(lab)


def _first_part_s(lab: Lab, share: float) -> float:
    """Seconds of the first part of an idea's training, with its measurement."""
    cost = lab.cost(lab.lead)
    return cost.overhead_s + share * cost.train_s + cost.evaluate_s


def seconds_to_go_on(lab: Lab, number: int | None = None) -> float:
    """Of what is left of a paused training. `number`: whose, where it is known."""
    cost = lab.cost(lab.lead)
    done = 0.0 if number is not None and lab.begins_anew(number) else lab.screen_share or 0.0
    return cost.total_s - done * cost.train_s


def _survivors(lab: Lab, size: int) -> int:
    return max(1, round(lab.rules.survivors * size))


def screen_batch(lab: Lab, evidence: Evidence, size: int) -> None:
    """Plan a batch, train each idea of it a little, discard the weaker ones; the others stay open.

    Raises CutShort where the campaign ends first.
    """
    rank_batch(lab, evidence, _planned_batch(lab, size))


def rank_batch(lab: Lab, evidence: Evidence, numbers: Sequence[int]) -> None:
    """Train each a little, discard the weaker ones. What is done already is read back."""
    judged = {number for number, _ in lab.outcomes()}
    lab.say(f"screening {len(numbers)} ideas over {lab.screen_share or 1:.0%} of their budget")
    ranked = sorted(
        ((_first_part(lab, evidence, number), number) for number in numbers),
        key=lambda one: -one[0].delta if one[0] else math.inf,
    )
    goes_on = _survivors(lab, len(numbers))
    losers: list[tuple[int, str, Comparison]] = []
    for place, (found, number) in enumerate(ranked, start=1):
        if place <= goes_on or found is None:
            lab.say(f"  goes on: {lab.title(number)}" + (f", {span_of(found, lab.numbers)} so far" if found else ""))
            continue
        losers.append((number, f"place {place} of {len(ranked)}", found))
    for number, place_words, found in sorted(losers, key=lambda one: one[0]):
        if number not in judged:
            lab.conclude(number, _screened(lab, number, place_words, found))


def not_gone_on(lab: Lab, evidence: Evidence, number: int, why: str) -> Judgement:
    """An idea that was good enough to go on, and for which there is no time."""
    return _screened(lab, number, f"not gone on with, {why}", _first_part(lab, evidence, number))


def second_chance(lab: Lab) -> int | None:
    """With nothing else to try, and time left: the best of what was screened out, planned to be trained whole."""
    if seconds_of_the_end(lab) + lab.cost(lab.lead).total_s > lab.clock.left_s:
        return None
    past = lab.past()
    had = {one.again for one in past}
    out = [one for one in past if one.kind == "screened" and one.p_value is not None and one.number not in had]
    planned = (lab.plan_again(one.number) for one in sorted(out, key=lambda one: one.p_value or 0.0))
    return next((number for number in planned if number is not None), None)


def _screened(lab: Lab, number: int, words: str, found: Comparison | None) -> Judgement:
    share = lab.screen_share or 1.0
    so_far = f", {lab.numbers.difference(found.delta)} on search" if found else ""
    reason = f"screened: {words}; after {share:.0%} of the budget{so_far}"
    return Judgement(Verdict("discard", reason, found, "screened"), lab.screen(number))


def _planned_batch(lab: Lab, size: int) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < size:
        number, _ = lab.next_idea(batch=numbers[0] if numbers else 0)
        if number is None:
            break
        numbers.append(number)
    return numbers


def _first_part(lab: Lab, evidence: Evidence, number: int) -> Comparison | None:
    """How the idea did so far; None where that cannot be told (it crashed, or measured nothing yet): it goes on, and
    the full run shows why."""
    lab.commit(number)
    ours = lab.screen(number).on_the_way()
    theirs = _on_the_way(evidence, lab.planned_against(number))
    if ours is None or not theirs:
        return None
    return compare([ours], theirs, evidence.noise)


def _on_the_way(evidence: Evidence, experiment: int) -> list[Scores]:
    """Of the baseline's repeats; of another, of the run that led to it."""
    runs = evidence.runs(experiment, "search") if experiment else evidence.baseline()
    known = [run.on_the_way() for run in runs]
    return [scores for scores in known if scores is not None]
