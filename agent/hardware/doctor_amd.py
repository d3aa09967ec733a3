"""What the doctor says of AMD cards, first of all Strix Halo. Functions of what was read; sources: docs/hardware.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agent.hardware.facts import Facts, Software
from agent.hardware.findings import Finding, Severity
from agent.hardware.measured import Comparison
from agent.hardware.presets import AOTRITON, harmful
from agent.hardware.probe import Machine
from agent.hardware.sensors import Graphics

STRIX_HALO = {"gigabytes": 212.6, "bfloat16": 30e12}
"""Measured on gfx1151, with sources in docs/hardware.md; half of either is a sign that something is set up wrong."""
KERNEL = (6, 18, 4)
KYUZO = "kyuz0/amd-strix-halo-toolboxes d1a34be"
MES = "ROCm/legacy-rocm-build#5724"
GOOD_MES, BAD_MES = 0x80, 0x83
MES_MASK = 0xFFF
"""AMDGPU_MES_VERSION_MASK: the bits above it are no version."""
BAD_FIRMWARE = "20251125"
BAD_NIGHTLIES = re.compile(r"202606(09|10|11|12)")
PAGES_PER_GIB = 2**18
PUBLISHED_GIB = 124
"""Of the GPU on a machine of 128 GB: ttm.pages_limit=32505856 (kyuz0)."""
LEFT_TO_HOST_GIB = 4
"""The difference of the two."""
SMALL_GTT = 0.6
"""Share of the RAM below which the limit was not raised: the driver's default is half."""
CARVE_OUT_GIB = 8
WHEEL = "install torch[device-gfx1151] from AMD's index (docs/hardware.md, Which torch)\n$ make PYTHON=that-python run"
READ_MES = "$ sudo sh -c 'grep MES /sys/kernel/debug/dri/*/amdgpu_firmware_info'"
"""Only root can list the folder, so root's shell has to fill in the star."""


def amd_findings(facts: Facts) -> Iterator[Finding]:
    if not facts.of("amd") and facts.machine.kind != "rocm":
        return
    if facts.machine.kind == "cuda" or (not facts.is_strix and facts.machine.torch and not facts.answer.get("hip")):
        yield _beside(facts)
        return
    yield from _seen(facts)
    yield from _access(facts)
    yield from _busy(facts)
    if not facts.is_strix:
        return
    yield from _wheel(facts)
    yield _kernel(facts.software)
    yield _firmware(facts.software)
    yield from _memory(facts)
    yield _iommu(facts.software)
    yield _wave_store(facts.software)
    yield _lockup(facts.software)
    yield from (variable for variable in shell_variables(facts.shell, facts.machine))
    yield from _aotriton_in_shell(facts.shell)


# The card and torch ----------------------------------------------------------------------------------------


def _seen(facts: Facts) -> Iterator[Finding]:
    cards = facts.of("amd")
    listed = ", ".join(card.words for card in cards) or "none in /sys/class/drm"
    if facts.machine.kind == "rocm":
        devices = [f"{one.get('name')} ({one.get('arch')})" for one in facts.answer.get("devices", [])]
        title = f"torch computes on {devices[0] if devices else facts.machine.name}"
        yield Finding("amd-torch", "accelerator", "ok", title, f"torch sees {', '.join(devices)}; kernel: {listed}")
        if len(cards) > len(devices) or len(set(devices)) > 1:
            yield Finding(
                "amd-several",
                "accelerator",
                "note",
                f"{len(cards)} AMD cards, and torch computes on its first device",
                f"torch: {', '.join(devices)}; kernel: {listed}",
                "Cards are told by vendor and PCI id, not by number; the recipe trains on one.",
                "to take the second device:\n$ HIP_VISIBLE_DEVICES=1 raft-agent run RECIPE --budget 8h",
            )
        return
    strix = facts.strix
    name = f"{strix.arch} ({strix.card})" if strix else ", ".join(card.words for card in cards)
    torch = facts.machine.torch
    evidence = f"kernel: {listed}; torch: {torch or facts.problem or 'unknown'}, hip {facts.answer.get('hip')}"
    if torch is None:
        yield _torch_dies(facts, name, evidence)
    elif facts.answer.get("hip") is None:
        yield Finding(
            "amd-torch",
            "accelerator",
            "error",
            f"torch {torch} is not a ROCm build: {name} is not used",
            evidence,
            "Trainings run on the processor.",
            WHEEL,
            "ROCm/TheRock#7839",
        )
    else:
        yield Finding(
            "amd-torch",
            "accelerator",
            "error",
            f"this ROCm build of torch does not see {name}",
            evidence,
            "Trainings run on the processor.",
            "see the findings on access and variables; HIP_VISIBLE_DEVICES may hide it\n$ sudo dmesg | grep amdgpu",
        )


