"""One optimizer for the whole training: from chosen samples to updated weights.

The objective (`agent.raft.loss`) is summed over completion tokens and divided by the number of completion tokens of
the whole optimizer step, so that how samples are cut into microbatches changes nothing. Only the positions that
predict a completion token go through the language-model head (`agent.raft.microbatch` lays them out).

It does not: re-tokenize (ids are trained as they were sampled), see the reward, or use a reference model.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.errors import NumericError
from agent.raft.cpu_products import Products, choose_products, possible_products, training_products
from agent.raft.loss import TokenLoss, loss_of_hidden, loss_of_logits
from agent.raft.microbatch import Group, Microbatch, TrainingSample, choose_shape, collate, plan_steps
from agent.raft.optimizers import build_optimizer
from agent.raft.policy import Policy
from agent.recipe.schema import Learner

LOWEST_LOSS_SCALE = 1.0
OnStep = Callable[[], None]


@dataclass
class TrainReport:
    """What one cycle's training did. Sums are turned into the means of a cycle row by `row`."""

    steps: int = 0
    learning_rate: float | None = None
    loss_sum: float = 0.0
    nll_sum: float = 0.0
    tokens: int = 0
    clipped_tokens: int = 0
    clipped_steps: int = 0
    skipped_steps: int = 0
    grad_norm: float | None = None
    gap: float | None = None
    drift_sum: float = 0.0
    age_sum: float = 0.0
    samples: int = 0
    padding: int = 0
    forward_tokens: int = 0
    seconds: float = 0.0
    by_token: bool = False
    """The clip share counts tokens, not steps."""

    def row(self) -> dict[str, Any]:
        """Fields of a cycle row; None for what was not measured."""
        clipped = self.clipped_tokens / self.tokens if self.by_token and self.tokens else None
        if not self.by_token and self.steps:
            clipped = self.clipped_steps / self.steps
        return {
            "learning_rate": self.learning_rate,
            "loss": self.loss_sum / self.tokens if self.tokens else None,
            "nll": self.nll_sum / self.tokens if self.tokens else None,
            "grad_norm": self.grad_norm,
            "clip_share": clipped,
            "optimizer_steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "padding_share": self.padding / self.forward_tokens if self.forward_tokens else None,
            "logprob_gap": self.gap,
            "logprob_drift": self.drift_sum / self.tokens if self.tokens else None,
            "trajectory_age": self.age_sum / self.samples if self.samples else None,
            "trained_tokens": self.tokens,
        }


