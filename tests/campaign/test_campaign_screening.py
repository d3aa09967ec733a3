"""Screening: a batch is trained a little and ranked. The weaker end there, the others go on where they stopped."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from nights import BETTER_RATE, NO_DEDUP, NOTHING, Dies, Night, dying_at, fake_launch, forked_launch, hypothesis

from agent.campaign import workbench
from agent.campaign.evidence import Evidence
from agent.campaign.lab import MANY_IDEAS, Order
from agent.campaign.past import past_of
from agent.campaign.rules import Rules
from agent.campaign.screening import screen_batch, worth_screening
from agent.campaign.search import search
from agent.campaign.stopping import PAUSED
from agent.campaign.workbench import PAUSED_TO_CHECKPOINT, SPARE_DISK_GB
from agent.hardware.sensors import GIB
from agent.recipe.schema import Budget
from agent.simulate.lab import SimulatedLab, SimulatedRun
from agent.simulate.world import Idea, Truth, World

WORSE_RATE = hypothesis("worse-rate", 0.6, set={"learner.learning_rate": 2.5e-4})
DIES = hypothesis("dies", 0.5, set={"learner.optimizer": "sgd"})
RULES = Rules(batch=4, survivors=0.5, screen_share=0.6, most_part=9.0, scarce=1e9, alone_runs=0)
"""Half of four ideas go on, after three of five cycles, whatever that saves and the night affords."""
A_PART = ("123", "1234")
"""Cycles of a training that was paused then; on a busy machine one more is over before the signal comes."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ideas train slowly enough to be paused."""
    monkeypatch.setenv("FAKE_PACE", "0.08")


# --- when --------------------------------------------------------------------------------------------------


def simulated(
    *, ideas: int = 12, prompts: int = 16, runs: float = 14.0, batch: int = 5, most: int | None = None
) -> SimulatedLab:
    world = World(prompts=prompts)
    a_run = world.overhead_s + world.train_s + world.evaluate_s
    return SimulatedLab(
        Truth(world, [Idea(0.0)] * ideas), scores=[0.0] * ideas, random=np.random.default_rng(1),
        budget_s=runs * a_run, rules=Rules(batch=batch, least_batch=batch, scarce=1.0), max_experiments=most,
    )  # fmt: skip


def worth(lab: SimulatedLab) -> int:
    evidence: Evidence[Any] = Evidence()
    evidence.add(lab.run(Order(0, "baseline", 0)), experiment=0, arm="baseline")
    return worth_screening(lab, evidence)


def test_ideas_are_screened_where_more_wait_than_the_night_affords() -> None:
    assert worth(simulated()) == 5
    assert not worth(simulated(runs=100.0)), "all of them can be afforded whole"
    assert not worth(simulated(runs=8.0)), "there is no time for a batch and for the end of the night"
    assert not worth(simulated(ideas=4)), "fewer wait than a batch"
    assert not worth(simulated(most=4)), "fewer are allowed than a batch"
    assert worth(simulated(most=5)) == 5


def test_the_last_batch_is_as_large_as_the_time_allows() -> None:
    sizes = []
    for runs in (9.5, 10.0, 10.5, 12.0, 30.0):
        lab = simulated(runs=runs, ideas=60)
        lab.rules = Rules(batch=9, least_batch=3, scarce=1.0)
        sizes.append(worth(lab))
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert 3 <= sizes[1] < sizes[2] < sizes[3] < sizes[4] == 9


def test_nothing_is_screened_before_the_incumbent_has_run_or_where_it_hardly_trains() -> None:
    lab = simulated()
    assert not worth_screening(lab, Evidence())
    lab.budget = Budget(train_seconds=1, min_optimizer_steps=10_000)
    assert not worth(lab)


def test_nothing_is_screened_where_the_trainer_does_not_measure_on_the_way() -> None:
    lab = simulated()
    evidence: Evidence[SimulatedRun] = Evidence()
    blind = lab.run(Order(0, "baseline", 0))
    blind.midway = None
    evidence.add(blind, experiment=0, arm="baseline")
    assert not worth_screening(lab, evidence)


