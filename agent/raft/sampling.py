"""Drawing a token from logits: temperature, top-k, top-p, and random numbers that belong to a sample.

The number that decides a token is a function of the sample's seed and the token's position alone, so neither the
other rows in flight, nor the order in which slots are filled, nor the engine changes it, and two runs that evaluate
the same prompt use the same luck. One uniform number a token and the inverse of the cumulative distribution take the
place of the 49,152 exponentials that `torch.multinomial` draws.

It does not: keep state, know about models, or decide when a completion ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

BLOCK = 128
"""Tokens whose probabilities are summed first; the cumulative sums then run over blocks and inside one block."""
CHUNK_BYTES = 1 << 20
"""Of logits that a CPU works on at once: what fits into the second-level cache."""
LOWEST = -1e4
"""Differences of logits below this are no probability at all; it keeps 0 * -inf from becoming NaN."""
CANDIDATES = 512
"""Likeliest tokens that top-p looks at first; the whole vocabulary is sorted only where they do not suffice."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `temperature` 0 is greedy, `top_p` 1 and `top_k` 0 are off."""

    temperature: float
    max_new_tokens: int
    max_total: int | None = None
    """Prompt plus completion, tokens; None is the model's own limit."""
    top_p: float = 1.0
    top_k: int = 0
    slots: int = 256
    stop: tuple[str, ...] = ()
    response_prefix: str = ""
    engine: Literal["slots", "hf"] = "slots"


# Random numbers ----------------------------------------------------------------------------------------------

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def sample_seeds(seed: int | Sequence[int], samples: Sequence[int]) -> np.ndarray:
    """(len(samples),) uint64: the seed of each sample, by the seed of its request and its number there."""
    return _mixed(np.asarray(seed, dtype=np.uint64) ^ _mixed(np.asarray(samples, dtype=np.uint64)))


