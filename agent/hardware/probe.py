"""What machine this is: processors, memory, accelerators, and which optional back ends can be imported.

Whatever needs torch is asked of a child process (`python -m agent.raft.probe`, which prints one JSON object), so
that a broken driver can hang or kill the child and not the agent. Its answer is cached until the machine is
rebooted or another torch is installed. A probe that fails leaves `torch` unknown with the reason in `note`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from agent.files import write_atomic
from agent.hardware.measured import Comparison, measured_path, read_measured
from agent.hardware.processor import processor_name, usable_cores
from agent.hardware.root import HOST, Root
from agent.hardware.sensors import GIB, Graphics, graphics, kfd_architectures, memory
from agent.package import of_ours

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
KILL_WAIT_S = 5.0
UNIFIED_ARCHITECTURES = frozenset({"gfx1150", "gfx1151", "gfx1152", "gfx1103", "gfx1035", "sm_121", "sm_87"})
"""Graphics parts that share the processor's memory: Strix Point/Halo/Krackan, Phoenix, Rembrandt, GB10, Orin."""
CACHE_FORMAT = 2
DECIDE = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HSA_OVERRIDE_GFX_VERSION",
    "LD_LIBRARY_PATH",
)
"""Variables that change which devices torch sees, or what it takes them for."""
DEVICE_PACKAGES = ("amd-torch-device", "rocm-sdk", "rocm")
"""Beginnings of the names of packages that carry a GPU's code, or ROCm itself, beside torch."""


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
    listed: tuple[str, ...] = ()
    """Graphics cards that the kernel or NVML lists, in words, whether torch sees them or not."""
    measured: tuple[Comparison, ...] = ()
    """What `raft-agent doctor` has measured on this machine with this torch; it is not part of the cached answer."""

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
    root: Root = HOST,
    measured: Path | None = None,
) -> Machine:
    """Ask the machine, or the cache. `cache` is a file; `command` stands in for the child that looks at torch.

    What `raft-agent doctor` has measured here comes with the answer, from `measured` or the user's own file.
    """
    command = list(command) if command is not None else probe_command(python)
    key = _fingerprint(python, command, root)
    machine = _from_cache(cache, key)
    if machine is None:
        answer, problem = ask_child(command, timeout_s=timeout_s)
        machine = machine_from(answer, problem=problem, packages=importable(python), root=root)
        if cache is not None and problem is None:
            _to_cache(cache, key, machine)
    known = read_measured(measured or measured_path(), fingerprint(machine, root=root))
    return dataclasses.replace(machine, measured=known)


def probe_command(python: str = sys.executable) -> list[str]:
    return [python, "-m", "agent.raft.probe"]


def machine_from(
    answer: Mapping[str, Any], *, problem: str | None, packages: frozenset[str], root: Root = HOST
) -> Machine:
    """Put the child's answer and our own readings together.

    Keys of `answer` that are used: torch, hip, cuda, devices (a list of name, arch, memory_gb, bf16, integrated, pci).
    """
    devices = [device for device in answer.get("devices") or [] if isinstance(device, Mapping)]
    kind: Kind = "cpu" if not devices else "rocm" if answer.get("hip") else "cuda"
    first = devices[0] if devices else {}
    arch = _architecture(first.get("arch"))
    size = first.get("memory_gb")
    cards = graphics(root=root)
    return Machine(
        kind=kind,
        accelerators=len(devices),
        arch=arch,
        name=str(first.get("name") or processor_name(root=root)),
        cores=usable_cores(root=root),
        memory_gb=round(memory(root=root).total, 2),
        accelerator_memory_gb=round(float(size), 2) if isinstance(size, int | float) else None,
        bf16=bool(first.get("bf16", answer.get("bf16", False))),
        unified_memory=bool(first.get("integrated")) or arch in UNIFIED_ARCHITECTURES,
        torch=str(answer["torch"]) if answer.get("torch") else None,
        packages=packages,
        note="; ".join(_notes(answer, devices, problem=problem, cards=cards, root=root)),
        listed=tuple(card.words for card in cards),
    )


def fingerprint(machine: Machine, *, root: Root = HOST) -> dict[str, str]:
    """What a measurement holds for: another torch, card or kernel is another machine, a reboot is not."""
    return {
        "machine": machine.name,
        "arch": machine.arch or "",
        "accelerators": str(machine.accelerators),
        "torch": machine.torch or "",
        "kernel": root.text("/proc/sys/kernel/osrelease") or "",
    }


# Which cards, and which of them torch takes ----------------------------------------------------------------


def _notes(
    answer: Mapping[str, Any],
    devices: Sequence[Mapping[str, Any]],
    *,
    problem: str | None,
    cards: Sequence[Graphics],
    root: Root,
) -> list[str]:
    notes = [f"torch unknown: {problem}"] if problem else []
    if answer.get("problem"):
        notes.append(str(answer["problem"]))
    return notes + _unseen(answer, devices, cards, root) + _mixed(devices, cards)


def _unseen(
    answer: Mapping[str, Any], devices: Sequence[Mapping[str, Any]], cards: Sequence[Graphics], root: Root
) -> list[str]:
    """Cards that the kernel lists and torch does not: by vendor, since one build of torch serves one."""
    notes = []
    for vendor, seen in (("amd", answer.get("hip")), ("nvidia", answer.get("cuda"))):
        ours = [card for card in cards if card.vendor == vendor]
        usable = len(devices) if seen else 0
        if len(ours) > usable:
            missing = [card for card in ours if not any(_same(card, device) for device in devices)] if usable else ours
            notes += [
                f"torch does not see {', '.join(card.words for card in missing or ours)}: {_why_unseen(answer, vendor)}"
            ]
    if not cards and not devices and kfd_architectures(root=root):
        listed = ", ".join(kfd_architectures(root=root))
        notes.append(f"torch does not see an AMD GPU ({listed}): {_why_unseen(answer, 'amd')}")
    return notes


