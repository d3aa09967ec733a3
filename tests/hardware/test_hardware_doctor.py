"""What the doctor says of made-up machines, with children that answer as they are told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import Driver
from machines import (
    BAD_FIRMWARE,
    CPU_BUILD,
    DISCRETE_DEVICE,
    HANGING,
    HEALTHY,
    IGPU_IS_CARD1,
    SMALL_GTT,
    STRIX_DEVICE,
    Card,
    build_other_vendor_first,
    rocm,
    write,
)

from agent.hardware.doctor import examine, look
from agent.hardware.doctor_cuda import runs
from agent.hardware.facts import Access, Facts, gather
from agent.hardware.findings import SEVERITIES, Finding, exit_code, worst_first
from agent.hardware.isolation import Isolation, isolation, isolation_findings
from agent.hardware.measured import MEASURED
from agent.hardware.nvidia import Nvml
from agent.hardware.presets import AOTRITON
from agent.hardware.probe import machine_from
from agent.hardware.root import Root
from agent.hardware.trials import measure

GOOD = {"finite": True, "error": 4e-3, "allowed": 2e-2, "seconds": {"packed": 0.004, "causal": 0.003}}


def facts_on(root: Root, answer: Mapping[str, Any], *, problem: str | None = None, **shell: str) -> Facts:
    machine = machine_from(answer, problem=problem, packages=frozenset(), root=root)
    return gather(
        machine, answer, problem=problem, shell=shell, folders=[Path("/")], root=root, pause=lambda seconds: None
    )


def said(facts: Facts) -> dict[str, Finding]:
    return {finding.id: finding for finding in examine(facts)}


def worse_than_a_note(found: Mapping[str, Finding]) -> set[str]:
    """Of what the fixture decides; the free space of this machine's disk is not."""
    return {one.id for one in found.values() if one.severity in ("error", "warning", "unknown")} - {"disk"}


# Made-up machines ------------------------------------------------------------------------------------------


def test_a_healthy_strix_halo_is_fit(tmp_path: Path) -> None:
    found = said(facts_on(HEALTHY.build(tmp_path), rocm(STRIX_DEVICE)))
    assert worse_than_a_note(found) == set()
    for what in ("amd-torch", "amd-wheel", "amd-access", "amd-kernel", "amd-firmware", "amd-gtt", "amd-carve-out"):
        assert found[what].severity == "ok", what
    assert found["amd-firmware"].title == "firmware: MES 0x80, which is good"
    assert found["amd-gtt"].title == "the GPU may use 124 of 125 GiB"
    assert f"{AOTRITON}=1" in found["preset"].evidence
    assert "ROCBLAS_USE_HIPBLASLT: not measured here" in found["preset"].consequence


def test_a_gtt_limit_that_was_not_raised_is_said_with_the_parameter(tmp_path: Path) -> None:
    found = said(facts_on(SMALL_GTT.build(tmp_path), rocm(STRIX_DEVICE)))
    assert worse_than_a_note(found) == {"amd-gtt"}
    gtt = found["amd-gtt"]
    assert gtt.title == "the driver maps 62 of 125 GiB for the GPU"
    assert "62.47 GiB in mem_info_gtt_total of card0" in gtt.evidence
    assert "ttm.pages_limit=16376135" in gtt.evidence
    assert "total capacity 62.47 GiB" in gtt.consequence
    assert "grubby" in gtt.fix  # the system is Fedora
    assert "amdgpu.gttsize=126976 ttm.pages_limit=32505856" in gtt.fix
    assert found["amd-iommu"].severity == "note"
    assert "5 to 12%" in found["amd-iommu"].title


def test_the_bad_firmware_is_an_error_and_an_old_kernel_a_warning(tmp_path: Path) -> None:
    facts = facts_on(BAD_FIRMWARE.build(tmp_path), rocm(STRIX_DEVICE))
    found = said(facts)
    assert worse_than_a_note(found) == {"amd-firmware", "amd-kernel", "amd-cwsr"}
    assert (found["amd-firmware"].severity, found["amd-kernel"].severity) == ("error", "warning")
    assert "MES 0x83" in found["amd-firmware"].title
    assert "dnf" in found["amd-firmware"].fix
    assert "amdgpu.cwsr_enable=0" in found["amd-cwsr"].fix
    assert exit_code(list(found.values()), strict=False) == 11
    ubuntu = replace(facts, software=replace(facts.software, system="ubuntu", version="24.04"))
    assert said(ubuntu)["amd-kernel"].severity == "note"  # AMD supports that one
    assert "apt purge amdgpu-dkms-firmware" in said(ubuntu)["amd-firmware"].fix


