"""The machine, its presets, and keeping it awake, with child processes that answer well, badly or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machines import (
    CPU_BUILD,
    DISCRETE_DEVICE,
    HEALTHY,
    IGPU_IS_CARD1,
    STRIX_DEVICE,
    Card,
    build_other_vendor_first,
    rocm,
    write,
)

from agent.hardware.measured import MEASURED, Comparison, measured_path, read_measured, write_measured
from agent.hardware.presets import (
    AOTRITON,
    LEFT_ALONE,
    environment,
    environment_over,
    harmful,
    left_off,
    resolve,
    settings,
)
from agent.hardware.probe import (
    Machine,
    ask_child,
    fingerprint,
    machine_from,
    probe_machine,
    usable_cores,
)
from agent.hardware.root import Root
from agent.hardware.sleep import stay_awake

STRIX = {
    "torch": "2.13.0+rocm10.0.0",
    "hip": "7.2",
    "cuda": None,
    "bf16": True,
    "devices": [{"name": "AMD Radeon 8060S", "arch": "gfx1151", "memory_gb": 124.0, "bf16": True, "integrated": False}],
}
CPU = Machine("cpu", 0, None, "cpu", 2, 16.0, None, False, False, "2.13", frozenset())


def says(text: str) -> list[str]:
    return [sys.executable, "-c", f"print({text!r})"]


def test_a_strix_halo_is_recognized_and_gets_its_preset() -> None:
    machine = machine_from(STRIX, problem=None, packages=frozenset({"triton"}))
    assert (machine.kind, machine.accelerators, machine.arch) == ("rocm", 1, "gfx1151")
    assert machine.unified_memory  # known by the architecture, though this torch does not say so
    assert machine.accelerator_memory_gb == 124.0
    values, why = environment("auto", machine)
    assert values[AOTRITON] == "1"
    assert "gfx1151" in why
    assert not {setting.name for setting in LEFT_ALONE} & set(values)


def test_an_nvidia_card_and_an_unknown_amd_card() -> None:
    nvidia = machine_from(
        {
            "torch": "2.13",
            "hip": None,
            "devices": [{"name": "H100", "arch": "9.0", "memory_gb": 79.6, "bf16": True}] * 2,
        },
        problem=None,
        packages=frozenset(),
    )
    assert (nvidia.kind, nvidia.accelerators, nvidia.arch, nvidia.unified_memory) == ("cuda", 2, "sm_90", False)
    assert resolve("auto", nvidia)[0] == "cuda"
    amd = dataclasses.replace(nvidia, kind="rocm", arch="gfx942")
    values, why = environment("auto", amd)
    assert values == {}
    assert "gfx942" in why


def test_the_cpu_preset_hides_an_accelerator_and_counts_usable_cores() -> None:
    assert environment("auto", CPU)[0]["OMP_NUM_THREADS"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in environment("cpu", CPU)[0]
    strix = machine_from(STRIX, problem=None, packages=frozenset())
    assert environment("cpu", strix)[0]["HIP_VISIBLE_DEVICES"] == ""
    assert environment("none", strix)[0] == {}
    shell = {"OMP_NUM_THREADS": "9", "B": "shell"}
    gaps, _ = environment_over(shell, CPU, preset="auto", own={"B": "recipe"})
    assert gaps == {"TOKENIZERS_PARALLELISM": "false", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "B": "recipe"}
    assert environment_over(shell, CPU, preset="cpu", own={})[0]["OMP_NUM_THREADS"] == "2"
    assert environment("strix-halo", CPU)[0][AOTRITON] == "1"
    with pytest.raises(ValueError, match="no such environment preset"):
        environment("stirx", CPU)
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_harmful_variables_in_the_shell_are_named_on_strix_halo_only() -> None:
    strix = machine_from(STRIX, problem=None, packages=frozenset())
    shell = {"HSA_OVERRIDE_GFX_VERSION": "11.0.0", "PATH": "/bin"}
    (setting,) = harmful(shell, strix)
    assert setting.name == "HSA_OVERRIDE_GFX_VERSION"
    assert harmful(shell, CPU) == []
    assert harmful({"OMP_NUM_THREADS": "16"}, strix) == []
    assert len(harmful({"OMP_NUM_THREADS": "1"}, strix)) == 1
    unseen = dataclasses.replace(CPU, listed=("card1: gfx1151 (AMD Strix Halo), PCI id 0x1586",))
    assert len(harmful(shell, unseen)) == 1  # the variable may be why torch does not see it


def test_the_answer_is_the_last_json_object_that_the_child_prints() -> None:
    noisy = f"import json; print('driver: hello'); print(json.dumps({STRIX!r}))"
    machine = probe_machine(cache=None, command=[sys.executable, "-c", noisy])
    assert machine.torch == "2.13.0+rocm10.0.0"
    assert "torch unknown" not in machine.note


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (says("no json here"), "gave no answer"),
        ([sys.executable, "-c", "raise SystemExit('no torch')"], "exit code 1: no torch"),
        ([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"], "signal 11"),
        (["no-such-program"], "No such file"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "did not answer in 0.5 s"),
    ],
)
def test_a_probe_that_fails_leaves_torch_unknown_with_the_reason(
    tmp_path: Path, command: list[str], reason: str
) -> None:
    timeout = 0.5 if "sleep" in command[-1] else 20.0
    machine = probe_machine(cache=tmp_path / "machine.json", command=command, timeout_s=timeout)
    assert (machine.torch, machine.kind, machine.accelerators) == (None, "cpu", 0)
    assert reason in machine.note
    assert machine.cores >= 1
    assert machine.memory_gb > 0
    assert not (tmp_path / "machine.json").exists()  # a failure is not remembered


def test_the_answer_is_cached_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, count = tmp_path / "deep" / "machine.json", tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x'); import json; print(json.dumps({STRIX!r}))"
    command = [sys.executable, "-c", code]
    first = probe_machine(cache=cache, command=command)
    assert probe_machine(cache=cache, command=command) == first
    assert count.read_text() == "x"
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    probe_machine(cache=cache, command=command)
    assert count.read_text() == "xx"
    cache.write_text("{torn")
    probe_machine(cache=cache, command=command)
    assert count.read_text() == "xxx"


@pytest.mark.slow
def test_a_child_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    answer, problem = ask_child([sys.executable, "-c", code], timeout_s=3.0)
    assert answer == {}
    assert "did not answer in 3 s" in (problem or "")
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "a grandchild outlives the probe"
        time.sleep(0.05)


def test_variables_of_a_child_are_set_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_SHELL", "1")
    code = "import json, os; print(json.dumps({name: os.environ.get(name) for name in ('FROM_SHELL', 'OURS')}))"
    answer, _ = ask_child([sys.executable, "-c", code], timeout_s=20.0, variables={"FROM_SHELL": None, "OURS": "2"})
    assert answer == {"FROM_SHELL": None, "OURS": "2"}


# Which cards, and which of them torch takes ----------------------------------------------------------------


def on(root: Root, answer: dict[str, object]) -> Machine:
    return machine_from(answer, problem=None, packages=frozenset(), root=root)


def test_a_healthy_strix_halo_has_nothing_to_note(tmp_path: Path) -> None:
    machine = on(HEALTHY.build(tmp_path), rocm(STRIX_DEVICE))
    assert (machine.kind, machine.accelerators, machine.arch, machine.note) == ("rocm", 1, "gfx1151", "")
    assert (machine.cores, machine.memory_gb, machine.unified_memory) == (32, 125.0, True)
    assert machine.listed == ("card0: gfx1151 (AMD Strix Halo), PCI id 0x1586",)


def test_a_strix_halo_that_torch_does_not_see_is_named(tmp_path: Path) -> None:
    root = build_other_vendor_first(tmp_path)
    machine = on(root, CPU_BUILD)
    assert (machine.kind, machine.accelerators, machine.arch) == ("cpu", 0, None)  # what torch can use
    assert machine.name == "AMD RYZEN AI MAX+ 395 w/ Radeon 8060S"
    assert "torch does not see card1: gfx1151 (AMD Strix Halo), PCI id 0x1586" in machine.note
    assert "torch 2.13.0+cpu is not a ROCm build" in machine.note
    assert "groups `video` and `render`" in on(root, rocm()).note
    # Without the ROCm kernel driver's list, the PCI id tells.
    (tmp_path / "sys/class/kfd").rename(tmp_path / "sys/class/no-kfd")
    assert "gfx1151 (AMD Strix Halo)" in on(root, CPU_BUILD).note


def test_with_two_cards_both_are_listed_and_the_one_that_torch_takes_is_named(tmp_path: Path) -> None:
    root = IGPU_IS_CARD1.build(tmp_path)
    both = on(root, rocm(DISCRETE_DEVICE, STRIX_DEVICE))
    assert (both.accelerators, both.arch) == (2, "gfx1100")
    assert [words.partition(" (")[0] for words in both.listed] == ["card0: gfx1100", "card1: gfx1151"]
    assert "computes on the first (card0)" in both.note
    assert "HIP_VISIBLE_DEVICES" in both.note
    chosen = on(root, rocm(STRIX_DEVICE))  # as HIP_VISIBLE_DEVICES=1 leaves it
    assert (chosen.accelerators, chosen.arch) == (1, "gfx1151")
    assert "torch does not see card0: gfx1100" in chosen.note
    assert "card1" not in chosen.note


def test_the_cache_notices_a_card_that_comes_and_a_limit_that_moves(tmp_path: Path) -> None:
    folder, cache, count = tmp_path / "root", tmp_path / "machine.json", tmp_path / "count"
    root = HEALTHY.build(folder)
    code = f"open({str(count)!r}, 'a').write('x'); import json; print(json.dumps({rocm(STRIX_DEVICE)!r}))"
    command = [sys.executable, "-c", code]

    def asked() -> int:
        probe_machine(cache=cache, command=command, root=root)
        return len(count.read_text())

    assert (asked(), asked()) == (1, 1)
    write(folder / "sys/class/drm/card0/device/mem_info_gtt_total", 62 * 2**30)
    assert (asked(), asked()) == (2, 2)
    Card(name="card2", pci="0000:03:00.0", device="0x744c", render=130).build(folder, node=2)
    assert (asked(), asked()) == (3, 3)
    write(folder / "proc/sys/kernel/random/boot_id", "another")
    assert asked() == 4


# Presets by measurement ------------------------------------------------------------------------------------


def compared(variable: str, **seconds: float | None) -> Comparison:
    by_value = {{"unset": "", "zero": "0", "one": "1"}[name]: number for name, number in seconds.items()}
    failures = {value: "not finite" for value, number in by_value.items() if number is None}
    return Comparison(variable, "a product", by_value, failures, "2026-11-20")


HIPBLASLT = "ROCBLAS_USE_HIPBLASLT"


@pytest.mark.parametrize(
    ("measured", "variable", "value", "said"),
    [
        ([], HIPBLASLT, None, "not measured here"),
        ([compared(HIPBLASLT, unset=0.20, zero=0.20, one=0.03)], HIPBLASLT, "1", "6.67 times as fast as unset"),
        ([compared(HIPBLASLT, unset=0.03, zero=0.03, one=0.20)], HIPBLASLT, None, "no value is faster"),
        ([compared(HIPBLASLT, unset=0.200, zero=0.2, one=0.196)], HIPBLASLT, None, "no value is faster"),  # noise
        ([compared(HIPBLASLT, unset=0.20, zero=0.03, one=0.20)], HIPBLASLT, "0", "6.67 times as fast as unset"),
        ([compared(HIPBLASLT, unset=None, zero=None, one=0.03)], HIPBLASLT, "1", "unset fails (not finite)"),
        ([compared(HIPBLASLT, unset=None, zero=None, one=None)], HIPBLASLT, None, "nothing worked"),
        ([], AOTRITON, "1", "44 ms instead of 2.3 ms"),
        ([compared(AOTRITON, unset=0.044, one=0.0023)], AOTRITON, "1", "44 ms instead of 2.3 ms"),
        ([compared(AOTRITON, unset=0.0023, one=0.044)], AOTRITON, None, "no value is faster"),
        ([compared(AOTRITON, unset=0.044, one=None)], AOTRITON, None, "1 not finite"),
        ([compared(AOTRITON, unset=None, one=None)], AOTRITON, "1", "44 ms instead of 2.3 ms"),  # not its fault
    ],
)
def test_a_setting_is_on_for_a_measured_reason_or_off(
    measured: list[Comparison], variable: str, value: str | None, said: str
) -> None:
    strix = machine_from(STRIX, problem=None, packages=frozenset())
    machine = dataclasses.replace(strix, measured=tuple(measured))
    assert environment("auto", machine)[0].get(variable) == value
    assert environment("auto", strix, measured=measured)[0].get(variable) == value
    reasons = {setting.name: setting.why for setting in settings("auto", machine)[0]}
    off = next((words for words in left_off(machine) if words.startswith(variable)), "")
    assert said in reasons.get(variable, off)


def test_measurements_are_kept_by_machine_and_come_with_the_probe(tmp_path: Path) -> None:
    root, kept = HEALTHY.build(tmp_path / "root"), tmp_path / MEASURED
    command = [sys.executable, "-c", f"import json; print(json.dumps({rocm(STRIX_DEVICE)!r}))"]

    def probed() -> Machine:
        return probe_machine(cache=tmp_path / "machine.json", command=command, root=root, measured=kept)

    assert probed().measured == ()
    faster = compared(HIPBLASLT, unset=0.2, zero=0.2, one=0.03)
    write_measured(kept, fingerprint(probed(), root=root), [faster])
    assert probed().measured == (faster,)  # though the rest of the answer is the cached one
    assert environment_over({}, probed(), preset="auto", own={})[0][HIPBLASLT] == "1"
    write(tmp_path / "root/proc/sys/kernel/osrelease", "6.19.0")  # another kernel: to be measured again
    assert probed().measured == ()
    write_measured(kept, {"machine": "another"}, [])
    assert read_measured(kept, {"machine": "another"}) == ()
    write(tmp_path / "root/proc/sys/kernel/osrelease", HEALTHY.kernel)
    assert probed().measured == (faster,)
    kept.write_text("{torn")
    assert probed().measured == ()


def test_every_process_of_a_user_finds_the_same_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent keeps its answer in the workspace, the trainer in the folder for models."""
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(tmp_path / "user"))
    assert measured_path() == tmp_path / "user" / MEASURED
    root = HEALTHY.build(tmp_path / "root")
    command = [sys.executable, "-c", f"import json; print(json.dumps({rocm(STRIX_DEVICE)!r}))"]
    agent = probe_machine(cache=tmp_path / "workspace/machine.json", command=command, root=root)
    faster = compared(HIPBLASLT, unset=0.2, zero=0.2, one=0.03)
    write_measured(measured_path(), fingerprint(agent, root=root), [faster])
    for cache in (tmp_path / "workspace/machine.json", tmp_path / "models/machine.json", None):
        assert probe_machine(cache=cache, command=command, root=root).measured == (faster,)


