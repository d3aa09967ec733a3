"""A simulated world that resembles a campaign."""

from __future__ import annotations

import dataclasses

import pytest
from nights import NOTHING, RATE_UP, Night

from agent.campaign.workbench import Workbench
from agent.errors import UsageError
from agent.simulate.fit import fit
from agent.simulate.nights import Plan, simulate, sum_up


@pytest.mark.slow
def test_a_world_is_fitted_to_a_campaign_and_can_be_simulated(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)
    night.start(max_experiments=2, baseline_seeds=3)
    assert night.session is not None
    world, mix = fit(Workbench(night.session))
    assert (world.prompts, world.samples) == (200, 1)
    assert world.base == pytest.approx(0.40, abs=0.08)  # what the fake trainer reaches
    assert world.untrained == pytest.approx(0.18, abs=0.08)
    assert world.train_s == pytest.approx(0.2)
    assert mix.crashing == 0
    total = world.overhead_s + world.train_s + world.evaluate_s
    assert world.crash_s == pytest.approx(0.1 * total), "none was seen"
    # the fake trainer's metric grows by the same amount each cycle: 60% of its way after 60% of its budget
    assert world.share_after(0.6) == pytest.approx(0.6, abs=0.05)
    plan = Plan(dataclasses.replace(mix, runs=12.0), world, "ours")
    result = sum_up(plan, simulate(plan, 2, workers=1))
    assert result.runs <= 12
    assert result.ideas >= 1


def test_without_a_calibrated_baseline_there_is_nothing_to_fit(night: Night) -> None:
    night.playbook(NOTHING)
    with pytest.raises(UsageError, match="no calibrated baseline"):
        fit(Workbench(night.open()))
