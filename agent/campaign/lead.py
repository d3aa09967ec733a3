"""The recipe that the next ideas build on: the incumbent, or, on top of it, what was promising since and waits for its
confirmation.

Where the time is too short to confirm ideas one by one, a promising idea waits. What is clear at once, by its own run,
is built on at once: many settings move the same few things, and what each of them gains alone, several together overdo.
What is not clear waits for the end of a round of ideas; then all that wait are put into one recipe. Either way the
recipe is run once more, a run that nobody has chosen for its result, so that what comes next is not measured against a
lucky one. Where it measures better than what it was built on, it leads: the next ideas are changes of it. So a search
climbs without a verdict. What still waits before the end is run on top of the lead in the same way; then the lead is
confirmed as a whole against the incumbent (`endgame.py`), and nothing of the campaign's level is spent before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.campaign.comparison import Comparison
from agent.campaign.endgame import dearest, seconds_of_the_end, waits_beside_the_lead
from agent.campaign.lab import Lab
from agent.campaign.past import Past
from agent.campaign.verdict import Verdict, span_of, stopped_by
from agent.report.numbers import Numbers


def to_advance(lab: Lab) -> list[int]:
    """Promising ideas to put together now, the best first; none where none are, or where it is not the time."""
    lead, rules = lab.lead, lab.rules
    waiting = lab.promises()
    for one in waiting:
        clear = one.base == lead and one.p_as_if_known is not None and one.p_as_if_known < rules.clear_p
        if clear and _time_for(lab, one.number, 1 + rules.clear_left):
            return [one.number]
    if _since_the_last(lab.past()) >= rules.round or not lab.waiting():
        in_time = [one.number for one in waiting if _time_for(lab, one.number, 1 + rules.lead_left)]
        if in_time:
            return in_time
    return _last_chance_on_the_lead(lab)


def _time_for(lab: Lab, number: int, runs: float) -> bool:
    """For so many runs that the idea is a part of, beside the end."""
    return lab.clock.left_s >= seconds_of_the_end(lab) + runs * dearest(lab, [lab.lead, number]).total_s


def _last_chance_on_the_lead(lab: Lab) -> list[int]:
    """What waits beside the lead, where it could not be run on top of it after another idea."""
    waits = waits_beside_the_lead(lab)
    if lab.waiting() and lab.clock.left_s >= lab.cost(lab.lead).total_s + seconds_of_the_end(lab):
        return []
    return [one.number for one in waits]


def _since_the_last(past: Sequence[Past]) -> int:
    """Ideas that were judged since the lead, or the incumbent, was changed or was about to be."""
    places = [place for place, one in enumerate(past, start=1) if one.advance or one.outcome == "keep"]
    return len(past) - max(places, default=0)


def judge_advance(on_search: Comparison, guards: Mapping[str, str], *, numbers: Numbers) -> Verdict:
    """Of what was promising put together, beside what it was built on. It keeps nothing. `guards`: the broken ones."""
    if guards:
        return stopped_by(guards, on_search)
    span = span_of(on_search, numbers)
    if on_search.delta > 0:
        words = f"leads: {span} on search; unconfirmed, the next ideas build on it"
        return Verdict("discard", words, on_search, "lead")
    return Verdict(
        "discard", f"inconclusive: {span} on search, run once more it is no better", on_search, "inconclusive"
    )
