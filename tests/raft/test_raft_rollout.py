from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import NumericError
from agent.raft.model import Policy
from agent.raft.rollout import Request, Sampling, StopCheck, fits, generate, pick, plan_waves

SAMPLING = Sampling(temperature=1.0, max_new_tokens=6, max_total=32, slots=64)


def requests(policy: Policy, *questions: str, samples: int = 4) -> list[Request]:
    return [Request(policy.tokenizer.encode(q), samples, seed=1000 + i) for i, q in enumerate(questions)]


def test_what_is_stored_is_what_the_model_gives_to_the_sampled_tokens(policy: Policy) -> None:
    """Log-probability at temperature 1 and entropy, though it was sampled at 0.7 with top_k 5."""
    asked = requests(policy, "12+34=", "9+9=", "55+66=")
    sampling = replace(SAMPLING, temperature=0.7, top_k=5)
    for request, group in zip(asked, generate(policy, asked, sampling), strict=True):
        assert len(group) == 4
        for completion in group:
            ids = torch.tensor([request.prompt + completion.tokens])
            with torch.no_grad():
                logp = policy.model(ids).logits[0].log_softmax(-1)
            for place, token in enumerate(completion.tokens):
                row = logp[len(request.prompt) + place - 1]
                assert completion.logprobs[place] == pytest.approx(float(row[token]), abs=1e-4)
                assert completion.entropies[place] == pytest.approx(float(-(row.exp() * row).sum()), abs=1e-4)
                assert token in row.topk(5).indices


def test_padding_and_batching_change_nothing(policy: Policy) -> None:
    asked = requests(policy, "12+34=", "9+9=", "1+2+3+4=", "55+66=")
    together = generate(policy, asked, SAMPLING)
    for slots in (1, 3, 5):
        assert [[c.tokens for c in group] for group in generate(policy, asked, replace(SAMPLING, slots=slots))] == [
            [c.tokens for c in group] for group in together
        ]
    alone = generate(policy, asked[2:3], SAMPLING)
    assert [c.tokens for c in alone[0]] == [c.tokens for c in together[2]]


def test_a_completion_ends_with_the_stop_token_or_is_cut(policy: Policy) -> None:
    asked = requests(policy, *[f"{a}+{a}=" for a in range(10, 30)], samples=8)
    completions = [c for group in generate(policy, asked, replace(SAMPLING, max_new_tokens=3)) for c in group]
    reasons = Counter(c.finish for c in completions)
    assert reasons["stop"] > 0
    assert reasons["length"] > 0
    for completion in completions:
        ended = completion.tokens[-1] == policy.tokenizer.eos_token_id
        assert (completion.finish == "stop") == ended
        assert ended or len(completion.tokens) == 3
        assert policy.tokenizer.eos_token_id not in completion.tokens[:-1]
        assert len(completion.tokens) == len(completion.logprobs) == len(completion.entropies) <= 3


def test_a_completion_is_cut_to_the_total_length(policy: Policy) -> None:
    asked = requests(policy, "12+34=")
    completions = generate(policy, asked, replace(SAMPLING, max_total=8))[0]
    assert max(len(c.tokens) for c in completions) <= 2
    assert not fits([1] * 8, replace(SAMPLING, max_total=8))
    assert fits([1] * 7, replace(SAMPLING, max_total=8))


