"""Attention over a packed row: many samples in one row of tokens, each seeing only what it should.

A transformers model is called with ids of shape (1, N), the position of each token in its own sample, and a layout.
Every layer then hands its queries, keys and values to `Layout.attend` instead of its own attention function (through
transformers' public AttentionInterface); `agent.raft.llama` does the same. So the linear layers see no padding and no
token twice, whatever the model.

`SegmentTree` lays out samples that share beginnings: a token is computed once for all samples that begin with it.
`PackedLayout` is the attention of such a tree, for training and for the prefill of prompts; the attention of
generation is in `agent.raft.cache`.

It does not: handle attention with extra terms (position biases such as ALiBi, sinks), which raises Unsupported, or
models that keep a state instead of keys and values. `agent.raft.tryout` compares a short row with the model's plain
forward pass when it is loaded, so that an architecture for which this is wrong is never run this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from agent.errors import Unsupported
from agent.raft.cpu_attention import cpu_attention

IMPLEMENTATION = "raft_layout"
"""Name under which the function is known to transformers."""
ARGUMENT = "raft_layout"
"""Keyword that carries the layout through a model's forward."""
WIDER = 1.25
"""Segments share a padded attention batch while the longest has at most this many times the keys of the shortest."""
ROOT_TOKENS = 8
"""A beginning that all prompts share is worth a segment of its own from this many tokens on."""


class Layout(Protocol):
    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Output (1, N, heads, D) of queries (1, heads, N, D) and new keys and values (1, kv_heads, N, D).

        `window`: most positions that a query looks back, itself included. `softcap` bounds scores (Gemma 2).
        """
        ...


def layout_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it. Raises Unsupported for terms that no layout knows."""
    layout: Layout = rest[ARGUMENT]
    for name in ("s_aux", "position_bias"):
        if rest.get(name) is not None:
            raise Unsupported(f"{type(module).__name__} adds {name} to its attention scores")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = layout.attend(module.layer_idx, query, key, value, scale=scale, window=sliding_window, softcap=softcap)
    return out, None


@lru_cache(maxsize=1)
def register() -> None:
    """Make `IMPLEMENTATION` known to transformers. Without a mask function of that name no mask is ever built."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, layout_attention)


# Which token sees which --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """A run of tokens that follow on each other; `parent` is the segment that they continue."""

    tokens: tuple[int, ...]
    parent: int | None
    start: int
    """Place of the first token in the packed row."""
    position: int
    """Position of the first token in its sample."""

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class SegmentTree:
    """Samples as paths of segments, parents before children, in one packed row."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.size = 0
        """Tokens in the row."""

    def add(self, tokens: Sequence[int], parent: int | None = None) -> int:
        """The number of a new segment that continues `parent`, or that begins a sample."""
        position = 0
        if parent is not None:
            before = self.segments[parent]
            position = before.position + len(before.tokens)
        self.segments.append(Segment(tuple(tokens), parent, self.size, position))
        self.size += len(tokens)
        return len(self.segments) - 1

    def path(self, number: int) -> list[int]:
        """Places in the row of all tokens from the beginning of the sample to the end of a segment."""
        segment = self.segments[number]
        before = [] if segment.parent is None else self.path(segment.parent)
        return before + list(range(segment.start, segment.end))

    def ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.tokens]

    def positions(self) -> list[int]:
        return [segment.position + i for segment in self.segments for i in range(len(segment.tokens))]


def tree_of(prompts: Sequence[Sequence[int]]) -> tuple[SegmentTree, list[int]]:
    """A tree with each distinct prompt once, and by prompt the segment that it ends with."""
    tree = SegmentTree()
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    common = shared_beginning(distinct)
    root = tree.add(distinct[0][:common]) if common else None
    ends = {prompt: tree.add(prompt[common:], root) for prompt in distinct}
    return tree, [ends[tuple(prompt)] for prompt in prompts]


def shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all of several prompts begin with, if worth it; every prompt keeps at least one of its own."""
    if len(prompts) < 2:
        return 0
    # Whatever the first and the last in order share, all between them share.
    first, last = min(prompts), max(prompts)
    longest = min(map(len, prompts)) - 1
    same = 0
    while same < longest and first[same] == last[same]:
        same += 1
    return same if same >= ROOT_TOKENS else 0


# Attention of a tree -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bucket:
    """Segments of similar size as one padded attention: S segments, Q queries, K keys."""

    queries: Tensor
    """(S, Q) places in the row; padding repeats a real place."""
    keys: Tensor
    """(S, K) places in the row."""
    visible: Tensor
    """(S, 1, Q, K), True where a query may look."""
    distance: Tensor
    """(S, 1, Q, K), positions between query and key."""


class PackedLayout:
    """Attention of a `SegmentTree`, differentiable. `eager` computes scores explicitly instead of by sdpa."""

    def __init__(self, tree: SegmentTree, *, device: torch.device, eager: bool = False):
        self.eager = eager
        self._windowed: dict[int, list[Tensor]] = {}
        self._buckets: list[_Bucket] = []
        back = [0] * tree.size
        offset = 0
        for group in _similar(tree):
            bucket, places = _bucket(tree, group, device)
            for place, at in places:
                back[at] = offset + place
            offset += bucket.queries.numel()
            self._buckets.append(bucket)
        self._back = torch.tensor(back, device=device)
        """(N,) where each token of the row is in the buckets laid end to end."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        q, k, v = (_narrowed(x[0]).transpose(0, 1) for x in (q, k, v))  # (N, heads, D)
        outs = []
        for bucket, visible in zip(self._buckets, self._visible(window), strict=True):
            parts = [_rows(x, at) for x, at in ((q, bucket.queries), (k, bucket.keys), (v, bucket.keys))]
            out = self._attention(*parts, visible=visible, scale=scale, softcap=softcap)
            outs.append(out.transpose(1, 2).flatten(0, 1))  # (S * Q, heads, D)
        flat = outs[0] if len(outs) == 1 else torch.cat(outs)
        return flat.index_select(0, self._back)[None]

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """(S, heads, Q, D)"""
        by_kernel = not self.eager and softcap is None
        if by_kernel and q.device.type == "cpu":
            return cpu_attention(q, k, v, visible=visible, scale=scale)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        if by_kernel:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
        scores = capped(q @ k.transpose(2, 3) * scale, softcap)
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v

    def _visible(self, window: int | None) -> list[Tensor]:
        """The mask of each bucket under a sliding window."""
        if window is None:
            return [bucket.visible for bucket in self._buckets]
        if window not in self._windowed:
            self._windowed[window] = [b.visible & (b.distance < window) for b in self._buckets]
        return self._windowed[window]


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores bounded to (-softcap, softcap) by tanh, as Gemma 2 does (arXiv 2408.00118, section 2)."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _narrowed(x: Tensor) -> Tensor:
    """In the type that autocast gives to attention anyway: what is gathered from here on is half as much."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _rows(x: Tensor, at: Tensor) -> Tensor:
    """(S, heads, L, D) from the rows (N, heads, D) at places (S, L)."""
    return x.index_select(0, at.flatten()).view(*at.shape, *x.shape[1:]).transpose(1, 2)


def _similar(tree: SegmentTree) -> list[list[int]]:
    """Segment numbers in groups whose padded sizes differ little."""
    sizes = {n: (s.position + len(s.tokens), len(s.tokens)) for n, s in enumerate(tree.segments)}
    groups: list[list[int]] = []
    for number in sorted(sizes, key=lambda n: sizes[n]):
        keys, queries = sizes[number]
        first_keys, first_queries = sizes[groups[-1][0]] if groups else (0, 0)
        alike = keys <= WIDER * first_keys + 8 and 0.5 <= (queries + 8) / (first_queries + 8) <= 2
        if groups and alike:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _bucket(tree: SegmentTree, group: list[int], device: torch.device) -> tuple[_Bucket, list[tuple[int, int]]]:
    """The bucket of some segments, and for each of their tokens (place in the flat bucket, place in the row)."""
    paths = [tree.path(number) for number in group]
    own = [len(tree.segments[number].tokens) for number in group]
    most_queries, most_keys = max(own), max(map(len, paths))
    queries = torch.tensor([path[-n:] + [path[-1]] * (most_queries - n) for path, n in zip(paths, own, strict=True)])
    keys = torch.tensor([path + [path[-1]] * (most_keys - len(path)) for path in paths])
    length = torch.tensor([len(path) for path in paths])[:, None, None]
    count = torch.tensor(own)[:, None]
    # A padded query has the position of the last real one, so that it sees something and stays finite.
    position = (length[:, :, 0] - count + torch.arange(most_queries)).clamp(max=length[:, :, 0] - 1)
    distance = position[:, :, None] - torch.arange(most_keys)
    visible = (distance >= 0) & (torch.arange(most_keys) < length)
    places = [
        (s * most_queries + i, path[len(path) - n + i])
        for s, (path, n) in enumerate(zip(paths, own, strict=True))
        for i in range(n)
    ]
    bucket = _Bucket(queries.to(device), keys.to(device), visible[:, None].to(device), distance[:, None].to(device))
    return bucket, places
