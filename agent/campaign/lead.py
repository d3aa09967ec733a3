"""The recipe that the next ideas build on: the incumbent, or, on top of it, what was promising since and waits for its
confirmation.

Where the time is too short to confirm ideas one by one, a promising idea waits. What is clear at once, by its own run,
is built on at once: many settings move the same few things, and what each of them gains alone, several together overdo.
What is not clear waits for the end of a round of ideas; then all that wait are put into one recipe. Either way the
recipe is run once more, a run that nobody has chosen for its result, so that what comes next is not measured against a
lucky one. Where it measures better than what it was built on, it leads: the next ideas are changes of it. So a search
climbs without a verdict; at the end the lead is confirmed as a whole against the incumbent (`endgame.py`), and nothing
of the campaign's level is spent before.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.campaign.comparison import Comparison
from agent.campaign.endgame import SLOWER, dearest, least_seconds, seconds_of_the_end, waits_from_before
from agent.campaign.lab import Lab, Past
from agent.campaign.verdict import Verdict, span_of


def to_advance(lab: Lab) -> list[int]:
    """Promising ideas to put together now, the best first; none where none are, or where it is not the time."""
    waiting, rules = lab.promises(), lab.rules
    clear = [one for one in waiting if one.base == lab.lead and _is_clear(one, rules.clear_p)]
    if clear and _time_for(lab, 1 + rules.clear_left):
        return [clear[0].number]
    round_is_over = _since_the_last(lab.past()) >= rules.round or not lab.waiting()
    if (round_is_over and _time_for(lab, 1 + rules.lead_left)) or _last_chance_on_the_lead(lab):
        return [one.number for one in waiting]
    return []


def _is_clear(one: Past, level: float) -> bool:
    return one.p_as_if_known is not None and one.p_as_if_known < level


def _time_for(lab: Lab, runs: float) -> bool:
    return lab.clock.left_s >= seconds_of_the_end(lab) + runs * dearest(lab).total_s


def _last_chance_on_the_lead(lab: Lab) -> bool:
    """Whether what waits from before the lead could not be run on top of it after another idea. It is not confirmed
    with the lead unseen."""
    if not waits_from_before(lab) or lab.clock.left_s < SLOWER * dearest(lab).total_s + least_seconds(lab):
        return False
    return not lab.waiting() or lab.clock.left_s < lab.cost(lab.lead).total_s + seconds_of_the_end(lab)


def _since_the_last(past: Sequence[Past]) -> int:
    """Ideas that were judged since the lead, or the incumbent, was changed or was about to be."""
    places = [place for place, one in enumerate(past, start=1) if one.advance or one.outcome == "keep"]
    return len(past) - max(places, default=0)


def judge_advance(on_search: Comparison) -> Verdict:
    """Of what was promising put together, beside what it was built on. It keeps nothing."""
    span = span_of(on_search)
    if on_search.delta > 0:
        words = f"leads: {span} on search; unconfirmed, the next ideas build on it"
        return Verdict("discard", words, on_search, "lead")
    return Verdict("discard", f"inconclusive: {span} on search, together no better", on_search, "inconclusive")
