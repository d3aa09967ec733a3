"""Readings from made-up /sys and /proc trees, and from this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.hardware import cgroup, kernel, sensors
from agent.hardware.cgroup import cgroup_memory
from agent.hardware.sensors import GIB, PowerSupply, disk_free, graphics, kfd_architectures, memory, pressure


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def card(drm: Path, name: str, vendor: str, **files: str) -> None:
    write(drm / name / "device" / "vendor", vendor + "\n")
    for file, text in files.items():
        write(drm / name / "device" / file, text + "\n")


def test_the_vendor_decides_which_card_it_is(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0x8086", mem_info_vram_used="1")
    card(
        tmp_path, "card1", "0x1002", device="0x1586", gpu_busy_percent="100",
        mem_info_vram_used=str(512 * 2**20), mem_info_vram_total=str(2**30),
        mem_info_gtt_used=str(60 * 2**30), mem_info_gtt_total=str(124 * 2**30),
    )  # fmt: skip
    write(tmp_path / "card1" / "device" / "hwmon" / "hwmon3" / "power1_average", "51000000\n")
    write(tmp_path / "card1" / "device" / "hwmon" / "hwmon3" / "temp1_input", "63000\n")
    write(tmp_path / "card1-eDP-1" / "device" / "vendor", "0x1002\n")
    found = graphics(drm=tmp_path)
    assert [one.card for one in found] == ["card1"]
    (strix,) = found
    assert strix.device == sensors.STRIX_HALO_PCI
    assert (strix.vram_used, strix.gtt_used, strix.gtt_total) == (0.5, 60.0, 124.0)
    assert strix.used == 60.5  # VRAM alone would say half a GiB
    assert (strix.power_w, strix.temperature_c, strix.busy_percent) == (51.0, 63.0, 100.0)


def test_a_card_that_does_not_tell_is_unknown_and_not_zero(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0x1002", mem_info_vram_used="N/A")
    (one,) = graphics(drm=tmp_path)
    assert (one.vram_used, one.gtt_used, one.used, one.power_w) == (None, None, None, None)
    assert graphics(drm=tmp_path / "absent") == []


def test_target_versions_are_read_as_architectures(tmp_path: Path) -> None:
    for node, version in enumerate((0, 110501, 90010, 100300)):
        write(tmp_path / str(node) / "properties", f"cpu_cores_count 16\ngfx_target_version {version}\n")
    assert kfd_architectures(nodes=tmp_path) == ["gfx1151", "gfx90a", "gfx1030"]


def test_pressure_is_parsed_or_unknown(tmp_path: Path) -> None:
    write(
        tmp_path / "memory",
        "some avg10=1.50 avg60=0.30 avg300=0.10 total=9\nfull avg10=0.50 avg60=0.20 avg300=0 total=1\n",
    )
    write(tmp_path / "cpu", "some avg10=7.00 avg60=6.00 avg300=5.00 total=9\n")
    assert pressure("memory", folder=tmp_path) == sensors.Pressure(1.5, 0.3, 0.5, 0.2)
    assert pressure("cpu", folder=tmp_path) == sensors.Pressure(7.0, 6.0, None, None)
    assert pressure("io", folder=tmp_path) is None


def test_a_battery_is_warned_of() -> None:
    assert PowerSupply(plugged=True, battery_percent=40.0).warning is None
    assert PowerSupply(plugged=None, battery_percent=None).warning is None
    assert "40%" in (PowerSupply(plugged=False, battery_percent=40.0).warning or "")


def proc_tree(tmp_path: Path, *, membership: str, mount: str) -> Path:
    proc = tmp_path / "proc"
    write(proc / "self" / "cgroup", membership)
    write(proc / "self" / "mountinfo", mount)
    return proc


def test_cgroup_v2_takes_the_tightest_limit_up_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    inner = root / "user.slice" / "run.scope"
    write(inner / "memory.current", str(3 * 2**30))
    write(inner / "memory.max", "max\n")
    write(inner / "memory.stat", f"anon 1\ninactive_file {2**30}\n")
    write(inner / "memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n")
    write(root / "user.slice" / "memory.max", str(8 * 2**30))
    mount = f"29 23 0:26 / {root} rw,nosuid - cgroup2 cgroup2 rw\n"
    proc = proc_tree(tmp_path, membership="0::/user.slice/run.scope\n", mount=mount)
    group = cgroup_memory(proc=proc)
    assert group is not None
    assert (group.version, group.limit, group.used, group.oom_kills) == (2, 8 * 2**30, 2 * 2**30, 2)
    assert group.available == 6 * 2**30  # page cache that can be dropped is not in use


def test_cgroup_v1_and_its_way_of_writing_no_limit(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    write(root / "job" / "memory.usage_in_bytes", "1000")
    write(root / "job" / "memory.limit_in_bytes", "5000")
    write(root / "job" / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    write(root / "memory.limit_in_bytes", str(2**63 - 4096))
    write(root / "memory.usage_in_bytes", "9")
    mount = f"35 31 0:32 / {root} rw - cgroup cgroup rw,memory\n"
    proc = proc_tree(tmp_path, membership="4:memory:/job\n0::/\n", mount=mount)
    group = cgroup_memory(proc=proc)
    assert group is not None
    assert (group.version, group.limit, group.used, group.oom_kills) == (1, 5000, 1000, 3)
    # Seen from inside a container the path is the host's: the mount point itself is then the group.
    other = proc_tree(tmp_path / "b", membership="4:memory:/host/path\n", mount=mount)
    outside = cgroup_memory(proc=other)
    assert outside is not None
    assert (outside.limit, outside.used) == (None, 9)


def test_without_a_memory_controller_there_is_no_group(tmp_path: Path) -> None:
    assert cgroup_memory(proc=proc_tree(tmp_path, membership="3:cpu:/\n", mount="")) is None
    assert cgroup_memory(proc=tmp_path / "nowhere") is None


def test_a_containers_limit_is_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    group = cgroup.CgroupMemory(2, "/x", limit=2**30, used=2**29, oom_kills=0)
    monkeypatch.setattr(sensors, "cgroup_memory", lambda: group)
    reading = memory()
    assert (reading.total, reading.available, reading.limited_by) == (1.0, 0.5, "cgroup")


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    reading = memory()
    assert 0 < reading.available <= reading.total
    assert disk_free(tmp_path / "not" / "yet" / "there") == pytest.approx(disk_free(tmp_path), rel=0.01)
    assert GIB == 2**30


def test_kernel_messages_are_filtered_by_time_and_topic(tmp_path: Path) -> None:
    pipe = tmp_path / "kmsg"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)
    try:
        text = (
            "6,10,5000000,-;amdgpu 0000:c5:00.0: amdgpu: GPU reset begin!\n"
            "6,11,90000000,-;usb 1-1: new device\n"
            "3,12,95000000,-;Out of memory: Killed process 7 (python) total-vm:1kB\n SUBSYSTEM=x\n"
        )
        os.write(holder, text.encode())
        log = kernel.kernel_log(since=60.0, device=pipe)
    finally:
        os.close(holder)
    assert log.text == "Out of memory: Killed process 7 (python) total-vm:1kB"
    assert log.why_empty is None


def test_a_kernel_log_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    log = kernel.kernel_log(device=tmp_path / "absent")
    assert log.text == ""
    assert "cannot be read" in (log.why_empty or "")


def test_memory_kills_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "vmstat", "nr_free 1\noom_kill 5\nother 2\n")
    assert kernel.oom_kills(vmstat=tmp_path / "vmstat") == 5
    assert kernel.oom_kills(vmstat=tmp_path / "absent") is None
