"""The command itself: what it prints, its exit codes, and the children that measure, on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import BAD_FIRMWARE, HEALTHY, SMALL_GTT

from agent.cli import doctor as command
from agent.cli.main import register, run
from agent.cli.shared import CACHE_VARIABLE
from agent.hardware.findings import Finding
from agent.hardware.measured import MEASURED
from agent.raft.doctor_checks import ALLOWED, MASKS, attention, check, eager, sdpa


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    register()


@pytest.mark.slow
@pytest.mark.alone
def test_the_text_fits_a_terminal_and_commands_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SMALL_GTT.build(tmp_path / "root")
    assert run(["doctor", "--quick", "--root", str(tmp_path / "root")]) == 11  # this torch is no ROCm build
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.index("ERROR (accelerator)") < out.index("warning (memory)") < out.index("in order:")
    # A shell takes the backslash and the newline out of a command.
    copied = out.partition("fix     $ ")[2].partition("then reboot")[0].replace("\\\n", "")
    assert copied.split() == [
        "sudo",
        "grubby",
        "--update-kernel=ALL",
        '--args="amdgpu.gttsize=126976',
        'ttm.pages_limit=32505856"',
    ]
    assert "1 error, " in out.splitlines()[-1]


@pytest.mark.slow
def test_the_answer_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BAD_FIRMWARE.build(tmp_path / "root")
    assert run(["doctor", "--quick", "--json", "--root", str(tmp_path / "root")]) == 11
    told = json.loads(capsys.readouterr().out)
    assert (told["worst"], told["exit_code"]) == ("error", 11)
    assert told["cards"] == ["card0: gfx1151 (AMD Strix Halo), PCI id 0x1586"]
    firmware = next(finding for finding in told["findings"] if finding["id"] == "amd-firmware")
    assert set(firmware) == {"id", "group", "severity", "title", "evidence", "consequence", "fix", "source"}
    assert told["seconds"] > 0


@pytest.mark.slow
@pytest.mark.alone
def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    replace(HEALTHY, cards=()).build(tmp_path / "root")
    arguments = ["doctor", "--quick", "--root", str(tmp_path / "root")]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(command, "_folders", list)  # how full this machine's disk is, is not the subject
    assert (run(arguments), run([*arguments, "--strict"])) == (0, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (run(arguments), run([*arguments, "--strict"])) == (0, 11)
    assert "OMP_NUM_THREADS=3, which your shell sets" not in capsys.readouterr().out
    run([*arguments, "--verbose"])
    assert "OMP_NUM_THREADS=3, which your shell" in capsys.readouterr().out


def test_a_finding_is_worded_whole() -> None:
    finding = Finding(
        "x", "kernel", "unknown", "a title", "what was read", "what follows", "$ a command", "who says so"
    )
    assert command._whole(finding) == [
        "unknown (kernel): a title",
        "  seen    what was read",
        "  means   what follows",
        "  fix     $ a command",
        "  source  who says so",
    ]


@pytest.mark.slow  # four children that import torch
@pytest.mark.alone
def test_this_machine_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) in (0, 11)
    told = json.loads(capsys.readouterr().out)
    by_id: dict[str, Any] = {finding["id"]: finding for finding in told["findings"]}
    for name in ("products", "attention-eager", "attention-sdpa", "attention-speed"):
        assert by_id[name]["severity"] in ("ok", "note"), by_id[name]
    assert told["seconds"] < 60
    if told["accelerators"] == 0:
        assert not (tmp_path / "cache" / MEASURED).exists()  # no setting is compared there


# Attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", list(ALLOWED))
@pytest.mark.parametrize("compute", [sdpa, eager])
def test_good_attention_is_within_its_rounding(compute: Any, dtype: torch.dtype, mask: str) -> None:
    found = check(compute, torch.device("cpu"), dtype, mask)
    assert found["finite"]
    assert found["error"] < ALLOWED[dtype]


def test_attention_that_is_wrong_or_not_finite_is_found() -> None:
    cpu, wide = torch.device("cpu"), torch.float32

    def leaky(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: str) -> torch.Tensor:
        return sdpa(q, k, v, "causal")  # sees the samples before its own

    def overflowing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: str) -> torch.Tensor:
        # The forward pass is right; the gradient of the square root of 0 is not finite.
        return sdpa(q, k, v, mask) + (q - q).sum().sqrt()

    assert check(leaky, cpu, wide, "packed")["error"] > 100 * ALLOWED[wide]
    assert check(leaky, cpu, wide, "causal")["error"] < ALLOWED[wide]
    assert check(overflowing, cpu, wide, "causal") == {"finite": False, "error": None}


def test_the_answer_of_a_child_has_what_the_doctor_reads() -> None:
    found = attention(torch.device("cpu"), "sdpa")
    assert found["finite"]
    assert found["error"] <= found["allowed"]
    assert set(found["seconds"]) == set(MASKS)
