"""A night as the journal tells it: every state, and what must hold of any part of any journal."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_journals import A_RUN, MadeJournal, long_night

from agent.campaign.comparison import Comparison, RunNoise, compare, group_noise, pool
from agent.campaign.decided import comparison_from
from agent.campaign.headline import ruled_out_words
from agent.campaign.near_misses import MOST_SEEDS, further_seeds
from agent.campaign.night import night_of
from agent.campaign.night_arms import Yardstick, arms_of
from agent.campaign.night_steps import bounds_by_axis
from agent.campaign.night_time import SLICES, time_slices
from agent.campaign.replay import runs_of
from agent.campaign.scores import Scores
from agent.campaign.stairs import key_of, stairs_of
from agent.campaign.standing import standing
from agent.campaign.story import tell
from agent.ledger.state import CampaignState, fold
from agent.report import look
from agent.report.night import Estimate, Night
from agent.report.night_markdown import markdown
from agent.report.numbers import Numbers
from agent.report.page import render_page
from agent.report.summary import night_from, summary_text


def told(state: CampaignState, *, running: bool = False) -> Night:
    """And what holds of every night."""
    night = night_of(state, name="night", running=running, clock=lambda: 1e9)
    assert math.isclose(math.fsum(one.seconds for one in night.time), state.consumed_s, abs_tol=1e-6)
    assert all(one.seconds > 0 and one.name in SLICES for one in night.time)
    assert night_from(json.loads(summary_text(night))) == night
    assert markdown(night).startswith("# night\n\n**")
    return night


def gain(delta: float, low: float, high: float) -> dict[str, float]:
    return {"delta": delta, "low": low, "high": high}


# --- the first sentence ------------------------------------------------------------------------------------


def test_before_anything_ran() -> None:
    assert told(CampaignState()).verdict == "nothing has run yet"
    assert told(CampaignState()).state == "new"
    assert told(MadeJournal().started().state(), running=True).verdict == "the baseline is not measured yet; running"


def test_a_baseline_that_is_only_planned_is_none_yet() -> None:
    """Its step is there from the first minute on, and stays open where its runs crash."""
    made = MadeJournal().started()
    for night in (told(made.state(), running=True), told(made.state())):
        assert [step.outcome for step in night.steps] == ["open"]
        assert look.headline(night).label == "No baseline yet"
        assert "There is no baseline yet, and so no staircase." in render_page(night, charts=None)
    measured = told(made.baseline().state(), running=True)
    assert look.headline(measured).label == "No confirmed improvement so far"
    assert "There is no baseline yet" not in render_page(measured, charts=None)


def test_stopped_before_the_baseline_was_measured() -> None:
    made = MadeJournal().started()
    made.tell("campaign_paused", reason="stopped by Ctrl-C")
    night = told(made.state())
    assert night.verdict == "the baseline is not measured yet; paused: stopped by Ctrl-C"
    assert (night.state, night.arms, night.noise.sigma_run) == ("paused", (), None)
    assert night.reproduce[0] == ("raft-agent resume night", "goes on where it stopped")


def test_no_improvement_says_what_was_ruled_out() -> None:
    made = MadeJournal().started().baseline()
    made.idea("regressed", effect=-0.2, axis="clipping")
    made.idea("inconclusive", axis="batch", confirmed=5)
    night = told(made.finished().state())
    bound = max(one.above for one in night.ruled_out)
    assert night.verdict.startswith("no confirmed improvement; ruled out gains above ")
    assert "; holdout (n=200): untrained 20.0% -> baseline 50.0%; effects above 3.0pp would probably" in night.verdict
    (first, second) = night.ruled_out
    assert (first.number, second.number) == (1, 2)
    assert first.above < 0 < second.above == bound
    assert "clipping" in night.verdict


def ruled_out(by_axis: dict[str, float], by_idea: list[float], detectable: float | None = 0.069) -> str:
    return ruled_out_words(by_axis, by_idea, detectable, measured=10, numbers=Numbers("pass_rate"))


def test_a_bound_wider_than_what_would_have_been_found_is_not_said_beside_it() -> None:
    """`ruled out gains above 23.6pp` beside `effects above 6.9pp would have been found` reads as a contradiction."""
    assert ruled_out({"batch": 0.236, "rate": 0.08}, [0.236, 0.08]) == ""
    assert ruled_out({"batch": 0.236, "rate": 0.05}, [0.236, 0.05]) == "ruled out gains above 5.0pp on: rate"
    assert ruled_out({"batch": 0.236}, [0.236], None) == "ruled out gains above 23.6pp on: batch"


def test_where_each_axis_has_an_idea_of_which_little_is_known_the_others_are_counted() -> None:
    assert (
        ruled_out({"batch": 0.2}, [0.2, 0.01, 0.026, -0.1])
        == "ruled out gains above 2.6pp by 3 of 10 ideas that were measured"
    )


def test_the_bound_holds_for_all_axes_that_are_counted() -> None:
    axes = {f"axis-{n}": n / 100 for n in range(1, 9)}
    words = "ruled out gains above 8.0pp on: axis-1, axis-2, axis-3, axis-4, axis-5, axis-6 and 2 more"
    assert ruled_out(axes, list(axes.values()), 0.1) == words


def test_nothing_is_claimed_where_no_idea_was_measured_whole() -> None:
    none = MadeJournal().started().baseline().finished()
    assert told(none.state()).verdict.startswith("no confirmed improvement: no idea was judged yet; holdout (n=200)")
    crashed, unclear = MadeJournal().started().baseline(), MadeJournal().started().baseline()
    crashed.crash()
    unclear.idea("tainted")
    for made in (none, crashed.finished(), unclear.finished()):
        assert "would probably have been found" not in told(made.state()).verdict
    unclear.idea("inconclusive")
    assert "would probably have been found" in told(unclear.finished().state()).verdict


def test_an_axis_is_ruled_out_only_where_all_that_was_tried_of_it_is_known() -> None:
    made = MadeJournal().started().baseline()
    made.idea("regressed", effect=-0.2, axis="clipping")
    for kind in ("screened", "tainted"):
        made.idea("regressed", effect=-0.2, axis=kind)
        made.idea(kind, axis=kind)
    made.idea("regressed", effect=-0.2, axis="batch")
    made.crash(axis="batch")
    made.idea("regressed", effect=-0.2, axis="rate")
    made.idea("promising", effect=0.04, axis="rate")
    state = made.finished().state()
    bounds = bounds_by_axis(state)
    assert set(bounds) == {"clipping", "rate"}
    promising = comparison_from(state.experiments[max(state.experiments)].judged.numbers["basis"])  # type: ignore[union-attr]
    assert promising is not None
    assert bounds["rate"] == promising.interval[1] > 0 > bounds["clipping"]


def test_only_crashes() -> None:
    made = MadeJournal().started().baseline()
    for crash_class in ("oom", "oom", "typo"):
        made.crash(crash_class)
    night = told(made.finished().state())
    words = "no confirmed improvement: all 3 ideas crashed (oom 2, typo 1)"
    assert night.verdict == f"{words}; holdout (n=200): untrained 20.0% -> baseline 50.0%"
    assert [one.crash_class for one in night.crashes] == ["oom", "oom", "typo"]
    assert night.crashes[0].evidence == "out of memory"
    assert night.crashes[0].fixes == ("oom: half the microbatch",)
    assert all(step.value is None for step in night.steps[1:])
    assert [card.story.number for card in night.cards] == [1, 2, 3]


@pytest.mark.parametrize(
    ("holdout", "words"),
    [
        ({"winner - baseline": gain(0.2, 0.1, 0.3)}, "; the holdout agrees"),
        ({"winner - baseline": gain(0.05, -0.1, 0.2)}, "; the holdout agrees with the confirmed gain, but alone"),
        ({"winner - baseline": gain(-0.02, -0.1, 0.06)}, "THE GAIN DID NOT REPRODUCE ON THE HOLDOUT"),
        ({"not evaluated": {"winner": "its checkpoints are gone"}}, "without the winner the holdout says nothing"),
        ({"skipped": "the holdout was not evaluated: the budget is spent"}, "; the holdout was not evaluated: the"),
    ],
)
def test_a_confirmed_gain_and_what_the_holdout_makes_of_it(holdout: dict[str, object], words: str) -> None:
    made = MadeJournal().started().baseline()
    made.idea("gain", effect=0.2)
    known = {} if "skipped" in holdout else {"untrained": 0.2, "baseline": 0.5, "winner": 0.7, "prompts": 200}
    night = told(made.finished(holdout=known | holdout).state())
    assert night.verdict.startswith("1 confirmed gain, +")
    assert words in night.verdict
    assert {one.name: one.number for one in night.arms} == {"untrained": None, "baseline": 0, "winner": 1}
    commands = [command for command, _ in night.reproduce]
    assert "raft-agent finalize night" in commands


@pytest.mark.parametrize(("kept", "whose"), [(True, "winner"), (False, "baseline")])
def test_the_checkpoint_is_the_winners_or_the_baselines(kept: bool, whose: str) -> None:
    made = MadeJournal().started().baseline()
    made.idea(*(("gain",) if kept else ()), effect=0.2 * kept)
    night = told(made.finished(checkpoint="place").state())
    assert ("raft-agent eval place", f"evaluates the {whose}'s checkpoint again") in night.reproduce


def test_what_was_kept_as_cheaper_is_no_gain() -> None:
    made = MadeJournal().started().baseline()
    number = made.idea("cheaper", confirmed=2)
    made.incumbent = number
    holdout = {"untrained": 0.2, "baseline": 0.5, "winner": 0.49, "prompts": 200}
    state = made.finished(holdout=holdout | {"winner - baseline": gain(-0.01, -0.04, 0.02)}).state()
    night = told(state)
    assert night.verdict.startswith("no confirmed improvement, 1 kept as simpler or cheaper, ")
    assert night.verdict.endswith("; it was kept as simpler or cheaper, not as better")
    assert "REPRODUCE" not in night.verdict
    assert look.headline(night).label == "Simpler or cheaper, not better"


def test_running_and_killed() -> None:
    made = MadeJournal().started().baseline()
    made.idea("gain", effect=0.2)
    running, killed = told(made.state(), running=True), told(made.state())
    assert (running.state, killed.state) == ("running", "killed")
    assert "the holdout is not evaluated yet; running, " in running.verdict
    assert " used" in running.verdict
    assert "killed after" in killed.verdict
    assert killed.reproduce[0][0] == "raft-agent resume night"


def test_no_idea_judged_yet() -> None:
    night = told(MadeJournal().started().baseline().state(), running=True)
    assert night.verdict.startswith("no confirmed improvement: no idea was judged yet; running, ")


def test_a_campaign_that_was_given_more_time_forgets_what_the_holdout_said_of_another_winner() -> None:
    made = MadeJournal().started(budget_s=1000.0).baseline()
    made.idea("gain", effect=0.1)
    known = {"untrained": 0.2, "baseline": 0.5, "winner": 0.6, "winner - baseline": gain(0.1, 0.0, 0.2)}
    made.finished(holdout=known)
    made.tell("campaign_resumed", budget_s=5000.0)
    made.idea("gain", effect=0.1)
    night = told(made.state(), running=True)
    assert night.budget_s == 5000.0
    assert night.verdict.startswith("2 confirmed gains")
    assert "; the holdout is not evaluated yet for this winner, and was looked at for #1; running, " in night.verdict
    assert all(one.split != "holdout" for one in night.gains)


@pytest.mark.parametrize("kept", [True, False])
def test_a_holdout_that_was_skipped_at_the_end_is_still_to_come_where_the_campaign_goes_on(kept: bool) -> None:
    made = MadeJournal().started(budget_s=1000.0).baseline()
    made.idea(*(("gain",) if kept else ()), effect=0.1 * kept)
    skipped = "the holdout was not evaluated: the budget is spent"
    made.finished(holdout={"skipped": skipped})
    assert skipped in told(made.state()).verdict
    made.tell("campaign_resumed", budget_s=5000.0)
    night = told(made.state(), running=True)
    assert skipped not in night.verdict
    assert ("the holdout is not evaluated yet; running, " in night.verdict) == kept


@pytest.mark.parametrize("kept", [True, False])
def test_a_campaign_that_goes_on_after_its_end_says_what_the_holdout_said_and_no_more_of_the_end(kept: bool) -> None:
    """Its checkpoint may be another by now, and the holdout that stands in the table was looked at."""
    made = MadeJournal().started(budget_s=1000.0).baseline()
    made.idea(*(("gain",) if kept else ()), effect=0.1 * kept)
    known = {"untrained": 0.2, "baseline": 0.5, **({"winner": 0.6} if kept else {}), "prompts": 200}
    made.finished(holdout=known, checkpoint="place", headline="the end")
    made.tell("campaign_resumed", budget_s=5000.0)
    for running, words in ((True, "running, "), (False, "killed after ")):
        night = told(made.state(), running=running)
        seen = "; holdout (n=200): untrained 20.0% -> baseline 50.0%" + (" -> winner 60.0%; " if kept else "; ")
        assert seen + words in night.verdict
        assert not any("raft-agent eval" in command for command, _ in night.reproduce)
        assert standing(made.state(), name="night", at=0.0, process=1 if running else None).headline == ""
    made.finished(holdout=known, checkpoint="other", headline="the new end")
    assert any("raft-agent eval other" in command for command, _ in told(made.state()).reproduce)
    assert standing(made.state(), name="night", at=0.0, process=None).headline == "the new end"


# --- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warned"), [((0, 0, 0), 1), ((0, 4, 0), 0), ((None, None, None), 0)])
def test_a_baseline_that_trained_nothing_is_said(steps: tuple[int | None, ...], warned: int) -> None:
    made = MadeJournal().started().baseline()
    ended = [line for line in made.lines if line["kind"] == "run_finished" and line["run"].startswith("baseline-")]
    for line, taken in zip(ended, steps, strict=True):
        line["summary"]["optimizer_steps"] = taken
    warnings = told(made.state()).warnings
    assert sum("raft-agent diagnose baseline-s1 looks for the cause" in words for words in warnings) == warned


@pytest.mark.parametrize(
    ("told", "low", "high"),
    [
        ({"value": 0.04, "low": -0.065, "high": 0.15}, 0.0, 0.15),
        ({"value": 0.0, "low": 0.0, "high": 0.0}, 0.0, 0.0188),
        ({"value": 1.0, "low": None, "high": None}, None, None),
        ({"value": 1.0, "low": -math.inf, "high": math.inf}, -math.inf, math.inf),
    ],
)
def test_an_arms_interval_is_one_of_a_rate(told: dict[str, float], low: float | None, high: float | None) -> None:
    """None of 200 prompts does not prove that there is none at all (Wilson's interval)."""
    made = MadeJournal().started().baseline()
    for line in made.lines:
        if line["kind"] == "experiment_judged":
            line["numbers"]["arms"] = {"0": {"search": {**told, "runs": 3}}}
    state = made.state()
    (baseline,) = [
        arm for arm in arms_of(state, 0, Yardstick("pass_rate", False, {"search": 200}, None)) if arm.name == "baseline"
    ]
    found = baseline.metrics["search"]
    assert (found.low, found.high) == (low, None if high is None else pytest.approx(high, abs=1e-4))


def test_the_staircase_in_the_metrics_own_direction() -> None:
    for minimize in (False, True):
        made = MadeJournal(minimize=minimize).started().baseline()
        made.idea("gain", effect=0.2)
        made.idea("inconclusive", effect=0.0)
        night = told(made.state())
        assert night.minimize == minimize
        baseline, kept, other = night.steps
        assert None not in (baseline.best, kept.best, kept.value, kept.low, kept.high, kept.base_value, kept.delta)
        assert (kept.best < baseline.best) == minimize  # type: ignore[operator]
        assert kept.low < kept.value < kept.high  # type: ignore[operator]
        assert not kept.low < kept.base_value < kept.high  # type: ignore[operator]
        assert other.best == kept.best
        assert kept.delta is not None
        assert kept.delta.value > 0
        arms = {one.name: one.metrics for one in night.arms}
        better = arms["winner"]["confirm"].value - arms["baseline"]["confirm"].value
        assert (better < 0) == minimize
        assert all(0 <= one.low < one.value < one.high <= 1 for arm in arms.values() for one in arm.values())  # type: ignore[operator]
        over = [one for one in night.gains if one.of == "winner"]
        assert [one.split for one in over] == ["search", "confirm"]
        assert all(one.delta.value > 0 for one in over)


def test_arms_cover_the_true_value() -> None:
    """Two runs of 200 prompts: the interval is over runs and prompts, and covers 95% or somewhat more."""
    hits = []
    for seed in range(120):
        made = MadeJournal(seed=seed, sigma=0.02).started().baseline()
        night = night_of(made.state(), name="night", running=False)
        found = next(one for one in night.arms if one.name == "baseline").metrics["search"]
        truth = 0.5
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert sum(hits) / len(hits) >= 0.9


def baseline_on_search(made: MadeJournal) -> Estimate:
    return next(one for one in told(made.state()).arms if one.name == "baseline").metrics["search"]


def test_an_arm_has_no_interval_where_nothing_tells_how_its_prompts_differ() -> None:
    """Runs of another metric than a rate lie close together, on prompts that were drawn once for all of them."""
    made = MadeJournal().started().baseline()
    assert baseline_on_search(made).low is not None
    judged = next(line for line in made.lines if line["kind"] == "experiment_judged")["numbers"]
    judged["measured_by"]["metric"] = "mean_reward"
    found = baseline_on_search(made)
    assert (found.low, found.high) == (None, None)
    assert 0.4 < found.value < 0.6
    judged["arms"] = {"0": {"search": {"value": 0.51, "low": 0.45, "high": 0.57, "runs": 3}}}
    assert baseline_on_search(made) == Estimate(0.51, 0.45, 0.57)


def test_a_run_that_counts_no_more_is_in_no_number() -> None:
    """Somebody changed its files, and it was put aside: until it has run again, in the same folder, and after that."""

    def measured() -> tuple[float, float | None]:
        return baseline_on_search(made).value, told(made.state()).steps[0].value

    made = MadeJournal().started().baseline(seeds=2)
    without = measured()
    judged = next(line for line in made.lines if line["kind"] == "experiment_judged")
    judged["numbers"]["runs"]["candidate"].append("baseline-s3")
    made.run("baseline-s3", 0, "baseline", "calibrate", None, {"search": 0.95})
    assert measured() == pytest.approx((0.65, 0.65), abs=0.05)
    made.tell("note", text="rows of it changed after it had ended: it counts no more", void="baseline-s3")
    assert [key_of(run) for run in runs_of(made.state(), 0)] == ["baseline-s1", "baseline-s2"]
    (third,) = [run for run in tell(made.state(), 0).runs if run.run == "baseline-s3"]
    assert (third.state, third.reason) == ("set aside", "rows of it changed after it had ended: it counts no more")
    assert measured() == pytest.approx(without)
    made.run("baseline-s3.2", 0, "baseline", "calibrate", None, {"search": without[0]})
    for line in made.lines:
        if line.get("out", "").endswith("s3.2"):
            line["out"] = line["out"].removesuffix(".2")
    assert measured() == pytest.approx(without)


def test_by_number_the_best_does_not_fall_back_where_losers_were_judged_before_the_kept_one() -> None:
    made = MadeJournal().started().baseline()
    kept, loser = made.idea("gain", effect=0.2), made.idea("screened")
    late = [line for line in made.lines if line["kind"] in ("experiment_judged", "experiment_recorded")]
    late = [line for line in late if line["experiment"] == kept]
    lines = [*(line for line in made.lines if line not in late), *late]
    made.lines = [line | {"seq": place} for place, line in enumerate(lines, start=1)]
    state = made.state()
    assert state.judged_order == [0, loser, kept]
    baseline, better, after = stairs_of(state)
    assert better.best is not None
    assert baseline.best is not None
    assert better.best > baseline.best
    assert (after.best, after.best_by_number) == (baseline.best, better.best)
    seen = standing(state, name="night", process=None, at=0.0)
    assert [mark.best for mark in seen.marks] == [better.best, better.best]


def test_an_open_idea_and_one_under_way_are_on_the_staircase() -> None:
    made = MadeJournal().started().baseline()
    made.planned(1, "batch", "a larger batch")
    night = told(made.state(), running=True)
    assert (night.steps[1].outcome, night.steps[1].value, night.counts["open"]) == ("open", None, 1)


def test_parts_of_what_was_kept_are_no_near_misses() -> None:
    made = MadeJournal().started().baseline()
    part = made.idea("promising", effect=0.05)
    other = made.idea("inconclusive", effect=0.06)
    assert {one.number for one in told(made.state()).near_misses} == {part, other}
    made.idea("gain", effect=0.2, together=[part])
    night = told(made.state())
    assert [one.number for one in night.near_misses] == [other]
    assert night.cards[-1].parts == (part,)


@pytest.mark.parametrize(
    ("again", "near"),
    [
        ([("inconclusive", -0.2, {"advance": True})], set()),
        ([("lead", 0.06, {"advance": True})], {2}),
        ([("lead", 0.06, {"advance": True}), ("inconclusive", -0.2, {"together": [2], "of_lead": True})], set()),
        ([("lead", 0.06, {"advance": True}), ("regressed", 0.01, {"together": [2], "of_lead": True})], set()),
        ([("underpowered", -0.2, {"advance": True})], {1}),
        ([("inconclusive", -0.2, {"together": [], "recipe_signature": f"{1:016x}"})], set()),
        ([("inconclusive", -0.2, {"together": [], "without": 1, "recipe_signature": f"{1:016x}"})], {1}),
    ],
)
def test_a_near_miss_that_ran_once_more_is_what_that_run_says(
    again: list[tuple[str, float, dict[str, object]]], near: set[int]
) -> None:
    made = MadeJournal().started().baseline()
    one = made.idea("promising", effect=0.06)
    for kind, effect, known in again:
        made.idea(kind, effect=effect, **{"together": [one], **known})
    assert {miss.number for miss in told(made.state()).near_misses} == near


@pytest.mark.parametrize(("kind", "effect", "left"), [("lead", 0.06, 3), ("inconclusive", -0.2, 0)])
def test_near_misses_are_told_while_they_are_not_worse_together(kind: str, effect: float, left: int) -> None:
    made = MadeJournal().started().baseline()
    parts = [made.idea("promising", effect=0.06) for _ in range(2)]
    made.idea(kind, effect=effect, together=parts, advance=True)
    assert len(told(made.state()).near_misses) == left


def test_the_parts_of_a_lead_that_was_worse_on_fresh_seeds_are_no_near_misses() -> None:
    made = MadeJournal().started().baseline()
    parts = [made.idea("promising", effect=0.06) for _ in range(2)]
    lead = made.idea("lead", effect=0.06, together=parts, advance=True)
    assert {one.number for one in told(made.state()).near_misses} == {*parts, lead}
    made.idea("regressed", effect=-0.2, together=[lead], of_lead=True)
    assert told(made.state()).near_misses == ()


def test_what_was_built_on_was_not_measured_again() -> None:
    made = MadeJournal().started().baseline()
    lead = made.idea("lead", effect=0.06)
    part = made.idea("promising", effect=0.06, incumbent=lead)
    made.idea("inconclusive", effect=-0.2, together=[lead, part], advance=True, incumbent=lead)
    assert [one.number for one in told(made.state()).near_misses] == [lead]


NOISE = RunNoise(between=2e-4, within=1e-4, df=12)
NEAR = Comparison(
    delta=0.02, standard_error=0.018, df=10.0, prompts=400, seeds_candidate=1, seeds_incumbent=3, pair_error=0.012,
    run_error=0.0115, candidate=0.52, incumbent=0.5, noise=NOISE,
)  # fmt: skip


def test_further_seeds_are_fewer_for_larger_effects() -> None:
    needed = [further_seeds(dataclasses.replace(NEAR, delta=delta), level=0.025) for delta in (0.03, 0.04, 0.06, 0.1)]
    assert needed == sorted((one or MOST_SEEDS + 1 for one in needed), reverse=True)
    assert needed[-1] == 1
    assert further_seeds(dataclasses.replace(NEAR, delta=0.005), level=0.025) is None
    assert further_seeds(dataclasses.replace(NEAR, noise=None), level=0.025) is None
    assert further_seeds(dataclasses.replace(NEAR, delta=-0.01), level=0.025) is None


def test_further_seeds_are_fewer_where_a_confirmation_has_more_prompts() -> None:
    near = dataclasses.replace(NEAR, delta=0.06, prompts=100, pair_error=0.02)
    needed = [further_seeds(near, level=0.025, prompts=prompts) for prompts in (50, 100, 200, 800)]
    assert needed[1] == further_seeds(near, level=0.025)
    known = [one or MOST_SEEDS + 1 for one in needed]
    assert known == sorted(known, reverse=True)
    assert known[0] > known[1] > known[3]


@pytest.mark.parametrize(
    ("run_share", "would_show_more"),
    [
        (0.7, "longer trainings (budget) or more seeds (--seeds)"),
        (0.3, "more held-out prompts (evaluation.search_prompts, confirm_prompts)"),
        (None, None),
    ],
)
def test_what_would_show_smaller_gains_depends_on_what_makes_the_error(
    run_share: float | None, would_show_more: str | None
) -> None:
    state = MadeJournal().started().baseline().state()
    state.calibration["run_share"] = run_share
    found = re.search(r"gains from about 3\.0pp(?:, and (.*) would show smaller ones)?$", told(state).noise.words)
    assert found is not None
    assert found[1] == would_show_more


def near_misses_where(detectable: float, *, effect: float, confirmed: int) -> list[tuple[bool, bool]]:
    """Of an idea that measured better: (further seeds would settle it, its upper bound is below what can be found)."""
    made = MadeJournal().started().baseline()
    made.idea("inconclusive", effect=effect, confirmed=confirmed)
    state = made.state()
    state.calibration["smallest_detectable"] = detectable
    return [(one.seeds is not None, one.delta.high <= detectable) for one in told(state).near_misses]  # type: ignore[operator]


def test_what_some_seeds_would_settle_is_a_near_miss_however_little_a_confirmation_finds() -> None:
    assert near_misses_where(0.2, effect=0.05, confirmed=3) == [(True, True)]


def test_a_schedule_costs_a_third_arm() -> None:
    times = []
    for known in ({}, {"comparator": {"model": {"source": "builtin:tiny"}}}):
        made = MadeJournal().started().baseline()
        made.idea("inconclusive", effect=0.05, confirmed=3, **known)
        (one,) = told(made.state()).near_misses
        assert one.seeds is not None
        assert one.seconds is not None
        times.append(one.seconds / (one.seeds * A_RUN))
    assert times == pytest.approx([2, 3])


def test_a_lead_with_a_schedule_in_it_costs_a_third_arm_too() -> None:
    decay, rate = ({key: [1, 2]} for key in ("learner.lr_schedule.kind", "learner.learning_rate"))
    times = []
    for second in (rate, decay):
        made = MadeJournal().started().baseline()
        scheduled = made.idea("promising", effect=0.05, changes=decay)
        lead = made.idea("lead", effect=0.05, together=[scheduled], advance=True, changes=decay)
        made.idea("promising", effect=0.08, incumbent=lead, changes=second)
        near = sorted(told(made.state()).near_misses, key=lambda one: one.number)
        times.append([one.seconds / (one.seeds * A_RUN) for one in near if one.seconds and one.seeds])
    # alone a schedule is compared with the incumbent, which is the same at a constant rate
    assert times == [pytest.approx([2, 3]), pytest.approx([2, 2])]


def test_a_schedule_that_is_not_shown_better_than_a_constant_rate_needs_seeds_for_that() -> None:
    needed = []
    for over_constant in (0.1, 0.06, 0.01, -0.05):
        made = MadeJournal().started().baseline()
        made.idea("inconclusive", effect=0.1, confirmed=3, over_constant=over_constant, comparator={"seed": 1})
        (one,) = told(made.state()).near_misses
        assert "; over the same at a constant rate " in one.words
        needed.append(one.seeds or MOST_SEEDS + 1)
    assert needed == sorted(needed)
    assert needed[0] < needed[1] < needed[2] == needed[3] == MOST_SEEDS + 1
    assert one.words.endswith("no number of seeds would keep the schedule")


def test_what_is_smaller_than_asked_for_is_no_near_miss() -> None:
    made = MadeJournal().started().baseline()
    for least in (0.0, 0.3):
        made.idea("inconclusive", effect=0.06, confirmed=3, min_effect=least)
    assert [one.number for one in told(made.state()).near_misses] == [1]


def test_what_no_seeds_would_settle_is_one_only_while_it_may_be_large() -> None:
    assert near_misses_where(0.2, effect=0.006, confirmed=5) == []
    assert near_misses_where(0.001, effect=0.006, confirmed=5) == [(False, False)]


def test_further_seeds_find_the_difference_four_times_in_five() -> None:
    """Drawn: with the number that it names, a confirmation sees the measured difference with 80% power."""
    from agent.campaign.near_misses import _with_seeds

    delta, level = 0.035, 0.025
    near = dataclasses.replace(NEAR, delta=delta)
    seeds = further_seeds(near, level=level)
    assert seeds is not None
    then = _with_seeds(near, seeds, seeds)
    draws = np.random.default_rng(1).normal(delta, then.standard_error, 400)
    power = np.mean([dataclasses.replace(then, delta=float(one)).lower(level) > 0 for one in draws])
    fewer = _with_seeds(near, seeds - 1, seeds - 1) if seeds > 1 else None
    assert 0.76 <= power <= 0.97
    if fewer is not None:
        assert np.mean([dataclasses.replace(fewer, delta=float(one)).lower(level) > 0 for one in draws]) < power


@pytest.mark.parametrize(
    ("delta", "effect_sd", "run_sd", "alike"),
    [
        (0.05, 0.1, 0.01, 1.0),
        (0.05, 0.0, 0.02, 1.0),
        (0.05, 0.0, 0.02, 0.7),  # the luck of sampling is all that differs, and the measured seeds had little of it
    ],
)
def test_so_many_further_seeds_have_their_power_where_prompts_and_runs_are_drawn(
    delta: float, effect_sd: float, run_sd: float, alike: float
) -> None:
    """Nothing here comes from the formula: fresh prompts, on which the idea does more or less, fresh runs and fresh
    answers. `alike`: of the variance of the measured pair, what that measurement happened to have."""
    prompts, level, sampling_sd = 150, 0.02, 0.45
    within = sampling_sd**2 / prompts
    pair = math.sqrt(alike * (within * (1 + 1 / 3) + effect_sd**2 / prompts))
    noise = RunNoise(between=within + run_sd**2, within=within, df=12)
    near = dataclasses.replace(NEAR, delta=delta, prompts=prompts, pair_error=pair, noise=noise)
    seeds = further_seeds(near, level=level)
    assert seeds is not None
    power = power_of(seeds, level, near, effect_sd=effect_sd, sampling_sd=sampling_sd, run_sd=run_sd)
    assert 0.77 <= power <= 0.9


def power_of(
    seeds: int, level: float, near: Comparison, *, effect_sd: float, sampling_sd: float, run_sd: float, times: int = 300
) -> float:
    """The share of confirmations with so many fresh seeds of each arm that show the difference."""
    drawn, known = np.random.default_rng(3), near.noise
    assert known is not None
    ids = tuple(f"{place:05d}" for place in range(near.prompts))

    def arm(of_prompts: np.ndarray) -> list[Scores]:
        runs = of_prompts + drawn.normal(0, run_sd, (seeds, 1)) + drawn.normal(0, sampling_sd, (seeds, near.prompts))
        return [Scores(ids, values) for values in runs]

    shown = 0
    for _ in range(times):
        easy = drawn.uniform(0.2, 0.8, near.prompts)
        theirs, ours = arm(easy), arm(easy + drawn.normal(near.delta, effect_sd, near.prompts))
        earlier = dataclasses.replace(known, between=known.between * drawn.chisquare(known.df) / known.df)
        noise = pool([earlier, *(one for one in map(group_noise, (ours, theirs)) if one)])
        shown += compare(ours, theirs, noise).p_value <= level
    return shown / times


def test_no_seeds_are_enough_where_no_error_is_known() -> None:
    same = dataclasses.replace(NEAR, delta=0.001, pair_error=0.0, run_error=0.0)
    assert further_seeds(dataclasses.replace(same, noise=RunNoise(0.0, 0.0, 2)), level=0.025) is None
    assert further_seeds(dataclasses.replace(same, noise=RunNoise(1e-4, 1e-4, 2)), level=0.025) is None


# --- time --------------------------------------------------------------------------------------------------


def test_each_second_is_in_one_slice() -> None:
    made = MadeJournal().started().baseline(seeds=3)
    made.idea("gain", effect=0.2)
    made.crash(fixes=1)
    made.run("holdout-baseline-baseline-s1", None, "holdout", "holdout", "baseline", {"holdout": 0.5}, seconds=20.0)
    spent = {one.name: one.seconds for one in told(made.state()).time}
    assert spent["calibrate"] == pytest.approx(20.0 + 3 * A_RUN)
    assert spent["confirm"] == pytest.approx(4 * A_RUN)
    assert spent["crashed"] == pytest.approx(2 * 30.0)
    assert spent["holdout"] == pytest.approx(20.0)
    assert (spent["train"], spent["evaluate"], spent["start-up"]) == pytest.approx((80.0, 10.0, 10.0))
    assert spent["idle"] == pytest.approx(1.5 * 12)


def test_a_training_that_was_stopped_and_went_on_is_counted_once() -> None:
    made = MadeJournal().started().baseline()
    made.planned(1, "batch", "a larger batch")
    key = "001-search-s1000"
    made.run(key, 1, "experiment", "full", "candidate", {"search": 0.5}, ended_by="stop", seconds=40.0, train_s=35.0)
    made.run(f"{key}.2", 1, "experiment", "full", "candidate", {"search": 0.5}, seconds=60.0, train_s=80.0)
    for line in made.lines:  # the same folder
        if line.get("out", "").endswith(".2"):
            line["out"] = line["out"].removesuffix(".2")
    spent = {one.name: one.seconds for one in time_slices(made.state())}
    assert spent["train"] == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("tells", "evaluate", "start_up"),
    [
        ({}, 10.0, 40.0),  # of an earlier version, which says nothing of loading either
        ({"select_s": 25.0, "load_s": 3.0, "elapsed_s": 96.0}, 35.0, 15.0),
        ({"load_s": 3.0, "elapsed_s": 96.0}, 43.0, 7.0),
    ],
)
def test_the_select_split_is_evaluation_and_no_start_up(
    tells: dict[str, float], evaluate: float, start_up: float
) -> None:
    made = MadeJournal().started().baseline()
    made.planned(1, "batch", "a larger batch")
    made.run("001-search-s1000", 1, "experiment", "full", "candidate", {"search": 0.5}, seconds=100.0, train_s=50.0)
    made.lines[-1]["summary"] |= tells
    spent = {one.name: one.seconds for one in time_slices(made.state())}
    assert (spent["train"], spent["evaluate"], spent["start-up"]) == pytest.approx((50.0, evaluate, start_up))


