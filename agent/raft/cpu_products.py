"""Matrix products on a CPU by oneDNN, for weights that stay and for weights that learn.

torch hands float32 products to MKL, which leaves half of the vector unit of an AMD processor unused: 198 GFLOP/s on
two cores of a Zen 5 EPYC where oneDNN reaches 436 (`raft-agent bench machine`, docs/benchmarks.md). Which is faster
is measured when a training begins, and kept with its state: the two round otherwise, and a training that goes on after
a kill has to go on as it began. bfloat16 goes to oneDNN in torch itself. The operators are those that TorchInductor
emits (torch._inductor.mkldnn_lowerings). They are not part of torch's documented interface: where they are missing, or
disagree with the plain product, everything computes as it always does.

It does not: handle layers of other classes than nn.Linear, or batched products (attention).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]
Products = Literal["torch", "onednn"]
"""Whose products a training takes."""
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x (..., inputs) times the transpose of a weight (outputs, inputs), plus a bias or None."""
WORTH = 1.3
"""Times faster that oneDNN has to be: well above what a busy machine does to the trial, so that two trainings with one
recipe and seed decide alike, and round alike."""
TRIAL = (256, 512, 512)
"""Rows, inputs and outputs of the trial: half a millisecond."""
TRIALS = 7


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's `linear` by oneDNN, without gradient, of tensors on a CPU that are dense or the transpose of such."""
    operators: Any = torch.ops.mkldnn
    out: Tensor = operators._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def packed_linear(weight: Tensor, bias: Tensor | None, *, rows: int) -> Linear:
    """The linear map of `weight` (outputs, inputs) in its type, on a CPU; fastest at about `rows` rows."""
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight.contiguous(), rows)
    return lambda x: onednn_linear(x.to(weight.dtype), packed, bias)


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products can be used, and are right, by small ones with each of three row counts."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(count, 64, generator=generator).to(dtype) for count in (80, 33))
    bias = torch.randn(80, generator=generator).to(dtype)
    try:
        ways: list[Linear] = [packed_linear(weight, bias, rows=8), lambda x: onednn_linear(x, weight, bias)]
        found = [torch.cat([way(x[:rows]) for rows in (1, 8, 33)]) for way in ways]
        transposed = onednn_linear(x.t(), weight[:33].t())
    except (RuntimeError, AttributeError, TypeError):  # gone, not built in, or of another signature
        return False
    wanted = torch.cat([functional.linear(x[:rows].float(), weight.float(), bias.float()) for rows in (1, 8, 33)])
    # Of sums of 64 products of size 1: what rounding to the type, and nothing else, explains.
    bound = 64 * torch.finfo(dtype).eps
    errors = [found_so - wanted for found_so in found] + [transposed - x.t().float() @ weight[:33].float()]
    return all(bool(error.float().abs().max() <= bound) for error in errors)


@cache
def faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN is so much faster than torch's own products here that they are replaced; only in float32."""
    if dtype != torch.float32 or not works(dtype):
        return False
    rows, inputs, outputs = TRIAL
    x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    ways = partial(functional.linear, x, weight), partial(onednn_linear, x, weight)
    return worth([[_seconds(way) for way in ways] for _ in range(1 + TRIALS)][1:])


def worth(seconds: list[list[float]]) -> bool:
    """By seconds of torch's own products and oneDNN's, taken in turns: the best of each count."""
    plain, onednn = (min(column) for column in zip(*seconds, strict=True))
    return bool(plain > WORTH * onednn)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# Training ------------------------------------------------------------------------------------------------------


def choose_products(device: torch.device, dtype: torch.dtype) -> Products:
    """The faster ones for a training on `device` that computes in `dtype`."""
    return "onednn" if device.type == "cpu" and faster(dtype) else "torch"


def possible_products(wanted: Products, device: torch.device, dtype: torch.dtype) -> Products:
    """`wanted`, but torch's own where oneDNN's cannot be used: a training may go on on another machine."""
    possible = device.type == "cpu" and dtype == torch.float32 and works(dtype)
    return wanted if possible else "torch"


def multiply(products: Products) -> Multiply:
    """The product of two tensors, without gradient."""
    return onednn_linear if products == "onednn" else functional.linear


@contextmanager
def training_products(model: nn.Module, products: Products) -> Iterator[None]:
    """Until the context ends, linear layers of a model take these products, forward and backward. oneDNN's are for
    models for which `possible_products` says so."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    chosen = layers if products == "onednn" else []
    try:
        for layer in chosen:
            vars(layer)["forward"] = partial(_through, layer)
        yield
    finally:
        for layer in chosen:
            vars(layer).pop("forward", None)


def _through(layer: nn.Linear, x: Tensor) -> Tensor:
    out: Tensor = _Linear.apply(x.contiguous(), layer.weight, layer.bias)
    return out


class _Linear(torch.autograd.Function):
    """x (..., inputs) -> (..., outputs), and the three gradients; operands of oneDNN are dense or transposed ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Where the weight is frozen its input is not needed again.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        of_out = gradients[0].contiguous()  # a sum hands down one number with strides of zero
        of_rows = of_out.flatten(0, -2)
        return (
            onednn_linear(of_out, weight.t()) if wants_x else None,
            onednn_linear(of_rows.t(), x.flatten(0, -2).t()) if wants_weight else None,
            of_rows.sum(0) if wants_bias else None,
        )
