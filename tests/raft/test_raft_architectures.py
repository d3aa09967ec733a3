"""The engine and the learner on transformers' architectures: same greedy tokens, log-probabilities, loss, gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from random_models import ARCHITECTURES, save_random_bloom, save_random_model

from agent.raft.attention import PackedLayout
from agent.raft.learner import Trainer
from agent.raft.microbatch import Shape, TrainingSample, collate
from agent.raft.model import load_policy
from agent.raft.optimizers import FusedAdamW
from agent.raft.policy import Policy
from agent.raft.rollout import Request, generate
from agent.raft.sampling import Sampling, sample_seeds, uniforms
from agent.raft.tryout import _alike, inspect_policy
from agent.recipe.schema import Learner

SAMPLING = Sampling(temperature=1.0, max_new_tokens=12, max_total=60)
FEW = [kind if kind in ("qwen3", "gemma2") else pytest.param(kind, marks=pytest.mark.slow) for kind in ARCHITECTURES]
"""The others of what takes long are among the slow tests."""
QUESTIONS = ["what is 1+1=", "what is 7?", "what is 12345+67890 and then?", "x"]
"""Three begin alike, and the window of five positions is shorter than each."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in ARCHITECTURES:
        save_random_model(root / kind, kind=kind)
    return {kind: root / kind for kind in ARCHITECTURES}


def load(folder: Path, cache: Path, **over: Any) -> Policy:
    recipe = small_recipe({"model": {"source": str(folder)}, **over})
    return load_policy(recipe, cache=cache, seed=0, beat=no_beat)


