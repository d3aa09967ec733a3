"""A campaign that has met a limit is given more: which limit it was is said, and the option that lifts it does."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import pytest
from nights import BETTER_RATE, MACHINE, NO_DEDUP, NOTHING, Night, hypothesis, new_night

from agent.campaign.more import best_known, hint_for, limits_met, settings_of
from agent.campaign.open import resume
from agent.campaign.pausing import NOW, ask_to_pause, asked_to_pause
from agent.campaign.search import why_stop
from agent.campaign.session import Session
from agent.campaign.standing import standing, time_left
from agent.errors import UsageError
from agent.ledger.journal import CampaignState, Journal

HOUR = 3600.0
A = hypothesis("beta", 0.95, set={"learner.beta2": 0.9})
B = hypothesis("clip", 0.9, set={"learner.max_grad_norm": 0.5})


@pytest.fixture
def night(tmp_path: Path) -> Night:
    night = new_night(tmp_path)
    night.playbook(A, B, NOTHING)
    return night


def reopened(night: Night, **more: Any) -> Session:
    """Resumed, and closed before anything is run."""
    session = resume(
        night.workspace, None, observer=night.observer, machine=MACHINE, model_cache=night.models,
        stop_request=lambda: None, **more,
    )  # fmt: skip
    session.close()
    return session


def refused(night: Night, **more: Any) -> UsageError:
    with pytest.raises(UsageError) as error:
        reopened(night, **more)
    return error.value


def journal(night: Night) -> Journal:
    return Journal(night.workspace.journal_path("night"))


def finished(night: Night, reason: str, *, best: float | None = None, **started: Any) -> None:
    """As after a night of two ideas. `best`: what the loop knew of the incumbent."""
    session = night.open(**started)
    if best is not None:
        session.tell("experiment_judged", experiment=0, outcome="keep", reason="x", row={"metric_value": best})
    for number in (1, 2):
        session.tell("experiment_planned", experiment=number, hypothesis="x", axis="x", slug="x", subject="x", files={})
        session.tell("experiment_judged", experiment=number, outcome="discard", reason="x")
    session.tell("campaign_finished", reason=reason)
    session.close()


def iso(in_s: float) -> str:
    return (datetime.datetime.now().astimezone() + datetime.timedelta(seconds=in_s)).isoformat()


def time_goes_on(night: Night, seconds: float) -> None:
    """The campaign has seen a clock that shows so many seconds later."""
    Journal(journal(night).path, clock=lambda: time.time() + seconds).append("note", text="later")


# --- ideas -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ideas_are_tried_on_where_their_number_is_raised(night: Night) -> None:
    assert night.start(max_experiments=1).ideas == 1
    assert night.resume(extra_budget_s=60.0).ideas == 1
    assert night.observer.said.count(
        "1 idea was tried, and --max-experiments is 1: no further idea is tried; --max-experiments 2 lifts that"
    ) == 1  # fmt: skip
    assert night.resume(max_experiments=2).ideas == 2
    assert refused(night).message == "campaign night is finished: --max-experiments 2 reached"
    assert [row["hypothesis"] for row in night.rows] == ["baseline", "beta", "clip"]


def test_a_finished_campaign_says_which_limit_it_met_and_what_lifts_it(night: Night) -> None:
    finished(night, "--max-experiments 2 reached", max_experiments=2)
    error = refused(night)
    assert error.message == "campaign night is finished: --max-experiments 2 reached"
    assert error.hint == hint_for(journal(night).state(), "night")
    assert error.hint == "raft-agent resume night --max-experiments 4 gives it more"


@pytest.mark.parametrize("number", [1, 2])
def test_a_new_number_is_of_all_ideas_and_above_what_was_tried(night: Night, number: int) -> None:
    finished(night, "--max-experiments 2 reached", max_experiments=2)
    error = refused(night, max_experiments=number)
    assert error.message == f"--max-experiments {number} is the number of ideas in all, and 2 were tried"
    assert journal(night).state().status == "finished"


def test_what_was_given_holds_in_later_sessions_too(night: Night) -> None:
    finished(night, "--max-experiments 2 reached", max_experiments=2, target="pass_rate>=0.5")
    assert reopened(night, max_experiments=5, target="pass_rate>=0.9").settings.max_experiments == 5
    again = reopened(night)  # as after a kill
    assert (again.settings.max_experiments, again.settings.target) == (5, "pass_rate>=0.9")
    assert again.settings.budget_s == 600.0
    stops = standing(again.state, name="night", at=0.0, process=None).stops
    assert stops == ("after 5 ideas", "at pass_rate>=0.9")
    told = [event.model_extra for event in journal(night).events() if event.kind == "campaign_resumed"]
    assert told[0] == {"budget_s": 600.0, "options": {"max_experiments": 5, "target": "pass_rate>=0.9"}}
    assert told[1] == {"budget_s": 600.0}


def test_a_target_is_of_the_metric_and_another_one_lifts_it(night: Night) -> None:
    finished(night, "--target pass_rate>=0.5 reached", target="pass_rate>=0.5")
    assert refused(night).hint == "raft-agent resume night --target 'METRIC>=X' gives it more"
    assert "names reward, the recipe measures pass_rate" in refused(night, target="reward>=0.9").message
    before = list(night.observer.said)
    assert reopened(night, target="pass_rate>=0.9").settings.target == "pass_rate>=0.9"
    assert night.observer.said == before


def test_a_target_that_is_met_is_named_whatever_ended_the_campaign(night: Night) -> None:
    """The number of ideas is looked at first, so it is the reason where both are met."""
    options = {"max_experiments": 2, "target": "pass_rate>=0.5"}
    finished(night, "--max-experiments 2 reached", best=0.74, **options)
    assert refused(night).hint == "raft-agent resume night --max-experiments 4 --target 'METRIC>=X' gives it more"
    reopened(night, max_experiments=4)
    assert night.observer.said[-1] == (
        "--target pass_rate>=0.5 reached: no further idea is tried; --target 'METRIC>=X' lifts that"
    )


@pytest.mark.parametrize("best", [0.74, 0.75])
def test_a_new_target_is_beyond_what_the_best_recipe_has(night: Night, best: float) -> None:
    finished(night, "--max-experiments 2 reached", best=best, max_experiments=2)
    ask_to_pause(night.workspace.campaign_folder("night"), now=False)
    error = refused(night, max_experiments=9, target="pass_rate>=0.74")
    assert error.message == f"--target pass_rate>=0.74 is met already: the best recipe has {100 * best:.1f}%"
    assert error.hint == f"name a number above {best}"
    assert reopened(night, max_experiments=9, target="pass_rate>=0.8").settings.target == "pass_rate>=0.8"
    assert night.observer.said == []


def test_the_best_is_what_was_known_with_the_last_outcome(tmp_path: Path) -> None:
    """As more runs of the incumbent came; of one that was kept and not recorded yet, its own verdict's."""
    log = Journal(tmp_path / "journal.jsonl")
    assert best_known(log.state()) is None
    log.append("campaign_started", campaign="night", recipe_path="x", recipe="", base_commit="0" * 40)
    for number, outcome, best in ((0, "keep", 0.5), (1, "keep", 0.74), (2, "discard", 0.72)):
        row = {"metric_value": best + 0.1}
        log.append("experiment_judged", experiment=number, outcome=outcome, reason="x", row=row)
        log.append("experiment_recorded", experiment=number, best=best)
        assert best_known(log.state()) == best
    log.append("experiment_judged", experiment=3, outcome="keep", reason="x", row={"metric_value": 0.81})
    assert best_known(log.state()) == 0.81


