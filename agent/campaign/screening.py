"""A cheap rung before the full run, where more ideas wait than the night affords: it rejects, and never keeps.

Successive halving (Jamieson and Talwalkar 2016) in its simplest form. A batch of ideas is trained for the first part of
their budget and paused; the best of them go on where they stopped, the others are discarded as screened. The rank goes
by the `select` split, which the trainer measures after every cycle anyway, against the incumbent's runs over the same
part of theirs. No verdict is spent: what goes on is filtered and confirmed like any idea.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.campaign.comparison import Comparison, compare, group_noise
from agent.campaign.evidence import Evidence
from agent.campaign.experiment import underpowered
from agent.campaign.lab import Lab
from agent.campaign.verdict import Judgement, Verdict, span_of
from agent.report.words import points


def worth_screening(lab: Lab, evidence: Evidence) -> bool:
    """Enough ideas wait, not all of them can be afforded whole, and a part of a training tells something.

    It tells nothing where the trainer does not measure `select`, or the incumbent itself hardly trains: then the
    first idea is the one that mends it.
    """
    rules = lab.rules
    last = evidence.last_run(lab.incumbent)
    if last is None or last.progress(rules.screen_share) is None or underpowered(lab.budget, last):
        return False
    if lab.max_experiments is not None and lab.max_experiments - len(lab.outcomes()) < rules.batch:
        return False
    waiting = lab.waiting()
    return waiting >= rules.batch and lab.ideas_left() + 1 < rules.scarce * waiting


def screen_batch(lab: Lab, evidence: Evidence) -> None:
    """Plan a batch, train each idea of it a little, discard the weaker ones; the others stay open.

    Raises CutShort where the campaign ends first.
    """
    rank_batch(lab, evidence, _planned_batch(lab))


def rank_batch(lab: Lab, evidence: Evidence, numbers: Sequence[int]) -> None:
    """Train each a little, discard the weaker ones. What is done already is read back."""
    judged = {number for number, _ in lab.outcomes()}
    lab.say(f"screening {len(numbers)} ideas over {lab.rules.screen_share:.0%} of their budget")
    ranked = sorted(
        ((_first_part(lab, evidence, number), number) for number in numbers),
        key=lambda one: -one[0].delta if one[0] else math.inf,
    )
    goes_on = max(1, round(lab.rules.survivors * len(numbers)))
    for place, (found, number) in enumerate(ranked, start=1):
        if place <= goes_on or found is None:
            lab.say(f"  goes on: {lab.title(number)}" + (f", {span_of(found)} so far" if found else ""))
            continue
        reason = (
            f"screened: place {place} of {len(ranked)} after {lab.rules.screen_share:.0%} of the budget, "
            f"{points(found.delta)} on select"
        )
        if number in judged:
            continue
        run = lab.screen(number, lab.rules.screen_share)
        lab.conclude(number, Judgement(Verdict("discard", reason, found, "screened"), run))


def _planned_batch(lab: Lab) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < lab.rules.batch:
        number, _ = lab.next_idea(batch=numbers[0] if numbers else 0)
        if number is None:
            break
        numbers.append(number)
    return numbers


def _first_part(lab: Lab, evidence: Evidence, number: int) -> Comparison | None:
    """How the idea did so far; None where that cannot be told (it crashed, or measured nothing yet): it goes on, and
    the full run shows why."""
    lab.commit(number)
    share = lab.rules.screen_share
    ours = lab.screen(number, share).progress(share)
    theirs = [run.progress(share) for run in evidence.search_runs(lab.incumbent)]
    known = [scores for scores in theirs if scores is not None]
    if ours is None or not known:
        return None
    return compare([ours], known, group_noise(known))
