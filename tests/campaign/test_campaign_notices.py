"""What is told in the night, and that it harms nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nights import BETTER_RATE, NOTHING, Night, Recorder, new_night

from agent.campaign.loop import Paused
from agent.campaign.notices import LONGEST, Notices, crashes_in_a_row, message
from agent.campaign.observer import Closing, Several
from agent.campaign.search import CRASHES_IN_A_ROW
from agent.errors import AgentError


def notices(**keys: Any) -> tuple[Notices, list[Any]]:
    sent: list[Any] = []
    return Notices("night", sent.append, **keys), sent


def row(index: int, status: str) -> dict[str, Any]:
    return {"index": index, "status": status, "description": "axis: what, 1 -> 2", "reason": "why"}


def test_crashes_are_told_at_two_and_where_they_end_the_search() -> None:
    observer, sent = notices()
    for index in range(1, 10):
        observer.recorded(row(index, "crash"))
    observer.recorded(row(10, "discard"))
    observer.recorded(row(11, "crash"))
    assert [one["numbers"]["in_a_row"] for one in sent] == [2, CRASHES_IN_A_ROW]


def test_a_session_that_goes_on_counts_on() -> None:
    observer, sent = notices(crashes=crashes_in_a_row([(1, "keep"), (2, "crash"), (3, "crash"), (4, "crash")]))
    observer.recorded(row(5, "crash"))
    assert sent[0]["text"].startswith("raft-agent night: 4 ideas in a row crashed, the last one #5")


def test_a_message_suits_slack_and_discord_and_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_AGENT_WEBHOOK", "https://hooks.example.com/T0/B0/abcdef")
    text = "crash <!channel> \x1b[31m at https://hooks.example.com/T0/B0/abcdef " + "x" * 5000
    told = message("crashes", "night", text, {"delta": None, "seeds": 2})
    assert told["text"] == told["content"]
    assert len(told["text"]) == LONGEST
    assert "<!" not in told["text"]
    assert "abcdef" not in json.dumps(told)
    assert told["numbers"] == {"seeds": 2}
    assert told["allowed_mentions"] == {"parse": []}


class Listening(Recorder):
    closings: list[Closing]

    def closing(self, closing: Closing) -> None:
        self.closings = [*getattr(self, "closings", []), closing]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return new_night(tmp_path)


@pytest.mark.slow
def test_a_keep_and_the_end_are_told(night: Night) -> None:
    night.playbook(BETTER_RATE)
    observer, sent = notices()
    night.observer = Several(Recorder(), observer)  # type: ignore[assignment]  # whoever listens
    ending = night.start(max_experiments=1)
    assert [one["event"] for one in sent] == ["keep", "finished"]
    assert sent[0]["text"].startswith("raft-agent night: kept #1 learning-rate: better rate, 0.0005 -> 0.002: ")
    assert sent[0]["numbers"]["delta"] > 0.1
    assert ending.headline in sent[1]["text"]
    assert sent[1]["numbers"]["kept"] == 1


def test_a_pause_and_an_error_are_told(night: Night) -> None:
    night.playbook(NOTHING)
    night.observer = Listening()
    night.stop_request = lambda: "stopped by Ctrl-C"
    with pytest.raises(Paused):
        night.start()
    night.stop_request = lambda: None
    (night.root / "data-is-missing").touch()
    with pytest.raises(AgentError):
        night.resume()
    assert [one.event for one in night.observer.closings] == ["paused", "failed"]
    assert "Ctrl-C" in night.observer.closings[0].text
    assert night.observer.closings[1].text == "no such data"


def test_a_mistake_of_ours_is_told_too(night: Night) -> None:
    night.playbook(NOTHING)
    night.observer = Listening()

    def launcher(*ignored: Any, **keys: Any) -> Any:
        raise ZeroDivisionError("x")

    with pytest.raises(ZeroDivisionError):
        night.start(launcher=launcher)
    assert night.observer.closings[0].text == "ZeroDivisionError: x"
