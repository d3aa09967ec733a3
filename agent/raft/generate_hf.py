"""Completions through `generate()` of transformers, for comparison and for models that no layout fits.

It prefills each sample of a prompt anew, keeps a row in the batch until the longest is done, and draws its random
numbers from torch's global generator, seeded by the batch: its samples are not those of the other engine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent.raft.rollout import (
    CACHE_SHARE,
    Completion,
    OnFinished,
    OnStep,
    Request,
    Row,
    StopCheck,
    completion_limit,
    cut,
    not_finite,
)
from agent.raft.sampling import Sampling
from agent.raft.seeds import seed_of
from agent.recipe.memory import FLOAT, HF_LOGITS

if TYPE_CHECKING:
    from agent.raft.policy import Policy


def generate_by_transformers(
    policy: Policy,
    requests: Sequence[Request],
    rows: Sequence[Row],
    sampling: Sampling,
    on_step: OnStep,
    on_finished: OnFinished,
) -> None:
    """Batches of at most `slots` rows, in the order given."""
    model = _without_own_defaults(policy)
    for batch in _batches(policy, requests, rows, sampling):
        done = _generate_batch(model, policy, requests, batch, sampling, on_step)
        for row, completion in zip(batch, done, strict=True):
            on_finished(row, completion)


def _without_own_defaults(policy: Policy) -> Any:
    """The model, with an empty generation configuration and otherwise itself.

    `generate` fills in what it is not told from the model's own, such as Qwen2.5's top-k of 20 and its penalty for
    repetitions, and would sample from another distribution than the recipe says. A shallow copy, because the model may
    be saved by another thread meanwhile.
    """
    from transformers import GenerationConfig

    model = copy.copy(policy.inner)
    model.generation_config = GenerationConfig()
    return model


def _batches(
    policy: Policy, requests: Sequence[Request], rows: Sequence[Row], sampling: Sampling
) -> Iterator[list[Row]]:
    """A row goes on, unseen, until the longest of its batch ends, and must not leave the model's positions.

    Rows of a batch are also no more than fit into memory, each with a prompt and a completion of the longest's size.
    """
    positions, free = policy.max_length, policy.free_memory()
    batch: list[Row] = []
    longest = limit = 0
    for row in rows:
        prompt = requests[row.request].prompt
        longer, further = max(longest, len(prompt)), max(limit, completion_limit(policy, prompt, sampling))
        most = min(sampling.slots, rows_that_fit(policy, tokens=longer + further, free=free))
        if batch and (len(batch) >= most or (positions is not None and longer + further > positions)):
            yield batch
            batch, longer, further = [], len(prompt), completion_limit(policy, prompt, sampling)
        batch.append(row)
        longest, limit = longer, further
    yield batch


def rows_that_fit(policy: Policy, *, tokens: int, free: float) -> int:
    """Rows whose keys and values of so many tokens, and the logits of a step, take no more than CACHE_SHARE of `free`
    bytes; at least one."""
    row = policy.cache_bytes * tokens + HF_LOGITS * FLOAT * policy.vocabulary
    return max(1, int(CACHE_SHARE * free / row))


def _generate_batch(
    model: Any,
    policy: Policy,
    requests: Sequence[Request],
    batch: Sequence[Row],
    sampling: Sampling,
    on_step: OnStep,
) -> list[Completion]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    torch.manual_seed(seed_of("generate", *[(requests[row.request].seed, row.sample) for row in batch]))
    prompts = [requests[row.request].prompt for row in batch]
    limits = [completion_limit(policy, prompt, sampling) for prompt in prompts]
    config = GenerationConfig(
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or None,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=max(limits),
        eos_token_id=sorted(policy.stop_ids) or None,
        pad_token_id=policy.pad_id,
    )
    ids, mask = left_padded(prompts, policy.pad_id, policy.device)
    facts, stops = _Facts(on_step), StopCheck(policy, sampling)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([facts]),
        stopping_criteria=StoppingCriteriaList([_Stops(stops, ids.shape[1])] if sampling.stop else []),
    )
    new = out[:, ids.shape[1] :]
    logprobs, entropies = facts.of(new)
    return [
        cut(Completion(t[:limit], p[:limit], h[:limit], "length"), stops)
        for t, p, h, limit in zip(new.tolist(), logprobs.tolist(), entropies.tolist(), limits, strict=True)
    ]


class _Stops:
    """A stopping criterion: the stop strings of a recipe, which transformers' own would also find in the prompt."""

    def __init__(self, stops: StopCheck, prompt: int):
        self._stops, self._prompt = stops, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ends = [self._stops.ends(tokens) for tokens in input_ids[:, self._prompt :].tolist()]
        return torch.tensor(ends, device=input_ids.device)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, (rows, longest)."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _Facts:
    """Called by `generate` with the raw logits of each step, before temperature: keeps what a completion records.

    Of a step's log-probabilities only those of the chosen tokens are needed, which the next call brings: one step's
    are held, not all.
    """

    def __init__(self, on_step: OnStep):
        self._on_step = on_step
        self._last: Tensor | None = None
        self._logprobs: list[Tensor] = []
        self._entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._on_step()
        self._take(input_ids[:, -1])
        self._last = torch.log_softmax(scores.float(), -1)
        if bool(self._last.isnan().any()):
            raise not_finite(len(self._logprobs))
        self._entropies.append(torch.special.entr(self._last.exp()).sum(-1))
        return scores

    def _take(self, token: Tensor) -> None:
        if self._last is not None:
            self._logprobs.append(self._last.gather(1, token[:, None])[:, 0])

    def of(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of all new tokens, each (rows, steps)."""
        self._take(new[:, -1])
        self._last = None
        return torch.stack(self._logprobs, 1), torch.stack(self._entropies, 1)
