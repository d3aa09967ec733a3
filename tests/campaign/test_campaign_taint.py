"""A training whose speed is off, though its idea should not touch it: measured once more, and then not counted."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from made import MadeLab, MadeRun, run
from nights import Night, hypothesis

from agent.campaign.choose import attempts
from agent.campaign.confirmation import confirm
from agent.campaign.evidence import Evidence
from agent.campaign.experiment import attempt
from agent.campaign.lab import Order
from agent.campaign.taint import LEAST_DEVIATION, at_another_speed, tainted
from agent.contract import Summary
from agent.recipe.schema import Budget
from agent.simulate.lab import SUMMARY

BETTER = hypothesis("better-rate", 0.9, set={"learner.learning_rate": 0.002})
HARMLESS = hypothesis("placebo", 0.9, set={"execution.placebo": 1})
DECAY = hypothesis("decay", 0.8, set={"learner.weight_decay": 0.1})


def at(tokens_per_s: float | None) -> Summary:
    return SUMMARY.model_copy(update={"tokens_per_s": tokens_per_s})


def verdict(
    now: float | None,
    *usual: float | None,
    speed: bool = False,
    broken: bool = False,
    gave_up: str | None = None,
    seconds: float | None = 60.0,
) -> str | None:
    lab = MadeLab(lambda order: run("", 0.5))
    lab.speed = speed
    lab.budget = Budget.model_construct(train_seconds=seconds)
    evidence: Evidence = Evidence()
    for index, known in enumerate(usual):
        evidence.add(run(f"base-{index}", 0.5, summary=at(known)), experiment=0, arm="baseline")
    crash = "oom: no memory" if broken else None
    search = run("001-search", 0.5, summary=at(now), crash_words=crash, gave_up=gave_up)
    return tainted(lab, evidence, 1, search)


# --- what is said ------------------------------------------------------------------------------------------


def test_a_run_off_the_incumbents_speed_is_named_with_its_numbers() -> None:
    assert verdict(500.0, 1000.0, 1001.0, 999.0) == "500 tokens/s where 1000 are usual (-50%)"
    assert verdict(1500.0, 1000.0, 1001.0, 999.0) == "1500 tokens/s where 1000 are usual (+50%)"


def test_what_is_allowed_grows_with_the_incumbents_own_spread() -> None:
    """Student's prediction interval: at three runs 99.5% is 9.92 deviations, times the root of 1 + 1/3."""
    allowed = 9.925 * 10.0 * (4 / 3) ** 0.5
    usual = (990.0, 1000.0, 1010.0)
    assert verdict(1000.0 - 0.99 * allowed, *usual) is None
    assert verdict(1000.0 - 1.01 * allowed, *usual) is not None
    assert verdict(1000.0 - 1.01 * allowed, *(1000 + 2 * (one - 1000) for one in usual)) is None


def test_however_steady_the_machine_a_little_is_always_allowed() -> None:
    usual = (1000.0, 1000.0, 1000.0)
    assert verdict(1000.0 * (1 - 0.9 * LEAST_DEVIATION), *usual) is None
    assert verdict(1000.0 * (1 - 1.1 * LEAST_DEVIATION), *usual) is not None


def test_nothing_is_said_where_it_cannot_be_told() -> None:
    usual = (1000.0, 1000.0, 1000.0)
    assert verdict(500.0, *usual, speed=True) is None, "the idea may change speed"
    assert verdict(500.0, *usual, broken=True) is None
    assert verdict(None, *usual) is None
    assert verdict(500.0, 1000.0, 1000.0, None) is None, "the spread of two runs is hardly known"
    assert verdict(500.0) is None
    assert verdict(500.0, *usual, seconds=None) is None, "fewer tokens a second are no fewer steps"


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        ({"tokens": 1000}, {"generated_tokens": 380, "trained_tokens": 50}),
        ({"cycles": 100}, {"cycles": 43}),
        ({"train_seconds": 100.0}, {"train_s": 43.0}),
    ],
)
def test_a_training_that_its_time_limit_cut_says_nothing_under_any_budget(
    budget: dict[str, Any], spent: dict[str, Any]
) -> None:
    lab = MadeLab(lambda order: run("", 0.5))
    lab.budget = Budget.model_validate(budget)

    def ended(by: str) -> MadeRun:
        return run("", 0.5, summary=SUMMARY.model_copy(update={**spent, "ended_by": by, "tokens_per_s": None}))

    whole, alone, all_cut = (Evidence[Any]() for _ in range(3))
    full = SUMMARY.model_copy(update={name: 100 * value / 43 for name, value in spent.items()})
    for index in range(2):
        whole.add(run(f"base-{index}", 0.5, summary=full), experiment=0, arm="baseline")
        all_cut.add(ended("time_limit"), experiment=0, arm="baseline")
    words = "its time limit ended it at 43% of its budget"
    assert tainted(lab, whole, 1, ended("time_limit")) == words
    assert tainted(lab, alone, 1, ended("time_limit")) == words, "there is nothing beside it yet"
    assert tainted(lab, whole, 1, ended("decline")) is None
    assert tainted(lab, all_cut, 1, ended("time_limit")) is None, "as all are: --per-experiment"