@pytest.mark.slow
def test_the_loop_and_a_resumption_know_the_same_metric(night: Night) -> None:
    night.playbook(BETTER_RATE, NO_DEDUP)
    night.start(max_experiments=1)
    bench = night.bench(reopened(night, max_experiments=2))
    bench.gather()
    assert bench.incumbent == 1
    assert best_known(bench.session.state) == pytest.approx(bench.best_metric())
    metric = bench.best_metric()
    assert metric is not None
    bench.target = f"pass_rate>={metric:.3f}"[:-1]
    assert why_stop(bench) == f"--target {bench.target} reached"
    assert "is met already" in refused(night, target=bench.target).message


@pytest.mark.parametrize("target", ["rubbish", "reward>=0.9", "pass_rate>=0.1"])
def test_what_is_refused_takes_no_request_back(night: Night, target: str) -> None:
    session = night.open()
    session.tell("experiment_judged", experiment=0, outcome="keep", reason="x", row={"metric_value": 0.5})
    session.close()
    ask_to_pause(session.folder, now=True)
    refused(night, target=target, take_back_pause=True)
    assert asked_to_pause(session.folder) == NOW
    reopened(night, target="pass_rate>=0.9", take_back_pause=True)
    assert asked_to_pause(session.folder) is None


def test_crashes_in_a_row_are_lifted_by_nothing(night: Night) -> None:
    finished(night, "4 ideas in a row crashed")
    for number in range(3, 7):
        journal(night).append("experiment_judged", experiment=number, outcome="crash", reason="x")
    nothing = "the last 4 ideas crashed, which no option lifts: raft-agent run --new starts another one"
    assert refused(night).hint == nothing
    Journal(journal(night).path, consumed=lambda: 601.0).append("note", text="used up")
    assert refused(night).hint == nothing, "more time alone gives nothing"


