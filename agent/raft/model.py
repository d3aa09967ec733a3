"""One resident model: on which device and in which arithmetic it runs, how it is called, how it is saved.

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.errors import RecipeError, Unavailable, Unsupported
from agent.hardware.sensors import GIB, memory
from agent.raft import let_in, quantized, sources, tiny
from agent.raft.attention import ARGUMENT, IMPLEMENTATION, Layout, PackedLayout, SegmentTree, register
from agent.raft.probe import cpu_bf16
from agent.raft.pulse import Beat
from agent.raft.sampling_weights import sampling_weights
from agent.raft.support import needs_transformers
from agent.recipe.memory import MachineFacts, arithmetic
from agent.recipe.schema import Backend, Lora, Recipe
from agent.recipe.shapes import shape_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INSPECTED_TOKENS = 12
"""Length of the two short samples with which a model is tried out when it is loaded."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Differences of logits that arithmetic alone explains: at the worst position, root of the mean square over the
vocabulary, in standard deviations of the logits. The largest single difference would grow with the vocabulary."""


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


def load_policy(
    recipe: Recipe,
    *,
    cache: Path,
    seed: int,
    beat: Beat,
    checkpoint: Path | None = None,
    checkpointing: bool = False,
    confirmed: str | None = None,
) -> Policy:
    """The recipe's model, ready to sample and train. `checkpoint` takes its weights from a run's folder instead.

    `seed` initializes adapters; `checkpointing` recomputes activations in the backward pass; `confirmed` is the digest
    of the model's own code that the user has confirmed. Raises Unavailable, Unsupported or RecipeError, each naming the
    key at fault, and UsageError for code that was not confirmed.
    """
    device, why = choose_device()
    refuse_absent_device(recipe.backend, device)
    adapter = checkpoint if checkpoint is not None and (checkpoint / let_in.ADAPTER_CONFIG).exists() else None
    weights = Path(_checkpoint_folder(checkpoint)) if checkpoint is not None and adapter is None else None
    if weights is not None and not recipe.model.trust_remote_code:
        source, weights = let_in.Source(str(weights)), None
    else:
        source = sources.fetch(recipe.model, cache=cache, beat=beat, confirmed=confirmed)
    shape = shape_of(recipe.model, cache=cache, base=Path.cwd()).shape
    compute = DTYPES[arithmetic(recipe.model.dtype, facts_of(device), parameters=shape.parameters if shape else None)]
    wanted = resolve_attention(recipe.backend, device)
    native = recipe.model.source == sources.TINY and adapter is None and not needs_transformers(recipe)
    if native:
        attention = wanted or "sdpa"
        model: Any = tiny.load_model(Path(source.name), attention=attention)
        tokenizer: Any = tiny.CharTokenizer.load(Path(source.name))
    else:
        frozen = recipe.model.lora is not None or adapter is not None
        # A checkpoint of all weights was trained, and is measured, as it is.
        bits = recipe.model.quantize if adapter is not None or checkpoint is None else None
        how = {} if bits is None else quantized.loading(bits, compute, device)
        model, tokenizer = _from_transformers(source, compute if frozen else torch.float32, wanted, **how)
        attention = model.config._attn_implementation
        if weights is not None:
            _take_weights(model, weights)
    if adapter is not None:
        model = _load_adapter(model, adapter)
    elif recipe.model.lora is not None and checkpoint is None:
        model = _add_adapter(model, recipe.model.lora, seed=seed)
    quantized.hold_one_way(model)
    if checkpointing:
        _enable_checkpointing(model)
    policy = Policy(
        model=model.to(device),
        tokenizer=tokenizer,
        device=device,
        device_why=why,
        compute=compute,
        attention=attention,
        native=native,
    )
    inspect_policy(policy)
    return policy


def policy_of(folder: Path, *, like: Policy, dtype: torch.dtype) -> Policy:
    """What transformers makes of a saved folder, on the device and in the arithmetic of another policy."""
    let_in.check_folder(folder, named=str(folder))
    model, tokenizer = _from_transformers(let_in.Source(str(folder)), dtype, like.attention)
    policy = Policy(
        model=model.to(like.device),
        tokenizer=tokenizer,
        device=like.device,
        device_why=like.device_why,
        compute=like.compute,
        attention=like.attention,
        native=False,
    )
    inspect_policy(policy)
    return policy


def load_dequantized(recipe: Recipe, *, cache: Path, beat: Beat, like: Policy, adapter: Path) -> Any:
    """The recipe's quantized base with plain weights of the same values, under the adapters. Raises Unsupported where
    transformers cannot dequantize it."""
    assert recipe.model.quantize is not None
    source = sources.fetch(recipe.model, cache=cache, beat=beat)
    how = quantized.loading(recipe.model.quantize, like.compute, like.device)
    model, _ = _from_transformers(source, like.compute, like.attention, **how)
    try:
        model = model.dequantize().to(like.compute)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        raise Unsupported(
            f"model.quantize: {recipe.model.quantize} cannot be turned back into plain weights here: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="train the recipe without model.quantize, or use the checkpoint's adapters on the quantized base",
        ) from error
    return _load_adapter(model, adapter)


@torch.no_grad()
def inspect_policy(policy: Policy) -> None:
    """Find out, by trying, whether layouts work on this model and whether its head is one matrix product.

    Two samples with a common beginning are run one by one through the model as it is, then as one packed row.
    """
    with policy.sampling():
        samples = _two_samples(policy)
        plain = [policy.inner(torch.tensor([ids], device=policy.device)).logits[0] for ids in samples]
        policy.layout_why_not = _try_layout(policy, samples, torch.cat(plain))
        policy.cache_bytes = policy.cache_bytes or _try_cache(policy, samples[0])
        policy.head = _try_head(policy, samples[0], plain[0])


def _try_layout(policy: Policy, samples: list[list[int]], plain: Tensor) -> str | None:
    """Why layouts do not work on this model; None where they do, and then `cache_bytes` is known too."""
    name = type(policy.inner).__name__
    if getattr(policy.config, "attention_chunk_size", None):
        return f"{name} attends in chunks, of which layouts know nothing"
    tree, layout = _as_tree(samples, policy)
    try:
        logits = policy.forward(tree.ids(), tree.positions(), layout)
    except torch.OutOfMemoryError:
        raise
    except (Unsupported, TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        return f"{name}: {(str(error) or type(error).__name__).splitlines()[0]}"
    finally:
        policy.attend_by(policy.attention)
    if not layout.seen:
        return f"{name} does not let its attention be replaced"
    if _has_window(policy.config) and not layout.windowed:
        return f"{name} keeps its window from its attention"  # and the samples here are too short to show one
    if not _alike(logits[tree.path(1) + tree.path(2)], plain):
        return f"{name} gives other logits on a packed row"
    policy.cache_bytes = layout.seen // tree.size * policy.compute.itemsize
    return None


def _try_cache(policy: Policy, sample: list[int]) -> int:
    """Bytes that `generate` keeps of a token: all keys and values, by the model's own cache; 0 where it has none."""
    ids = torch.tensor([sample], device=policy.device)
    try:
        kept = policy.inner(ids, use_cache=True).past_key_values
        layers = [(layer.keys, layer.values) for layer in kept.layers]
        size: int = sum(part.numel() * part.element_size() for layer in layers for part in layer)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError):  # a state instead of keys and values
        return 0
    return size // len(sample)


