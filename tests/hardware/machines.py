"""SYNTHETIC /sys, /proc and /dev trees of machines with an AMD Strix Halo (gfx1151), built from cited facts.

Nobody has copied them from a real machine. Where a fact comes from stands beside it; R is
reference/raft-and-strix-halo.md (its sources are named there), K the kernel's own documentation. Figures without a
source (temperatures, clocks, process numbers) only have to be there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.hardware.root import Root

GIB = 2**30
PCI = "0000:c5:00.0"
SECOND_PCI = "0000:03:00.0"
CGROUP = "/sys/fs/cgroup"


def write(path: Path, text: str | int | float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@dataclass(frozen=True)
class Card:
    """An AMD card as amdgpu shows it (K gpu/amdgpu/driver-misc.rst, thermal.rst); bytes, microwatts by hwmon."""

    name: str = "card0"
    pci: str = PCI
    device: str = "0x1586"  # Strix Halo (R 2.4)
    vendor: str = "0x1002"  # AMD (R 2.4)
    vram_total: int = GIB // 2  # BIOS carve-out of 512 MB (R 2.3)
    vram_used: int = GIB // 4
    gtt_total: int = 124 * GIB  # ttm.pages_limit=32505856 (R 2.3)
    gtt_used: int = GIB // 8
    busy: int = 0
    watts: float = 22.0  # of an idle one (R 2.5, silent hang: "0% at ~22 W")
    render: int = 128
    gfx_target_version: int = 110501  # gfx1151 (R 2.4)

    def build(self, root: Path, *, node: int) -> None:
        """/sys/class/drm/cardN is a link into /sys/devices, as on a real machine."""
        device = root / "sys/devices/pci0000:00" / self.pci
        write(device / "vendor", self.vendor)
        write(device / "device", self.device)
        write(device / "uevent", f"DRIVER=amdgpu\nPCI_SLOT_NAME={self.pci}")
        write(device / "mem_info_vram_total", self.vram_total)
        write(device / "mem_info_vram_used", self.vram_used)
        write(device / "mem_info_gtt_total", self.gtt_total)
        write(device / "mem_info_gtt_used", self.gtt_used)
        write(device / "gpu_busy_percent", self.busy)
        write(device / "hwmon/hwmon4/name", "amdgpu")
        write(device / "hwmon/hwmon4/power1_average", round(self.watts * 1e6))
        write(device / "hwmon/hwmon4/temp1_input", 48000)
        write(device / "hwmon/hwmon4/freq1_input", 2_900_000_000)  # most of the shaders' clock (R 2.1)
        (device / "drm" / self.name).mkdir(parents=True)
        (device / "drm" / f"renderD{self.render}").mkdir()
        link = root / "sys/class/drm" / self.name
        link.mkdir(parents=True)
        (link / "device").symlink_to(os.path.relpath(device, link))
        (root / "sys/class/drm" / f"{self.name}-eDP-1").mkdir()  # a connector, and no card
        properties = f"cpu_cores_count 0\ngfx_target_version {self.gfx_target_version}\ndrm_render_minor {self.render}"
        write(root / f"sys/class/kfd/kfd/topology/nodes/{node}/properties", properties)
        write(root / f"dev/dri/renderD{self.render}", "")


@dataclass(frozen=True)
class StrixHalo:
    """One machine; `replace` makes its faults. RAM is what 128 GB leave beside the carve-out."""

    cards: tuple[Card, ...] = (Card(),)
    mem_total_gib: float = 125.0  # R 2.5: "62.47 GiB of 125", safetensors#728: "on 125 GB"
    mem_available_gib: float = 118.0
    kernel: str = "6.18.9-200.fc43.x86_64"  # tested (R 2.3)
    system: str = 'ID=fedora\nVERSION_ID="43"'
    command_line: str = "ro quiet amd_iommu=off amdgpu.gttsize=126976 ttm.pages_limit=32505856"  # R 2.3
    parameters: dict[str, str] = field(
        default_factory=lambda: {
            "ttm/pages_limit": "32505856",
            "amdgpu/gttsize": "126976",
            "amdgpu/cwsr_enable": "1",
            "amdgpu/lockup_timeout": "",
        }
    )
    mes: int | None = 0x80  # good (R 2.3); None: debugfs is root's, as it is by default
    iommus: int = 0

    def build(self, folder: Path) -> Root:
        self._system(folder)
        self._processor(folder)
        write(folder / "sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 32\ngfx_target_version 0")
        for node, card in enumerate(self.cards, start=1):
            card.build(folder, node=node)
            if self.mes is not None and card.vendor == "0x1002":
                self._firmware(folder, card)
        write(folder / "dev/kfd", "")
        for name, value in self.parameters.items():
            module, _, parameter = name.partition("/")
            write(folder / f"sys/module/{module}/parameters/{parameter}", value)
        for number in range(self.iommus):
            (folder / f"sys/class/iommu/ivhd{number}").mkdir(parents=True)
        return Root(folder, limit_s=0.3)

    def _system(self, folder: Path) -> None:
        kib = 2**20
        write(
            folder / "proc/meminfo",
            f"MemTotal: {round(self.mem_total_gib * kib)} kB\nMemFree: {kib} kB\n"
            f"MemAvailable: {round(self.mem_available_gib * kib)} kB\nSwapTotal: {8 * kib} kB\nSwapFree: {8 * kib} kB",
        )
        write(folder / "proc/sys/kernel/osrelease", self.kernel)
        write(folder / "proc/sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000001")
        write(folder / "proc/cmdline", self.command_line)
        write(folder / "proc/loadavg", "0.10 0.10 0.10 1/900 4242")
        write(folder / "proc/vmstat", "nr_free_pages 1\noom_kill 0")
        write(folder / "proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0")
        write(folder / "proc/1/comm", "systemd")
        write(folder / "etc/os-release", self.system)
        write(folder / "proc/self/mountinfo", f"29 23 0:26 / {CGROUP} rw - cgroup2 cgroup2 rw")
        write(folder / "proc/self/cgroup", "0::/user.slice/raft.scope")
        group = folder / CGROUP.lstrip("/") / "user.slice/raft.scope"
        write(group / "memory.current", GIB)
        write(group / "memory.max", "max")
        write(group / "memory.events", "oom 0\noom_kill 0")
        write(group / "cpu.max", "max 100000")

    def _processor(self, folder: Path) -> None:
        flags = "flags : fpu avx2 avx512f avx512_bf16"  # Zen 5
        one = f"model name : AMD RYZEN AI MAX+ 395 w/ Radeon 8060S\n{flags}\n"
        write(folder / "proc/cpuinfo", "\n".join(f"processor : {number}\n{one}" for number in range(32)))
        write(folder / "proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1")
        write(folder / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance")
        write(folder / "sys/firmware/acpi/platform_profile", "performance")
        write(folder / "sys/class/power_supply/ADP1/type", "Mains")
        write(folder / "sys/class/power_supply/ADP1/online", 1)

    def _firmware(self, folder: Path, card: Card) -> None:
        """As ROCm/legacy-rocm-build#5724 quotes it; the folder is named by minor number."""
        dri = folder / "sys/kernel/debug/dri" / card.name.removeprefix("card")
        write(dri / "name", f"amdgpu dev={card.pci} unique={card.pci}")
        write(
            dri / "amdgpu_firmware_info",
            "MES_KIQ feature version: 6, firmware version: 0x0000006f\n"
            f"MES feature version: 1, firmware version: 0x{self.mes:08x}\n"
            "SDMA0 feature version: 60, firmware version: 0x0000000e",
        )