@pytest.mark.slow
def test_no_more_is_paused_than_the_disk_has_room_for(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(NOTHING)
    night.start(max_experiments=1)
    assert night.session is not None
    bench = night.bench(night.session)
    assert bench.room_for_paused() == MANY_IDEAS, "nothing is known of what a training leaves"
    bench.gather()
    checkpoint = bench.evidence.baseline()[0].record.out / "checkpoint"
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    a_training = PAUSED_TO_CHECKPOINT * size / GIB
    for free, room in ((SPARE_DISK_GB + 3.5 * a_training, 3), (SPARE_DISK_GB, 0), (0.0, 0)):
        monkeypatch.setattr(workbench, "disk_free", lambda path, free=free: free)
        assert bench.room_for_paused() == room


def test_a_batch_is_no_larger_than_the_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = simulated()
    monkeypatch.setattr(lab, "room_for_paused", lambda: 4)
    assert worth(lab) == 0, "a batch is five at least"
    lab.rules = dataclasses.replace(lab.rules, least_batch=3)
    assert worth(lab) == 4


# --- how ---------------------------------------------------------------------------------------------------


def test_the_better_ones_of_a_batch_stay_open_and_nothing_of_the_level_is_spent() -> None:
    """Effects so large that noise does not matter: 3 of 6 go on, the best ones."""
    lab = simulated(ideas=6, prompts=300)
    lab.rules = Rules(batch=6, survivors=0.5)
    effects = [-0.25, 0.3, -0.2, 0.6, -0.15, 0.5]
    lab.truth.ideas = [Idea(effect) for effect in effects]
    evidence: Evidence[Any] = Evidence()
    evidence.add(lab.run(Order(0, "baseline", 0)), experiment=0, arm="baseline")
    screen_batch(lab, evidence, lab.rules.batch)
    assert dict(lab.outcomes()) == {1: "discard", 3: "discard", 5: "discard"}
    assert {one.kind for one in lab.past()} == {"screened"}
    assert lab.open_experiment() == 2
    assert lab.used_levels() == []


def test_those_that_were_let_through_and_have_no_time_left_end_as_screened() -> None:
    lab = simulated(ideas=6, prompts=300)
    lab.rules = Rules(batch=6, survivors=0.5)
    evidence: Evidence[Any] = Evidence()
    evidence.add(lab.run(Order(0, "baseline", 0)), experiment=0, arm="baseline")
    screen_batch(lab, evidence, lab.rules.batch)
    assert len(lab.outcomes()) == 3
    lab.clock.budget_s = lab.spent_s + 1.0
    search(lab, evidence)
    assert len(lab.outcomes()) == 6
    assert {one.kind for one in lab.past()} == {"screened"}
    assert lab.open_experiment() is None


def test_an_idea_of_which_nothing_can_be_told_yet_goes_on_beside_the_others() -> None:
    lab = simulated(ideas=4, prompts=300)
    lab.rules = Rules(batch=4, survivors=0.25)
    lab.truth.ideas = [Idea(0.5), Idea(0.0, crashes=True), Idea(-0.2), Idea(-0.2)]
    evidence: Evidence[Any] = Evidence()
    evidence.add(lab.run(Order(0, "baseline", 0)), experiment=0, arm="baseline")
    screen_batch(lab, evidence, lab.rules.batch)
    assert {number for number, _ in lab.outcomes()} == {3, 4}


# --- in a campaign -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
def test_a_batch_is_screened_the_winner_kept_and_the_next_one_open_again(night: Night) -> None:
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING, WORSE_RATE)
    states: dict[str, list[bool]] = {}

    def watching(request: Any, **keys: Any) -> Any:
        numbers = ("001", "002", "003", "004")
        states.setdefault(
            request.out.name, [(night.folder(f"{n}-search-s{int(n)}000") / "state").exists() for n in numbers]
        )
        return forked_launch(request, **keys)

    night.start(rules=RULES, launcher=watching, max_experiments=5)
    assert night.session is not None
    assert night.outcomes() == [
        ("baseline", "keep"), ("better-rate", "keep"), ("no-dedup", "discard"), ("placebo", "discard"),
        ("worse-rate", "discard"), ("no-dedup", "keep"),
    ]  # fmt: skip
    reasons = [row["reason"] for row in night.rows]
    assert reasons[2].startswith("superseded: planned as a change of #0, which #1 has replaced; it is open again")
    assert reasons[3].startswith("screened: place 3 of 4; after 60% of the budget, ")
    assert reasons[4].startswith("screened: place 4 of 4")
    assert night.session.state.judged_order == [0, 3, 4, 1, 2, 5]
    assert [night.judged(number).numbers["level"] is None for number in (1, 2, 3, 4, 5)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    # the winner went on in the folder of its first part, as a second start of one run
    parts = [run for run in night.session.state.runs.values() if run.words and run.words.experiment == 1][:2]
    assert [run.id for run in parts] == ["001-search-s1000", "001-search-s1000.2"]
    assert [run.words.rung for run in parts if run.words] == ["screen", "full"]
    assert parts[0].finished is not None
    assert parts[0].finished.reason.startswith(PAUSED)
    trained = [night.trained(f"00{number}-search-s{number}000") for number in (1, 2, 3, 4, 5)]
    assert (trained[0], trained[4]) == ("12345", "12345")
    assert all(one in A_PART for one in trained[1:4])
    # what is paused can go on while others are confirmed; what was discarded takes no room
    assert states["001-confirm-s1100"] == [False, True, False, False]
    assert not (night.folder("002-search-s2000") / "state").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(6, id="while the batch is trained"),
        pytest.param(9, id="after the weaker ones were discarded"),
    ],
)
def test_a_campaign_killed_in_a_screening_ranks_the_same_batch_and_doubles_nothing(night: Night, at: int) -> None:
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING, DIES)
    rules = dataclasses.replace(RULES, filter_alpha=1e-100)  # nothing is worth a confirmation
    with pytest.raises(Dies):
        night.start(rules=rules, launcher=dying_at(at), max_experiments=4)
    before = night.starts()
    assert len(before) == at - 1
    ending = night.resume(rules=rules)
    assert night.session is not None
    assert night.outcomes()[1:] == [
        ("better-rate", "discard"), ("no-dedup", "discard"), ("placebo", "discard"), ("dies", "crash")
    ]  # fmt: skip
    assert night.rows[3]["reason"].startswith("screened: place 3 of 4")
    assert [number for number in night.session.state.experiments if number] == [1, 2, 3, 4]
    trained = [night.trained(f"00{number}-search-s{number}000") for number in (1, 2, 3)]
    assert trained[:2] == ["12345", "12345"], "each cycle once, before and after the kill"
    assert trained[2] in A_PART
    for run, starts in before.items():
        paused = run in ("001-search-s1000", "002-search-s2000")
        assert night.starts()[run] == (starts + "x" if paused and starts == "x" else starts), run
    records = night.git("log", "--format=%s", "raft/night/best", "^HEAD").splitlines()
    assert len(records) == len(set(records)) == len(night.rows) + 1
    # trainings that were paused tell neither what a whole one costs, nor count twice once they went on
    cost = night.session.cost(night.session.recipe_of(0))
    assert (cost.train_s, cost.evaluate_s) == (pytest.approx(0.2), pytest.approx(0.05))
    assert ending.training_share == pytest.approx((4 * 0.2 + 0.12) / night.session.clock.consumed_s, rel=0.15)


