"""Weights as sampling wants them: adapters merged in and, on a CPU, laid out for oneDNN.

While a rollout lasts its weights stay as they are, so what every decode step would do with them again is done once,
on copies. The product with an adapted layer is one instead of three. On a CPU, a product of few rows with a weight as
it lies in memory spends 7 to 30% of its time on rearranging the weight; the copy has been rearranged
(`agent.raft.cpu_products`).

The weights themselves are never touched, and adapters are merged in float32 only. In a narrow type a weight plus an
update of less than half its last place is the weight again: what the first steps have learned would be lost to the
sampler, and merging in place and taking the sum apart again would not give back the same numbers.

It does not: handle layers of other classes than nn.Linear and peft's adapters around one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.raft.cpu_products import Linear, packed_linear, works
from agent.recipe.memory import SAMPLING_WEIGHTS_SHARE

WORTH_STEPS = 16
"""Decode steps from which on copies pay: making them costs about as much as four steps save at 24 rows."""


@contextmanager
def sampling_weights(
    model: nn.Module, *, dtype: torch.dtype, rows: int, steps: int, free: float, merge: bool = True
) -> Iterator[None]:
    """Linear layers compute in `dtype` with copies of their weights until the context ends.

    `rows` and `steps`: about how many rows a product will have, and how many steps there will be at most. `free`:
    bytes of memory that can be taken. `merge` adapters, in float32. Does nothing where it would not pay, not fit, or
    not be right. The weights must not change inside.
    """
    layers = _layers(model, merge=merge and dtype == torch.float32)
    pack = all(layer.weight.device.type == "cpu" for layer in layers) and works(dtype)
    chosen = [layer for layer in layers if pack or layer.adapters]
    size = sum(layer.weight.numel() for layer in chosen) * dtype.itemsize
    if steps < WORTH_STEPS or size > SAMPLING_WEIGHTS_SHARE * free:
        chosen = []
    try:
        for layer in chosen:
            weight = layer.merged(dtype)
            bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            linear = packed_linear(weight, bias, rows=rows) if pack else _plain_linear(weight, bias)
            vars(layer.module)["forward"] = linear
        yield
    finally:
        for layer in chosen:
            vars(layer.module).pop("forward", None)


@dataclass(frozen=True)
class _Layer:
    """A module that computes a linear map, and of what."""

    module: nn.Module
    weight: Tensor
    """(outputs, inputs)"""
    bias: Tensor | None
    adapters: tuple[str, ...] = ()
    """Names of those in `module` that are added to the weight."""

    def merged(self, dtype: torch.dtype) -> Tensor:
        """The weight with its adapters, summed in float32."""
        weight = self.weight.detach()
        if not self.adapters:
            return weight.to(dtype)
        adapted: Any = self.module
        with torch.autocast(weight.device.type, enabled=False):
            deltas: list[Tensor] = [adapted.get_delta_weight(name).float() for name in self.adapters]
            return torch.stack([weight.float(), *deltas]).sum(0).to(dtype)


def _layers(model: nn.Module, *, merge: bool) -> list[_Layer]:
    """Layers to replace: those with adapters as a whole, others where they are plain."""
    found: list[_Layer] = []
    inside: set[int] = set()
    for module in model.modules():
        if "forward" in vars(module) or id(module) in inside:
            continue
        names = _mergeable(module) if merge else ()
        if names:
            base: Any = module.base_layer
            found.append(_Layer(module, base.weight, base.bias, names))
            inside.update(map(id, module.modules()))
        elif type(module) is nn.Linear:
            found.append(_Layer(module, module.weight, module.bias))
    return found


def _mergeable(module: Any) -> tuple[str, ...]:
    """Names of the adapters of a peft layer whose product is the base's plus a low-rank one; empty for all else."""
    if not hasattr(module, "get_delta_weight") or type(getattr(module, "base_layer", None)) is not nn.Linear:
        return ()
    names = tuple(name for name in module.active_adapters if name in module.lora_A)
    plain = not any(name in module.lora_variant or module.lora_bias.get(name) for name in names)
    return names if plain and not module.disable_adapters and not module.merged else ()


def _plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    return lambda x: functional.linear(x.to(weight.dtype), weight, bias)
