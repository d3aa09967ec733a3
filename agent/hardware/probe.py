"""What machine this is: processors, memory, accelerators, and which optional back ends can be imported.

Whatever needs torch is asked of a child process (`python -m agent.raft.probe`, which prints one JSON object), so
that a broken driver can hang or kill the child and not the agent. Its answer is cached until the machine is
rebooted or another torch is installed. A probe that fails leaves `torch` unknown with the reason in `note`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from agent.files import write_atomic
from agent.hardware.sensors import GIB, graphics, kfd_architectures, memory

Kind = Literal["cpu", "cuda", "rocm"]

OPTIONAL_PACKAGES = (
    "flash_attn",
    "triton",
    "bitsandbytes",
    "liger_kernel",
    "vllm",
    "megatron",
    "nemo_automodel",
    "deepspeed",
    "xformers",
    "math_verify",
    "reasoning_gym",
)
PROBE_TIMEOUT_S = 120.0
UNIFIED_ARCHITECTURES = frozenset({"gfx1150", "gfx1151", "gfx1152", "gfx1103", "gfx1035", "sm_121", "sm_87"})
"""Graphics parts that share the processor's memory: Strix Point/Halo/Krackan, Phoenix, Rembrandt, GB10, Orin."""
CACHE_FORMAT = 1


@dataclass(frozen=True)
class Machine:
    kind: Kind
    accelerators: int
    arch: str | None
    """`gfx1151`, `sm_90`; None without an accelerator, or where none is known."""
    name: str
    cores: int
    """Processors that this process may use (affinity and control-group quota taken into account)."""
    memory_gb: float
    """Host memory in GiB, or a container's limit."""
    accelerator_memory_gb: float | None
    """Of one accelerator, GiB."""
    bf16: bool
    """The accelerator computes in bfloat16 natively."""
    unified_memory: bool
    torch: str | None
    packages: frozenset[str]
    """Optional back ends that can be imported."""
    note: str = ""
    """What could not be found out and why, or what looks wrong; empty where all is well."""

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.kind == "cpu":
            return f"{self.name}, {self.cores} cores, {self.memory_gb:.0f} GiB"
        share = "shared" if self.unified_memory else "own"
        size = (
            f"{self.accelerator_memory_gb:.0f} GiB {share} memory" if self.accelerator_memory_gb else "memory unknown"
        )
        return f"{self.accelerators} x {self.name} ({self.arch or 'architecture unknown'}, {size})"


MACHINE = "machine.json"
"""Name of the file, in a cache folder, that keeps what was found."""


def probe_machine(
    *,
    cache: Path | None,
    python: str = sys.executable,
    command: Sequence[str] | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Machine:
    """Ask the machine, or the cache. `cache` is a file; `command` stands in for the child that looks at torch."""
    command = list(command) if command is not None else [python, "-m", "agent.raft.probe"]
    key = _fingerprint(python, command)
    cached = _from_cache(cache, key)
    if cached is not None:
        return cached
    answer, problem = _ask_torch(command, timeout_s=timeout_s)
    machine = machine_from(answer, problem=problem, packages=_importable(python))
    if cache is not None and problem is None:
        _to_cache(cache, key, machine)
    return machine


def machine_from(answer: Mapping[str, Any], *, problem: str | None, packages: frozenset[str]) -> Machine:
    """Put the child's answer and our own readings together.

    Keys of `answer` that are used: torch, hip, cuda, devices (a list of name, arch, memory_gb, bf16, integrated).
    """
    devices = [device for device in answer.get("devices") or [] if isinstance(device, Mapping)]
    kind: Kind = "cpu" if not devices else "rocm" if answer.get("hip") else "cuda"
    first = devices[0] if devices else {}
    arch = _architecture(first.get("arch"))
    size = first.get("memory_gb")
    return Machine(
        kind=kind,
        accelerators=len(devices),
        arch=arch,
        name=str(first.get("name") or _processor_name()),
        cores=usable_cores(),
        memory_gb=round(memory().total, 2),
        accelerator_memory_gb=round(float(size), 2) if isinstance(size, int | float) else None,
        bf16=bool(first.get("bf16", answer.get("bf16", False))),
        unified_memory=bool(first.get("integrated")) or arch in UNIFIED_ARCHITECTURES,
        torch=str(answer["torch"]) if answer.get("torch") else None,
        packages=packages,
        note="; ".join(_notes(answer, problem=problem, kind=kind)),
    )


def usable_cores() -> int:
    """Processors this process may run on; a container's CPU quota counts."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = _cpu_quota()
    return max(1, min(count, round(quota))) if quota else count


def _cpu_quota() -> float | None:
    """Processors' worth of time that the container may use (cgroup v2 cpu.max, v1 cfs quota), or None."""
    root = Path("/sys/fs/cgroup")
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # `max` and -1 are no quota
    return int(quota) / int(period)


def _notes(answer: Mapping[str, Any], *, problem: str | None, kind: Kind) -> list[str]:
    notes = [f"torch unknown: {problem}"] if problem else []
    if answer.get("problem"):
        notes.append(str(answer["problem"]))
    listed = kfd_architectures() or [card.card for card in graphics()]
    if kind == "cpu" and listed:
        notes.append(
            f"this machine has an AMD GPU ({', '.join(listed)}) that torch does not see: "
            "install a ROCm wheel for it, and be in the groups `video` and `render`"
        )
    return notes


def _ask_torch(command: Sequence[str], *, timeout_s: float) -> tuple[dict[str, Any], str | None]:
    """(answer, None) or ({}, why there is none). The last line that is a JSON object counts: drivers print too."""
    environment = {**os.environ, "PYTHONPATH": package_path(os.environ.get("PYTHONPATH"))}
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            timeout=timeout_s,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}, f"the probe did not answer in {timeout_s:g} s (a driver that hangs does that)"
    except OSError as error:
        return {}, f"{command[0]}: {error.strerror}"
    for line in reversed(child.stdout.decode(errors="replace").splitlines()):
        answer = _object(line)
        if answer is not None:
            return answer, None
    said = [line for line in child.stderr.decode(errors="replace").splitlines() if line.strip()]
    ended = f"ended by signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
    return {}, f"the probe gave no answer ({ended}{': ' + said[-1].strip()[:200] if said else ''})"


