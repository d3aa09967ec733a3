"""A campaign starts the next trainer process while one trains, uses it, and leaves none behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from nights import FAKE, NOTHING, RATE_UP, Night, fake_launch, forked_launch, hypothesis

from agent.campaign.loop import Paused, run_campaign
from agent.campaign.runs import Runner
from agent.campaign.workbench import Workbench
from agent.ledger.events import RunStarted
from agent.run.standby import Standby

AHEAD = (sys.executable, str(Path(__file__).with_name("fake_ahead.py")))


def started_ahead(night: Night) -> list[int]:
    path = night.root / "started-ahead"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_paused_campaign_leaves_none_behind(night: Night) -> None:
    night.playbook(hypothesis("hangs", 0.9, toggle=["selection.drop_solved"]))
    night.stop_request = lambda: "stopped by a test" if started_ahead(night) else None
    session = night.open()
    standby = Standby(trainer=FAKE, command=AHEAD)

    def launcher(request: Any, **keys: Any) -> Any:
        """A real process for the idea that trains until it is stopped; the rest is only on the way there."""
        return (fake_launch() if "001-search" in request.out.name else forked_launch)(request, **keys)

    with pytest.raises(Paused, match="stopped by a test"):
        run_campaign(Workbench(session, Runner(session, launcher=launcher, standby=standby)))
    [pid] = started_ahead(night)
    assert not psutil.pid_exists(pid)
    assert standby.waiting is None


@pytest.mark.slow
def test_a_campaign_with_processes_started_ahead_ends_as_one_without(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.5")  # long enough for the next process to be started and ready
    night.playbook(RATE_UP, NOTHING)
    session = night.open()
    standby = Standby(trainer=FAKE, command=AHEAD)
    ending = run_campaign(Workbench(session, Runner(session, launcher=fake_launch(), standby=standby)))
    ran = [event.pid for event in session.journal.events() if isinstance(event, RunStarted)]
    ahead = started_ahead(night)
    assert set(ahead[:-1]) <= set(ran), "each run gets the process that waited for it"
    assert len(ahead) == len(ran) >= 6
    assert [pid for pid in ahead if psutil.pid_exists(pid)] == []
    assert 1 in ending.kept
