"""`python -m agent.raft.doctor_checks product|attention`: one measurement of `raft-agent doctor`, as one JSON object.

A process measures one thing under the variables that it was started with, because the libraries read them when they
are loaded, and because a back end that is set up wrong may end or hang it.

product: seconds of a square matrix product by arithmetic. attention: seconds of a forward and backward pass of one
implementation, whether output and gradients are finite, and how far they are from explicit scores in float32 on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agent.raft.bench_products import seconds_of
from agent.raft.device import choose_device

SIZES = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the product: large enough for the peak, and under a second for all repeats."""
REPEATS = 5
CHECKED = (2, 4, 192, 64)
"""Rows, heads, tokens and size of a head of the batch whose numbers are compared."""
TIMED = {"cuda": (4, 16, 2048, 64), "cpu": (2, 4, 256, 64)}
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Root-mean-square error over the root mean square of the value: some roundings of 2^-24 and 2^-9 each."""
MASKS = ("causal", "packed")
"""The causal flag, as for one prompt; a mask of its own, as for the packed rows of a training."""
Attention = Callable[[Tensor, Tensor, Tensor, str], Tensor]


def products(device: torch.device) -> dict[str, Any]:
    size = SIZES[device.type]
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, left, right)
        product()
        seconds[_name(dtype)] = min(seconds_of(product, device) for _ in range(REPEATS))
    return {"size": size, "seconds": seconds}


def attention(device: torch.device, implementation: str) -> dict[str, Any]:
    compute = sdpa if implementation == "sdpa" else eager
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    checked = {mask: check(compute, device, dtype, mask) for mask in MASKS}
    return {
        "implementation": implementation,
        "dtype": _name(dtype),
        "finite": all(found["finite"] for found in checked.values()),
        "error": max(found["error"] for found in checked.values()),
        "allowed": ALLOWED[dtype],
        "masks": checked,
        "shape": TIMED[device.type],
        "seconds": {mask: seconds_of_attention(compute, device, dtype, mask) for mask in MASKS},
    }


def check(compute: Attention, device: torch.device, dtype: torch.dtype, mask: str) -> dict[str, Any]:
    """Output and gradients of one batch against explicit scores in float32; `error` is the largest of the four."""
    made = _batch(CHECKED, torch.device("cpu"), torch.float32)
    narrow = [x.detach().to(device=device, dtype=dtype).requires_grad_() for x in made]
    # The reference computes on the rounded inputs, so that only the arithmetic differs.
    wide = [x.detach().float().cpu().requires_grad_() for x in narrow]
    ours, theirs = _passes(compute, narrow, mask), _passes(eager, wide, mask)
    finite = all(bool(x.isfinite().all()) for x in ours)
    errors = [_error(x.float().cpu(), y) for x, y in zip(ours, theirs, strict=True)]
    return {"finite": finite, "error": max(errors) if finite else None}


def _passes(compute: Attention, batch: list[Tensor], mask: str) -> list[Tensor]:
    """Output, and gradients of queries, keys and values for a loss in which every number counts."""
    q, k, v = batch
    out = compute(q, k, v, mask)
    out.float().square().sum().backward()
    return [out.detach(), *(x.grad for x in batch if x.grad is not None)]


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())


def seconds_of_attention(compute: Attention, device: torch.device, dtype: torch.dtype, mask: str) -> float:
    """Forward and backward, the fastest of some repeats."""
    batch = _batch(TIMED[device.type], device, dtype)
    _passes(compute, batch, mask)
    return min(seconds_of(lambda: _passes(compute, batch, mask), device) for _ in range(3))


def eager(q: Tensor, k: Tensor, v: Tensor, mask: str) -> Tensor:
    """Explicit scores, as transformers' eager attention and the packed layout compute them."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~visible(mask, q.shape[-2], q.device), torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: str) -> Tensor:
    if mask == "causal":
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible(mask, q.shape[-2], q.device))


def visible(mask: str, tokens: int, device: torch.device) -> Tensor:
    """(tokens, tokens), True where a query may look; `packed` are three samples in one row."""
    place = torch.arange(tokens, device=device)
    seen = place[:, None] >= place[None, :]
    if mask == "packed":
        sample = place * 3 // tokens
        seen = seen & (sample[:, None] == sample[None, :])
    return seen


def _batch(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(shape, generator=generator) for _ in range(3))
    return [x.to(device=device, dtype=dtype).requires_grad_() for x in made]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.raft.doctor_checks")
    parser.add_argument("what", choices=("product", "attention"))
    parser.add_argument("--implementation", choices=("eager", "sdpa"), default="sdpa")
    arguments = parser.parse_args()
    began = time.perf_counter()
    device, _ = choose_device()
    found = products(device) if arguments.what == "product" else attention(device, arguments.implementation)
    print(json.dumps({"device": device.type, **found, "took_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
