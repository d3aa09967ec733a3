"""The end of a night: near-misses in one recipe, and the winner without an idea that may have become a passenger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from made import A_RUN, MadeLab, run
from nights import BETTER_RATE, NO_DEDUP, NO_PACKING, NOTHING, Night, hypothesis

from agent.campaign.announce import announce_together, announce_without
from agent.campaign.endgame import last_chance, last_experiment
from agent.campaign.past import Past
from agent.campaign.rules import Rules
from agent.campaign.screening import second_chance
from agent.campaign.session import Session
from agent.ledger.events import ExperimentPlanned
from agent.recipe.files import load_recipe

RULES = Rules(together_p=(0.2, 0.5), confirm_seeds=2, batch=5, screen_share=0.2)


class EndLab(MadeLab):
    """Notes what should be planned; numbers in `impossible` cannot be."""

    def __init__(self, *past: Past, runs: float = 1000, impossible: Sequence[int] = ()):
        super().__init__(lambda order: run("", 0.5), rules=RULES, runs=runs)
        self.told = list(past)
        self.impossible = impossible
        self.asked: list[tuple[str, tuple[int, ...], float]] = []

    def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
        self.asked.append(("together", tuple(numbers), 0.0))
        return 99 if set(numbers) - set(self.impossible) else None

    def plan_again(self, number: int) -> int | None:
        self.asked.append(("again", (number,), 0.0))
        return 99 if number not in self.impossible else None

    def plan_without(self, number: int, *, margin: float) -> int | None:
        self.asked.append(("without", (number,), margin))
        return 99 if number not in self.impossible else None


def missed(number: int, p_value: float | None, kind: str = "inconclusive") -> Past:
    return Past(number, "discard", kind, 0.01, p_value)


def kept(number: int, delta: float, kind: str = "gain", **keys: Any) -> Past:
    return Past(number, "keep", kind, delta, 1e-4, **keys)


# --- near-misses -------------------------------------------------------------------------------------------


def test_what_measured_better_and_could_not_be_shown_is_put_together_the_likeliest_first() -> None:
    lab = EndLab(
        missed(1, 0.15), missed(2, 0.01), missed(3, 0.3), missed(4, 0.05, "screened"), missed(5, 0.01, "regressed"),
        missed(6, 0.01, "guard"), missed(7, 0.01, "tainted"), missed(8, None, "screened"), Past(9, "crash", "crash", 0),
    )  # fmt: skip
    assert last_experiment(lab) == 99
    assert lab.asked == [("together", (2, 4, 1), 0.0)]


def test_what_was_tried_together_is_tried_again_only_with_more() -> None:
    first = Past(3, "discard", "inconclusive", 0.01, 0.1, together=(1, 2))
    assert last_experiment(EndLab(missed(1, 0.1), missed(2, 0.1), first)) is None
    lab = EndLab(missed(1, 0.1), missed(2, 0.1), first, missed(4, 0.3))
    assert last_experiment(lab) == 99
    assert lab.asked == [("together", (1, 2, 4), 0.0)], "the second time less is asked of each"
    second = Past(5, "discard", "inconclusive", 0.01, 0.1, together=(1, 2, 4))
    assert (
        last_experiment(EndLab(missed(1, 0.1), missed(2, 0.1), first, missed(4, 0.3), second, missed(6, 0.1))) is None
    )


def test_more_of_it_is_tried_at_once_where_nothing_is_good_enough_for_a_first_time() -> None:
    lab = EndLab(missed(1, 0.3), missed(2, 0.4), missed(3, 0.6))
    assert last_experiment(lab) == 99
    assert lab.asked == [("together", (1, 2), 0.0)]


def test_what_moves_the_same_keys_as_what_was_together_before_is_tried_without_that() -> None:
    """What led was #1; of #2, which moves the same, nothing is left beside it."""

    class SameKeys(EndLab):
        def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
            planned = super().plan_together(numbers, advance=advance, of_lead=of_lead)
            return planned if 1 not in numbers else None

    lead = Past(3, "discard", "inconclusive", 0.01, 0.4, together=(1,), of_lead=True)
    lab = SameKeys(missed(1, 0.1, "promising"), missed(2, 0.15, "promising"), lead)
    assert last_experiment(lab) == 99
    assert lab.asked == [("together", (1, 2), 0.0), ("together", (2,), 0.0)]


