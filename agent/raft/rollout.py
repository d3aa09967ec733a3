"""The rollout engine: prompts in, completions out, as token ids with the sampler's own log-probabilities.

A prompt is computed once, and a beginning that prompts share once for all of them. Its samples share its keys and
values, and are computed as one for as long as they agree: a trained policy gives many samples of a prompt the same
first tokens, or all of them. What is done leaves its slot at once: a waiting sample takes it, or the last row moves
into it, so that no step computes anything twice, or for a sample that has ended.

It does not: decide which prompts are asked, judge answers, or decode text, except the tail that a stop string is
looked for in.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agent.contract import FinishReason
from agent.errors import NumericError
from agent.raft.cache import Arrangement, DecodeLayout, SlotCache, prompt_layout
from agent.raft.sampling import Sampling, pick, sample_seeds, uniforms
from agent.recipe.memory import PREFILL_TOKENS, prompts_a_slot, prompts_in_cache

if TYPE_CHECKING:
    from agent.raft.policy import Policy

CACHE_SHARE = 0.5
"""Of the free memory, for keys and values; the rest is for logits, activations, and for others on the machine."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion. The lists have one entry a token, the stop token or stop string included."""

    tokens: list[int]
    logprobs: list[float]
    """Log-probability of each token at temperature 1, without top_p and top_k, nats."""
    entropies: list[float]
    """Entropy of the distribution it was drawn from, at temperature 1, nats."""
    finish: FinishReason
    """stop: an end-of-turn token or a stop string. length: cut."""


@dataclass(frozen=True)
class Request:
    """A prompt to be answered `samples` times; `seed` names its random numbers."""

    prompt: list[int]
    samples: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One sample to be drawn: which request, which of its samples."""

    request: int
    sample: int


OnStep = Callable[[], None]
OnFinished = Callable[[Row, Completion], None]
Engine = Callable[["Policy", Sequence[Request], Sequence[Row], Sampling, OnStep, OnFinished], None]


def fits(prompt: Sequence[int], sampling: Sampling) -> bool:
    """Whether a prompt leaves room for at least one token."""
    return sampling.max_total is None or len(prompt) < sampling.max_total


def rows_of(requests: Sequence[Request]) -> list[Row]:
    """All samples, prompts of similar length together, samples of a prompt side by side."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), i))
    return [Row(i, sample) for i in order for sample in range(requests[i].samples)]


def generate(
    policy: Policy,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    on_step: OnStep = lambda: None,
    on_finished: OnFinished = lambda row, completion: None,
    known: Mapping[Row, Completion] | None = None,
) -> list[list[Completion]]:
    """Completions by request and sample. `known` ones are taken as they are, and not reported as finished.

    `on_finished` is called for each sample as soon as it ends. Out of memory, samples that have ended are kept and the
    others begin again with half as many rows. Raises NumericError where the model's logits are not finite.
    """
    results = dict(known or {})

    def finished(row: Row, completion: Completion) -> None:
        results[row] = completion
        on_finished(row, completion)

    everything = rows_of(requests)
    while wanted := [row for row in everything if row not in results]:
        try:
            with (
                policy.sampling(),
                policy.sampling_weights(rows=min(sampling.slots, len(wanted)), steps=sampling.max_new_tokens),
            ):
                _engine(sampling)(policy, requests, wanted, sampling, on_step, finished)
        except (RuntimeError, MemoryError) as error:
            slots = min(sampling.slots, len(wanted)) // 2
            if not is_out_of_memory(error) or not slots:
                raise
            print(f"out of memory while sampling: going on with {slots} rows at a time", file=sys.stderr, flush=True)
            sampling = replace(sampling, slots=slots)
    return [[results[Row(i, s)] for s in range(request.samples)] for i, request in enumerate(requests)]


def _engine(sampling: Sampling) -> Engine:
    if sampling.engine == "hf":
        from agent.raft.generate_hf import generate_by_transformers

        return generate_by_transformers
    return generate_in_slots


