"""What a batch of samples says: the fields of a cycle row that need no training. Unknown is None, never 0.0."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.raft.rollout import Completion
from agent.raft.selection import Graded
from agent.tasks.tasks import Example
from agent.tasks.verifiers import Verdict


@dataclass
class Batch:
    """The samples of one cycle, by prompt and sample."""

    examples: list[Example]
    prompts: list[list[int]]
    completions: list[list[Completion]]
    dropped_prompts: int = 0
    verdicts: list[list[Verdict]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    generate_seconds: float = 0.0
    verify_seconds: float = 0.0
    temperature: float | None = None
    whole: bool = True
    """All of it was drawn now; of a cycle that an earlier start had begun, only the rest is."""

    @property
    def generated_tokens(self) -> int:
        return sum(len(c.tokens) for group in self.completions for c in group)

    def graded(self) -> list[list[Graded]]:
        return [
            [
                Graded(reward, verdict.passed, completion.finish == "length", tuple(completion.tokens))
                for completion, verdict, reward in zip(*group, strict=True)
            ]
            for group in zip(self.completions, self.verdicts, self.rewards, strict=True)
        ]


def batch_row(batch: Batch) -> dict[str, Any]:
    """Shares of samples and of prompts, means over samples; entropy is a mean over tokens."""
    completions = [completion for group in batch.completions for completion in group]
    verdicts = [verdict for group in batch.verdicts for verdict in group]
    rewards = [reward for group in batch.rewards for reward in group]
    passed = [[verdict.passed for verdict in group] for group in batch.verdicts]
    tokens = batch.generated_tokens
    seconds = batch.generate_seconds
    return {
        "temperature": batch.temperature,
        "samples": len(completions),
        "dropped_prompts": batch.dropped_prompts,
        "pass_rate": mean(verdict.passed for verdict in verdicts),
        "all_solved_share": mean(all(group) for group in passed),
        "all_failed_share": mean(not any(group) for group in passed),
        "zero_variance_share": mean(len(set(group)) == 1 for group in batch.rewards),
        "truncation_rate": mean(completion.finish == "length" for completion in completions),
        "format_rate": known_mean([verdict.formatted for verdict in verdicts]),
        "near_rate": mean(verdict.near for verdict in verdicts),
        "verify_fault_rate": mean(verdict.fault for verdict in verdicts),
        "entropy": mean(value for completion in completions for value in completion.entropies),
        "unique_share": mean(unique_share(group) for group in batch.completions),
        "reward_mean": mean(rewards),
        "reward_std": deviation(rewards),
        "completion_tokens_mean": mean(len(completion.tokens) for completion in completions),
        "prompt_tokens_mean": mean(len(prompt) for prompt in batch.prompts),
        "generate_tokens_per_s": tokens / seconds if seconds > 0 and tokens else None,
    }


def unique_share(group: Sequence[Completion]) -> float:
    return len({tuple(completion.tokens) for completion in group}) / len(group)


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean, exactly rounded; None of nothing."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean where every value is known; a mean over those that happen to be known would mislead."""
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of the values as they are (no sample correction)."""
    center = mean(values)
    if center is None:
        return None
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / len(values))


def device_memory() -> tuple[float, float, float | None] | None:
    """Allocated, reserved and free memory of the accelerator now, GiB; None without one.

    It never starts the accelerator, and never fails: a driver that cannot answer leaves `free` unknown.
    """
    import torch

    if not torch.cuda.is_initialized():
        return None
    try:
        free = torch.cuda.mem_get_info()[0] / 2**30
    except RuntimeError:
        free = None
    return torch.cuda.memory_allocated() / 2**30, torch.cuda.memory_reserved() / 2**30, free


def peak_memory_gb() -> float:
    """Most memory so far, GB: of the accelerator where there is one, else resident memory of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
