"""Copies of the weights for sampling compute what the model computes, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from random_models import save_random_model
from torch import Tensor, nn

from agent.raft import sampling_weights as module
from agent.raft.cpu_products import works
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.rollout import Request, generate
from agent.raft.sampling import Sampling
from agent.raft.sampling_weights import sampling_weights

PLENTY = 1e9
packs_bfloat16 = pytest.mark.skipif(
    not works(torch.bfloat16), reason="this processor has no packed products of bfloat16, so nothing is replaced"
)
DTYPES = ["float32", pytest.param("bfloat16", marks=packs_bfloat16)]
KINDS = ("llama", "qwen2", "gpt2")
IDS = torch.tensor([[5, 17, 42, 8, 90, 3]])


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Policy]:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_random_model(root / kind, kind=kind)

    def load(kind: str, **model: Any) -> Policy:
        recipe = small_recipe({"model": {"source": str(root / kind), **model}})
        policy = load_policy(recipe, cache=root, seed=0, beat=no_beat)
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:  # an adapter begins as zero
                nn.init.normal_(parameter, std=0.3)
        return policy

    return load


def replaced(policy: Policy) -> list[str]:
    return [name for name, m in policy.model.named_modules() if "forward" in vars(m)]


def logits(policy: Policy) -> Tensor:
    with policy.sampling():
        found: Tensor = policy.model(input_ids=IDS).logits
        return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_same(load: Callable[..., Policy], kind: str, dtype: str) -> None:
    policy = load(kind, dtype=dtype)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    plain = logits(policy)
    with sampling_weights(policy.model, dtype=policy.compute, rows=6, steps=64, free=PLENTY):
        # GPT-2's own layers are of another class: only its head is replaced.
        assert len(replaced(policy)) == (1 if kind == "gpt2" else 2 * 7 + 1)
        packed = logits(policy)
    scale = float(plain.float().std())
    assert float((packed - plain).abs().max()) < (1e-5 if dtype == "float32" else 0.1) * scale
    assert replaced(policy) == []
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    assert torch.equal(logits(policy), plain)


@packs_bfloat16
def test_in_a_narrow_type_adapters_stay_apart_since_merging_would_lose_them(load: Callable[..., Policy]) -> None:
    """After a few steps their product is below half the last place of most weights."""
    policy = load("llama", dtype="bfloat16", lora={"rank": 2, "alpha": 4, "targets": ["q_proj"]})
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=2e-4)
    for name, layer in policy.model.named_modules():
        if name.endswith("q_proj"):
            weight: Tensor = layer.base_layer.weight.detach()
            update = layer.get_delta_weight("default").detach()
            assert weight.dtype == torch.bfloat16
            assert float((update != 0).float().mean()) == 1
            assert float(((weight.float() + update.float()).bfloat16() != weight).float().mean()) < 0.2
    with policy.sampling_weights(rows=3, steps=64):
        names = replaced(policy)
    assert any(name.endswith("q_proj.base_layer") for name in names)
    assert not any(name.endswith("q_proj") for name in names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_merged_into_float32_copies(load: Callable[..., Policy], targets: Any, dtype: str) -> None:
    policy = load("llama", dtype=dtype, lora={"rank": 2, "alpha": 4, "targets": targets})
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    plain = logits(policy)
    with policy.model.disable_adapter():
        assert float((logits(policy) - plain).abs().max()) > 0.1  # they do something
    for merge in (True, False):
        with sampling_weights(policy.model, dtype=policy.compute, rows=6, steps=64, free=PLENTY, merge=merge):
            names = replaced(policy)
            merged = merge and dtype == "float32"
            assert any(name.endswith("down_proj") for name in names) is merged
            assert any(name.endswith("down_proj.base_layer") for name in names) is not merged
            found = logits(policy)
        assert float((found - plain).abs().max()) < (1e-4 if dtype == "float32" else 0.2) * float(plain.std())
        assert replaced(policy) == []
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


def test_adapters_are_merged_where_weights_cannot_be_laid_out(
    load: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "works", lambda dtype: False)
    policy = load("llama", lora={"rank": 2, "targets": ["q_proj"]})
    plain = logits(policy)
    with sampling_weights(policy.model, dtype=torch.float32, rows=6, steps=64, free=PLENTY):
        assert [name.split(".")[-1] for name in replaced(policy)] == ["q_proj", "q_proj"]
        torch.testing.assert_close(logits(policy), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("steps", "free"), [(4, PLENTY), (64, 1000.0)])
def test_nothing_is_copied_where_it_does_not_pay_or_fit(load: Callable[..., Policy], steps: int, free: float) -> None:
    policy = load("llama")
    with sampling_weights(policy.model, dtype=torch.float32, rows=6, steps=steps, free=free):
        assert replaced(policy) == []


def test_an_error_inside_leaves_nothing_behind(load: Callable[..., Policy]) -> None:
    policy = load("llama")
    with (
        pytest.raises(RuntimeError, match="boom"),
        sampling_weights(policy.model, dtype=torch.float32, rows=6, steps=64, free=PLENTY),
    ):
        raise RuntimeError("boom")
    assert replaced(policy) == []


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_a_rollout_with_copies_is_the_rollout_without(
    load: Callable[..., Policy], lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load("llama", lora=lora)
    asked = [Request([5, 6, 7, 8], 3, seed=1), Request([5, 6, 9], 3, seed=2)]
    sampling = Sampling(temperature=1.0, max_new_tokens=24, max_total=64)
    used: list[int] = []

    def watched(*arguments: Any, **keys: Any) -> Any:
        used.append(len(replaced(policy)))

    with_copies = generate(policy, asked, sampling, on_step=watched)
    assert min(used) == 2 * 7 + 1
    monkeypatch.setattr(module, "WORTH_STEPS", 1000)
    without = generate(policy, asked, sampling)
    for group, other in zip(with_copies, without, strict=True):
        for ours, theirs in zip(group, other, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