def _why_unseen(answer: Mapping[str, Any], vendor: str) -> str:
    if answer.get("devices") and not answer.get("hip" if vendor == "amd" else "cuda"):
        return "its build is for the other card"
    torch, build = answer.get("torch"), "a ROCm" if vendor == "amd" else "a CUDA"
    if not torch:
        return "torch itself did not answer"
    if not answer.get("hip" if vendor == "amd" else "cuda"):
        return f"torch {torch} is not {build} build; install one for this card (docs/hardware.md, Which torch)"
    if vendor == "amd":
        return "be in the groups `video` and `render`, and see that HIP_VISIBLE_DEVICES does not hide it"
    return "see that nvidia-smi lists it, and that CUDA_VISIBLE_DEVICES does not hide it"


def _mixed(devices: Sequence[Mapping[str, Any]], cards: Sequence[Graphics]) -> list[str]:
    """Several accelerators that are not alike: torch takes its first, whatever the number of the card."""
    kinds = {_architecture(device.get("arch")) for device in devices}
    if len(kinds) < 2:
        return []
    names = [
        f"{index}: {device.get('name')} ({_architecture(device.get('arch'))})" for index, device in enumerate(devices)
    ]
    first = next((card.card for card in cards if _same(card, devices[0])), None)
    where = f" ({first})" if first else ""
    return [
        f"torch sees unlike devices ({', '.join(names)}) and computes on the first{where}; "
        "HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES chooses another"
    ]


def _same(card: Graphics, device: Mapping[str, Any]) -> bool:
    """By PCI address where torch tells it, else by architecture."""
    if card.pci and device.get("pci"):
        return card.pci.lower()[-12:-2] == str(device["pci"]).lower()[-12:-2]  # without the function's number
    return card.arch is not None and card.arch == _architecture(device.get("arch"))


def ask_child(
    command: Sequence[str], *, timeout_s: float, variables: Mapping[str, str | None] | None = None
) -> tuple[dict[str, Any], str | None]:
    """(answer, None) or ({}, why there is none). The last line that is a JSON object counts: drivers print too.

    `variables` are set on top of this process's; None takes one away.
    """
    changed = {**of_ours(os.environ), **(variables or {})}
    environment = {name: value for name, value in changed.items() if value is not None}
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return {}, f"{command[0]}: {error.strerror}"
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {}, f"the probe did not answer in {timeout_s:g} s (a driver that hangs does that){_ended(child)}"
    except BaseException:
        _ended(child)
        raise
    for line in reversed(out.decode(errors="replace").splitlines()):
        answer = _object(line)
        if answer is not None:
            return answer, None
    said = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    ended = f"ended by signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
    return {}, f"the probe gave no answer ({ended}{': ' + said[-1].strip()[:200] if said else ''})"


def _ended(child: subprocess.Popen[bytes]) -> str:
    """Kill the child and its children. A process inside a driver that hangs cannot be killed, and is not waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.communicate(timeout=KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        return f"; process {child.pid} cannot be killed, only a reboot ends it"
    return ""


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


def importable(python: str = sys.executable) -> frozenset[str]:
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


def _fingerprint(python: str, command: Sequence[str], root: Root) -> dict[str, Any]:
    """Changes with a reboot, another kernel, interpreter, torch, package for the card, or limit of memory; with a card
    that comes or goes, what the driver maps for it, and whether this user may open it."""
    return {
        "format": CACHE_FORMAT,
        "root": str(root.folder),
        "boot": root.text("/proc/sys/kernel/random/boot_id") or f"{psutil.boot_time():.0f}",
        "python": python,
        "command": list(command),
        "packages": _device_packages(),
        "memory": round(memory(root=root).total * GIB),
        "cores": usable_cores(root=root),
        "cards": [[card.words, card.vram_total, card.gtt_total] for card in graphics(root=root)],
        "may_open": {name: os.access(root.path(name), os.R_OK | os.W_OK) for name in ("/dev/kfd", "/dev/nvidiactl")},
        "variables": {name: os.environ.get(name) for name in DECIDE},
    }


def _device_packages() -> list[str]:
    """`torch-2.13.0+cpu.dist-info`, and the packages without which torch has no code for a card. By the folders' names:
    to read every package's metadata would take longer than all the rest of the key."""
    begin = ("torch-", *(f"{name.replace('-', '_')}" for name in DEVICE_PACKAGES))
    found: set[str] = set()
    for folder in sys.path:
        try:
            found.update(path.name for path in Path(folder or ".").iterdir() if path.suffix == ".dist-info")
        except OSError:
            continue  # a zip file, or a folder that is not there
    return sorted(name for name in found if name.startswith(begin))


def _from_cache(cache: Path | None, key: Mapping[str, Any]) -> Machine | None:
    if cache is None:
        return None
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        told = content["machine"]
        return Machine(**{**told, "packages": frozenset(told["packages"]), "listed": tuple(told["listed"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no cache, or one that another version wrote


def _to_cache(cache: Path, key: Mapping[str, Any], machine: Machine) -> None:
    fields = {**dataclasses.asdict(machine), "packages": sorted(machine.packages)}
    del fields["measured"]
    try:
        write_atomic(cache, json.dumps({"key": key, "machine": fields}, indent=1) + "\n")
    except OSError:
        pass  # the answer is good without a cache; asking again costs seconds
