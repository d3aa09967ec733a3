"""Readings of this machine: memory, graphics memory, pressure, temperature, power supply, disk.

Each reading is None where the machine does not tell, never 0, and never an exception: a sensor that vanishes in
mid-run, or whose driver hangs, is one that does not tell. Nothing here starts a process or imports torch. `amd-smi` is
left alone on purpose: on gfx1151 it prints N/A for everything (bkpaine1/amdsense monitoring_bug_report.txt).

`Sampler` is what is asked once a second while a training runs.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from agent.hardware.cgroup import cgroup_memory
from agent.hardware.nvidia import NvidiaCard, Nvml, nvml
from agent.hardware.root import HOST, Root

GIB = 1024.0**3
AMD, NVIDIA = "0x1002", "0x10de"
STRIX_HALO_PCI = "0x1586"
PCI_ARCHITECTURES = {STRIX_HALO_PCI: "gfx1151"}
"""By PCI id, for where the ROCm kernel driver lists nothing."""
Vendor = Literal["amd", "nvidia"]


# Memory ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Host memory in GiB. A container's limit is taken into `total` and `available`."""

    total: float
    available: float
    swap_free: float
    limited_by: str | None
    """`cgroup` where a control group's limit is tighter than the machine."""


def memory(*, root: Root = HOST) -> Memory:
    total, available, swap_free = _host_memory(root)
    group = cgroup_memory(root=root)
    limited = group is not None and group.limit is not None and group.limit < total
    if group is not None and group.limit is not None and limited:
        total = float(group.limit)
        available = min(available, float(group.available if group.available is not None else available))
    return Memory(
        total=total / GIB,
        available=available / GIB,
        swap_free=swap_free / GIB,
        limited_by="cgroup" if limited else None,
    )


def host_memory_gib(*, root: Root = HOST) -> float:
    """Of the machine, whatever limit this process has: what the operating system was left by the firmware."""
    return _host_memory(root)[0] / GIB


def swap_total_gib(*, root: Root = HOST) -> float | None:
    if root.is_host:
        return float(psutil.swap_memory().total) / GIB
    size = meminfo(root).get("SwapTotal")
    return None if size is None else size / GIB


def meminfo(root: Root = HOST) -> dict[str, int]:
    """Bytes by name, as /proc/meminfo has them; of huge pages the number. Empty where there is no such file."""
    lines = re.findall(r"^(\w+(?:\(\w+\))?):\s+(\d+)( kB)?$", root.text("/proc/meminfo") or "", re.MULTILINE)
    return {name: int(number) * (1024 if unit else 1) for name, number, unit in lines}


def _host_memory(root: Root) -> tuple[float, float, float]:
    """(total, available, free swap) in bytes; psutil knows them on every system, a made-up root has /proc/meminfo."""
    if root.is_host:
        host = psutil.virtual_memory()
        return float(host.total), float(host.available), float(psutil.swap_memory().free)
    told = meminfo(root)
    return (
        float(told.get("MemTotal", 0)),
        float(told.get("MemAvailable", told.get("MemFree", 0))),
        float(told.get("SwapFree", 0)),
    )


# Graphics --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graphics:
    """One AMD card as the amdgpu driver describes it, or one NVIDIA card as NVML does. GiB, watts, degrees Celsius,
    percent, MHz."""

    card: str
    """`card1` in /sys/class/drm; `nvidia0` for a card that only NVML knows."""
    device: str | None
    """PCI id; 0x1586 is Strix Halo."""
    vram_used: float | None
    vram_total: float | None
    gtt_used: float | None
    gtt_total: float | None
    busy_percent: float | None
    """Also 100 during a hang: it does not prove work."""
    power_w: float | None
    temperature_c: float | None
    vendor: Vendor = "amd"
    arch: str | None = None
    """`gfx1151` by the ROCm kernel driver's list, or by the PCI id where that is known."""
    pci: str | None = None
    """`0000:c5:00.0`"""
    name: str | None = None
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None

    @property
    def used(self) -> float | None:
        """VRAM and GTT together. With a small BIOS VRAM a training lives in GTT and VRAM stays below 1 GiB; on some
        ROCm versions GTT stays near 0 while tens of GiB are allocated, so a low number proves nothing by itself."""
        known = [value for value in (self.vram_used, self.gtt_used) if value is not None]
        return sum(known) if known else None

    @property
    def words(self) -> str:
        """`card1: gfx1151 (AMD Strix Halo), PCI id 0x1586`"""
        what = self.name or ("AMD Strix Halo" if self.device == STRIX_HALO_PCI else f"an {self.vendor.upper()} card")
        kind = f"{self.arch} ({what})" if self.arch else what
        return f"{self.card}: {kind}" + (f", PCI id {self.device}" if self.device else "")