def test_an_exhausted_playbook_is_lifted_by_ideas(night: Night) -> None:
    finished(night, "the playbook is exhausted: 3 hypotheses, none is left", max_experiments=9)
    assert refused(night).hint == (
        "the playbook was exhausted, which no option lifts: with a new hypothesis or an idea in steer.md "
        "raft-agent resume night --budget 1h goes on"
    )
    reopened(night, extra_budget_s=HOUR)
    assert night.observer.said == [
        "the playbook was exhausted: only a new hypothesis or an idea in steer.md brings a further idea"
    ]
    assert limits_met(journal(night).state(), settings_of(journal(night).state())) == []


BARRED = "the playbook is exhausted: no idea is left: 43 barred by steer.md, 2 tried already"


def test_what_pins_have_ended_goes_on_once_they_are_taken_out(night: Night) -> None:
    finished(night, BARRED, max_experiments=9)
    ways = "a new hypothesis, an idea in steer.md or taking out a pin or ban"
    assert hint_for(journal(night).state(), "night") == (
        f"the playbook was exhausted, which no option lifts: with {ways} raft-agent resume night goes on"
    )
    assert reopened(night).state.status == "running"
    assert night.observer.said == [f"the playbook was exhausted: only {ways} brings a further idea"]


def test_pins_that_are_taken_out_give_no_time_and_no_further_number(night: Night) -> None:
    finished(night, BARRED, max_experiments=2)
    assert "raft-agent resume night --max-experiments 4 goes on" in (refused(night).hint or "")
    Journal(journal(night).path, consumed=lambda: 601.0).append("note", text="used up")
    assert "raft-agent resume night --budget 1h goes on" in (refused(night, max_experiments=9).hint or "")


@pytest.mark.slow
def test_a_search_that_a_pin_has_ended_goes_on_without_it(night: Night) -> None:
    steering = night.root / "steer.md"
    steering.write_text("- pin hypothesis clip\n")
    assert "barred by steer.md" in night.start().reason
    assert "beta" not in [row["hypothesis"] for row in night.rows]
    steering.write_text("")
    night.resume()
    assert {"beta", "placebo"} <= {row["hypothesis"] for row in night.rows}


# --- time --------------------------------------------------------------------------------------------------


def test_time_that_was_used_up_is_not_lifted_by_another_limit(night: Night) -> None:
    finished(night, "the next idea would need 2m 00s and 9m 00s are held back, 10s are left", max_experiments=9)
    error = refused(night, max_experiments=12)
    assert (error.message, error.hint) == (
        "campaign night is finished: the next idea would need 2m 00s and 9m 00s are held back, 10s are left",
        "raft-agent resume night --budget 1h gives it more",
    )
    assert reopened(night, extra_budget_s=HOUR).settings.budget_s == 600.0 + HOUR


def test_all_limits_that_are_met_are_named(night: Night) -> None:
    finished(night, "--max-experiments 2 reached", max_experiments=2)
    Journal(journal(night).path, consumed=lambda: 601.0).append("note", text="used up")
    assert refused(night).hint == "raft-agent resume night --max-experiments 4 --budget 1h gives it more"
    assert refused(night, max_experiments=9).hint == "raft-agent resume night --budget 1h gives it more"
    assert reopened(night, extra_budget_s=HOUR).settings.budget_s == pytest.approx(601.0 + HOUR, abs=1.0)
    assert night.observer.said[-1].endswith("no further idea is tried; --max-experiments 4 lifts that")


NEAR = "the next idea would need 2m 00s and 9m 00s are held back, 10s are left"


def test_a_deadline_that_is_too_near_is_not_lifted_by_a_budget(night: Night) -> None:
    finished(night, NEAR, budget_s=9 * HOUR, deadline=iso(60))
    assert refused(night).hint == "raft-agent resume night --deadline 07:30 gives it more"
    assert refused(night, extra_budget_s=HOUR).hint == "raft-agent resume night --deadline 07:30 gives it more"
    assert reopened(night, deadline=iso(2 * HOUR)).clock.left_s == pytest.approx(2 * HOUR, abs=60)


def test_a_budget_that_leaves_too_little_is_not_lifted_by_a_deadline(night: Night) -> None:
    finished(night, NEAR, budget_s=60.0, deadline=iso(9 * HOUR))
    assert refused(night, deadline=iso(20 * HOUR)).hint == "raft-agent resume night --budget 1h gives it more"
    assert reopened(night, extra_budget_s=HOUR).clock.left_s == pytest.approx(HOUR + 60, abs=60)


