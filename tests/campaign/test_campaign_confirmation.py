"""Confirmation: fresh seeds of both arms, more of them while the matter is open, and no more than the time allows."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from made import A_RUN, MadeLab, MadeRun, run, standing
from nights import BETTER_RATE, NOTHING, Night, forked_launch, hypothesis

from agent.campaign.confirmation import affordable_seeds, confirm, fresh_needed
from agent.campaign.evidence import Evidence
from agent.campaign.experiment import attempt
from agent.campaign.lab import Arm, Order
from agent.campaign.levels import Terms, Used, next_level
from agent.campaign.past import Past
from agent.campaign.rules import Rules
from agent.campaign.verdict import Judgement
from agent.campaign.workbench import Workbench
from agent.errors import DataError, ResourceError

RULES = Rules(
    alpha=0.05, least_share=0.1, most_share=0.4, filter_alpha=0.2, confirm_seeds=2,
    looks=((2, 0.3), (3, 0.3), (5, 0.4)), hold_p=0.4, go_on_p=0.4, stale_s=20 * A_RUN,
)  # fmt: skip
STEADY = (0.50, 0.53, 0.50, 0.52, 0.50)
"""The incumbent's confirming runs."""
SLOWLY = (0.54, 0.56, 0.53, 0.56, 0.54)
"""A gain that five seeds show and three do not."""


def results(**means: Sequence[float | None]) -> Callable[[Order], MadeRun]:
    """Means of the runs of each arm by index; one that crashes where there is None."""

    def made(order: Order) -> MadeRun:
        key = f"{order.experiment}-{order.arm}-{order.index}"
        mean = means[order.arm][order.index]
        return (
            MadeRun(key, crash_words="oom: no memory")
            if mean is None
            else run(key, mean, seed=zlib.crc32(key.encode()))
        )

    return made


def lab_of(*, candidate: Sequence[float | None], incumbent: Sequence[float | None] = STEADY, **keys: Any) -> MadeLab:
    comparator = keys.pop("comparator", ())
    made = results(candidate=candidate, incumbent=incumbent, comparator=comparator, search=[0.6], baseline=[0.5] * 3)
    return MadeLab(made, **{"rules": RULES, "incumbent": keys.pop("best", 0), **keys})


def confirmed(
    lab: MadeLab, evidence: Evidence[Any] | None = None, *, number: int = 1, advantage: str | None = None
) -> Judgement:
    evidence = evidence if evidence is not None else Evidence()
    if not evidence.search_runs(lab.incumbent):
        standing(evidence, 0.50, 0.51, 0.50, experiment=lab.incumbent)
    search = run("search", 0.6)
    on_search = evidence.on_search(search, lab.incumbent)
    return confirm(lab, evidence, number, search=search, on_search=on_search, advantage=advantage)


def arms(lab: MadeLab) -> dict[Arm, int]:
    """How many runs there were of each arm."""
    return {arm: sum(order.arm == arm for order in lab.ran) for arm in dict.fromkeys(order.arm for order in lab.ran)}


# --- step by step ------------------------------------------------------------------------------------------


def test_a_clear_gain_is_kept_at_the_first_look() -> None:
    lab = lab_of(candidate=(0.70, 0.71))
    judgement = confirmed(lab)
    assert judgement.verdict.kind == "gain"
    assert judgement.verdict.basis is not None
    assert judgement.verdict.basis.delta == pytest.approx(0.19)
    assert [(order.arm, order.index) for order in lab.ran] == [
        ("candidate", 0), ("incumbent", 0), ("candidate", 1), ("incumbent", 1)
    ]  # fmt: skip
    assert [look.said for look in judgement.looks] == ["worth another", "gain"]
    assert judgement.used is not None
    assert judgement.used.kept


def test_what_does_not_hold_with_one_fresh_seed_is_given_up() -> None:
    lab = lab_of(candidate=(0.49,))
    judgement = confirmed(lab)
    assert arms(lab) == {"candidate": 1, "incumbent": 1}
    assert (judgement.verdict.outcome, judgement.verdict.kind) == ("discard", "inconclusive")
    assert judgement.verdict.reason.startswith("inconclusive: did not hold on fresh prompts with a fresh seed, -1.0pp")
    assert [look.said for look in judgement.looks] == ["given up"]
    # its level is gone all the same
    assert judgement.used is not None
    assert judgement.used.level == pytest.approx(next_level(RULES, [], to_come=lab.confirmations_to_come()))
    assert not judgement.used.kept


