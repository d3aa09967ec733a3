"""What the doctor says of NVIDIA cards. Functions of what was read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from agent.hardware.facts import Facts
from agent.hardware.findings import Finding

INSTALL = "the extra `nvidia`:\n$ pip install 'nvidia-ml-py>=12.535,<14'"


def cuda_findings(facts: Facts) -> Iterator[Finding]:
    if not facts.of("nvidia") and facts.machine.kind != "cuda":
        return
    if facts.machine.kind == "rocm":
        cards = ", ".join(card.words for card in facts.of("nvidia"))
        title = f"an NVIDIA card is not used: torch computes on {facts.machine.name}"
        yield Finding("cuda-beside", "accelerator", "note", title, f"{cards}; torch {facts.machine.torch}")
        return
    yield _seen(facts)
    yield from _architectures(facts)
    yield from _nvml(facts)


def _seen(facts: Facts) -> Finding:
    listed = ", ".join(card.words for card in facts.of("nvidia")) or "none in /sys/class/drm"
    driver = f"driver {facts.nvidia.driver}" if facts.nvidia.driver else "driver unknown"
    torch, cuda = facts.machine.torch, facts.answer.get("cuda")
    evidence = f"torch {torch or facts.problem}, cuda {cuda}; {driver}; {listed}"
    if facts.machine.kind == "cuda":
        return Finding("cuda-torch", "accelerator", "ok", f"torch computes on {facts.machine.name}", evidence)
    if torch is None:
        fix = "see what it ends with:\n$ python -m agent.raft.probe"
    elif cuda is None:
        fix = "install a CUDA build of torch (pytorch.org, Get Started)\n$ make PYTHON=that-python run"
    else:
        fix = f"see that it lists the card, and a driver that is new enough for CUDA {cuda}:\n$ nvidia-smi"
    title = f"torch {torch or ''} does not use the NVIDIA card".replace("  ", " ")
    return Finding("cuda-torch", "accelerator", "error", title, evidence, "Trainings run on the processor.", fix)


def _architectures(facts: Facts) -> Iterator[Finding]:
    arches = list(facts.answer.get("arch_list") or [])
    if facts.machine.kind != "cuda" or not arches:
        return
    for device in facts.answer.get("devices", []):
        arch = str(device.get("arch"))
        if not runs(arch, arches):
            yield Finding(
                "cuda-wheel",
                "torch",
                "error",
                f"this torch has no code for {device.get('name')} ({arch})",
                f"torch {facts.machine.torch} is built for {' '.join(arches)}",
                "Every kernel ends with `no kernel image is available for execution on the device`.",
                "install a build of torch for that architecture (pytorch.org, Get Started)",
                "CUDA C++ Programming Guide, Binary and PTX Compatibility",
            )
            return
    yield Finding("cuda-wheel", "torch", "ok", "this torch has code for the card", f"built for {' '.join(arches)}")


def runs(arch: str, built_for: Sequence[str]) -> bool:
    """Binary code runs on its own major version with the same or a later minor one; PTX on everything later."""
    number = _capability(arch)
    if number is None:
        return True  # not known, and nothing to complain of
    for one in built_for:
        code = _capability(one)
        if code is None:
            continue
        if one.startswith("compute_") and code <= number:
            return True
        if code[0] == number[0] and code[1] <= number[1] and not one.endswith("a"):
            return True
        if one.endswith("a") and code == number:
            return True
    return False


def _capability(arch: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[af]?", arch)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _nvml(facts: Facts) -> Iterator[Finding]:
    if facts.nvidia.why_not:
        missing = "not installed" in facts.nvidia.why_not
        yield Finding(
            "cuda-nvml",
            "torch",
            "note" if missing else "warning",
            "memory, power and temperature of the card are not read",
            facts.nvidia.why_not,
            "Telemetry and the watchdog know less: a hang is told from work by power.",
            INSTALL if missing else "see what is wrong with the driver:\n$ nvidia-smi",
        )
        return
    for card in facts.nvidia.details:
        name = f"card {card.index}"
        if card.holders:
            held = [f"process {pid}" + (f" {gib:.1f} GiB" if gib is not None else "") for pid, gib in card.holders]
            yield Finding(
                f"cuda-busy-{card.index}",
                "accelerator",
                "warning",
                f"another process uses {name}",
                ", ".join(held) + " (NVML)",
                "It takes memory and time from a training, and disturbs what is measured here.",
                "end it before a campaign begins, or choose another card with CUDA_VISIBLE_DEVICES",
            )
        if card.mig:
            yield Finding(
                f"cuda-mig-{card.index}",
                "accelerator",
                "note",
                f"{name} is divided (MIG)",
                "nvmlDeviceGetMigMode",
                "torch uses one instance of it, with that instance's memory.",
            )
        if card.persistence is False:
            yield Finding(
                f"cuda-persistence-{card.index}",
                "accelerator",
                "note",
                f"persistence mode of {name} is off",
                "nvmlDeviceGetPersistenceMode",
                "The driver is unloaded between runs, and starting it takes a second or two each time.",
                "$ sudo nvidia-smi -pm 1",
                "NVIDIA, Driver Persistence",
            )
        if card.ecc is False:
            yield Finding(
                f"cuda-ecc-{card.index}",
                "accelerator",
                "note",
                f"error correction of {name} is off",
                "nvmlDeviceGetEccMode",
                "A flipped bit goes unseen.",
                "it costs some memory bandwidth; then reboot\n$ sudo nvidia-smi -e 1",
            )