def test_what_is_in_the_winner_is_not_tried_again() -> None:
    lab = EndLab(missed(1, 0.1), missed(2, 0.1), kept(3, 0.05, together=(1,)))
    assert last_experiment(lab) == 99
    assert lab.asked == [("together", (2,), 0.0)]


def test_there_is_none_without_time_for_its_smallest_confirmation_and_the_holdout() -> None:
    """A search run, two seeds of each arm, and five evaluations of a fifth of a run."""
    assert last_experiment(EndLab(missed(1, 0.1), runs=6.01)) == 99
    assert last_experiment(EndLab(missed(1, 0.1), runs=5.99)) is None


def test_the_last_chance_is_before_the_idea_after_which_there_would_be_no_time() -> None:
    assert last_chance(EndLab(missed(1, 0.1), runs=7.9), A_RUN)
    assert not last_chance(EndLab(missed(1, 0.1), runs=8.1), A_RUN)
    assert not last_chance(EndLab(missed(1, 0.3), runs=7.9), A_RUN), "nothing waits"
    tried = Past(2, "discard", "inconclusive", 0.0, 0.3, together=(1,))
    assert not last_chance(EndLab(missed(1, 0.1), tried, runs=7.9), A_RUN), "they had their chance"


# --- what was screened out ---------------------------------------------------------------------------------


def screened(number: int, p_value: float | None, **also: Any) -> Past:
    return Past(number, "discard", "screened", -0.01, p_value, **also)


def test_the_best_of_what_was_screened_out_comes_again_once() -> None:
    story = (screened(1, 0.6), screened(2, 0.4), screened(3, None), Past(4, "discard", "regressed", -0.1, 0.2))
    lab = EndLab(*story)
    assert second_chance(lab) == 99
    assert lab.asked == [("again", (2,), 0.0)]
    lab = EndLab(*story, Past(5, "discard", "inconclusive", 0.0, 0.5, again=2))
    assert second_chance(lab) == 99
    assert lab.asked == [("again", (1,), 0.0)]
    lab = EndLab(*story, impossible=[2, 1])
    assert second_chance(lab) is None
    assert [numbers for _, numbers, _ in lab.asked] == [(2,), (1,)]


def test_there_is_no_second_chance_without_time_for_it_and_for_the_end() -> None:
    assert second_chance(EndLab(screened(1, 0.4), runs=8.01)) == 99
    assert second_chance(EndLab(screened(1, 0.4), runs=7.99)) is None


# --- what the winner can do without ------------------------------------------------------------------------


def test_the_kept_idea_with_the_smallest_gain_is_left_out_first_and_each_once() -> None:
    ideas = (kept(1, 0.2), kept(2, 0.06), kept(4, 0.1))
    lab = EndLab(*ideas)
    assert last_experiment(lab) == 99
    assert lab.asked == [("without", (2,), pytest.approx(0.03))]
    lab = EndLab(*ideas, Past(5, "discard", "regressed", -0.1, 0.9, without=2), impossible=[4])
    assert last_experiment(lab) == 99
    assert [numbers for _, numbers, _ in lab.asked] == [(4,), (1,)], "4 was moved on since"
    done = [Past(5 + n, "discard", "regressed", -0.1, 0.9, without=n) for n in (1, 2, 4)]
    assert last_experiment(EndLab(*ideas, *done)) is None


