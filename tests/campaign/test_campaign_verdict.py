"""What a comparison decides, in words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from made import MadeLab, MadeRun, run

from agent.campaign.comparison import Comparison, RunNoise
from agent.campaign.evidence import Evidence
from agent.campaign.experiment import _cheaper, attempt
from agent.campaign.lab import Order
from agent.campaign.verdict import judge_confirmed, judge_filtered, passes_filter
from agent.report.numbers import Numbers
from agent.simulate.lab import SUMMARY

RATES = Numbers("pass_rate")
REWARDS = Numbers("mean_reward")


def comparison(delta: float, error: float, df: int = 30) -> Comparison:
    noise = RunNoise(error**2, 0.0, df)
    return Comparison(delta, error, df, 100, 2, 2, 0.0, error, 0.5 + delta, 0.5, noise=noise)


def test_verdicts_in_words() -> None:
    keep = judge_confirmed(comparison(0.10, 0.02), level=0.03, min_effect=0.0, margin=0.01, numbers=RATES)
    assert (keep.outcome, keep.kind) == ("keep", "gain")
    assert "+10.0pp [+5.9pp, +14.1pp]" in keep.reason
    small = judge_confirmed(comparison(0.10, 0.02), level=0.03, min_effect=0.2, margin=0.01, numbers=RATES)
    assert (small.outcome, small.kind) == ("discard", "inconclusive")
    assert "less than min_effect" in small.reason
    late = judge_confirmed(comparison(0.05, 0.02), level=0.0004, min_effect=0.0, margin=0.01, numbers=RATES)
    assert (late.outcome, late.kind) == ("discard", "inconclusive")
    worse = judge_confirmed(comparison(-0.10, 0.02), level=0.03, min_effect=0.0, margin=0.01, numbers=RATES)
    assert (worse.outcome, worse.kind) == ("discard", "regressed")
    guarded = judge_confirmed(
        comparison(0.10, 0.02),
        level=0.03,
        min_effect=0.0,
        margin=0.01,
        numbers=RATES,
        guards={"truncation": "truncation 2% -> 60%"},
    )
    assert (guarded.outcome, guarded.kind) == ("discard", "guard")
    assert "truncation 2% -> 60%" in guarded.reason


def test_a_rewards_verdicts_are_in_its_own_unit() -> None:
    gain, equal = comparison(1.25, 0.02), comparison(0.0, 0.004)

    def reason(found: Comparison, min_effect: float = 0.0, advantage: str | None = None) -> str:
        return judge_confirmed(
            found, level=0.03, min_effect=min_effect, margin=0.02, numbers=REWARDS, advantage=advantage
        ).reason

    assert reason(gain).startswith("gain +1.250 [+1.209, +1.291], confirmed on 100 fresh prompts")
    assert reason(gain, min_effect=1.5).endswith("less than min_effect +1.500")
    assert "not worse by more than 0.020: +0.000 [-0.008, +0.008]" in reason(equal, advantage="simpler: x")
    assert re.search(r"; lower bound -0\.\d{3} at level 0\.030 is not above 0$", reason(equal))
    assert judge_filtered(comparison(-0.08, 0.02), 0.2, numbers=REWARDS).reason == (
        "regressed: -0.080 [-0.121, -0.039] on search, upper bound -0.054 at level 0.1"
    )
    worth, words = passes_filter(gain, 0.2, numbers=REWARDS)
    assert (worth, words) == (True, "search +1.250, lower bound at level 0.2 +1.233 above 0")


def test_simpler_needs_an_advantage_and_non_inferiority() -> None:
    equal = comparison(0.0, 0.004)
    assert judge_confirmed(equal, level=0.03, min_effect=0.0, margin=0.02, numbers=RATES).outcome == "discard"
    kept = judge_confirmed(
        equal, level=0.03, min_effect=0.0, margin=0.02, numbers=RATES, advantage="simpler: two keys fewer"
    )
    assert (kept.outcome, kept.kind) == ("keep", "simpler")
    assert "not worse by more than 2.0pp" in kept.reason
    wide = comparison(0.0, 0.03)
    assert (
        judge_confirmed(wide, level=0.03, min_effect=0.0, margin=0.02, numbers=RATES, advantage="simpler: x").outcome
        == "discard"
    )


def test_cheaper_is_what_costs_less_than_the_incumbents_runs_ever_did() -> None:
    """By more than a tenth of their mean, and by more than they differ among themselves."""

    def found(ours: float, *theirs: float, key: str = "peak_memory_gb") -> str | None:
        runs = [
            run(f"{index}", 0.5, summary=SUMMARY.model_copy(update={key: cost})) for index, cost in enumerate(theirs)
        ]
        return _cheaper(run("ours", 0.5, summary=SUMMARY.model_copy(update={key: ours})), [*runs])

    assert found(6.0, 8.0, 8.1, 8.2) == "cheaper: 8.10 -> 6.00 GB peak memory"
    assert found(7.5, 8.0, 8.1, 8.2) is None, "less than a tenth"
    assert found(6.0, 7.0, 8.0, 9.0) is None, "they differ by 2 GB"
    assert found(50.0, 80.0, 81.0, key="train_s") == "cheaper: 80.50 -> 50.00 s of training"
    assert found(6.0) is None


def test_a_training_that_was_killed_and_went_on_does_not_make_another_look_cheaper() -> None:
    def of(seconds: float, starts: int) -> MadeRun:
        return run(f"{seconds}", 0.5, summary=SUMMARY.model_copy(update={"train_s": seconds, "starts": starts}))

    assert _cheaper(of(50.0, 1), [of(80.0, 2), of(52.0, 1)]) is None
    assert _cheaper(of(50.0, 1), [of(80.0, 2)]) is None
    assert _cheaper(of(50.0, 2), [of(80.0, 1)]) is not None, "one that was killed and is faster still"


def test_a_cheaper_recipe_is_kept_where_it_is_shown_to_be_no_worse() -> None:
    """As good on every prompt with three quarters of the memory; 2 points worse it is not kept."""
    for mean, kind in ((0.50, "cheaper"), (0.48, "regressed")):

        def made(order: Order, mean: float = mean) -> MadeRun:
            ours = order.arm in ("search", "candidate")
            summary = SUMMARY.model_copy(update={"peak_memory_gb": 6.0 if ours else 8.0})
            key = f"{order.experiment}-{order.arm}-{order.index}"
            return run(key, mean if ours else 0.5, seed=order.index, summary=summary)

        lab, evidence = MadeLab(made), Evidence[Any]()
        for index in range(3):
            evidence.add(made(Order(0, "baseline", index)), experiment=0, arm="baseline")
        verdict = attempt(lab, evidence, 1).verdict
        assert verdict.kind == kind
        assert verdict.outcome == ("keep" if kind == "cheaper" else "discard")


@pytest.mark.parametrize(("delta", "worth"), [(0.02, True), (0.01, False)])
def test_the_filter_is_generous_and_never_keeps(delta: float, worth: bool) -> None:
    assert passes_filter(comparison(delta, 0.02), 0.2, numbers=RATES)[0] is worth
    assert judge_filtered(comparison(0.01, 0.02), 0.2, numbers=RATES).kind == "inconclusive"
    assert judge_filtered(comparison(-0.08, 0.02), 0.2, numbers=RATES).kind == "regressed"