def _beside(facts: Facts) -> Finding:
    """The small graphics of many processors, which ROCm mostly does not run on: nothing is wrong with not using it."""
    cards = ", ".join(card.words for card in facts.of("amd"))
    other = facts.machine.name if facts.machine.kind == "cuda" else "the processor"
    return Finding(
        "amd-beside",
        "accelerator",
        "note",
        f"an AMD card is not used: torch computes on {other}",
        f"kernel: {cards}; torch {facts.machine.torch}",
        "",
        "if ROCm supports that card, install a ROCm build of torch (docs/hardware.md, Which torch)",
    )


def _torch_dies(facts: Facts, name: str, evidence: str) -> Finding:
    segfault = "signal 11" in (facts.problem or "")
    return Finding(
        "amd-torch",
        "accelerator",
        "error",
        f"torch does not answer: {name} is not used",
        evidence,
        "No training can start with this torch.",
        "take another wheel than the nightlies of 9 to 12 June 2026 (docs/hardware.md, Which torch)"
        if segfault
        else "see what it ends with:\n$ python -m agent.raft.probe",
        "ROCm/TheRock#5763" if segfault else "",
    )


def _wheel(facts: Facts) -> Iterator[Finding]:
    if facts.answer.get("hip") is None:
        return
    packages: Mapping[str, str] = facts.answer.get("packages") or {}
    arches = list(facts.answer.get("arch_list") or [])
    device = [name for name in packages if name.startswith("amd-torch-device") and "gfx1151" in name]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    evidence = (
        f"torch {facts.machine.torch}, hip {facts.answer['hip']}; built for {' '.join(arches) or 'unknown'}; {versions}"
    )
    if "gfx1151" in arches or device:
        yield Finding("amd-wheel", "torch", "ok", "this torch has code for gfx1151", evidence)
    elif arches:
        yield Finding(
            "amd-wheel",
            "torch",
            "error",
            "this torch has no code for gfx1151",
            evidence,
            "Every kernel ends with hipErrorInvalidImage or `no kernel image is available`.",
            "install torch[device-gfx1151] (it brings amd-torch-device-gfx1151): docs/hardware.md, Which torch",
            "ROCm/TheRock#7839, #7081",
        )
    else:
        yield Finding(
            "amd-wheel",
            "torch",
            "unknown",
            "which architectures this torch has code for is not known",
            evidence,
            "Without gfx1151 every kernel ends with hipErrorInvalidImage.",
            '$ python -c "import torch; print(torch.cuda.get_arch_list())"\n$ pip list | grep -i torch-device',
            "ROCm/TheRock#7839",
        )
    bad = [f"{name} {version}" for name, version in packages.items() if BAD_NIGHTLIES.search(version)]
    if bad:
        yield Finding(
            "amd-nightly",
            "torch",
            "error",
            f"a nightly that is known to be bad: {', '.join(bad)}",
            evidence,
            "Those of 9 to 12 June 2026 die with exit code 139 and an empty log when the GPU is opened.",
            "pin another day (docs/hardware.md, Which torch)",
            "ROCm/TheRock#5763",
        )


