"""`python -m agent.raft.probe`: what torch sees on this machine, as one JSON object on standard output.

Keys: torch (version), hip, cuda (versions or null), arch_list (architectures that this build has code for), packages
(versions of torch, ROCm and the packages with a card's code), bf16 (the first device, or a CPU with native bfloat16),
threads, devices: name, arch (`gfx1151`, `sm_90`), memory_gb (GiB), bf16, integrated, pci (`0000:c5:00.0` or null). It
allocates nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

from agent.hardware.processor import cpu_bf16

__all__ = ["cpu_bf16", "device", "probe"]

DEVICE_PACKAGES = ("amd-torch-device", "rocm", "triton", "pytorch-triton", "nvidia-cuda-runtime")


def probe() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"torch": None, "devices": [], "problem": str(error)}
    answer: dict[str, Any] = {
        "torch": torch.__version__,
        "hip": torch.version.hip,
        "cuda": torch.version.cuda,
        "packages": packages(),
        "threads": torch.get_num_threads(),
        "devices": [],
    }
    try:
        answer["arch_list"] = torch.cuda.get_arch_list()
        if torch.cuda.is_available():
            answer["devices"] = [device(torch, index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        answer["problem"] = str(error).splitlines()[0]
    answer["bf16"] = answer["devices"][0]["bf16"] if answer["devices"] else cpu_bf16()
    return answer


def device(torch: Any, index: int) -> dict[str, Any]:
    """One accelerator; an AMD architecture is named without its feature flags (`gfx90a:sramecc+` is `gfx90a`)."""
    properties = torch.cuda.get_device_properties(index)
    amd = getattr(properties, "gcnArchName", None) if torch.version.hip else None
    arch = amd.split(":")[0] if amd else f"sm_{properties.major}{properties.minor}"
    return {
        "name": properties.name,
        "arch": arch,
        "memory_gb": properties.total_memory / 2**30,
        # Compute capability 8.0 (Ampere) brought bfloat16; every AMD part that ROCm's torch runs on has it.
        "bf16": bool(amd) or properties.major >= 8,
        "integrated": bool(getattr(properties, "is_integrated", False)),
        "pci": _pci(properties),
    }


def _pci(properties: Any) -> str | None:
    """Where it is on the bus; versions of torch before 2.8 do not tell."""
    parts = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    if not all(isinstance(part, int) for part in parts):
        return None
    domain, bus, slot = parts
    return f"{domain:04x}:{bus:02x}:{slot:02x}.0"


def packages() -> dict[str, str]:
    """Version by name of torch, ROCm, and what carries a card's code beside them."""
    found = ((one.name, one.version) for one in importlib.metadata.distributions())
    return {name: version for name, version in found if name and (name == "torch" or name.startswith(DEVICE_PACKAGES))}


if __name__ == "__main__":
    print(json.dumps(probe()))
