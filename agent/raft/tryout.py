"""What a model that was just loaded can do, found out by trying: packed rows with a layout, its head alone, its cache.

Two short samples with a common beginning are run one by one through the model as it is, then as one packed row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.errors import Unsupported
from agent.raft.attention import PackedLayout, SegmentTree, register
from agent.raft.policy import Head, Policy

INSPECTED_TOKENS = 12
"""Length of the two short samples."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Differences of logits that arithmetic alone explains: at the worst position, root of the mean square over the
vocabulary, in standard deviations of the logits. The largest single difference would grow with the vocabulary."""


@torch.no_grad()
def inspect_policy(policy: Policy) -> None:
    """Find out, by trying, whether layouts work on this model and whether its head is one matrix product.

    Two samples with a common beginning are run one by one through the model as it is, then as one packed row.
    """
    with policy.sampling():
        samples = _two_samples(policy)
        plain = [policy.inner(torch.tensor([ids], device=policy.device)).logits[0] for ids in samples]
        policy.layout_why_not = _try_layout(policy, samples, torch.cat(plain))
        policy.cache_bytes = policy.cache_bytes or _try_cache(policy, samples[0])
        policy.head = _try_head(policy, samples[0], plain[0])


def _try_layout(policy: Policy, samples: list[list[int]], plain: Tensor) -> str | None:
    """Why layouts do not work on this model; None where they do, and then `cache_bytes` is known too."""
    name = type(policy.inner).__name__
    if getattr(policy.config, "attention_chunk_size", None):
        return f"{name} attends in chunks, of which layouts know nothing"
    tree, layout = _as_tree(samples, policy)
    try:
        logits = policy.forward(tree.ids(), tree.positions(), layout)
    except torch.OutOfMemoryError:
        raise
    except (Unsupported, TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        return f"{name}: {(str(error) or type(error).__name__).splitlines()[0]}"
    finally:
        policy.attend_by(policy.attention)
    if not layout.seen:
        return f"{name} does not let its attention be replaced"
    if _has_window(policy.config) and not layout.windowed:
        return f"{name} keeps its window from its attention"  # and the samples here are too short to show one
    if not _alike(logits[tree.path(1) + tree.path(2)], plain):
        return f"{name} gives other logits on a packed row"
    policy.cache_bytes = layout.seen // tree.size * policy.compute.itemsize
    return None


def _try_cache(policy: Policy, sample: list[int]) -> int:
    """Bytes that `generate` keeps of a token: all keys and values, by the model's own cache; 0 where it has none."""
    ids = torch.tensor([sample], device=policy.device)
    try:
        kept = policy.inner(ids, use_cache=True).past_key_values
        layers = [(layer.keys, layer.values) for layer in kept.layers]
        size: int = sum(part.numel() * part.element_size() for layer in layers for part in layer)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError):  # a state instead of keys and values
        return 0
    return size // len(sample)


def _has_window(config: Any) -> bool:
    """Whether some layer looks back a limited number of positions."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return bool(getattr(config, "sliding_window", None)) and any("sliding" in kind for kind in kinds)


def _try_head(policy: Policy, sample: list[int], plain: Tensor) -> Head | None:
    # A cap on logits (Gemma 2) hardly shows on the small logits of a trial, and does in training.
    capped = getattr(policy.config, "final_logit_softcapping", None) is not None
    head = None if capped else _head_of(policy.inner)
    if head is None:
        return None
    hidden = head.trunk(input_ids=torch.tensor([sample], device=policy.device)).last_hidden_state[0]
    return head if _alike(functional.linear(hidden, head.weight, head.bias), plain) else None


def _two_samples(policy: Policy) -> list[list[int]]:
    size = int(policy.inner.get_output_embeddings().weight.shape[0])
    ids = [(7 * i * i + 3 * i + 1) % size for i in range(2 * INSPECTED_TOKENS)]
    half = INSPECTED_TOKENS // 2
    return [ids[:INSPECTED_TOKENS], ids[:half] + ids[INSPECTED_TOKENS : INSPECTED_TOKENS + half + 3]]


def _as_tree(samples: list[list[int]], policy: Policy) -> tuple[SegmentTree, _Weighing]:
    half = INSPECTED_TOKENS // 2
    tree = SegmentTree()
    root = tree.add(samples[0][:half])
    for ids in samples:
        tree.add(ids[half:], root)
    if not policy.native:
        register()
    return tree, _Weighing(tree, device=policy.device, eager=policy.eager)


class _Weighing(PackedLayout):
    """Counts the numbers in the keys and values that it is given, and notes whether a layer names a window."""

    seen = 0
    windowed = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        self.windowed |= how["window"] is not None
        if k.shape != v.shape:
            raise Unsupported(f"keys have {k.shape[-1]} numbers a head and values {v.shape[-1]}")
        self.seen += k.numel() + v.numel()
        return super().attend(layer, q, k, v, **how)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two computations of the same logits (N, V) agree."""
    difference = float((one.float() - other.float()).square().mean(-1).sqrt().max())
    return difference <= TOLERANCE[one.dtype] * max(float(other.float().std()), 1e-3)


def _head_of(model: Any) -> Head | None:
    trunk = model.get_decoder() if hasattr(model, "get_decoder") else None
    module = model.get_output_embeddings()
    if trunk is None or trunk is model or not isinstance(module, nn.Linear | nn.Embedding):
        return None
    if not module.weight.is_floating_point():  # quantized: its product is not one with this tensor
        return None
    return Head(trunk, module.weight, getattr(module, "bias", None))
