"""Trainings that are ended before their time: paused for a screening, or given up because they cannot win."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nights import BETTER_RATE, Dies, Night, Recorder, fake_launch, forked_launch, trick

from agent.campaign import early
from agent.campaign.comparison import RunNoise
from agent.campaign.early import LOOK_EVERY_S, PLACES, Hopeless, Pause, share_that_tells
from agent.campaign.lab import Order
from agent.campaign.scores import Scores
from agent.campaign.stopping import HOPELESS, PAUSED
from agent.contract import EVAL, RUNG, SELECT, EvalRow, SelectRow
from agent.recipe.schema import Evaluation

PROMPTS = 200
EVALUATION = Evaluation(select_prompts=PROMPTS, search_prompts=PROMPTS, samples_per_prompt=1)
SHARES = (0.1, 0.3, 0.4, 0.6, 0.8, 1.0)


def measured(cycle: int, spent: float, rate: float, *, prompts: int = PROMPTS) -> SelectRow:
    """The first `rate` of the prompts pass."""
    scores = {f"{number:04d}": [float(number < rate * prompts)] for number in range(prompts)}
    return SelectRow(cycle=cycle, budget_spent=spent, scores=scores)


def curve(rates: Sequence[float], *, prompts: int = PROMPTS) -> list[SelectRow]:
    """Cycle 0 at 20%, then a measurement at each of SHARES, as far as there are rates."""
    places = enumerate(zip(SHARES, rates, strict=False), start=1)
    rows = [measured(cycle, spent, rate, prompts=prompts) for cycle, (spent, rate) in places]
    return [measured(0, 0.0, 0.2, prompts=prompts), *rows]


def write(out: Path, rows: Sequence[SelectRow | EvalRow], name: str = SELECT) -> None:
    (out / name).write_text("".join(row.model_dump_json() + "\n" for row in rows))


class Clock:
    """Goes on by itself, far enough for the next look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += LOOK_EVERY_S
        return self.now


STEADY = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
RUNS = (curve(STEADY), curve([rate + 0.01 for rate in STEADY]), curve([rate - 0.01 for rate in STEADY]))


def hopeless(*, curves: Sequence[Sequence[SelectRow]] = RUNS, scores: Sequence[Scores] = (), **keys: Any) -> Hopeless:
    return Hopeless(**{"evaluation": EVALUATION, "noise": None, "clock": Clock(), **keys}, curves=curves, scores=scores)


# --- a pause -----------------------------------------------------------------------------------------------


def test_a_pause_waits_for_the_measurement_on_the_way(tmp_path: Path) -> None:
    pause = Pause(0.4)
    write(tmp_path, curve(STEADY))
    assert pause.why(tmp_path) is None, "it is not written yet, however far the training is"
    with (tmp_path / RUNG).open("a") as file:
        line = measured(3, 0.41, 0.3).model_dump_json() + "\n"
        file.write(line[:-9])
        file.flush()
        assert pause.why(tmp_path) is None, "the line is not whole yet"
        file.write(line[-9:])
    assert pause.why(tmp_path) == f"{PAUSED} at 40% of its budget"


# --- how long the first part is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "share"),
    [
        pytest.param((0.26, 0.38, 0.44, 0.56, 0.68, 0.8), 0.6, id="the same in each part"),
        pytest.param((0.7, 0.7, 0.75, 0.8, 0.8, 0.8), 0.1, id="early"),
        pytest.param((0.2, 0.2, 0.2, 0.2, 0.2, 0.8), 1.0, id="at the end"),
        pytest.param((0.26, 0.6, 0.28, 0.56, 0.68, 0.8), 0.6, id="one lucky measurement does not make it early"),
    ],
)
def test_a_training_tells_something_when_it_has_made_most_of_its_way(rates: Sequence[float], share: float) -> None:
    """From 20% at the start to 80%: 60% of it are made at 56%."""
    assert share_that_tells(curve(rates), EVALUATION, way=0.6) == pytest.approx(share)
    rising = Evaluation(select_prompts=PROMPTS, direction="minimize")
    assert share_that_tells(curve([1 - rate for rate in rates]), rising, way=0.6) != pytest.approx(0.0)


def test_where_the_baseline_learns_nothing_or_was_hardly_measured_no_part_tells_anything() -> None:
    assert share_that_tells(curve([0.2] * 6), EVALUATION, way=0.6) is None
    assert share_that_tells(curve([0.3, 0.2, 0.15, 0.1, 0.1, 0.1]), EVALUATION, way=0.6) in (None, 0.1)
    assert share_that_tells(curve(STEADY)[:3], EVALUATION, way=0.6) is None
    assert share_that_tells([], EVALUATION, way=0.6) is None


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_the_part_is_a_share_in_twentieths(rates: list[float]) -> None:
    share = share_that_tells(curve(rates), EVALUATION, way=0.6)
    assert share is None or (0 <= share <= 1 and share * 20 == pytest.approx(round(share * 20)))


