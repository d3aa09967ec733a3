"""What the next ideas build on without a verdict: who leads, until when, and what git, table and planner know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import A_RUN, MadeLab, run
from nights import BETTER_RATE, NO_DEDUP, NOTHING, Dies, Night, dying_at, hypothesis, new_night

from agent.campaign.announce import _put_together, announce, announce_together
from agent.campaign.budget import BudgetClock, RunCost
from agent.campaign.choose import attempts
from agent.campaign.endgame import confirm_lead, crowds_out, least_seconds, seconds_of_the_end
from agent.campaign.evidence import Evidence
from agent.campaign.lab import Order
from agent.campaign.lead import to_advance
from agent.campaign.past import Past, lead_now, lead_of, past_of, promising, standing_leads
from agent.campaign.rules import Rules
from agent.campaign.search import search
from agent.campaign.session import Session
from agent.campaign.workbench import Workbench
from agent.ledger.events import ExperimentJudged, ExperimentPlanned
from agent.ledger.state import CampaignState, Experiment
from agent.recipe.files import get_key, with_keys

SLOW = hypothesis("slow", 0.3, set={"learner.learning_rate": 1e-4})
SLOWER = hypothesis("slower", 0.2, set={"learner.learning_rate": 4e-5})
HALF_RATE = hypothesis("half-rate", 0.1, set={"learner.learning_rate": 2.5e-4})
RULES = Rules(alone_runs=1e9, clear_p=0.0, round=2, lead_left=0.0, batch=0)
"""Nothing is confirmed alone, nothing is clear at once, and two ideas are a round."""


def past(number: int, kind: str, outcome: str = "discard", **also: Any) -> Past:
    return Past(number, outcome, kind, 0.05, 0.1, **also)


# --- who leads ---------------------------------------------------------------------------------------------


def test_what_was_put_together_and_measured_better_leads_until_it_is_confirmed_or_given_up() -> None:
    story = [past(1, "promising"), past(2, "regressed")]
    assert lead_of(story, 0) == 0
    story.append(past(3, "lead", together=(1,), advance=True))
    assert lead_of(story, 0) == 3
    story.append(past(4, "regressed"))
    assert lead_of(story, 0) == 3
    story.append(past(5, "inconclusive", together=(4,), advance=True))
    assert lead_of(story, 0) == 3, "what was to go further did not"
    given_up = past(6, "inconclusive", together=(3,))
    assert lead_of([*story, given_up], 0) == 0
    assert lead_of([*story, past(6, "gain", "keep", together=(3,))], 6) == 6
    assert lead_of([*story, past(6, "regressed", without=2)], 0) == 3
    assert standing_leads(story) == {3}
    assert standing_leads([*story, given_up]) == set()
    assert standing_leads([*story, past(6, "gain", "keep", together=(3,))]) == {3}


def test_ideas_wait_until_they_are_put_together() -> None:
    story = [past(1, "promising"), past(2, "regressed"), past(3, "promising")]
    assert [one.number for one in promising(story)] == [1, 3]
    story.append(past(4, "lead", together=(1, 3), advance=True))
    assert promising(story) == []
    assert [one.number for one in promising([*story, past(5, "promising")])] == [5]
    assert promising([*story, past(5, "promising"), past(6, "inconclusive", together=(4, 5))]) == []
    assert promising([*story, past(5, "promising"), past(6, "gain", "keep")]) == []


KINDS = ("promising", "regressed", "lead", "no better", "stack", "kept stack", "kept", "crash")


@given(st.lists(st.sampled_from(KINDS), max_size=30))
def test_whatever_happens_the_lead_is_the_last_one_that_stands_and_was_not_confirmed(kinds: list[str]) -> None:
    story, incumbent, confirmed = [], 0, 0
    for number, kind in enumerate(kinds, start=1):
        outcome = "keep" if kind.startswith("kept") else "crash" if kind == "crash" else "discard"
        together = () if kind in ("promising", "regressed", "kept", "crash") else (99,)
        story.append(past(number, kind, outcome, together=together, advance=kind in ("lead", "no better")))
        incumbent = number if outcome == "keep" else incumbent
        confirmed = len(standing_leads(story)) if outcome == "keep" else confirmed
    lead, standing = lead_of(story, incumbent), standing_leads(story)
    assert (lead == incumbent) is (len(standing) == confirmed)
    assert lead == incumbent or lead == max(standing)


@given(st.lists(st.sampled_from(KINDS), max_size=12))
def test_looking_back_no_further_than_needed_finds_the_same_lead(kinds: list[str]) -> None:
    state = CampaignState()
    state.experiments[0] = Experiment(0, judged=_judged(0, "keep", "baseline"))
    for number, kind in enumerate(kinds, start=1):
        outcome = "keep" if kind.startswith("kept") else "crash" if kind == "crash" else "discard"
        together = [99] if kind in ("lead", "no better", "stack", "kept stack") else None
        planned = ExperimentPlanned(
            kind="experiment_planned", seq=1, time=0.0, experiment=number, hypothesis="", axis="", slug="", subject="",
            files={}, together=together, advance=kind in ("lead", "no better"),
        )  # fmt: skip
        state.experiments[number] = Experiment(number, planned=planned, judged=_judged(number, outcome, kind))
    state.judged_order = list(state.experiments)
    kept = [number for number, kind in enumerate(kinds, start=1) if kind.startswith("kept")]
    assert lead_now(state) == lead_of(past_of(state), kept[-1] if kept else 0)


def _judged(number: int, outcome: Any, kind: str) -> ExperimentJudged:
    return ExperimentJudged(
        kind="experiment_judged", seq=1, time=0.0, experiment=number, outcome=outcome, reason="", numbers={"kind": kind}
    )


# --- when --------------------------------------------------------------------------------------------------


def lab(*story: Past, runs: float = 100.0, waiting: int = 5, round: int = 2) -> MadeLab:
    found = MadeLab(lambda order: run("", 0.5), runs=runs, rules=Rules(round=round, lead_left=10.0))
    found.told, found.queue = list(story), list(range(waiting))
    return found


def test_a_round_is_over_after_so_many_ideas_or_when_there_are_no_others() -> None:
    one, two = past(1, "promising"), past(2, "regressed")
    assert not to_advance(lab(one))
    assert to_advance(lab(one, waiting=0))
    assert to_advance(lab(one, two))
    assert not to_advance(lab(two, past(3, "regressed"))), "nothing was promising"
    led = past(3, "lead", together=(1,), advance=True)
    assert not to_advance(lab(one, two, led, past(4, "promising", base=3)))
    assert to_advance(lab(one, two, led, past(4, "promising", base=3), past(5, "regressed")))


def test_it_takes_time_for_it_for_another_round_and_for_the_end() -> None:
    """A run; ten runs; six runs, and the holdout, which is one run of this lab's."""
    enough = 1 + 10 + 1.2 * 5 + 1
    story = (past(1, "promising"), past(2, "regressed"))
    assert to_advance(lab(*story, runs=enough + 0.01))
    assert not to_advance(lab(*story, runs=enough - 0.01))