def is_out_of_memory(error: BaseException) -> bool:
    """Of the accelerator, or of the host where the allocation itself is refused."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def slots_that_fit(policy: Policy, *, prompt_tokens: int, samples: int, sampling: Sampling) -> int:
    """Rows whose keys and values, at their longest and with the prompts that belong to them, take no more than
    CACHE_SHARE of what is free; at least one. `samples` a prompt, at least."""
    row = policy.cache_bytes * (sampling.max_new_tokens + prompts_a_slot(samples=samples) * prompt_tokens)
    return max(1, int(CACHE_SHARE * policy.free_memory() / row)) if row else sampling.slots


def completion_limit(policy: Policy, prompt: Sequence[int], sampling: Sampling) -> int:
    """Most tokens that a completion of this prompt may have."""
    room = [limit - len(prompt) for limit in (sampling.max_total, policy.max_length) if limit is not None]
    return max(1, min([sampling.max_new_tokens, *room]))


# The engine --------------------------------------------------------------------------------------------------


def generate_in_slots(
    policy: Policy,
    requests: Sequence[Request],
    rows: Sequence[Row],
    sampling: Sampling,
    on_step: OnStep,
    on_finished: OnFinished,
) -> None:
    slots = _Slots(policy, requests, rows, sampling, on_step, on_finished)
    slots.admit()
    while slots.live:
        slots.step()
        slots.admit()


@dataclass
class _Prompt:
    """A prompt whose keys and values are in the cache: where, and how many of its samples have not ended."""

    place: int
    length: int
    limit: int
    """Most tokens of a completion."""
    logits: Tensor
    """(V,) after its last token."""
    open_samples: int


@dataclass
class _Live:
    """A sample that is being drawn."""

    row: Row
    seed: np.uint64
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def completion(self, finish: FinishReason) -> Completion:
        return Completion(self.tokens, self.logprobs, self.entropies, finish)


@dataclass
class _Strand:
    """Samples of a prompt that have the same tokens so far: one row of a step, one slot of the cache."""

    prompt: _Prompt
    samples: list[_Live]

    @property
    def tokens(self) -> list[int]:
        return self.samples[0].tokens


class _Slots:
    """What is in flight, `live[i]` in slot i, and the samples that wait."""

    def __init__(
        self,
        policy: Policy,
        requests: Sequence[Request],
        rows: Sequence[Row],
        sampling: Sampling,
        on_step: OnStep,
        on_finished: OnFinished,
    ):
        self.policy, self.requests, self.sampling = policy, requests, sampling
        self.on_step, self.on_finished = on_step, on_finished
        seeds = sample_seeds([requests[row.request].seed for row in rows], [row.sample for row in rows])
        self.waiting = deque(map(_Live, rows, seeds))
        self.live: list[_Strand] = []
        self.prompts: dict[int, _Prompt] = {}
        self.stops = StopCheck(policy, sampling)
        self.steps = 0
        self.samples = Counter(row.request for row in rows)
        """By request."""
        longest = max(len(requests[number].prompt) for number in self.samples)
        fewest = min(self.samples.values())
        fitting = slots_that_fit(policy, prompt_tokens=longest, samples=fewest, sampling=sampling)
        self.slots = min(sampling.slots, len(rows), fitting)
        places = min(len(self.samples), prompts_in_cache(self.slots, samples=fewest))
        self.free_places = list(range(places - 1, -1, -1))
        self.cache = SlotCache(
            slots=self.slots,
            places=places,
            prompt_tokens=longest,
            new_tokens=sampling.max_new_tokens,
            dtype=policy.compute,
            device=policy.device,
        )
        self.arrangement: Arrangement | None = None

    def _waiting_requests(self) -> list[int]:
        """Requests of which samples wait, in order."""
        return list(dict.fromkeys(live.row.request for live in self.waiting))

    def _samples_left(self) -> int:
        """That have not ended; each may come to be a row of its own."""
        return sum(len(strand.samples) for strand in self.live) + len(self.waiting)

    # Filling slots --------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Fill the free slots with waiting samples. Each starts with the token that its prompt's logits give.

        As many samples as slots at most are in flight, so that there is always a slot when samples part.
        """
        while self.waiting and (free := self.slots - sum(len(strand.samples) for strand in self.live)):
            if self.waiting[0].row.request not in self.prompts:
                self._prefill()
            starting: dict[int, _Strand] = {}
            while self.waiting and free and (number := self.waiting[0].row.request) in self.prompts:
                strand = starting.setdefault(number, _Strand(self.prompts[number], []))
                strand.samples.append(self.waiting.popleft())
                free -= 1
            strands = list(starting.values())
            for parts in self._draw(strands, torch.stack([strand.prompt.logits for strand in strands])):
                self.live += parts
            self.arrangement = None

    def _prefill(self) -> None:
        """Compute the next prompts: as many as have a place in the cache and fit into one forward pass."""
        numbers: list[int] = []
        tokens = 0
        for number in self._waiting_requests():
            if number in self.prompts:
                continue
            tokens += len(self.requests[number].prompt)
            if numbers and (tokens > PREFILL_TOKENS or len(numbers) == len(self.free_places)):
                break
            numbers.append(number)
        places = [self.free_places.pop() for _ in numbers]
        prompts = [self.requests[number].prompt for number in numbers]
        layout, tree, ends = prompt_layout(self.cache, prompts, places, eager=self.policy.eager)
        logits = self.policy.forward(tree.ids(), tree.positions(), layout, keep=ends)
        for number, place, after in zip(numbers, places, logits, strict=True):
            prompt = self.requests[number].prompt
            limit = completion_limit(self.policy, prompt, self.sampling)
            self.prompts[number] = _Prompt(place, len(prompt), limit, after, self.samples[number])
        self.on_step()

    # One token for every sample -------------------------------------------------------------------------------

    def step(self) -> None:
        live = self.live
        lengths = [len(strand.tokens) - 1 for strand in live]  # in the cache; the last token goes in now
        longest = max(lengths)
        self.cache.reserve(longest + 1, rows=len(live), slots=min(self.slots, self._samples_left()))
        if self.arrangement is None:
            self.arrangement = Arrangement(
                [strand.prompt.place for strand in live],
                [strand.prompt.length for strand in live],
                device=self.policy.device,
            )
        layout = DecodeLayout(
            self.cache,
            self.arrangement,
            torch.tensor(lengths, device=self.policy.device),
            longest=longest,
            even=min(lengths) == longest,
        )
        logits = self.policy.forward(
            [strand.tokens[-1] for strand in live],
            [strand.prompt.length + length for strand, length in zip(live, lengths, strict=True)],
            layout,
        )
        self._place(self._draw(live, logits), longest + 1)
        self.on_step()

    def _draw(self, strands: list[_Strand], logits: Tensor) -> list[list[_Strand]]:
        """One more token for each sample; by strand, what it parts into. Samples that end are reported."""
        self.steps += 1
        samples = [live for strand in strands for live in strand.samples]
        owner = [number for number, strand in enumerate(strands) for _ in strand.samples]
        uniform = uniforms(np.array([live.seed for live in samples]), [len(live.tokens) for live in samples])
        found = pick(
            logits,
            self.sampling,
            torch.from_numpy(uniform).to(logits.device),
            owner=None if len(samples) == len(strands) else torch.tensor(owner, device=logits.device),
        )
        parts: list[dict[int, _Strand]] = [{} for _ in strands]
        for live, number, token, logprob, entropy in zip(samples, owner, *(x.tolist() for x in found), strict=True):
            if not math.isfinite(logprob):
                raise not_finite(self.steps)
            live.tokens.append(token)
            live.logprobs.append(logprob)
            live.entropies.append(entropy)
            prompt = strands[number].prompt
            if self.stops.ends(live.tokens):
                self._finish(live, prompt, "stop")
            elif len(live.tokens) >= prompt.limit:
                self._finish(live, prompt, "length")
            else:
                parts[number].setdefault(token, _Strand(prompt, [])).samples.append(live)
        return [list(part.values()) for part in parts]

    def _finish(self, live: _Live, prompt: _Prompt, reason: FinishReason) -> None:
        prompt.open_samples -= 1
        if prompt.open_samples == 0:
            self.free_places.append(prompt.place)
            del self.prompts[live.row.request]
        self.on_finished(live.row, live.completion(reason))

    def _place(self, parts: list[list[_Strand]], tokens: int) -> None:
        """Give each strand a slot, without gaps. `parts[i]` come from slot i, whose first `tokens` count."""
        count = sum(map(len, parts))
        staying = {slot: part[0] for slot, part in enumerate(parts[:count]) if part}
        looking = [
            (slot, strand) for slot, part in enumerate(parts) for strand in (part[1:] if slot in staying else part)
        ]
        self.arrangement = self.arrangement if len(staying) == len(parts) == count else None
        free = [slot for slot in range(count) if slot not in staying]
        # A free slot's own strand has ended or lies beyond, so nothing that is copied from is written to.
        self.cache.copy([slot for slot, _ in looking], free, tokens)
        staying.update((slot, strand) for slot, (_, strand) in zip(free, looking, strict=True))
        self.live = [staying[slot] for slot in range(count)]


