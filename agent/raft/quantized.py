"""Frozen weights of linear layers in 8 or 4 bits under adapters, by bitsandbytes.

8 bits: one scale a row (LLM.int8, arXiv 2208.07339). 4 bits: NF4, one scale in each block of 64 (QLoRA, arXiv
2305.14314, without its second quantization of the scales). Embeddings, head and norms stay as they are. The weights are
quantized while they are read from the model's files, which hold them whole; a checkpoint holds the adapters alone, so
loading one quantizes the same base the same way.

It does not: quantize what is trained, or merge adapters into what is quantized.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agent.errors import Unsupported

Bits = Literal["8bit", "4bit"]
TRIAL_SIZE = 64
"""Inputs and outputs of the layer that is tried; a block of 4-bit weights has as many."""


def loading(bits: Bits, compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What transformers' `from_pretrained` has to be told. Raises Unsupported where it cannot compute on `device`."""
    from transformers import BitsAndBytesConfig

    refuse_where_it_fails(bits, compute, device)
    if bits == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    return {"quantization_config": config, "device_map": {"": device}}


def refuse_where_it_fails(bits: Bits, compute: torch.dtype, device: torch.device, library: Any = None) -> None:
    """Raises Unsupported unless `library` (bitsandbytes) can compute a product and its gradient on `device`.

    The package imports on every machine, and what it was not built for ends in an error of its own later on.
    """
    try:
        library = library or import_module("bitsandbytes")
        gradient = _gradient_through(library, bits, compute, device)
        problem = None if bool(gradient.isfinite().all()) else "the gradient of a small product is not finite"
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, OSError, ValueError, TypeError) as error:
        problem = (str(error) or type(error).__name__).splitlines()[0]
    if problem is not None:
        version = getattr(library, "__version__", "")
        raise Unsupported(
            f"model.quantize: {bits} does not work on {device.type} with bitsandbytes {version}: {problem}",
            hint="Set model.quantize to null, or install a bitsandbytes that is built for this device.",
        )


def _gradient_through(library: Any, bits: Bits, compute: torch.dtype, device: torch.device) -> Tensor:
    """Of the sum of a small layer's outputs, with respect to its input."""
    size: dict[str, Any] = {"input_features": TRIAL_SIZE, "output_features": TRIAL_SIZE, "bias": False}
    if bits == "8bit":
        layer = library.nn.Linear8bitLt(**size, has_fp16_weights=False)
    else:
        layer = library.nn.Linear4bit(**size, quant_type="nf4", compute_dtype=compute)
    x = torch.ones(2, TRIAL_SIZE, dtype=compute, device=device, requires_grad=True)
    with torch.enable_grad():
        layer.to(device).requires_grad_(False)(x).sum().backward()
    assert x.grad is not None
    return x.grad


def hold_one_way(model: nn.Module) -> None:
    """Have quantized layers compute the same way in sampling as in training, whatever mode the model is in.

    In evaluation mode on a CPU, bitsandbytes 0.50 rounds the inputs of 8-bit layers too, and rearranges 4-bit weights
    for good where the processor has AVX-512 bfloat16, after which the learner's pass fails. These layers have no
    dropout: nothing else depends on their mode.
    """
    for layer in quantized_layers(model):
        layer.training = True
        vars(layer)["train"] = lambda mode=True, layer=layer: layer


def quantized_layers(model: nn.Module) -> list[nn.Linear]:
    found = (module for module in model.modules() if isinstance(module, nn.Linear))
    return [module for module in found if type(module).__module__.startswith("bitsandbytes.")]


def scales(model: nn.Module) -> dict[str, Tensor]:
    """What quantized weights are multiplied by, which is not among the model's parameters."""
    return {f"scale {number}": scale_of(layer) for number, layer in enumerate(quantized_layers(model))}


def scale_of(layer: Any) -> Tensor:
    """Of the rows of an 8-bit layer, of the blocks of a 4-bit one."""
    four = getattr(layer.weight, "quant_state", None)
    first = layer.weight.SCB if four is None else four.absmax
    scale: Tensor = layer.state.SCB if first is None else first  # of 8 bits it moves there in the first product
    return scale


def elements(weight: Tensor) -> int:
    """Weights in a parameter; of 4-bit ones two lie in a byte."""
    shape = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)
    return math.prod(shape)