@pytest.mark.parametrize(("runs", "share"), [(9.0, RULES.last_share), (12.0, 1 / 3)])
def test_the_last_confirmation_that_the_time_allows_may_use_nearly_all_that_is_left(runs: float, share: float) -> None:
    """Four runs, and no search run and confirmation beside the holdout after it; or just that, and two are expected."""
    lab = lab_of(candidate=(0.70, 0.71), runs=runs)
    lab.last = True
    judgement = confirmed(lab)
    assert judgement.used is not None
    assert judgement.used.level == pytest.approx(RULES.alpha * share)


@pytest.mark.parametrize(
    ("near_misses", "waiting", "runs", "confirmed_at_once"),
    [
        pytest.param(0, 0, 20, True, id="nothing else will come"),
        pytest.param(1, 0, 20, False, id="a near-miss waits for it"),
        pytest.param(0, 9, 20, False, id="others may come"),
        pytest.param(1, 9, 100, True, id="there is time for each"),
    ],
)
def test_late_in_a_night_a_promising_idea_is_confirmed_with_others_if_there_are_any(
    near_misses: int, waiting: int, runs: float, confirmed_at_once: bool
) -> None:
    rules = dataclasses.replace(RULES, alone_runs=60.0)
    lab = lab_of(candidate=(0.70, 0.71), runs=runs, rules=rules)
    lab.told = [Past(2 + number, "discard", "inconclusive", 0.02, 0.1) for number in range(near_misses)]
    lab.queue = list(range(waiting))
    evidence: Evidence[Any] = Evidence()
    standing(evidence, 0.50, 0.51, 0.50, experiment=0)
    judgement = attempt(lab, evidence, 1)
    assert (judgement.verdict.outcome == "keep") is confirmed_at_once
    assert ("one by one" in judgement.verdict.reason) is not confirmed_at_once
    assert ("candidate" in arms(lab)) is confirmed_at_once


def test_further_seeds_are_bought_while_it_is_undecided() -> None:
    lab = lab_of(candidate=SLOWLY)
    judgement = confirmed(lab)
    assert judgement.verdict.kind == "gain"
    assert arms(lab) == {"candidate": 5, "incumbent": 5}
    assert [(look.seeds_candidate, look.said) for look in judgement.looks] == [
        (1, "worth another"), (2, "inconclusive"), (3, "inconclusive"), (4, "worth another"), (5, "gain")
    ]  # fmt: skip
    level = judgement.used.level if judgement.used else 0.0
    told = {look.seeds_candidate: look.level for look in judgement.looks if look.level is not None}
    assert told == {seeds: pytest.approx(share * level) for seeds, share in RULES.looks}


def test_what_shows_no_promise_gets_no_further_seeds() -> None:
    lab = lab_of(candidate=(0.55, 0.47))
    judgement = confirmed(lab)
    assert arms(lab) == {"candidate": 2, "incumbent": 2}
    assert judgement.verdict.kind == "inconclusive"


def test_what_is_worse_is_called_so() -> None:
    rules = dataclasses.replace(RULES, hold_p=1.0)
    judgement = confirmed(lab_of(candidate=(0.30, 0.31), rules=rules))
    assert judgement.verdict.kind == "regressed"


def test_a_candidate_that_does_not_run_is_a_crash() -> None:
    lab = lab_of(candidate=(0.7, None))
    judgement = confirmed(lab)
    assert (judgement.verdict.outcome, judgement.verdict.reason) == ("crash", "oom: no memory, in confirmation")
    assert judgement.used is not None


def test_a_seed_of_the_incumbent_that_does_not_run_is_left_out() -> None:
    """Otherwise it would end the confirmation of every idea that comes after."""
    lab = lab_of(candidate=(0.70, 0.71), incumbent=(0.5, None, 0.51, 0.5))
    judgement = confirmed(lab)
    assert judgement.verdict.kind == "gain"
    assert lab.order_of("incumbent") == [0, 1, 2]
    assert judgement.verdict.basis is not None
    assert judgement.verdict.basis.seeds_incumbent == 2
    never = lab_of(candidate=(0.70, 0.71), incumbent=(None,) * 9)
    failed = confirmed(never).verdict
    assert (failed.outcome, failed.kind) == ("discard", "tainted"), "the idea had no part in it, and stays open"
    assert failed.reason == "tainted: a run of the baseline beside it: oom: no memory, in confirmation"
    assert len(never.order_of("incumbent")) < 5


def test_what_a_run_of_the_incumbent_did_wrong_is_told_as_its_own() -> None:
    lab = lab_of(candidate=(0.70, 0.71), incumbent=(None,) * 9, best=3)
    assert confirmed(lab, number=4).verdict.reason.startswith("tainted: a run of incumbent #3 beside it: oom: ")


