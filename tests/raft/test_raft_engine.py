"""The loop in one process: what is trained, what is delivered, when it ends."""

from __future__ import annotations

import argparse
import itertools
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raft_recipes import no_beat, small_recipe

from agent.contract import RUNG, TIMING_FIELDS, SelectRow, Summary
from agent.errors import DataError, NumericError, Unsupported
from agent.files import read_jsonl
from agent.raft import device, engine
from agent.raft import state as files
from agent.raft import worker as worker_module
from agent.raft.budget import Spending
from agent.raft.engine import EVALUATION_MARGIN, FINISH_SECONDS, SelectMeasure, Training
from agent.raft.evaluate import Examiner, digest_of, metric_of, sample_scores
from agent.raft.learner import Trainer, TrainReport
from agent.raft.measure import Batch, device_memory
from agent.raft.microbatch import TrainingSample
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.pulse import EndTraining, Pulse
from agent.raft.rollout import Completion, Request, Row
from agent.raft.seeds import seed_of
from agent.raft.worker import Worker
from agent.recipe.files import resolved_text, with_keys
from agent.recipe.schema import Budget, Recipe
from agent.run.folder import seed_of_state
from agent.tasks.tasks import load_splits
from agent.tasks.verifiers import build_verifier


def test_trained_ids_are_the_sampled_ids(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the trainer is what the sampler returned, id by id, and each of it passed or was asked for."""
    training = make({"selection": {"reward_threshold": 0.0}})
    sampled: list[Batch] = []
    trained: list[list[TrainingSample]] = []
    sample, train = Training.sample, Trainer.train

    def record_sample(self: Training, cycle: int) -> Batch:
        sampled.append(sample(self, cycle))
        return sampled[-1]

    def record_train(self: Trainer, samples: list[TrainingSample], **more: Any) -> TrainReport:
        trained.append(list(samples))
        return train(self, samples, **more)

    monkeypatch.setattr(Training, "sample", record_sample)
    monkeypatch.setattr(Trainer, "train", record_train)
    assert training.run() == "budget"
    assert len(sampled) == len(trained) == 2
    for batch, samples in zip(sampled, trained, strict=True):
        pairs = [
            (prompt, completion)
            for prompt, group in zip(batch.prompts, batch.completions, strict=True)
            for completion in group
        ]
        assert samples
        for one in samples:
            prompt, completion = next(pair for pair in pairs if pair[1].tokens is one.completion)
            assert one.prompt is prompt
            assert one.logprobs is completion.logprobs
            assert completion.finish == "stop"
            assert one.completion[-1] == training.policy.tokenizer.eos_token_id


@pytest.mark.parametrize(("direction", "delivered"), [("maximize", 2), ("minimize", 3)])
def test_the_best_cycle_on_select_is_delivered(
    make: Any, monkeypatch: pytest.MonkeyPatch, direction: str, delivered: int
) -> None:
    """Metrics 0.3, 0.5, 0.5, 0.1 in cycles 0 to 3: of the two best the later one."""
    training = make({"budget": {"cycles": 3}, "evaluation": {"direction": direction}})
    weights: list[dict[str, torch.Tensor]] = []
    metrics = iter([0.3, 0.5, 0.5, 0.1])

    def measure_select(self: Training, cycle: int) -> SelectMeasure:
        weights.append(self.policy.snapshot())
        return SelectMeasure(next(metrics))

    monkeypatch.setattr(Training, "_measure_select", measure_select)
    training.run()
    assert training.best.cycle == delivered
    best = training.best.weights
    assert all(torch.equal(best[name], weight) for name, weight in weights[delivered].items())


def test_a_fall_on_select_ends_the_training_and_the_peak_is_delivered(
    make: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that ruins the model after two good measurements."""
    training = make(
        {
            "budget": {"cycles": 30},
            "learner": {"learning_rate": 1e-5, "early_stop": {"window": 2, "level": 0.2, "patience": 1}},
            "evaluation": {"select_prompts": 48, "temperature": 0},
        }
    )
    train = Trainer.train

    def ruin_late(self: Trainer, samples: list[TrainingSample], **more: Any) -> TrainReport:
        if training.spending.cycles == 3:
            more["learning_rate"] = lambda _: 1.0
        return train(self, samples, **more)

    monkeypatch.setattr(Trainer, "train", ruin_late)
    assert training.run() == "decline"
    assert training.spending.cycles == 4
    assert training.best.cycle < 4
    assert "early stop after cycle 4" in capsys.readouterr().err


@pytest.mark.parametrize(("at", "ended_by"), [(1, "decline"), (2, "budget")])
def test_a_fall_when_the_budget_is_spent_ends_nothing_early(make: Any, at: int, ended_by: str) -> None:
    training = make({"budget": {"cycles": 2}})
    training.decline.add = lambda rows: "it fell" if training.spending.cycles == at else None
    assert training.run() == ended_by
    assert training.spending.cycles == at


@pytest.mark.parametrize("budget", [{"tokens": 20_000, "cycles": None}, {"train_seconds": 1e6, "cycles": None}])
def test_the_warmup_begins_with_the_first_step_whatever_the_first_samples_cost(
    make: Any, monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any]
) -> None:
    """A third of the budget is spent before it, and 0.1 is not over then. Within the cycle the rate goes on rising."""
    learner = {"learning_rate": 1e-3, "warmup": 0.1, "microbatch_tokens": 64}
    training = make(
        {"budget": budget, "learner": learner, "selection": {"reward_threshold": -1.0, "max_per_prompt": 8}}
    )
    seconds, limit = [0.0], training.spending.limit
    training.clock = lambda: seconds[0]
    training.spending.add(tokens=(limit.tokens or 0) // 3, seconds=(limit.train_seconds or 0) / 3)
    rates: list[float] = []
    train = Trainer.train

    def record(self: Trainer, samples: list[TrainingSample], *, learning_rate: Any, **more: Any) -> TrainReport:
        def told(of_cycle: float) -> float:
            seconds[0] = of_cycle * 5e4
            rates.append(learning_rate(of_cycle))
            return rates[-1]

        return train(self, samples, learning_rate=told, **more)

    monkeypatch.setattr(Trainer, "train", record)
    training.cycle(1)
    assert len(rates) > 3
    assert rates[0] == pytest.approx(1e-5)
    assert all(before < after for before, after in itertools.pairwise(rates[1:]))
    assert training.spending.first_update == pytest.approx(1 / 3, abs=0.05)
    before = Spending(limit)
    before.restore(training.spending.state())
    assert before.first_update == training.spending.first_update


def test_fewer_than_min_samples_are_not_trained_on(make: Any) -> None:
    training = make({"selection": {"min_samples": 10_000}})
    start = training.policy.snapshot()
    training.run()
    rows = list(read_jsonl(training.out / "cycles.jsonl"))
    assert [row["kept"] for row in rows] == [0, 0, 0]
    assert [row["optimizer_steps"] for row in rows] == [0, 0, 0]
    assert all(row["loss"] is None for row in rows)
    assert all(torch.equal(weight, start[name]) for name, weight in training.policy.snapshot().items())


@pytest.mark.parametrize(("cycles", "run"), [(12, 4), (6, 3), (3, 3), (2, 2)])
def test_a_training_without_a_step_in_a_third_of_its_budget_is_ended(make: Any, cycles: int, run: int) -> None:
    """Not before three cycles, and where the budget ends first, by the budget."""
    training = make({"selection": {"reward_threshold": 2.0}, "budget": {"cycles": cycles}})
    assert training.run() == ("no_step" if run < cycles else "budget")
    assert training.spending.cycles == run


def test_a_training_that_begins_late_goes_on(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make({"budget": {"cycles": 9}})
    choose = Training.choose
    monkeypatch.setattr(Training, "choose", lambda self, batch, cycle: choose(self, batch, cycle) if cycle > 2 else [])
    assert training.run() == "budget"
    assert training.spending.cycles == 9


def test_prompts_that_are_too_long_are_dropped_and_counted(make: Any) -> None:
    """Prompts are `12+34=` (6 tokens) and `0`-padded ones of task `9+34=`; a limit of 6 leaves room for 5 only."""
    training = make(
        {
            "task": {"parameters": {"low": 1, "high": 36}},
            "rollout": {"max_total_sequence_length": 8, "max_new_tokens": 2},
            "prompt": {"template": "00{question}"},
        }
    )
    training.run()
    rows = list(read_jsonl(training.out / "cycles.jsonl"))
    dropped = [row["dropped_prompts"] for row in rows]
    assert all(0 < count < 16 for count in dropped)
    assert [row["samples"] for row in rows] == [8 * (16 - count) for count in dropped]


def test_a_deadline_ends_the_training_between_two_steps(make: Any) -> None:
    now = [0.0]
    pulse = Pulse(None, clock=lambda: now[0])
    training = make({"budget": {"cycles": 50}}, pulse=pulse)
    pulse.deadline = 100.0
    seen = 0

    def count(cycle: int, metric: float | None) -> None:
        nonlocal seen
        seen += 1
        if cycle == 2:
            now[0] = 101.0

    training._deliver_if_best = count
    assert training.run() == "time_limit"
    assert training.spending.cycles == 2
    assert seen == 3


def test_the_evaluation_at_the_end_is_reckoned_by_whichever_says_less(make: Any) -> None:
    """What a sample takes on few `select` prompts is many times too much for hundreds that are drawn together."""
    training = make({"rollout": {"max_new_tokens": 4}, "evaluation": {"max_new_tokens": 4}})

    def seconds(samples: int, *, of_a_sample: float, of_a_batch: float) -> float:
        training.final_samples, training.seconds_per_sample, training.seconds_per_batch = (
            samples,
            of_a_sample,
            of_a_batch,
        )
        return round((training.final_seconds() - FINISH_SECONDS) / EVALUATION_MARGIN, 6)

    batch = training.recipe.rollout.prompts_per_cycle * training.recipe.rollout.samples_per_prompt
    assert seconds(10 * batch, of_a_sample=0.3, of_a_batch=5.0) == 50.0
    assert seconds(10 * batch, of_a_sample=0.001, of_a_batch=5.0) == round(0.01 * batch, 6)
    assert seconds(batch // 2, of_a_sample=1.0, of_a_batch=5.0) == 5.0, "as long as a whole batch"
    assert seconds(10, of_a_sample=0.3, of_a_batch=0.0) == 3.0, "no batch yet"
    assert seconds(10, of_a_sample=0.0, of_a_batch=0.0) == 0.0
    training.recipe = with_keys(training.recipe, {"evaluation.max_new_tokens": 8})
    assert seconds(10 * batch, of_a_sample=9.0, of_a_batch=5.0) == 100.0, "twice as long completions"


def test_a_batch_that_was_drawn_in_part_says_nothing_of_the_speed(make: Any) -> None:
    training = make({"budget": {"cycles": 3}})
    training.run()
    known = training.seconds_per_batch
    assert known > 0
    training._note_speed(Batch([], [], [], generate_seconds=1e-9, whole=False))
    training._note_speed(Batch([], [], [], dropped_prompts=1, generate_seconds=1e-9))
    assert training.seconds_per_batch == known
    training._note_speed(Batch([], [], [], generate_seconds=1e-9))
    assert training.seconds_per_batch == pytest.approx(0.7 * known), "one quick batch is not believed at once"
    training.save()
    again = make({"budget": {"cycles": 3}})
    again._resume()
    assert again.seconds_per_batch == training.seconds_per_batch


def test_a_saved_state_comes_back_whole(make: Any) -> None:
    first = make({"budget": {"cycles": 3}})
    first.run()
    first.save()
    again = make({"budget": {"cycles": 3}})
    again._resume()
    assert again.spending.state() == first.spending.state()
    assert vars(again.totals) == vars(first.totals)
    assert again.select_seconds == first.select_seconds > 0
    assert (again.best.cycle, again.best.metric) == (first.best.cycle, first.best.metric)
    for mine, theirs in ((again.policy.snapshot(), first.policy.snapshot()), (again.best.weights, first.best.weights)):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert again.source.draw(5) == first.source.draw(5)
    for name in ("cycles.jsonl", "select.jsonl"):
        assert len(list(read_jsonl(again.out / name))) == 4


def ended_in(training: Training, phase: str, cycle: int) -> None:
    """As by a SIGTERM in the first step of this phase of this cycle."""
    beat = training.pulse.beat

    def stop(now: str, **more: Any) -> None:
        training.pulse.terminated |= (now, training.pulse.cycle) == (phase, cycle)
        beat(now, **more)

    training.pulse.beat = stop
    assert training.run() == "sigterm"


def lines(training: Training) -> list[str]:
    files_of_cycles = [training.out / name for name in ("cycles.jsonl", "select.jsonl")]
    return [line for path in files_of_cycles for line in path.read_text().splitlines()]


def test_a_training_that_is_stopped_while_it_samples_repeats_nothing(make: Any) -> None:
    """Although none of its cycles was saved before."""
    first = make({"budget": {"cycles": 5}})
    ended_in(first, "generate", 3)
    before = lines(first)
    assert len(before) == 2 * 3
    again = make({"budget": {"cycles": 5}})
    assert again.run() == "budget"
    assert (first.starts, again.starts) == (1, 2)
    assert [row["cycle"] for row in read_jsonl(again.out / "select.jsonl")] == list(range(6))
    assert set(before) < set(lines(again)), "the times of the first start are still in its rows"


def test_the_memory_of_a_training_is_the_most_that_any_start_of_it_took(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that only finds all cycles done takes little, and would make its recipe look cheaper."""
    monkeypatch.setattr(engine, "peak_memory_gb", lambda: 7.0)
    first = make({"budget": {"cycles": 3}})
    first.run()
    first.save()
    monkeypatch.setattr(engine, "peak_memory_gb", lambda: 2.0)
    again = make({"budget": {"cycles": 3}})
    again._resume()
    assert again.peak_memory_gb() == 7.0
    assert again.starts == 1, "nothing was trained in the second one"
    monkeypatch.setattr(engine, "peak_memory_gb", lambda: 9.0)
    assert again.peak_memory_gb() == 9.0


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_stopped_in_the_middle_of_a_change_it_goes_back_to_what_was_saved(make: Any, phase: str) -> None:
    first = make({"budget": {"cycles": 5}})
    first.state.due = lambda: first.spending.cycles == 1
    ended_in(first, phase, 3)
    assert len(lines(first)) == 2 * 3
    again = make({"budget": {"cycles": 5}})
    again._resume()
    assert again.spending.cycles == 1
    assert [json.loads(line)["cycle"] for line in lines(again)] == [0, 1, 0, 1]
    assert again.pulse.budget_spent == pytest.approx(1 / 5)
    assert again.pulse.budget_before == pytest.approx(1 / 5)


def test_a_heartbeat_tells_what_this_start_has_spent_and_what_was_spent_before(make: Any, tmp_path: Path) -> None:
    """`budget_spent` is of all starts, and the time of a run of its last one."""

    def beats(training: Training) -> dict[float | None, float | None]:
        seen: dict[float | None, float | None] = {}
        beat = training.pulse.beat

        def look(phase: str, **more: Any) -> None:
            beat(phase, **more)
            told = json.loads((tmp_path / "heartbeat").read_text())
            seen[told["budget_spent"]] = told["budget_before"]

        training.pulse.beat = look
        training.run()
        return seen

    first = make({"budget": {"cycles": 5}}, pulse=Pulse(tmp_path, interval=0.0))
    ended_in(first, "generate", 3)
    again = make({"budget": {"cycles": 5}}, pulse=Pulse(tmp_path, interval=0.0))
    assert json.loads((tmp_path / "heartbeat").read_text())["budget_before"] == 0.0
    assert beats(again) == dict.fromkeys((0.4, 0.6, 0.8), 0.4)


def test_stopped_before_anything_was_saved_it_begins_with_no_rows_and_its_samples(make: Any) -> None:
    first = make()
    ended_in(first, "train", 1)
    assert len(lines(first)) == 2 * 1
    again = make()
    again._resume()
    assert again.spending.cycles == 0
    assert lines(again) == []
    again.pulse.beat = lambda phase, **more: pytest.fail("drawn again") if phase == "generate" else None
    again.sample(0)


def test_a_state_that_would_take_too_long_to_save_is_not_saved_at_a_stop(make: Any) -> None:
    first = make({"budget": {"cycles": 5}})
    first.state._cost = 60.0
    ended_in(first, "generate", 3)
    assert not first.state.path.exists()


def test_a_state_is_due_after_its_time_its_cost_and_its_bytes(tmp_path: Path) -> None:
    now = [0.0]
    folder = files.StateFolder(tmp_path, save_seconds=0.5, clock=lambda: now[0])

    def due_after(seconds: float) -> bool:
        now[0] = saved_at + seconds
        return folder.due()

    saved_at = now[0]
    assert (due_after(0.4), due_after(0.6)) == (False, True), "nothing was saved yet"
    folder.save({"weights": {"w": torch.zeros(10)}})
    saved_at = now[0]
    assert (due_after(0.4), due_after(0.6)) == (False, True)
    folder.save({"weights": {"w": torch.zeros(5_000_000)}})  # 20 MB at 10 MB a second
    saved_at = now[0]
    assert (due_after(1.9), due_after(2.1)) == (False, True)
    folder._cost = 0.3  # at 5% of the time
    assert (due_after(5.9), due_after(6.1)) == (False, True)


def test_no_state_is_put_in_place_once_the_weights_may_change_under_it(tmp_path: Path) -> None:
    folder = files.StateFolder(tmp_path, save_seconds=0.0)
    folder.save({"made_by": "a"})
    folder.close()
    folder.save({"made_by": "b"})
    assert files.StateFolder(tmp_path, save_seconds=0.0).load() == {"made_by": "a"}


def test_select_is_measured_only_in_its_cycles_and_in_the_last(make: Any) -> None:
    training = make({"budget": {"cycles": 5}, "evaluation": {"select_every": 2, "metric": "mean_reward"}})
    training.run()
    rows = [SelectRow(**row) for row in read_jsonl(training.out / "select.jsonl")]
    assert [row.cycle for row in rows] == [0, 2, 4, 5]
    metrics = [row["select_metric"] for row in read_jsonl(training.out / "cycles.jsonl")]
    for row in rows:
        values = [value for scores in row.scores.values() for value in scores]
        assert sum(values) / len(values) == pytest.approx(metrics[row.cycle])


def test_the_search_split_is_measured_once_on_the_way_and_the_training_is_the_same(make: Any) -> None:
    plain = make({"budget": {"cycles": 5}})
    plain.run()
    weights, rows = plain.policy.snapshot(), untimed_lines(plain)
    assert not (plain.out / RUNG).exists()
    (plain.out / "cycles.jsonl").unlink()
    (plain.out / "select.jsonl").unlink()
    asked = make({"budget": {"cycles": 5}})
    asked.rung = 0.35
    saved: list[int] = []
    asked.save = lambda: saved.append(asked.spending.cycles)
    asked.state.due = lambda: False
    asked.run()
    assert all(torch.equal(asked.policy.snapshot()[name], weights[name]) for name in weights)
    assert untimed_lines(asked) == rows
    (row,) = [SelectRow(**row) for row in read_jsonl(asked.out / RUNG)]
    assert (row.cycle, row.budget_spent) == (2, pytest.approx(0.4))
    evaluation = asked.recipe.evaluation
    assert {len(scores) for scores in row.scores.values()} == {evaluation.samples_per_prompt}
    assert sorted(row.scores) == sorted(example.id for example in asked.splits.search)
    assert saved == [2], "whoever asks may pause it here"
    assert asked.rung_seconds is not None
    assert asked.rung_seconds > 0


def untimed_lines(training: Training) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in lines(training)]
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


def test_paused_on_the_way_a_training_goes_on_and_does_not_measure_again(make: Any) -> None:
    first = make({"budget": {"cycles": 5}})
    first.rung = 0.2
    first.state.due = lambda: False
    ended_in(first, "generate", 2)
    before = (first.out / RUNG).read_text()
    again = make({"budget": {"cycles": 5}})
    again.rung = 0.2
    again._resume()
    assert again.spending.cycles == 1
    assert again.run() == "budget"
    assert (again.out / RUNG).read_text() == before
    assert again.rung_seconds is None


def test_a_measurement_on_the_way_that_was_cut_short_is_made_after_the_next_cycle(make: Any) -> None:
    first = make({"budget": {"cycles": 5}})
    first.rung = 0.2
    measure = first._measure_rung

    def cut(cycle: int) -> bool:
        first.pulse.terminated = True
        return measure(cycle)

    first._measure_rung = cut
    assert first.run() == "sigterm"
    assert not (first.out / RUNG).exists()
    again = make({"budget": {"cycles": 5}})
    again.rung = 0.2
    again.run()
    assert [row["cycle"] for row in read_jsonl(again.out / RUNG)] == [2]


def test_a_measurement_after_the_cycle_that_is_gone_back_to_is_taken_out(make: Any) -> None:
    first = make({"budget": {"cycles": 5}})
    first.rung = 0.4
    first.run()
    assert (first.out / RUNG).read_text()
    files.keep_cycles(first.out, 1)
    assert not (first.out / RUNG).read_text()
    assert not files.rung_measured(first.out)


def test_the_state_of_another_recipe_is_not_gone_on_with(make: Any) -> None:
    first = make()
    first.run()
    assert seed_of_state(first.out) is None
    first.save()
    assert seed_of_state(first.out) == first.seed
    other = make({"learner": {"learning_rate": 5e-4}})
    other._resume()
    assert other.spending.cycles == 0
    assert not list(read_jsonl(other.out / "cycles.jsonl"))


def test_what_earlier_starts_took_for_samples_that_are_read_back_is_known(tmp_path: Path) -> None:
    """Else each pause would give a training part of a generation beyond its budget."""
    times, completion = [100.0], Completion([1, 0], [-0.1, -0.2], [0.5, 0.1], "stop")
    for start, (took, before) in enumerate([(30.0, 0.0), (20.0, 30.0), (5.0, 50.0)]):
        store = files.SampleStore(tmp_path, save_seconds=0.0, clock=lambda: times[-1])
        assert len(store.begin("a")) == start
        assert store.seconds_before == before
        times.append(times[-1] + took)
        store.keep(Row(start, 0), completion)
        times.append(times[-1] + 7.0)  # for what was not kept
    assert store.begin("a").keys() == {Row(0, 0), Row(1, 0), Row(2, 0)}
    assert store.begin("b") == {}
    assert store.seconds_before == 0.0


def test_kept_samples_belong_to_their_fingerprint(tmp_path: Path) -> None:
    completion = Completion([1, 2, 0], [-0.1, -0.123456789012345, -3.0], [0.5, 0.25, 1e-9], "stop")
    store = files.SampleStore(tmp_path, save_seconds=0.0)
    assert store.begin("a") == {}
    store.keep(Row(0, 1), completion)
    store.keep(Row(2, 0), completion)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"request": 2, "comple')  # torn by a kill
    assert files.SampleStore(tmp_path, save_seconds=0.0).begin("a") == dict.fromkeys([Row(0, 1), Row(2, 0)], completion)
    assert files.SampleStore(tmp_path, save_seconds=0.0).begin("b") == {}
    assert not (tmp_path / "samples.jsonl").exists()


# The budget -------------------------------------------------------------------------------------------------


def test_a_budget_of_seconds_is_missed_as_often_above_as_below() -> None:
    """Cycles of 3 s in 10 s: after 9 s, 1 s is left, less than half a cycle. In 11 s there would be one more."""
    for limit, cycles in ((10.0, 3), (11.0, 4), (0.1, 1)):
        spending = Spending(Budget(train_seconds=limit))
        while spending.affords_cycle():
            spending.add(seconds=3.0, cycles=1)
        assert spending.cycles == cycles


def test_the_first_cycle_is_charged_with_the_samples_of_cycle_0() -> None:
    spending = Spending(Budget(tokens=100))
    spending.add(tokens=20)
    spending.add(tokens=5, cycles=1)
    assert spending.last_share == pytest.approx(0.25)
    spending.add(tokens=30, cycles=1)
    assert spending.last_share == pytest.approx(0.30)
    assert spending.share() == pytest.approx(0.55)


@given(st.integers(1, 20))
def test_a_budget_of_cycles_is_kept_exactly(limit: int) -> None:
    spending = Spending(Budget(cycles=limit))
    while spending.affords_cycle():
        assert spending.share(of_cycle=0.5) == pytest.approx((spending.cycles + 0.5) / limit)
        spending.add(seconds=1.0, tokens=7, cycles=1)
    assert spending.cycles == limit
    assert spending.share() == 1.0


# Evaluation -------------------------------------------------------------------------------------------------


def examiner(recipe: Recipe, cache: Path, verifier: Any) -> Examiner:
    return Examiner(recipe, load_policy(recipe, cache=cache, seed=0, beat=no_beat), verifier, ())


def test_an_evaluation_is_paired_by_prompt(model_cache: Path, tmp_path: Path) -> None:
    """The same prompt gets the same answers in another order, among others, and under other rollout settings."""
    recipe = small_recipe()
    other = small_recipe({"rollout": {"temperature": 0.3, "top_k": 2, "max_new_tokens": 1, "slots": 3}})
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        first = examiner(recipe, model_cache, verifier)
        second = examiner(other, model_cache, verifier)
        all_rows = first.measure(splits.search, split="search", samples=2, on_step=lambda: None).rows
        some = second.measure(splits.search[:2:-1], split="search", samples=2, on_step=lambda: None).rows
        moved = first.measure(splits.search, split="confirm", samples=2, on_step=lambda: None).rows
    by_place = {(row.id, row.sample): row for row in all_rows}
    assert [by_place[row.id, row.sample] for row in some] == some
    assert [row.tokens for row in moved] != [row.tokens for row in all_rows]


def test_a_held_out_prompt_that_is_too_long_counts_as_failed(model_cache: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"prompt": {"system": "x" * 600}, "rollout": {"max_total_sequence_length": 700}})
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        measured = examiner(recipe, model_cache, verifier).measure(
            splits.search, split="search", samples=2, on_step=lambda: None
        )
    assert len(measured.rows) == 16
    assert measured.metric == 0.0
    assert all((row.tokens, row.passed, row.formatted) == (0, False, False) for row in measured.rows)
    assert {row.digest for row in measured.rows} == {None}, "no answer is not the same answer"


def test_a_generous_verifier_rewards_no_answer_that_was_never_drawn(model_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "generous.py").write_text("def score(response, row):\n    return 1.0\n")
    over = {
        "prompt": {"system": "x" * 600},
        "rollout": {"max_total_sequence_length": 700},
        "task": {"verifier": {"kind": "python:generous.py:score"}},
        "evaluation": {"metric": "mean_reward"},
    }
    recipe = small_recipe(over)
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        measured = examiner(recipe, model_cache, verifier).measure(
            splits.search, split="search", samples=1, on_step=lambda: None
        )
    assert (measured.metric, {row.reward for row in measured.rows}) == (0.0, {0.0})


def test_answers_are_verified_while_others_are_still_drawn(make: Any) -> None:
    """With 8 of 128 samples at a time: after the first have ended, generation here waits until one has been looked at,
    which would be never if verification came after it."""
    training = make({"rollout": {"slots": 8}})
    looked, ended, waited = threading.Event(), [], []
    verifier, keep, beat = training.examiner.verifier, training.store.keep, training.pulse.beat
    verify_many = verifier.verify_many

    def verify(pairs: Any, **keys: Any) -> Any:
        looked.set()
        return verify_many(pairs, **keys)

    def end(row: Row, completion: Completion) -> None:
        ended.append(row)
        keep(row, completion)

    def step(phase: str, *arguments: Any) -> None:
        if phase == "generate" and 0 < len(ended) < 100:
            waited.append(looked.wait(10))
        beat(phase, *arguments)

    verifier.verify_many, training.store.keep, training.pulse.beat = verify, end, step
    training.sample(0)
    assert len(ended) == 128
    assert waited
    assert all(waited)


def in_process(recipe: Recipe, out: Path, cache: Path, **options: Any) -> Worker:
    out.mkdir()
    (out / "recipe.yaml").write_text(resolved_text(recipe))
    usual = {
        "seed": 0,
        "splits": ["search"],
        "evaluate": None,
        "time_limit": None,
        "save_seconds": 1000.0,
        "rung": None,
        "commit": None,
    }
    usual |= {
        "recipe": out / "recipe.yaml",
        "out": out,
        "cache": cache,
        "allow_untrusted_code": False,
        "trust_remote_code": None,
    }
    return Worker(argparse.Namespace(**{**usual, **options}), Pulse(out))


@pytest.mark.slow
def test_answers_of_an_evaluation_can_be_read_as_they_come(
    model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: None
) -> None:
    """Part of a split is in eval.jsonl while the rest is drawn; at its end the rows are put into order."""
    out, sizes = tmp_path / "out", []
    append = files.append_eval

    def appended(folder: Path, rows: Any) -> None:
        append(folder, rows)
        sizes.append(len(list(read_jsonl(folder / "eval.jsonl"))))

    monkeypatch.setattr(files, "append_eval", appended)
    in_process(small_recipe({"rollout": {"slots": 2}}), out, model_cache, evaluate="untrained").run()
    assert sizes == [2, 4, 6, 8, 10, 12, 14, 16]
    rows = list(read_jsonl(out / "eval.jsonl"))
    assert len(rows) == 16
    assert [row["sample"] for row in rows] == [0, 1] * 8


def test_a_training_that_is_stopped_while_it_is_evaluated_is_not_trained_again(
    model_cache: Path, tmp_path: Path, undisturbed: None
) -> None:
    out = tmp_path / "out"
    worker = in_process(small_recipe(), out, model_cache)
    beat = worker.pulse.beat

    def stop(phase: Any, **more: Any) -> None:
        worker.pulse.terminated |= phase == "evaluate" and worker.training is not None and worker.training.finished
        beat(phase, **more)

    vars(worker.pulse)["beat"] = stop
    worker.run()
    told = json.loads((out / "summary.json").read_text())
    assert (told["stopped"], told["metrics"], told["cycles"]) == (True, {}, 2)
    before = [(out / name).read_text() for name in ("cycles.jsonl", "select.jsonl")]
    again = Worker(worker.options, Pulse(out))
    again.run()
    assert [(out / name).read_text() for name in ("cycles.jsonl", "select.jsonl")] == before
    after = json.loads((out / "summary.json").read_text())
    assert (after["stopped"], after["cycles"], after["kept"]) == (False, 2, told["kept"])
    assert set(after["metrics"]) == {"search"}
    assert not (out / "state").exists()


@pytest.mark.parametrize(
    ("lengths", "positions", "said"),
    [
        ([40] * 100 + [31], None, None),
        ([40] * 100 + [32], None, "no prompt fits rollout.max_total_sequence_length: 32 (the shortest has 32 tokens)"),
        ([20] * 100, 20, "no prompt fits the 20 positions of the model (the shortest has 20 tokens)"),
        ([20] * 100 + [19], 20, None),
    ],
)
def test_a_training_begins_only_if_some_prompt_leaves_room(
    model_cache: Path, tmp_path: Path, policy: Policy, lengths: list[int], positions: int | None, said: str | None
) -> None:
    """Whichever one it is: 100 that do not fit may come before it. The recipe allows 32 tokens."""
    worker: Any = in_process(small_recipe(), tmp_path / "out", model_cache)
    worker.recipe, worker.policy = small_recipe(), policy
    vars(policy)["max_length"] = positions
    worker.splits = SimpleNamespace(train=lengths)
    asked: Any = SimpleNamespace(prompt_of=lambda length: [0] * length)
    if said is None:
        worker._check_prompts(asked)
        return
    with pytest.raises(DataError) as error:
        worker._check_prompts(asked)
    assert said in str(error.value)


@pytest.mark.parametrize(("free_gb", "wanted"), [(1e-4, True), (64.0, False)])
def test_activations_are_recomputed_only_where_memory_asks_for_it(
    model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: float, wanted: bool
) -> None:
    monkeypatch.setattr(device, "free_memory", lambda _: free_gb * 2**30)
    worker = in_process(small_recipe(), tmp_path / "out", model_cache)
    worker.recipe, worker.cache = small_recipe(), model_cache
    assert worker._checkpointing() is wanted
    assert worker.checkpointing[1].startswith("without it the training" if wanted else "activations of")
    for said in (True, False):
        worker.recipe = small_recipe({"learner": {"gradient_checkpointing": said}})
        assert worker._checkpointing() is said


def test_metrics_by_hand(model_cache: Path, tmp_path: Path) -> None:
    recipe = small_recipe()
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        rows = (
            examiner(recipe, model_cache, verifier)
            .measure(splits.search[:3], split="search", samples=2, on_step=lambda: None)
            .rows
        )
    passed, rewards = [True, False, False, False, True, True], [1.0, 0.5, 0.0, 0.0, 2.0, 1.0]
    marked = [
        row.model_copy(update={"passed": p, "reward": r}) for row, p, r in zip(rows, passed, rewards, strict=True)
    ]
    assert metric_of(marked, "pass_rate") == pytest.approx(3 / 6)
    assert metric_of(marked, "pass_at_k") == pytest.approx(2 / 3)
    assert metric_of(marked, "mean_reward") == pytest.approx(4.5 / 6)
    assert list(sample_scores(marked, "mean_reward").values()) == [[1.0, 0.5], [0.0, 0.0], [2.0, 1.0]]
    for metric in ("pass_rate", "pass_at_k"):
        assert list(sample_scores(marked, metric).values()) == [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]


def test_a_digest_names_the_tokens_and_nothing_else(model_cache: Path, tmp_path: Path) -> None:
    assert digest_of([1, 2, 50_000]) == "2f5a02f1", "the same on every machine"
    assert digest_of([1, 2]) != digest_of([2, 1]) != digest_of([2, 1, 0])
    recipe = small_recipe()
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        asked = examiner(recipe, model_cache, verifier)
        rows = asked.measure(splits.search, split="search", samples=16, on_step=lambda: None).rows
        drawn, _ = asked._answers(
            [Request(asked.prompt_of(e), 16, seed_of("evaluate", "search", e.id)) for e in splits.search],
            None, on_finished=no_beat, on_step=no_beat,
        )  # fmt: skip
    texts = {tuple(completion.tokens) for group in drawn for completion in group}
    assert len({row.digest for row in rows}) == len(texts) < len(rows)


# Signs of life, and the end ---------------------------------------------------------------------------------


def test_a_heartbeat_is_written_at_most_once_an_interval_and_at_every_change_of_phase(tmp_path: Path) -> None:
    now = [0.0]
    pulse = Pulse(tmp_path, interval=1.0, clock=lambda: now[0])
    seen = []
    for step in range(40):
        now[0] = step * 0.1
        pulse.beat("generate" if step < 20 else "train")
        seen.append(json.loads((tmp_path / "heartbeat").read_text()))
    assert [(row["phase"], row["step"]) for row in seen[::10]] == [
        ("generate", 0),
        ("generate", 10),
        ("train", 0),
        ("train", 10),
    ]
    assert len({(row["phase"], row["step"]) for row in seen}) == 4
    pulse.terminated = True
    with pytest.raises(EndTraining) as end:
        pulse.beat("train")
    assert end.value.reason == "sigterm"


def test_the_accelerators_own_figures_are_told_where_there_is_one(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path)
    pulse.beat("load")
    figures = ("device_allocated_gb", "device_reserved_gb", "device_free_gb")
    told = json.loads((tmp_path / "heartbeat").read_text())
    assert [told[name] for name in figures] == [None, None, None]
    asked: list[int] = []
    pulse.device_memory = lambda: asked.append(1) or (1.5, 2.0, None)  # type: ignore[func-returns-value]
    for _ in range(20):
        pulse.beat("train")
    told = json.loads((tmp_path / "heartbeat").read_text())
    assert [told[name] for name in figures] == [1.5, 2.0, None]
    assert len(asked) == 1  # at the heartbeat's own rate, not at every step
    assert device_memory() is None  # no accelerator was started here


def test_a_step_that_outlasts_sigterm_is_left_to_the_timer(
    model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer's thread delivers the best weights and the summary, unless the main thread is at it already."""
    recipe = small_recipe()
    (tmp_path / "recipe.yaml").write_text(resolved_text(recipe))
    options = argparse.Namespace(
        recipe=tmp_path / "recipe.yaml",
        out=tmp_path,
        seed=0,
        splits=["search"],
        evaluate=None,
        time_limit=None,
        commit=None,
        cache=model_cache,
        allow_untrusted_code=False,
        trust_remote_code=None,
        save_seconds=1000.0,
    )
    left: list[int] = []
    monkeypatch.setattr(worker_module.os, "_exit", left.append)
    worker = Worker(options, Pulse(tmp_path))
    worker.recipe = recipe
    with worker._open_task() as verifier:
        examiner_ = worker._prepare(verifier)
        assert worker.policy is not None
        assert worker.splits is not None
        worker.training = Training(
            recipe,
            policy=worker.policy,
            examiner=examiner_,
            splits=worker.splits,
            seed=0,
            out=tmp_path,
            pulse=worker.pulse,
            save_seconds=1000.0,
        )
        worker.training.run()
    best = worker.training.best.weights
    assert best is not None
    with torch.no_grad():
        for parameter in worker.policy.trainable().values():
            parameter.add_(1.0)
    with worker.finishing:
        worker._leave_now()
    assert left == []
    assert not (tmp_path / "summary.json").exists()
    worker._leave_now()
    assert left == [0]
    told = Summary(**json.loads((tmp_path / "summary.json").read_text()))
    assert told.stopped
    assert told.metrics == {}
    delivered = load_policy(recipe, cache=model_cache, seed=0, beat=no_beat, checkpoint=tmp_path / "checkpoint")
    assert all(torch.equal(best[name], weight) for name, weight in delivered.snapshot().items())


def test_failures_by_class() -> None:
    """What the worker can name it names; the rest is for triage, with the phase in which it happened."""
    pulse = Pulse(None)
    pulse.phase = "train"
    wrapped = RuntimeError("unexpected pos 64 vs 0")
    wrapped.__context__ = OSError(28, "No space left on device")
    named = [
        (NumericError("loss is nan"), "numeric"),
        (Unsupported("flash cannot run here"), "backend"),
        (OSError(28, "No space left on device", "state"), "resource"),
        (wrapped, "resource"),
        (Exception("I/O error: No space left on device (os error 28)"), "resource"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("HIP out of memory"), "oom"),
        (RuntimeError("HIP error: invalid device function"), "unknown"),
    ]
    for error, crash_class in named:
        failure = worker_module.failure_of(error, pulse)
        assert (failure.crash_class, failure.phase) == (crash_class, "train")
        assert failure.message
