"""A campaign's journal as others look at it while it is written: each look reads the bytes that have come, no more."""

from __future__ import annotations

from pathlib import Path

from agent.collector import no_collection
from agent.files import Growing
from agent.ledger.consumed import read_consumed
from agent.ledger.events import Event
from agent.ledger.lines import event_of
from agent.ledger.state import CampaignState, Folding


class JournalTail:
    """Reads only. `state` is what the journal has added up to by the last `read`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        """Why it could not be read last, in words."""
        self._file = Growing(path)
        self._times = 0
        self._folding = Folding()

    @property
    def state(self) -> CampaignState:
        return self._folding.state

    @property
    def consumed_s(self) -> float:
        """Seconds of the budget that are used up, as of half a second ago while the campaign runs."""
        return max(self.state.consumed_s, read_consumed(self.path))

    def read(self) -> list[Event]:
        """The events that have come since the last call; all of them where the file is another one. A torn line is
        passed over, as `Journal` does. Never raises for what the disk does: see `trouble`."""
        events: list[Event] = []
        try:
            with no_collection():
                for line in self._file.each():
                    self._begin_anew_with_the_file()
                    event = event_of(line)
                    if event is not None:
                        events.append(event)
                        self._folding.add(event)
            self.trouble = None if self.path.exists() else "the journal is gone"
        except OSError as error:
            self.trouble = f"the journal cannot be read: {error.strerror or error}"
        self._begin_anew_with_the_file()
        return events

    def _begin_anew_with_the_file(self) -> None:
        if self._file.times != self._times:
            self._times, self._folding = self._file.times, Folding()