def test_a_seed_of_the_incumbent_that_crashed_costs_one_confirmation_and_not_every_later_one() -> None:
    """The first idea meets two of them and goes on; the second needs more runs than lie before the third."""
    lab = lab_of(candidate=SLOWLY, incumbent=(None, None, 0.50, 0.53, None, 0.50, 0.52, 0.50))
    evidence: Evidence[Any] = Evidence()
    lab.results, slowly = results(candidate=(0.70, 0.71), incumbent=(None, None, 0.50, 0.53)), lab.results
    assert confirmed(lab, evidence).verdict.kind == "gain"
    lab.results = slowly
    assert confirmed(lab, evidence, number=2).verdict.kind == "gain"
    assert lab.order_of("incumbent") == list(range(8))
    assert set(evidence.aside.values()) == {"oom: no memory"}


def test_what_need_only_be_no_worse_goes_on_though_it_shows_no_gain() -> None:
    """A simpler recipe that measures a point less, where three may be lost: two seeds do not show it yet."""
    lab = lab_of(candidate=(0.49, 0.50, 0.48, 0.50, 0.49), incumbent=(0.51, 0.49, 0.50, 0.50, 0.50))
    lab.may_lose = 0.03
    judgement = confirmed(lab, advantage="simpler: without #3")
    assert arms(lab)["candidate"] > 2
    assert judgement.verdict.kind == "simpler"


# --- the incumbent's runs ----------------------------------------------------------------------------------


def test_an_incumbents_own_confirming_runs_stand_beside_at_least_two_fresh_ones() -> None:
    evidence: Evidence[Any] = Evidence()
    for index, mean in enumerate(STEADY):
        evidence.add(run(f"own-{index}", mean, seed=50 + index), experiment=1, arm="candidate")
    assert [fresh_needed(lab_of(candidate=()), evidence, 1, seeds) for seeds in (1, 2, 3, 5)] == [1, 2, 2, 2]
    assert [fresh_needed(lab_of(candidate=()), evidence, 0, seeds) for seeds in (1, 2, 3, 5)] == [1, 2, 3, 5]
    lab = lab_of(candidate=SLOWLY, incumbent=(0.51, 0.51), best=1)
    judgement = confirmed(lab, evidence, number=2)
    assert arms(lab)["incumbent"] == 2
    assert judgement.verdict.basis is not None
    assert judgement.verdict.basis.seeds_incumbent == len(STEADY) + 2
    assert len(judgement.beside) == len(STEADY) + 2


@pytest.mark.parametrize(("age", "fresh"), [(15, []), (25, [2])], ids=["recent", "old"])
def test_old_runs_of_the_incumbent_are_joined_by_a_fresh_one(age: int, fresh: list[int]) -> None:
    """Two fresh runs are there from an earlier challenger."""
    lab = lab_of(candidate=(0.70, 0.71))
    evidence: Evidence[Any] = Evidence()
    for index in range(2):
        evidence.add(lab.run(Order(0, "incumbent", index)), experiment=0, arm="incumbent")
    lab.ran.clear()
    lab.spent_s += age * A_RUN
    judgement = confirmed(lab, evidence)
    assert judgement.verdict.kind == "gain"
    assert lab.order_of("incumbent") == fresh
    assert any("a fresh run beside it" in said for said in lab.words or []) is (age > 20)


# --- time --------------------------------------------------------------------------------------------------


def test_the_level_is_divided_among_the_looks_that_can_be_afforded() -> None:
    """With time for two seeds of each arm and the holdout, the first look has all of it."""
    evidence: Evidence[Any] = Evidence()
    standing(evidence, 0.50, 0.51, 0.50)
    lab = lab_of(candidate=SLOWLY)
    holdout = 5 * 0.2  # evaluations alone, in runs
    lab.clock.budget_s = (4 + holdout) * A_RUN
    assert affordable_seeds(lab, evidence, 1) == 2
    judgement = confirmed(lab, evidence)
    assert judgement.used is not None
    assert [look.level for look in judgement.looks] == [None, pytest.approx(judgement.used.level)]
    assert arms(lab) == {"candidate": 2, "incumbent": 2}
    assert lab.clock.left_s == pytest.approx(holdout * A_RUN)


