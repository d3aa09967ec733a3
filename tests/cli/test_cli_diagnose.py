"""`raft-agent diagnose` of a run that crashed: what a campaign does about it, in the words of the class's own rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.cli.main import register, run
from agent.contract import CRASH_CLASSES
from agent.ledger.workspace import Workspace
from agent.recipe.files import load_recipe, resolved_text

SAYS = {
    "typo": "Mend it in a commit",
    "oom": "Take back or halve",
    "backend": "Change the layer that all recipes share",
    "numeric": "Run it once more with less risk - bfloat16",
    "data": "Stop the campaign and name what is missing",
    "timeout": "Repeat it once where it hung",
    "resource": "Stop the campaign and name what ran out",
    "unknown": "Repeat it once where a fatal signal ended it",
}


@pytest.fixture(autouse=True)
def commands() -> None:
    register()


def crashed(workspace: Workspace, crash_class: str) -> Path:
    out = workspace.runs_folder("night") / "001-search-s1"
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(resolved_text(load_recipe(workspace.recipes / "tiny-addition.yaml")))
    if crash_class != "unknown":
        (out / "failure.json").write_text(json.dumps({"crash_class": crash_class, "message": "m", "exception": "E"}))
    return out


@pytest.mark.one_in(3)
@pytest.mark.parametrize("crash_class", CRASH_CLASSES)
def test_a_crash_has_the_words_of_its_class(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], crash_class: str
) -> None:
    out = crashed(workspace, crash_class)
    assert run(["diagnose", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"no summary. {crash_class}: " in told
    assert f"\n  in a campaign: {SAYS[crash_class]}" in told
    assert "(At most 3 fixes and repeats of an idea.)" in told


def test_nothing_is_said_for_a_class_without_a_rule(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """As in workspaces with an older copy of the rules."""
    path = workspace.hypotheses / "rules.yaml"
    before, rule, after = path.read_text().partition("  - id: no-numbers\n")
    assert rule
    path.write_text(before + after[after.index("  - id: ") :])
    assert run(["diagnose", str(crashed(workspace, "numeric"))]) == 0
    told = capsys.readouterr().out
    assert "no summary. numeric: " in told
    assert "in a campaign" not in told