def _has_window(config: Any) -> bool:
    """Whether some layer looks back a limited number of positions."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return bool(getattr(config, "sliding_window", None)) and any("sliding" in kind for kind in kinds)


def _try_head(policy: Policy, sample: list[int], plain: Tensor) -> Head | None:
    # A cap on logits (Gemma 2) hardly shows on the small logits of a trial, and does in training.
    capped = getattr(policy.config, "final_logit_softcapping", None) is not None
    head = None if capped else _head_of(policy.inner)
    if head is None:
        return None
    hidden = head.trunk(input_ids=torch.tensor([sample], device=policy.device)).last_hidden_state[0]
    return head if _alike(functional.linear(hidden, head.weight, head.bias), plain) else None


def _two_samples(policy: Policy) -> list[list[int]]:
    size = int(policy.inner.get_output_embeddings().weight.shape[0])
    ids = [(7 * i * i + 3 * i + 1) % size for i in range(2 * INSPECTED_TOKENS)]
    half = INSPECTED_TOKENS // 2
    return [ids[:INSPECTED_TOKENS], ids[:half] + ids[INSPECTED_TOKENS : INSPECTED_TOKENS + half + 3]]


def _as_tree(samples: list[list[int]], policy: Policy) -> tuple[SegmentTree, _Weighing]:
    half = INSPECTED_TOKENS // 2
    tree = SegmentTree()
    root = tree.add(samples[0][:half])
    for ids in samples:
        tree.add(ids[half:], root)
    if not policy.native:
        register()
    return tree, _Weighing(tree, device=policy.device, eager=policy.eager)


class _Weighing(PackedLayout):
    """Counts the numbers in the keys and values that it is given, and notes whether a layer names a window."""

    seen = 0
    windowed = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        self.windowed |= how["window"] is not None
        if k.shape != v.shape:
            raise Unsupported(f"keys have {k.shape[-1]} numbers a head and values {v.shape[-1]}")
        self.seen += k.numel() + v.numel()
        return super().attend(layer, q, k, v, **how)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two computations of the same logits (N, V) agree."""
    difference = float((one.float() - other.float()).square().mean(-1).sqrt().max())
    return difference <= TOLERANCE[one.dtype] * max(float(other.float().std()), 1e-3)


