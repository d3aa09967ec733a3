"""Models, tokenizers and outcomes at the edge of what a training can take: each has an answer, and none is a stray
traceback."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import small_recipe
from random_models import VOCABULARY, save_random_bloom, save_random_gemma3, save_random_model

from agent.contract import NO_STEP
from agent.errors import DataError, RecipeError
from agent.files import read_jsonl
from agent.raft.engine import EMPTY_CYCLES, Training
from agent.raft.learner import Trainer
from agent.raft.loss import TokenLoss
from agent.raft.measure import Batch
from agent.raft.microbatch import Microbatch
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
    assert training.policy.pad_id == 0
    stops = frozenset([FIRST_OUTSIDE + 1])
    other = replace(training.policy)
    vars(other)["stop_ids"] = stops
    assert other.pad_id == 0, "an end that the model does not embed is no padding either"
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


@pytest.mark.parametrize("engine", ["slots", "hf"])
def test_a_special_token_may_be_a_stop_string(make: Make, tmp_path: Path, engine: str) -> None:
    """As a turn end is for a base model that does not name it as its end. The verifier sees no special tokens."""
    from transformers import AutoTokenizer

    folder = tmp_path / "turns"
    save_random_model(folder, kind="llama", vocabulary=VOCABULARY + 1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    training = make(
        on(folder, rollout={"engine": engine, "max_new_tokens": 20}, prompt={"stop": ["\n\n\n", "<|im_end|>"]})
    )
    policy = training.policy
    turn_end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end == FIRST_OUTSIDE
    assert turn_end not in policy.stop_ids
    ended = [c for group in training.sample(1).completions for c in group if turn_end in c.tokens]
    assert ended
    for completion in ended:
        assert completion.tokens.index(turn_end) == len(completion.tokens) - 1
        assert completion.finish == "stop"
        assert "im_end" not in training.examiner.response_of(completion)


# Models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "hf"])
@pytest.mark.parametrize(
    ("save", "positions", "packed"), [(save_random_bloom, None, False), (save_random_gemma3, 40, True)]
)
def test_a_configuration_without_a_length_or_with_an_inner_one(
    make: Make, tmp_path: Path, save: Callable[[Path], None], positions: int | None, packed: bool, engine: str
) -> None:
    save(tmp_path / "model")
    training = make(on(tmp_path / "model", rollout={"engine": engine}, backend={"attention": "eager"}))
    policy = training.policy
    assert policy.max_length == positions
    assert (policy.layout_why_not is None) == packed, policy.layout_why_not
    assert policy.cache_bytes > 0
    assert training.run() == "budget"
    assert all(row["select_metric"] is not None for row in rows_of(training))


@pytest.mark.slow
def test_padded_rows_are_as_many_as_memory_holds(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has keys and values of its tokens, and five vectors of logits; half of what is free may be used."""
    save_random_bloom(tmp_path / "model")
    training = make(
        {"model": {"source": str(tmp_path / "model"), "dtype": "float32"}, "backend": {"attention": "eager"}}
    )
    policy = training.policy
    assert policy.cache_bytes == 2 * 2 * 32 * 4
    row = (6 + training.recipe.rollout.max_new_tokens) * policy.cache_bytes + 5 * 4 * VOCABULARY
    seen: list[int] = []
    generate = type(policy.inner).generate

    def record(model: Any, *, input_ids: torch.Tensor, **more: Any) -> Any:
        seen.append(len(input_ids))
        return generate(model, input_ids=input_ids, **more)

    monkeypatch.setattr(type(policy.inner), "generate", record)
    monkeypatch.setattr(type(policy), "free_memory", lambda policy: 2.0 * 20 * row)
    batch = training.sample(1)
    assert {len(prompt) for prompt in batch.prompts} == {6}
    samples = sum(map(len, batch.completions))
    assert seen == [20] * (samples // 20) + [samples % 20]
    seen.clear()
    monkeypatch.setattr(type(policy), "free_memory", lambda policy: 1.0)
    training.sample(2)
    assert seen == [1] * samples


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


def test_prompts_that_all_exceed_the_context_do_not_train_for_ever(make: Make, tmp_path: Path) -> None:
    """Empty cycles cost no tokens, so a budget of tokens would never be spent. (The worker refuses before that.)"""
    folder = tmp_path / "short"
    save_random_model(folder, kind="llama")
    edit(folder / "config.json", max_position_embeddings=6)
    training = make(on(folder, budget={"cycles": None, "tokens": 5000}))
    assert training.run() == NO_STEP
    prompts = len(training.splits.train)
    assert training.spending.cycles == max(EMPTY_CYCLES, math.ceil(prompts / 16)), "each has been drawn by then"
    assert {row["dropped_prompts"] for row in rows_of(training)} == {16}


# Outcomes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["raft", "raft++"])
def test_one_sample_a_prompt(make: Make, algorithm: str) -> None:
    learner: dict[str, Any] = {"algorithm": algorithm}
    training = make({"rollout": {"samples_per_prompt": 1}, "learner": learner, "selection": {"reward_threshold": 0.0}})
    assert training.run() == "budget"
    for row in rows_of(training):
        assert row["samples"] == 16
        assert row["zero_variance_share"] == row["unique_share"] == 1.0
        assert (row["all_solved_share"], row["all_failed_share"]) == (row["pass_rate"], 1 - row["pass_rate"])


def test_one_sample_a_prompt_holds_no_failure_beside_a_success() -> None:
    with pytest.raises(RecipeError, match=r"rollout.samples_per_prompt must be at least 2 .* reinforce_rej"):
        small_recipe({"rollout": {"samples_per_prompt": 1}, "learner": {"algorithm": "reinforce_rej"}})


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
    memory, that is for triage, which changes the recipe. Here the second cycle's second microbatch finds no room."""
    over = {
        "selection": {"reward_threshold": 0.0},
        "learner": {"microbatch_tokens": 256, "gradient_accumulation": 100},
        "budget": {"cycles": 3},
    }
    straight = make(over)
    assert straight.run() == "budget"
    expected = straight.policy.snapshot()
    token_loss, calls = Trainer.token_loss, []

    def full(self: Trainer, batch: Microbatch) -> TokenLoss:
        calls.append(self.updates)
        if calls.count(1) == 2:
            raise torch.OutOfMemoryError("HIP out of memory. Tried to allocate 1.08 GiB.")
        return token_loss(self, batch)

    training = make(over)
    training.state.save_seconds = 0.0
    monkeypatch.setattr(Trainer, "token_loss", full)
    with pytest.raises(torch.OutOfMemoryError):
        training.run()
    assert [row["cycle"] for row in rows_of(training)] == [0, 1]
    assert all(p.grad is None for p in training.policy.trainable().values()), "half of a gradient is left behind"
    monkeypatch.setattr(Trainer, "token_loss", token_loss)
    again = make(over)
    assert again.run() == "budget"
    assert [row["cycle"] for row in rows_of(again)] == [0, 1, 2, 3]
    assert all(torch.equal(weight, expected[name]) for name, weight in again.policy.snapshot().items())
