"""`check RECIPE`, and that `run` and `train` refuse in the same words what the machine's memory cannot hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agent.campaign.capacity import capacity_of, check_memory, facts_of
from agent.cli.main import register, run
from agent.hardware.isolation import Isolation
from agent.hardware.probe import Machine
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.workspace import Workspace
from agent.recipe.files import load_recipe, with_keys

register()

STRIX_HALO = Machine(
    kind="rocm",
    accelerators=1,
    arch="gfx1151",
    name="Radeon 8060S",
    cores=32,
    memory_gb=125.2,
    accelerator_memory_gb=124.0,
    bf16=True,
    unified_memory=True,
    torch="2.13.0",
    packages=frozenset(),
)
UNTUNED = dataclasses.replace(STRIX_HALO, accelerator_memory_gb=62.5)
CARD = dataclasses.replace(
    STRIX_HALO,
    kind="cuda",
    arch="sm_89",
    name="a card",
    memory_gb=64.0,
    accelerator_memory_gb=24.0,
    unified_memory=False,
)
LAPTOP = dataclasses.replace(
    STRIX_HALO, kind="cpu", accelerators=0, arch=None, memory_gb=16.0, accelerator_memory_gb=None, unified_memory=False
)
FULL = "extends: qwen2.5-7b-gsm8k.yaml\nmodel:\n  lora: null\n"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    created = create_workspace(tmp_path / "ws", shipped=shipped_folder())
    monkeypatch.chdir(created.workspace.root)
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return created.workspace


def on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.campaign.open.machine_of", lambda workspace: machine)


def test_check_prints_the_memory_by_part(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(STRIX_HALO, monkeypatch)
    assert run(["check", "qwen2.5-7b-gsm8k"]) == 0
    said = capsys.readouterr().out
    assert "7.62B parameters, 40.4M trained in adapters, bfloat16" in said
    assert "weights, frozen" in said
    assert "14.2 GiB" in said  # 7,615,616,512 x 2 bytes
    assert "<- peak" in said
    assert "124.0 GiB of the 125.2 GiB it shares" in said
    assert "memory: fits" in said


@pytest.mark.parametrize("command", [["check"], ["run", "--budget", "1h", "--dry-run"], ["run", "--budget", "1h"]])
def test_a_recipe_that_no_idea_can_be_written_into_is_refused_before_anything_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    on(LAPTOP, monkeypatch)
    (workspace.recipes / "mine.yaml").write_text("extends: tiny-addition.yaml\nevaluation:\n  search_prompts: &n 512\n")
    assert run([command[0], "mine", *command[1:]]) == 3
    told = capsys.readouterr()
    assert "recipes/mine.yaml:3: anchors and aliases cannot be edited" in told.out + told.err
    assert not workspace.campaign_names()


def test_what_others_extend_is_never_edited(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(LAPTOP, monkeypatch)
    tiny = (workspace.recipes / "tiny-addition.yaml").read_text()
    for path in workspace.recipes.glob("*.yaml"):
        path.unlink()
    (workspace.recipes / "base.yaml").write_text(tiny.replace("search_prompts: ", "search_prompts: &n ", 1))
    assert run(["check"]) == 3
    (workspace.recipes / "child.yaml").write_text("extends: base.yaml\nseed: 7\n")
    assert run(["check"]) == 0
    capsys.readouterr()
    assert run(["check", "base"]) == 3
    told = capsys.readouterr()
    assert "anchors and aliases cannot be edited" in told.out + told.err


def test_what_cannot_fit_is_refused_with_numbers_by_every_command(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace.recipes / "full.yaml").write_text(FULL)
    on(STRIX_HALO, monkeypatch)
    for command in (["check", "full"], ["run", "full", "--budget", "8h"], ["train", "full"]):
        assert run(command) == 11, command
        said = capsys.readouterr().err
        assert "does not fit into memory" in said
        assert "16 bytes each: 113.5 GiB" in said
        assert "124.0 GiB can be used" in said
        assert "It would fit with model.lora.rank: 16 (about " in said
    assert not workspace.campaign_names()
    assert not list(workspace.runs_folder("alone").glob("*"))


def test_check_as_json(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace.recipes / "full.yaml").write_text(FULL)
    on(STRIX_HALO, monkeypatch)
    assert run(["check", "full", "--json"]) == 11
    memory = json.loads(capsys.readouterr().out)["memory"]["recipes/full.yaml"]
    assert memory["fits"] is False
    assert memory["usable_bytes"] == 124 * 1024**3
    assert memory["remedy"] == {"model.lora.rank": 16}
    assert memory["remedy_peak_bytes"] < memory["usable_bytes"] < memory["estimate"]["peak_bytes"]
    parts = {part["name"]: part["bytes"] for part in memory["estimate"]["parts"]}
    assert parts["AdamW moments"] == 8 * 7_615_616_512


def test_a_model_of_unknown_size_is_said_and_not_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace.recipes / "other.yaml").write_text("extends: gsm8k.yaml\nmodel:\n  source: someone/else-70B\n")
    on(LAPTOP, monkeypatch)
    assert run(["check", "other"]) == 0
    said = capsys.readouterr().out
    assert "cannot be estimated" in said
    assert "someone/else-70B is not in the table of known models" in said


def test_check_of_everything_names_what_is_too_large_and_is_content(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(LAPTOP, monkeypatch)
    family = ("gsm8k", "qwen2.5-0.5b-gsm8k", "qwen2.5-3b-gsm8k", "qwen2.5-7b-gsm8k", "tiny-addition")
    for path in workspace.recipes.iterdir():
        if path.stem not in family:
            path.unlink()
    assert run(["check"]) == 0
    said = capsys.readouterr().out
    assert "all good" in said
    too_large = next(line for line in said.splitlines() if line.startswith("too large for this machine"))
    assert "qwen2.5-7b-gsm8k" in too_large
    assert "tiny-addition" not in too_large


def test_memory_that_the_kernel_keeps_from_the_accelerator(workspace: Workspace) -> None:
    recipe = load_recipe(workspace.recipes / "qwen2.5-1.5b-gsm8k.yaml")
    recipe = with_keys(recipe, {"learner.microbatch_tokens": 16384, "learner.gradient_checkpointing": False})
    checked = check_memory(recipe, UNTUNED, cache=workspace.cache, base=workspace.root)
    assert checked.fits is False
    assert "62.5 GiB" in checked.why
    assert checked.remedy is not None
    assert "ttm.pages_limit" in checked.advice
    assert "62 of 125 GiB" in checked.advice
    assert check_memory(recipe, STRIX_HALO, cache=workspace.cache, base=workspace.root).fits is True


def test_which_memory_counts(workspace: Workspace) -> None:
    recipe = load_recipe(workspace.recipes / "tiny-addition.yaml")

    def usable(machine: Machine, **keys: object) -> float | None:
        changed = with_keys(recipe, {key.replace("__", "."): value for key, value in keys.items()})
        return capacity_of(machine, facts_of(machine, changed)).gb

    assert usable(LAPTOP) == 15.0
    assert usable(CARD) == 24.0
    assert usable(CARD, backend__environment="cpu") == 63.0
    assert usable(STRIX_HALO) == 124.0
    assert usable(dataclasses.replace(STRIX_HALO, memory_gb=100.0)) == 99.0
    unknown = dataclasses.replace(CARD, accelerator_memory_gb=None)
    assert usable(unknown) is None
    assert check_memory(recipe, unknown, cache=workspace.cache, base=workspace.root).fits is None


# What keeps untrusted code in ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_that_runs_code_says_what_keeps_it_in(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "mbpp", "--json"]) in (0, 9)
    found = json.loads(capsys.readouterr().out)["sandbox"]
    assert "rlimits" in found["words"]
    run(["check", "mbpp"])
    printed = capsys.readouterr().out
    verdict = "untrusted code, which is kept in by" if found["enough"] else "will need --allow-untrusted-code"
    assert f"recipes/mbpp.yaml runs {verdict}" in printed
    assert found["words"] in printed
    run(["check", "tiny-addition"])
    assert "untrusted" not in capsys.readouterr().out


def test_a_campaign_is_refused_at_its_opening_where_there_is_too_little(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.campaign.open.isolation", lambda: Isolation(False, "rlimits; no Landlock, no seccomp"))
    on(STRIX_HALO, monkeypatch)
    text = "extends: tiny-addition.yaml\ntask:\n  verifier: {kind: 'python:check.py:score', untrusted: true}\n"
    (workspace.recipes / "theirs.yaml").write_text(text)
    assert run(["run", "theirs", "--budget", "1h"]) == 2
    said = capsys.readouterr().err
    assert "recipes/theirs.yaml runs untrusted code, and this machine has too little to keep it in: rlimits; no" in said
    assert "--allow-untrusted-code" in said
    assert not workspace.campaign_names()