class Trainer:
    """Holds the optimizer; `train` is one cycle of updates."""

    def __init__(self, policy: Policy, learner: Learner, *, compile_step: bool = False):
        self.shape, self.shape_why = choose_shape(policy, learner, compile_step=compile_step)
        self.policy = policy
        self.learner = learner
        self.optimizer = build_optimizer(learner, policy.model.parameters(), fused=not policy.native)
        self.scaler = torch.amp.GradScaler(policy.device.type) if policy.compute == torch.float16 else None
        self.forward: Callable[..., Any] = torch.compile(policy.inner) if compile_step else policy.inner
        # The compiler has products of its own.
        self.products: Products = "torch" if compile_step else choose_products(policy.device, policy.compute)
        self.updates = 0
        self.updating = threading.Lock()
        """Held while weights change; who holds it may read or replace them from another thread."""

    def release(self) -> None:
        """Let go of the weights and the optimizer's moments."""
        del self.optimizer, self.forward

    def train(
        self,
        samples: Sequence[TrainingSample],
        *,
        learning_rate: Callable[[float], float],
        seed: int,
        on_step: OnStep = lambda: None,
    ) -> TrainReport:
        """`epochs_per_cycle` passes over the samples. `learning_rate` is asked with the share of the cycle done.

        Raises NumericError, before the weights are touched, where loss or gradients are not finite.
        """
        started = time.monotonic()
        report = TrainReport(by_token=self.learner.algorithm != "raft")
        steps = self._plan(samples, seed)
        torch.manual_seed(seed)
        self.policy.model.train()
        try:
            with training_products(self.policy.model, self.products):
                for place, step in enumerate(steps):
                    report.learning_rate = learning_rate(place / len(steps))
                    self._step(step, report, on_step)
        finally:
            # Also when `on_step` ends the training in the middle: an evaluation follows.
            self.optimizer.zero_grad()
            self.policy.model.eval()
            self.policy.attend_by(self.policy.attention)
        report.seconds = time.monotonic() - started
        return report

    def _plan(self, samples: Sequence[TrainingSample], seed: int) -> list[list[Group]]:
        """The optimizer steps of a cycle: those of each epoch, in an order of its own."""
        return [
            step
            for epoch in range(self.learner.epochs_per_cycle)
            for step in plan_steps(samples, self.learner, shape=self.shape, seed=f"train/{seed}/{epoch}")
        ]

    def _step(self, step: Sequence[Group], report: TrainReport, on_step: OnStep) -> None:
        """One optimizer step: its loss is a mean over all its completion tokens."""
        total = sum(len(sample.completion) for group in step for sample in group)
        gap = 0.0
        for group in step:
            batch = collate(group, shape=self.shape, policy=self.policy)
            with self.policy.autocast():
                result = self.token_loss(batch)
            loss = result.objective / total
            self._check_finite(loss.detach(), "loss", self.updates + 1)
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            on_step()
            with torch.no_grad():
                report.loss_sum += float(result.objective)
                report.nll_sum -= float(result.logprob.sum())
                report.clipped_tokens += int(result.clipped.sum())
                gap += float((result.logprob - batch.targets.sampled_logprob).abs().sum())
            report.padding += batch.padding
            report.forward_tokens += batch.forward_tokens
            report.samples += batch.samples
            report.age_sum += report.steps * batch.samples
        report.drift_sum += gap
        if report.gap is None:
            report.gap = gap / total
        report.tokens += total
        self._update(report)
        on_step()

    def _update(self, report: TrainReport) -> None:
        """Clip the gradients and step, unless they are not finite."""
        learning_rate = report.learning_rate
        assert learning_rate is not None
        if self.scaler:
            self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]  # ours is no subclass of torch's
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.trainable().values(), self.learner.max_grad_norm))
        if self.scaler and not math.isfinite(norm):
            self._shrink_loss_scale(report)
            return
        self._check_finite(norm, "gradient norm", self.updates + 1)
        with self.updating:
            self.optimizer.step(learning_rate)
        self.optimizer.zero_grad()
        if self.scaler:
            self.scaler.update()
        self.updates += 1
        report.steps += 1
        report.grad_norm = max(report.grad_norm or 0.0, norm)
        report.clipped_steps += norm > self.learner.max_grad_norm

    def _shrink_loss_scale(self, report: TrainReport) -> None:
        """float16 overflowed: skip the step with half the loss scale, as long as there is scale to give."""
        assert self.scaler is not None
        self.optimizer.zero_grad()
        self.scaler.update(self.scaler.get_scale() / 2)
        report.skipped_steps += 1
        if self.scaler.get_scale() < LOWEST_LOSS_SCALE:
            raise NumericError(
                f"float16 gradients overflow at optimizer step {self.updates + 1} at every loss scale",
                hint="Set model.dtype to bfloat16 or float32, or lower learner.learning_rate.",
            )

    def _check_finite(self, value: Tensor | float, what: str, step: int) -> None:
        number = float(value)
        if math.isfinite(number):
            return
        self.optimizer.zero_grad()
        raise NumericError(
            f"{what} is {number} at optimizer step {step}; the weights are as they were before it",
            hint="Lower learner.learning_rate or learner.max_grad_norm, or set model.dtype to float32.",
        )

    def token_loss(self, batch: Microbatch) -> TokenLoss:
        """Objective and log-probability of each completion token."""
        head = self.policy.head
        arguments = self._arguments(batch)
        if head is not None and self.forward is self.policy.inner and self.scaler is None:
            hidden = head.trunk(**arguments).last_hidden_state.flatten(0, 1)
            wanted = hidden.index_select(0, batch.predicting)
            return loss_of_hidden(wanted, head.weight, head.bias, batch.targets, self.learner, products=self.products)
        if len(batch.ids) == 1 and "logits_to_keep" in self.policy.arguments:
            kept, place = batch.predicting.unique(return_inverse=True)
            logits = self.forward(**arguments, logits_to_keep=kept).logits[0, place]
        else:
            logits = self.forward(**arguments).logits.flatten(0, 1).index_select(0, batch.predicting)
        return loss_of_logits(logits, batch.targets, self.learner)

    def _arguments(self, batch: Microbatch) -> dict[str, Any]:
        if batch.layout is not None:
            return self.policy.laid_out(batch.ids, batch.positions, batch.layout)
        self.policy.attend_by(self.policy.attention)
        return self.policy.accepted(input_ids=batch.ids, position_ids=batch.positions, use_cache=False)

    def state_dict(self) -> dict[str, Any]:
        scaler = self.scaler.state_dict() if self.scaler else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "scaler": scaler,
            "products": self.products,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        # A state that does not say was saved by a version that knew torch's own only.
        self.products = possible_products(state.get("products", "torch"), self.policy.device, self.policy.compute)
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
