"""Models, tokenizers and outcomes at the edge of what a training can take: each has an answer, and none is a stray
traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import VOCABULARY, save_random_model

from agent.errors import DataError
from agent.files import read_jsonl
from agent.raft.engine import Training
from agent.raft.learner import Trainer
from agent.raft.measure import Batch
from agent.tasks.example import Example

Make = Callable[..., Training]
FIRST_OUTSIDE = VOCABULARY
"""The lowest id that the random models do not embed."""


def rows_of(training: Training) -> list[dict[str, Any]]:
    return list(read_jsonl(training.out / "cycles.jsonl"))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def on(folder: Path, **over: Any) -> dict[str, Any]:
    return {"model": {"source": str(folder)}, **over}


# Tokenizers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def without_ends(tmp_path: Path) -> Path:
    """A model whose tokenizer has no end, no padding and no chat template, and that names no end itself."""
    folder = tmp_path / "without-ends"
    save_random_model(folder, kind="llama")
    edit(folder / "tokenizer_config.json", eos_token=None, pad_token=None, chat_template=None)
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=None, pad_token_id=None)
    return folder


@pytest.mark.parametrize("engine", ["slots", "hf"])
def test_without_an_end_token_completions_are_cut_and_nothing_is_positive(
    make: Make, without_ends: Path, engine: str
) -> None:
    training = make(on(without_ends, rollout={"engine": engine}, selection={"reward_threshold": 0.0}))
    assert training.policy.stop_ids == frozenset()
    assert training.run() == "budget"
    for row in rows_of(training):
        assert row["truncation_rate"] == 1.0
        assert row["kept"] == 0
        assert row["loss"] is None


def test_without_an_end_token_a_stop_string_ends_completions(make: Make, without_ends: Path) -> None:
    stop = [str(digit) for digit in range(10)] + list("abcdefghijklmnopqrstuvwxyz")
    training = make(on(without_ends, prompt={"stop": stop}, selection={"reward_threshold": 0.0}))
    assert training.run() == "budget"
    rows = rows_of(training)
    assert all(row["truncation_rate"] < 1.0 for row in rows)
    assert all(row["kept"] > 0 for row in rows[1:])


def test_an_id_that_the_model_does_not_embed_is_named_where_it_occurs(make: Make, tmp_path: Path) -> None:
    """Fine-tunes come with a tokenizer that has grown by tokens nobody uses; that is no reason to refuse them."""
    from transformers import AutoTokenizer

    folder = tmp_path / "grown"
    save_random_model(folder, kind="llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(["<new>"]) == 1
    tokenizer.pad_token = "<new>"
    tokenizer.save_pretrained(folder)
    training = make(on(folder))
    assert training.policy.tokenizer.pad_token_id == FIRST_OUTSIDE
    assert training.policy.pad_id < FIRST_OUTSIDE
    assert training.run() == "budget"
    with pytest.raises(DataError, match=rf"row 7 has the token id {FIRST_OUTSIDE} \('<new>'\)") as error:
        training.examiner.prompt_of(Example(id="7", question="1<new>1=", answer="2"))
    assert error.value.where == "model.source"
    assert error.value.hint is not None


@pytest.mark.parametrize("engine", ["slots", "hf"])
def test_ids_that_the_tokenizer_does_not_know_are_no_text(make: Make, tmp_path: Path, engine: str) -> None:
    """Embeddings are padded to a round number (Qwen2.5: 151,665 tokens, 151,936 rows), and a model may sample there."""
    folder = tmp_path / "padded"
    save_random_model(folder, kind="llama", vocabulary=VOCABULARY + 40)
    training = make(on(folder, rollout={"engine": engine}))
    assert training.run() == "budget"
    batch = training.sample(9)
    unknown = [t for group in batch.completions for c in group for t in c.tokens if t >= VOCABULARY]
    assert unknown
    assert training.policy.decode([unknown[0], 12]) == training.policy.decode([12])


# Lengths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["slots", "hf"])
def test_the_context_of_the_model_bounds_prompts_and_completions(make: Make, tmp_path: Path, engine: str) -> None:
    """The recipe allows 32 tokens, the model has 7 positions; `9+34=` leaves two for the answer, `12+34=` one."""
    folder = tmp_path / "short"
    save_random_model(folder, kind="llama")
    edit(folder / "config.json", max_position_embeddings=7)
    over = on(folder, task={"parameters": {"low": 1, "high": 45}}, rollout={"engine": engine})
    training = make(over)
    assert training.run() == "budget"
    assert all(row["dropped_prompts"] == 0 for row in rows_of(training))
    batch = training.sample(9)
    for prompt, group in zip(batch.prompts, batch.completions, strict=True):
        assert all(len(prompt) + len(completion.tokens) <= 7 for completion in group)
    edit(folder / "config.json", max_position_embeddings=6)
    training = make(over)
    assert training.run() == "budget"
    assert all(0 < row["dropped_prompts"] < 16 for row in rows_of(training)[-2:])


# Outcomes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["raft", "raft++", "reinforce_rej"])
def test_one_sample_a_prompt(make: Make, algorithm: str) -> None:
    learner: dict[str, Any] = {"algorithm": algorithm}
    training = make({"rollout": {"samples_per_prompt": 1}, "learner": learner, "selection": {"reward_threshold": 0.0}})
    assert training.run() == "budget"
    for row in rows_of(training):
        assert row["samples"] == 16
        assert row["zero_variance_share"] == row["unique_share"] == 1.0
        assert (row["all_solved_share"], row["all_failed_share"]) == (row["pass_rate"], 1 - row["pass_rate"])
    if algorithm == "reinforce_rej":  # it learns from prompts with both a success and a failure
        assert all(row["kept"] == 0 for row in rows_of(training))


FAILS_AT_FIRST = """
from itertools import count
calls = count(1)

