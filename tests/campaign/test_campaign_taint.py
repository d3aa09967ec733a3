"""A training whose speed is off, though its idea should not touch it: measured once more, and then not counted."""

from __future__ import annotations

from made import MadeLab, run
from nights import Night, hypothesis

from agent.campaign.choose import attempts
from agent.campaign.evidence import Evidence
from agent.campaign.taint import LEAST_DEVIATION, tainted
from agent.contract import Summary
from agent.simulate.lab import SUMMARY

HARMLESS = hypothesis("placebo", 0.9, set={"execution.placebo": 1})
DECAY = hypothesis("decay", 0.8, set={"learner.weight_decay": 0.1})


def at(tokens_per_s: float | None) -> Summary:
    return SUMMARY.model_copy(update={"tokens_per_s": tokens_per_s})


def verdict(now: float | None, *usual: float | None, speed: bool = False, broken: bool = False) -> str | None:
    lab = MadeLab(lambda order: run("", 0.5))
    lab.speed = speed
    evidence: Evidence = Evidence()
    for index, known in enumerate(usual):
        evidence.add(run(f"base-{index}", 0.5, summary=at(known)), experiment=0, arm="baseline")
    search = run("001-search", 0.5, summary=at(now), crash_words="oom: no memory" if broken else None)
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
    assert [attempt.dead_end for attempt in attempts(night.session)] == [True, False]