@pytest.mark.parametrize(("runs", "seeds"), [(9, 2), (12, 3), (15, 3)])
def test_runs_that_took_longer_than_predicted_leave_no_time_for_more_seeds(runs: int, seeds: int) -> None:
    """Twice as long. No seed is run that no look would see: in the time of 15 there were a fourth, but no fifth."""
    rules = dataclasses.replace(RULES, looks=((2, 0.1), (3, 0.1), (5, 0.8)))
    lab = lab_of(candidate=SLOWLY, rules=rules)
    lab.clock.budget_s = runs * A_RUN
    as_predicted = lab.results

    def slower(order: Order) -> MadeRun:
        lab.spent_s += A_RUN
        return as_predicted(order)

    lab.results = slower
    judgement = confirmed(lab)
    assert judgement.verdict.kind == "inconclusive"
    assert "; it would take" in judgement.verdict.reason
    assert arms(lab) == {"candidate": seeds, "incumbent": seeds}


# --- a killed campaign -------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_a_confirmation_goes_on_where_it_was_killed(known: int) -> None:
    """Its runs are read back one by one; verdict and looks are those of a confirmation in one go."""
    whole = confirmed(lab_of(candidate=SLOWLY))
    lab, evidence = lab_of(candidate=SLOWLY), Evidence[Any]()
    standing(evidence, 0.50, 0.51, 0.50)
    for index in range(known):
        lab.run(Order(1, "candidate", index))
        if index < known - 1:  # killed in the incumbent's turn
            lab.run(Order(0, "incumbent", index))
    judgement = confirmed(lab, evidence)
    assert judgement.verdict.reason == whole.verdict.reason
    assert judgement.looks == whole.looks
    assert arms(lab) == {"candidate": 5, "incumbent": 5}


@pytest.mark.parametrize(
    ("left", "kind", "words"),
    [(2.1, "gain", "gain"), (1.9, "inconclusive", "unconfirmed: it would take 200s with the holdout, 190s are left")],
)
def test_a_campaign_that_was_stopped_in_its_last_confirmation_has_time_for_the_rest_of_it(
    left: float, kind: str, words: str
) -> None:
    """Three of four runs are there: what is missing is one, and the holdout."""
    lab, evidence = lab_of(candidate=(0.70, 0.71), runs=10), Evidence[Any]()
    standing(evidence, 0.50, 0.51, 0.50)
    orders = (Order(1, "search"), Order(1, "candidate"), Order(0, "incumbent"), Order(1, "candidate", 1))
    for order in orders:
        lab.run(order)
    lab.clock.budget_s = lab.spent_s + left * A_RUN
    lab.queue = list(range(9))
    lab.told = [Past(2, "discard", "inconclusive", 0.02, 0.1)]
    judgement = attempt(lab, evidence, 1)
    assert judgement.verdict.kind == kind
    assert words in judgement.verdict.reason
    assert lab.ran == [*orders, Order(0, "incumbent", 1)][: 5 if kind == "gain" else 4]


@pytest.mark.parametrize("begun", [False, True])
def test_a_confirmation_that_was_begun_has_used_its_level_though_no_time_is_left_for_it(begun: bool) -> None:
    """With the budget of a later resumption the next one would have the same level again."""
    lab, evidence = lab_of(candidate=(0.70, 0.71), runs=10), Evidence[Any]()
    standing(evidence, 0.50, 0.51, 0.50)
    lab.run(Order(1, "search"))
    if begun:
        lab.run(Order(1, "candidate"))
        lab.fixed = lambda number: Terms(0.04, lab.rules.shares(2))  # type: ignore[method-assign]
    lab.clock.budget_s = lab.spent_s + 1.5 * A_RUN
    judgement = attempt(lab, evidence, 1)
    assert "unconfirmed: it would take" in judgement.verdict.reason
    assert judgement.used == (Used(0.04, kept=False) if begun else None)


def test_a_killed_confirmation_without_time_for_its_next_look_ends_as_it_stands() -> None:
    lab, evidence = lab_of(candidate=SLOWLY), Evidence[Any]()
    standing(evidence, 0.50, 0.51, 0.50)
    for index in range(4):
        lab.run(Order(1, "candidate", index))
        lab.run(Order(0, "incumbent", index))
    lab.clock.budget_s = lab.spent_s + 1.5 * A_RUN
    lab.fix = lambda number, terms: Terms(terms.level, lab.rules.shares(5))  # type: ignore[method-assign]
    lab.ran.clear()
    judgement = confirmed(lab, evidence)
    assert judgement.verdict.kind == "inconclusive"
    assert "; it would take 300s with the holdout, 150s are left" in judgement.verdict.reason
    assert lab.ran == []


