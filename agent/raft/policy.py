"""One resident model: how it is called, in which arithmetic, and how it is saved.

Trained weights and optimizer moments are float32 in every case; bfloat16 and float16 are the arithmetic of forward
and backward (autocast). Only frozen weights under an adapter are stored in the narrow type, or in fewer bits
(`agent.raft.quantized`).

It does not: shard, offload, quantize what is trained, or reload between cycles.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agent.errors import Unsupported
from agent.raft import quantized, tiny
from agent.raft.attention import ARGUMENT, IMPLEMENTATION, Layout
from agent.raft.device import free_memory
from agent.raft.sampling_weights import sampling_weights


@dataclass(frozen=True)
class Head:
    """The language-model head apart from the model, so that only the positions that count go through it."""

    trunk: Any
    """The model without its head: called like it, gives `last_hidden_state`."""
    weight: Tensor
    """(V, hidden)"""
    bias: Tensor | None


@dataclass
class Policy:
    """The model that is sampled from and trained, with what is needed to call it."""

    model: Any
    """A causal LM: a transformers model, a peft model around one, or `agent.raft.llama.TinyLlama`."""
    tokenizer: Any
    device: torch.device
    device_why: str
    compute: torch.dtype
    """Arithmetic of forward and backward."""
    attention: str
    """Name for transformers' `attn_implementation`, where no layout is used."""
    native: bool
    """Runs on `agent.raft.llama` instead of transformers."""
    layout_why_not: str | None = None
    """Why packed rows with a layout (`agent.raft.attention`) cannot be used; None where they can."""
    cache_bytes: int = 0
    """Of the keys and values of one token, all layers; 0 is not known."""
    head: Head | None = None
    """None where the model does more after its trunk than one matrix product."""

    @property
    def inner(self) -> Any:
        """The causal LM itself, with adapters in its layers where there are any."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def config(self) -> Any:
        """The configuration of the language model, also where that is one part of several (Gemma 3)."""
        whole = self.inner.config
        return whole.get_text_config() if hasattr(whole, "get_text_config") else whole

    def engine_for(self, wanted: str) -> Literal["slots", "hf"]:
        """The engine that the recipe's `rollout.engine` means on this model. Raises Unsupported."""
        if wanted == "hf" or (wanted == "auto" and self.layout_why_not is not None):
            return "hf"
        if self.layout_why_not is not None:
            raise Unsupported(
                f"rollout.engine: slots cannot run this model: {self.layout_why_not}",
                hint="Set rollout.engine to hf or auto.",
            )
        return "slots"

    @property
    def eager(self) -> bool:
        """Whether layouts compute attention scores explicitly."""
        return self.attention == "eager"

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a turn: the tokenizer's and those of the model's generation configuration."""
        found: set[int] = set()
        generation = getattr(self.model, "generation_config", None)
        for ids in (self.tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)):
            found.update([ids] if isinstance(ids, int) else ids or [])
        return frozenset(found)

    @cached_property
    def pad_id(self) -> int:
        """Any id that is embedded will do: padding is masked or lies behind what is looked at, and never decides a
        loss."""
        wanted = self.tokenizer.pad_token_id
        candidates = ([] if wanted is None else [int(wanted)]) + sorted(self.stop_ids)
        return next((id_ for id_ in candidates if id_ < self.vocabulary), 0)

    @cached_property
    def vocabulary(self) -> int:
        """Token ids that the model knows, from 0 on; the tokenizer may know fewer or more."""
        return int(self.inner.get_input_embeddings().weight.shape[0])

    @cached_property
    def max_length(self) -> int | None:
        """Most positions that the model has; None is no limit."""
        length = getattr(self.config, "max_position_embeddings", None)
        return int(length) if length else None

    def room(self, wanted: int) -> int:
        """Tokens that a prompt and its completion may have where `wanted` are allowed."""
        return min(wanted, self.max_length or wanted)

    @cached_property
    def arguments(self) -> frozenset[str]:
        """Names that the model's forward takes."""
        return frozenset(inspect.signature(self.inner.forward).parameters)

    def accepted(self, **arguments: Any) -> dict[str, Any]:
        """The arguments that this model's forward knows."""
        return {name: value for name, value in arguments.items() if name in self.arguments}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the arithmetic of the recipe."""
        training = self.model.training
        self.model.eval()
        try:
            # One autocast context for all steps: it casts the float32 weights once and keeps the copies.
            with torch.no_grad(), self.autocast():
                yield
        finally:
            self.model.train(training)
            self.attend_by(self.attention)

    def sampling_weights(self, *, rows: int, steps: int, merge: bool = True) -> contextlib.AbstractContextManager[None]:
        """For many forward passes of about so many rows with weights that stay as they are."""
        if self.native:
            return contextlib.nullcontext()
        free = self.free_memory()
        return sampling_weights(self.model, dtype=self.compute, rows=rows, steps=steps, free=free, merge=merge)

    def attend_by(self, implementation: str) -> None:
        """Have the model's attention computed by this implementation from now on; a layout needs its own."""
        if not self.native and self.inner.config._attn_implementation != implementation:
            self.inner.set_attn_implementation(implementation)

    def laid_out(self, ids: Tensor, positions: Tensor, layout: Layout) -> dict[str, Any]:
        """The arguments of a forward pass over a packed row (1, N); attention is by layouts from now on."""
        self.attend_by(IMPLEMENTATION)
        extra = {} if self.native else {"use_cache": False}
        return {"input_ids": ids, "position_ids": positions, ARGUMENT: layout, **extra}

    def forward(
        self, ids: Sequence[int], positions: Sequence[int], layout: Layout, keep: Sequence[int] | None = None
    ) -> Tensor:
        """Logits (len(keep), V) at some places of a packed row, or (N, V) at all."""
        row, places_in_sample = (torch.tensor([values], device=self.device) for values in (ids, positions))
        arguments = self.laid_out(row, places_in_sample, layout)
        if keep is None:
            logits: Tensor = self.inner(**arguments).logits[0]
            return logits
        places = torch.tensor(keep, device=self.device)
        if "logits_to_keep" in self.arguments:
            logits = self.inner(**arguments, logits_to_keep=places).logits[0]
            return logits
        logits = self.inner(**arguments).logits[0, places]
        return logits

    def free_memory(self) -> float:
        """Bytes that can still be taken on the model's device."""
        return free_memory(self.device)

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        """Text of a completion; end-of-turn and other special tokens are not text, unless they are asked for."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not special))

    @cached_property
    def special_texts(self) -> frozenset[str]:
        """How the tokens that `decode` leaves out are written."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        named = getattr(self.tokenizer, "all_special_tokens", [])
        return frozenset([*named, *(token.content for token in added if token.special)]) - {""}

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the trained weights."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        for name, p in self.trainable().items():
            p.copy_(weights[name])

    def release(self) -> None:
        """Give the model's memory back, as far as nobody else holds it. Nothing but words is left afterwards."""
        self.model = self.head = None
        gc.unfreeze()
        gc.collect()
        self.trim()

    def trim(self) -> None:
        """Give back what torch keeps of an accelerator's memory without using it: another process cannot."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def parameter_counts(self) -> tuple[int, int]:
        """All parameters and the trained ones; shared ones count once."""
        parameters = list(self.model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        return sum(quantized.elements(p) for p in parameters), trained

    def save(self, folder: Path) -> None:
        """A folder that transformers (and, for adapters, peft) loads: weights, configuration, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.native:
            tiny.save_model(self.model, folder)
        elif hasattr(self.model, "peft_config"):
            self.model.save_pretrained(folder, save_embedding_layers=_embeds(self.model))
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(str(folder))


def _embeds(model: Any) -> bool:
    """Whether adapters sit on embeddings or head, which are then saved along, as peft does. Left to itself it would
    also ask the hub whether the vocabulary is that of the model's newest commit."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    return not set(EMBEDDING_LAYER_NAMES).isdisjoint(model.active_peft_config.target_modules)
