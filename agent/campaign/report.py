"""The report of a campaign on the disk: report.html, report.md and summary.json in one folder.

    write_report(night, folder, charts=...)      all three, each replaced atomically
    Reporter(...)                                renews them from a thread of its own while a campaign runs

The thread reads the journal as any onlooker does, and shares nothing with the loop but a flag: it cannot fail it, and
makes it wait for nothing. Requests that come while it writes are one request.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.campaign.night import night_of
from agent.campaign.night_runs import MOST_BYTES, RunFolders
from agent.campaign.report_folder import (
    MADE_FROM,
    MARKDOWN,
    PAGE,
    SUMMARY,
    Said,
    Sources,
    program,
    refuse_newer,
    remember,
)
from agent.errors import AgentError, ResourceError
from agent.files import remove_leftovers, write_atomic
from agent.ledger.follow import JournalTail
from agent.ledger.journal import CampaignState, Journal
from agent.report.night import Night
from agent.report.vega import Charts
from agent.text import redact

if TYPE_CHECKING:
    from agent.campaign.choose import Ranked


PATIENCE_S = 20.0
"""For the last report at the end of a session."""
IMPATIENCE_S = 2.0
"""The same where a person wants it to end at once."""
LEAST_PAUSE_S = 1.0
"""Between two renewals, and nine times what the last one took: a tenth of one core at most."""
SHARE = 9.0
NICE = 10
CURVE_BYTES = 250_000
"""Of curves in a report that is renewed while the campaign runs: some 60 runs. The last one has as many as fit."""


def write_report(night: Night, folder: Path, *, charts: str | None = None, why_no_charts: str = "") -> dict[str, str]:
    """Returns what was written, by the name of the file. Raises ResourceError where the folder cannot be written,
    UsageError where the report in it is of a newer version: that stays as it is.

    The page comes last: where it is, the others are not older.
    """
    from agent.report.night_markdown import markdown
    from agent.report.page import render_page
    from agent.report.summary import summary_text

    refuse_newer(folder)
    written: dict[str, str] = {}
    makers = {
        SUMMARY: lambda: summary_text(night),
        MARKDOWN: lambda: markdown(night),
        PAGE: lambda: render_page(night, charts=charts, why_no_charts=why_no_charts),
    }
    try:
        for name, made in makers.items():
            written[name] = made()
            write_atomic(folder / name, written[name])
    except OSError as error:
        raise ResourceError(
            f"the report cannot be written ({error.strerror or error})",
            where=str(folder),
            hint="raft-agent report --out DIR writes it elsewhere",
        ) from None
    return written


def write_lasting(night: Night, folder: Path, *, charts: Charts, folders: RunFolders, sources: Sources | None) -> Said:
    """The same, with what it was made from beside it; without `sources` it is soon to be renewed, or goes elsewhere.
    Returns what the command tells of it."""
    text, why = charts.get()
    written = write_report(night, folder, charts=text, why_no_charts=why)
    said = Said(redact(night.verdict), tuple(map(redact, night.warnings)), redact(why), night.renewed_at)
    if sources is not None and folders.has_read_all and night.consumed_s >= sources.consumed_s:
        remember(folder, sources, folders.seen, written, said)
    return said


def damage_words(journal: Path, root: Path, damages: Sequence[str]) -> list[str]:
    """As the report warns of them."""
    return [f"{journal.relative_to(root)}: {damage}" for damage in damages]


class Reporter:
    """Renews the report of a running campaign. `close` waits for the last one, for a while."""

    def __init__(
        self,
        journal: Path,
        *,
        name: str,
        root: Path,
        folder: Path,
        charts: Charts,
        warn: Callable[[str], None],
        ranking: Callable[[], Ranked | None] = lambda: None,
        least_pause_s: float = LEAST_PAUSE_S,
    ) -> None:
        """`root` is the workspace, `folder` where the report lies. `ranking` gives the one that the loop made last."""
        self.name, self.root, self.folder = name, root, folder
        self._troubles: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._warned: set[str] = set()
        self._tail = JournalTail(journal)
        self._folders = RunFolders(root)
        self._charts, self._warn, self._ranking = charts, warn, ranking
        self._least_pause_s = least_pause_s
        self._asked = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        program()  # that of a whole night, whatever is installed in the meantime

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    def request(self) -> None:
        """Returns at once. Says why the report could not be written before, where it could not."""
        if self._closing.is_set():
            return
        self._say_troubles()
        self._asked.set()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="reporter", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads: the next request tries again
                self._troubles.put(f"the report cannot be written now ({error})")
                return
            self._thread = thread

    def close(self, *, patience_s: float = PATIENCE_S) -> None:
        """Write what is asked for, and end. A disk that does not answer holds up the end for `patience_s` at most."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join(timeout=patience_s)
            if self._thread.is_alive():
                self._troubles.put(f"the report is not written after {patience_s:g} s; raft-agent report writes it")
        self._say_troubles()

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own: trainings come first
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        with contextlib.suppress(OSError):
            for name in (PAGE, MARKDOWN, SUMMARY, MADE_FROM):
                remove_leftovers(self.folder / name)
        while True:
            self._asked.wait()
            last = self._closing.is_set()
            self._asked.clear()
            began = time.monotonic()
            self._renew(last=last)
            if last:
                return
            self._closing.wait(max(self._least_pause_s, SHARE * (time.monotonic() - began)))
            if self._closing.is_set():
                self._asked.set()

    def _renew(self, *, last: bool) -> None:
        try:
            sources = Sources(self._tail.path, self.root) if last else None
            state, damages = self._all() if last else (self._so_far(), [])
            night = night_of(
                state,
                name=self.name,
                running=not last,
                ranking=self._ranking(),
                folders=self._folders,
                curve_bytes=MOST_BYTES if last else CURVE_BYTES,
                warnings=damage_words(self._tail.path, self.root, damages),
            )
            write_lasting(night, self.folder, charts=self._charts, folders=self._folders, sources=sources)
        except AgentError as error:
            self._troubles.put(f"{error.message}; {error.hint}" if error.hint else error.message)
        except Exception as error:  # a report is never worth a night
            self._troubles.put(f"the report could not be made ({type(error).__name__}: {error})")

    def _so_far(self) -> CampaignState:
        self._tail.read()
        state = self._tail.state
        state.consumed_s = self._tail.consumed_s
        return state

    def _all(self) -> tuple[CampaignState, list[str]]:
        """With what is wrong with it. Read from the beginning: this report stays, and what was read on the way may have
        been changed since, or have been refused by the disk."""
        self._tail = JournalTail(self._tail.path)  # of a long campaign there is no room for both
        return Journal(self._tail.path).state_and_damages()

    def _say_troubles(self) -> None:
        """In the loop's own thread, each once."""
        while not self._troubles.empty():
            words = self._troubles.get()
            if words not in self._warned:
                self._warned.add(words)
                self._warn(words)
