"""`raft-agent pause`: a request in the campaign's folder, which the loop sees within a second. No signal is sent, so it
reaches a campaign on another terminal, in the background, or in another container that has the same folder.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from agent.files import write_atomic
from agent.ledger.disk import disk_errors

REQUEST = "pause.json"
NOW = "raft-agent pause --now"
AFTER = "raft-agent pause"
"""The reasons, as they stand in the journal."""


def ask_to_pause(folder: Path, *, now: bool) -> None:
    """Raises ResourceError where it cannot be written. `folder` is the campaign's."""
    with disk_errors(folder / REQUEST):
        write_atomic(folder / REQUEST, json.dumps({"now": now}) + "\n")


def asked_to_pause(folder: Path) -> str | None:
    """NOW, AFTER, or None where nobody asks. Whatever else is in the file, it asks for a pause."""
    try:
        told = (folder / REQUEST).read_bytes()[:4096]
    except OSError:
        return None
    with contextlib.suppress(ValueError, AttributeError):
        if json.loads(told).get("now"):
            return NOW
    return AFTER


def take_back(folder: Path) -> None:
    """Nothing is asked any more. One that cannot be removed is asked again at the next break, which is said there."""
    with contextlib.suppress(OSError):
        (folder / REQUEST).unlink(missing_ok=True)
