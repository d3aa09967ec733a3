"""A fresh workspace for each test, and one night for those that only look at what it left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from nights import BETTER_RATE, NO_DEDUP, NOTHING, Night, hypothesis, new_night
from reports import Reports, reporter_of

from agent.campaign.loop import run_campaign
from agent.cli.main import run
from agent.errors import Unavailable


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return new_night(tmp_path)


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """#1 is kept, #2 does nothing, #3 crashes. Not to be changed: copy its folder."""
    night = new_night(tmp_path_factory.mktemp("judged"))
    night.playbook(BETTER_RATE, NOTHING, hypothesis("nan", 0.5, set={"learner.optimizer": "sgd"}))
    with pytest.MonkeyPatch.context() as patch:  # no power cut is coming
        patch.setattr(os, "fsync", lambda _: None)
        patch.setenv("GIT_TEST_FSYNC", "0")
        night.start(max_experiments=3)
    return night


@pytest.fixture
def copy(judged: Night, tmp_path: Path) -> Path:
    """Of that night's workspace, to be changed."""
    root = tmp_path / "ws"
    shutil.copytree(judged.root, root)
    return root


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """#1 is kept, #2 does nothing, #3 crashes; one idea is left when the campaign ends. Not to be changed."""
    night = new_night(tmp_path_factory.mktemp("reported"))
    night.playbook(
        BETTER_RATE, NOTHING, hypothesis("nan", 0.5, set={"learner.optimizer": "sgd"}), {**NO_DEDUP, "prior": 0.1}
    )
    bench = night.bench(night.open(max_experiments=3))
    reporter = reporter_of(night, bench)
    run_campaign(bench)
    reporter.close()
    return night


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(*_: object, **__: object) -> str:
        raise Unavailable("these tests make none")

    monkeypatch.setattr("agent.report.vega.bundle", none)
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Reports:
    def reported(root: Path, *options: str) -> tuple[int, str]:
        monkeypatch.chdir(root)
        code = run(["report", *options])
        said = capsys.readouterr()
        return code, said.out + said.err

    return reported
