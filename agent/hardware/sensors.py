"""Readings of this machine: memory, graphics memory, pressure, temperature, power supply, disk.

Each reading is None where the machine does not tell, never 0. Nothing here starts a process, needs a vendor's
tool, or imports torch. `amd-smi` is left alone on purpose: on gfx1151 it prints N/A for everything.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.hardware.cgroup import cgroup_memory

GIB = 1024.0**3
AMD = "0x1002"
STRIX_HALO_PCI = "0x1586"


@dataclass(frozen=True)
class Memory:
    """Host memory in GiB. A container's limit is taken into `total` and `available`."""

    total: float
    available: float
    swap_free: float
    limited_by: str | None
    """`cgroup` where a control group's limit is tighter than the machine."""


def memory() -> Memory:
    host, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, available = float(host.total), float(host.available)
    group = cgroup_memory()
    limited = group is not None and group.limit is not None and group.limit < total
    if group is not None and group.limit is not None and limited:
        total = float(group.limit)
        available = min(available, float(group.available if group.available is not None else available))
    return Memory(
        total=total / GIB,
        available=available / GIB,
        swap_free=swap.free / GIB,
        limited_by="cgroup" if limited else None,
    )


@dataclass(frozen=True)
class Graphics:
    """One AMD card as the amdgpu driver describes it. GiB, watts, degrees Celsius, percent."""

    card: str
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

    @property
    def used(self) -> float | None:
        """VRAM and GTT together. With a small BIOS VRAM a training lives in GTT and VRAM stays below 1 GiB; on some
        ROCm versions GTT stays near 0 while tens of GiB are allocated, so a low number proves nothing by itself."""
        known = [value for value in (self.vram_used, self.gtt_used) if value is not None]
        return sum(known) if known else None


def graphics(*, drm: Path = Path("/sys/class/drm")) -> list[Graphics]:
    """Every AMD card. The vendor decides, not the number: Strix Halo is often card1.

    Files: Linux Documentation/gpu/amdgpu/driver-misc.rst.
    """
    cards = sorted(drm.glob("card[0-9]*"), key=lambda path: path.name) if drm.is_dir() else []
    found = []
    for card in cards:
        device = card / "device"
        if "-" in card.name or _text(device / "vendor") != AMD:
            continue  # card1-eDP-1 is a connector of card1
        found.append(
            Graphics(
                card=card.name,
                device=_text(device / "device"),
                vram_used=_gib(device / "mem_info_vram_used"),
                vram_total=_gib(device / "mem_info_vram_total"),
                gtt_used=_gib(device / "mem_info_gtt_used"),
                gtt_total=_gib(device / "mem_info_gtt_total"),
                busy_percent=_number(device / "gpu_busy_percent"),
                power_w=_hwmon(device, ("power1_average", "power1_input"), scale=1e-6),
                temperature_c=_hwmon(device, ("temp1_input",), scale=1e-3),
            )
        )
    return found


def kfd_architectures(*, nodes: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> list[str]:
    """`gfx1151`, ... of the GPUs that the ROCm kernel driver lists; processors without one have version 0.

    gfx_target_version is major * 10000 + minor * 100 + stepping in decimal, and the name writes minor and stepping
    as single hex digits: 110501 is gfx1151, 90010 is gfx90a.
    """
    found = []
    for properties in sorted(nodes.glob("*/properties")):
        version = re.search(r"^gfx_target_version (\d+)$", _text(properties) or "", re.MULTILINE)
        if version and int(version.group(1)):
            number = int(version.group(1))
            found.append(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    return found


@dataclass(frozen=True)
class Pressure:
    """Share of the time, in percent, in which some (or all) tasks waited for the resource; over 10 and 60 s."""

    some_10: float
    some_60: float
    full_10: float | None
    full_60: float | None


def pressure(resource: str, *, folder: Path = Path("/proc/pressure")) -> Pressure | None:
    """`memory`, `io` or `cpu`; None where the kernel has no pressure stall information."""
    averages: dict[str, tuple[float, float]] = {}
    for line in (_text(folder / resource) or "").splitlines():
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


def power_supply() -> PowerSupply:
    """Both fields are None on a machine without a battery."""
    reader = getattr(psutil, "sensors_battery", None)
    battery = reader() if reader else None
    if battery is None:
        return PowerSupply(None, None)
    return PowerSupply(battery.power_plugged, float(battery.percent))


def hottest() -> tuple[str, float] | None:
    """(sensor, degrees Celsius) of the warmest sensor; None where there is none."""
    reader = getattr(psutil, "sensors_temperatures", None)
    readings = reader() if reader else {}
    all_of_them = [
        (f"{chip} {entry.label}".strip(), float(entry.current))
        for chip, entries in readings.items()
        for entry in entries
        if entry.current is not None
    ]
    return max(all_of_them, key=lambda pair: pair[1], default=None)


def disk_free(path: Path) -> float:
    """GiB free for an ordinary user on the file system that `path`, or its nearest existing parent, lies on."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free / GIB


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _gib(path: Path) -> float | None:
    number = _number(path)
    return None if number is None else number / GIB


def _hwmon(device: Path, names: tuple[str, ...], *, scale: float) -> float | None:
    for folder in sorted((device / "hwmon").glob("hwmon*")):
        for name in names:
            number = _number(folder / name)
            if number is not None:
                return number * scale
    return None