def test_a_hung_gpu_is_an_error_with_who_holds_it(tmp_path: Path) -> None:
    root = HANGING.build(tmp_path)
    write(tmp_path / "sys/class/kfd/kfd/proc/4242/vram_1000", 3 * 2**30)
    write(tmp_path / "proc/4242/comm", "python")
    found = said(facts_on(root, rocm(STRIX_DEVICE)))
    assert found["amd-hang"].severity == "error"
    assert "100% busy at 50 W with memory flat" in found["amd-hang"].evidence
    assert "python (4242, 3.0 GiB of VRAM)" in found["amd-hang"].evidence
    write(tmp_path / "sys/class/drm/card0/device/hwmon/hwmon4/power1_average", 110_000_000)
    working = said(facts_on(root, rocm(STRIX_DEVICE)))
    assert "amd-hang" not in working
    assert (working["amd-busy"].severity, working["amd-busy"].title) == ("warning", "another process uses the GPU")


def test_two_cards_where_the_strix_halo_is_card1(tmp_path: Path) -> None:
    root = IGPU_IS_CARD1.build(tmp_path)
    write(
        tmp_path / "sys/kernel/debug/dri/0/amdgpu_firmware_info", "MES feature version: 1, firmware version: 0x00000083"
    )
    found = said(facts_on(root, rocm(DISCRETE_DEVICE, STRIX_DEVICE, arch_list=["gfx1100", "gfx1151"])))
    assert worse_than_a_note(found) == set()  # the firmware of the other card is not the Strix Halo's
    assert "124.00 GiB in mem_info_gtt_total of card1" in found["amd-gtt"].evidence
    assert found["amd-torch"].title == "torch computes on AMD Radeon RX 7900 XTX (gfx1100)"
    assert "HIP_VISIBLE_DEVICES=1" in found["amd-several"].fix
    other = said(facts_on(build_other_vendor_first(tmp_path / "intel"), rocm(STRIX_DEVICE)))
    assert worse_than_a_note(other) == set()
    assert "of card1" in other["amd-gtt"].evidence


def test_a_file_that_blocks_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    path = tmp_path / "sys/devices/pci0000:00/0000:c5:00.0/mem_info_gtt_total"
    path.unlink()
    os.mkfifo(path)
    found = said(facts_on(root, rocm(STRIX_DEVICE)))
    assert found["amd-gtt"].severity == "unknown"
    assert found["amd-firmware"].severity == "ok"
    stuck = [one for one in examine(facts_on(root, rocm(STRIX_DEVICE))) if one.id == "no-answer"]
    assert any("mem_info_gtt_total did not answer in 0.3 s" in one.evidence for one in stuck)


# Firmware that only root may read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "text", "severity", "words"),
    [
        (None, "", "unknown", "sudo sh -c 'grep MES /sys/kernel/debug/dri/*/amdgpu_firmware_info'"),
        ("var/lib/pacman/local/linux-firmware-amdgpu-20251125-2/desc", "x", "error", "firmware of 20251125"),
        (
            "var/lib/pacman/local/linux-firmware-amdgpu-20260110-1/desc",
            "x",
            "unknown",
            "linux-firmware-amdgpu 20260110-1",
        ),
        (
            "var/lib/dpkg/status",
            "Package: amdgpu-dkms-firmware\nStatus: install ok installed\nVersion: 30.20.0.0\n\nPackage: bash",
            "unknown",
            "has left 0x83 behind",
        ),
    ],
)
def test_firmware_that_cannot_be_read_is_unknown_unless_its_package_tells(
    tmp_path: Path, record: str | None, text: str, severity: str, words: str
) -> None:
    root = replace(HEALTHY, mes=None).build(tmp_path)
    if record is not None:
        write(tmp_path / record, text)
    finding = said(facts_on(root, rocm(STRIX_DEVICE)))["amd-firmware"]
    assert finding.severity == severity
    assert words in " ".join((finding.title, finding.evidence, finding.consequence, finding.fix))
    if severity == "unknown":
        assert "grep MES" in finding.fix