def not_finite(step: int) -> NumericError:
    return NumericError(
        f"the model's logits are not finite at decode step {step}",
        hint="The weights have diverged: lower learner.learning_rate or learner.max_grad_norm.",
    )


class StopCheck:
    """Whether the last token ends a completion: an end-of-turn token, or one that completes a stop string."""

    def __init__(self, policy: Policy, sampling: Sampling):
        self._policy = policy
        # A response has no special tokens in it: a stop string with one is looked for in a text that has.
        self._stop: dict[bool, list[str]] = {False: [], True: []}
        for text in sampling.stop:
            self._stop[any(special in text for special in policy.special_texts)].append(text)
        self._prefix = sampling.response_prefix
        # A token is at least one byte, except for tokens that decode to nothing: a margin covers those.
        self._tail = max((len(text.encode()) for text in sampling.stop), default=0) + 4

    def ends(self, tokens: list[int]) -> bool:
        if tokens[-1] in self._policy.stop_ids:
            return True
        # A stop string may begin in the response prefix, but must end in what was generated.
        prefix = self._prefix if len(tokens) <= self._tail else ""
        for special, stops in self._stop.items():
            if not stops:
                continue
            text = prefix + self._policy.decode(tokens[-self._tail :], special=special)
            if any(text.find(stop, max(0, len(prefix) - len(stop) + 1)) >= 0 for stop in stops):
                return True
        return False


def cut(completion: Completion, stops: StopCheck) -> Completion:
    """A padded completion up to and including what ended it."""
    tokens = completion.tokens
    for length in range(1, len(tokens) + 1):
        if stops.ends(tokens[:length]):
            logprobs, entropies = completion.logprobs[:length], completion.entropies[:length]
            return Completion(tokens[:length], logprobs, entropies, "stop")
    return replace(completion, finish="length")
