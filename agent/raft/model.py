"""One resident model: on which device and in which arithmetic it runs, how it is called, how it is saved.

Trained weights and optimizer moments are float32 in every case; bfloat16 and float16 are the arithmetic of forward
and backward (autocast). Only frozen weights under an adapter are stored in the narrow type.

It does not: shard, offload, quantize, or reload between cycles.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent.errors import RecipeError, Unavailable, Unsupported
from agent.raft import sources, tiny
from agent.raft.llama import KeyValueCache
from agent.raft.support import needs_transformers
from agent.recipe.schema import Backend, Lora, Model, Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER_CONFIG = "adapter_config.json"
Beat = Callable[..., None]


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
    native: bool
    """Runs on `agent.raft.llama` instead of transformers."""

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
        """Any id will do: padding is masked or lies behind what is looked at, and never decides a loss."""
        if self.tokenizer.pad_token_id is not None:
            return int(self.tokenizer.pad_token_id)
        return min(self.stop_ids, default=0)

    @cached_property
    def max_length(self) -> int | None:
        """Most positions that the model has; None is no limit."""
        length = getattr(self.model.config, "max_position_embeddings", None)
        return int(length) if length else None

    @cached_property
    def arguments(self) -> frozenset[str]:
        """Names that the model's forward takes."""
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return frozenset(inspect.signature(inner.forward).parameters)

    def accepted(self, **arguments: Any) -> dict[str, Any]:
        """The arguments that this model's forward knows."""
        return {name: value for name, value in arguments.items() if name in self.arguments}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)

    def step(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        """Logits after the last token (B, V) and the cache grown by `ids` (B, L). `mask` (B, past + L) or None."""
        if cache is None and self.native:
            cache = KeyValueCache()
        out = self.model(
            **self.accepted(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        )
        if not hasattr(out.past_key_values, "batch_select_indices"):
            raise Unsupported(
                f"{type(self.model).__name__} has no cache whose rows rollout.engine: native could select",
                hint="Set rollout.engine to `transformers`, or choose a decoder-only attention model.",
            )
        return out.logits[:, -1], out.past_key_values

    def decode(self, tokens: list[int]) -> str:
        """Text of a completion; end-of-turn and other special tokens are not text."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the trained weights."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        for name, p in self.trainable().items():
            p.copy_(weights[name])

    def parameter_counts(self) -> tuple[int, int]:
        """All parameters and the trained ones; shared ones count once."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)

    def save(self, folder: Path) -> None:
        """A folder that transformers (and, for adapters, peft) loads: weights, configuration, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.native:
            tiny.save_model(self.model, folder)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(str(folder))


def load_policy(recipe: Recipe, *, cache: Path, seed: int, beat: Beat, checkpoint: Path | None = None) -> Policy:
    """The recipe's model, ready to sample and train. `checkpoint` takes its weights from a run's folder instead.

    `seed` initializes adapters. Raises Unavailable, Unsupported or RecipeError, each naming the key at fault.
    """
    device, why = choose_device()
    compute = choose_compute(recipe.model, device)
    attention = resolve_attention(recipe.backend, device)
    adapter = checkpoint if checkpoint is not None and (checkpoint / ADAPTER_CONFIG).exists() else None
    if checkpoint is not None and adapter is None:
        source = sources.Source(_checkpoint_folder(checkpoint))
    else:
        source = sources.fetch(recipe.model, cache=cache, beat=beat)
    native = recipe.model.source == sources.TINY and adapter is None and not needs_transformers(recipe)
    if native:
        model: Any = tiny.load_model(Path(source.name), attention=attention)
        tokenizer: Any = tiny.CharTokenizer.load(Path(source.name))
    else:
        frozen = recipe.model.lora is not None or adapter is not None
        model, tokenizer = _from_transformers(source, compute if frozen else torch.float32, attention)
    if adapter is not None:
        model = _load_adapter(model, adapter)
    elif recipe.model.lora is not None and checkpoint is None:
        model = _add_adapter(model, recipe.model.lora, seed=seed)
    if recipe.learner.gradient_checkpointing:
        _enable_checkpointing(model)
    return Policy(
        model=model.to(device),
        tokenizer=tokenizer,
        device=device,
        device_why=why,
        compute=compute,
        attention=attention,
        native=native,
    )


def _checkpoint_folder(checkpoint: Path) -> str:
    if not (checkpoint / "config.json").exists():
        raise Unavailable(
            f"{checkpoint} is not a checkpoint: it has no config.json",
            hint="Name the `checkpoint` folder of a run, or `untrained`.",
        )
    return str(checkpoint)


def choose_device() -> tuple[torch.device, str]:
    """The first accelerator, or the CPU, and why."""
    if torch.cuda.is_available():
        kind = "ROCm" if torch.version.hip else "CUDA"
        return torch.device("cuda", 0), f"{kind} device {torch.cuda.get_device_name(0)}"
    return torch.device("cpu"), f"no accelerator that torch {torch.__version__} can use"


def choose_compute(model: Model, device: torch.device) -> torch.dtype:
    """Arithmetic of forward and backward; `auto` is float32 on a CPU, bfloat16 on a GPU that has it."""
    if model.dtype != "auto":
        return DTYPES[model.dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def resolve_attention(backend: Backend, device: torch.device) -> str:
    """Name for transformers' `attn_implementation`. Raises Unsupported where it cannot run here."""
    match backend.attention:
        case "auto" | "sdpa":
            return "sdpa"
        case "eager":
            return "eager"
        case "flash":
            if device.type == "cpu" or find_spec("flash_attn") is None:
                reason = "there is no GPU" if device.type == "cpu" else "the package flash-attn is not installed"
                raise Unsupported(
                    f"backend.attention: flash cannot run here, because {reason}",
                    hint="Set backend.attention to sdpa.",
                )
            return "flash_attention_2"
        case "flex":
            if device.type == "cpu":
                raise Unsupported(
                    "backend.attention: flex cannot run here, because training with it needs a GPU",
                    hint="Set backend.attention to sdpa.",
                )
            return "flex_attention"


def _from_transformers(source: sources.Source, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with sources.reading(source):
        tokenizer = AutoTokenizer.from_pretrained(source.name, revision=source.revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.name, revision=source.revision, dtype=dtype, attn_implementation=attention
        )
    _without_dropout(model)
    return model, tokenizer


def _without_dropout(model: nn.Module) -> None:
    """Dropout would have the learner see another policy than the one that was sampled from (GPT-2 ships with 0.1).

    An adapter's own dropout, which the recipe asks for, is added later and stays.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "resid_dropout", "hidden_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _load_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter), is_trainable=True)


def _add_adapter(model: Any, lora: Lora, *, seed: int) -> Any:
    """The model with low-rank adapters, float32, and everything else frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise RecipeError(
            f"model.lora.targets does not fit this model: {str(error).splitlines()[0]}",
            hint=f"Linear modules here: {', '.join(names)}; or `all-linear`.",
            key="model.lora.targets",
            suggestion="all-linear",
        ) from error


def _enable_checkpointing(model: Any) -> None:
    # transformers renamed it; the old name is on its way out.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if enable is None:
        raise Unsupported(f"learner.gradient_checkpointing: {type(model).__name__} has none", hint="Set it to false.")
    enable()
    if hasattr(model, "enable_input_require_grads"):
        # With frozen embeddings nothing that enters a checkpointed block requires a gradient, and none would flow.
        model.enable_input_require_grads()
