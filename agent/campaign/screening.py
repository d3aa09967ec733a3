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
from agent.campaign.endgame import seconds_of_the_end
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
    if _seconds(lab) + seconds_of_the_end(lab) > lab.clock.left_s:
        return False
    waiting = lab.waiting()
    return waiting >= rules.batch and lab.ideas_left() + 1 < rules.scarce * waiting


def _seconds(lab: Lab) -> float:
    """Of a batch, the full runs of those that go on included."""
    rules, cost = lab.rules, lab.cost(lab.incumbent)
    go_on = max(1, round(rules.survivors * rules.batch))
    return rules.batch * (cost.overhead_s + rules.screen_share * cost.train_s) + go_on * cost.total_s


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
    losers: list[tuple[int, str, Comparison]] = []
    for place, (found, number) in enumerate(ranked, start=1):
        if place <= goes_on or found is None:
            lab.say(f"  goes on: {lab.title(number)}" + (f", {span_of(found)} so far" if found else ""))
            continue
        losers.append((number, f"place {place} of {len(ranked)}", found))
    for number, place_words, found in sorted(losers, key=lambda one: one[0]):
        if number not in judged:
            lab.conclude(number, _screened(lab, number, place_words, found))


def not_gone_on(lab: Lab, evidence: Evidence, number: int, why: str) -> Judgement:
    """An idea that was good enough to go on, and for which there is no time."""
    return _screened(lab, number, f"not gone on with, {why}", _first_part(lab, evidence, number))


def _screened(lab: Lab, number: int, words: str, found: Comparison | None) -> Judgement:
    share = lab.rules.screen_share
    so_far = f", {points(found.delta)} on select" if found else ""
    reason = f"screened: {words}; after {share:.0%} of the budget{so_far}"
    return Judgement(Verdict("discard", reason, found, "screened"), lab.screen(number, share))


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
