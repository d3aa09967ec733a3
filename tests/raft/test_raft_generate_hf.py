"""The engine that calls transformers' `generate`: the recipe's distribution, within the positions that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from random_models import save_random_model

from agent.errors import NumericError
from agent.raft.generate_hf import _batches
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.rollout import Request, generate, rows_of
from agent.raft.sampling import Sampling

SAMPLING = Sampling(temperature=1.0, max_new_tokens=10, max_total=60, engine="hf")


def random_policy(folder: Path, cache: Path, kind: str) -> Policy:
    save_random_model(folder, kind=kind)
    return load_policy(small_recipe({"model": {"source": str(folder)}}), cache=cache, seed=0, beat=no_beat)


@pytest.mark.parametrize("lora", [False, True])
def test_the_models_own_sampling_defaults_do_not_come_in(tmp_path: Path, lora: bool) -> None:
    """Qwen2.5-Instruct ships a penalty for repetitions, top-k 20 and top-p 0.8."""
    folder = tmp_path / "llama"
    save_random_model(folder, kind="llama")
    over = {"model": {"source": str(folder), **({"lora": {"rank": 2}} if lora else {})}}
    policy = load_policy(small_recipe(over), cache=tmp_path, seed=0, beat=no_beat)
    asked = [Request(policy.tokenizer.encode("1+1="), 40, 0)]
    plain = generate(policy, asked, SAMPLING)[0]
    assert policy.stop_ids == frozenset({0, 96}), "the ends that only the model's configuration names are known"
    own = policy.inner.generation_config
    own.repetition_penalty, own.top_k, own.top_p, own.min_p, own.do_sample = 3.0, 2, 0.3, 0.5, True
    told = generate(policy, asked, SAMPLING)[0]
    assert [one.tokens for one in told] == [one.tokens for one in plain]
    assert [one.logprobs for one in told] == [one.logprobs for one in plain]
    assert len({one.tokens[0] for one in told}) > 2
    assert policy.inner.generation_config is own


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_row_leaves_the_positions_of_the_model(tmp_path: Path, temperature: float) -> None:
    """GPT-2 has a weight for each of its 64 positions here. A short prompt and one that fills them together."""
    policy = random_policy(tmp_path / "gpt2", tmp_path, "gpt2")
    asked = [Request([5] * length, 3, length) for length in (5, 60, 63, 6)]
    sampling = replace(SAMPLING, temperature=temperature, max_new_tokens=40, max_total=None)
    groups = generate(policy, asked, sampling)
    for request, group in zip(asked, groups, strict=True):
        for one in group:
            assert 1 <= len(one.tokens) <= 64 - len(request.prompt)
            assert one.finish == "stop" or len(one.tokens) == min(40, 64 - len(request.prompt))
    if temperature == 0:
        ours = generate(policy, asked, replace(sampling, engine="slots"))
        assert [[one.tokens for one in group] for group in groups] == [[one.tokens for one in group] for group in ours]


def test_rows_of_other_limits_go_together_where_positions_allow_it(tmp_path: Path) -> None:
    """60 tokens in all leave each prompt another limit; the model has 64 positions, or as many as it likes."""
    policy = random_policy(tmp_path / "gpt2", tmp_path, "gpt2")
    asked = [Request([5] * length, 2, length) for length in (30, 33, 36, 45)]
    sampling = replace(SAMPLING, max_new_tokens=40, max_total=60)
    # 33 and the 30 that the shortest may have are 63, 36 and 30 are 66; 45 and the 24 after 36 are 69.
    assert [len(batch) for batch in _batches(policy, asked, rows_of(asked), sampling)] == [4, 2, 2]
    vars(policy)["max_length"] = None
    assert [len(batch) for batch in _batches(policy, asked, rows_of(asked), sampling)] == [8]
    assert [len(b) for b in _batches(policy, asked, rows_of(asked), replace(sampling, slots=3))] == [3, 3, 2]


def test_a_stop_string_is_looked_for_in_what_was_generated(tmp_path: Path) -> None:
    """The prompt ends with half of it; transformers' own criterion would stop at once."""
    policy = random_policy(tmp_path / "llama", tmp_path, "llama")
    prompt, free = policy.tokenizer.encode("1+1=77"), replace(SAMPLING, max_new_tokens=30)
    texts = [policy.decode(one.tokens) for one in generate(policy, [Request(prompt, 64, 0)], free)[0]]
    first = texts[0][0]
    stop = ("7" + first, texts[1][2:4])
    groups = generate(policy, [Request(prompt, 64, 0)], replace(free, stop=stop))[0]
    ended = 0
    for one in groups:
        text = policy.decode(one.tokens)
        places = [text.find(each) for each in stop]
        if max(places) >= 0:
            ended += 1
            assert one.finish == "stop"
            assert any(text.endswith(each) for each in stop)
        else:
            assert one.tokens[-1] in policy.stop_ids or len(one.tokens) == 30
    assert ended > 0
    assert any(policy.decode(one.tokens).startswith(first) and len(one.tokens) > 1 for one in groups)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_a_numeric_error(tmp_path: Path, temperature: float) -> None:
    """Greedy, the largest of nothing but NaN is a token like any other."""
    policy = random_policy(tmp_path / "llama", tmp_path, "llama")
    with torch.no_grad():
        policy.inner.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericError, match="not finite at decode step 0"):
        generate(policy, [Request([5, 6], 1, 0)], replace(SAMPLING, temperature=temperature))
