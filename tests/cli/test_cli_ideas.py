"""How `plan` tells its ranking."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from agent.cli.main import register, run
from agent.ledger.workspace import Workspace
from agent.plan.playbook import load_playbook


def test_a_rule_is_told_in_full_once_and_then_by_its_name(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    register()
    assert run(["plan", "--most", "30"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    rule, times = Counter(re.findall(r"\(rule (\S+)\)", told)).most_common(1)[0]
    says = load_playbook(workspace.hypotheses).resources[rule].says
    assert times > 1
    assert told.count(says) == 1
    assert len(re.findall(rf"x[\d.]+ \(rule {rule}\)", told)) == times - 1