def test_each_part_of_what_was_kept_together_is_left_out_in_turn() -> None:
    """Of a gain of 12pp for three ideas each has a share of 4pp. The one that measured least comes first."""
    parts = (missed(1, 0.1, "promising"), missed(2, 0.1, "promising"), missed(3, 0.1, "promising"))
    parts = tuple(replace(one, delta=delta) for one, delta in zip(parts, (0.03, 0.01, 0.05), strict=True))
    lead = Past(4, "discard", "lead", 0.08, 0.01, together=(1, 2), advance=True)
    further = Past(5, "discard", "lead", 0.12, 0.01, together=(4, 3), advance=True)
    whole = kept(6, 0.12, together=(5,))
    story = (*parts, lead, further, whole)
    lab = EndLab(*story)
    assert last_experiment(lab) == 99
    assert lab.asked == [("without", (2,), pytest.approx(0.02))]
    tried = Past(7, "discard", "regressed", -0.1, 0.9, without=2)
    lab = EndLab(*story, tried, Past(8, "keep", "simpler", 0.0, 0.5, without=1))
    assert last_experiment(lab) == 99
    assert [numbers for _, numbers, _ in lab.asked] == [(3,)], "one carries its share, one is gone"


def test_one_kept_idea_is_no_passenger_nor_is_what_was_kept_for_being_simpler() -> None:
    assert last_experiment(EndLab(kept(1, 0.2))) is None
    assert last_experiment(EndLab(kept(1, 0.2), kept(2, 0.001, "simpler"), kept(3, 0.001, "cheaper"))) is None


def test_an_idea_that_was_left_out_with_a_gain_is_not_put_back_as_if_that_were_simpler() -> None:
    """It did harm in the end. What left it out was kept with a gain, and is no idea that could be left out itself."""
    lab = EndLab(kept(1, 0.2), kept(2, 0.1), kept(3, 0.05, without=2))
    assert last_experiment(lab) is None
    assert lab.asked == []


# --- what is planned ---------------------------------------------------------------------------------------


def planned(session: Session, number: int) -> ExperimentPlanned:
    found = session.state.experiments[number].planned
    assert found is not None
    return found


def tell(session: Session, number: int, **changes: list[Any]) -> None:
    """An idea that changed these keys (`__` stands for the dot) of the baseline."""
    moves = {key.replace("__", "."): value for key, value in changes.items()}
    session.tell(
        "experiment_planned", experiment=number, hypothesis=f"idea-{number}", axis="test", slug=f"idea-{number}",
        subject="test", files=session.start_files(), changes=moves,
    )  # fmt: skip


@pytest.fixture
def session(night: Night) -> Session:
    night.playbook(BETTER_RATE)
    opened = night.open()
    tell(opened, 1, learner__learning_rate=[0.0005, 0.002])
    tell(opened, 2, learner__learning_rate=[0.0005, 0.001])
    tell(opened, 3, rollout__temperature=[1.0, 0.8])
    tell(opened, 4, selection__dedup=[True, False])
    tell(opened, 5, rollout__top_p=[0.9, 0.8])
    return opened


@pytest.mark.parametrize(
    ("numbers", "parts", "keys"),
    [
        ((1, 2, 4), [1, 4], ["learner.learning_rate", "selection.dedup"]),
        ((2, 1, 4), [2, 4], ["learner.learning_rate", "selection.dedup"]),
        ((1, 3, 4), [1, 4], ["learner.learning_rate", "selection.dedup"]),
        ((3, 1, 4), [3, 4], ["rollout.temperature", "selection.dedup"]),
        ((5, 4), [4], ["selection.dedup"]),
    ],
    ids=["same key", "the first one has it", "temperature after rate", "rate after temperature", "moved on since"],
)
def test_what_does_not_go_with_those_before_it_is_left_out(
    session: Session, numbers: tuple[int, ...], parts: list[int], keys: list[str]
) -> None:
    number = announce_together(session, numbers)
    assert number is not None
    event = planned(session, number)
    assert (event.model_extra or {})["together"] == parts
    assert list(event.changes) == keys
    assert event.subject.startswith("together: near-misses " + ", ".join(f"#{part}" for part in parts))
    assert session.recipe_of(number).signature() == event.recipe_signature


def test_where_nothing_goes_nothing_is_planned(session: Session) -> None:
    assert announce_together(session, [5]) is None
    assert announce_without(session, 5, margin=0.01) is None


