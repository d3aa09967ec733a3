"""Weights laid out for oneDNN while a CPU samples.

A product of few rows with a weight as it lies in memory spends 7 to 30% of its time on rearranging the weight, in
every decode step again. While a rollout lasts, each linear layer computes with a copy that has been rearranged once,
by the operators that TorchInductor emits for the same purpose (torch._inductor.mkldnn_lowerings). They are not part
of torch's documented interface: where they are missing, or disagree with the plain product, layers stay as they are.

It does not: touch the weights themselves, or layers of other classes than nn.Linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SHARE_OF_FREE = 0.25
"""Most of the free memory that the copies may take."""
WORTH_STEPS = 16
"""Decode steps from which on rearranging pays: it costs about as much as four steps save at 24 rows."""


@contextmanager
def prepacked(model: nn.Module, *, dtype: torch.dtype, rows: int, steps: int, free: float) -> Iterator[None]:
    """Linear layers compute with copies of their weights, in `dtype`, until the context ends.

    `rows` and `steps`: about how many rows a product will have, and how many steps there will be at most. `free`:
    bytes of memory that can be taken. Does nothing where it would not pay, not fit, or not be right. The weights must
    not change inside.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    size = sum(layer.weight.numel() for layer in layers) * dtype.itemsize
    if not layers or steps < WORTH_STEPS or size > SHARE_OF_FREE * free or not works(dtype):
        yield
        return
    try:
        for layer in layers:
            vars(layer)["forward"] = packed_linear(layer.weight, layer.bias, dtype=dtype, rows=rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def packed_linear(weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, rows: int) -> Callable[[Tensor], Tensor]:
    """The linear map of `weight` (outputs, inputs), computed in `dtype`; fastest at about `rows` rows."""
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight.detach().to(dtype).contiguous(), rows)
    added = None if bias is None else bias.detach().to(dtype)

    def linear(x: Tensor) -> Tensor:
        out: Tensor = operators._linear_pointwise(x.to(dtype), packed, added, "none", [], "")
        return out

    return linear


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether the operators are there and right, by one small product with each of three row counts."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(count, 64, generator=generator).to(dtype) for count in (80, 33))
    bias = torch.randn(80, generator=generator).to(dtype)
    try:
        linear = packed_linear(weight, bias, dtype=dtype, rows=8)
        found = torch.cat([linear(x[:rows]) for rows in (1, 8, 33)])
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    wanted = torch.cat([functional.linear(x[:rows].float(), weight.float(), bias.float()) for rows in (1, 8, 33)])
    # Of sums of 64 products of size 1: what rounding to the type, and nothing else, explains.
    return bool((found.float() - wanted).abs().max() <= 64 * torch.finfo(dtype).eps)
