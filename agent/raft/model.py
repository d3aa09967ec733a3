"""A recipe's model from its source, or from a checkpoint: weights, adapters, tokenizer, on the device that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent.errors import RecipeError, Unavailable, Unsupported
from agent.raft import let_in, quantized, sources, tiny
from agent.raft.device import choose_device, facts_of, refuse_absent_device, resolve_attention
from agent.raft.policy import Policy
from agent.raft.pulse import Beat
from agent.raft.support import needs_transformers
from agent.raft.tryout import inspect_policy
from agent.recipe.memory import arithmetic
from agent.recipe.schema import Lora, Recipe
from agent.recipe.shapes import shape_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def _checkpoint_folder(checkpoint: Path) -> str:
    if not (checkpoint / "config.json").exists():
        raise Unavailable(
            f"{checkpoint} is not a checkpoint: it has no config.json",
            hint="Name the `checkpoint` folder of a run, or `untrained`.",
        )
    let_in.check_folder(checkpoint, named=str(checkpoint))
    return str(checkpoint)


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
