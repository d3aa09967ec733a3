"""Attention of padded segments on a CPU: torch's own kernel, with another gradient for short queries in 16 bits.

torch 2.13's attention kernel for CPUs reads grouped keys without repeating them, and its gradient is fast in float32.
In bfloat16 the gradient takes two to five times as long as the matrix products that it consists of, where queries are
short (9 heads of 64 on two cores with AMX, forward and backward: 60 segments of 26 queries and 75 keys 74 and 29 ms,
300 of 16 and 64 330 and 65 ms, 24 of 128 and 256 135 and 83 ms; at 256 queries the kernel wins). And it takes what a
query's scores move by from its rounded output, so that they do not sum to zero: where keys and values have a large
part in common, as under the biases of Qwen2.5, most of the query's gradient is rounding.

So there the gradient is worked out here, from scores that are computed again, a few segments at a time; nothing more
is kept from the forward pass. Scores and products are in the narrow type, softmax and its gradient in float32, as in
transformers' eager attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SHORT = 128
"""Queries of a segment up to which the gradient by products is the faster one."""
SCORES_AT_ONCE = 1 << 19
"""Scores of the segments that are worked on together; flat from 2**18 to 2**20, a fifth slower from 2**21 on."""


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
    """softmax(scale q k') v, and its gradient from scores that are computed again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, visible)
        ctx.scale = scale
        return _kernel(q, k, v, visible, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, visible = ctx.saved_tensors
        segments, heads, queries, size = q.shape
        kv_heads, keys = k.shape[1:3]
        # A row for each query of each head that shares its keys: products then need no repeated keys.
        rows = heads // kv_heads * queries
        by_query, by_key, by_value = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        few = max(1, SCORES_AT_ONCE // (heads * queries * keys))
        for start in range(0, segments, few):
            part = slice(start, start + few)
            count = len(q[part]) * kv_heads
            q_, grad_ = (x[part].reshape(count, rows, size) for x in (q, grad))
            k_, v_ = (x[part].reshape(count, keys, size) for x in (k, v))
            # Scaled before, not after: a product of large queries and keys may be more than float16 holds.
            q_ = q_ * ctx.scale
            scores = torch.bmm(q_, k_.transpose(1, 2))
            scores.view(-1, heads, queries, keys).masked_fill_(~visible[part], float("-inf"))
            exact = scores.softmax(-1, dtype=torch.float32)
            weights = exact.to(q.dtype)
            by_weight = torch.bmm(grad_, v_.transpose(1, 2)).float()
            by_score = torch._softmax_backward_data(by_weight, exact, -1, torch.float32).to(q.dtype)
            torch.bmm(weights.transpose(1, 2), grad_, out=by_value[part].view(count, keys, size))
            torch.bmm(by_score, k_, out=by_query[part].view(count, rows, size)).mul_(ctx.scale)
            torch.bmm(by_score.transpose(1, 2), q_, out=by_key[part].view(count, keys, size))
        return by_query, by_key, by_value, None, None
