"""The verdict: hand-computed numbers, and simulated nights with and without a true effect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from agent.campaign.verdict import (
    CAMPAIGN_ALPHA,
    Comparison,
    RunNoise,
    Scores,
    alpha_of_confirmation,
    compare,
    completion_variance,
    judge_confirmed,
    judge_filtered,
    passes_filter,
    run_noise,
    scores_of,
)
from agent.contract import EvalRow
from agent.recipe.schema import Evaluation


def row(prompt: str, sample: int, passed: bool, **keys: object) -> EvalRow:
    base = {"split": "search", "reward": float(passed), "formatted": True, "tokens": 3, "finish_reason": "stop"}
    return EvalRow.model_validate({**base, "id": prompt, "sample": sample, "passed": passed, **keys})


def test_scores_by_metric_and_direction() -> None:
    rows = [row("a", 0, True, reward=0.5), row("a", 1, False, reward=0.1), row("b", 0, False, reward=0.0)]
    rows.append(row("c", 0, True, split="confirm"))
    assert scores_of(rows, split="search", evaluation=Evaluation()) == {"a": [1.0, 0.0], "b": [0.0]}
    assert scores_of(rows, split="search", evaluation=Evaluation(metric="pass_at_k")) == {"a": [1.0], "b": [0.0]}
    minimized = Evaluation(metric="mean_reward", direction="minimize")
    assert scores_of(rows, split="search", evaluation=minimized) == {"a": [-0.5, -0.1], "b": [-0.0]}


def test_completion_variance_by_hand() -> None:
    # prompt a: samples 1,0 -> variance 0.5, of the mean 0.25; prompt b: 1,1 -> 0. Mean over two prompts: 0.25/4.
    assert completion_variance({"a": [1.0, 0.0], "b": [1.0, 1.0]}) == pytest.approx(0.0625)
    assert completion_variance({"a": [1.0], "b": [0.0]}) == 0.0


def test_run_noise_by_hand() -> None:
    # three runs with means 0.5, 0.6, 0.7 (no spread among samples): variance 0.01 with 2 degrees of freedom
    runs: list[Scores] = [{"a": [m, m], "b": [m, m]} for m in (0.5, 0.6, 0.7)]
    noise = run_noise([runs])
    assert noise is not None
    assert (noise.between, noise.completion, noise.df) == (pytest.approx(0.01), 0.0, 2)
    assert noise.sigma == pytest.approx(0.1)
    # pooled with a pair that agrees: (2 * 0.01 + 1 * 0) / 3
    pooled = run_noise([runs, [runs[0], runs[0]]])
    assert pooled is not None
    assert (pooled.between, pooled.df) == (pytest.approx(0.02 / 3), 3)
    assert run_noise([[runs[0]]]) is None


def test_the_standard_error_and_its_degrees_of_freedom_by_hand() -> None:
    # every prompt differs by exactly 0.1, so the pair error is 0 and only run noise is left:
    # SE^2 = 0.0004 * (1/2 + 1/2), df of the noise alone = 4
    ours: Scores = {str(n): [0.6] for n in range(10)}
    theirs: Scores = {str(n): [0.5] for n in range(10)}
    comparison = compare([ours, ours], [theirs, theirs], RunNoise(between=0.0004, completion=0.0, df=4))
    assert comparison.delta == pytest.approx(0.1)
    assert comparison.standard_error == pytest.approx(0.02)
    assert comparison.df == pytest.approx(4)
    assert comparison.lower(0.05) == pytest.approx(0.1 - stats.t.ppf(0.95, 4) * 0.02)


def test_the_pair_error_is_the_error_of_a_mean_over_prompts() -> None:
    random = np.random.default_rng(3)
    differences = random.normal(0, 0.3, 200)
    comparison = compare(
        [{str(n): [0.5 + d] for n, d in enumerate(differences)}], [{str(n): [0.5] for n in range(200)}], None
    )
    assert comparison.pair_error == pytest.approx(differences.std() / math.sqrt(200), rel=0.05)


def test_arms_measured_on_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts in common"):
        compare([{"a": [1.0], "b": [1.0]}], [{"c": [1.0], "d": [1.0]}], None)


def test_alpha_is_spent_from_the_campaigns() -> None:
    levels = [alpha_of_confirmation(number) for number in range(1, 2000)]
    assert levels[0] == pytest.approx(0.0304, abs=1e-4)
    assert sum(levels) < CAMPAIGN_ALPHA
    assert levels == sorted(levels, reverse=True)


def comparison(delta: float, error: float, df: float = 30) -> Comparison:
    return Comparison(delta, error, df, 100, 2, 2, error, 0.0, 0.5 + delta, 0.5)


def test_verdicts_in_words() -> None:
    keep = judge_confirmed(comparison(0.10, 0.02), number=1, min_effect=0.0, margin=0.01)
    assert (keep.outcome, keep.kind) == ("keep", "gain")
    assert "+10.0pp [+5.9pp, +14.1pp]" in keep.reason
    small = judge_confirmed(comparison(0.10, 0.02), number=1, min_effect=0.2, margin=0.01)
    assert (small.outcome, small.kind) == ("discard", "inconclusive")
    assert "less than min_effect" in small.reason
    late = judge_confirmed(comparison(0.05, 0.02), number=9, min_effect=0.0, margin=0.01)
    assert (late.outcome, late.kind) == ("discard", "inconclusive")
    worse = judge_confirmed(comparison(-0.10, 0.02), number=1, min_effect=0.0, margin=0.01)
    assert (worse.outcome, worse.kind) == ("discard", "regressed")
    guarded = judge_confirmed(
        comparison(0.10, 0.02), number=1, min_effect=0.0, margin=0.01, guards={"truncation": "truncation 2% -> 60%"}
    )
    assert (guarded.outcome, guarded.kind) == ("discard", "guard")
    assert "truncation 2% -> 60%" in guarded.reason


def test_simpler_needs_an_advantage_and_non_inferiority() -> None:
    equal = comparison(0.0, 0.004)
    assert judge_confirmed(equal, number=1, min_effect=0.0, margin=0.02).outcome == "discard"
    kept = judge_confirmed(equal, number=1, min_effect=0.0, margin=0.02, advantage="simpler: two keys fewer")
    assert (kept.outcome, kept.kind) == ("keep", "simpler")
    wide = comparison(0.0, 0.03)
    assert judge_confirmed(wide, number=1, min_effect=0.0, margin=0.02, advantage="simpler: x").outcome == "discard"


def test_the_filter_is_generous_and_never_keeps() -> None:
    assert passes_filter(comparison(0.02, 0.02))[0] is True
    assert passes_filter(comparison(0.01, 0.02))[0] is False
    assert judge_filtered(comparison(0.01, 0.02)).kind == "inconclusive"
    assert judge_filtered(comparison(-0.08, 0.02)).kind == "regressed"


class Night:
    """Simulated campaigns: prompts of varying difficulty, a spread between seeds, samples by coin."""

    def __init__(self, seed: int, *, spread: float = 0.03, prompts: int = 96, samples: int = 2):
        self.random = np.random.default_rng(seed)
        self.spread = spread
        self.samples = samples
        self.search = self.random.beta(1.2, 1.2, prompts)
        self.confirm = self.random.beta(1.2, 1.2, prompts)

    def run(self, split: np.ndarray, effect: float) -> Scores:
        shift = effect + self.random.normal(0, self.spread)
        chance = np.clip(split + shift, 0, 1)
        passed = self.random.random((len(split), self.samples)) < chance[:, None]
        return {str(n): passed[n].astype(float).tolist() for n in range(len(split))}

    def keeps(self, effects: list[float]) -> int:
        baseline = [self.run(self.search, 0.0) for _ in range(3)]
        groups, number, kept = [baseline], 0, 0
        for effect in effects:
            noise = run_noise(groups)
            if not passes_filter(compare([self.run(self.search, effect)], baseline, noise))[0]:
                continue
            number += 1
            ours = [self.run(self.confirm, effect) for _ in range(2)]
            theirs = [self.run(self.confirm, 0.0) for _ in range(2)]
            groups += [ours, theirs]
            result = compare(ours, theirs, run_noise(groups))
            kept += judge_confirmed(result, number=number, min_effect=0.0, margin=0.01).outcome == "keep"
        return kept


def test_nights_without_an_effect_keep_at_most_their_alpha() -> None:
    nights = 150
    false = sum(Night(seed).keeps([0.0] * 8) > 0 for seed in range(nights))
    # at a true rate of 0.05, more than 14 of 150 has probability 0.01
    assert false <= 14, f"{false} of {nights} nights kept a change that does nothing"


def test_a_large_effect_is_found() -> None:
    nights = 60
    found = sum(Night(seed).keeps([0.25]) for seed in range(nights))
    assert found >= 0.6 * nights