def _access(facts: Facts) -> Iterator[Finding]:
    kfd = next((one for one in facts.access if one.path == "/dev/kfd"), None)
    denied = [one for one in facts.access if one.exists and not one.may_open]
    evidence = ", ".join(
        f"{one.path} {'missing' if not one.exists else 'opens' if one.may_open else f'closed (group {one.group})'}"
        for one in facts.access
    )
    severity: Severity = "note" if facts.machine.kind == "rocm" else "error"  # torch computes on it all the same
    if kfd is None or not kfd.exists:
        yield Finding(
            "amd-access",
            "accelerator",
            severity,
            "there is no /dev/kfd: ROCm cannot reach the card",
            evidence,
            "torch sees no device.",
            "load the driver; in a container add --device /dev/kfd --device /dev/dri\n$ sudo modprobe amdgpu",
        )
    elif denied:
        groups = sorted({one.group for one in denied if one.group not in (None, "root")} | {"render", "video"})
        yield Finding(
            "amd-access",
            "accelerator",
            severity,
            f"you may not open {', '.join(one.path for one in denied)}",
            f"{evidence}; your groups: {', '.join(sorted(facts.groups))}",
            "torch sees no device.",
            f"$ sudo usermod -aG {','.join(map(str, groups))} $USER\nthen log in again",
        )
    else:
        yield Finding("amd-access", "accelerator", "ok", "the card's device files open", evidence)


def _busy(facts: Facts) -> Iterator[Finding]:
    if facts.hang:
        yield Finding(
            "amd-hang",
            "accelerator",
            "error",
            "the GPU looks hung",
            facts.hang + _held(facts),
            "Whatever uses it waits for ever, with nothing in the kernel log; a busy figure proves no work.",
            "end the process that holds it (SIGKILL); if the card stays busy, reboot",
            "ROCm/legacy-rocm-build#6530, #6437",
        )
        return
    busy = [card for card in facts.of("amd") if (card.busy_percent or 0) >= 50]
    if busy or facts.holders:
        cards = ", ".join(f"{card.card} {card.busy_percent:.0f}% busy" for card in busy) or "not busy"
        yield Finding(
            "amd-busy",
            "accelerator",
            "warning" if busy else "note",
            "another process uses the GPU",
            cards + _held(facts),
            "It takes memory and time from a training, and disturbs what is measured here.",
            "end it before a campaign begins",
        )


def _held(facts: Facts) -> str:
    held = [
        f"{holder.name} ({holder.pid}{f', {holder.gib:.1f} GiB of VRAM' if holder.gib is not None else ''})"
        for holder in facts.holders
    ]
    return f"; in use by {', '.join(held)}" if held else ""


# Kernel and firmware ---------------------------------------------------------------------------------------


def _kernel(software: Software) -> Finding:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", software.kernel)
    evidence = f"{software.kernel or 'nothing'} in /proc/sys/kernel/osrelease"
    if not found:
        return Finding(
            "amd-kernel", "kernel", "unknown", "the kernel's version cannot be read", evidence, fix="$ uname -r"
        )
    version = (int(found[1]), int(found[2]), int(found[3] or 0))
    if version >= KERNEL:
        return Finding(
            "amd-kernel", "kernel", "ok", "kernel 6.18.4 or newer (6.18.9 was tested)", evidence, source=KYUZO
        )
    supported = software.system == "ubuntu" and version[:2] == (6, 17)
    return Finding(
        "amd-kernel",
        "kernel",
        "note" if supported else "warning",
        f"kernel {'.'.join(map(str, version))} is older than 6.18.4",
        evidence + ("; AMD supports Ubuntu 24.04 with 6.17 (ROCm 7.14)" if supported else ""),
        "Older kernels have a bug that makes gfx1151 unstable: hangs and crashes at night.",
        "install kernel 6.18.4 or newer (6.18.9 was tested) and reboot",
        f"{KYUZO}; ROCm/legacy-rocm-build#6530",
    )


def mes_version(text: str) -> int | None:
    """Of the scheduler's firmware; None where the file has no such line, or says 0 (not loaded)."""
    found = re.search(r"^MES feature version: \d+, firmware version: (0x[0-9a-fA-F]+)$", text, re.MULTILINE)
    return (int(found.group(1), 16) & MES_MASK) or None if found else None


def _firmware(software: Software) -> Finding:
    mes = mes_version(software.mes.text) if software.mes.text else None
    packages = ", ".join(software.firmware_packages)
    if mes is None:
        return _firmware_by_package(software, packages)
    evidence = f"MES firmware {mes:#x} in amdgpu_firmware_info" + (f"; {packages}" if packages else "")
    if mes == GOOD_MES:
        return Finding("amd-firmware", "kernel", "ok", "firmware: MES 0x80, which is good", evidence, source=MES)
    if mes == BAD_MES:
        return Finding(
            "amd-firmware",
            "kernel",
            "error",
            "firmware: MES 0x83, which is broken",
            evidence,
            "GPU hangs and memory access faults in the middle of a training (linux-firmware-20251125 brought it).",
            _other_firmware(software),
            f"{MES}; {KYUZO}",
        )
    return Finding(
        "amd-firmware",
        "kernel",
        "note",
        f"firmware: MES {mes:#x}, of which nothing is known; 0x80 is good, 0x83 broken",
        evidence,
        "If it hangs, this is a suspect.",
        "",
        MES,
    )