def test_one_run_will_do_where_the_spread_is_known_from_others() -> None:
    """As with what leads: it has run once."""
    evidence: Evidence = Evidence()
    for index, speed in enumerate((1000.0, 1001.0, 999.0)):
        evidence.add(run(f"base-{index}", 0.5, summary=at(speed)), experiment=0, arm="baseline")
    evidence.add(run("lead", 0.5, summary=at(800.0)), experiment=4, arm="search")
    lab = MadeLab(lambda order: run("", 0.5), incumbent=4)
    assert tainted(lab, evidence, 5, run("next", 0.5, summary=at(800.0))) is None
    assert tainted(lab, evidence, 5, run("next", 0.5, summary=at(600.0))) == "600 tokens/s where 800 are usual (-25%)"
    lab.speed = True
    assert tainted(lab, evidence, 5, run("next", 0.5, summary=at(600.0))) is None
    evidence.add(run("its own", 0.5, summary=at(600.0)), experiment=5, arm="search")
    assert tainted(lab, evidence, 5, run("again", 0.5, summary=at(300.0))) is not None, "beside the recipe's own runs"


def test_a_machine_that_has_another_speed_from_now_on_costs_one_idea() -> None:
    """Two runs of three are off; from then on that is its speed, until two in a row are off again."""
    lab, evidence = MadeLab(lambda order: run("", 0.5)), Evidence[Any]()
    for index, speed in enumerate((1000.0, 1001.0, 999.0)):
        evidence.add(run(f"base-{index}", 0.5, summary=at(speed)), experiment=0, arm="baseline")
    speeds = (1000, 900, 1000, 900, 900, 901, 899, 1000, 1000, 1000, 700)
    found = [tainted(lab, evidence, n, run(f"{n}", 0.5, summary=at(float(speed)))) for n, speed in enumerate(speeds, 1)]
    assert [words is not None for words in found] == [
        False, True, False, True, False, False, False, True, True, False, True
    ]  # fmt: skip
    assert found[7] == "1000 tokens/s where 900 are usual (+11%)"


def test_a_machine_that_has_another_speed_confirms_all_the_same() -> None:
    """Everything after the baseline is a tenth slower, the incumbent's fresh runs too."""

    def made(order: Order) -> MadeRun:
        mean = 0.7 if order.arm in ("search", "candidate") else 0.5
        key = f"{order.experiment}-{order.arm}-{order.index}"
        return run(key, mean, seed=zlib.crc32(key.encode()), summary=at(900.0))

    lab, evidence = MadeLab(made), Evidence[Any]()
    for index in range(3):
        base = run(f"base-{index}", 0.5, seed=index, summary=at(1000.0 + index))
        evidence.add(base, experiment=0, arm="baseline")
    assert [attempt(lab, evidence, number).verdict.kind for number in (1, 2)] == ["tainted", "gain"]


def test_an_incumbent_that_was_disturbed_for_a_while_holds_no_later_idea_back() -> None:
    """Its first five fresh runs have five speeds."""
    speeds = (500.0, 2000.0, 250.0, 4000.0, 125.0)

    def made(order: Order) -> MadeRun:
        mean = 0.7 if order.arm == "candidate" else 0.5
        key = f"{order.experiment}-{order.arm}-{order.index}"
        slow = order.arm == "incumbent" and order.index < len(speeds)
        speed = speeds[order.index] if slow else 1000.0
        return run(key, mean, seed=zlib.crc32(key.encode()), summary=at(speed))

    lab, evidence = MadeLab(made), Evidence[Any]()
    for index in range(3):
        base = run(f"base-{index}", 0.5, seed=index, summary=at(1000.0 + index))
        evidence.add(base, experiment=0, arm="baseline")

    def confirmed(number: int) -> str:
        search = run(f"search-{number}", 0.7, seed=number)
        on_search = evidence.on_search(search, 0)
        return confirm(lab, evidence, number, search=search, on_search=on_search, advantage=None).verdict.kind

    assert confirmed(1) == "tainted"
    assert len(evidence.aside) == 3
    assert confirmed(2) == "gain"
    assert sum(key.startswith("0-incumbent") for key in evidence.aside) == 5


def test_a_fresh_incumbent_runs_beside_a_candidate_of_another_speed() -> None:
    lab, evidence = MadeLab(lambda order: run("", 0.5)), Evidence[Any]()
    evidence.add(run("old", 0.5, summary=at(1000.0)), experiment=0, arm="incumbent")
    evidence.add(run("like", 0.5, summary=at(1010.0)), experiment=1, arm="candidate")
    evidence.add(run("slow", 0.5, summary=at(950.0)), experiment=2, arm="candidate")
    assert [at_another_speed(lab, evidence, number, 0) for number in (1, 2)] == [False, True]
    lab.speed = True
    assert not at_another_speed(lab, evidence, 2, 0)


def test_a_training_that_was_given_up_may_only_have_been_slow() -> None:
    usual = (1000.0, 1000.0, 1000.0)
    assert verdict(500.0, *usual, gave_up="hopeless") is not None
    assert verdict(900.0, *usual, gave_up="hopeless") is None, "its beginning is slower"