# --- a constant rate beside a schedule ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comparator", "outcome", "words"),
    [
        ((0.50, 0.51), "keep", "gain +19.0pp"),
        ((0.70, 0.71), "discard", "inconclusive: not shown better than a constant rate (inconclusive: +0.0pp"),
        ((0.50, None), "discard", "inconclusive: its constant-rate comparator proves nothing (oom: no memory)"),
    ],
    ids=["the schedule is better", "the schedule is not", "the comparator crashes"],
)
def test_a_schedule_has_to_beat_its_constant_rate_too(
    comparator: Sequence[float | None], outcome: str, words: str
) -> None:
    lab = lab_of(candidate=(0.70, 0.71), comparator=comparator)
    lab.comparators = True
    judgement = confirmed(lab)
    assert judgement.verdict.outcome == outcome
    assert judgement.verdict.reason.startswith(words)
    assert judgement.used is not None
    assert judgement.used.kept is (outcome == "keep")


def test_a_comparator_is_not_run_for_what_is_not_kept_anyway() -> None:
    lab = lab_of(candidate=(0.55, 0.47), comparator=())
    lab.comparators = True
    confirmed(lab)
    assert "comparator" not in arms(lab)


@pytest.mark.parametrize(("runs", "outcome"), [(6.9, "discard"), (7.1, "keep")])
def test_a_schedule_is_confirmed_where_there_is_time_for_its_comparator_too(runs: float, outcome: str) -> None:
    """Two runs of each of three arms, and the holdout, which takes as long as one."""
    lab, evidence = lab_of(candidate=(0.70, 0.71), comparator=(0.50, 0.51)), Evidence[Any]()
    standing(evidence, 0.50, 0.51, 0.50)
    lab.comparators = True
    lab.run(Order(1, "search"))
    lab.clock.budget_s = lab.spent_s + runs * A_RUN
    lab.last = True
    judgement = attempt(lab, evidence, 1)
    assert judgement.verdict.outcome == outcome
    assert lab.clock.left_s >= 1.0 * A_RUN, "of the holdout"
    assert ("it would take 700s" in judgement.verdict.reason) is (outcome == "discard")
    assert lab.seconds_to_confirm([1], seeds=2) == 6 * A_RUN
    assert lab.seconds_to_confirm([lab.incumbent], seeds=2) == 4 * A_RUN


class Dies(BaseException):
    """kill -9, as far as a test can tell."""


@pytest.mark.slow
def test_a_campaign_killed_in_a_confirmation_goes_on_with_it(night: Night) -> None:
    """In a real lab: at the start of the fourth seed of a gain that only the last look can show."""
    night.playbook(hypothesis("a-little", 0.9, set={"learner.learning_rate": 5.5e-4}))
    rules = Rules(filter_alpha=0.9, hold_p=1.0, go_on_p=1.0, looks=((2, 1e-6), (3, 1e-6), (5, 1 - 2e-6)))

    def dying(request: Any, **keys: Any) -> Any:
        if request.out.name.startswith("001-confirm-s1104"):
            raise Dies
        return forked_launch(request, **keys)

    with pytest.raises(Dies):
        night.start(rules=rules, launcher=dying, max_experiments=1)
    before = night.starts()
    night.resume(rules=rules)
    assert len(night.judged(1).numbers["runs"]["candidate"]) == 5
    assert {name: night.starts()[name] for name in before} == before


def test_what_a_confirmation_may_use_is_fixed_before_its_first_run_and_stays(night: Night) -> None:
    """However much time a resumed campaign has: else its level would hang on what it measured."""
    night.playbook(NOTHING)
    bench = Workbench(night.open())
    first = Terms(0.004, {2: 0.25, 5: 0.75})
    assert bench.fix(3, first) == first
    later = Workbench(bench.session)
    assert later.fix(3, Terms(0.02, {2: 1.0})) == first
    assert later.fix(4, Terms(0.02, {2: 1.0})) == Terms(0.02, {2: 1.0})


@pytest.mark.slow
@pytest.mark.parametrize(("run", "what"), [("001-confirm", "disk-is-full"), ("000-incumbent", "data-is-missing")])
def test_what_every_run_would_meet_pauses_a_confirmation_and_is_no_crash(night: Night, run: str, what: str) -> None:
    night.playbook(BETTER_RATE)
    reached = False

    def launcher(request: Any, **keys: Any) -> Any:
        nonlocal reached
        if request.out.name.startswith(run) and not reached:
            reached = True
            (night.root / what).touch()
        return forked_launch(request, **keys)

    with pytest.raises(DataError if what == "data-is-missing" else ResourceError):
        night.start(launcher=launcher, max_experiments=1)
    assert night.session is not None
    assert night.session.state.experiments[1].judged is None, "it stays in confirmation"
    assert not any("set_aside" in (note.model_extra or {}) for note in night.session.state.notes)
    (night.root / what).unlink()
    night.resume(launcher=launcher)
    assert night.outcomes()[1:] == [("better-rate", "keep")]
