from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from agent.raft import cpu_attention as module
from agent.raft.attention import PackedLayout, tree_of
from agent.raft.cpu_attention import cpu_attention

Parts = tuple[Tensor, Tensor, Tensor]


def random_parts(segments: int, queries: int, keys: int, *, kv_heads: int = 2, seed: int = 0) -> tuple[Parts, Tensor]:
    """q, k, v with four heads of queries, and a causal mask for queries that are the last of the keys."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(segments, 4, queries, 16, generator=generator)
    k, v = (torch.randn(segments, kv_heads, keys, 16, generator=generator) for _ in range(2))
    visible = torch.ones(segments, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    # Padded keys at the end of one segment, as in a bucket of unequal ones.
    visible[0, :, :, 1 + keys // 2 :] = False
    return (q, k, v), visible


def with_gradients(parts: Parts, visible: Tensor, dtype: torch.dtype, *, reference: bool = False) -> list[Tensor]:
    """The output and the gradients of q, k, v under a fixed gradient of the output; the reference as transformers'
    eager attention computes it, with a softmax in float32."""
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in parts]
    q, k, v = leaves
    if reference:
        groups = q.shape[1] // k.shape[1]
        k_, v_ = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = (q @ k_.transpose(2, 3) * 0.3).masked_fill(~visible, -torch.inf)
        out = scores.softmax(-1, dtype=max(dtype, torch.float32, key=lambda d: d.itemsize)).to(dtype) @ v_
    else:
        out = cpu_attention(q, k, v, visible=visible, scale=0.3)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(dtype))
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


def distances(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("segments", "queries", "keys"), [(5, 7, 12), (1, 1, 4), (3, 20, 20), (2, 300, 310)])
def test_output_and_gradients_are_those_of_the_formula(segments: int, queries: int, keys: int, kv_heads: int) -> None:
    parts, visible = random_parts(segments, queries, keys, kv_heads=kv_heads)
    exact = with_gradients(parts, visible, torch.float64, reference=True)
    assert max(distances(with_gradients(parts, visible, torch.float32), exact)) < 1e-5
    # What rounding the inputs to 8 bits alone makes of the exact formula, and not much more.
    rounded: Parts = (parts[0].bfloat16(), parts[1].bfloat16(), parts[2].bfloat16())
    narrow = with_gradients(rounded, visible, torch.bfloat16)
    assert max(distances(narrow, with_gradients(rounded, visible, torch.float64, reference=True))) < 0.02


@pytest.mark.parametrize("common", [0.0, 10.0])
def test_its_rounding_is_that_of_eager_attention_in_the_same_type(common: float) -> None:
    """Also where keys and values have a large part in common, as under the biases of Qwen2.5."""
    (q, k, v), visible = random_parts(16, 24, 60)
    parts: Parts = (q.bfloat16(), (k + common).bfloat16(), (v + common).bfloat16())
    exact = with_gradients(parts, visible, torch.float64, reference=True)
    ours = distances(with_gradients(parts, visible, torch.bfloat16), exact)
    eager = distances(with_gradients(parts, visible, torch.bfloat16, reference=True), exact)
    assert all(own < 1.5 * other for own, other in zip(ours, eager, strict=True))


def test_long_queries_take_the_kernels_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, visible = random_parts(2, 24, 60)
    short = with_gradients(parts, visible, torch.bfloat16)
    monkeypatch.setattr(module, "SHORT", 23)
    long = with_gradients(parts, visible, torch.bfloat16)
    assert torch.equal(short[0], long[0])
    assert not torch.equal(short[1], long[1])


def test_segments_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, visible = random_parts(7, 9, 15)
    at_once = with_gradients(parts, visible, torch.bfloat16)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2 * 4 * 9 * 15)
    assert all(torch.equal(a, b) for a, b in zip(with_gradients(parts, visible, torch.bfloat16), at_once, strict=True))


def test_a_packed_row_is_narrowed_as_autocast_would() -> None:
    tree, _ = tree_of([[1, 2, 3], [1, 2, 3, 4, 5], [7, 8]])
    layout = PackedLayout(tree, device=torch.device("cpu"))
    q = torch.randn(1, 4, tree.size, 16, requires_grad=True)
    k, v = (torch.randn(1, 2, tree.size, 16) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        out = layout.attend(0, q, k, v, scale=0.25, window=None, softcap=None)
    exact = layout.attend(0, q, k, v, scale=0.25, window=None, softcap=None)
    assert (out.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    assert float((out - exact).detach().abs().max()) < 0.03
    out.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


def test_without_gradients_the_kernel_is_used_alone() -> None:
    parts, visible = random_parts(3, 5, 8, kv_heads=4)
    q, k, v = (x.bfloat16() for x in parts)
    with torch.no_grad():
        found = cpu_attention(q, k, v, visible=visible, scale=0.3)
    assert torch.equal(found, functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=0.3))