@pytest.mark.parametrize(("mes", "severity"), [(0x80, "ok"), (0x83, "error"), (0x8B, "note"), (0, "unknown")])
def test_firmware_versions(tmp_path: Path, mes: int, severity: str) -> None:
    found = said(facts_on(replace(HEALTHY, mes=mes).build(tmp_path), rocm(STRIX_DEVICE)))
    assert found["amd-firmware"].severity == severity


# torch on that machine -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "problem", "finding", "words"),
    [
        (CPU_BUILD, None, "amd-torch", "torch 2.13.0+cpu is not a ROCm build: gfx1151 (card0) is not used"),
        (rocm(), None, "amd-torch", "this ROCm build of torch does not see gfx1151"),
        ({}, "the probe gave no answer (ended by signal 11)", "amd-torch", "the nightlies of 9 to 12 June 2026"),
        (rocm(STRIX_DEVICE, arch_list=["gfx942", "gfx1100"], packages={}), None, "amd-wheel", "hipErrorInvalidImage"),
        (rocm(STRIX_DEVICE, packages={"rocm": "7.13.0a20260611"}), None, "amd-nightly", "rocm 7.13.0a20260611"),
    ],
)
def test_a_torch_that_cannot_train_there_is_an_error(
    tmp_path: Path, answer: dict[str, Any], problem: str | None, finding: str, words: str
) -> None:
    found = said(facts_on(HEALTHY.build(tmp_path), answer, problem=problem))[finding]
    assert found.severity == "error"
    assert words in " ".join((found.title, found.evidence, found.consequence, found.fix))


def test_the_device_package_is_as_good_as_a_wheel_for_the_card(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path)
    assert said(facts_on(root, rocm(STRIX_DEVICE, arch_list=[])))["amd-wheel"].severity == "ok"
    assert said(facts_on(root, rocm(STRIX_DEVICE, arch_list=[], packages={})))["amd-wheel"].severity == "unknown"


def test_closed_and_missing_device_files(tmp_path: Path) -> None:
    facts = facts_on(HEALTHY.build(tmp_path), rocm())
    closed = replace(facts, access=(Access("/dev/kfd", True, False, "render"),), groups=frozenset({"me"}))
    finding = said(closed)["amd-access"]
    assert finding.severity == "error"
    assert finding.fix == "$ sudo usermod -aG render,video $USER\nthen log in again"
    roots = replace(facts, access=(Access("/dev/kfd", True, False, "root"),))
    assert "root" not in said(roots)["amd-access"].fix  # nobody is told to join that group
    missing = said(replace(facts, access=(Access("/dev/kfd", False, False, None),)))["amd-access"]
    assert "--device /dev/kfd" in missing.fix


def test_variables_of_the_shell_that_do_harm(tmp_path: Path) -> None:
    shell = {
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "OMP_NUM_THREADS": "1",
        AOTRITON: "0",
        "PATH": "/bin",
    }
    found = said(facts_on(HEALTHY.build(tmp_path), rocm(STRIX_DEVICE), **shell))
    assert worse_than_a_note(found) == {f"shell-{name}" for name in shell if name != "PATH"}
    assert found["shell-HSA_OVERRIDE_GFX_VERSION"].fix == "$ unset HSA_OVERRIDE_GFX_VERSION"
    assert "memory access faults" in found["shell-HSA_OVERRIDE_GFX_VERSION"].consequence


# What is measured ------------------------------------------------------------------------------------------


