"""`raft-agent simulate` as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command import agent

from agent.cli.main import register, run

register()
FEW = ("simulate", "--nights", "3", "--ideas", "6", "--prompts", "64", "--workers", "1")


@pytest.mark.slow
def test_null_nights_count_false_keeps_by_policy(tmp_path: Path) -> None:
    told = json.loads(agent(tmp_path, *FEW, "--null", "--json").stdout)
    assert told["nights"] == 3
    assert set(told["nights_with_false_keep"]) == {"ours", "greedy"}
    cell = told["cells"][0]
    assert (cell["policy"], cell["mix"], cell["ideas"]) == ("ours", "null", 6)
    assert cell["nights_with_false_keep"] == round(cell["false_share"] * 3)


@pytest.mark.slow
def test_a_second_call_goes_on_after_what_is_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "cells.jsonl"
    first = agent(tmp_path, *FEW, "--null", "--policy", "greedy", "--out", str(out))
    before = out.read_text()
    assert first.stdout.count("null") == 1
    again = agent(tmp_path, *FEW, "--null", "--policy", "greedy", "--policy", "ours", "--out", str(out))
    assert out.read_text().startswith(before)
    assert [json.loads(line)["policy"] for line in out.read_text().splitlines()] == ["greedy", "ours"]
    assert first.stdout.splitlines()[2] in again.stdout


@pytest.mark.slow
def test_world_and_mix_can_be_set(tmp_path: Path) -> None:
    out = tmp_path / "cells.jsonl"
    few = ("simulate", "--nights", "2", "--workers", "1", "--mix", "few", "--policy", "greedy", "--out", str(out))
    agent(tmp_path, *few, "--set", "base=0.6", "--set", "planted=1", "--set", "ideas=5", "--set", "prompts=64")
    agent(tmp_path, *few, "--set", "run_noise=0.05", "--ideas", "5")
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["ideas_offered"], first["prompts"], first["run_noise"]) == (5, 64, 1.0)
    assert first["noise_of_a_run"] != second["noise_of_a_run"]
    listed = agent(tmp_path, "simulate", "--keys").stdout
    assert re.search(r"^difficulty +2\.0$", listed, re.MULTILINE)
    assert re.search(r"^crash_s +120\.0$", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "difficult=1"), "did you mean difficulty?"),
        (("--set", "base=2"), "--set base=2: it must be between 0 and 1"),
        (("--set", "crash_s=-1"), "it must be at least 0"),
        (("--set", "planted=1.5"), "it must be a whole number"),
        (("--set", "base=high"), "'high' is no number"),
        (("--set", "base=nan"), "must be between 0 and 1"),
        (("--set", "ideas=inf"), "must be at least 2"),
        (("--set", "tails=1"), "must be at least 2.1"),
        (("--null", "--set", "small=1"), "--null has no effects"),
        (("--set", "run_noise=0.1", "--run-noise", "1"), "say the same thing"),
        (("--null", "--mix", "few"), "--null is a mix of its own"),
    ],
)
def test_what_cannot_be_set_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_what_there_is_not_is_named_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", "--mix", "harmfull"]) == 2
    assert "did you mean harmful?" in capsys.readouterr().err
    assert run(["simulate", "--policy", "zzz"]) == 2
    assert "there are: ours, greedy" in capsys.readouterr().err
    assert run(["simulate", "--mixes"]) == 0
    assert "harmful" in capsys.readouterr().out
    assert run(["simulate", "--mix", "few", "--ideas", "2"]) == 2
    assert "3 ideas of its own" in capsys.readouterr().err