def _firmware_by_package(software: Software, packages: str) -> Finding:
    why = software.mes.why or "no MES version in amdgpu_firmware_info"
    bad = any(BAD_FIRMWARE in package for package in software.firmware_packages)
    evidence = why + (f"; {packages}" if packages else "")
    if bad:
        return Finding(
            "amd-firmware",
            "kernel",
            "error",
            f"firmware of {BAD_FIRMWARE} is installed, which is broken",
            evidence,
            "It brings MES 0x83: GPU hangs and memory access faults in the middle of a training.",
            _other_firmware(software),
            f"{MES}; {KYUZO}",
        )
    dkms = " The package amdgpu-dkms-firmware has left 0x83 behind on some." if "amdgpu-dkms" in packages else ""
    return Finding(
        "amd-firmware",
        "kernel",
        "unknown",
        "which MES firmware the card runs cannot be read",
        evidence,
        f"0x83 hangs the GPU in the middle of a training, 0x80 is good.{dkms}",
        READ_MES + (f"\n$ rpm -q amd-gpu-firmware  # not {BAD_FIRMWARE}" if software.system == "fedora" else ""),
        f"{MES}; ROCm/legacy-rocm-build#5991",
    )


def _other_firmware(software: Software) -> str:
    if software.system == "fedora":
        return (
            "take a newer one, or the one before, and reboot:\n$ sudo dnf upgrade amd-gpu-firmware\n"
            "$ sudo dnf install fedora-repos-archive\n"
            "$ sudo dnf --enablerepo=updates-archive downgrade amd-gpu-firmware-20251111"
        )
    if software.system in ("ubuntu", "debian"):
        return (
            "see which package owns it:\n$ dpkg -S /lib/firmware/amdgpu/gc_11_5_1_mes1.bin.zst\n"
            "if it is amdgpu-dkms-firmware, take that away (sudo apt purge amdgpu-dkms-firmware), else upgrade "
            "linux-firmware (20260110 was tested); then\n$ sudo update-initramfs -u\nand reboot"
        )
    return "install linux-firmware 20260110 or newer, rebuild the initramfs, reboot"


def _iommu(software: Software) -> Finding:
    off = software.iommus == 0
    words = "amd_iommu=off on the kernel's command line" if "amd_iommu=off" in software.command_line else ""
    evidence = f"{software.iommus} in /sys/class/iommu" + (f"; {words}" if words else "")
    if off:
        return Finding("amd-iommu", "kernel", "ok", "the IOMMU is off", evidence, source=KYUZO)
    return Finding(
        "amd-iommu",
        "kernel",
        "note",
        "the IOMMU is on, which costs 5 to 12%",
        evidence,
        "Memory is that much slower; on the other hand the IOMMU keeps devices out of memory that is not theirs.",
        kernel_parameter(software, "amd_iommu=off"),
        f"{KYUZO}, issue 66",
    )


def _wave_store(software: Software) -> Finding:
    """CWSR: compute wave save and restore."""
    value = software.parameters.get("amdgpu.cwsr_enable")
    if value is None:
        return Finding(
            "amd-cwsr",
            "kernel",
            "unknown",
            "amdgpu.cwsr_enable cannot be read",
            "no /sys/module/amdgpu/parameters/cwsr_enable",
            fix="$ sudo cat /sys/module/amdgpu/parameters/cwsr_enable",
            source="ROCm/legacy-rocm-build#5590",
        )
    evidence = f"{value} in /sys/module/amdgpu/parameters/cwsr_enable"
    found = re.match(r"(\d+)\.(\d+)", software.kernel)
    old = bool(found) and (int(found[1]), int(found[2])) < (6, 18) if found else False
    if value != "0" and old:
        return Finding(
            "amd-cwsr",
            "kernel",
            "warning",
            "amdgpu.cwsr_enable is on with a kernel before 6.18",
            evidence,
            "Compute wave save and restore hangs the scheduler with good firmware too; AMD wants it off there.",
            kernel_parameter(software, "amdgpu.cwsr_enable=0"),
            "ROCm/legacy-rocm-build#5590, #5991",
        )
    hint = "" if value == "0" else "if the kernel log shows `MES failed to respond`: amdgpu.cwsr_enable=0"
    return Finding(
        "amd-cwsr",
        "kernel",
        "ok",
        f"compute wave save and restore: {value}, kernel 6.18 or newer"
        if not old
        else "compute wave save and restore is off",
        evidence,
        "",
        hint,
        "ROCm/legacy-rocm-build#5724",
    )


