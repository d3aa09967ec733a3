"""What a comparison decides, in words."""

from __future__ import annotations

import pytest

from agent.campaign.comparison import Comparison, RunNoise
from agent.campaign.verdict import judge_confirmed, judge_filtered, passes_filter


def comparison(delta: float, error: float, df: int = 30) -> Comparison:
    noise = RunNoise(error**2, 0.0, df)
    return Comparison(delta, error, df, 100, 2, 2, 0.0, error, 0.5 + delta, 0.5, noise=noise)


def test_verdicts_in_words() -> None:
    keep = judge_confirmed(comparison(0.10, 0.02), level=0.03, min_effect=0.0, margin=0.01)
    assert (keep.outcome, keep.kind) == ("keep", "gain")
    assert "+10.0pp [+5.9pp, +14.1pp]" in keep.reason
    small = judge_confirmed(comparison(0.10, 0.02), level=0.03, min_effect=0.2, margin=0.01)
    assert (small.outcome, small.kind) == ("discard", "inconclusive")
    assert "less than min_effect" in small.reason
    late = judge_confirmed(comparison(0.05, 0.02), level=0.0004, min_effect=0.0, margin=0.01)
    assert (late.outcome, late.kind) == ("discard", "inconclusive")
    worse = judge_confirmed(comparison(-0.10, 0.02), level=0.03, min_effect=0.0, margin=0.01)
    assert (worse.outcome, worse.kind) == ("discard", "regressed")
    guarded = judge_confirmed(
        comparison(0.10, 0.02), level=0.03, min_effect=0.0, margin=0.01, guards={"truncation": "truncation 2% -> 60%"}
    )
    assert (guarded.outcome, guarded.kind) == ("discard", "guard")
    assert "truncation 2% -> 60%" in guarded.reason


def test_simpler_needs_an_advantage_and_non_inferiority() -> None:
    equal = comparison(0.0, 0.004)
    assert judge_confirmed(equal, level=0.03, min_effect=0.0, margin=0.02).outcome == "discard"
    kept = judge_confirmed(equal, level=0.03, min_effect=0.0, margin=0.02, advantage="simpler: two keys fewer")
    assert (kept.outcome, kept.kind) == ("keep", "simpler")
    assert "not worse by more than 2.0pp" in kept.reason
    wide = comparison(0.0, 0.03)
    assert judge_confirmed(wide, level=0.03, min_effect=0.0, margin=0.02, advantage="simpler: x").outcome == "discard"


@pytest.mark.parametrize(("delta", "worth"), [(0.02, True), (0.01, False)])
def test_the_filter_is_generous_and_never_keeps(delta: float, worth: bool) -> None:
    assert passes_filter(comparison(delta, 0.02), 0.2)[0] is worth
    assert judge_filtered(comparison(0.01, 0.02), 0.2).kind == "inconclusive"
    assert judge_filtered(comparison(-0.08, 0.02), 0.2).kind == "regressed"
