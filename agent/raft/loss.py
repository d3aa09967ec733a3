"""The objective of a token, and the head's part of it without ever holding all logits.

With A = +1 for a kept sample and -1 for a failure (reinforce_rej), and r = exp(logp - logp of the sampler), both at
temperature 1:

    raft            -logp
    raft++          -min(r A, clip(r, 1 - c, 1 + c) A), the PPO term on positives (arXiv 2504.11343)
    reinforce_rej   the same, on positives and negatives of prompts that have both

The head's logits are computed for some hundred tokens at a time, and with them at once what their gradient brings to
hidden states and weights: three matrix products over memory that is used again, where plain autograd keeps (tokens,
vocabulary) several times. The idea is Liger's fused linear cross-entropy (arXiv 2410.10989, section 3.2), here for any
objective of a token's log-probability. Between the products a CPU takes a few rows at a time, which stay in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agent.raft.cpu_products import Products, multiply
from agent.recipe.memory import loss_rows
from agent.recipe.schema import Learner

CACHED_BYTES = 1 << 22
"""Of float32 logits that a CPU works on between two products."""


@dataclass(frozen=True)
class Targets:
    """What the loss needs to know of each completion token, (N,) each."""

    token: Tensor
    sampled_logprob: Tensor
    sign: Tensor

    def __len__(self) -> int:
        return len(self.token)

    def part(self, start: int, end: int) -> Targets:
        return Targets(self.token[start:end], self.sampled_logprob[start:end], self.sign[start:end])


@dataclass
class TokenLoss:
    """Results of one microbatch: the sum of the objective, and by token (N,), without gradient."""

    objective: Tensor
    logprob: Tensor
    clipped: Tensor = field(repr=False)


def objective(logprob: Tensor, targets: Targets, learner: Learner) -> tuple[Tensor, Tensor]:
    """The loss of each token and whether its gradient is stopped by the clip, (N,) each."""
    sign = targets.sign
    if learner.algorithm == "raft":
        return -logprob, torch.zeros_like(sign, dtype=torch.bool)
    ratio = (logprob - targets.sampled_logprob).exp()
    bounded = ratio.clamp(1 - learner.clip_range, 1 + learner.clip_range)
    free, clipped = ratio * sign, bounded * sign
    return -torch.minimum(free, clipped), clipped < free


def loss_of_logits(logits: Tensor, targets: Targets, learner: Learner) -> TokenLoss:
    """By plain autograd, from logits (N, V)."""
    wanted = logits.float()
    logprob = wanted.gather(1, targets.token[:, None])[:, 0] - wanted.logsumexp(-1)
    value, clipped = objective(logprob, targets, learner)
    return TokenLoss(value.sum(), logprob.detach(), clipped.detach())


def loss_of_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Targets,
    learner: Learner,
    *,
    products: Products = "torch",
) -> TokenLoss:
    """By chunks, from hidden states (N, hidden) and the head's weight (V, hidden).

    Gradients are those of an objective with factor one: scale the result (as a mean or by accumulation), but do not
    rely on it under float16, whose small gradients would be lost before the scaling.
    """
    value, logprob, clipped = _ChunkedHead.apply(hidden, weight, bias, targets, learner, products)
    return TokenLoss(value, logprob, clipped)


class _ChunkedHead(torch.autograd.Function):
    """(sum of the objective, log-probabilities, clipped); the gradients are computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Targets,
        learner: Learner,
        products: Products,
    ) -> tuple[Tensor, Tensor, Tensor]:
        linear = multiply(products)
        narrow = _autocast_type(hidden)
        narrow_weight = weight.to(narrow)
        narrow_bias = None if bias is None else bias.to(narrow)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        to_hidden = torch.empty_like(hidden)
        to_weight: Tensor | None = None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        together = loss_rows(len(hidden), len(weight))
        for start in range(0, len(hidden), together):
            rows = slice(start, start + together)
            chunk = hidden[rows].to(narrow)
            slopes = linear(chunk, narrow_weight, narrow_bias)  # so far the logits
            parts.append(_slopes_(slopes, targets.part(start, start + together), learner))
            to_hidden[rows] = linear(slopes, narrow_weight.t(), None)
            if ctx.needs_input_grad[1]:
                to_weight = _add_product(to_weight, slopes, chunk)
            if to_bias is not None:
                to_bias += slopes.sum(0, dtype=torch.float32)
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        values, logprobs, clipped = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.mark_non_differentiable(logprobs, clipped)
        return values.sum(), logprobs, clipped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        scaled = [None if saved is None else saved.mul_(factor.to(saved.dtype)) for saved in ctx.saved_tensors]
        return scaled[0], scaled[1], scaled[2], None, None, None


def _slopes_(logits: Tensor, targets: Targets, learner: Learner) -> tuple[Tensor, Tensor, Tensor]:
    """Objective, log-probability and clipped, (n,) each; `logits` (n, V) become d objective / d logits.

    That is slope * (one-hot - softmax), with slope = d objective / d log-probability. It is worked out in float32.
    """
    rows = max(1, CACHED_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    narrow = logits.dtype != torch.float32
    wide = logits.new_empty((min(rows, len(logits)), logits.shape[1]), dtype=torch.float32) if narrow else None
    parts = []
    for start in range(0, len(logits), rows):
        these, wanted = logits[start : start + rows], targets.part(start, start + rows)
        work = these if wide is None else wide[: len(these)].copy_(these)
        token = wanted.token[:, None]
        work -= work.amax(-1, keepdim=True)
        of_token = work.gather(1, token)
        work.exp_()
        total = work.sum(-1, keepdim=True)
        logprob = (of_token - total.log())[:, 0]
        value, clipped, slope = _slope(logprob, wanted, learner)
        parts.append((value, logprob, clipped))
        work *= -slope[:, None] / total
        work.scatter_add_(1, token, slope[:, None])
        if wide is not None:
            these.copy_(work)
    values, logprobs, clipped = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, logprobs, clipped


def _slope(logprob: Tensor, targets: Targets, learner: Learner) -> tuple[Tensor, Tensor, Tensor]:
    """Objective, clipped, and d objective / d log-probability, (n,) each."""
    with torch.enable_grad():
        leaf = logprob.detach().requires_grad_()
        value, clipped = objective(leaf, targets, learner)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), clipped, slope


def _add_product(total: Tensor | None, slopes: Tensor, chunk: Tensor) -> Tensor:
    """total (V, hidden) + slopes^T (V, n) @ chunk (n, hidden), in float32; None is zero."""
    if total is not None and slopes.dtype == total.dtype:
        return total.addmm_(slopes.t(), chunk)
    product = slopes.t() @ chunk
    return product.float() if total is None else total.add_(product)


def _autocast_type(x: Tensor) -> torch.dtype:
    """The arithmetic of the matrix products: autocast's where it is on. (Inside a Function it is not applied.)"""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