def _lockup(software: Software) -> Finding:
    value = software.parameters.get("amdgpu.lockup_timeout")
    shown = value or "the driver's default"
    evidence = f"/sys/module/amdgpu/parameters/lockup_timeout: {value if value is not None else 'not there'}"
    hint = "if the kernel log shows ring timeouts under load: amdgpu.lockup_timeout=20000"
    return Finding("amd-lockup", "kernel", "ok", f"lockup timeout: {shown}", evidence, "", hint, "LLMKube#886")


def kernel_parameter(software: Software, text: str) -> str:
    """How to add to the kernel's command line here."""
    if software.system == "fedora":
        return f'$ sudo grubby --update-kernel=ALL --args="{text}"\nthen reboot'
    if software.system in ("ubuntu", "debian"):
        return f"add {text} to GRUB_CMDLINE_LINUX_DEFAULT in /etc/default/grub, then reboot\n$ sudo update-grub"
    return f"add {text} to the kernel's command line in the boot loader's settings, reboot"


# Memory ----------------------------------------------------------------------------------------------------


def _memory(facts: Facts) -> Iterator[Finding]:
    card = facts.strix
    if card is None:
        return
    yield gtt_limit(card, facts.host.physical_gib, facts.software)
    if card.vram_total is None:
        return
    evidence = f"{card.vram_total:.2f} GiB in mem_info_vram_total of {card.card}"
    if card.vram_total >= CARVE_OUT_GIB:
        yield Finding(
            "amd-carve-out",
            "memory",
            "note",
            f"the BIOS sets {card.vram_total:.0f} GiB aside for the GPU",
            f"{evidence}; {facts.host.physical_gib:.0f} GiB are left to the system",
            "That memory is lost to everything else, and where it is counted depends on the ROCm version.",
            "set the GPU memory (UMA frame buffer) to 512 MB in the BIOS and raise the GTT limit",
            f"{KYUZO}; ROCm/legacy-rocm-build#5444",
        )
    else:
        yield Finding("amd-carve-out", "memory", "ok", "a small BIOS carve-out for the GPU", evidence, source=KYUZO)


def gtt_limit(card: Graphics, ram_gib: float, software: Software | None = None) -> Finding:
    """How much of the RAM the driver maps for the GPU; `ram_gib` is what the firmware has left to the system."""
    total, parameters = card.gtt_total, software.parameters if software else {}
    told = [
        f"{name}={value}"
        for name, value in parameters.items()
        if value and name in ("ttm.pages_limit", "amdgpu.gttsize")
    ]
    if total is None:
        return Finding(
            "amd-gtt",
            "memory",
            "unknown",
            "how much memory the driver maps for the GPU cannot be read",
            f"no mem_info_gtt_total of {card.card}" + "".join(f"; {one}" for one in told),
            "By default it is half of the RAM.",
            "$ cat /sys/class/drm/card*/device/mem_info_gtt_total",
        )
    evidence = f"{total:.2f} GiB in mem_info_gtt_total of {card.card}, {ram_gib:.1f} GiB of RAM" + "".join(
        f"; {one}" for one in told
    )
    with_carve_out = total + (card.vram_total or 0.0)
    if with_carve_out >= SMALL_GTT * (ram_gib + (card.vram_total or 0.0)):
        return Finding(
            "amd-gtt", "memory", "ok", f"the GPU may use {total:.0f} of {ram_gib:.0f} GiB", evidence, source=KYUZO
        )
    gib = wanted_gib(ram_gib)
    parameter = f"amdgpu.gttsize={gib * 1024} ttm.pages_limit={gib * PAGES_PER_GIB}"
    fix = kernel_parameter(software, parameter) if software else f"add {parameter} to the kernel's command line, reboot"
    return Finding(
        "amd-gtt",
        "memory",
        "warning",
        f"the driver maps {total:.0f} of {ram_gib:.0f} GiB for the GPU",
        evidence,
        f"A training ends with `HIP out of memory`, total capacity {total:.2f} GiB, while half of the RAM is free.",
        fix,
        f"{KYUZO}; kyuz0/amd-strix-halo-vllm-toolboxes#11",
    )


