"""Readings from made-up /sys and /proc trees, and from this machine."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import Driver
from machines import HANGING, HEALTHY, IGPU_IS_CARD1, build_other_vendor_first, write

from agent.hardware import kernel, sensors
from agent.hardware.cgroup import cgroup_memory, cpu_quota
from agent.hardware.nvidia import Nvml
from agent.hardware.root import Root, unanswered, within
from agent.hardware.sensors import (
    GIB,
    Memory,
    PowerSupply,
    Sampler,
    disk_free,
    graphics,
    hottest,
    kfd_architectures,
    memory,
    memory_in_use,
    power_supply,
    pressure,
    silent_hang,
)


def card(root: Path, name: str, vendor: str, **files: str) -> None:
    device = root / "sys/class/drm" / name / "device"
    write(device / "vendor", vendor)
    for file, text in files.items():
        write(device / file, text)


def test_the_vendor_decides_which_card_it_is(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0x8086", mem_info_vram_used="1")
    card(
        tmp_path, "card1", "0x1002", device="0x1586", gpu_busy_percent="100",
        mem_info_vram_used=str(512 * 2**20), mem_info_vram_total=str(2**30),
        mem_info_gtt_used=str(60 * 2**30), mem_info_gtt_total=str(124 * 2**30),
    )  # fmt: skip
    hwmon = tmp_path / "sys/class/drm/card1/device/hwmon/hwmon3"
    write(hwmon / "power1_average", "51000000")
    write(hwmon / "temp1_input", "63000")
    write(hwmon / "freq1_input", "2900000000")
    write(tmp_path / "sys/class/drm/card1-eDP-1/device/vendor", "0x1002")
    found = graphics(root=Root(tmp_path))
    assert [one.card for one in found] == ["card1"]
    (strix,) = found
    assert strix.device == sensors.STRIX_HALO_PCI
    assert (strix.vram_used, strix.gtt_used, strix.gtt_total) == (0.5, 60.0, 124.0)
    assert strix.used == 60.5  # VRAM alone would say half a GiB
    assert (strix.power_w, strix.temperature_c, strix.busy_percent, strix.clock_mhz) == (51.0, 63.0, 100.0, 2900.0)
    assert strix.arch == "gfx1151"  # by the PCI id: no ROCm kernel driver lists it here


def test_a_card_that_does_not_tell_is_unknown_and_not_zero(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0x1002", mem_info_vram_used="N/A")
    (one,) = graphics(root=Root(tmp_path))
    assert (one.vram_used, one.gtt_used, one.used, one.power_w) == (None, None, None, None)
    assert graphics(root=Root(tmp_path / "absent")) == []


def test_target_versions_are_read_as_architectures(tmp_path: Path) -> None:
    for node, version in enumerate((0, 110501, 90010, 100300)):
        properties = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}/properties"
        write(properties, f"cpu_cores_count 16\ngfx_target_version {version}")
    assert kfd_architectures(root=Root(tmp_path)) == ["gfx1151", "gfx90a", "gfx1030"]


def test_pressure_is_parsed_or_unknown(tmp_path: Path) -> None:
    folder, root = tmp_path / "proc/pressure", Root(tmp_path)
    write(
        folder / "memory",
        "some avg10=1.50 avg60=0.30 avg300=0.10 total=9\nfull avg10=0.50 avg60=0.20 avg300=0 total=1\n",
    )
    write(folder / "cpu", "some avg10=7.00 avg60=6.00 avg300=5.00 total=9\n")
    assert pressure("memory", root=root) == sensors.Pressure(1.5, 0.3, 0.5, 0.2)
    assert pressure("cpu", root=root) == sensors.Pressure(7.0, 6.0, None, None)
    assert pressure("io", root=root) is None


def test_a_battery_is_warned_of() -> None:
    assert PowerSupply(plugged=True, battery_percent=40.0).warning is None
    assert PowerSupply(plugged=None, battery_percent=None).warning is None
    assert "40%" in (PowerSupply(plugged=False, battery_percent=40.0).warning or "")


def group_tree(tmp_path: Path, *, membership: str, mount: str) -> Root:
    write(tmp_path / "proc/self/cgroup", membership)
    write(tmp_path / "proc/self/mountinfo", mount)
    return Root(tmp_path)


def test_cgroup_v2_takes_the_tightest_limit_up_to_the_root(tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup"
    inner = top / "user.slice/run.scope"
    write(inner / "memory.current", 3 * 2**30)
    write(inner / "memory.max", "max")
    write(inner / "memory.stat", f"anon 1\ninactive_file {2**30}")
    write(inner / "memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 2")
    write(inner / "cpu.max", "max 100000")
    write(top / "user.slice/memory.max", 8 * 2**30)
    write(top / "user.slice/cpu.max", "150000 100000")
    mount = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
    root = group_tree(tmp_path, membership="0::/user.slice/run.scope", mount=mount)
    group = cgroup_memory(root=root)
    assert group is not None
    assert (group.version, group.limit, group.used, group.oom_kills) == (2, 8 * 2**30, 2 * 2**30, 2)
    assert group.available == 6 * 2**30  # page cache that can be dropped is not in use
    assert cpu_quota(root=root) == 1.5
    # who else is below the limit shares it
    write(top / "user.slice/memory.current", 7 * 2**30)
    write(top / "user.slice/memory.stat", f"anon 1\ninactive_file {2**29}")
    group = cgroup_memory(root=root)
    assert group is not None
    assert (group.limit, group.used, group.available) == (8 * 2**30, 2 * 2**30, 3 * 2**29)


def test_cgroup_v1_and_its_way_of_writing_no_limit(tmp_path: Path) -> None:
    top = tmp_path / "cg/memory"
    write(top / "job/memory.usage_in_bytes", 1000)
    write(top / "job/memory.limit_in_bytes", 5000)
    write(top / "job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3")
    write(top / "memory.limit_in_bytes", 2**63 - 4096)
    write(top / "memory.usage_in_bytes", 9)
    mount = "35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory"
    group = cgroup_memory(root=group_tree(tmp_path, membership="4:memory:/job\n0::/", mount=mount))
    assert group is not None
    assert (group.version, group.limit, group.used, group.oom_kills) == (1, 5000, 1000, 3)
    # Seen from inside a container the path is the host's: the mount point itself is then the group.
    outside = cgroup_memory(root=group_tree(tmp_path, membership="4:memory:/host/path", mount=mount))
    assert outside is not None
    assert (outside.limit, outside.used) == (None, 9)


def test_without_a_memory_controller_there_is_no_group(tmp_path: Path) -> None:
    assert cgroup_memory(root=group_tree(tmp_path, membership="3:cpu:/", mount="")) is None
    assert cgroup_memory(root=Root(tmp_path / "nowhere")) is None


def test_a_containers_limit_is_the_memory(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    assert memory(root=root) == Memory(total=125.0, available=118.0, swap_free=8.0, limited_by=None)
    group = tmp_path / "sys/fs/cgroup/user.slice/raft.scope"
    write(group / "memory.max", 16 * 2**30)
    reading = memory(root=root)
    assert (reading.total, reading.available, reading.limited_by) == (16.0, 15.0, "cgroup")


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    reading = memory()
    assert 0 < reading.available <= reading.total
    assert disk_free(tmp_path / "not" / "yet" / "there") == pytest.approx(disk_free(tmp_path), rel=0.01)
    assert GIB == 2**30


def test_kernel_messages_are_filtered_by_time_and_topic(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    pipe = tmp_path / "dev/kmsg"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)
    try:
        text = (
            "6,10,5000000,-;amdgpu 0000:c5:00.0: amdgpu: GPU reset begin!\n"
            "6,11,90000000,-;usb 1-1: new device\n"
            "3,12,95000000,-;Out of memory: Killed process 7 (python) total-vm:1kB\n SUBSYSTEM=x\n"
        )
        os.write(holder, text.encode())
        log = kernel.kernel_log(since=60.0, root=Root(tmp_path))
    finally:
        os.close(holder)
    assert log.text == "Out of memory: Killed process 7 (python) total-vm:1kB"
    assert log.why_empty is None


def test_a_kernel_log_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    log = kernel.kernel_log(root=Root(tmp_path / "absent"))
    assert log.text == ""
    assert "cannot be read" in (log.why_empty or "")


def test_memory_kills_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "proc/vmstat", "nr_free 1\noom_kill 5\nother 2")
    assert kernel.oom_kills(root=Root(tmp_path)) == 5
    assert kernel.oom_kills(root=Root(tmp_path / "absent")) is None


# Machines --------------------------------------------------------------------------------------------------


def test_the_strix_halo_is_named_wherever_it_is(tmp_path: Path) -> None:
    (card,) = graphics(root=build_other_vendor_first(tmp_path / "intel first"))
    assert (card.card, card.arch, card.pci) == ("card1", "gfx1151", "0000:c5:00.0")
    assert card.words == "card1: gfx1151 (AMD Strix Halo), PCI id 0x1586"
    first, second = graphics(root=IGPU_IS_CARD1.build(tmp_path / "discrete first"))
    assert (first.card, first.arch, first.vram_total) == ("card0", "gfx1100", 24.0)
    assert (second.card, second.arch, second.gtt_total) == ("card1", "gfx1151", 124.0)


def test_a_lost_queue_is_told_from_work_by_power_and_flat_memory(tmp_path: Path) -> None:
    root = HANGING.build(tmp_path)
    readings = [graphics(root=root)[0] for _ in range(5)]
    assert "100% busy at 50 W with memory flat" in (silent_hang(readings) or "")
    assert silent_hang(readings[:4]) is None  # too few to say
    device = tmp_path / "sys/class/drm/card0/device"
    write(device / "mem_info_gtt_used", 41 * 2**30 + 4096)
    assert silent_hang([*readings[:4], graphics(root=root)[0]]) is None  # it allocates: it lives
    write(device / "mem_info_gtt_used", 41 * 2**30)
    write(device / "hwmon/hwmon4/power1_average", 110_000_000)
    assert silent_hang([*readings[:4], graphics(root=root)[0]]) is None  # it works


def test_a_sensor_that_vanishes_in_mid_run_is_unknown_from_then_on(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    times = iter(range(10))
    sampler = Sampler(root=root, clock=lambda: float(next(times)))
    first = sampler.sample()
    assert (first.at, first.cards[0].used, first.cards[0].power_w, first.cpu_percent) == (0.0, 0.375, 22.0, None)
    write(tmp_path / "proc/stat", "cpu  200 0 200 900 0 0 0 0 0 0")
    device = tmp_path / "sys/devices/pci0000:00/0000:c5:00.0"
    (device / "hwmon/hwmon4/power1_average").unlink()
    (device / "mem_info_gtt_used").unlink()
    second = sampler.sample()
    assert (second.cards[0].used, second.cards[0].power_w) == (0.25, None)
    assert second.cpu_percent == pytest.approx(100 * 200 / 300)  # 300 ticks more, 100 of them idle
    device.rename(tmp_path / "gone")  # the driver has dropped the card
    third = sampler.sample()
    assert (third.cards[0].card, third.cards[0].used, third.gpu_used) == ("card0", None, None)
    (tmp_path / "gone").rename(device)  # and a reset brings it back
    assert sampler.sample().cards[0].vram_used == 0.25


def test_a_sysfs_file_that_blocks_costs_its_limit_once(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    busy = tmp_path / "sys/devices/pci0000:00/0000:c5:00.0/gpu_busy_percent"
    busy.unlink()
    os.mkfifo(busy)  # to open it waits for a writer for ever, as a read does in a driver that hangs
    sampler = Sampler(root=root)
    began = time.monotonic()
    blocked = sampler.sample()
    took = time.monotonic() - began
    assert 0.3 <= took < 3
    assert (blocked.cards[0].busy_percent, blocked.cards[0].gtt_used) == (None, 0.125)  # the others are read on
    began = time.monotonic()
    assert sampler.sample().cards[0].busy_percent is None
    assert time.monotonic() - began < 0.3  # it is not asked again
    (said,) = unanswered(root)
    assert "did not answer in 0.3 s" in said
    assert "not asked again" in (root.read("/sys/class/drm/card0/device/gpu_busy_percent").why or "")


def test_work_of_the_reader_raises_what_it_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        within(5.0, "a division", lambda: 1 // 0)
    assert within(5.0, "a division", lambda: 1) == 1


def test_a_forked_child_reads_with_a_thread_of_its_own(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    assert graphics(root=root)[0].power_w == 22.0  # the parent has its thread now
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, f"{graphics(root=root)[0].power_w}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 16) == b"22.0"
    os.close(reader)
    os.close(writer)


def test_power_and_temperature_below_a_root(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    assert power_supply(root=root) == PowerSupply(None, None)  # mains, and no battery
    battery = tmp_path / "sys/class/power_supply/BAT0"
    write(battery / "type", "Battery")
    write(battery / "capacity", 71)
    write(tmp_path / "sys/class/power_supply/mouse/type", "Battery")
    write(tmp_path / "sys/class/power_supply/mouse/scope", "Device")
    assert power_supply(root=root) == PowerSupply(True, 71.0)
    write(tmp_path / "sys/class/power_supply/ADP1/online", 0)
    assert power_supply(root=root) == PowerSupply(False, 71.0)
    write(tmp_path / "sys/class/hwmon/hwmon0/name", "k10temp")
    write(tmp_path / "sys/class/hwmon/hwmon0/temp1_label", "Tctl")
    write(tmp_path / "sys/class/hwmon/hwmon0/temp1_input", 91500)
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", 40000)
    assert hottest(root=root) == ("k10temp Tctl", 91.5)
    assert hottest(root=Root(tmp_path / "absent")) is None


# What a figure is worth ------------------------------------------------------------------------------------

STRIX = sensors.Graphics("card1", "0x1586", 0.5, 0.5, 60.0, 124.0, 100.0, 90.0, 60.0, arch="gfx1151")
IDLE, NOW = Memory(125.0, 118.0, 8.0, None), Memory(125.0, 55.0, 8.0, None)


@pytest.mark.parametrize(
    ("given", "gib", "said"),
    [
        # VRAM stays below 1 GiB with a small carve-out: the sum counts (trap a).
        (
            {"card": STRIX, "reserved_gib": 58.0, "now": NOW, "idle": IDLE},
            60.5,
            "0.5 VRAM + 60.0 GTT; MemAvailable fell",
        ),
        # GTT stays near 0 while torch holds 51.75 GiB (trap b, legacy-rocm-build#5444).
        ({"card": replace(STRIX, gtt_used=0.02), "reserved_gib": 51.75}, 51.75, "counts only 0.5 (ROCm/legacy"),
        # The same without torch's figure: only the host tells.
        ({"card": replace(STRIX, gtt_used=0.02), "now": NOW, "idle": IDLE}, 63.0, "torch was not asked"),
        # amd-smi and some drivers say nothing at all (trap c).
        ({"card": replace(STRIX, vram_used=None, gtt_used=None), "reserved_gib": 9.0}, 9.0, "driver counts nothing"),
        ({"card": None, "free_gib": 20.0, "total_gib": 80.0}, 60.0, "torch sees 20.0 of 80.0 GiB free"),
        ({"card": None, "now": NOW, "idle": IDLE}, 63.0, "host memory included"),
        ({"card": None}, None, "nothing tells"),
        ({"card": replace(STRIX, vendor="nvidia", device=None, gtt_used=None, arch=None)}, 0.5, "VRAM as the driver"),
    ],
)
def test_the_most_credible_figure_is_taken_with_its_reason(given: dict[str, Any], gib: float | None, said: str) -> None:
    found = memory_in_use(**given)
    assert found.gib == gib
    assert said in found.why


# NVIDIA ----------------------------------------------------------------------------------------------------


def test_nvidia_cards_are_read_by_nvml(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0x10de", device="0x2330", uevent="PCI_SLOT_NAME=0000:01:00.0")
    driver = Driver()
    first, second = graphics(root=Root(tmp_path), nvidia=Nvml(driver))
    assert (first.card, first.vendor, first.name, first.device) == ("card0", "nvidia", "NVIDIA H100", "0x2330")
    assert (first.used, first.vram_total, first.busy_percent, first.power_w) == (30.0, 80.0, 97.0, 412.5)
    assert (first.temperature_c, first.clock_mhz, first.memory_clock_mhz) == (61.0, 1980.0, 2619.0)
    assert (second.card, second.name, second.used, second.power_w) == ("nvidia1", "NVIDIA GB10", None, None)
    driver.lost = True  # in mid-run
    (gone,) = graphics(root=Root(tmp_path), nvidia=Nvml(driver))
    assert (gone.card, gone.used) == ("card0", None)


def test_what_nvml_tells_of_a_card_once() -> None:
    nvml = Nvml(Driver())
    assert nvml.driver() == "580.95.05"
    first, second = nvml.details()
    assert (first.capability, first.mig, first.ecc, first.persistence) == ("sm_90", True, False, False)
    assert first.holders == ((4_000_000, 29.0),)
    assert (second.capability, second.mig, second.holders) == ("sm_121", None, ())


def test_a_driver_that_does_not_return_costs_its_limit_once() -> None:
    class Hanging(Driver):
        def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
            threading.Event().wait()
            raise AssertionError

    nvml = Nvml(Hanging(cards=1), limit_s=0.3, name="NVML of a test")
    (card,) = nvml.cards()
    assert (card.power_w, card.temperature_c, card.memory_used) == (None, 61.0, 30.0)
    began = time.monotonic()
    assert nvml.cards() == [card]
    assert time.monotonic() - began < 0.3
    assert any(words.startswith("NVML of a test power of card 0 did not answer") for words in unanswered())


def test_a_sample_opens_nothing_that_stays_open(tmp_path: Path) -> None:
    sampler = Sampler(root=HEALTHY.build(tmp_path))
    sampler.sample()
    before, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(100):
        sampler.sample()
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == (before, threads)