def graphics(*, root: Root = HOST, nvidia: Nvml | None = None) -> list[Graphics]:
    """Every AMD and NVIDIA card. The vendor decides, not the number: Strix Halo is often card1.

    `nvidia` stands in for NVML, which is asked by itself on this machine alone, and only where it is installed.
    """
    return [card.read(root) for card in amd_cards(root=root)] + _nvidia_graphics(root, nvidia)


@dataclass(frozen=True)
class AmdCard:
    """Where the readings of one card are. Files: Linux Documentation/gpu/amdgpu/driver-misc.rst and thermal.rst."""

    card: str
    device: str | None
    arch: str | None
    pci: str | None
    power: tuple[str, ...]
    temperature: tuple[str, ...]
    clock: tuple[str, ...]
    memory_clock: tuple[str, ...]

    def read(self, root: Root) -> Graphics:
        folder = _device(self.card)
        return Graphics(
            card=self.card,
            device=self.device,
            vram_used=_gib(root, f"{folder}/mem_info_vram_used"),
            vram_total=_gib(root, f"{folder}/mem_info_vram_total"),
            gtt_used=_gib(root, f"{folder}/mem_info_gtt_used"),
            gtt_total=_gib(root, f"{folder}/mem_info_gtt_total"),
            busy_percent=root.number(f"{folder}/gpu_busy_percent"),
            power_w=_first(root, self.power, scale=1e-6),
            temperature_c=_first(root, self.temperature, scale=1e-3),
            vendor="amd",
            arch=self.arch,
            pci=self.pci,
            clock_mhz=_first(root, self.clock, scale=1e-6),
            memory_clock_mhz=_first(root, self.memory_clock, scale=1e-6),
        )


def amd_cards(*, root: Root = HOST) -> list[AmdCard]:
    nodes = kfd_nodes(root=root)
    return [_amd_card(root, card, nodes) for card in _cards(root) if root.text(f"{_device(card)}/vendor") == AMD]


def _amd_card(root: Root, card: str, nodes: Sequence[KfdNode]) -> AmdCard:
    folder = _device(card)
    device = root.text(f"{folder}/device")
    minors = {int(name[7:]) for name in root.names(f"{folder}/drm") if re.fullmatch(r"renderD\d+", name)}
    arch = next((node.arch for node in nodes if node.render_minor in minors), None)
    if arch is None and len(nodes) == 1 and len(_cards(root)) == 1:
        arch = nodes[0].arch
    hwmon = [f"{folder}/hwmon/{name}" for name in root.names(f"{folder}/hwmon")]
    return AmdCard(
        card=card,
        device=device,
        arch=arch or PCI_ARCHITECTURES.get(device or ""),
        pci=_pci(root, folder),
        power=tuple(f"{one}/{name}" for one in hwmon for name in ("power1_average", "power1_input")),
        temperature=tuple(f"{one}/temp1_input" for one in hwmon),
        clock=tuple(f"{one}/freq1_input" for one in hwmon),
        memory_clock=tuple(f"{one}/freq2_input" for one in hwmon),
    )


def _nvidia_graphics(root: Root, nvidia: Nvml | None) -> list[Graphics]:
    """By NVML; what the kernel lists beyond that is there with nothing known of it."""
    if nvidia is None and root.is_host:
        nvidia, _ = nvml()
    told = {_short(card.pci or f"nvidia{card.index}"): card for card in (nvidia.cards() if nvidia else [])}
    found = []
    for card in _cards(root):
        if root.text(f"{_device(card)}/vendor") == NVIDIA:
            pci = _pci(root, _device(card))
            known = told.pop(_short(pci or card), None)
            device = root.text(f"{_device(card)}/device")
            found.append(_nvidia_card(card, known, device=device, pci=pci))
    return found + [_nvidia_card(f"nvidia{card.index}", card, device=None, pci=card.pci) for card in told.values()]


def _nvidia_card(name: str, told: NvidiaCard | None, *, device: str | None, pci: str | None) -> Graphics:
    return Graphics(
        card=name,
        device=device,
        vram_used=told.memory_used if told else None,
        vram_total=told.memory_total if told else None,
        gtt_used=None,
        gtt_total=None,
        busy_percent=told.busy_percent if told else None,
        power_w=told.power_w if told else None,
        temperature_c=told.temperature_c if told else None,
        vendor="nvidia",
        pci=pci,
        name=told.name if told else None,
        clock_mhz=told.clock_mhz if told else None,
        memory_clock_mhz=told.memory_clock_mhz if told else None,
    )


