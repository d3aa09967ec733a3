"""Keys and values of the rows in flight: those of a prompt once for all of its samples, those of a completion apart.

A row of the decode step attends to its prompt together with the other samples of that prompt (one matrix product for
all of them) and to its own completion. Rows fill the slots from the first on without gaps, so that a step never
computes anything for an empty one.

It does not: decide which rows there are (`agent.raft.rollout`), evict, or quantize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.raft.attention import PackedLayout, SegmentTree, capped, tree_of

FIRST_TOKENS = 16
"""Room for completion tokens at the start."""
FEW_PROMPTS = 0.5
"""Share of the places up to the last one in use, from which on down those in use are copied out of the cache."""
GROWTH = 1.25
"""Factor by which the room grows at least when a completion needs more; in multiples of FIRST_TOKENS."""


@dataclass
class _Layer:
    """Tensors of one attention layer. Those of prompts are written once and read in every step, so their keys lie as
    the product with queries reads them; in a row's own keys, one more is written in every step."""

    keys: Tensor
    """(slots, kv_heads, tokens, D)"""
    values: Tensor
    """(slots, kv_heads, tokens, D)"""
    prompt_keys: Tensor
    """(places, kv_heads, D, tokens)"""
    prompt_values: Tensor
    """(places, kv_heads, tokens, D)"""


class SlotCache:
    """`slots` rows and `places` prompts of at most `prompt_tokens` tokens; grows with the longest completion, then only
    by the slots that can still be used."""

    def __init__(
        self,
        *,
        slots: int,
        places: int,
        prompt_tokens: int,
        new_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.slots, self.places = slots, places
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self.room = min(FIRST_TOKENS, new_tokens)
        self.dtype = dtype
        self.device = device
        self.layers: dict[int, _Layer] = {}

    def layer(self, number: int, k: Tensor) -> _Layer:
        """The tensors of a layer, made after the shape and type of its first keys (1, kv_heads, N, D)."""
        if number not in self.layers:
            heads, size = k.shape[1], k.shape[3]
            shapes = [
                (self.slots, heads, self.room, size),
                (self.slots, heads, self.room, size),
                (self.places, heads, size, self.prompt_tokens),
                (self.places, heads, self.prompt_tokens, size),
            ]
            # Zeros and not whatever is in memory: masked places are multiplied by zero, and zero times NaN is NaN.
            # Under autocast keys come wider than values; what is computed with them is `dtype` either way.
            self.layers[number] = _Layer(*(k.new_zeros(shape, dtype=self.dtype) for shape in shapes))
        return self.layers[number]

    def reserve(self, tokens: int, *, rows: int, slots: int) -> None:
        """Make room for completions of so many tokens. The first `rows` slots are in use, and from now on there will
        never be more than `slots`: when most samples have ended, the long ones that remain take little room."""
        if tokens <= self.room:
            return
        wanted = max(tokens, int(GROWTH * self.room))
        self.room = min(math.ceil(wanted / FIRST_TOKENS) * FIRST_TOKENS, self.new_tokens)
        self.slots = min(self.slots, slots)
        for layer in self.layers.values():
            layer.keys = self._larger(layer.keys, rows)
            layer.values = self._larger(layer.values, rows)

    def _larger(self, old: Tensor, rows: int) -> Tensor:
        """Zeros of the size of now, with what the first `rows` slots hold."""
        new = old.new_zeros(self.slots, old.shape[1], self.room, old.shape[3])
        new[:rows, :, : old.shape[2]] = old[:rows]
        return new

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int) -> None:
        """Copy the first `tokens` of some rows into other slots, none of which is among the sources."""
        if not sources:
            return
        source, target = (torch.tensor(slots, device=self.device) for slots in (sources, targets))
        for layer in self.layers.values():
            for rows in (layer.keys[:, :, :tokens], layer.values[:, :, :tokens]):
                rows.index_copy_(0, target, rows.index_select(0, source))


