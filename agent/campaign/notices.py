"""What of a campaign is worth a message in the night: a keep, crashes in a row, its end. An observer beside others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.campaign.observer import Closing, Silent
from agent.campaign.search import CRASHES_IN_A_ROW
from agent.text import one_line

TOLD_CRASHES = (2, CRASHES_IN_A_ROW)
"""In a row; the latter end the search."""
LONGEST = 1800
"""Characters of the text: Discord takes 2000."""
NUMBERS = ("metric_name", "metric_value", "incumbent_value", "delta", "ci_low", "ci_high", "seeds")
"""Cells of a row."""


class Notices(Silent):
    def __init__(self, campaign: str, send: Callable[[Mapping[str, Any]], None], *, crashes: int = 0):
        """`crashes`: how many ideas in a row had crashed when an earlier session ended."""
        self.campaign, self.send, self.crashes = campaign, send, crashes

    def recorded(self, row: dict[str, Any]) -> None:
        if not row.get("index"):
            return  # the baseline
        status = row.get("status")
        self.crashes = self.crashes + 1 if status == "crash" else 0
        what = f"#{row['index']} {row.get('description') or ''}: {row.get('reason') or ''}"
        if status == "keep":
            self._tell("keep", f"kept {what}", {name: row.get(name) for name in ("index", *NUMBERS)})
        elif self.crashes in TOLD_CRASHES:
            self._tell(
                "crashes", f"{self.crashes} ideas in a row crashed, the last one {what}", _crash(row, self.crashes)
            )

    def closing(self, closing: Closing) -> None:
        words = {"finished": "finished: ", "paused": "", "failed": "stopped by an error: "}[closing.event]
        self._tell(closing.event, f"{words}{closing.text}", closing.numbers)

    def _tell(self, event: str, text: str, numbers: Mapping[str, Any]) -> None:
        self.send(message(event, self.campaign, text, numbers))


def _crash(row: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {"index": row["index"], "in_a_row": count, "crash_class": row.get("crash_class")}


def crashes_in_a_row(outcomes: Sequence[tuple[int, str]]) -> int:
    """At the end of the outcomes."""
    others = [place for place, (_, outcome) in enumerate(outcomes, start=1) if outcome != "crash"]
    return len(outcomes) - max(others, default=0)


def message(event: str, campaign: str, text: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """`text` is what Slack shows and `content` what Discord does; neither can call people by name."""
    shown = one_line(f"raft-agent {campaign}: {text}").replace("<!", "< !")
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    return {
        "event": event,
        "campaign": campaign,
        "text": shown,
        "content": shown,
        "numbers": {name: value for name, value in numbers.items() if value is not None},
        "time": time.time(),
        "allowed_mentions": {"parse": []},
    }