@pytest.mark.slow
def test_a_real_process_is_paused_and_goes_on_where_it_stopped(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first start is lost with the agent."""
    monkeypatch.setenv("FAKE_PACE", "0.25")
    night.playbook(BETTER_RATE)
    dying = True

    def launcher(*arguments: Any, **keys: Any) -> Any:
        if dying:
            raise Dies
        return fake_launch()(*arguments, **keys)

    bench = night.bench(night.open(), launcher=launcher, rules=dataclasses.replace(RULES, screen_share=0.4))
    number, _ = bench.next_idea(batch=0)
    assert number == 1
    bench.commit(1)
    with pytest.raises(Dies):
        bench.screen(1)
    dying = False
    assert not bench.paused(1)
    first = bench.screen(1)
    assert (first.ok, first.gave_up, first.crash_words) == (False, None, None)
    assert first.summary is not None
    assert first.summary.stopped
    assert night.trained(first.key) in ("12", "123")
    assert bench.paused(1)
    known = first.on_the_way()
    assert known is not None
    assert bench.screen(1).on_the_way().mean == known.mean, "read back, not trained again"  # type: ignore[union-attr]
    whole = bench.run(Order(1, "search"))
    assert whole.ok
    assert whole.summary is not None
    assert not whole.summary.stopped
    assert not bench.paused(1)
    assert night.trained(whole.key) == "12345"
    assert whole.on_the_way().mean == known.mean  # type: ignore[union-attr]
    assert night.starts() == {"001-search-s1000": "xx"}
    bench.close()


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
def test_what_was_screened_out_has_a_second_chance_where_nothing_else_is_left_to_try(night: Night) -> None:
    """The placebo is trained whole on what leads by then. The lower rate is another change by now, which the planner
    proposes itself."""
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING, WORSE_RATE)
    night.start(rules=RULES)
    assert night.session is not None
    assert night.outcomes()[3:6] == [("placebo", "discard"), ("worse-rate", "discard"), ("no-dedup", "keep")]
    again = night.session.state.experiments[7]
    assert again.planned is not None
    assert again.planned.model_extra is not None
    assert again.planned.model_extra["again"] == 3
    assert (again.planned.incumbent, again.planned.hypothesis) == (5, "placebo")
    assert night.trained("007-search-s7000") == "12345"
    assert "screened out by the first part" in night.git("log", "-1", "--format=%b", "raft/night/exp/007-placebo")
    assert not [one for one in past_of(night.session.state) if one.again == 4]
