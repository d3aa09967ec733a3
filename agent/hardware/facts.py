"""Everything that `raft-agent doctor` judges, read once. What cannot be read is None, and why where it matters."""

from __future__ import annotations

import grp
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.hardware import processor
from agent.hardware.isolation import Isolation
from agent.hardware.kernel import oom_kills
from agent.hardware.nvidia import NvidiaDetails, Nvml, nvml
from agent.hardware.presets import STRIX_HALO
from agent.hardware.probe import Machine
from agent.hardware.root import HOST, Reading, Root, unanswered
from agent.hardware.sensors import (
    HANG_BUSY_PERCENT,
    HANG_READINGS,
    Graphics,
    Memory,
    PowerSupply,
    disk_free,
    graphics,
    host_memory_gib,
    kfd_processes,
    memory,
    power_supply,
    silent_hang,
    swap_total_gib,
)
from agent.hardware.trials import Trials

PARAMETERS = ("ttm.pages_limit", "amdgpu.gttsize", "amdgpu.cwsr_enable", "amdgpu.lockup_timeout")
MEMORY_DAEMONS = ("systemd-oomd", "earlyoom", "nohang", "oomd")
DEBUGFS = "/sys/kernel/debug/dri"
GAP_S = 0.5


@dataclass(frozen=True)
class Software:
    """The operating system below torch."""

    system: str
    """`fedora`, `ubuntu`, `debian`, `arch`: ID of /etc/os-release; empty where there is none."""
    version: str
    kernel: str
    command_line: str
    parameters: Mapping[str, str | None]
    """Of kernel modules, as they are in force; None where the module or the parameter is not there."""
    iommus: int
    mes: Reading
    """What amdgpu_firmware_info of the card says."""
    firmware_packages: tuple[str, ...]
    """Name and version, by the distribution's own records."""
    glibc: str | None


@dataclass(frozen=True)
class Access:
    """A device file that a training opens."""

    path: str
    exists: bool
    may_open: bool
    group: str | None


@dataclass(frozen=True)
class Holder:
    """A process that holds graphics memory."""

    pid: int
    name: str
    gib: float | None


@dataclass(frozen=True)
class Host:
    memory: Memory
    physical_gib: float
    """Without a container's limit."""
    swap_gib: float | None
    oom_kills: int | None
    daemons: tuple[str, ...]
    """That end processes for memory by themselves."""
    processor: str
    flags: frozenset[str]
    cores: int
    logical: int
    load: float | None
    governor: str | None
    profile: str | None
    """ACPI's platform profile: `low-power`, `balanced`, `performance`."""
    supply: PowerSupply
    disks: tuple[tuple[str, float | None], ...]
    """(folder, GiB free)"""


@dataclass(frozen=True)
class NvidiaFacts:
    driver: str | None
    details: tuple[NvidiaDetails, ...]
    why_not: str
    """Why NVML says nothing; empty where it does."""


@dataclass(frozen=True)
class Facts:
    machine: Machine
    answer: Mapping[str, Any]
    """Of `python -m agent.raft.probe`; empty where it gave none."""
    problem: str | None
    """Why it gave none."""
    cards: tuple[Graphics, ...]
    hang: str | None
    """What looks like a lost queue, before the doctor itself used the card."""
    holders: tuple[Holder, ...]
    access: tuple[Access, ...]
    groups: frozenset[str]
    """Of the user."""
    software: Software
    host: Host
    nvidia: NvidiaFacts
    shell: Mapping[str, str]
    trials: Trials | None
    """None where nothing was measured."""
    unanswered: tuple[str, ...] = field(default=())
    isolation: Isolation | None = None
    """None where nobody has asked."""

    @property
    def strix(self) -> Graphics | None:
        """The Strix Halo's card, whether torch sees it or not."""
        return next((card for card in self.cards if card.arch in STRIX_HALO), None)

    @property
    def is_strix(self) -> bool:
        return self.strix is not None or self.machine.arch in STRIX_HALO

    def of(self, vendor: str) -> list[Graphics]:
        return [card for card in self.cards if card.vendor == vendor]


