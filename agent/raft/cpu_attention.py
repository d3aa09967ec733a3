"""Attention of padded segments on a CPU: torch's own kernel, with a faster gradient for short queries in 16 bits.

torch 2.13's attention kernel for CPUs reads grouped keys without repeating them, and its gradient is fast in float32.
In bfloat16 the gradient takes 3 to 5 times as long as the five matrix products that it consists of, where queries are
short: 60 segments of 26 queries and 75 keys, 9 heads of 64 on two cores with AMX, 61 against 23 ms; 24 of 128 and 256,
118 against 61; from about 256 queries on the kernel wins. So there the gradient is worked out here, from scores that
are computed again, a few segments at a time: nothing more is kept from the forward pass. Scores are rounded to the
narrow type, as transformers' eager attention does; the error of the gradient is that of eager's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SHORT = 256
"""Queries of a segment up to which the gradient by products is the faster one."""
SCORES_AT_ONCE = 1 << 21
"""Scores of the segments that are worked on together; measured flat from 2**20 to 2**22."""


def cpu_attention(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor, scale: float) -> Tensor:
    """(S, heads, Q, D) of queries (S, heads, Q, D) and keys and values (S, kv_heads, K, D).

    `visible` (S, 1, Q, K) is True where a query may look, somewhere for every query.
    """
    if q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] <= SHORT and torch.is_grad_enabled():
        out: Tensor = _ShortQueries.apply(q, k, v, visible, scale)
        return out
    return _kernel(q, k, v, visible, scale)


def _kernel(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=grouped)


class _ShortQueries(torch.autograd.Function):
    """softmax(scale q k') v; the gradient as in FlashAttention-2 (arXiv 2307.08691, algorithm 2), without its tiles."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
        out = _kernel(q, k, v, visible, scale)
        ctx.save_for_backward(q, k, v, visible, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, visible, out = ctx.saved_tensors
        segments, heads, queries, size = q.shape
        kv_heads, keys = k.shape[1:3]
        # A row for each query of each head that shares its keys: products then need no repeated keys.
        rows = heads // kv_heads * queries
        shrink = (grad * out).sum(-1, keepdim=True)
        by_query, by_key, by_value = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        few = max(1, SCORES_AT_ONCE // (heads * queries * keys))
        for start in range(0, segments, few):
            part = slice(start, start + few)
            count = len(q[part]) * kv_heads
            q_, grad_, shrink_ = (x[part].reshape(count, rows, -1) for x in (q, grad, shrink))
            k_, v_ = (x[part].reshape(count, keys, size) for x in (k, v))
            scores = torch.bmm(q_, k_.transpose(1, 2)).mul_(ctx.scale)
            scores.view(-1, heads, queries, keys).masked_fill_(~visible[part], float("-inf"))
            weights = scores.softmax(-1)
            by_score = torch.bmm(grad_, v_.transpose(1, 2)).sub_(shrink_).mul_(weights).mul_(ctx.scale)
            torch.bmm(weights.transpose(1, 2), grad_, out=by_value[part].view(count, keys, size))
            torch.bmm(by_score, k_, out=by_query[part].view(count, rows, size))
            torch.bmm(by_score.transpose(1, 2), q_, out=by_key[part].view(count, keys, size))
        return by_query, by_key, by_value, None, None