def test_the_usual_speed_is_that_of_the_runs_on_which_the_incumbent_stands() -> None:
    """Not of the one run on search of a kept recipe."""
    evidence: Evidence = Evidence()
    evidence.add(run("search", 0.5, summary=at(500.0)), experiment=1, arm="search")
    for index in range(3):
        evidence.add(run(f"candidate-{index}", 0.5, summary=at(1000.0)), experiment=1, arm="candidate")
    lab = MadeLab(lambda order: run("", 0.5), incumbent=1)
    assert tainted(lab, evidence, 2, run("next", 0.5, summary=at(1000.0))) is None
    assert tainted(lab, evidence, 2, run("next", 0.5, summary=at(500.0))) is not None


# --- in a campaign -----------------------------------------------------------------------------------------


def test_only_changes_that_leave_speed_alone_are_held_against_it(night: Night) -> None:
    """And only where the budget is time: otherwise fewer tokens a second are no fewer steps."""
    night.playbook(HARMLESS, hypothesis("longer", 0.8, set={"rollout.max_new_tokens": 32}))
    bench = night.bench(night.open())
    numbers = [bench.next_idea()[0] for _ in range(2)]
    assert [bench.touches_speed(number) for number in numbers if number] == [False, True]
    recipe = night.root / "recipes" / "test.yaml"
    recipe.write_text(recipe.read_text().replace("budget: {train_seconds: 1}", "budget: {cycles: 5}"))
    bench = night.bench(night.open(campaign="second"))
    number, _ = bench.next_idea()
    assert number is not None
    assert bench.touches_speed(number)


@pytest.mark.slow
def test_a_disturbed_confirming_run_is_set_aside_and_the_next_seed_stands_in(night: Night) -> None:
    """One of the candidate's, one of the incumbent's; a session that goes on leaves them out too."""
    (night.root / "slow-seeds").write_text("1100 501")
    night.playbook(BETTER)
    night.start(baseline_seeds=3, max_experiments=1)
    assert night.rows[1]["status"] == "keep"
    assert night.session is not None
    runs = night.judged(1).numbers["runs"]
    assert runs["candidate"] == ["001-confirm-s1101", "001-confirm-s1102"]
    assert runs["incumbent"] == ["000-incumbent-s500", "000-incumbent-s502"]
    aside = [
        note.model_extra["set_aside"] for note in night.session.state.notes if "set_aside" in (note.model_extra or {})
    ]
    assert aside == ["001-confirm-s1100", "000-incumbent-s501"]
    bench = night.bench(night.session)
    bench.gather()
    assert [one.key for one in bench.evidence.candidate(1)] == runs["candidate"]
    assert [one.key for one in bench.evidence.fresh_incumbent(0)] == runs["incumbent"]


@pytest.mark.slow
def test_a_candidate_that_is_disturbed_twice_is_open_again(night: Night) -> None:
    (night.root / "slow-seeds").write_text("1100 1101")
    night.playbook(BETTER)
    night.start(baseline_seeds=3, max_experiments=1)
    assert night.rows[1]["status"] == "discard"
    assert night.rows[1]["reason"] == "tainted: 500 tokens/s where 1000 are usual (-50%), in confirmation"
    assert night.session is not None
    assert [attempt.open for attempt in attempts(night.session)] == [True]


@pytest.mark.slow
def test_a_disturbed_training_is_repeated_once_and_one_that_stays_so_is_tainted(night: Night) -> None:
    """The first idea's repeat is as fast as it should be, both runs of the second are slow."""
    (night.root / "slow-seeds").write_text("1000 2000 2001")
    night.playbook(HARMLESS, DECAY)
    night.start(baseline_seeds=3)
    assert [run for run in sorted(night.starts()) if "-search-" in run] == [
        "001-search-s1000", "001-search-s1001", "002-search-s2000", "002-search-s2001"
    ]  # fmt: skip
    repeated, disturbed = night.rows[1:]
    assert (repeated["status"], disturbed["status"]) == ("discard", "discard")
    assert "inconclusive" in repeated["reason"] or "regressed" in repeated["reason"]
    assert night.judged(1).numbers["runs"]["search"] == ["001-search-s1001"], "the repeat is what counts"
    assert disturbed["reason"] == "tainted: 500 tokens/s where 1000 are usual (-50%)"
    assert disturbed["delta"] == ""
    assert night.observer.said.count("  500 tokens/s where 1000 are usual (-50%): once more") == 2
    # an idea that was disturbed counts as not tried, and may come again
    assert night.session is not None
    # a session that goes on knows how fast the machine was
    bench = night.bench(night.session)
    bench.gather()
    paces = {run: round(pace, 2) for run, pace in bench.evidence.paces.items()}
    assert {run: pace for run, pace in paces.items() if "-search-" in run} == {
        "001-search-s1000": 0.5, "001-search-s1001": 1.0, "002-search-s2000": 0.5, "002-search-s2001": 0.5
    }  # fmt: skip
    assert [attempt.dead_end for attempt in attempts(night.session)] == [True, False]
