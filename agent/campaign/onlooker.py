"""Looks at a campaign from outside, through its files: for `watch` and `status`. Reads only, and only what is new.

Whatever is missing, torn, unreadable or written in bad faith is unknown in the snapshot, never an error.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from agent.campaign.now import machine_of, running_of, what_runs
from agent.campaign.standing import predicted_s, standing, time_left
from agent.contract import Sample
from agent.errors import AgentError
from agent.hardware.sensors import hottest, memory
from agent.ledger.events import (
    BudgetTick,
    CampaignFinished,
    CampaignPaused,
    CampaignResumed,
    CampaignStarted,
    Event,
    ExperimentCommitted,
    Note,
    RunStarted,
)
from agent.ledger.follow import JournalTail
from agent.ledger.journal import CampaignState, Run
from agent.ledger.lock import Holder, holder_of
from agent.ledger.workspace import Workspace
from agent.report.snapshot import MachineNow, Running, Snapshot, waiting
from agent.run.view import RunView
from agent.text import one_line

NAMES_EVERY_S = 3.0
"""A new campaign is looked for this often."""
SAYS_NOTHING = (Note, BudgetTick, RunStarted, ExperimentCommitted)
"""Lines that change nothing that is shown: a long journal is not added up for them."""
TURNS = (CampaignStarted, CampaignResumed, CampaignPaused, CampaignFinished)
"""Lines that are shown at once."""
SHORT_S = 0.03
PATIENCE = 40.0
"""Adding up that takes longer than `SHORT_S`, with thousands of ideas, is waited for so many times as long."""
HEAT_EVERY_S = 15.0
"""The host's sensors are many small files."""

T = TypeVar("T")


class Onlooker:
    """One pair of eyes. `campaign` None follows whichever was written last."""

    def __init__(
        self,
        workspace: Workspace,
        campaign: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workspace, self.fixed = workspace, campaign
        self.clock, self.monotonic = clock, monotonic
        self.name: str | None = None
        self.news: list[Event] = []
        """What the last look found new in the journal."""
        self._journal: JournalTail | None = None
        self._told: tuple[Snapshot, int | None] | None = None
        self._trouble = ""
        self._changed, self._due_at = False, float("-inf")
        self._open: Run | None = None
        self._predicted: float | None = None
        self._view: RunView | None = None
        self._names_at = self._heat_at = float("-inf")
        self._heat: float | None = None

    @property
    def state(self) -> CampaignState | None:
        return self._journal.state if self._journal else None

    def look(self) -> Snapshot:
        """Never raises for what files, locks and sensors do."""
        self.news = []
        now = self.monotonic()
        if self._journal is None or now - self._names_at >= NAMES_EVERY_S:
            self._names_at = now
            self._find()
        if self._journal is None or self.name is None:
            return waiting(self.clock(), self._trouble)
        self.news = self._journal.read()
        holder = _quietly(functools.partial(holder_of, self.workspace))
        is_here = holder is not None and holder.works_on(self.name)
        told = self._standing(holder.pid if holder and is_here else None)
        at, used = self.clock(), self._journal.consumed_s
        seen = replace(
            told,
            at=at,
            used_s=used,
            left_s=time_left(self._journal.state, used_s=used, at=at),
            trouble=self._journal.trouble or self._trouble or told.trouble,
            report=self._report(),
            busy=_busy(holder) if holder and not is_here else "",
        )
        if seen.state != "running" or self._open is None:
            self._view = None
            return replace(seen, machine=self._machine(None))
        view = self._view_of(self._open)
        return replace(seen, running=self._running(self._open, view), machine=self._machine(view.sample))

    # --- the journal ----------------------------------------------------------------------------------------

    def _find(self) -> None:
        try:
            names = self.workspace.campaign_names()
            self._trouble = ""
        except AgentError as error:
            self._trouble = one_line(f"{error.where or ''} {error.message}")
            return
        except OSError as error:
            self._trouble = one_line(str(error))
            return
        name = self.fixed or (names[-1] if names else None)
        if name is None or name == self.name or (self.fixed and name not in names):
            return
        self.name, self._journal = name, JournalTail(self.workspace.journal_path(name))
        self._told = self._view = self._open = None

    def _standing(self, process: int | None) -> Snapshot:
        """Made anew only where the journal has grown, or whoever works here has changed."""
        assert self._journal is not None
        assert self.name is not None
        state = self._journal.state
        self._changed |= any(not isinstance(event, SAYS_NOTHING) for event in self.news)
        began = self.monotonic()
        due = self._changed and (began >= self._due_at or any(isinstance(event, TURNS) for event in self.news))
        if self._told is None or due or self._told[1] != process:
            at = self.clock()
            self._told, self._changed = (standing(state, name=self.name, at=at, process=process), process), False
            took = self.monotonic() - began
            self._due_at = began + (PATIENCE * took if took > SHORT_S else 0.0)
        if self.news or self._open is None:
            self._open = next((run for run in reversed(state.open_runs) if run.words), None)
            self._predicted = predicted_s(state, self._open) if self._open else None
        return self._told[0]

    def _report(self) -> str | None:
        if self.name is None:
            return None
        page = self.workspace.report_folder(self.name) / "report.html"
        return self.workspace.relative(page) if page.exists() else None

    # --- the run that goes on -------------------------------------------------------------------------------

    def _view_of(self, run: Run) -> RunView:
        assert run.words is not None
        out = self.workspace.root / run.words.out
        if self._view is None or self._view.out != out:
            self._view = RunView(out)
        self._view.look()
        return self._view

    def _running(self, run: Run, view: RunView) -> Running:
        state, words = self.state, run.words
        assert state is not None
        assert words is not None
        since = (run.started or run.planned or words).time
        sample = view.sample
        # by the clock of the agent, where it has told one: the wall clock may have been set since
        elapsed = sample.t if sample is not None else max(0.0, self.clock() - since)
        return running_of(
            view,
            run=run.id,
            what=what_runs(state, run),
            seed=words.seed,
            number=words.experiment,
            elapsed_s=elapsed,
            predicted_s=self._predicted,
        )

    # --- the machine ----------------------------------------------------------------------------------------

    def _machine(self, sample: Sample | None) -> MachineNow:
        now = self.monotonic()
        if now - self._heat_at >= HEAT_EVERY_S:
            self._heat_at = now
            warmest = _quietly(hottest)
            self._heat = warmest[1] if warmest else None
        if sample is not None:
            return replace(machine_of(sample), temperature_c=self._heat)
        host = _quietly(memory)
        return MachineNow(
            available_gb=host.available if host else None,
            total_gb=host.total if host else None,
            temperature_c=self._heat,
        )


def _busy(holder: Holder) -> str:
    what = one_line(holder.what) or "something that has not said what it is"
    return f"{what}, process {holder.pid}" if holder.pid else what


def _quietly(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, AgentError, ValueError):
        return None