def gather(
    machine: Machine,
    answer: Mapping[str, Any],
    *,
    problem: str | None,
    shell: Mapping[str, str],
    folders: Sequence[Path],
    trials: Trials | None = None,
    root: Root = HOST,
    nvidia: Nvml | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Facts:
    """`folders` are those that a campaign writes to. To be asked before anything is measured on the card."""
    cards, hang = _watched(root, nvidia, pause)
    return Facts(
        machine=machine,
        answer=answer,
        problem=problem,
        cards=tuple(cards),
        hang=hang,
        holders=_holders(root),
        access=_access(root),
        groups=_groups(),
        software=_software(root, cards),
        host=_host(root, folders),
        nvidia=_nvidia(root, nvidia),
        shell=shell,
        trials=trials,
        unanswered=tuple(unanswered(root)),
    )


def _watched(root: Root, nvidia: Nvml | None, pause: Callable[[float], None]) -> tuple[list[Graphics], str | None]:
    """The cards now, and whether one of them looks hung: a card that is fully busy is looked at for some seconds."""
    readings = [graphics(root=root, nvidia=nvidia)]
    busy = [card.card for card in readings[0] if (card.busy_percent or 0) >= HANG_BUSY_PERCENT]
    while busy and len(readings) < HANG_READINGS:
        pause(GAP_S)
        readings.append(graphics(root=root, nvidia=nvidia))
    found = (silent_hang([c for reading in readings for c in reading if c.card == name]) for name in busy)
    return readings[-1], next((words for words in found if words), None)


def _holders(root: Root) -> tuple[Holder, ...]:
    return tuple(
        Holder(pid, root.text(f"/proc/{pid}/comm") or "?", gib)
        for pid, gib in kfd_processes(root=root)
        if pid != os.getpid()
    )


def _access(root: Root) -> tuple[Access, ...]:
    nodes = [f"/dev/dri/{name}" for name in root.names("/dev/dri") if name.startswith("renderD")]
    return tuple(_device_file(root, path) for path in ("/dev/kfd", *nodes))


def _device_file(root: Root, name: str) -> Access:
    path = root.path(name)
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        group = None
    return Access(name, path.exists(), os.access(path, os.R_OK | os.W_OK), group)


def _groups() -> frozenset[str]:
    found = set()
    for number in {*os.getgroups(), os.getegid()}:
        try:
            found.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return frozenset(found)


# The operating system --------------------------------------------------------------------------------------


def _software(root: Root, cards: Sequence[Graphics]) -> Software:
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', root.text("/etc/os-release") or "", re.MULTILINE))
    card = next((card for card in cards if card.arch in STRIX_HALO), None) or next(iter(cards), None)
    return Software(
        system=release.get("ID", ""),
        version=release.get("VERSION_ID", ""),
        kernel=root.text("/proc/sys/kernel/osrelease") or "",
        command_line=root.text("/proc/cmdline") or "",
        parameters={name: root.text(f"/sys/module/{name.replace('.', '/parameters/')}") for name in PARAMETERS},
        iommus=len(root.names("/sys/class/iommu")),
        mes=_firmware_info(root, card),
        firmware_packages=tuple(_firmware_packages(root)),
        glibc=_glibc() if root.is_host else None,
    )


def _firmware_info(root: Root, card: Graphics | None) -> Reading:
    """debugfs has a folder by minor number, and in newer kernels one by PCI address, for each card."""
    try:
        list(root.path(DEBUGFS).iterdir())
    except OSError as error:
        return Reading(None, f"{DEBUGFS}: {error.strerror}")
    why = f"no amdgpu_firmware_info below {DEBUGFS}"
    for name in root.names(DEBUGFS):
        belongs = root.text(f"{DEBUGFS}/{name}/name") or name
        if card is not None and card.pci and card.pci not in belongs and ":" in belongs:
            continue  # of the other card
        read = root.read(f"{DEBUGFS}/{name}/amdgpu_firmware_info")
        if read.text is not None:
            return read
        why = read.why or why
    return Reading(None, why)


def _firmware_packages(root: Root) -> list[str]:
    """By dpkg's and pacman's own records. rpm's are a data base that only rpm reads."""
    found = []
    for block in (root.text("/var/lib/dpkg/status") or "").split("\n\n"):
        told = dict(re.findall(r"^(Package|Version|Status): (.+)$", block, re.MULTILINE))
        name = told.get("Package", "")
        if name in ("linux-firmware", "firmware-amd-graphics", "amdgpu-dkms-firmware") and "installed" in told.get(
            "Status", ""
        ).split(" "):
            found.append(f"{name} {told.get('Version', '?')}")
    for name in root.names("/var/lib/pacman/local"):
        match = re.fullmatch(r"(linux-firmware(?:-amdgpu)?)-(\d.*)", name)
        if match:
            found.append(f"{match.group(1)} {match.group(2)}")
    return found


def _glibc() -> str | None:
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError, AttributeError):
        return None
    return told.rpartition(" ")[2] or None


def _host(root: Root, folders: Sequence[Path]) -> Host:
    return Host(
        memory=memory(root=root),
        physical_gib=host_memory_gib(root=root),
        swap_gib=swap_total_gib(root=root),
        oom_kills=oom_kills(root=root),
        daemons=_daemons(root),
        processor=processor.processor_name(root=root),
        flags=processor.processor_flags(root=root),
        cores=processor.usable_cores(root=root),
        logical=processor.logical_processors(root=root),
        load=processor.load_average(root=root),
        governor=processor.governor(root=root),
        profile=root.text("/sys/firmware/acpi/platform_profile"),
        supply=power_supply(root=root),
        disks=tuple((str(folder), _free(folder)) for folder in folders),
    )


def _daemons(root: Root) -> tuple[str, ...]:
    running = {root.text(f"/proc/{pid}/comm") for pid in root.names("/proc") if pid.isdigit()}
    return tuple(name for name in MEMORY_DAEMONS if name in running)


def _free(folder: Path) -> float | None:
    try:
        return disk_free(folder)
    except (OSError, StopIteration):
        return None


def _nvidia(root: Root, given: Nvml | None) -> NvidiaFacts:
    found, why = (given, "") if given is not None or not root.is_host else nvml()
    if found is None:
        return NvidiaFacts(None, (), why or "NVML is not asked below another root")
    return NvidiaFacts(found.driver(), tuple(found.details()), "")