def test_greedy_is_the_argmax_at_every_step(policy: Policy) -> None:
    asked = requests(policy, "12+34=", samples=2)
    first, second = generate(policy, asked, replace(SAMPLING, temperature=0.0))[0]
    assert first.tokens == second.tokens
    ids = list(asked[0].prompt)
    with torch.no_grad():
        for token in first.tokens:
            assert token == int(policy.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(policy: Policy) -> None:
    asked = requests(policy, "12+34=", samples=16)
    other = [replace(request, seed=5) for request in asked]
    assert generate(policy, asked, SAMPLING) == generate(policy, asked, SAMPLING)
    assert generate(policy, asked, SAMPLING) != generate(policy, other, SAMPLING)


def test_more_samples_begin_with_the_same_luck(policy: Policy) -> None:
    """Only the samples of a prompt share a stream: raising max_new_tokens does not reshuffle it."""
    asked = requests(policy, "12+34=", samples=8)
    short = generate(policy, asked, replace(SAMPLING, max_new_tokens=2))[0]
    long = generate(policy, asked, replace(SAMPLING, max_new_tokens=6))[0]
    assert [c.tokens for c in short] == [c.tokens[:2] for c in long]


def test_draws_follow_the_distribution() -> None:
    """6,000 draws from (0.5, 0.3, 0.2, 0): within five standard deviations (at most 0.0065 each)."""
    logits = torch.tensor([0.5, 0.3, 0.2, 1e-30]).log().expand(6000, 4)
    uniform = torch.rand(6000, generator=torch.Generator().manual_seed(0))
    token, logprob, entropy = pick(logits, SAMPLING, uniform)
    share = torch.bincount(token, minlength=4) / 6000
    assert share.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.033)
    assert float(logprob[token == 1][0]) == pytest.approx(math.log(0.3), abs=1e-6)
    assert float(entropy[0]) == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.3, 0.2)), abs=1e-6)


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"temperature": 0.5}, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]),
        ({"top_k": 2}, [0.5 / 0.8, 0.3 / 0.8, 0.0]),
        ({"top_k": 1}, [1.0, 0.0, 0.0]),
        ({"top_p": 0.49}, [1.0, 0.0, 0.0]),
        ({"top_p": 0.51}, [0.5 / 0.8, 0.3 / 0.8, 0.0]),
        ({"top_p": 0.9, "top_k": 3}, [0.5, 0.3, 0.2]),
    ],
)
def test_temperature_and_truncation_by_hand(over: dict[str, Any], expected: list[float]) -> None:
    logits = torch.tensor([0.3, 0.5, 0.2]).log().expand(8000, 3)
    uniform = (torch.arange(8000) + 0.5) / 8000
    token, _, _ = pick(logits, replace(SAMPLING, **over), uniform)
    share = (torch.bincount(token, minlength=3) / 8000).tolist()
    assert [share[1], share[0], share[2]] == pytest.approx(expected, abs=1e-3)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_token_of_no_probability_is_never_drawn(values: list[float], uniform: float) -> None:
    logits = torch.tensor([[*values, float("-inf")]])
    for over in ({}, {"top_p": 0.5}, {"top_k": 1}):
        token, logprob, _ = pick(logits, replace(SAMPLING, **over), torch.tensor([uniform]))
        assert int(token) < len(values)
        assert torch.isfinite(logprob).all()


def test_logits_that_are_not_finite_are_a_numeric_error(policy: Policy) -> None:
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericError, match="not finite at decode step 1"):
        generate(policy, requests(policy, "1+1="), SAMPLING)


def test_a_stop_string_ends_a_completion_and_stays_in_it(policy: Policy) -> None:
    asked = requests(policy, *[f"{a}+{a}=" for a in range(10, 30)])
    free = [c for group in generate(policy, asked, SAMPLING) for c in group]
    cut = [c for group in generate(policy, asked, replace(SAMPLING, stop=("1", "44"))) for c in group]
    stopped = 0
    for before, after in zip(free, cut, strict=True):
        text = policy.decode(before.tokens)
        ends = [text.index(stop) + len(stop) for stop in ("1", "44") if stop in text]
        expected = before.tokens[: min(ends)] if ends else before.tokens
        assert after.tokens == expected
        if ends:
            stopped += 1
            assert after.finish == "stop"
    assert stopped > 0


@pytest.mark.parametrize(
    ("prefix", "text", "ends"),
    [
        ("", "7\n", True),
        ("", "7", False),
        ("\n", "7", False),  # what stood in the prefix already ends nothing
        ("<ans", "wer>", False),
        ("</ans", "wer>", True),  # begins in the prefix, ends in what was generated
        ("", "7</answer>.", True),
    ],
)
def test_stop_strings_and_the_response_prefix(policy: Policy, prefix: str, text: str, ends: bool) -> None:
    check = StopCheck(policy, replace(SAMPLING, stop=("\n", "</answer>"), response_prefix=prefix))
    assert check.ends(policy.tokenizer.encode(text)) is ends


def test_waves_hold_every_sample_once_and_never_more_than_the_slots() -> None:
    asked = [Request([1] * length, samples, 0) for length, samples in [(5, 3), (2, 4), (9, 1), (2, 2)]]
    for slots in (1, 4, 7, 100):
        waves = plan_waves(asked, slots)
        assert all(len(wave) <= slots for wave in waves)
        rows = [(row.request, row.sample) for wave in waves for row in wave]
        assert sorted(rows) == [(i, s) for i, request in enumerate(asked) for s in range(request.samples)]
        lengths = [len(asked[request].prompt) for request, _ in rows]
        assert lengths == sorted(lengths)


def test_every_decode_step_is_a_sign_of_life(policy: Policy) -> None:
    steps: list[int] = []
    asked = requests(policy, "12+34=")
    longest = max(len(c.tokens) for c in generate(policy, asked, SAMPLING, on_step=lambda: steps.append(1))[0])
    assert len(steps) == longest