def _cards(root: Root) -> list[str]:
    """card1-eDP-1 is a connector of card1, and no card."""
    return [name for name in root.names("/sys/class/drm") if re.fullmatch(r"card\d+", name)]


def _device(card: str) -> str:
    return f"/sys/class/drm/{card}/device"


def _pci(root: Root, device: str) -> str | None:
    found = re.search(r"^PCI_SLOT_NAME=(\S+)$", root.text(f"{device}/uevent") or "", re.MULTILINE)
    return found.group(1) if found else None


def _short(pci: str) -> str:
    """NVML writes the domain with eight digits, the kernel with four."""
    return pci.lower()[-12:]


@dataclass(frozen=True)
class KfdNode:
    """A GPU that the ROCm kernel driver lists; ROCm counts its devices in this order."""

    number: int
    arch: str
    render_minor: int | None
    """128 of /dev/dri/renderD128"""


def kfd_nodes(*, root: Root = HOST) -> list[KfdNode]:
    """In order; processors without a GPU have version 0 and are left out.

    gfx_target_version is major * 10000 + minor * 100 + stepping in decimal, and the name writes minor and stepping
    as single hex digits: 110501 is gfx1151, 90010 is gfx90a.
    """
    folder = "/sys/class/kfd/kfd/topology/nodes"
    found = []
    for node in sorted(filter(str.isdigit, root.names(folder)), key=int):
        text = root.text(f"{folder}/{node}/properties") or ""
        told = dict(re.findall(r"^(gfx_target_version|drm_render_minor) (\d+)$", text, re.MULTILINE))
        number, minor = int(told.get("gfx_target_version", 0)), int(told.get("drm_render_minor", 0))
        if number:
            arch = f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"
            found.append(KfdNode(int(node), arch, minor or None))
    return found


def kfd_architectures(*, root: Root = HOST) -> list[str]:
    """`gfx1151`, ... of the GPUs that the ROCm kernel driver lists."""
    return [node.arch for node in kfd_nodes(root=root)]


def kfd_processes(*, root: Root = HOST) -> list[tuple[int, float | None]]:
    """(process, GiB of VRAM that it holds) of every process that ROCm computes for; GTT is not counted there."""
    folder = "/sys/class/kfd/kfd/proc"
    found = []
    for pid in filter(str.isdigit, root.names(folder)):
        sizes = [_gib(root, f"{folder}/{pid}/{name}") for name in root.names(f"{folder}/{pid}") if name[:5] == "vram_"]
        known = [size for size in sizes if size is not None]
        found.append((int(pid), sum(known) if known else None))
    return found


# What each figure is worth ---------------------------------------------------------------------------------

COUNTERS_LIE_GIB = 1.0
"""torch may hold so much more than the driver counts before one of them is wrong: the readings are not simultaneous."""


@dataclass(frozen=True)
class InUse:
    """Memory that the GPU's work takes, GiB; None where nothing tells."""

    gib: float | None
    why: str


def memory_in_use(
    card: Graphics | None,
    *,
    reserved_gib: float | None = None,
    free_gib: float | None = None,
    total_gib: float | None = None,
    now: Memory | None = None,
    idle: Memory | None = None,
) -> InUse:
    """The most credible figure, since each lies somewhere (docs/hardware.md, "Memory").

    `reserved_gib` is torch.cuda.memory_reserved() of the trainer, `free_gib` and `total_gib` its mem_get_info(), `now`
    and `idle` host memory at present and before it began; each None where the caller does not know. VRAM alone is
    useless with a small carve-out; GTT stays near 0 on some ROCm versions while tens of GiB are allocated
    (ROCm/legacy-rocm-build#5444), where torch's total is the carve-out only. So the driver's sum counts unless torch
    holds more than it; without either, what MemAvailable has lost does, with the host's own use in it.
    """
    driver = card.used if card else None
    lost = max(0.0, idle.available - now.available) if idle and now else None
    fall = f"; MemAvailable fell by {lost:.1f} GiB" if lost is not None else ""
    if reserved_gib is not None and reserved_gib > (driver or 0.0) + COUNTERS_LIE_GIB:
        counted = "the driver counts nothing" if driver is None else f"the driver counts only {driver:.1f}"
        bug = " (ROCm/legacy-rocm-build#5444)" if card and card.vendor == "amd" and driver is not None else ""
        return InUse(reserved_gib, f"torch holds {reserved_gib:.1f} GiB, {counted}{bug}{fall}")
    if driver is not None and driver > 0 and card is not None:
        if card.gtt_used is None:
            return InUse(driver, f"VRAM as the driver counts it{fall}")
        parts = f"{card.vram_used or 0.0:.1f} VRAM + {card.gtt_used:.1f} GTT"
        return _unless_host_lost_more(driver, f"the driver counts {parts}", card, reserved_gib, lost)
    if free_gib is not None and total_gib is not None:
        return InUse(total_gib - free_gib, f"torch sees {free_gib:.1f} of {total_gib:.1f} GiB free{fall}")
    if lost is not None:
        return InUse(lost, "no driver and no torch tells; MemAvailable fell by so much, host memory included")
    return InUse(driver, "the driver counts nothing" if driver is not None else "nothing tells")


