from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.raft.selection import Chosen, Graded, select
from agent.recipe.schema import Selection


def group(*rewards: float, truncated: tuple[int, ...] = (), same: tuple[int, ...] = ()) -> list[Graded]:
    """Samples with these rewards; those named in `same` have one and the same completion."""
    return [
        Graded(reward, reward >= 1, place in truncated, (7,) if place in same else (100 + place,))
        for place, reward in enumerate(rewards)
    ]


def places(chosen: list[Chosen], sign: int = 1) -> list[tuple[int, int]]:
    return [(c.prompt, c.sample) for c in chosen if c.sign == sign]


def test_the_best_of_each_prompt_by_reward() -> None:
    groups = [group(0.0, 1.0, 0.5, 1.5), group(2.0, 0.0, 3.0, 1.0)]
    chosen = select(groups, Selection(reward_threshold=1.0, max_per_prompt=2), seed=0)
    assert places(chosen) == [(0, 1), (0, 3), (1, 0), (1, 2)]


def test_a_group_of_equal_failures_gives_nothing() -> None:
    assert select([group(0.0, 0.0, 0.0)], Selection(), seed=0) == []


def test_a_group_of_equal_passes_gives_its_quota_at_random() -> None:
    groups = [group(*[1.0] * 6)]
    drawn = [
        tuple(place for _, place in places(select(groups, Selection(max_per_prompt=2), seed=seed)))
        for seed in range(300)
    ]
    counts = Counter(place for pair in drawn for place in pair)
    # 600 places over 6 samples: 100 each, standard deviation 9.1 (hypergeometric 2 of 6). 5 of them is safe.
    assert set(counts) == set(range(6))
    assert all(abs(count - 100) < 46 for count in counts.values())
    assert select(groups, Selection(max_per_prompt=2), seed=3) == select(groups, Selection(max_per_prompt=2), seed=3)


def test_ties_are_broken_among_equals_only() -> None:
    groups = [group(1.0, 2.0, 1.0, 2.0, 1.0)]
    for seed in range(20):
        kept = [place for _, place in places(select(groups, Selection(max_per_prompt=3), seed=seed))]
        assert {1, 3} < set(kept)


@pytest.mark.parametrize(("percent", "kept"), [(100, 5), (60, 3), (59, 2), (20, 1), (1, 1)])
def test_keep_top_percent_rounds_down_but_keeps_one(percent: float, kept: int) -> None:
    selection = Selection(keep_top_percent=percent, max_per_prompt=10)
    chosen = select([group(1.1, 1.2, 1.3, 1.4, 1.5)], selection, seed=0)
    assert places(chosen) == [(0, place) for place in range(5 - kept, 5)]


def test_a_completion_that_repeats_is_kept_once() -> None:
    groups = [group(1.0, 1.0, 1.0, 1.0, same=(0, 1, 3))]
    kept = [place for _, place in places(select(groups, Selection(), seed=1))]
    assert len(kept) == 2
    assert 2 in kept
    assert len(select(groups, Selection(dedup=False), seed=1)) == 4


def test_of_a_repeated_completion_the_best_rewarded_stays() -> None:
    assert places(select([group(1.0, 3.0, 2.0, same=(0, 1, 2))], Selection(), seed=0)) == [(0, 1)]


def test_a_cut_sample_is_no_positive_unless_asked_for() -> None:
    groups = [group(1.0, 1.0, 1.0, truncated=(0, 2))]
    assert places(select(groups, Selection(), seed=0)) == [(0, 1)]
    assert places(select(groups, Selection(truncated_as_positive=True), seed=0)) == [(0, 0), (0, 1), (0, 2)]


def test_solved_prompts_are_dropped_on_request() -> None:
    groups = [group(1.0, 1.0), group(1.0, 0.0)]
    assert places(select(groups, Selection(drop_solved=True), seed=0)) == [(1, 0)]


