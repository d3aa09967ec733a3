"""The processor: what it is, how many of its cores this process may use, whether it multiplies bfloat16 natively."""

from __future__ import annotations

import os
import platform
import re

from agent.hardware.cgroup import cpu_quota
from agent.hardware.root import HOST, Root

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Of /proc/cpuinfo; elsewhere bfloat16 is emulated and slow."""


def processor_name(*, root: Root = HOST) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", root.text("/proc/cpuinfo") or "", re.MULTILINE)
    if found:
        return found.group(1).strip()
    return (platform.processor() or platform.machine() or "processor") if root.is_host else "processor"


def processor_flags(*, root: Root = HOST) -> frozenset[str]:
    """Instruction sets, as the kernel names them; empty where it does not."""
    text = root.text("/proc/cpuinfo") or ""
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def cpu_bf16(*, root: Root = HOST) -> bool:
    return bool(processor_flags(root=root) & BF16_FLAGS)


def logical_processors(*, root: Root = HOST) -> int:
    """Of the machine, whether this process may use them or not."""
    listed = len(re.findall(r"^processor\s*:", root.text("/proc/cpuinfo") or "", re.MULTILINE))
    return max(1, listed or ((os.cpu_count() or 1) if root.is_host else 1))


def usable_cores(*, root: Root = HOST) -> int:
    """Processors this process may run on; a container's CPU quota counts."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity and root.is_host else logical_processors(root=root)
    quota = cpu_quota(root=root)
    return max(1, min(count, round(quota))) if quota else count


def governor(*, root: Root = HOST) -> str | None:
    """What decides the clock of the first processor: `performance`, `powersave`, ...; None where nothing does."""
    return root.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def load_average(*, root: Root = HOST) -> float | None:
    """Processes that ran or wanted to, averaged over a minute."""
    first = (root.text("/proc/loadavg") or "").partition(" ")[0]
    try:
        return float(first)
    except ValueError:
        return None
