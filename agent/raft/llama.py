"""The Llama architecture in plain torch, for the built-in model. Same parameter names and numbers as transformers'.

Importing transformers costs about three seconds and its forward about a millisecond a layer-free step, which is
nothing for a real model and half of a short experiment on the built-in one. So `builtin:tiny` runs on these 150
lines wherever the recipe needs nothing more (`agent.raft.model` decides). Checkpoints are interchangeable: the
same `config.json` and `model.safetensors` load in `LlamaForCausalLM`, and a test holds both to the same logits.

It does not do: rope scaling, biases, sliding windows, untied heads, quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.raft.attention import Layout


@dataclass(frozen=True)
class LlamaShape:
    """The part of a transformers `LlamaConfig` that this implementation reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def of(cls, config: dict[str, Any]) -> LlamaShape:
        """From the mapping of a `config.json`."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})

    def config(self) -> dict[str, Any]:
        """A `config.json` that transformers reads as the same model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "dtype": "float32",
        }


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: LlamaShape, layer: int):
        super().__init__()
        self.heads, self.head_dim, self.layer = shape.num_attention_heads, shape.head_dim, layer
        self.eager = False
        size = shape.hidden_size
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout | None) -> Tensor:
        rows, length, size = x.shape
        split = (rows, length, self.heads, self.head_dim)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), rotary)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), rotary)
        v = self.v_proj(x).view(split).transpose(1, 2)
        if layout is None:
            out = self._attend(q, k, v).transpose(1, 2)
        else:
            out = layout.attend(self.layer, q, k, v, scale=self.head_dim**-0.5, window=None, softcap=None)
        joined: Tensor = self.o_proj(out.reshape(rows, length, size))
        return joined

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal."""
        if not self.eager:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~causal, torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class FeedForward(nn.Module):
    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape, layer: int):
        super().__init__()
        self.self_attn = Attention(shape, layer)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, layout)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    """Embedding, layers and the last norm: what transformers keeps under `model.`."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.checkpointing = False
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, raft_layout: Layout | None = None
    ) -> SimpleNamespace:
        """`last_hidden_state` (rows, length, hidden)."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = self._rotary(position_ids)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                from torch.utils.checkpoint import checkpoint

                x = checkpoint(layer, x, rotary, raft_layout, use_reentrant=False)
            else:
                x = layer(x, rotary, raft_layout)
        return SimpleNamespace(last_hidden_state=self.norm(x))

    def _rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (rows, 1, length, head_dim)."""
        frequencies: Tensor = self.get_buffer("frequencies")
        angles = position_ids[:, None, :, None].float() * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


class TinyLlama(nn.Module):
    """Causal LM with tied embeddings; called like a transformers model, as far as the trainer calls one."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.shape = shape
        self.config = SimpleNamespace(**shape.config())
        self.model = Trunk(shape)

    def initialize(self, generator: torch.Generator, *, std: float) -> None:
        """Normal weights with this standard deviation, norms at one."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std, generator=generator)

    def set_attn_implementation(self, name: str) -> None:
        """`eager`, or anything else for sdpa; a layout that is given to `forward` goes before either."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.eager = name == "eager"

    def gradient_checkpointing_enable(self) -> None:
        self.model.checkpointing = True

    def get_decoder(self) -> Trunk:
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        raft_layout: Layout | None = None,
    ) -> SimpleNamespace:
        """Logits (rows, kept, vocabulary); `logits_to_keep`: the number of last positions (0: all), or positions."""
        x = self.model(input_ids, position_ids, raft_layout).last_hidden_state
        x = x[:, logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep or None, None)]
        return SimpleNamespace(logits=functional.linear(x, self.model.embed_tokens.weight))


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding on the two halves of the head dimension (arXiv 2104.09864, Llama's layout)."""
    cos, sin = rotary
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * cos + turned * sin).to(x.dtype)
