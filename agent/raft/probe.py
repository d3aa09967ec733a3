"""`python -m agent.raft.probe`: what torch sees on this machine, as one JSON object on standard output.

Keys: torch (version), hip, cuda (versions or null), bf16 (the first device, or a CPU with native bfloat16),
threads, devices: name, arch (`gfx1151`, `sm_90`), memory_gb (GiB), bf16, integrated. It allocates nothing.
"""

from __future__ import annotations

import json
from typing import Any


def probe() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"torch": None, "devices": [], "problem": str(error)}
    answer: dict[str, Any] = {
        "torch": torch.__version__,
        "hip": torch.version.hip,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "devices": [],
    }
    try:
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
    }


def cpu_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively, by its flags; elsewhere it is emulated and slow."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123  # a device file, read once
            return any(flag in file.read() for flag in ("avx512_bf16", "amx_bf16"))
    except OSError:
        return False


if __name__ == "__main__":
    print(json.dumps(probe()))