class Child:
    """Answers as the children would, by arguments and variables; remembers what it was asked."""

    def __init__(self, **faults: Any):
        self.faults = faults
        self.asked: list[tuple[str, dict[str, str | None]]] = []

    def __call__(
        self, arguments: Sequence[str], variables: Mapping[str, str | None]
    ) -> tuple[dict[str, Any], str | None]:
        self.asked.append((" ".join(arguments), dict(variables)))
        if arguments[0] == "product":
            lt = variables.get("ROCBLAS_USE_HIPBLASLT") == "1"
            seconds = {"float32": 0.12, "bfloat16": 0.030 if lt else 0.036}
            return {"device": "cuda", "size": 8192, "seconds": seconds}, self.faults.get("product")
        name = arguments[-1] + ("+flag" if variables.get(AOTRITON) == "1" else "")
        answer = {**GOOD, "seconds": {"packed": 0.0023 if name == "sdpa+flag" else 0.044}}
        fault = self.faults.get(name)
        return ({}, fault) if isinstance(fault, str) else ({**answer, **(fault or {})}, None)


def measured_on(tmp_path: Path, child: Child) -> dict[str, Finding]:
    facts = facts_on(HEALTHY.build(tmp_path), rocm(STRIX_DEVICE))
    return said(replace(facts, trials=measure("rocm", ask=child, today=lambda: "2026-11-20")))


def test_each_value_is_measured_in_a_child_with_nothing_else_set(tmp_path: Path) -> None:
    child = Child()
    found = measured_on(tmp_path, child)
    assert worse_than_a_note(found) == set()
    names = ("ROCBLAS_USE_HIPBLASLT", "TORCH_BLAS_PREFER_HIPBLASLT", AOTRITON)
    assert all(set(variables) == set(names) for _, variables in child.asked)
    only = [
        {n: v for n, v in variables.items() if v is not None} for what, variables in child.asked if what == "product"
    ]
    assert only == [{}, {names[0]: "0"}, {names[0]: "1"}, {names[1]: "0"}, {names[1]: "1"}]
    assert found["measured-ROCBLAS_USE_HIPBLASLT"].title == "ROCBLAS_USE_HIPBLASLT=1 is worth it here"
    assert found["measured-TORCH_BLAS_PREFER_HIPBLASLT"].title == "TORCH_BLAS_PREFER_HIPBLASLT is best left unset"
    assert "ROCBLAS_USE_HIPBLASLT=1: measured here (2026-11-20): 1.20 times" in found["preset"].evidence
    assert found["attention-speed"].title == "fastest attention: sdpa with AOTriton"
    assert "30.5 TFLOP/s in bfloat16" in found["products"].title  # 2 * 8192^3 / 0.036 s


@pytest.mark.parametrize(
    ("faults", "finding", "severity", "words"),
    [
        ({"sdpa+flag": {"finite": False, "error": None}}, "attention-sdpa-with-aotriton", "warning", "not finite"),
        ({"sdpa": "did not answer in 60 s"}, "attention-sdpa", "note", "Runs are not concerned"),
        ({"sdpa+flag": {"error": 0.3}}, "attention-sdpa-with-aotriton", "warning", "off by 3.0e-01"),
        ({"eager": "ended by signal 6"}, "attention-eager", "error", "ended by signal 6"),
        ({"product": "ended by signal 6"}, "products", "error", "a matrix product fails"),
    ],
)
def test_attention_that_fails_is_said_and_kept_off(
    tmp_path: Path, faults: dict[str, Any], finding: str, severity: str, words: str
) -> None:
    found = measured_on(tmp_path, Child(**faults))
    assert found[finding].severity == severity
    assert words in " ".join((found[finding].title, found[finding].evidence, found[finding].consequence))
    runs_with_the_flag = f"{AOTRITON}=1" in found["preset"].evidence
    assert runs_with_the_flag == ("sdpa+flag" not in faults)


def test_a_gpu_at_a_fraction_of_its_known_speed(tmp_path: Path) -> None:
    class Slow(Child):
        def __call__(
            self, arguments: Sequence[str], variables: Mapping[str, str | None]
        ) -> tuple[dict[str, Any], str | None]:
            answer, problem = super().__call__(arguments, variables)
            if arguments[0] == "product":
                answer["seconds"] = {"float32": 0.3, "bfloat16": 0.215}
            return answer, problem

    found = measured_on(tmp_path, Slow())
    assert found["amd-products"].title == "5.1 TFLOP/s in bfloat16, 30 are known of this part"