def _head_of(model: Any) -> Head | None:
    trunk = model.get_decoder() if hasattr(model, "get_decoder") else None
    module = model.get_output_embeddings()
    if trunk is None or trunk is model or not isinstance(module, nn.Linear | nn.Embedding):
        return None
    if not module.weight.is_floating_point():  # quantized: its product is not one with this tensor
        return None
    return Head(trunk, module.weight, getattr(module, "bias", None))


def _checkpoint_folder(checkpoint: Path) -> str:
    if not (checkpoint / "config.json").exists():
        raise Unavailable(
            f"{checkpoint} is not a checkpoint: it has no config.json",
            hint="Name the `checkpoint` folder of a run, or `untrained`.",
        )
    let_in.check_folder(checkpoint, named=str(checkpoint))
    return str(checkpoint)


def choose_device() -> tuple[torch.device, str]:
    """The first accelerator, or the CPU, and why."""
    if torch.cuda.is_available():
        kind = "ROCm" if torch.version.hip else "CUDA"
        return torch.device("cuda", 0), f"{kind} device {torch.cuda.get_device_name(0)}"
    return torch.device("cpu"), f"no accelerator that torch {torch.__version__} can use"


def refuse_absent_device(backend: Backend, device: torch.device) -> None:
    """Raises Unsupported where the recipe asks for an accelerator's environment and torch has none.

    It would train a hundred times more slowly on the processor, and nobody would be told.
    """
    kind = {"cuda": "an NVIDIA card", "strix-halo": "an AMD GPU"}.get(backend.environment)
    wrong = device.type == "cuda" and (torch.version.hip is not None) != (backend.environment == "strix-halo")
    if kind is None or (device.type == "cuda" and not wrong):
        return
    found = "the other vendor's" if wrong else "none"
    raise Unsupported(
        f"backend.environment: {backend.environment} asks for {kind}, torch {torch.__version__} sees {found}",
        hint="Take auto, which fits itself to the machine; `raft-agent doctor` says why a card is not seen.",
    )


def facts_of(device: torch.device) -> MachineFacts:
    """What arithmetic and memory depend on."""
    if device.type != "cuda":
        return MachineFacts("cpu", bf16=cpu_bf16())
    integrated = bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))
    kind: Literal["cuda", "rocm"] = "rocm" if torch.version.hip else "cuda"
    return MachineFacts(kind, bf16=torch.cuda.is_bf16_supported(), unified=integrated)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be taken: what the driver has left, and what torch keeps of it without using it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return memory().available * GIB


def resolve_attention(backend: Backend, device: torch.device) -> str | None:
    """Name for transformers' `attn_implementation`; None leaves it to the model: sdpa, or eager where it has none.

    Raises Unsupported where it cannot run here.
    """
    match backend.attention:
        case "auto":
            return None
        case "sdpa":
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


def _from_transformers(source: let_in.Source, dtype: torch.dtype, attention: str | None, **how: Any) -> tuple[Any, Any]:
    """Model and tokenizer; `how`: what `from_pretrained` is told besides."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with let_in.reading(source):
        tokenizer = AutoTokenizer.from_pretrained(source.place, **source.how)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.place, dtype=dtype, attn_implementation=attention, **source.how_weights, **how
            )
        except (ValueError, ImportError) as error:
            if attention is None or "attention" not in str(error):
                raise
            raise Unsupported(
                f"backend.attention: this model does not run with {attention}: {str(error).split('.')[0]}",
                hint="Set backend.attention to auto or eager.",
            ) from error
    # What is saved of it (peft: `base_model_name_or_path`) names the model, not a folder of this machine's cache.
    model.name_or_path = model.config._name_or_path = source.name
    _without_dropout(model)
    return model, tokenizer


def _take_weights(model: Any, checkpoint: Path) -> None:
    """The checkpoint's weights into a model whose code was confirmed: the code beside a checkpoint was not."""
    from safetensors.torch import load_file

    unknown: set[str] = set()
    missing = set(model.state_dict())
    for part in sorted(checkpoint.glob("model*.safetensors")):
        found = load_file(part)
        missing -= set(found)
        unknown |= set(model.load_state_dict(found, strict=False).unexpected_keys)
    model.tie_weights()
    tied = {name for name, weight in model.state_dict().items() if name in missing and _is_tied(model, weight, missing)}
    if unknown or missing - tied:
        wrong = sorted(unknown or missing - tied)[0]
        raise Unavailable(f"{checkpoint} is no checkpoint of this model: {wrong} is not in both")


def _is_tied(model: Any, weight: Tensor, missing: set[str]) -> bool:
    return any(
        name not in missing and other.data_ptr() == weight.data_ptr() for name, other in model.state_dict().items()
    )


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

    let_in.check_adapter(adapter)
    with let_in.no_pickles():
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


def _embeds(model: Any) -> bool:
    """Whether adapters sit on embeddings or head, which are then saved along, as peft does. Left to itself it would
    also ask the hub whether the vocabulary is that of the model's newest commit."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    return not set(EMBEDDING_LAYER_NAMES).isdisjoint(model.active_peft_config.target_modules)


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