def _unless_host_lost_more(
    driver: float, words: str, card: Graphics, reserved: float | None, lost: float | None
) -> InUse:
    """On unified memory, what is gone from the host while the driver counts next to nothing may be the GPU's."""
    unified = card.device == STRIX_HALO_PCI or card.arch == "gfx1151"
    if unified and reserved is None and lost is not None and driver < COUNTERS_LIE_GIB < lost:
        return InUse(lost, f"{words}, but MemAvailable fell by {lost:.1f} GiB and torch was not asked")
    return InUse(driver, words + (f"; MemAvailable fell by {lost:.1f} GiB" if lost is not None else ""))


HANG_BUSY_PERCENT = 99.0
HANG_POWER_W = 60.0
"""A lost queue shows about 50 W (ROCm/legacy-rocm-build#6530), with some allowance; other cards idle elsewhere."""
HANG_READINGS = 5


def silent_hang(readings: Sequence[Graphics]) -> str | None:
    """In words, where readings of one card, a second or more apart, look like a lost queue; None where they do not.

    Busy all the time, at little power, memory the same to the byte (ROCm/legacy-rocm-build#6530, on gfx1151). Work
    of one long kernel looks the same for a while, so only the heartbeat decides.
    """
    if len(readings) < HANG_READINGS:
        return None
    busy = [card.busy_percent for card in readings]
    power = [card.power_w for card in readings]
    flat = len({(card.vram_used, card.gtt_used) for card in readings}) == 1 and readings[0].used is not None
    stuck = all(one is not None and one >= HANG_BUSY_PERCENT for one in busy)
    if not (stuck and flat and all(one is not None and one <= HANG_POWER_W for one in power)):
        return None
    watts = sum(one for one in power if one is not None) / len(power)
    return (
        f"{readings[0].card} is {busy[-1]:.0f}% busy at {watts:.0f} W with memory flat to the byte over "
        f"{len(readings)} readings: a lost GPU queue looks like that (ROCm/legacy-rocm-build#6530)"
    )


# Pressure, power, temperature, disk ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pressure:
    """Share of the time, in percent, in which some (or all) tasks waited for the resource; over 10 and 60 s."""

    some_10: float
    some_60: float
    full_10: float | None
    full_60: float | None


def pressure(resource: str, *, root: Root = HOST) -> Pressure | None:
    """`memory`, `io` or `cpu`; None where the kernel has no pressure stall information."""
    averages: dict[str, tuple[float, float]] = {}
    for line in (root.text(f"/proc/pressure/{resource}") or "").splitlines():
        found = re.match(r"(some|full) avg10=([\d.]+) avg60=([\d.]+)", line)
        if found:
            averages[found.group(1)] = (float(found.group(2)), float(found.group(3)))
    if "some" not in averages:
        return None
    full = averages.get("full")
    return Pressure(*averages["some"], full[0] if full else None, full[1] if full else None)


@dataclass(frozen=True)
class PowerSupply:
    plugged: bool | None
    battery_percent: float | None

    @property
    def warning(self) -> str | None:
        """What a person should do before a long campaign, or None."""
        if self.plugged is False:
            left = f" at {self.battery_percent:.0f}%" if self.battery_percent is not None else ""
            return f"running on battery{left}: plug the machine in, or the night ends early and speed varies"
        return None