def test_a_run_whose_session_was_killed_has_the_time_until_it_went_on() -> None:
    made = MadeJournal().started().baseline()
    made.planned(1, "batch", "a larger batch")
    words = {"run": "001-search-s1000", "experiment": 1, "role": "experiment", "rung": "full", "arm": "candidate",
             "seed": 1, "recipe_signature": "", "out": ".raft/runs/night/001-search-s1000"}  # fmt: skip
    made.tell("run_planned", **words)
    made.tell("run_started", **words, pid=1, process_started=0.0)
    made.used += 50.0
    made.tell("campaign_resumed")
    made.tell("run_finished", run="001-search-s1000", ended_by="lost", reason="the agent ended before the run did")
    before = {one.name: one.seconds for one in told(made.state()).time}
    assert before["train"] == pytest.approx(50.0)
    assert "crashed" not in before


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), clocked=st.booleans())
def test_any_part_of_a_journal_is_a_night(seed: int, clocked: bool) -> None:
    """Lines that are missing, twice, out of order, without a clock: less is known, and the seconds still add up."""
    rng = random.Random(seed)
    lines = list(rng.choice(NIGHTS).lines)
    lines = [line for line in lines if rng.random() < 0.9][: rng.randrange(1, len(lines))]
    lines += rng.sample(lines, min(5, len(lines)))
    if rng.random() < 0.2:
        rng.shuffle(lines)
    if not clocked:
        lines = [{**line, "consumed_s": None} for line in lines]
    made = MadeJournal()
    made.lines = lines
    state = fold(made.events)
    state.consumed_s = max(state.consumed_s, rng.random() * 5000)
    told(state, running=rng.random() < 0.5)