# --- while it trains ---------------------------------------------------------------------------------------


def test_what_lies_further_below_than_the_incumbent_still_gains_is_given_up(tmp_path: Path) -> None:
    watch = hopeless()
    write(tmp_path, curve([0.0]))
    assert watch.why(tmp_path) is None, f"nothing is said before {PLACES[0]:.0%}"
    write(tmp_path, curve([0.0, 0.0]))
    # so far 27.5% on average over two measurements, at the end 45% over three
    assert watch.why(tmp_path) == (
        f"{HOPELESS}: given up at 30% of the training budget, -27.5pp on select where the incumbent's runs gain "
        "+17.5pp from there"
    )


def test_of_a_reward_it_is_said_in_its_own_unit(tmp_path: Path) -> None:
    watch = hopeless(evaluation=EVALUATION.model_copy(update={"metric": "mean_reward"}))
    write(tmp_path, curve([0.0, 0.0]))
    assert watch.why(tmp_path) == (
        f"{HOPELESS}: given up at 30% of the training budget, -0.275 on select where the incumbent's runs gain "
        "+0.175 from there"
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (STEADY, [rate - 0.1 for rate in STEADY]),
        ((0.2, 0.2, 0.2, 0.2, 0.3, 0.9), [0.0] * 3),
        (STEADY, [rate + 0.2 for rate in STEADY]),
    ],
    ids=["a little below", "what blooms late", "better"],
)
def test_what_may_still_win_is_left_alone(tmp_path: Path, theirs: Sequence[float], ours: Sequence[float]) -> None:
    watch = hopeless(curves=[curve(theirs), curve([rate + 0.01 for rate in theirs])])
    for known in range(1, len(ours) + 1):
        write(tmp_path, curve(ours[:known]))
        assert watch.why(tmp_path) is None


def test_the_incumbent_has_to_have_run_twice(tmp_path: Path) -> None:
    write(tmp_path, curve([0.0] * 4))
    assert hopeless(curves=[RUNS[0]]).why(tmp_path) is None
    assert hopeless(curves=[RUNS[0], []]).why(tmp_path) is None, "the second did not measure select"
    assert hopeless(curves=RUNS[:2]).why(tmp_path) is not None


def test_each_place_is_looked_at_once(tmp_path: Path) -> None:
    """A look that says yes by chance in a few percent of trainings must not be taken at every measurement."""
    watch = hopeless()
    write(tmp_path, curve([*STEADY[:2]]))
    assert watch.why(tmp_path) is None
    write(tmp_path, [*curve(STEADY[:2]), *(measured(3 + n, 0.4 + n / 100, 0.0) for n in range(3))])
    assert watch.why(tmp_path) is None, "40% lies before the next place"
    write(
        tmp_path, [*curve(STEADY[:2]), *(measured(3 + n, 0.4 + n / 100, 0.0) for n in range(3)), measured(6, 0.6, 0.0)]
    )
    assert "at 60%" in str(watch.why(tmp_path))


def test_looks_are_not_taken_at_every_poll(tmp_path: Path) -> None:
    now = [10.0]
    watch = hopeless(clock=lambda: now[0])
    assert watch.why(tmp_path) is None
    write(tmp_path, curve([0.0] * 3))
    now[0] += 0.9 * LOOK_EVERY_S
    assert watch.why(tmp_path) is None
    now[0] += 0.2 * LOOK_EVERY_S
    assert watch.why(tmp_path) is not None


def test_what_only_has_to_be_no_worse_than_its_margin_is_held_against_that(tmp_path: Path) -> None:
    """A simpler recipe is kept where it loses little; its training is not ended for losing that."""
    write(tmp_path, curve([0.0] * 3))
    assert hopeless(margin=0.0).why(tmp_path) is not None
    assert hopeless(margin=0.2).why(tmp_path) is None


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_select_split_of_hardly_any_prompts_ends_nothing(tmp_path: Path, prompts: int) -> None:
    rates = [1.0] * 6
    watch = hopeless(curves=[curve(rates, prompts=prompts), curve(rates, prompts=prompts)])
    write(tmp_path, curve([0.0] * 4, prompts=prompts))
    assert watch.why(tmp_path) is None


# --- while it is evaluated ---------------------------------------------------------------------------------


def answers(passed: int, failed: int) -> list[EvalRow]:
    return [
        EvalRow(split="search", id=f"{n:04d}", sample=0, reward=0, passed=n < passed, tokens=3, finish_reason="stop")
        for n in range(passed + failed)
    ]


def standing(rate: float = 0.5) -> Scores:
    """An incumbent's run in which every second prompt passes, or so."""
    values = (np.arange(PROMPTS) * rate % 1 < rate).astype(float)
    return Scores(tuple(f"{number:04d}" for number in range(PROMPTS)), values)