def test_measurements_are_kept_for_runs(tmp_path: Path) -> None:
    root = HEALTHY.build(tmp_path / "root")
    command = [sys.executable, "-c", f"import json; print(json.dumps({rocm(STRIX_DEVICE)!r}))"]
    where = {"measured": tmp_path / "cache" / MEASURED, "folders": [tmp_path], "root": root, "command": command}
    facts = look(ask=Child(), shell={}, **where)
    assert facts.trials is not None
    kept = json.loads((tmp_path / "cache" / MEASURED).read_text())
    assert next(iter(kept.values()))["comparisons"][0]["variable"] == "ROCBLAS_USE_HIPBLASLT"
    later = look(quick=True, shell={}, **where)
    assert later.trials is None
    assert "ROCBLAS_USE_HIPBLASLT=1" in said(later)["preset"].evidence


# Other machines --------------------------------------------------------------------------------------------


def cuda_facts(root: Root, answer: Mapping[str, Any], driver: Driver | None) -> Facts:
    machine = machine_from(answer, problem=None, packages=frozenset(), root=root)
    nvml = Nvml(driver) if driver is not None else None
    return gather(
        machine, answer, problem=None, shell={}, folders=[], root=root, nvidia=nvml, pause=lambda seconds: None
    )


H100 = {"name": "NVIDIA H100", "arch": "sm_90", "memory_gb": 79.6, "bf16": True}
CUDA = {"torch": "2.13.0", "hip": None, "cuda": "13.0", "arch_list": ["sm_80", "sm_90"], "devices": [H100]}


def test_an_nvidia_card(tmp_path: Path) -> None:
    facts = cuda_facts(Root(tmp_path), CUDA, Driver(cards=1))
    found = said(facts)
    assert found["cuda-torch"].title == "torch computes on NVIDIA H100"
    assert "driver 580.95.05" in found["cuda-torch"].evidence
    assert found["cuda-wheel"].severity == "ok"
    assert "process 4000000 29.0 GiB" in found["cuda-busy-0"].evidence
    assert (found["cuda-mig-0"].severity, found["cuda-persistence-0"].fix) == ("note", "$ sudo nvidia-smi -pm 1")
    without = said(replace(facts, nvidia=replace(facts.nvidia, why_not="the package nvidia-ml-py is not installed")))
    assert "nvidia-ml-py>=12.535,<14" in without["cuda-nvml"].fix


def test_an_nvidia_card_that_torch_cannot_use(tmp_path: Path) -> None:
    new = {**CUDA, "devices": [{**H100, "name": "NVIDIA B200", "arch": "sm_100"}]}
    wheel = said(cuda_facts(Root(tmp_path), new, Driver(cards=1)))["cuda-wheel"]
    assert (wheel.severity, "no code for NVIDIA B200 (sm_100)" in wheel.title) == ("error", True)
    write(tmp_path / "sys/class/drm/card0/device/vendor", "0x10de")
    unseen = said(cuda_facts(Root(tmp_path), CPU_BUILD, None))["cuda-torch"]
    assert (unseen.severity, "CUDA build of torch" in unseen.fix) == ("error", True)


def test_the_small_graphics_of_a_processor_is_nothing_to_complain_of(tmp_path: Path) -> None:
    small = Card(device="0x164e", gfx_target_version=100306, gtt_total=15 * 2**30)  # gfx1036, on many desktops
    root = replace(HEALTHY, cards=(small,)).build(tmp_path)
    for answer in (CPU_BUILD, CUDA):
        facts = cuda_facts(root, answer, None)
        found = said(facts)
        assert worse_than_a_note(found) <= {"cuda-nvml"}
        assert "gfx1036" in found["amd-beside"].evidence
        assert "card0: gfx1036" in facts.machine.note
    assert "computes on NVIDIA H100" in found["amd-beside"].title
    assert "its build is for the other card" in facts.machine.note