@pytest.mark.slow  # imports torch
def test_the_real_probe_answers_or_says_why_not() -> None:
    machine = probe_machine(cache=None)
    assert machine.torch is not None or "torch unknown" in machine.note
    assert machine.summary


# --- staying awake -----------------------------------------------------------------------------------------


def test_an_inhibitor_that_works_holds_until_the_end_of_the_block() -> None:
    with stay_awake(command=["env"]) as wakefulness:
        assert wakefulness.held
        pid = int(wakefulness.words.split("process ")[1].rstrip(")"))
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_inhibitor_that_fails_is_said_with_what_to_do() -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('Failed to connect to bus')"]
    with stay_awake(command=failing) as wakefulness:
        assert not wakefulness.held
        assert "Failed to connect to bus" in wakefulness.words
        assert "suspend" in wakefulness.words
    with stay_awake(which=lambda name: None) as wakefulness:
        assert not wakefulness.held
    with stay_awake(command=["no-such-program"]) as wakefulness:
        assert not wakefulness.held


def test_the_machine_may_sleep_again_when_the_agent_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from agent.hardware.sleep import stay_awake\n"
        "with stay_awake(command=['env']) as w: print(w.words, flush=True); time.sleep(60)"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    pid = int(agent.stdout.readline().split("process ")[1].rstrip(")\n"))
    agent.kill()
    agent.wait()
    agent.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "the inhibitor outlives the agent"
        time.sleep(0.05)


def test_a_machine_survives_json(tmp_path: Path) -> None:
    fields = dataclasses.asdict(CPU) | {"packages": []}
    assert json.loads(json.dumps(fields))["kind"] == "cpu"