def wanted_gib(ram_gib: float) -> int:
    """GTT for a machine: the published figure for 128 GB, and as much less than the RAM elsewhere."""
    return PUBLISHED_GIB if ram_gib > PUBLISHED_GIB else max(1, int(ram_gib) - LEFT_TO_HOST_GIB)


# Variables -------------------------------------------------------------------------------------------------


def shell_variables(shell: Mapping[str, str], machine: Machine) -> list[Finding]:
    """Set in the user's shell, and known to do harm."""
    deadly = {"HSA_OVERRIDE_GFX_VERSION", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
    return [
        Finding(
            f"shell-{setting.name}",
            "settings",
            "warning" if setting.name in deadly | {"OMP_NUM_THREADS"} else "note",
            f"{setting.name}={shell[setting.name]} is set in your shell",
            f"the environment of this command: {setting.name}={shell[setting.name]}",
            setting.why[0].upper() + setting.why[1:] + ".",
            f"$ unset {setting.name}",
            setting.source,
        )
        for setting in harmful(shell, machine)
    ]


def _aotriton_in_shell(shell: Mapping[str, str]) -> Iterator[Finding]:
    """A preset that `auto` chose only fills gaps, so the shell's value would win."""
    value = shell.get(AOTRITON)
    if value is not None and value != "1":
        yield Finding(
            f"shell-{AOTRITON}",
            "settings",
            "warning",
            f"{AOTRITON}={value} is set in your shell",
            f"the environment of this command: {AOTRITON}={value}",
            "Attention falls back to the math kernel, up to 20 times slower at 4096 tokens.",
            f"runs set it to 1 themselves\n$ unset {AOTRITON}",
            "lhl/strix-halo-testing 5ee14b5; ROCm/legacy-rocm-build#6034",
        )


# What was measured -----------------------------------------------------------------------------------------


def compared(comparison: Comparison) -> Finding:
    value, why = comparison.fastest
    severity: Severity = "note" if comparison.failures else "ok"
    title = f"{comparison.variable}={value} is worth it here" if value else f"{comparison.variable} is best left unset"
    return Finding(
        f"measured-{comparison.variable}",
        "speed",
        severity,
        title,
        why,
        "; ".join(f"{one or 'unset'}: {failure}" for one, failure in comparison.failures.items()),
        "nothing to do: runs on this machine follow it",
        "measured now, each value in a process of its own",
    )


def slow_products(flops_per_s: float) -> Finding | None:
    if flops_per_s >= STRIX_HALO["bfloat16"] / 2:
        return None
    return Finding(
        "amd-products",
        "speed",
        "warning",
        f"{flops_per_s / 1e12:.1f} TFLOP/s in bfloat16, {STRIX_HALO['bfloat16'] / 1e12:.0f} are known of this part",
        "the largest square product, measured",
        "A training takes twice as long as it could, or longer.",
        "compare ROCBLAS_USE_HIPBLASLT=0 and 1, and take a wheel built for gfx1151 (docs/hardware.md)",
        "bkpaine1/amdsense 083e42b; ROCm/legacy-rocm-build#6530",
    )


def slow_memory(bytes_per_s: float) -> Finding | None:
    if bytes_per_s / 1e9 >= STRIX_HALO["gigabytes"] / 2:
        return None
    return Finding(
        "amd-bandwidth",
        "speed",
        "warning",
        f"{bytes_per_s / 1e9:.0f} GB/s, {STRIX_HALO['gigabytes']:.0f} are known of this part",
        "reads and copies larger than any cache, measured",
        "Generation waits for memory.",
        "look at the power limit, and that all memory channels are populated",
        "lhl/strix-halo-testing 5ee14b5",
    )