class PromptLayout(PackedLayout):
    """Attention of the prefill: that of a packed tree, and the keys and values of each prompt go into its place."""

    def __init__(self, cache: SlotCache, tree: SegmentTree, ends: Sequence[int], places: Sequence[int], *, eager: bool):
        super().__init__(tree, device=cache.device, eager=eager)
        self._cache = cache
        paths = [tree.path(end) for end in ends]
        self._longest = max(map(len, paths))
        # Behind its end a shorter prompt is filled with its last token, which is hidden and finite.
        filled = [path + [path[-1]] * (self._longest - len(path)) for path in paths]
        self._tokens = torch.tensor(filled, device=cache.device).flatten()
        self._places = torch.tensor(places, device=cache.device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        store = self._cache.layer(layer, k)
        shape = (len(self._places), self._longest, k.shape[1], -1)
        keys, values = (x[0].transpose(0, 1).index_select(0, self._tokens).view(shape) for x in (k, v))
        store.prompt_keys[self._places, :, :, : self._longest] = keys.permute(0, 2, 3, 1).to(self._cache.dtype)
        store.prompt_values[self._places, :, : self._longest] = values.transpose(1, 2).to(self._cache.dtype)
        return super().attend(layer, q, k, v, scale=scale, window=window, softcap=softcap)


def prompt_layout(
    cache: SlotCache, prompts: Sequence[Sequence[int]], places: Sequence[int], *, eager: bool
) -> tuple[PromptLayout, SegmentTree, list[int]]:
    """Layout and tree of a prefill, and where in its row each prompt ends."""
    tree, ends = tree_of(prompts)
    layout = PromptLayout(cache, tree, ends, places, eager=eager)
    return layout, tree, [tree.segments[end].end - 1 for end in ends]


class DecodeLayout:
    """Attention of one decode step: R rows with one new token each.

    `length` (R,) are the completion tokens that are already in the cache; the new token becomes number `length`. The
    arrangement of rows by prompt is kept by the caller between steps.
    """

    def __init__(self, cache: SlotCache, arrangement: Arrangement, length: Tensor, *, longest: int, even: bool):
        self._cache = cache
        self._rows = arrangement
        self._length = length
        self._newest = longest
        # On a CPU, products of narrow types copy what does not lie in one piece. Keys and values up to the end of the
        # room do; looking at places that are then hidden costs less.
        whole = cache.device.type == "cpu" and cache.dtype != torch.float32
        self._own = cache.room if whole else longest + 1
        """Completion places to look at."""
        self._even = even
        """All rows have the same length, so that nothing of a completion has to be hidden."""
        self._hidden: dict[int | None, Tensor | None] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        store, rows, own = self._cache.layer(layer, k), self._rows, self._own
        count, kv_heads, size = rows.count, k.shape[1], k.shape[3]
        self._write(store, k, v)
        q = (q[0].transpose(0, 1) * scale).to(store.keys.dtype)
        q = q.reshape(count, kv_heads, -1, size)  # (R, kv_heads, per_head, D)
        prompt_keys, prompt_values = rows.prompts(layer, store.prompt_keys, store.prompt_values)
        to_prompt = rows.scatter(rows.gather(q) @ prompt_keys)
        to_own = _scores(q, store.keys[:count, :, :own])
        scores = capped(torch.cat([to_prompt, to_own], -1), softcap).float()  # (R, kv_heads, per_head, prompt + own)
        hidden = self._hide(window)
        if hidden is not None:
            scores = scores.masked_fill_(hidden, torch.finfo(torch.float32).min)
        shares = scores.softmax(-1).to(store.values.dtype)
        of_prompt, of_own = shares.split([rows.longest, own], -1)
        out: Tensor = of_own @ store.values[:count, :, :own]
        out += rows.scatter(rows.gather(of_prompt) @ prompt_values)
        return out.reshape(1, count, -1, size).to(v.dtype)

    def _write(self, store: _Layer, k: Tensor, v: Tensor) -> None:
        """Put the new keys and values (1, kv_heads, R, D) behind those of their rows."""
        count = self._rows.count
        new_k, new_v = (x[0].transpose(0, 1).to(self._cache.dtype) for x in (k, v))
        if self._even:
            store.keys[:count, :, self._newest] = new_k
            store.values[:count, :, self._newest] = new_v
        else:
            store.keys[self._rows.index, :, self._length] = new_k
            store.values[self._rows.index, :, self._length] = new_v

    def _hide(self, window: int | None) -> Tensor | None:
        """(R, 1, 1, prompt + own), True where a row may not look; None where it may look everywhere."""
        if window not in self._hidden:
            self._hidden[window] = self._compute_hidden(window)
        return self._hidden[window]

    def _compute_hidden(self, window: int | None) -> Tensor | None:
        rows = self._rows
        if window is None and self._even and rows.same_prompt_length and self._own == self._newest + 1:
            return None
        device = self._length.device
        prompt = torch.arange(rows.longest, device=device)[None]
        own = torch.arange(self._own, device=device)[None]
        length = rows.prompt_length[:, None]
        hidden = torch.cat([prompt >= length, own > self._length[:, None]], 1)
        if window is not None:
            position = torch.cat([prompt.expand(rows.count, -1), length + own], 1)
            hidden |= (length + self._length[:, None]) - position >= window
        return hidden[:, None, None, :]


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """(R, kv_heads, per_head, tokens) from (R, kv_heads, per_head, D) and (R, kv_heads, tokens, D)."""
    if q.shape[2] == 1 and q.dtype == torch.float32:
        return q @ keys.transpose(2, 3)
    # Many keys times few queries: the library's kernels for narrow types are up to twice as fast this way round.
    return (keys @ q.transpose(2, 3)).transpose(2, 3)


class Arrangement:
    """Which rows belong to which prompt, as the two index tables between row order and prompt order."""

    def __init__(self, place: Sequence[int], prompt_length: Sequence[int], *, device: torch.device):
        """`place` and `prompt_length` by row."""
        self.count = len(place)
        used = sorted(set(place))
        few = len(used) <= FEW_PROMPTS * (used[-1] + 1)
        self._used = torch.tensor(used, device=device) if few else None
        """The places in use, where it pays to take only those; else all up to the last one in use count."""
        self._taken: dict[int, tuple[Tensor, Tensor]] = {}
        self.places = len(used) if few else used[-1] + 1
        number = {at: i for i, at in enumerate(used)} if few else {at: at for at in used}
        self.longest = max(prompt_length)
        self.same_prompt_length = min(prompt_length) == self.longest
        self.prompt_length = torch.tensor(prompt_length, device=device)
        self.index = torch.arange(self.count, device=device)
        members: list[list[int]] = [[] for _ in range(self.places)]
        for row, at in enumerate(place):
            members[number[at]].append(row)
        self._most = max(map(len, members))
        back = [0] * self.count
        table = []
        for at, rows in enumerate(members):
            for i, row in enumerate(rows):
                back[row] = at * self._most + i
            table += rows + [0] * (self._most - len(rows))
        self._in_order = table == list(range(self.count))
        """Row order is prompt order, so that nothing has to be moved."""
        self._table = torch.tensor(table, device=device)
        self._back = torch.tensor(back, device=device)

    def prompts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (places, kv_heads, D, longest) and values (places, kv_heads, longest, D) of the prompts in use."""
        if self._used is None:
            return keys[: self.places, :, :, : self.longest], values[: self.places, :, : self.longest]
        if layer not in self._taken:
            # They stay as they are as long as these rows are in flight.
            taken = keys[..., : self.longest], values[:, :, : self.longest]
            self._taken[layer] = (taken[0].index_select(0, self._used), taken[1].index_select(0, self._used))
        return self._taken[layer]

    def gather(self, x: Tensor) -> Tensor:
        """(places, kv_heads, rows_of_a_prompt * per_head, D) from (R, kv_heads, per_head, D)."""
        by_prompt = x if self._in_order else x.index_select(0, self._table)
        by_prompt = by_prompt.reshape(self.places, self._most, *x.shape[1:]).transpose(1, 2)
        return by_prompt.reshape(self.places, x.shape[1], self._most * x.shape[2], x.shape[3])

    def scatter(self, x: Tensor) -> Tensor:
        """The way back: (R, kv_heads, per_head, D) from (places, kv_heads, rows_of_a_prompt * per_head, D)."""
        split = x.view(self.places, x.shape[1], self._most, -1, x.shape[3])
        by_prompt: Tensor = split.transpose(1, 2).flatten(0, 1)
        return by_prompt if self._in_order else by_prompt.index_select(0, self._back)