def power_supply(*, root: Root = HOST) -> PowerSupply:
    """Both fields are None on a machine without a battery. Files: Documentation/ABI/testing/sysfs-class-power."""
    folder = "/sys/class/power_supply"
    if root.is_host and not root.exists(folder):
        return _power_supply_elsewhere()
    battery, mains = None, []
    for name in root.names(folder):
        kind = root.text(f"{folder}/{name}/type")
        if kind == "Battery" and root.text(f"{folder}/{name}/scope") != "Device":  # that would be a mouse's
            battery = name
        elif kind == "Mains":
            mains.append(root.number(f"{folder}/{name}/online"))
    if battery is None:
        return PowerSupply(None, None)
    status = root.text(f"{folder}/{battery}/status")
    plugged = any(mains) if any(one is not None for one in mains) else (status != "Discharging" if status else None)
    return PowerSupply(plugged, root.number(f"{folder}/{battery}/capacity"))


def _power_supply_elsewhere() -> PowerSupply:
    reader = getattr(psutil, "sensors_battery", None)
    battery = reader() if reader else None
    if battery is None:
        return PowerSupply(None, None)
    return PowerSupply(battery.power_plugged, float(battery.percent))


def hottest(*, root: Root = HOST) -> tuple[str, float] | None:
    """(sensor, degrees Celsius) of the warmest sensor; None where there is none."""
    found: list[tuple[str, float]] = []
    for chip in root.names("/sys/class/hwmon"):
        folder = f"/sys/class/hwmon/{chip}"
        for name in root.names(folder):
            if re.fullmatch(r"temp\d+_input", name):
                found += _temperature(root, f"{folder}/{name}", f"{folder}/name", f"{folder}/{name[:-6]}_label")
    for zone in root.names("/sys/class/thermal"):
        if zone.startswith("thermal_zone"):
            folder = f"/sys/class/thermal/{zone}"
            found += _temperature(root, f"{folder}/temp", f"{folder}/type")
    return max(found, key=lambda pair: pair[1], default=None)


def _temperature(root: Root, value: str, *names: str) -> list[tuple[str, float]]:
    number = root.number(value)
    if number is None:
        return []
    return [(" ".join(filter(None, (root.text(name) for name in names))), number / 1000)]


def disk_free(path: Path) -> float:
    """GiB free for an ordinary user on the file system that `path`, or its nearest existing parent, lies on."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free / GIB


def _gib(root: Root, name: str) -> float | None:
    number = root.number(name)
    return None if number is None else number / GIB


def _first(root: Root, names: Sequence[str], *, scale: float) -> float | None:
    for name in names:
        number = root.number(name)
        if number is not None:
            return number * scale
    return None


# Once a second ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The machine at one moment."""

    at: float
    """Seconds, by the sampler's clock."""
    memory: Memory
    cards: tuple[Graphics, ...]
    cpu_percent: float | None
    """Of all processors of the machine, since the sample before; None for the first."""
    memory_pressure: Pressure | None

    @property
    def gpu_used(self) -> float | None:
        """GiB over all cards; what it is worth, `memory_in_use` says."""
        known = [card.used for card in self.cards if card.used is not None]
        return sum(known) if known else None


class Sampler:
    """Reads the machine again and again; where the cards' files are is found out once, and again when they vanish."""

    def __init__(
        self, *, root: Root = HOST, nvidia: Nvml | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._nvidia, self._clock = root, nvidia, clock
        self._amd = amd_cards(root=root)
        self._ticks: tuple[float, float] | None = None

    def sample(self) -> Sample:
        return Sample(
            at=self._clock(),
            memory=memory(root=self._root),
            cards=(*self._amd_graphics(), *_nvidia_graphics(self._root, self._nvidia)),
            cpu_percent=self._cpu_percent(),
            memory_pressure=pressure("memory", root=self._root),
        )

    def _amd_graphics(self) -> list[Graphics]:
        """A card that has vanished stays in the list, with nothing known of it: a reset may bring it back."""
        read = [card.read(self._root) for card in self._amd]
        if self._amd and all(card.used is None for card in read):
            found = {card.card: card for card in amd_cards(root=self._root)}
            self._amd = [found.get(card.card, card) for card in self._amd]
        return read

    def _cpu_percent(self) -> float | None:
        """/proc/stat counts ticks: idle and waiting for disks are the fourth and the fifth (proc_stat(5))."""
        first = (self._root.text("/proc/stat") or "").partition("\n")[0].split()
        if len(first) < 6 or first[0] != "cpu":
            return None
        ticks = [float(number) for number in first[1:9]]
        total, idle = sum(ticks), ticks[3] + ticks[4]
        before, self._ticks = self._ticks, (total, idle)
        if before is None or total <= before[0]:
            return None
        return 100 * (1 - (idle - before[1]) / (total - before[0]))