def requests(policy: Policy, samples: int) -> list[Request]:
    return [Request(policy.tokenizer.encode(text), samples, seed) for seed, text in enumerate(QUESTIONS)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_completions_are_those_of_generate(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    policy = load(folders[kind], tmp_path)
    assert policy.layout_why_not is None
    greedy = replace(SAMPLING, temperature=0.0)
    ours = generate(policy, requests(policy, 1), replace(greedy, slots=3))
    theirs = [generate(policy, [request], replace(greedy, engine="hf"))[0] for request in requests(policy, 1)]
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine[0].tokens == reference[0].tokens
        assert mine[0].finish == reference[0].finish
        assert mine[0].logprobs == pytest.approx(reference[0].logprobs, abs=2e-4)
        assert mine[0].entropies == pytest.approx(reference[0].entropies, abs=2e-4)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_probabilities_are_those_of_a_plain_forward_pass(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    policy = load(folders[kind], tmp_path)
    asked = requests(policy, 6)
    finished = set()
    for request, group in zip(asked, generate(policy, asked, replace(SAMPLING, slots=7)), strict=True):
        for completion in group:
            by_hand = plain_logprobs(policy, request.prompt, completion.tokens)
            assert completion.logprobs == pytest.approx(by_hand, abs=2e-4)
            assert (completion.finish == "stop") == (completion.tokens[-1] in policy.stop_ids)
            finished.add((completion.finish, len(completion.tokens) < 12))
    assert ("length", False) in finished


@torch.no_grad()
def plain_logprobs(policy: Policy, prompt: list[int], tokens: list[int]) -> list[float]:
    logp = policy.model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    return [float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_packing_gives_the_loss_and_the_gradient_of_one_row_a_sample(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    policy = load(folders[kind], tmp_path)
    long = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    samples = [
        TrainingSample([*long, 14][:n], completion, [0.0] * len(completion))
        for n, completion in ((9, [3, 4, 5]), (10, [20]), (10, [21, 22, 23, 24, 25, 26, 27]), (9, [3, 4, 6]), (2, [9]))
    ]
    by_hand = -sum(sum(plain_logprobs(policy, sample.prompt, sample.completion)) for sample in samples)
    start, seen = policy.snapshot(), []
    for packing in (False, True):
        policy.restore(start)
        trainer = Trainer(policy, Learner(optimizer="sgd", max_grad_norm=1e6, packing=packing))
        assert trainer.shape == ("tree" if packing else "padded")
        report = trainer.train(samples, learning_rate=lambda _: 0.01, seed=0)
        seen.append((report.loss_sum, policy.snapshot()))
    assert seen[0][0] == pytest.approx(by_hand, rel=1e-5)
    assert seen[1][0] == pytest.approx(by_hand, rel=1e-5)
    for name in start:
        torch.testing.assert_close(seen[0][1][name], seen[1][1][name], atol=2e-5, rtol=1e-4)
    assert any(not torch.equal(seen[0][1][name], start[name]) for name in start)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "phi3"])
def test_a_row_of_whole_samples_gives_the_loss_and_the_gradient_of_one_row_a_sample(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """The shape for flash and flex attention. On a CPU transformers' sdpa keeps the samples of a row apart by the same
    sign, positions that begin anew."""
    policy = load(folders[kind], tmp_path)
    samples = [
        TrainingSample(prompt, completion, [0.0] * len(completion))
        for prompt, completion in (([5, 6, 7], [3, 4, 5]), ([5, 6, 7], [20]), ([9], [21, 22, 23, 24]))
    ]
    one = collate(samples, shape="row", policy=policy)
    assert one.ids.tolist() == [[5, 6, 7, 3, 4, 5, 5, 6, 7, 20, 9, 21, 22, 23, 24]]
    assert one.positions.tolist() == [[*range(6), *range(4), *range(5)]]
    assert one.predicting.tolist() == [2, 3, 4, 8, 10, 11, 12, 13]
    assert (one.padding, one.real_tokens, one.layout) == (0, 15, None)
    start, seen = policy.snapshot(), []
    shapes: tuple[Shape, ...] = ("padded", "row")
    for shape in shapes:
        policy.restore(start)
        trainer = Trainer(policy, Learner(optimizer="sgd", max_grad_norm=1e6))
        trainer.shape = shape
        report = trainer.train(samples, learning_rate=lambda _: 0.01, seed=0)
        seen.append((report.loss_sum, policy.snapshot()))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-5)
    for name in start:
        torch.testing.assert_close(seen[0][1][name], seen[1][1][name], atol=2e-5, rtol=1e-4)
    assert any(not torch.equal(seen[0][1][name], start[name]) for name in start)


@pytest.mark.parametrize("kind", FEW)
def test_in_bfloat16_the_engine_and_the_learner_are_as_exact_as_a_plain_forward_pass(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Both are held to float32: the distance of ours may be a little more than that of plain bfloat16."""
    narrow, exact = (load(folders[kind], tmp_path, **of(folders[kind], dtype)) for dtype in ("bfloat16", "float32"))
    assert (narrow.compute, narrow.layout_why_not) == (torch.bfloat16, None)
    ours, plain = [], []
    asked = requests(narrow, 6)
    groups = generate(narrow, asked, replace(SAMPLING, slots=7))
    samples = [
        TrainingSample(request.prompt, one.tokens, one.logprobs)
        for request, group in zip(asked, groups, strict=True)
        for one in group
    ]
    for one in samples:
        by_hand = torch.tensor(plain_logprobs(exact, one.prompt, one.completion))
        with narrow.autocast():
            plain.append(torch.tensor(plain_logprobs(narrow, one.prompt, one.completion)) - by_hand)
        ours.append(torch.tensor(one.logprobs) - by_hand)
    distance, usual = (float(torch.cat(found).square().mean().sqrt()) for found in (ours, plain))
    assert 0 < distance < 1.5 * usual + 0.01
    report = Trainer(narrow, Learner(optimizer="sgd")).train(samples, learning_rate=lambda _: 0.0, seed=0)
    by_hand = -sum(sum(plain_logprobs(exact, one.prompt, one.completion)) for one in samples)
    assert report.loss_sum == pytest.approx(by_hand, rel=0.02)


def of(folder: Path, dtype: str, **lora: Any) -> dict[str, Any]:
    return {"model": {"source": str(folder), "dtype": dtype, **({"lora": lora} if lora else {})}}


@pytest.mark.parametrize(
    "lora", [{}, pytest.param({"rank": 4, "alpha": 8.0}, marks=pytest.mark.slow)], ids=["all weights", "adapters"]
)
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "float16"))]
)
def test_an_interrupted_training_of_a_transformers_model_goes_on_as_if_nothing_had_happened(
    folders: dict[str, Path], tmp_path: Path, dtype: str, lora: dict[str, Any]
) -> None:
    """Moments of torch's fused AdamW, the loss scale of float16, adapters; and the loss falls."""
    policy = load(folders["llama"], tmp_path, **of(folders["llama"], dtype, **lora))
    samples = [
        TrainingSample(request.prompt, one.tokens, one.logprobs)
        for request, group in zip(requests(policy, 2), generate(policy, requests(policy, 2), SAMPLING), strict=True)
        for one in group
    ]
    assert all(p.dtype == torch.float32 for p in policy.trainable().values())
    trainer = Trainer(policy, Learner())
    assert isinstance(trainer.optimizer, FusedAdamW)
    losses = [trainer.train(samples, learning_rate=lambda _: 3e-3, seed=seed).loss_sum for seed in range(3)]
    torch.save({"trainer": trainer.state_dict(), "weights": policy.snapshot()}, tmp_path / "state.pt")
    losses += [trainer.train(samples, learning_rate=lambda _: 3e-3, seed=seed).loss_sum for seed in range(3, 6)]
    straight = policy.snapshot()
    other = load(folders["llama"], tmp_path, **of(folders["llama"], dtype, **lora))
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other.restore(saved["weights"])
    again = Trainer(other, Learner())
    again.load_state_dict(saved["trainer"])
    for seed in range(3, 6):
        again.train(samples, learning_rate=lambda _: 3e-3, seed=seed)
    assert again.updates == trainer.updates == 6
    assert all(torch.equal(weight, straight[name]) for name, weight in other.snapshot().items())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_eager_attention_gives_the_same_numbers(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    sdpa = load(folders[kind], tmp_path)
    eager = load(folders[kind], tmp_path, backend={"attention": "eager"})
    assert eager.eager
    for one, other in zip(
        generate(sdpa, requests(sdpa, 2), SAMPLING), generate(eager, requests(eager, 2), SAMPLING), strict=True
    ):
        assert [c.tokens for c in one] == [c.tokens for c in other]
        assert one[0].logprobs == pytest.approx(other[0].logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_what_else_is_in_flight_changes_nothing(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Any number of slots, alone or together. A token may differ only where logits that are up to 1e-4 apart would draw
    both."""
    policy = load(folders[kind], tmp_path)
    asked = requests(policy, 5)
    together = generate(policy, asked, SAMPLING)
    others = [generate(policy, asked, replace(SAMPLING, slots=slots)) for slots in (1, 2, 3, 7)]
    others.append([generate(policy, [request], SAMPLING)[0] for request in asked])
    for other in others:
        for request, one, two in zip(asked, together, other, strict=True):
            for sample, (a, b) in enumerate(zip(one, two, strict=True)):
                if a.tokens != b.tokens:
                    assert is_close_call(policy, request, sample, a.tokens, b.tokens)


@torch.no_grad()
def is_close_call(policy: Policy, request: Request, sample: int, a: list[int], b: list[int]) -> bool:
    place = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    logits = policy.model(torch.tensor([request.prompt + a[:place]])).logits[:, -1]
    uniform = float(uniforms(sample_seeds(request.seed, [sample]), [place])[0])
    # A logit that moves by d moves a cumulative probability F by at most d F (1 - F).
    above = logits.double().softmax(-1).cumsum(-1)[0]
    low, high = sorted((a[place], b[place]))
    borders = above[low:high]
    return bool(((borders - uniform).abs() <= 1e-4 * borders * (1 - borders)).any())


def test_attention_in_chunks_is_left_to_generate(folders: dict[str, Path], tmp_path: Path) -> None:
    """Llama 4 attends within chunks of 8,192 positions, longer than the samples that a model is tried out with."""
    policy = load(folders["llama"], tmp_path)
    policy.inner.config.attention_chunk_size = 8192
    inspect_policy(policy)
    assert policy.layout_why_not == "LlamaForCausalLM attends in chunks, of which layouts know nothing"


@pytest.mark.parametrize("kinds", [None, ["sliding_attention", "full_attention"], ["full_attention"] * 2])
def test_a_window_that_attention_is_not_told_of_is_left_to_generate(
    folders: dict[str, Path], tmp_path: Path, kinds: list[str] | None
) -> None:
    """Phi-3.5-MoE puts its window into the mask, which layouts do not see."""
    policy = load(folders["llama"], tmp_path)
    policy.inner.config.sliding_window = 4096
    policy.inner.config.layer_types = kinds
    inspect_policy(policy)
    everywhere = kinds is not None and "sliding_attention" not in kinds
    assert policy.layout_why_not == (None if everywhere else "LlamaForCausalLM keeps its window from its attention")


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_to_what_lies_in_between_is_noticed_when_a_model_is_loaded(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    """A token sees all of its row up to itself, the other sample's part too, as in a model that ignores the layout."""
    policy = load(folders[kind], tmp_path, **of(folders[kind], dtype))
    assert policy.layout_why_not is None

    def everything_before(self: PackedLayout, layer: int, q: Any, k: Any, v: Any, *, scale: float, **_: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        q, k, v = q.to(v.dtype), k.to(v.dtype).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2)

    monkeypatch.setattr(PackedLayout, "attend", everything_before)
    inspect_policy(policy)
    assert policy.layout_why_not is not None
    assert policy.layout_why_not.endswith("gives other logits on a packed row")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layout_is_accepted_by_the_size_of_rounding_and_not_by_its_largest(dtype: torch.dtype) -> None:
    """Logits of 21 positions over Qwen2.5's vocabulary, rounded to `dtype` after 28 layers' worth of noise; then one
    position that saw another sample."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(21, 151_936, generator=generator)
    noise = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    rounded = (logits + noise * 3 * torch.randn(logits.shape, generator=generator)).to(dtype)
    assert _alike(rounded, logits.to(dtype))
    assert float((rounded.float() - logits).abs().max()) > 3 * noise * 3
    wrong = rounded.clone()
    wrong[13] = (0.8 * wrong[13].float() + 0.6 * wrong[12].float()).to(dtype)
    assert not _alike(wrong, logits.to(dtype))


def test_a_head_that_caps_its_logits_is_not_taken_for_one_product(folders: dict[str, Path], tmp_path: Path) -> None:
    assert load(folders["gemma2"], tmp_path).head is None
    assert load(folders["llama"], tmp_path).head is not None


def test_a_model_that_no_layout_fits_is_run_by_generate_and_in_padded_rows(tmp_path: Path) -> None:
    folder = tmp_path / "bloom"
    save_random_bloom(folder)
    policy = load(folder, tmp_path, backend={"attention": "eager"})
    assert policy.layout_why_not is not None
    assert "Bloom" in policy.layout_why_not
    assert policy.engine_for("auto") == "hf"
    with pytest.raises(Exception, match=r"rollout.engine: slots cannot run this model"):
        policy.engine_for("slots")
    asked = requests(policy, 2)
    group = generate(policy, asked, replace(SAMPLING, engine=policy.engine_for("auto")))[0]
    assert group[0].logprobs == pytest.approx(plain_logprobs(policy, asked[0].prompt, group[0].tokens), abs=1e-3)
    trainer = Trainer(policy, Learner())
    assert trainer.shape == "padded"
    report = trainer.train(
        [TrainingSample(asked[0].prompt, group[0].tokens, group[0].logprobs)], learning_rate=lambda _: 1e-3, seed=0
    )
    assert report.gap == pytest.approx(0.0, abs=1e-3)