def test_both_are_named_where_both_leave_too_little(night: Night) -> None:
    finished(night, NEAR, budget_s=60.0, deadline=iso(90))
    log = journal(night)
    words = {"experiment": 0, "role": "baseline", "rung": "calibrate", "seed": 1, "recipe_signature": "x", "out": "x"}
    log.append("run_planned", run="baseline-s1", **words)
    summary = {"train_s": 100.0, "evaluate_s": 1.0}
    log.append("run_finished", run="baseline-s1", ended_by="itself", elapsed_s=105.0, summary=summary)
    assert refused(night).hint == "raft-agent resume night --budget 1h --deadline 07:30 gives it more"


def test_a_deadline_that_has_passed_gives_way_to_a_budget(night: Night) -> None:
    night.open(budget_s=None, deadline=iso(HOUR)).close()
    assert reopened(night).clock.left_s == pytest.approx(HOUR, abs=60)
    time_goes_on(night, 2 * HOUR)
    night.observer.said.clear()
    assert reopened(night).clock.left_s < 0
    assert night.observer.said == ["its deadline has passed: no further idea is tried; --budget 1h lifts that"]
    an_hour = pytest.approx(HOUR, abs=60)
    session = reopened(night, extra_budget_s=HOUR)
    assert (session.settings.deadline, session.clock.left_s) == (None, an_hour)
    again = reopened(night)
    assert (again.settings.deadline, again.clock.left_s) == (None, an_hour)
    assert time_left(again.state, used_s=again.state.consumed_s, at=time.time()) == an_hour


def test_a_finished_campaign_gets_another_deadline(night: Night) -> None:
    finished(night, "the next idea would need 2m 00s", budget_s=None, deadline=iso(HOUR))
    time_goes_on(night, 2 * HOUR)
    assert refused(night, max_experiments=9).hint == "raft-agent resume night --budget 1h gives it more"
    session = reopened(night, deadline=iso(4 * HOUR))
    assert session.clock.left_s == pytest.approx(2 * HOUR, abs=60)
    time_goes_on(night, 5 * HOUR)
    assert reopened(night, extra_budget_s=HOUR).clock.left_s == pytest.approx(HOUR, abs=60)


@pytest.mark.parametrize("budget_s", [60.0, 9 * HOUR])
def test_a_budget_does_not_shorten_what_has_only_a_deadline(night: Night, budget_s: float) -> None:
    night.open(budget_s=None, deadline=iso(2 * HOUR + 30)).close()
    ask_to_pause(night.workspace.campaign_folder("night"), now=True)
    error = refused(night, extra_budget_s=budget_s)
    assert error.message.endswith(
        "is no more: campaign night has no budget, and goes on until its deadline, for 2h 00m yet"
    )
    assert error.hint == "raft-agent resume night --deadline 07:30 sets a later one"
    assert asked_to_pause(night.workspace.campaign_folder("night")), "nothing was done"
    assert reopened(night).clock.left_s == pytest.approx(2 * HOUR, abs=60)
    session = reopened(night, extra_budget_s=60.0, deadline=iso(3 * HOUR))
    assert session.clock.left_s == pytest.approx(60.0, abs=5), "both were asked for"


def test_what_ended_before_its_only_deadline_is_given_a_later_one(night: Night) -> None:
    finished(night, "steer.md:1 (stop after this one)", budget_s=None, deadline=iso(HOUR))
    assert refused(night).hint == "raft-agent resume night --deadline 07:30 gives it more"
    error = refused(night, extra_budget_s=60.0)
    assert "and may go on until its deadline, for " in error.message
    assert error.hint == "raft-agent resume night --deadline 07:30 gives it more"
    assert reopened(night, deadline=iso(3 * HOUR)).clock.left_s == pytest.approx(3 * HOUR, abs=60)


def test_a_deadline_that_is_ahead_binds_beside_a_budget(night: Night) -> None:
    night.open(budget_s=60.0, deadline=iso(HOUR)).close()
    session = reopened(night, extra_budget_s=9 * HOUR)
    assert session.clock.left_s == pytest.approx(HOUR, abs=60), "the deadline is still ahead"


def test_a_journal_of_before_adds_up_to_what_it_did(tmp_path: Path) -> None:
    """A resumption said nothing but the budget, and only where there was one."""
    old = Journal(tmp_path / "journal.jsonl")
    options = {"recipe_path": "x", "campaign": "night", "budget_s": 60.0, "deadline": None, "max_experiments": 2}
    old.append(
        "campaign_started", campaign="night", recipe_path="x", recipe="", base_commit="0" * 40, budget_s=60.0,
        options=options,
    )  # fmt: skip
    old.append("campaign_resumed", reason="", budget_s=100.0)
    old.append("campaign_resumed", reason="")
    state: CampaignState = old.state()
    assert state.options == options
    settings = settings_of(state)
    assert (settings.budget_s, settings.max_experiments, settings.deadline) == (100.0, 2, None)
    assert limits_met(state, settings) == []