# --- in a campaign -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_near_misses_are_kept_together_where_none_was_kept_alone(night: Night) -> None:
    """A first session in which nothing is worth a confirmation, and a second one that knows the end of a night."""
    night.playbook(BETTER_RATE, NO_DEDUP)
    night.start(rules=Rules(filter_alpha=1e-100, together_p=()), baseline_seeds=3)
    assert night.outcomes()[1:] == [("better-rate", "discard"), ("no-dedup", "discard")]
    ending = night.resume(extra_budget_s=300.0)
    assert ending.kept == (3,)
    row = night.rows[3]
    assert (row["hypothesis"], row["status"], row["index"]) == ("together", "keep", "3")
    assert row["change"] == "learner.learning_rate 0.0005 -> 0.002, selection.dedup True -> False"
    assert row["branch"] == "raft/night/exp/003-together"
    assert float(row["delta"]) == pytest.approx(0.38, abs=0.05)
    subject, body = night.git("log", "-1", "--format=%s%n%b", row["branch"]).split("\n", 1)
    assert subject.startswith("together: near-misses #1, #2, learning_rate 0.0005 -> 0.002, ")
    assert row["description"] == "together: near-misses #1, #2, learning_rate 0.0005 -> 0.002, dedup yes -> no"
    assert "What #1, #2 could not show alone shows together." in body
    assert "Hypothesis: together\n" in body
    assert "Incumbent: 000" in body
    levels = [night.judged(number).numbers["level"] for number in (1, 2, 3)]
    assert levels[:2] == [None, None]
    assert 0 < levels[2] < Rules().alpha


@pytest.mark.slow
def test_a_passenger_of_what_was_kept_together_is_left_out(night: Night) -> None:
    """Placebo and better rate are confirmed as one lead; without the placebo nothing is lost."""
    rates = {"slow": 1e-4, "slower": 3e-5}
    harmful = [hypothesis(name, 0.1, set={"learner.learning_rate": rate}) for name, rate in rates.items()]
    night.playbook(BETTER_RATE, NOTHING, NO_DEDUP, *harmful)
    rules = Rules(alone_runs=1e9, clear_p=0.0, round=3, lead_alpha=0.97, lead_left=0.0, batch=0)
    night.start(rules=rules, baseline_seeds=3)
    told = [(row["hypothesis"], row["status"]) for row in night.rows[1:]]
    assert ("together", "keep") in told
    number = next(
        int(row["index"]) for row in night.rows[1:] if row["status"] == "keep" and row["hypothesis"] == "ablation"
    )
    assert night.judged(number).numbers["kind"] == "simpler"
    assert night.rows[number]["change"].startswith("execution.placebo 1 -> ")
    text = night.git("show", "raft/night/best:recipes/test.yaml")
    assert "learning_rate: 0.002" in text
    assert "dedup: false" in text


@pytest.mark.slow
def test_a_passenger_is_left_out_and_what_carries_the_gain_is_not(night: Night) -> None:
    """Without packing gains 20 points, and nothing any more once the rate is higher."""
    night.playbook(NO_PACKING, BETTER_RATE)
    ending = night.start(baseline_seeds=3)
    assert night.outcomes()[1:] == [
        ("no-packing", "keep"), ("better-rate", "keep"), ("ablation", "discard"), ("ablation", "keep")
    ]  # fmt: skip
    assert ending.kept == (1, 2, 4)
    needed, passenger = night.rows[3:]
    # first the one with the smaller gain, which was kept for ten points
    assert needed["change"] == "learner.learning_rate 0.002 -> 0.0005"
    assert needed["description"] == "ablation: without #2, learning_rate 0.002 -> 0.0005"
    assert passenger["change"] == "learner.packing False -> True"
    assert passenger["branch"] == "raft/night/exp/004-ablation"
    assert passenger["reason"].startswith("simpler: without #1, not worse by more than ")
    assert night.judged(4).numbers["kind"] == "simpler"
    assert night.judged(4).numbers["level"] > 0
    best = night.root / "winner.yaml"
    best.write_text(night.git("show", "raft/night/best:recipes/test.yaml"))
    recipe = load_recipe(best)
    assert (recipe.learner.packing, recipe.learner.learning_rate) == (True, 0.002)
    note = night.git("log", "-1", "--notes=raft", "--format=%N", "raft/night/exp/004-ablation")
    assert "outcome: keep" in note
    assert "kind: simpler" in note