def score(response, answer, **_):
    number = next(calls)
    if number == 1:
        raise ValueError("boom")
    return float("nan") if number == 2 else 0.0
"""


def test_verifications_that_fail_are_counted(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the verifier's processes fails on the first two responses that it is given."""
    (tmp_path / "fails.py").write_text(FAILS_AT_FIRST)
    training = make({"task": {"verifier": {"kind": "python:fails.py:score"}}})
    batches: list[Batch] = []
    sample = Training.sample
    monkeypatch.setattr(Training, "sample", lambda self, cycle: batches.append(sample(self, cycle)) or batches[-1])
    assert training.run() == "budget"
    faults = [sum(verdict.fault for group in batch.verdicts for verdict in group) for batch in batches]
    assert faults[0] >= 2
    assert faults[1] == 0
    rates = [row["verify_fault_rate"] for row in rows_of(training)]
    assert (rates[0], rates[-1]) == (faults[0] / (16 * 8), 0.0)


@pytest.mark.parametrize("algorithm", ["raft", "reinforce_rej"])
@pytest.mark.parametrize("drop_solved", [True, False])
def test_every_prompt_solved(make: Make, tmp_path: Path, algorithm: str, drop_solved: bool) -> None:
    (tmp_path / "always.py").write_text("def score(response, answer, **_):\n    return 1.0\n")
    training = make(
        {
            "task": {"verifier": {"kind": "python:always.py:score"}},
            "selection": {"drop_solved": drop_solved},
            "learner": {"algorithm": algorithm},
            "rollout": {"max_new_tokens": 24},
        }
    )
    assert training.run() == "budget"
    for row in rows_of(training)[1:]:
        assert row["pass_rate"] > 0.9
        assert (row["kept"] == 0) is (drop_solved or algorithm == "reinforce_rej")
        assert (row["optimizer_steps"] == 0) is (row["kept"] == 0)


def test_out_of_memory_in_an_update_ends_the_training_and_keeps_what_was_recorded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling goes on with fewer rows (test_raft_rollout); an update is not repeated with half of its samples in
    memory, that is for triage, which changes the recipe."""
    training = make({"selection": {"reward_threshold": 0.0}, "budget": {"cycles": 3}})
    train = Trainer.train

    def full(self: Trainer, *arguments: Any, **keys: Any) -> Any:
        if self.updates:
            raise torch.OutOfMemoryError("HIP out of memory. Tried to allocate 1.08 GiB.")
        return train(self, *arguments, **keys)

    monkeypatch.setattr(Trainer, "train", full)
    with pytest.raises(torch.OutOfMemoryError):
        training.run()
    assert [row["cycle"] for row in rows_of(training)] == [0, 1]