class OnALead(MadeLab):
    """A lab in which what some ideas change stands elsewhere since."""

    def __init__(self, *story: Past, runs: float = 100.0, waiting: int = 5, moved: Sequence[int] = ()):
        super().__init__(lambda order: run("", 0.5), runs=runs, rules=Rules(clear_left=4.0, lead_left=10.0))
        self.told, self.queue, self.moved = list(story), list(range(waiting)), moved

    def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
        return 99

    def stands(self, number: int) -> bool:
        return number not in self.moved


LED = (
    past(1, "promising", p_as_if_known=0.2), past(2, "promising", p_as_if_known=0.3),
    past(3, "promising", p_as_if_known=0.01), past(4, "lead", together=(3,), advance=True, p_as_if_known=0.01),
)  # fmt: skip
"""Two ideas wait from before the third, which leads as #4."""


def test_what_is_clear_is_built_on_at_once_and_alone() -> None:
    assert to_advance(OnALead(*LED[:2])) == []
    assert to_advance(OnALead(*LED[:3])) == [3]
    assert to_advance(OnALead(*LED)) == [], "what waits was measured before"
    assert to_advance(OnALead(*LED, past(5, "promising", base=4, p_as_if_known=0.04))) == [5]
    earlier = past(5, "promising", p_as_if_known=0.001)
    assert to_advance(OnALead(*LED, earlier)) == [], "clear on another recipe"


