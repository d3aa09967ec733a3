"""The campaign's level: what is spent, and that it is never more than there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.campaign.levels import Used, left, next_level
from agent.campaign.rules import Rules

RULES = Rules()


def test_a_kept_candidate_gives_its_level_back() -> None:
    assert left(RULES, [Used(0.01, kept=False), Used(0.02, kept=True)]) == pytest.approx(0.04)


def test_the_fewer_confirmations_are_to_come_the_more_a_confirmation_may_use() -> None:
    few, many = (next_level(RULES, [], to_come=to_come) for to_come in (0.5, 5.0))
    assert few > many
    assert next_level(RULES, [], to_come=10_000) == pytest.approx(RULES.alpha * RULES.least_share)
    assert next_level(RULES, [], to_come=0) == pytest.approx(RULES.alpha * RULES.most_share)
    assert next_level(RULES, [], to_come=5, last=True) == pytest.approx(RULES.alpha * RULES.last_share)


@given(st.lists(st.tuples(st.floats(0, 50), st.booleans(), st.booleans()), max_size=60))
def test_candidates_that_are_not_kept_never_use_up_more_than_the_level(nights: list[tuple[float, bool, bool]]) -> None:
    """Also where the last chance of a night was not the last, because the campaign was given more time."""
    used: list[Used] = []
    for to_come, kept, last in nights:
        level = next_level(RULES, used, to_come=to_come, last=last)
        assert 0 < level <= RULES.alpha
        used.append(Used(level, kept))
    assert sum(one.level for one in used if not one.kept) < RULES.alpha


def test_the_looks_of_a_confirmation_share_its_level() -> None:
    assert sum(share for _, share in RULES.looks) == pytest.approx(1)
    assert RULES.looks[0][0] == RULES.confirm_seeds
    assert RULES.shares(RULES.most_seeds) == dict(RULES.looks)
    for most in range(RULES.most_seeds + 1):
        assert sum(RULES.shares(most).values()) == pytest.approx(1)
        assert max(RULES.shares(most)) <= max(most, RULES.confirm_seeds)


def test_few_confirmations_are_to_come_where_the_lead_is_confirmed_in_the_end() -> None:
    """One by one only while there is time for more than `alone_runs`; then those of the end."""
    ends = len(RULES.together_p)
    assert RULES.to_come(waiting=100, affordable=RULES.alone_runs) == ends
    assert RULES.to_come(waiting=100, affordable=RULES.alone_runs + 20) == ends + 20 * RULES.filter_alpha
    assert RULES.to_come(waiting=8, affordable=RULES.alone_runs + 20) == ends + 8 * RULES.filter_alpha
