"""Seeds of the baseline, as the measured cost affords them, and what a confirmation could find in the time there is."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from made import A_RUN, MadeLab, MadeRun, run, scores

from agent.campaign.budget import RunCost
from agent.campaign.calibration import calibrate, detectable_gain, known_better, run_share
from agent.campaign.comparison import group_noise
from agent.campaign.evidence import Evidence
from agent.campaign.lab import Order
from agent.campaign.rules import Rules
from agent.campaign.search import out_of_time
from agent.errors import BudgetError
from agent.recipe.schema import Budget, Evaluation
from agent.simulate.lab import SUMMARY


class Guessed(MadeLab):
    """Until a baseline has run, a run is guessed to take eight times as long as it does. Its budget is in seconds."""

    def __init__(self, *, runs: float, planned: int | None = None):
        super().__init__(
            lambda order: run(f"{order.arm}-{order.index}", 0.5 + 0.01 * order.index, seed=order.index), runs=runs
        )
        self.planned = planned

    def cost(self, experiment: int) -> RunCost:
        factor = 1 if Order(0, "baseline", 0) in self.known else 8
        return RunCost(factor * 0.1 * A_RUN, 0.8 * A_RUN, factor * 0.1 * A_RUN)

    def seeds_planned(self) -> int | None:
        return self.planned


def seeds_in(lab: MadeLab) -> list[int]:
    calibrate(lab, Evidence())
    return lab.order_of("baseline")


def test_as_many_seeds_as_the_measured_cost_affords_whatever_was_guessed() -> None:
    ample = Guessed(runs=12)
    assert seeds_in(ample) == [0, 1, 2]
    assert not any("instead of" in said for said in ample.words or [])
    tight = Guessed(runs=9.1)
    assert seeds_in(tight) == [0, 1]
    assert any("affords 2 baseline seeds instead of 3" in said for said in tight.words or [])


@pytest.mark.parametrize(("runs", "planned"), [(12, 2), (100, 2), (9.1, 3)])
def test_a_session_that_goes_on_has_the_seeds_of_the_first(runs: float, planned: int) -> None:
    assert seeds_in(Guessed(runs=runs, planned=planned)) == list(range(planned))


@pytest.mark.parametrize("runs", [8.5, 9.1, 10.5, 12, 30])
def test_as_many_ideas_are_said_to_fit_as_the_stop_rule_lets_begin(runs: float) -> None:
    lab = Guessed(runs=runs, planned=3)
    calibrate(lab, Evidence())
    (said,) = (int(found[1]) for words in lab.words or [] if (found := re.search(r"about (\d+) ideas fit, ", words)))
    an_idea = lab.cost(lab.lead).total_s
    assert out_of_time(lab, said * an_idea) is None or said == 0
    assert out_of_time(lab, (said + 1) * an_idea) is not None


def test_the_gain_over_the_untrained_model_has_the_run_noise_of_the_baseline_alone() -> None:
    lab = MadeLab(lambda order: run(f"{order.arm}-{order.index}", 0.5 + 0.1 * order.index, seed=order.index))
    found = calibrate(lab, Evidence())
    assert found.noise is not None
    assert found.noise.sigma > 0
    assert found.gain.run_error == pytest.approx(found.noise.sigma / math.sqrt(3))


def test_of_a_reward_everything_is_said_in_its_own_unit() -> None:
    evaluation = Evaluation(metric="mean_reward", min_effect=2.5, holdout_prompts=2)
    lab = MadeLab(
        lambda order: run(f"{order.arm}-{order.index}", 0.5 + 0.01 * order.index, seed=order.index),
        evaluation=evaluation,
    )
    calibrate(lab, Evidence())
    said = "\n".join(lab.words or [])
    assert "evaluation.min_effect asks for +2.500 and the baseline leaves +" in said
    assert "the holdout's 2 prompts show a gain from about +" in said
    assert "run noise sigma 0.0" in said
    assert not re.search(r"\dpp\b|%", said)


def test_a_baseline_that_its_time_limit_cut_is_left_out() -> None:
    def made(order: Order) -> MadeRun:
        cut = order == Order(0, "baseline", 1)
        told = SUMMARY.model_copy(update={"cycles": 4 if cut else 10, "ended_by": "time_limit" if cut else "budget"})
        return run(f"{order.arm}-{order.index}", 0.1 if cut else 0.5, seed=order.index, summary=told)

    lab = MadeLab(made)
    lab.budget = Budget(cycles=10)
    found = calibrate(lab, evidence := Evidence())
    assert [one.key for one in found.runs] == ["baseline-0", "baseline-2"] == [one.key for one in evidence.baseline()]
    why = "its time limit ended it at 40% of its budget"
    assert evidence.aside == {"baseline-1": why}, "written down, so that a session that goes on and the report know"
    assert "  baseline-1 does not count: " + why in (lab.words or [])
    said = f"baseline-1 is left out of the calibration: {why}"
    assert any(said in words for words in lab.words or [])


def test_a_night_that_has_begun_is_gone_on_with_however_little_time_is_left() -> None:
    """A deadline came nearer while the machine was down: no whole night would fit between now and then."""
    with pytest.raises(BudgetError, match="affords no idea"):
        calibrate(Guessed(runs=4), Evidence())
    gone_on_with = Guessed(runs=4, planned=2)
    assert seeds_in(gone_on_with) == [0, 1]


def test_what_a_confirmation_finds_is_told_anew_where_the_runs_differ_by_more_than_the_baselines_did() -> None:
    """A night of SmolLM2: five seeds within the noise of their prompts, then two of one recipe ten points apart."""
    lab = MadeLab(lambda order: run(f"{order.arm}-{order.index}", 0.5, seed=order.index))
    told: dict[str, Any] = {}
    lab.calibrated = told.update  # type: ignore[method-assign]
    calibrate(lab, evidence := Evidence())
    assert known_better(told, lab, evidence) == {}
    for index, mean in enumerate((0.508, 0.612)):
        evidence.add(run(f"fresh-{index}", mean, seed=50 + index), experiment=0, arm="incumbent")
    better = known_better(told, lab, evidence)
    assert better["smallest_detectable"] > 2 * told["smallest_detectable"]
    assert better["run_share"] > told["run_share"]
    assert known_better(told | better, lab, evidence) == {}
    assert known_better({"smallest_detectable": 0.01}, lab, evidence) == {}, "a journal of before"


def test_what_makes_a_confirmation_coarse() -> None:
    """Of runs alike the prompts, of many prompts the runs."""

    def share(apart: float, prompts: int) -> float:
        baseline = [scores(0.5 + apart * seed, seed=seed) for seed in range(4)]
        found = run_share(baseline, group_noise(baseline), seeds=5, prompts=prompts)
        assert found is not None
        return found

    assert share(0.0, 100) < 0.5 < share(0.08, 100) < share(0.08, 10_000) < 1.0
    alone = [scores(0.5, seed=1)]
    assert run_share(alone, group_noise(alone), seeds=5) is None


def test_with_time_for_fewer_seeds_a_confirmation_finds_less() -> None:
    baseline = [scores(0.5 + 0.01 * seed, seed=seed) for seed in range(3)]
    noise = group_noise(baseline)
    gains = [detectable_gain(baseline, noise, Rules(), to_come=3, most=most) for most in (2, 3, 5, None)]
    known = [gain for gain in gains if gain is not None]
    assert known[0] > known[1] > known[2] == known[3]
    told = [Guessed(runs=runs) for runs in (12.0, 30.0)]
    smallest = [calibrate(lab, Evidence()).detectable or 0.0 for lab in told]
    assert smallest[0] > 1.2 * smallest[1]