def test_there_must_be_time_for_a_few_runs_on_what_is_clear() -> None:
    """A run; four runs; six runs, and the holdout, which is one run of this lab's."""
    enough = 1 + 4 + 1.2 * 5 + 1
    assert to_advance(OnALead(*LED[:3], runs=enough + 0.01)) == [3]
    assert to_advance(OnALead(*LED[:3], runs=enough - 0.01)) == []


def test_what_waits_from_before_is_run_on_the_lead_before_the_end() -> None:
    """The end takes six runs and the holdout; the run before it 1.2, and the next idea one."""
    end = 1.2 * 5 + 1
    assert seconds_of_the_end(OnALead(*LED)) == pytest.approx((end + 1.2) * A_RUN)
    assert to_advance(OnALead(*LED, runs=1 + end + 1.2 + 0.01)) == []
    assert to_advance(OnALead(*LED, runs=1 + end + 1.2 - 0.01)) == [1, 2]
    assert to_advance(OnALead(*LED, waiting=0)) == [1, 2]
    assert to_advance(OnALead(*LED, runs=6.9)) == [], "no time for it and the end"
    assert to_advance(OnALead(*LED, waiting=0, moved=[1])) == [2]
    nothing = OnALead(*LED, waiting=0, moved=[1, 2])
    assert to_advance(nothing) == []
    assert seconds_of_the_end(nothing) == pytest.approx(end * A_RUN)


def test_what_waits_on_the_lead_is_put_together_and_run_before_the_end_too() -> None:
    on_it = past(5, "promising", base=4, p_as_if_known=0.3)
    assert to_advance(OnALead(*LED, on_it, waiting=0)) == [1, 2, 5]


def test_the_end_confirms_nothing_with_the_lead_that_was_not_seen_on_it() -> None:
    on_it = past(5, "promising", base=4)
    asked: list[list[int]] = []

    class Noted(OnALead):
        def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
            asked.append(list(numbers))
            return 9

    assert confirm_lead(Noted(*LED, on_it)) == 9
    assert confirm_lead(Noted(*LED[:2])) == 9
    assert asked == [[4], [1, 2]], "where nothing leads, what is promising is confirmed as it is"


class Planned(Exception):
    """Something was put together."""


@pytest.mark.parametrize(
    ("limits", "confirms"),
    [({"max_experiments": 0}, True), ({"max_experiments": 0, "target": "pass_rate>=0.1"}, False)],
)
def test_a_number_of_ideas_that_is_reached_leaves_no_lead_unconfirmed(limits: dict[str, Any], confirms: bool) -> None:
    """A night that went by time was given a number when it was gone on with. A target that is met asks for no more."""

    class Reached(OnALead):
        def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
            raise Planned(numbers, of_lead)

        def best_metric(self) -> float | None:
            return 0.5

    lab = Reached(*LED)
    for name, value in limits.items():
        setattr(lab, name, value)
    if confirms:
        with pytest.raises(Planned) as planned:
            search(lab, Evidence())
        assert planned.value.args == ([4], True)
    else:
        assert "reached" in search(lab, Evidence())


class Dear(OnALead):
    """The first idea's runs take three times as long as any other's."""

    def cost(self, experiment: int) -> RunCost:
        return RunCost(0.0, A_RUN * (3 if experiment == 1 else 1), 0.0)


def test_an_idea_that_is_too_dear_to_be_put_together_does_not_keep_the_lead_from_its_confirmation() -> None:
    """The lead needs five runs; with the dear idea on top of it 1.2 times three runs, nine and two."""
    assert confirm_lead(Dear(*LED, runs=5.01, moved=[9])) is not None
    assert least_seconds(Dear(*LED, runs=5.01)) == 5 * A_RUN
    assert seconds_of_the_end(Dear(*LED, runs=14.5)) == pytest.approx((1.2 * 5 + 1.2 * 1) * A_RUN)
    assert to_advance(Dear(*LED, runs=14.7, waiting=0)) == [1, 2]
    assert to_advance(Dear(*LED, runs=14.5, waiting=0)) == [2]
    # while others wait: before there is no time for it after one more of them
    end = 1.2 * (9 + 2) + 1.2 * 3
    assert seconds_of_the_end(Dear(*LED, runs=30.0)) == pytest.approx(end * A_RUN)
    assert to_advance(Dear(*LED, runs=1 + end + 0.01)) == []
    assert to_advance(Dear(*LED, runs=1 + end - 0.01)) == [1, 2]
    # and where nothing leads, the others are confirmed without it: eleven runs with it, five without
    assert [least_seconds(Dear(*LED[:2], runs=runs)) / A_RUN for runs in (11.01, 10.99)] == [11.0, 5.0]


