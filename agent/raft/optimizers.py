"""The optimizer that lives across cycles: AdamW, SGD, Adafactor.

AdamW and SGD are written out here in public tensor operations because `torch.optim` imports the compiler (1.3 s
of a start that a short experiment pays every time). A test holds AdamW to `torch.optim.AdamW`. A model that needs
transformers has imported all that anyway, and takes torch's fused AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from agent.recipe.schema import Learner


class Optimizer(Protocol):
    param_groups: list[dict[str, Any]]

    def step(self, lr: float) -> None:
        """One update with the gradients that are there; parameters without one are left alone."""

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_optimizer(learner: Learner, parameters: Iterable[torch.nn.Parameter], *, fused: bool = False) -> Optimizer:
    """`fused`: torch's own AdamW, which reads and writes each number once."""
    wanted = [p for p in parameters if p.requires_grad]
    match learner.optimizer:
        case "adamw" if fused:
            return FusedAdamW(wanted, beta2=learner.beta2, weight_decay=learner.weight_decay)
        case "adamw":
            return AdamW(wanted, beta2=learner.beta2, weight_decay=learner.weight_decay)
        case "sgd":
            return SGD(wanted, weight_decay=learner.weight_decay)
        case "adafactor":
            return Adafactor(wanted, weight_decay=learner.weight_decay)


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101), beta1 0.9, epsilon 1e-8. Moments are float32."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, beta2: float, weight_decay: float, beta1: float = 0.9):
        self.param_groups: list[dict[str, Any]] = [{"params": parameters}]
        self.parameters = parameters
        self.beta1, self.beta2, self.weight_decay, self.epsilon = beta1, beta2, weight_decay, 1e-8
        self.steps = 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        rate = lr / (1 - self.beta1**self.steps)
        correction = math.sqrt(1 - self.beta2**self.steps)
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            if self.weight_decay:
                p.mul_(1 - lr * self.weight_decay)
            m.lerp_(p.grad, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(p.grad, p.grad, value=1 - self.beta2)
            p.addcdiv_(m, (v.sqrt() / correction).add_(self.epsilon), value=-rate)

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "first": self.first, "second": self.second}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        _copy_into(self.first, state["first"])
        _copy_into(self.second, state["second"])


class Wrapped:
    """An optimizer of `torch.optim` with the step's learning rate set from outside."""

    def __init__(self, inner: torch.optim.Optimizer):
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()

    def zero_grad(self) -> None:
        self.inner.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.inner.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class FusedAdamW(Wrapped):
    """`torch.optim.AdamW` in one pass over memory: with 135M weights the step takes a quarter of the time."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, beta2: float, weight_decay: float):
        super().__init__(
            torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
        )


class SGD:
    """Plain gradient descent with decoupled weight decay, no momentum: no memory but the gradients."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, weight_decay: float):
        self.param_groups: list[dict[str, Any]] = [{"params": parameters}]
        self.parameters, self.weight_decay = parameters, weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for p in self.parameters:
            if p.grad is None:
                continue
            if self.weight_decay:
                p.mul_(1 - lr * self.weight_decay)
            p.add_(p.grad, alpha=-lr)

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Adafactor(Wrapped):
    """`torch.optim.Adafactor` (arXiv 1804.04235)."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, weight_decay: float):
        super().__init__(torch.optim.Adafactor(parameters, lr=1e-3, weight_decay=weight_decay))


def _copy_into(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