def uniforms(seeds: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """(R,) float64 in [0, 1) for the token at `positions` of the samples with `seeds`, 53 bits each."""
    bits = _mixed(seeds + _GAMMA * np.asarray(positions, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's step and output function (Steele, Lea, Flood, OOPSLA 2014); it wraps around by design."""
    with np.errstate(over="ignore"):
        z = x + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return np.asarray(z ^ (z >> np.uint64(31)))


# Drawing -----------------------------------------------------------------------------------------------------


def pick(
    logits: Tensor, sampling: Sampling, uniform: Tensor, owner: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One token a sample: its id, its log-probability and the entropy at temperature 1, each (N,).

    `logits` is (R, V); `uniform` (N,) in [0, 1) decides; `owner` (N,) is each sample's row, in order; None where there
    is one sample a row. Logits that are not finite give a log-probability that is not, for the caller to report.
    """
    # Autocast would make the dot product of the entropy one of bfloat16 numbers.
    with torch.autocast(logits.device.type, enabled=False):
        return _pick(logits, sampling, uniform, owner)


def _pick(logits: Tensor, sampling: Sampling, uniform: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    chunks = logits.split(_rows_at_once(logits))
    peak, total, mean, sums = (torch.cat(part) for part in zip(*[_weigh(c, sampling) for c in chunks], strict=True))
    if not bool(mean.isfinite().all()):
        mean = torch.cat([_mean_of_possible(c, p) for c, p in zip(chunks, peak.split(len(chunks[0])), strict=True)])
    if owner is None:
        owner = torch.arange(len(logits), device=logits.device)
    peak, total, mean, sums = (x.index_select(0, owner) for x in (peak, total, mean, sums))
    if sampling.temperature == 0:
        token = logits.argmax(-1)[owner]
    elif sampling.top_p >= 1 and not 0 < sampling.top_k < logits.shape[1]:
        token = _draw(logits, owner, peak, sums, 1 / sampling.temperature, uniform)
    else:
        several = zip(owner.split(len(chunks[0])), uniform.split(len(chunks[0])), strict=True)
        token = torch.cat([_draw_truncated(logits[rows], sampling, u) for rows, u in several])
    logprob = logits[owner, token].float() - peak - total.log()
    return token, logprob, total.log() - mean / total


def _rows_at_once(logits: Tensor) -> int:
    if logits.device.type != "cpu":
        return max(1, len(logits))
    return max(1, CHUNK_BYTES // (4 * logits.shape[1]))


def _weigh(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By row: the highest logit m, the sum of p = exp(x - m), the sum of p (x - m), and the sums of the weights
    exp((x - m) / temperature) over blocks of the vocabulary (R, V / BLOCK).

    Each pass over (R, V) costs about a percent of a decode step, so there are as few as possible.
    """
    x = logits.float()
    peak = x.amax(-1, keepdim=True)
    x = torch.sub(x, peak, out=x if x is not logits else None)
    p = x.exp()
    total, mean = p.sum(-1), torch.linalg.vecdot(p, x)
    if sampling.temperature not in (0, 1):
        p = torch.mul(x, 1 / sampling.temperature, out=p).exp_()
    short = -p.shape[1] % BLOCK
    if short:
        p = torch.nn.functional.pad(p, (0, short))
    return peak[:, 0], total, mean, p.view(len(p), -1, BLOCK).sum(-1)


def _mean_of_possible(logits: Tensor, peak: Tensor) -> Tensor:
    """Sum of p (x - m), (R,), where 0 * -inf is 0."""
    x = logits.float() - peak[:, None]
    mean: Tensor = torch.linalg.vecdot(x.exp(), x.clamp(min=LOWEST))
    return mean


def _draw(logits: Tensor, owner: Tensor, peak: Tensor, sums: Tensor, sharpness: float, uniform: Tensor) -> Tensor:
    """Index (N,) by inverse CDF of exp((logits[owner] - peak) * sharpness). Never one of weight zero.

    In two steps: which block, then which token of it, so that only V / BLOCK + BLOCK numbers are accumulated, in
    float64.
    """
    rest, block = _invert(sums, uniform.double() * sums.sum(-1, dtype=torch.float64))
    last = logits.shape[1] - 1
    inside = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    chosen = logits[owner[:, None], inside.clamp(max=last)].float()
    weights = chosen.sub_(peak[:, None]).mul_(sharpness).exp_()
    _, token = _invert(weights.masked_fill_(inside > last, 0), rest)
    # The clamp is for weights that are not finite.
    return (block * BLOCK + token).clamp(max=last)


def _draw_truncated(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Index (N,) by inverse CDF of what top-k and top-p leave."""
    x = logits.float() / sampling.temperature
    weights = _truncated((x - x.amax(-1, keepdim=True)).exp(), sampling.top_p, sampling.top_k)
    _, token = _invert(weights, uniform.double() * weights.sum(-1, dtype=torch.float64))
    return token


def _invert(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative weight is above `target` (R,), and what is left of the target before it."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    target = torch.minimum(target, total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(cdf, target[:, None], right=True).clamp_(max=weights.shape[1] - 1)
    rest = target - (cdf.gather(1, index) - weights.gather(1, index).double())[:, 0]
    return rest.clamp_(min=0), index[:, 0]


def _truncated(p: Tensor, top_p: float, top_k: int) -> Tensor:
    """Weights with all but the k likeliest and the smallest set of mass `top_p` (of those k) set to zero."""
    size = p.shape[-1]
    limit = top_k if 0 < top_k < size else size
    if top_p >= 1 and limit == size:
        return p
    count = limit if top_p >= 1 else min(limit, CANDIDATES)
    while True:
        ordered, index = torch.topk(p, count, dim=-1)
        if top_p < 1:
            whole = p.sum(-1, keepdim=True) if limit == size else torch.topk(p, limit).values.sum(-1, keepdim=True)
            before = ordered.cumsum(-1) - ordered
            enough = bool((before[:, -1:] + ordered[:, -1:] >= top_p * whole).all())
            if not enough and count < limit:
                count = min(limit, 8 * count)
                continue
            ordered = ordered * (before < top_p * whole)
        return torch.zeros_like(p).scatter_(-1, index, ordered)