def test_a_dear_idea_holds_no_other_back() -> None:
    """A round: ten runs and one beside the end, of one run each without the dear one, of three with it."""
    story = (*LED[:2], past(9, "regressed"), *(past(10 + place, "regressed") for place in range(20)))
    assert to_advance(Dear(*story, runs=11 + 1.2 * 11 + 0.1)) == [2]
    assert to_advance(Dear(*story, runs=33 + 1.2 * 11 + 0.1)) == [1, 2]
    clear = [past(1, "promising", p_as_if_known=0.001), past(2, "promising", p_as_if_known=0.01)]
    assert to_advance(Dear(*clear, runs=5 + 1.2 * 11 + 0.1)) == [2]


def test_no_idea_is_confirmed_in_the_time_of_what_waits_for_the_end() -> None:
    """The dear idea needs eight runs, the lead five."""
    assert crowds_out(Dear(*LED, runs=12.9), 1)
    assert not crowds_out(Dear(*LED, runs=13.1), 1), "there is time for both"
    assert not crowds_out(Dear(*LED, runs=6.0), 2), "what the lead is in anyway, for less"
    assert not crowds_out(Dear(LED[0], runs=9.0), 1), "nothing waits"


def test_what_was_put_together_and_measured_nothing_waits_once_more() -> None:
    crashed = past(4, "crash", "crash", together=(3,), advance=True)
    story = [*LED[:3], crashed]
    assert [one.number for one in promising(story)] == [1, 2, 3]
    assert to_advance(OnALead(*story)) == [3]
    again = past(5, "tainted", together=(3,), advance=True)
    assert [one.number for one in promising([*story, again])] == [1, 2]
    assert [one.number for one in promising([*LED[:3], past(4, "inconclusive", together=(3,), advance=True)])] == [1, 2]
    # of what was to go on a lead, the lead does not count as put together in vain
    on_it = (past(5, "promising", base=4), past(6, "promising", base=4))
    story = [*LED, *on_it, past(7, "crash", "crash", together=(4, 5), advance=True)]
    story.append(past(8, "tainted", together=(4, 6), advance=True))
    assert [one.number for one in promising(story)] == [1, 2, 5, 6]


# --- in a campaign -----------------------------------------------------------------------------------------


def played(night: Night) -> Night:
    night.playbook(BETTER_RATE, NO_DEDUP, SLOW, SLOWER, HALF_RATE)
    return night


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """For tests that only look at it."""
    night = played(new_night(tmp_path_factory.mktemp("climbed")))
    night.start(rules=RULES, baseline_seeds=3)
    return night


@pytest.mark.slow
def test_a_search_climbs_without_a_verdict_and_is_confirmed_as_a_whole(climbed: Night) -> None:
    night = climbed
    assert night.session is not None
    assert night.outcomes()[1:] == [
        ("better-rate", "discard"), ("no-dedup", "discard"), ("together", "discard"),
        ("slow", "discard"), ("slower", "discard"), ("half-rate", "discard"), ("together", "keep"),
        ("ablation", "discard"), ("ablation", "discard"),
    ]  # fmt: skip
    kinds = [night.judged(number).numbers["kind"] for number in range(1, 8)]
    assert kinds[:3] == ["promising", "promising", "lead"]
    assert kinds[6] == "gain"
    reasons = [row["reason"] for row in night.rows]
    assert "+" in reasons[1]
    assert "too little to confirm ideas one by one" in reasons[1]
    assert reasons[3].startswith("leads: +")
    assert "unconfirmed, the next ideas build on it" in reasons[3]
    # measured beside the lead, which has both gains already
    assert float(night.rows[6]["incumbent_value"]) == pytest.approx(0.78, abs=0.09)
    assert float(night.rows[6]["delta"]) == pytest.approx(-0.45, abs=0.09)
    assert float(night.rows[7]["incumbent_value"]) == pytest.approx(0.40, abs=0.09)
    assert float(night.rows[7]["delta"]) == pytest.approx(0.38, abs=0.09)
    moved = {"learner.learning_rate 0.0005 -> 0.002", "selection.dedup True -> False"}
    assert set(night.rows[7]["change"].split(", ")) == moved
    levels = [night.judged(number).numbers["level"] for number in range(1, 8)]
    assert levels[:6] == [None] * 6
    assert night.session.state.incumbent is not None
    assert night.session.state.incumbent.experiment == 7


