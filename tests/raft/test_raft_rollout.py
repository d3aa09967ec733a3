from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from agent.errors import NumericError
from agent.raft import cache, rollout
from agent.raft.policy import Policy
from agent.raft.rollout import (
    Completion,
    Request,
    Row,
    StopCheck,
    fits,
    generate,
    rows_of,
    slots_that_fit,
)
from agent.raft.sampling import Sampling, pick, sample_seeds, uniforms

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


@pytest.fixture(scope="module")
def pairs_of_bytes() -> Tokenizer:
    """A byte-level BPE: tokens of several characters, and characters of several tokens."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    found.train_from_iterator(["an answer</answer> and more</answer>\n\nmore", "né naïf</s> na"] * 20, trainer)
    return found


@given(
    pieces=st.lists(st.sampled_from(["an", " answer", "</answer>", "</", "swer>", "\n", "\n\n", "é", "€", "🙂", "n"])),
    stops=st.lists(st.sampled_from(["</answer>", "wer>\n", "\n\n", "é", "€n", "🙂"]), min_size=1, max_size=3),
    prefix=st.sampled_from(["", "an </ans", "\n", "é"]),
)
def test_a_stop_string_is_seen_with_the_token_that_completes_it(
    pairs_of_bytes: Tokenizer, pieces: list[str], stops: list[str], prefix: str
) -> None:
    """Whatever tokens it is spread over, also where the last of them goes on behind it, and not before."""
    policy: Any = SimpleNamespace(
        stop_ids=frozenset(), special_texts=frozenset(), decode=lambda tokens, special: pairs_of_bytes.decode(tokens)
    )
    tokens = pairs_of_bytes.encode("".join(pieces)).ids
    check = StopCheck(policy, replace(SAMPLING, stop=tuple(stops), response_prefix=prefix))
    for count in range(1, len(tokens) + 1):
        text = prefix + pairs_of_bytes.decode(tokens[:count])
        places = [text.find(stop, max(0, len(prefix) - len(stop) + 1)) for stop in stops]
        ends = any(place >= 0 for place in places)
        assert check.ends(tokens[:count]) is ends
        if ends:
            break


def test_the_stop_strings_of_that_test_cross_and_share_tokens(pairs_of_bytes: Tokenizer) -> None:
    assert len(pairs_of_bytes.encode("€").ids) > 1
    assert 1 < len(pairs_of_bytes.encode("an answer</answer>\n\n").ids) < 10
    tokens = [pairs_of_bytes.decode([id_]) for id_ in range(pairs_of_bytes.get_vocab_size())]
    assert any("</answer>" in token and token != "</answer>" for token in tokens), "none goes on behind a stop string"


def test_rows_hold_every_sample_once_and_prompts_of_similar_length_together() -> None:
    asked = [Request([1] * length, samples, 0) for length, samples in [(5, 3), (2, 4), (9, 1), (2, 2)]]
    rows = rows_of(asked)
    assert sorted((row.request, row.sample) for row in rows) == [
        (i, s) for i, request in enumerate(asked) for s in range(request.samples)
    ]
    lengths = [len(asked[row.request].prompt) for row in rows]
    assert lengths == sorted(lengths)


def test_every_decode_step_is_a_sign_of_life(policy: Policy) -> None:
    steps: list[int] = []
    asked = requests(policy, "12+34=")
    longest = max(len(c.tokens) for c in generate(policy, asked, SAMPLING, on_step=lambda: steps.append(1))[0])
    assert len(steps) == longest


def test_slots_are_refilled_and_each_sample_is_reported_once(policy: Policy) -> None:
    asked = requests(policy, *[f"{a}+{a}=" for a in range(10, 22)], samples=5)
    seen: list[Row] = []
    reported: dict[Row, Completion] = {}

    def finished(row: Row, completion: Completion) -> None:
        seen.append(row)
        reported[row] = completion

    groups = generate(policy, asked, replace(SAMPLING, slots=7), on_finished=finished)
    assert len(seen) == len(set(seen)) == 60
    assert all(groups[row.request][row.sample] == completion for row, completion in reported.items())
    whole = generate(policy, asked, replace(SAMPLING, slots=200))
    assert [[c.tokens for c in group] for group in groups] == [[c.tokens for c in group] for group in whole]


@pytest.mark.parametrize("slots", [200, 7])
def test_samples_that_agree_are_computed_as_one(policy: Policy, monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    """A step has a row for each distinct beginning of samples; what a sample draws is what it draws alone."""
    asked = requests(policy, "12+34=", "9+9=", "55+66=", samples=12)
    sampling = replace(SAMPLING, temperature=0.7, slots=slots)
    rows: list[int] = []
    forward = policy.forward

    def counting(ids: Any, positions: Any, layout: Any, keep: Any = None) -> Any:
        rows.append(0 if keep is not None else len(ids))
        return forward(ids, positions, layout, keep)

    monkeypatch.setattr(policy, "forward", counting)
    groups = generate(policy, asked, sampling)
    samples = [[c.tokens for c in group] for group in groups]
    beginnings = {
        (number, *tokens[:length])
        for number, group in enumerate(samples)
        for tokens in group
        for length in range(1, len(tokens))
    }
    everything = sum(len(tokens) - 1 for group in samples for tokens in group)
    assert len(beginnings) < 0.8 * everything
    # With few slots, samples of a prompt begin at different times, and those that are apart in time stay apart.
    assert sum(rows) == len(beginnings) if slots == 200 else len(beginnings) <= sum(rows) < everything
    for request, group in zip(asked, groups, strict=True):
        for number, completion in enumerate(group):
            alone = replace(request, samples=number + 1)
            others = {Row(0, other): completion for other in range(number)}
            (found,) = generate(policy, [alone], sampling, known=others)
            assert found[number].tokens == completion.tokens
            assert found[number].logprobs == pytest.approx(completion.logprobs, abs=1e-4)


def test_greedy_samples_of_a_prompt_are_one_row(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, most = policy.forward, []

    def counting(ids: Any, positions: Any, layout: Any, keep: Any = None) -> Any:
        most.append(0 if keep is not None else len(ids))
        return forward(ids, positions, layout, keep)

    monkeypatch.setattr(policy, "forward", counting)
    groups = generate(policy, requests(policy, "12+34=", "9+9=", samples=8), replace(SAMPLING, temperature=0.0))
    assert max(most) <= 2
    assert all(completion == group[0] for group in groups for completion in group)
    assert len({id(completion.tokens) for group in groups for completion in group}) == 16


def test_prompts_that_are_done_are_left_out_of_a_step(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(policy, *[f"{a}+{a + b}=" for a in range(4, 20) for b in (5, 80)], samples=2)
    whole: list[tuple[int, int]] = []
    prompts = cache.Arrangement.prompts

    def watched(self: cache.Arrangement, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        found = prompts(self, layer, keys, values)
        whole.append((len(found[0]), len(keys)))
        return found

    monkeypatch.setattr(cache.Arrangement, "prompts", watched)
    results = {}
    for share in (0.0, 0.5, 1.0):
        monkeypatch.setattr(cache, "FEW_PROMPTS", share)
        results[share] = generate(policy, asked, replace(SAMPLING, max_new_tokens=12))
        assert any(used < places for used, places in whole)
        whole.clear()
    for share in (0.5, 1.0):
        for group, other in zip(results[share], results[0.0], strict=True):
            assert [c.tokens for c in group] == [c.tokens for c in other]
            for ours, theirs in zip(group, other, strict=True):
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("slots", [200, 5])
def test_the_cache_grows_by_the_rows_that_can_still_be_used(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """Long completions of a few samples cost no room for those that have ended; what is drawn stays the same."""
    asked = requests(policy, "12+34=", "9+9=", "55+66=", samples=12)
    sampling = replace(SAMPLING, temperature=1.3, max_new_tokens=24, slots=slots)
    in_one = generate(policy, asked, sampling)
    assert len({len(completion.tokens) for group in in_one for completion in group}) > 3
    sizes: list[tuple[int, int, int]] = []
    reserve = cache.SlotCache.reserve

    def watched(self: cache.SlotCache, tokens: int, *, rows: int, slots: int) -> None:
        reserve(self, tokens, rows=rows, slots=slots)
        assert rows <= slots
        sizes.append((self.layers[0].keys.shape[0], self.layers[0].values.shape[2], slots))

    monkeypatch.setattr(cache, "FIRST_TOKENS", 2)
    monkeypatch.setattr(cache.SlotCache, "reserve", watched)
    found = generate(policy, asked, sampling)
    assert [[c.tokens for c in group] for group in found] == [[c.tokens for c in group] for group in in_one]
    assert sizes[0][0] == min(36, slots)
    assert all(has >= needed for has, _, needed in sizes)
    assert (sizes[-1][0] < sizes[0][0]) == (slots == 200), "with few slots samples wait until the room is complete"
    assert sizes[-1][1] == max(len(c.tokens) for group in found for c in group) - 1 > sizes[0][1]


def test_the_entropy_is_exact_under_autocast() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 3
    uniform = torch.full((5,), 0.5)
    plain = pick(logits, SAMPLING, uniform)
    with torch.autocast("cpu", torch.bfloat16):
        cast = pick(logits, SAMPLING, uniform)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_known_samples_are_taken_as_they_are_and_the_others_do_not_change(policy: Policy) -> None:
    asked = requests(policy, "12+34=", "9+9=", samples=4)
    all_new = generate(policy, asked, SAMPLING)
    made_up = Completion([3], [-1.0], [0.5], "stop")
    reported: list[Row] = []
    groups = generate(
        policy,
        asked,
        SAMPLING,
        known={Row(0, 1): made_up, Row(1, 3): made_up},
        on_finished=lambda row, _: reported.append(row),
    )
    assert groups[0][1] == groups[1][3] == made_up
    assert {Row(0, 1), Row(1, 3)}.isdisjoint(reported)
    assert [c.tokens for c in groups[0]][2:] == [c.tokens for c in all_new[0]][2:]
    assert len(reported) == 6


def test_out_of_memory_goes_on_with_half_as_many_rows(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine holds three rows of a decode step. What was drawn before is kept, nothing changes."""
    asked = requests(policy, "12+34=", "9+9=", "5+5=", samples=4)
    expected = [[c.tokens for c in group] for group in generate(policy, asked, SAMPLING)]
    forward, refused = policy.forward, []

    def small_machine(ids: Any, positions: Any, layout: Any, keep: Any = None) -> Any:
        if keep is None and len(ids) > 3:
            refused.append(len(ids))
            raise torch.OutOfMemoryError("HIP out of memory. Tried to allocate 1.08 GiB.")
        return forward(ids, positions, layout, keep)

    monkeypatch.setattr(policy, "forward", small_machine)
    assert [[c.tokens for c in group] for group in generate(policy, asked, SAMPLING)] == expected
    assert refused

    def no_room(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    assert "out of memory while sampling: going on with 3 rows at a time" in capsys.readouterr().err
    monkeypatch.setattr(policy, "forward", no_room)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        generate(policy, asked, SAMPLING)


def test_rows_in_flight_are_bounded_by_free_memory(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of one token: 2 layers of 64 float32 numbers each for keys and values, 1,024 bytes."""
    assert policy.cache_bytes == 2 * 2 * 64 * 4
    monkeypatch.setattr(policy, "free_memory", lambda: 2 * 10 * 1024.0 * (6 + 6))
    asked = requests(policy, "12+34=", samples=30)
    assert slots_that_fit(policy, prompt_tokens=6, samples=30, sampling=SAMPLING) == 10
    # Of prompts with one sample, as many again are in the cache to come next.
    assert slots_that_fit(policy, prompt_tokens=6, samples=1, sampling=SAMPLING) == 6
    in_flight: list[int] = []
    step = rollout._Slots.step

    def counting(self: rollout._Slots) -> None:
        in_flight.append(sum(len(strand.samples) for strand in self.live))
        step(self)

    monkeypatch.setattr(rollout._Slots, "step", counting)
    generate(policy, asked, SAMPLING)
    assert max(in_flight) == 10


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10_000), min_size=1, max_size=20, unique=True))
def test_random_numbers_belong_to_sample_and_position(seed: int, positions: list[int]) -> None:
    seeds = sample_seeds(seed, range(5))
    whole = [uniforms(seeds, [position] * 5).tolist() for position in positions]
    assert all(0 <= value < 1 for row in whole for value in row)
    assert len({value for row in whole for value in row}) == 5 * len(positions)
    alone = uniforms(sample_seeds(seed, [3]), [positions[0]]).tolist()
    assert alone == [whole[0][3]]


def test_random_numbers_are_uniform_and_independent() -> None:
    """100,000 of consecutive seeds, samples and positions: mean, variance and correlations within four errors."""
    table = np.stack([uniforms(sample_seeds(seed, range(10)), [p] * 10) for seed in range(100) for p in range(100)])
    assert abs(table.mean() - 0.5) < 4 / math.sqrt(12 * table.size)
    assert abs(table.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / table.size)
    by_seed = table.reshape(100, 100, 10)
    for one, other in (
        (by_seed[:-1], by_seed[1:]),
        (by_seed[:, :-1], by_seed[:, 1:]),
        (by_seed[:, :, :-1], by_seed[:, :, 1:]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(one.size)


@given(
    st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.6, 2.0]), st.floats(0, 1, exclude_max=True)
)
@settings(deadline=None, max_examples=60)
def test_drawing_in_two_steps_is_the_inverse_of_the_whole_distribution(
    size: int, seed: int, temperature: float, uniform: float
) -> None:
    logits = 4 * torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
    token, _, _ = pick(logits, replace(SAMPLING, temperature=temperature), torch.tensor([uniform]))
    cdf = torch.softmax(logits[0].double() / temperature, -1).cumsum(-1)
    low = float(cdf[int(token) - 1]) if int(token) else 0.0
    assert low - 1e-6 <= uniform * float(cdf[-1]) <= float(cdf[int(token)]) + 1e-6
