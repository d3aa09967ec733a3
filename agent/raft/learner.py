"""One optimizer for the whole training: from chosen samples to updated weights.

The objective, with A = +1 for a kept sample and -1 for a failure (reinforce_rej), and r = exp(logp - logp of the
sampler), both at temperature 1:

    raft            -logp
    raft++          -min(r A, clip(r, 1 - c, 1 + c) A), the PPO term on positives (arXiv 2504.11343)
    reinforce_rej   the same, on positives and negatives of prompts that have both

summed over completion tokens and divided by the number of completion tokens of the whole optimizer step, so that
how samples are cut into microbatches changes nothing. Only the positions that predict a completion token go through
the language-model head. Padding is on the right, where causal attention never looks, so it needs no mask.

It does not: re-tokenize (ids are trained as they were sampled), see the reward, or use a reference model.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agent.errors import NumericError, Unsupported
from agent.raft.model import Policy
from agent.raft.optimizers import build_optimizer
from agent.recipe.schema import Learner

LOWEST_LOSS_SCALE = 1.0
OnStep = Callable[[], None]


@dataclass(frozen=True)
class TrainingSample:
    """A prompt and the completion to learn from (sign +1) or away from (-1), exactly as it was sampled."""

    prompt: list[int]
    completion: list[int]
    logprobs: list[float]
    """The sampler's, by completion token."""
    sign: int = 1

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Microbatch:
    """Rows (R, L) for one forward pass, and (N,) for each completion token where it is and what it should be."""

    ids: Tensor
    positions: Tensor
    head_positions: Tensor
    """Columns (K,) whose logits are needed."""
    row: Tensor
    column: Tensor
    """Place in `head_positions` of the logits that predict the token."""
    target: Tensor
    sampled_logprob: Tensor
    sign: Tensor
    samples: int
    real_tokens: int

    @property
    def size(self) -> int:
        return self.ids.numel()

    @property
    def completion_tokens(self) -> int:
        return self.target.numel()


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


@dataclass
class TokenLoss:
    """Per-token results of one microbatch, each (N,)."""

    objective: Tensor
    logprob: Tensor
    clipped: Tensor = field(repr=False)


class Trainer:
    """Holds the optimizer; `train` is one cycle of updates."""

    def __init__(self, policy: Policy, learner: Learner, *, compile_step: bool = False):
        if learner.packing and "position_ids" not in policy.arguments:
            raise Unsupported(
                f"learner.packing: {type(policy.model).__name__} takes no position ids to tell samples apart",
                hint="Set learner.packing to false.",
            )
        self.policy = policy
        self.learner = learner
        self.optimizer = build_optimizer(learner, policy.model.parameters())
        self.scaler = torch.amp.GradScaler(policy.device.type) if policy.compute == torch.float16 else None
        self.forward: Callable[..., Any] = torch.compile(policy.model) if compile_step else policy.model
        self.updates = 0
        self.updating = threading.Lock()
        """Held while weights change; who holds it may read or replace them from another thread."""

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
        for place, step in enumerate(steps):
            report.learning_rate = learning_rate(place / len(steps))
            self._step(step, report, on_step)
        self.policy.model.eval()
        report.seconds = time.monotonic() - started
        return report

    def _plan(self, samples: Sequence[TrainingSample], seed: int) -> list[list[Microbatch]]:
        """The optimizer steps of a cycle: microbatches in an order shuffled by epoch, `gradient_accumulation` each."""
        device = self.policy.device
        batches = [
            collate(group, packing=self.learner.packing, pad_id=self.policy.pad_id, device=device)
            for group in plan_microbatches(samples, self.learner)
        ]
        steps = []
        for epoch in range(self.learner.epochs_per_cycle):
            order = list(batches)
            random.Random(f"train/{seed}/{epoch}").shuffle(order)
            size = self.learner.gradient_accumulation
            steps += [order[start : start + size] for start in range(0, len(order), size)]
        return steps

    def _step(self, step: Sequence[Microbatch], report: TrainReport, on_step: OnStep) -> None:
        """One optimizer step: its loss is a mean over all its completion tokens."""
        total = sum(batch.completion_tokens for batch in step)
        gap = 0.0
        for batch in step:
            with self.policy.autocast():
                result = self.token_loss(batch)
            loss = result.objective.sum() / total
            self._check_finite(loss.detach(), "loss", self.updates + 1)
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            on_step()
            with torch.no_grad():
                report.loss_sum += float(result.objective.sum())
                report.nll_sum -= float(result.logprob.sum())
                report.clipped_tokens += int(result.clipped.sum())
                gap += float((result.logprob - batch.sampled_logprob).abs().sum())
            report.padding += batch.size - batch.real_tokens
            report.forward_tokens += batch.size
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
        arguments = self.policy.accepted(
            input_ids=batch.ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.head_positions,
        )
        logits = self.forward(**arguments).logits
        if "logits_to_keep" not in arguments:
            logits = logits[:, batch.head_positions]
        wanted = logits[batch.row, batch.column].float()  # (N, V)
        logprob = wanted.gather(1, batch.target[:, None])[:, 0] - wanted.logsumexp(-1)
        return objective(logprob, batch.sampled_logprob, batch.sign, self.learner)

    def state_dict(self) -> dict[str, Any]:
        scaler = self.scaler.state_dict() if self.scaler else None
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "scaler": scaler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def objective(logprob: Tensor, sampled_logprob: Tensor, sign: Tensor, learner: Learner) -> TokenLoss:
    """The loss of each token, (N,), as the module's docstring has it; `clipped` are those whose gradient is stopped."""
    if learner.algorithm == "raft":
        return TokenLoss(-logprob, logprob, torch.zeros_like(sign, dtype=torch.bool))
    ratio = (logprob - sampled_logprob).exp()
    bounded = ratio.clamp(1 - learner.clip_range, 1 + learner.clip_range)
    free, clipped = ratio * sign, bounded * sign
    return TokenLoss(-torch.minimum(free, clipped), logprob, clipped < free)