@pytest.mark.slow
def test_what_is_clear_leads_alone_and_what_waits_joins_it_before_the_end(night: Night) -> None:
    no_dedup = hypothesis("no-dedup", 0.95, set={"selection.dedup": False})  # gains less, and comes first
    night.playbook(no_dedup, BETTER_RATE, SLOW, SLOWER, HALF_RATE)
    night.start(rules=dataclasses.replace(RULES, clear_p=1e-12, clear_left=0.0, round=100), baseline_seeds=3)
    told = [(name, night.judged(number).numbers["kind"]) for number, (name, _) in enumerate(night.outcomes())]
    assert told[1:] == [
        ("no-dedup", "promising"), ("better-rate", "promising"), ("together", "lead"), ("slow", "regressed"),
        ("slower", "regressed"), ("half-rate", "regressed"), ("together", "lead"), ("together", "gain"),
        ("ablation", "regressed"), ("ablation", "regressed"),
    ]  # fmt: skip
    assert night.session is not None
    planned = [night.session.state.experiments[number].planned for number in (3, 7, 8)]
    assert [one.model_extra["together"] for one in planned if one and one.model_extra] == [[2], [3, 1], [7]]
    moved = {"learner.learning_rate 0.0005 -> 0.002", "selection.dedup True -> False"}
    assert set(night.rows[8]["change"].split(", ")) == moved


@pytest.mark.slow
def test_an_ideas_commit_starts_at_the_lead_and_makes_one_change(climbed: Night) -> None:
    night = climbed
    branch = "raft/night/exp/004-slow-up"
    assert night.git("rev-parse", f"{branch}~1") == night.git("rev-parse", "raft/night/exp/003-together")
    changed = [line[0] + line[1:].strip() for line in night.git("diff", f"{branch}~1", branch).splitlines()]
    moved = [line for line in changed if line[:1] in "+-" and not line.startswith(("+++", "---"))]
    assert moved == ["-learning_rate: 0.002  # the usual", "+learning_rate: 0.0001  # the usual"]
    message = night.git("log", "-1", "--format=%b", branch)
    assert "Incumbent: 000" in message
    assert "Lead: 003" in message
    text = night.git("show", "raft/night/best:recipes/test.yaml")
    assert "learning_rate: 0.002" in text
    assert "dedup: false" in text


@pytest.mark.slow
def test_the_planner_takes_the_lead_for_a_keep_and_what_confirmed_it_for_no_further_move(climbed: Night) -> None:
    assert climbed.session is not None
    told = {attempt.number: attempt for attempt in attempts(climbed.session)}
    assert 3 not in told, "its parts are told instead, by their own names"
    parts = [told[1], told[2]]
    assert [(part.hypothesis, part.outcome) for part in parts] == [("better-rate", "keep"), ("no-dedup", "keep")]
    assert [set(part.values) for part in parts] == [{"learner.learning_rate"}, {"selection.dedup"}]
    assert all(part.leads and part.stands == "leading" for part in parts)
    assert [part.delta for part in parts] == [pytest.approx(0.19, abs=0.04)] * 2
    assert list(told)[:3] == [1, 2, 4], "at the place of what they led in"
    assert not told[7].leads
    assert told[7].stands == "kept"
    assert (told[7].outcome, dict(told[7].values), told[7].delta) == ("keep", {}, None)
    assert told[4].outcome == "discard"


def test_what_is_in_the_incumbent_is_not_put_together_again(climbed: Night) -> None:
    session = climbed.session
    assert session is not None
    assert announce_together(session, [1, 2]) is None