def test_negatives_come_from_mixed_prompts_only() -> None:
    groups = [group(1.0, 0.0, 0.0, 1.0), group(0.0, 0.0), group(1.0, 1.0)]
    chosen = select(groups, Selection(max_per_prompt=8), seed=0, with_negatives=True)
    assert places(chosen) == [(0, 0), (0, 3)]
    assert places(chosen, sign=-1) == [(0, 1), (0, 2)]


def test_a_right_answer_with_a_small_reward_is_not_trained_away_from() -> None:
    """A long one under a length penalty: it is no candidate, and no failure."""
    long = Graded(0.9, passed=True, truncated=False, tokens=(1,))
    right, wrong = (Graded(float(good), passed=good, truncated=False, tokens=(2 + good,)) for good in (True, False))
    strict = Selection(reward_threshold=0.95)
    assert select([[right, long]], strict, seed=0, with_negatives=True) == []
    chosen = select([[right, long, wrong]], strict, seed=0, with_negatives=True)
    assert (places(chosen), places(chosen, sign=-1)) == ([(0, 0)], [(0, 2)])


def test_a_reward_that_adds_up_to_the_threshold_meets_it() -> None:
    assert 0.7 + 0.1 < 0.8
    assert places(select([group(0.7 + 0.1, 0.79)], Selection(reward_threshold=0.8), seed=0)) == [(0, 0)]


def test_a_cut_pass_is_neither_positive_nor_negative() -> None:
    groups = [group(1.0, 1.0, 0.0, truncated=(1,))]
    chosen = select(groups, Selection(), seed=0, with_negatives=True)
    assert places(chosen) == [(0, 0)]
    assert places(chosen, sign=-1) == [(0, 2)]


samples = st.builds(
    Graded,
    reward=st.sampled_from([0.0, 0.5, 1.0, 1.5]),
    passed=st.booleans(),
    truncated=st.booleans(),
    tokens=st.tuples(st.integers(0, 3)),
)


@given(
    groups=st.lists(st.lists(samples, max_size=6), max_size=5),
    selection=st.builds(
        Selection,
        reward_threshold=st.sampled_from([0.0, 0.5, 1.0, 9.0]),
        keep_top_percent=st.sampled_from([1.0, 50.0, 100.0]),
        max_per_prompt=st.integers(1, 4),
        dedup=st.booleans(),
        drop_solved=st.booleans(),
        truncated_as_positive=st.booleans(),
    ),
    seed=st.integers(0, 10),
)
def test_what_is_kept_always_obeys_the_recipe(groups: list[list[Graded]], selection: Selection, seed: int) -> None:
    chosen = select(groups, selection, seed=seed)
    assert chosen == sorted(chosen, key=lambda c: (c.prompt, c.sample))
    for prompt, group_ in enumerate(groups):
        kept = [group_[c.sample] for c in chosen if c.prompt == prompt]
        assert len(kept) <= selection.max_per_prompt
        assert all(sample.reward >= selection.reward_threshold for sample in kept)
        assert selection.truncated_as_positive or not any(sample.truncated for sample in kept)
        assert not selection.dedup or len({sample.tokens for sample in kept}) == len(kept)
        open_ = not (selection.drop_solved and group_ and all(sample.passed for sample in group_))
        candidates = [
            sample
            for sample in group_
            if sample.reward >= selection.reward_threshold and (selection.truncated_as_positive or not sample.truncated)
        ]
        assert bool(kept) == bool(candidates and open_)
        if kept:
            assert max(s.reward for s in kept) == max(s.reward for s in candidates)


@given(st.lists(st.lists(samples, min_size=1, max_size=5), min_size=2, max_size=5), st.randoms())
def test_a_prompt_is_decided_by_itself(groups: list[list[Graded]], source: random.Random) -> None:
    """Replacing the other prompts changes nothing about this one: no global ranking."""
    others = [source.sample(group_, len(group_)) if i else group_ for i, group_ in enumerate(groups)]
    first = [c for c in select(groups, Selection(), seed=0) if c.prompt == 0]
    assert first == [c for c in select(others, Selection(), seed=0) if c.prompt == 0]