HEALTHY = StrixHalo()
SMALL_GTT = replace(
    HEALTHY,
    cards=(Card(gtt_total=round(62.47 * GIB)),),  # the total of the out-of-memory in kyuz0's vllm#11 (R 2.5)
    command_line="ro quiet",
    parameters={**HEALTHY.parameters, "ttm/pages_limit": "16376135", "amdgpu/gttsize": "-1"},  # half of the RAM
    iommus=1,
)
BAD_FIRMWARE = replace(HEALTHY, mes=0x83, kernel="6.17.4-300.fc43.x86_64")  # R 2.3
HANGING = replace(
    HEALTHY,
    cards=(Card(busy=100, watts=50.4, gtt_used=41 * GIB),),  # "GPU 100% busy at ~50 W ... memory flat" (R 2.5, #6530)
)
IGPU_IS_CARD1 = replace(
    HEALTHY,
    cards=(
        # A discrete card in the first slot: gfx1100 is target version 110000, Navi 31 is PCI id 0x744c (pci.ids).
        Card(
            name="card0",
            pci=SECOND_PCI,
            device="0x744c",
            vram_total=24 * GIB,
            gtt_total=62 * GIB,
            gfx_target_version=110000,
        ),
        Card(name="card1", render=129),
    ),
)
OTHER_VENDOR_FIRST = replace(HEALTHY, cards=(Card(name="card1"),))


def build_other_vendor_first(folder: Path) -> Root:
    """card0 is an Intel display adapter, which ROCm does not list."""
    root = OTHER_VENDOR_FIRST.build(folder)
    write(folder / "sys/class/drm/card0/device/vendor", "0x8086")
    write(folder / "sys/class/drm/card0/device/device", "0x56a0")
    return root


# What torch says there -------------------------------------------------------------------------------------

CPU_BUILD = {"torch": "2.13.0+cpu", "hip": None, "cuda": None, "bf16": True, "threads": 16, "devices": []}
"""A wheel for processors, which is what `pip install torch` may bring."""


def rocm(*devices: dict[str, object], **over: object) -> dict[str, object]:
    """The answer of agent.raft.probe with AMD's wheel of R 2.3."""
    return {
        "torch": "2.13.0+rocm10.0.0",
        "hip": "10.0.0",
        "cuda": None,
        "bf16": True,
        "threads": 16,
        "arch_list": ["gfx1151"],
        "packages": {"torch": "2.13.0+rocm10.0.0", "amd-torch-device-gfx1151": "2.13.0+rocm10.0.0"},
        "devices": list(devices),
        **over,
    }


STRIX_DEVICE: dict[str, object] = {
    "name": "AMD Radeon 8060S",
    "arch": "gfx1151",
    "memory_gb": 124.0,
    "bf16": True,
    "integrated": True,
    "pci": PCI,
}
DISCRETE_DEVICE: dict[str, object] = {
    "name": "AMD Radeon RX 7900 XTX",
    "arch": "gfx1100",
    "memory_gb": 24.0,
    "bf16": True,
    "integrated": False,
    "pci": SECOND_PCI,
}
