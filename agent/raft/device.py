"""The device that a training runs on: which one, what it can do, what is free on it, and how attention runs there."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

from agent.errors import Unsupported
from agent.hardware.sensors import GIB, memory
from agent.raft.probe import cpu_bf16
from agent.recipe.memory import MachineFacts
from agent.recipe.schema import Backend


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
