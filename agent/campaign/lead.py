"""The recipe that the next ideas build on: the incumbent, or, on top of it, what was promising since and waits for its
confirmation.

Where the time is too short to confirm ideas one by one, a promising idea waits. After a round of ideas, all that wait
are put into one recipe, which is run once: a run that nobody has chosen for its result, so that the next round is not
measured against a lucky one. Where it measures better than what it was built on, it leads: the next ideas are changes
of it. So a search climbs without a verdict; at the end the lead is confirmed as a whole against the incumbent
(`endgame.py`), and nothing of the campaign's level is spent before.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.campaign.comparison import Comparison
from agent.campaign.endgame import seconds_of_the_end
from agent.campaign.lab import Lab, Past, promising
from agent.campaign.verdict import Verdict, span_of


def worth_advancing(lab: Lab) -> bool:
    """Whether a round is over in which something was promising, and there is time for another round on top of it."""
    past = lab.past()
    if not promising(past) or (_since_the_last(past) < lab.rules.round and lab.waiting()):
        return False
    a_run = lab.cost(lab.lead).total_s
    return lab.clock.left_s - a_run >= seconds_of_the_end(lab) + lab.rules.lead_left * a_run


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