def test_what_is_answered_badly_is_given_up_before_all_of_it_is_answered(tmp_path: Path) -> None:
    watch = hopeless(curves=[], scores=[standing(), standing()], noise=RunNoise(1e-4, 0.0, 6))
    write(tmp_path, answers(0, 40), EVAL)
    assert watch.why(tmp_path) is None, "a fifth is too early"
    write(tmp_path, answers(0, 60), EVAL)
    assert watch.why(tmp_path) == f"{HOPELESS}: given up after 60 of 200 held-out prompts, -50.0pp"


def test_what_is_answered_well_enough_is_left_to_its_end(tmp_path: Path) -> None:
    watch = hopeless(curves=[], scores=[standing(), standing()], noise=RunNoise(1e-4, 0.0, 6))
    for answered in (60, 110, 160, 200):
        rows = [row.model_copy(update={"passed": int(row.id) % 5 < 2}) for row in answers(0, answered)]
        write(tmp_path, rows, EVAL)
        assert watch.why(tmp_path) is None
    noisy = hopeless(curves=[], scores=[standing(), standing()], noise=RunNoise(0.2, 0.0, 2))
    write(tmp_path, answers(0, 60), EVAL)
    assert noisy.why(tmp_path) is None, "runs of one recipe differ as much"


def test_an_evaluation_that_is_over_is_judged_and_not_given_up(tmp_path: Path) -> None:
    watch = hopeless(curves=[], scores=[standing(), standing()], noise=None)
    write(tmp_path, answers(0, PROMPTS), EVAL)
    assert watch.why(tmp_path) is None


def test_the_first_prompt_of_a_small_evaluation_ends_nothing(tmp_path: Path) -> None:
    small = dataclasses.replace(standing(), ids=standing().ids[:4], values=standing().values[:4])
    watch = hopeless(evaluation=Evaluation(search_prompts=4), curves=[], scores=[small, small])
    write(tmp_path, answers(0, 1), EVAL)
    assert watch.why(tmp_path) is None


# --- in a campaign -----------------------------------------------------------------------------------------


class Mortal(Recorder):
    """Ends the agent as the first idea's training ends, once."""

    lives = 1

    def ended(self, text: str) -> None:
        if "001-search" in str(self.running) and self.lives:
            self.lives -= 1
            raise Dies

    running: Path | None = None


@pytest.mark.slow
def test_hopeless_trainings_are_ended_recorded_and_not_run_again(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in training, in a process as real as can be, and one in evaluation."""
    monkeypatch.setattr(early, "LOOK_EVERY_S", 0.02)
    monkeypatch.setenv("FAKE_PACE", "0.25")
    night.playbook(trick("collapses", 0.9), trick("fails when evaluated", 0.5))
    night.observer = observer = Mortal()

    def launcher(request: Any, **keys: Any) -> Any:
        observer.running = request.out
        return (fake_launch() if request.out.name.startswith("001-search") else forked_launch)(request, **keys)

    with pytest.raises(Dies):
        night.start(launcher=launcher, baseline_seeds=3)
    night.resume(launcher=launcher)
    assert night.outcomes()[1:] == [("collapses", "discard"), ("fails-when-evaluated", "discard")]
    assert [night.judged(number).numbers["kind"] for number in (1, 2)] == ["regressed", "regressed"]
    trained, evaluated = (row["reason"] for row in night.rows[1:])
    assert trained.startswith("regressed: given up at ")
    assert "of the training budget, -" in trained
    assert "SIGTERM" not in trained, "how the trainer left is no reason"
    assert night.rows[1]["delta"] == "", "nothing was measured on the search split"
    assert re.match(r"regressed: given up after (50|100|150) of 200 held-out prompts, -", evaluated)
    assert float(night.rows[2]["delta"]) < -0.2
    assert night.starts()["001-search-s1000"] == night.starts()["002-search-s2000"] == "x"
    assert night.trained("001-search-s1000") in ("12", "123", "1234")
    # read back, with its words
    assert night.session is not None
    again = night.bench(night.session).run(Order(1, "search"))
    assert again.gave_up is not None
    assert again.gave_up.startswith("given up at ")
    assert not again.ok
    assert again.crash_words is None


@pytest.mark.parametrize("reason", [f"{HOPELESS}: given up", PAUSED, "a person"])
def test_a_training_that_was_done_when_it_should_end_counts_as_it_is(night: Night, reason: str) -> None:
    """The end came between the last look and the signal: everything is measured."""
    night.playbook(BETTER_RATE)
    session = night.open()

    def late(*arguments: Any, **keys: Any) -> Any:
        return dataclasses.replace(forked_launch(*arguments, **keys), ended_by="stop", reason=f"{reason}; had ended")

    bench = night.bench(session, launcher=late)
    number, _ = bench.next_idea()
    assert number == 1
    bench.commit(1)
    done = bench.run(Order(1, "search"))
    assert (done.ok, done.gave_up) == (True, None)
    assert night.bench(session).run(Order(1, "search")).ok
    assert night.starts() == {"001-search-s1000": "x"}