def plan_microbatches(samples: Sequence[TrainingSample], learner: Learner) -> list[list[TrainingSample]]:
    """Samples in groups of at most `microbatch_tokens`, padding included; a longer sample is a group of its own.

    Sorted by length, longest first, so that rows of a group are nearly equal and little is padded. Packed, the
    limit is the sum of the lengths.
    """
    ordered = sorted(samples, key=len, reverse=True)
    groups: list[list[TrainingSample]] = []
    used = 0
    for sample in ordered:
        longest = len(groups[-1][0]) if groups else 0
        after = used + len(sample) if learner.packing else longest * (len(groups[-1]) + 1 if groups else 0)
        if not groups or after > learner.microbatch_tokens:
            groups.append([])
            used = 0
        groups[-1].append(sample)
        used += len(sample)
    return groups


def collate(samples: Sequence[TrainingSample], *, packing: bool, pad_id: int, device: torch.device) -> Microbatch:
    """Rows padded on the right, or all samples in one row.

    In a packed row positions begin anew with each sample, which is how transformers (`masking_utils`) and
    `agent.raft.llama` know that it must not see the one before it.
    """
    rows: list[list[int]] = []
    positions: list[list[int]] = []
    places: list[tuple[int, int]] = []  # (row, column that predicts), one for each completion token
    for sample in samples:
        if not packing or not rows:
            rows.append([])
            positions.append([])
        start = len(rows[-1])
        rows[-1] += sample.prompt + sample.completion
        positions[-1] += range(len(sample))
        first = start + len(sample.prompt) - 1
        places += [(len(rows) - 1, first + i) for i in range(len(sample.completion))]
    longest = max(map(len, rows))
    ids = [row + [pad_id] * (longest - len(row)) for row in rows]
    # Padding goes on counting, so that it does not look like a new sample.
    numbered = [list(row) + list(range(len(row), longest)) for row in positions] if not packing else positions
    columns = sorted({column for _, column in places})
    index = {column: i for i, column in enumerate(columns)}

    def tensor(values: Sequence[Any], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Microbatch(
        ids=tensor(ids),
        positions=tensor(numbered),
        head_positions=tensor(columns),
        row=tensor([row for row, _ in places]),
        column=tensor([index[column] for _, column in places]),
        target=tensor([token for sample in samples for token in sample.completion]),
        sampled_logprob=tensor([value for sample in samples for value in sample.logprobs], torch.float32),
        sign=tensor([sample.sign for sample in samples for _ in sample.completion], torch.float32),
        samples=len(samples),
        real_tokens=sum(map(len, samples)),
    )