def test_a_lead_that_moved_rate_and_temperature_in_two_rounds_is_confirmed_with_both(night: Night) -> None:
    """One idea may not move both, and what is put together at once may not either; a lead may have done so in turn."""
    session = played(night).open()
    bench = night.bench(session, rules=RULES)
    first = planned(bench, {"learner.learning_rate": 0.002}, kind="promising")
    lead = bench.plan_together([first], advance=True)
    assert lead is not None
    judged_as(bench, lead, "lead")
    second = planned(bench, {"rollout.temperature": 0.8}, kind="promising")
    further = bench.plan_together([second], advance=True)
    assert further is not None
    assert known(session, further)["together"] == [lead, second]
    judged_as(bench, further, "lead")
    confirmed = bench.plan_together([further], of_lead=True)
    assert confirmed is not None
    recipe = session.recipe_of(confirmed)
    assert (recipe.learner.learning_rate, recipe.rollout.temperature) == (0.002, 0.8)
    assert session.base_of(confirmed) == 0
    # both at once, from ideas that do not know of each other, are refused
    third = planned(bench, {"learner.learning_rate": 0.004}, kind="promising")
    fourth = planned(bench, {"rollout.temperature": 0.9}, kind="promising")
    both = bench.plan_together([third, fourth], advance=True)
    assert both is not None
    assert known(session, both)["together"] == [further, third]


def test_a_schedule_in_the_lead_has_to_beat_a_constant_rate(night: Night) -> None:
    session = played(night).open()
    bench = night.bench(session, rules=RULES)
    # as the planner has it on a constant rate: beside a schedule alone the incumbent is what it has to beat
    schedule = planned(
        bench, {"learner.lr_schedule.kind": "exponential", "learner.lr_schedule.decay": 0.9}, kind="promising"
    )
    other = planned(bench, {"selection.dedup": False}, kind="promising")
    lead = bench.plan_together([schedule, other], advance=True)
    assert lead is not None
    assert not bench.has_comparator(lead), "an advance is no verdict"
    judged_as(bench, lead, "lead")
    assert bench.needs_comparator(lead), "its time is planned"
    confirmed = bench.plan_together([lead], of_lead=True)
    assert confirmed is not None
    assert bench.has_comparator(confirmed)
    comparator = known(session, confirmed)["comparator"]
    assert comparator["learner"]["lr_schedule"]["kind"] == "constant"
    assert comparator["selection"]["dedup"] is False, "all but the schedule is the same"


def test_a_schedule_that_leads_alone_has_to_beat_the_constant_incumbent_and_nothing_else(night: Night) -> None:
    bench = night.bench(played(night).open(), rules=RULES)
    schedule = planned(
        bench, {"learner.lr_schedule.kind": "exponential", "learner.lr_schedule.decay": 0.9}, kind="promising"
    )
    lead = bench.plan_together([schedule], advance=True)
    assert lead is not None
    judged_as(bench, lead, "lead")
    confirmed = bench.plan_together([lead], of_lead=True)
    assert confirmed is not None
    assert not bench.has_comparator(confirmed)


def test_a_confirmation_of_the_lead_that_measured_nothing_is_tried_once_more(night: Night) -> None:
    bench = night.bench(played(night).open(), rules=RULES)
    part = planned(bench, {"learner.learning_rate": 0.002}, kind="promising")
    lead = bench.plan_together([part], advance=True)
    assert lead is not None
    judged_as(bench, lead, "lead")
    for tries in (1, 2):
        number = bench.plan_together([lead], of_lead=True)
        assert number is not None, tries
        judged_as(bench, number, "crash", outcome="crash")
        assert bench.lead == lead
    assert bench.plan_together([lead], of_lead=True) is None


def planned(bench: Workbench, values: dict[str, Any], *, kind: str, comparator: dict[str, Any] | None = None) -> int:
    """An idea on what leads now, judged as this kind."""
    session = bench.session
    recipe = session.recipe_of(session.lead)
    changed = with_keys(recipe, values)
    moves = {key: (get_key(recipe, key), new) for key, new in values.items()}
    proposal = _put_together(changed, moves, hypothesis="an-idea", what="made", claim="it helps", why="a test")
    beside = with_keys(recipe, comparator) if comparator else None
    number = announce(session, dataclasses.replace(proposal, comparator=beside), base=session.lead)
    judged_as(bench, number, kind)
    return number