@pytest.mark.parametrize(
    ("arch", "built", "good"),
    [
        ("sm_86", ["sm_80"], True),
        ("sm_80", ["sm_86"], False),
        ("sm_90", ["sm_80"], False),
        ("sm_120", ["compute_90"], True),
        ("sm_120", ["sm_120a"], True),
        ("sm_121", ["sm_120a"], False),
        ("gfx1151", ["sm_90"], True),
    ],
)
def test_which_code_runs_on_which_card(arch: str, built: list[str], good: bool) -> None:
    assert runs(arch, built) == good


def test_a_laptop_on_battery_in_a_small_container(tmp_path: Path) -> None:
    root = replace(HEALTHY, cards=(), mem_available_gib=1.5).build(tmp_path)
    battery = tmp_path / "sys/class/power_supply/BAT0"
    write(battery / "type", "Battery")
    write(battery / "capacity", 40)
    write(tmp_path / "sys/class/power_supply/ADP1/online", 0)
    write(tmp_path / "sys/firmware/acpi/platform_profile", "low-power")
    write(tmp_path / "proc/loadavg", "40.0 9 9 1/900 1")
    write(tmp_path / "proc/900/comm", "systemd-oomd")
    write(tmp_path / "proc/vmstat", "oom_kill 3")
    write(tmp_path / "sys/fs/cgroup/user.slice/raft.scope/memory.max", 8 * 2**30)
    facts = facts_on(root, {**CPU_BUILD, "threads": 16}, OMP_NUM_THREADS="1")
    facts = replace(facts, host=replace(facts.host, disks=(("/work", 0.5), ("/cache", 12.0), ("/gone", None))))
    found = examine(facts)
    by_id = {finding.id: finding for finding in found if finding.id != "disk"}
    severities = {what: by_id[what].severity for what in by_id}
    assert (
        severities
        | {
            "memory": "error",
            "battery": "warning",
            "load": "warning",
            "threads": "warning",
            "memory-limit": "note",
            "memory-daemon": "note",
            "memory-kills": "note",
            "power-profile": "note",
            "bf16": "ok",
            "torch": "ok",
        }
        == severities
    )
    assert "running on battery at 40%" in by_id["battery"].title
    assert "ManagedOOMPreference=avoid" in by_id["memory-daemon"].fix
    assert [one.severity for one in found if one.id == "disk"] == ["error", "warning", "unknown"]


def test_exit_codes_and_order() -> None:
    made = [Finding(name, "night", name, "t", "e") for name in reversed(SEVERITIES)]
    assert [finding.severity for finding in worst_first(made)] == list(SEVERITIES)
    assert exit_code(made, strict=False) == 11
    assert (exit_code(made[:-1], strict=False), exit_code(made[:-1], strict=True)) == (0, 11)
    assert exit_code(made[:-2], strict=True) == 0


def test_every_finding_that_is_not_good_says_what_to_do(tmp_path: Path) -> None:
    machines = {"small": SMALL_GTT, "bad": BAD_FIRMWARE, "hanging": HANGING, "two": IGPU_IS_CARD1}
    for name, machine in machines.items():
        for answer in (CPU_BUILD, rocm(STRIX_DEVICE), rocm()):
            folder = tmp_path / f"{name}{len(answer)}{len(list(tmp_path.iterdir()))}"
            for finding in examine(facts_on(machine.build(folder), answer)):
                assert finding.evidence, finding.id
                if finding.severity in ("error", "warning"):
                    assert finding.consequence, finding.id
                    assert finding.fix, finding.id


@pytest.mark.parametrize(("enough", "severity"), [(True, "ok"), (False, "note")])
def test_what_keeps_untrusted_code_in_is_said(enough: bool, severity: str) -> None:
    [finding] = isolation_findings(Isolation(enough, "Landlock (ABI 7), rlimits"))
    assert (finding.id, finding.severity, finding.evidence) == ("sandbox", severity, "Landlock (ABI 7), rlimits")
    assert ("bubblewrap" in finding.fix) == (not enough)
    assert not list(isolation_findings(None))


def test_what_keeps_untrusted_code_in_is_found_out_in_a_process_of_its_own() -> None:
    assert "rlimits" in isolation().words
    broken = isolation([sys.executable, "-c", "raise SystemExit(3)"])
    assert not broken.enough
    assert "nothing that could be found out" in broken.words
