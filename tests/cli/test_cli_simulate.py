"""`raft-agent simulate` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from command import agent

FEW = ("simulate", "--nights", "3", "--ideas", "6", "--prompts", "64", "--workers", "1")


def test_null_nights_count_false_keeps_by_policy(tmp_path: Path) -> None:
    told = json.loads(agent(tmp_path, *FEW, "--null", "--json").stdout)
    assert told["nights"] == 3
    assert set(told["nights_with_false_keep"]) == {"ours", "greedy"}
    cell = told["cells"][0]
    assert (cell["policy"], cell["mix"], cell["ideas"]) == ("ours", "null", 6)
    assert cell["nights_with_false_keep"] == round(cell["false_share"] * 3)


def test_a_second_call_goes_on_after_what_is_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "cells.jsonl"
    first = agent(tmp_path, *FEW, "--null", "--policy", "greedy", "--out", str(out))
    before = out.read_text()
    assert first.stdout.count("null") == 1
    again = agent(tmp_path, *FEW, "--null", "--policy", "greedy", "--policy", "ours", "--out", str(out))
    assert out.read_text().startswith(before)
    assert [json.loads(line)["policy"] for line in out.read_text().splitlines()] == ["greedy", "ours"]
    assert first.stdout.splitlines()[2] in again.stdout


def test_what_there_is_not_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean harmful?" in agent(tmp_path, "simulate", "--mix", "harmfull", check=False).stderr
    assert "there are: ours, greedy" in agent(tmp_path, "simulate", "--policy", "zzz", check=False).stderr
    assert "harmful" in agent(tmp_path, "simulate", "--mixes").stdout
    refused = agent(tmp_path, "simulate", "--mix", "few", "--ideas", "2", check=False)
    assert "3 ideas of its own" in refused.stderr