def package_path(before: str | None) -> str:
    """A PYTHONPATH on which a child finds this same `agent` package, wherever it runs.

    An installed package is found anyway; putting site-packages first would let it shadow the standard library.
    """
    parent = Path(__file__).resolve().parents[2]
    if parent.name in ("site-packages", "dist-packages"):
        return before or ""
    return os.pathsep.join([str(parent), *([before] if before else [])])


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _architecture(value: object) -> str | None:
    """`gfx1151:sramecc-:xnack-` is gfx1151; `9.0` or (9, 0) is sm_90."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 2:
        return f"sm_{value[0]}{value[1]}"
    text = str(value).split(":")[0].strip()
    numbers = re.fullmatch(r"(\d+)\.(\d+)", text)
    return f"sm_{numbers.group(1)}{numbers.group(2)}" if numbers else text or None


def _processor_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine() or "processor"


def _importable(python: str) -> frozenset[str]:
    """Optional packages that this interpreter, or another one asked as a child, would find."""
    if python == sys.executable:
        return frozenset(name for name in OPTIONAL_PACKAGES if _found(name))
    code = "import importlib.util, sys\nfor name in sys.argv[1:]:\n    if importlib.util.find_spec(name): print(name)"
    try:
        child = subprocess.run(
            [python, "-c", code, *OPTIONAL_PACKAGES], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(child.stdout.split()) & frozenset(OPTIONAL_PACKAGES)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# --- the cache ---------------------------------------------------------------------------------------------


def _fingerprint(python: str, command: Sequence[str]) -> dict[str, Any]:
    """Changes with a reboot (a card may have moved), another interpreter, torch or limit of memory."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return {
        "format": CACHE_FORMAT,
        "boot": f"{psutil.boot_time():.0f}",
        "python": python,
        "command": list(command),
        "torch": torch,
        "memory": round(memory().total * GIB),
        "cores": usable_cores(),
        "visible": {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")},
    }


def _from_cache(cache: Path | None, key: Mapping[str, Any]) -> Machine | None:
    if cache is None:
        return None
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        return Machine(**{**content["machine"], "packages": frozenset(content["machine"]["packages"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no cache, or one that another version wrote


def _to_cache(cache: Path, key: Mapping[str, Any], machine: Machine) -> None:
    fields = {**dataclasses.asdict(machine), "packages": sorted(machine.packages)}
    try:
        write_atomic(cache, json.dumps({"key": key, "machine": fields}, indent=1) + "\n")
    except OSError:
        pass  # the answer is good without a cache; asking again costs seconds
