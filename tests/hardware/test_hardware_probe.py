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

from agent.hardware.presets import LEFT_ALONE, environment, environment_over, resolve, warnings
from agent.hardware.probe import Machine, machine_from, package_path, probe_machine, usable_cores
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
    assert values["TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"] == "1"
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
    assert environment("strix-halo", CPU)[0]["ROCBLAS_USE_HIPBLASLT"] == "1"
    with pytest.raises(ValueError, match="no such environment preset"):
        environment("stirx", CPU)
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_harmful_variables_in_the_shell_are_named_on_strix_halo_only() -> None:
    strix = machine_from(STRIX, problem=None, packages=frozenset())
    shell = {"HSA_OVERRIDE_GFX_VERSION": "11.0.0", "PATH": "/bin"}
    (warning,) = warnings(shell, strix)
    assert "HSA_OVERRIDE_GFX_VERSION=11.0.0" in warning
    assert warnings(shell, CPU) == []


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


@pytest.mark.slow  # imports torch
def test_the_real_probe_answers_or_says_why_not() -> None:
    machine = probe_machine(cache=None)
    assert machine.torch is not None or "torch unknown" in machine.note
    assert machine.summary


def test_a_child_finds_the_same_package() -> None:
    assert package_path(None).split(os.pathsep)[0] == str(Path(__file__).parents[2])
    assert package_path("/x").endswith(f"{os.pathsep}/x")


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