def known(session: Session, number: int) -> dict[str, Any]:
    """What the journal knows of an experiment beside the words of its kind."""
    planned = session.state.experiments[number].planned
    assert planned is not None
    return planned.model_extra or {}


def judged_as(bench: Workbench, number: int, kind: str, outcome: str = "discard") -> None:
    bench.session.tell(
        "experiment_judged", experiment=number, outcome=outcome, reason=kind, numbers={"kind": kind, "p_value": 0.1},
        row={}, note="",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", [7, 8, 9, 12], ids=["before the lead", "as it runs", "on top of it", "as it is confirmed"]
)
def test_a_campaign_killed_on_its_climb_goes_on_from_the_same_lead(night: Night, at: int) -> None:
    with pytest.raises(Dies):
        played(night).start(rules=RULES, launcher=dying_at(at), baseline_seeds=3)
    before = night.starts()
    ending = night.resume(rules=RULES)
    assert ending.kept == (7,)
    assert [status for _, status in night.outcomes()[1:]] == ["discard"] * 6 + ["keep"] + ["discard"] * 2
    assert night.rows[3]["reason"].startswith("leads: ")
    assert all(night.starts()[run] == letters for run, letters in before.items()), "nothing ran twice"


def test_an_idea_that_has_run_on_the_lead_waits_no_more_for_it(night: Night) -> None:
    bench = night.bench(played(night).open(), rules=RULES)
    waits = planned(bench, {"selection.dedup": False}, kind="promising")
    part = planned(bench, {"learner.learning_rate": 0.002}, kind="promising")
    lead = bench.plan_together([part], advance=True)
    assert lead is not None
    judged_as(bench, lead, "lead")
    assert [one.number for one in bench.promises()] == [waits]
    again = bench.plan_together([waits], advance=True)
    assert again is not None
    judged_as(bench, again, "crash", outcome="crash")
    assert [one.number for one in bench.promises()] == [waits], "that measured nothing"
    planned(bench, {"selection.dedup": False}, kind="regressed")
    assert bench.promises() == []


@pytest.mark.parametrize(("left_s", "starts"), [(1000.0, 2), (65.0, 1)], ids=["there is time", "there is not"])
def test_no_repair_is_tried_in_the_time_that_the_lead_needs(
    night: Night, monkeypatch: pytest.MonkeyPatch, left_s: float, starts: int
) -> None:
    """Of ten seconds a run: a run, two of each arm, a fifth more to be sure, and ten for what is repaired."""
    night.playbook(hypothesis("pack", 0.9, set={"learner.epochs_per_cycle": 2, "learner.microbatch_tokens": 4096}))
    bench = night.bench(night.open(), rules=RULES)
    part = planned(bench, {"learner.learning_rate": 0.002}, kind="promising")
    lead = bench.plan_together([part], advance=True)
    assert lead is not None
    judged_as(bench, lead, "lead")
    number, _ = bench.next_idea()
    assert number is not None
    bench.commit(number)
    monkeypatch.setattr(Workbench, "cost", lambda self, experiment: RunCost(0.0, 10.0, 0.0))
    bench.session.clock = BudgetClock(left_s)
    assert bench.run(Order(number, "search")).ok is (starts > 1)
    assert sum(map(len, night.starts().values())) == starts
    assert any("the time is kept for confirming" in said for said in night.observer.said) is (starts == 1)


@pytest.mark.slow
def test_a_lead_that_is_not_confirmed_is_given_up(night: Night) -> None:
    rules = dataclasses.replace(RULES, together_p=(), hold_p=0.0, last_share=1e-12, most_share=1e-12, least_share=1e-12)
    played(night).start(rules=rules, baseline_seeds=3)
    session = night.session
    assert session is not None
    assert [row["status"] for row in night.rows[1:]] == ["discard"] * 7
    assert session.lead == session.incumbent == 0
    assert [attempt.outcome for attempt in attempts(session)] == ["discard"] * 7


@pytest.mark.slow
def test_nothing_leads_where_ideas_are_confirmed_one_by_one(night: Night) -> None:
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING, SLOW)
    night.start(baseline_seeds=3, max_experiments=3)
    assert [row["hypothesis"] for row in night.rows[1:]] == ["better-rate", "no-dedup", "placebo"]
    assert [row["status"] for row in night.rows[1:3]] == ["keep", "keep"]