def night_with_everything(*, minimize: bool = False) -> MadeJournal:
    made = MadeJournal(minimize=minimize).started().baseline()
    first = made.idea("promising", effect=0.05)
    made.idea("gain", effect=0.2, together=[first])
    made.crash()
    made.tell("campaign_paused", reason="stopped by Ctrl-C")
    made.tell("campaign_resumed")
    made.tell("constraint_learned", key="learner.microbatch_tokens", relation="<", value=8192, why="it did not fit")
    made.tell("shared_layer_changed", values={"backend.attention": "eager"}, env={"A": "1"}, why="a fault")
    made.tell("from_the_future", what="unknown")
    made.idea("inconclusive", effect=0.01, confirmed=3)
    holdout = {"untrained": 0.2, "baseline": 0.5, "winner": 0.7, "winner - baseline": gain(0.2, 0.1, 0.3)}
    return made.finished(holdout=holdout)


NIGHTS = [night_with_everything(), night_with_everything(minimize=True), long_night(12)]


def test_what_crashes_have_taught_and_what_is_wrong_with_the_record() -> None:
    night = told(NIGHTS[0].state())
    assert night.limits == ("learner.microbatch_tokens below 8192: it did not fit",)
    assert night.shared_layer == ("backend.attention: eager, A=1 (a fault)",)
    assert len(night.warnings) == 1
    assert "newer version" in night.warnings[0]
    assert night.cards[0].diff.startswith("--- a/recipes/test.yaml\n+++ b/recipes/test.yaml")


def test_five_hundred_ideas_are_gathered_in_half_a_second() -> None:
    import time

    state = long_night(500).state()
    began = time.process_time()
    night_of(state, name="night", running=False)
    assert time.process_time() - began < 0.5
