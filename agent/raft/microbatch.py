"""Chosen samples as microbatches: which go together, and how they lie in the tensors of one forward pass.

Three shapes. `tree`: one row without padding in which samples share their prompt, kept apart by a layout
(`agent.raft.attention`); a prompt of several samples, and a beginning of several prompts, is computed once. `row`: one
row with each sample whole, kept apart by transformers' own variable-length attention (flash, flex), which knows them
by their positions. `padded`: a row a sample, of similar length, padded on the right, where causal attention never
looks, so that it needs no mask.

All give the same loss and the same gradient. It does not: choose samples, or know about rewards.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agent.raft.attention import PackedLayout, tree_of
from agent.raft.loss import Targets
from agent.raft.policy import Policy
from agent.recipe.schema import Learner

Shape = Literal["tree", "row", "padded"]
VARIABLE_LENGTH = {"flash_attention_2", "flex_attention"}
"""Attention implementations of transformers that keep the samples of a row apart without a mask of its size."""


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
    """Rows (R, L) for one forward pass, and what is to be predicted from which place of R * L."""

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    """(N,) places, in the rows laid end to end, whose logits predict a completion token."""
    targets: Targets
    layout: PackedLayout | None
    samples: int
    real_tokens: int
    """Prompt and completion tokens of all samples."""
    padding: int

    @property
    def forward_tokens(self) -> int:
        """Tokens that the forward pass runs over, padding included and what samples share once."""
        return self.ids.numel()

    @property
    def completion_tokens(self) -> int:
        return len(self.targets)


def choose_shape(policy: Policy, learner: Learner, *, compile_step: bool) -> tuple[Shape, str]:
    """The best shape that this model allows, and why it is that one."""
    if not learner.packing:
        return "padded", "learner.packing is false"
    if policy.attention in VARIABLE_LENGTH:
        if "position_ids" in policy.arguments:
            return "row", f"{policy.attention} keeps samples apart by their positions"
        return "padded", f"{type(policy.inner).__name__} takes no position ids to tell samples apart"
    if compile_step:
        return "padded", "a compiled step would be compiled anew for every packed row"
    if policy.layout_why_not is not None:
        return "padded", policy.layout_why_not
    return "tree", "samples of a prompt share it"


Group = list[TrainingSample]


def plan_steps(samples: Sequence[TrainingSample], learner: Learner, *, shape: Shape, seed: str) -> list[list[Group]]:
    """The optimizer steps of one pass over the samples, each as the groups that go through the model together.

    Prompts come in random order, samples of one prompt follow each other. There are as many steps as their tokens over
    `microbatch_tokens` x `gradient_accumulation`, rounded up, or fewer where samples are fewer; a group has at most
    `microbatch_tokens`, padding included, or a single sample that is longer. Steps are as even as samples allow: cut
    at the limit, what is left over would be a step of a few samples at the whole learning rate. How many steps there
    are does not depend on the shape, nor on how a step is cut into microbatches.
    """
    if not samples:
        return []
    ordered = _by_prompt(samples, seed)
    tokens = sum(map(len, ordered))
    steps = -(-tokens // (learner.microbatch_tokens * learner.gradient_accumulation))
    return [_microbatches(step, learner.microbatch_tokens, shape) for step in _evenly(ordered, steps, padded=False)]


def _microbatches(samples: Group, limit: int, shape: Shape) -> list[Group]:
    """Padded, samples are sorted by length, longest first, so that rows of a group are nearly equal."""
    padded = shape == "padded"
    ordered = sorted(samples, key=len, reverse=True) if padded else samples
    return _evenly(ordered, len(_filled(ordered, limit, padded=padded)), padded=padded)


def _evenly(ordered: Group, groups: int, *, padded: bool) -> list[Group]:
    """At most so many groups in the order given, the largest as small as can be."""
    most = len(ordered) * max(map(len, ordered))
    limit = bisect_left(range(most), True, key=lambda tokens: len(_filled(ordered, tokens, padded=padded)) <= groups)
    return _filled(ordered, limit, padded=padded)


def _filled(ordered: Group, limit: int, *, padded: bool) -> list[Group]:
    """Groups of at most `limit` tokens, each filled before the next begins; a longer sample is a group of its own."""
    groups: list[Group] = []
    used = 0
    for sample in ordered:
        after = len(groups[-1][0]) * (len(groups[-1]) + 1) if padded and groups else used + len(sample)
        if not groups or after > limit:
            groups.append([])
            used = 0
        groups[-1].append(sample)
        used += len(sample)
    return groups


def _by_prompt(samples: Sequence[TrainingSample], seed: str) -> Group:
    by_prompt: dict[tuple[int, ...], Group] = {}
    for sample in samples:
        by_prompt.setdefault(tuple(sample.prompt), []).append(sample)
    groups = list(by_prompt.values())
    random.Random(seed).shuffle(groups)
    return [sample for group in groups for sample in group]


def collate(samples: Sequence[TrainingSample], *, shape: Shape, policy: Policy) -> Microbatch:
    """The tensors of one forward pass."""
    if shape == "tree":
        return _as_tree(samples, policy)
    return _as_rows(samples, one_row=shape == "row", pad_id=policy.pad_id, device=policy.device)


def _as_tree(samples: Sequence[TrainingSample], policy: Policy) -> Microbatch:
    """The last completion token predicts nothing, so it is not computed: one token less a sample."""
    tree, prompts = tree_of([sample.prompt for sample in samples])
    predicting: list[int] = []
    for sample, prompt in zip(samples, prompts, strict=True):
        predicting.append(tree.segments[prompt].end - 1)
        if len(sample.completion) > 1:
            own = tree.segments[tree.add(sample.completion[:-1], prompt)]
            predicting += range(own.start, own.end)
    return Microbatch(
        ids=torch.tensor([tree.ids()], device=policy.device),
        positions=torch.tensor([tree.positions()], device=policy.device),
        predicting=torch.tensor(predicting, device=policy.device),
        targets=_targets(samples, policy.device),
        layout=PackedLayout(tree, device=policy.device, eager=policy.eager),
        samples=len(samples),
        real_tokens=sum(map(len, samples)),
        padding=0,
    )


def _as_rows(samples: Sequence[TrainingSample], *, one_row: bool, pad_id: int, device: torch.device) -> Microbatch:
    """In one row positions begin anew with each sample, which is how variable-length attention tells them apart."""
    rows: list[list[int]] = []
    positions: list[list[int]] = []
    places: list[tuple[int, int]] = []  # (row, column that predicts), one for each completion token
    for sample in samples:
        if not one_row or not rows:
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
    numbered = [row + list(range(len(row), longest)) for row in positions] if not one_row else positions
    real = sum(map(len, samples))
    return Microbatch(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(numbered, device=device),
        predicting=torch.tensor([row * longest + column for row, column in places], device=device),
        targets=_targets(samples, device),
        layout=None,
        samples=len(samples),
        real_tokens=real,
        padding=len(rows) * longest - real,
    )


def _targets(samples: Sequence[TrainingSample], device: torch.device) -> Targets:
    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Targets(
        token=torch.tensor([token for sample in samples for token in sample.completion], device=device),
        sampled_logprob=tensor([value for sample in samples for value in sample.logprobs]),
        sign=tensor([float(sample.sign) for sample in samples for _ in sample.completion]),
    )
