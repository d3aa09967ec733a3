"""What a journal adds up to: folding events into the state of a campaign, and what is left to do.

Folding is total. Any prefix of a journal, with lines missing, torn or twice, gives a state: facts are only ever
added (the state of an experiment is read off its facts), so a repeated event changes nothing. This module
decides nothing about experiments; it says what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.ledger.events import (
    BudgetTick,
    Calibrated,
    CampaignBranched,
    CampaignFinished,
    CampaignPaused,
    CampaignResumed,
    CampaignStarted,
    ConstraintLearned,
    Event,
    ExperimentCommitted,
    ExperimentFixed,
    ExperimentJudged,
    ExperimentPlanned,
    ExperimentRecorded,
    Note,
    RunFinished,
    RunPlanned,
    RunStarted,
    SharedLayerChanged,
    UnknownEvent,
)

ExperimentStatus = Literal["planned", "committed", "running", "finished", "judged", "recorded"]
RunStatus = Literal["planned", "running", "finished"]
CampaignStatus = Literal["new", "running", "paused", "finished"]


@dataclass
class Run:
    """One execution of one recipe. The first `run_planned`, `run_started` and `run_finished` of an id hold."""

    id: str
    planned: RunPlanned | None = None
    started: RunStarted | None = None
    finished: RunFinished | None = None

    @property
    def words(self) -> RunPlanned | RunStarted | None:
        """Role, rung, seed, recipe signature and folder; None where only the end of the run is known."""
        return self.started or self.planned

    @property
    def experiment(self) -> int | None:
        return self.words.experiment if self.words else None

    @property
    def is_confirmation(self) -> bool:
        return self.words is not None and (self.words.role == "confirm" or self.words.rung == "confirm")

    @property
    def status(self) -> RunStatus:
        if self.finished:
            return "finished"
        return "running" if self.started else "planned"


@dataclass
class Experiment:
    """One idea and all that is known of it."""

    number: int
    planned: ExperimentPlanned | None = None
    committed: ExperimentCommitted | None = None
    fixes: dict[int, ExperimentFixed] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    """All runs in the order they began, those of interrupted attempts too."""
    interruptions: list[ExperimentJudged] = field(default_factory=list)
    interrupted_runs: set[str] = field(default_factory=set)
    """Ids of runs that belong to an attempt which the campaign itself cut short; they prove nothing."""
    judged: ExperimentJudged | None = None
    recorded: ExperimentRecorded | None = None

    @property
    def attempt(self) -> list[Run]:
        """The runs of the present attempt."""
        return [run for run in self.runs if run.id not in self.interrupted_runs]

    @property
    def outcome(self) -> str | None:
        return self.judged.outcome if self.judged else None

    @property
    def status(self) -> ExperimentStatus:
        if self.recorded:
            return "recorded"
        if self.judged:
            return "judged"
        if any(run.status != "finished" for run in self.attempt):
            return "running"
        if self.attempt:
            return "finished"
        return "committed" if self.committed else "planned"

    @property
    def commit(self) -> str | None:
        """Tip of the experiment's branch: the last fix that was committed, else the idea's own commit."""
        for _, fix in sorted(self.fixes.items(), reverse=True):
            if fix.commit:
                return fix.commit
        return self.committed.commit if self.committed else None

    @property
    def files(self) -> dict[str, str]:
        """Path -> text as the branch holds them: the idea's files with the fixes laid over them in order."""
        files = dict(self.planned.files) if self.planned else {}
        for _, fix in sorted(self.fixes.items()):
            files.update(fix.files)
        return files

    @property
    def recipe_signature(self) -> str | None:
        for _, fix in sorted(self.fixes.items(), reverse=True):
            if fix.recipe_signature:
                return fix.recipe_signature
        return self.planned.recipe_signature if self.planned else None


@dataclass(frozen=True)
class Incumbent:
    """The best recipe so far. `experiment` None is the baseline."""

    experiment: int | None
    commit: str | None
    recipe: str | None
    recipe_signature: str | None


@dataclass(frozen=True)
class Pending:
    """An effect that was announced and is not known to be done. Every one of them may be done again."""

    kind: Literal[
        "start_campaign", "commit_experiment", "commit_fix", "settle_run", "continue_experiment", "record_experiment"
    ]
    why: str
    experiment: int | None = None
    fix: int | None = None
    run: str | None = None


@dataclass
class CampaignState:
    started: CampaignStarted | None = None
    branched: CampaignBranched | None = None
    status: CampaignStatus = "new"
    stop_reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    sessions: int = 0
    """Times that the campaign was started or resumed."""
    consumed_s: float = 0.0
    """Budget used, seconds. Time between sessions is not in it."""
    resumed_budget_s: float | None = None
    """The budget as a resumption has raised it."""
    resumed_options: dict[str, Any] = field(default_factory=dict)
    """Options that a resumption has changed."""
    calibration: dict[str, Any] = field(default_factory=dict)
    experiments: dict[int, Experiment] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    judged_order: list[int] = field(default_factory=list)
    recorded_order: list[int] = field(default_factory=list)
    confirm_order: list[int] = field(default_factory=list)
    """Experiments that went into confirmation, in that order: the position is what alpha spending counts."""
    constraints: list[ConstraintLearned] = field(default_factory=list)
    shared_changes: list[SharedLayerChanged] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    unknown: int = 0
    """Events that this version does not understand."""
    last_seq: int = 0
    last_time: float | None = None
    _confirming: set[int] = field(default_factory=set, repr=False, compare=False)
    """What is in `confirm_order`."""

    @property
    def campaign(self) -> str | None:
        return self.started.campaign if self.started else None

    @property
    def budget_s(self) -> float | None:
        """Seconds that the campaign may use in all; None where only a deadline or nothing limits it."""
        return self.resumed_budget_s or (self.started.budget_s if self.started else None)

    @property
    def options(self) -> dict[str, Any]:
        """As the campaign was started, with what resumptions have changed since."""
        return {**(self.started.options if self.started else {}), **self.resumed_options}

    @property
    def confirmations(self) -> int:
        return len(self.confirm_order)

    @property
    def next_number(self) -> int:
        """Number for the next idea; the baseline is 0, ideas count from 1."""
        return max(self.experiments, default=0) + 1

    @property
    def open_runs(self) -> list[Run]:
        """Runs that were announced or started and of which no end is known."""
        return [run for run in self.runs.values() if run.status != "finished"]

    @property
    def best_commit(self) -> str | None:
        """Last known tip of `raft/<campaign>/best`."""
        for number in reversed(self.recorded_order):
            recorded = self.experiments[number].recorded
            if recorded and recorded.commit:
                return recorded.commit
        return self.branched.commit if self.branched else None

    @property
    def incumbent(self) -> Incumbent | None:
        """The last experiment that was kept, else the baseline; None before the campaign has started."""
        for number in reversed(self.judged_order):
            experiment = self.experiments[number]
            if experiment.outcome == "keep":
                return self._incumbent_from(experiment)
        if self.started is None:
            return None
        return Incumbent(None, self.baseline_commit, self.started.recipe, None)

    @property
    def baseline_commit(self) -> str | None:
        """The commit that holds the baseline's files."""
        if self.branched:
            return self.branched.commit
        return self.started.base_commit if self.started else None

    def _incumbent_from(self, experiment: Experiment) -> Incumbent:
        recipe = None
        if self.started:
            recipe = experiment.files.get(self.started.recipe_path, self.started.recipe)
        return Incumbent(experiment.number, experiment.commit, recipe, experiment.recipe_signature)

    @property
    def ending(self) -> Mapping[str, Any]:
        """What the end told, as long as it is the end: a campaign that goes on after it may have another winner by now,
        and its checkpoint may be gone. What the holdout said stays in `result`."""
        return self.result if self.status == "finished" else {}

    @property
    def shared_values(self) -> dict[str, Any]:
        """Recipe keys that every later run takes from the shared layer."""
        return {key: value for change in self.shared_changes for key, value in change.values.items()}

    @property
    def shared_env(self) -> dict[str, str]:
        return {key: value for change in self.shared_changes for key, value in change.env.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Cells of the results table, one mapping per judged idea that has them, by number."""
        judged = [self.experiments[number].judged for number in sorted(self.experiments)]
        return [dict(event.row) for event in judged if event and event.row]

    def pending(self) -> list[Pending]:
        """What an interrupted campaign has to do first, in this order. Empty: go on with the next idea."""
        return list(_pending(self))


def fold(events: Iterable[Event]) -> CampaignState:
    """Add up a journal, or any part of one. Never raises on events that `read_event` gave."""
    folding = Folding()
    for event in events:
        folding.add(event)
    return folding.state


class Folding:
    """`fold`, an event at a time: for whoever follows a journal that is being written."""

    def __init__(self) -> None:
        self.state = CampaignState()
        self._seen: dict[int, Event | set[str]] = {}
        """By number: the event that had it, or what all that had it say."""

    def add(self, event: Event) -> None:
        """What says the same as an earlier one of its number changes nothing."""
        before = self._seen.setdefault(event.seq, event)
        if before is not event:  # to write out what an event says takes longer than to read it
            words = before if isinstance(before, set) else {repr(before)}
            self._seen[event.seq] = words
            said = repr(event)
            if said in words:
                return
            words.add(said)
        _apply(self.state, event)


def _apply(state: CampaignState, event: Event) -> None:
    if event.seq > state.last_seq:
        state.last_seq = event.seq
    if state.last_time is None or event.time > state.last_time:
        state.last_time = event.time
    if event.consumed_s is not None and event.consumed_s > state.consumed_s:
        state.consumed_s = event.consumed_s
    _APPLIED_BY.get(type(event), _apply_campaign)(state, event)


def _apply_other(state: CampaignState, event: Event) -> None:
    match event:
        case Calibrated():
            state.calibration = dict(event.values)
        case ConstraintLearned():
            _add_constraint(state, event)
        case SharedLayerChanged():
            state.shared_changes.append(event)
        case Note():
            state.notes.append(event)
        case UnknownEvent():
            state.unknown += 1


def _apply_campaign(state: CampaignState, event: Event) -> None:
    match event:
        case CampaignStarted():
            if state.started is None:
                state.started = event
                state.sessions += 1
                state.status = "running"
        case CampaignBranched():
            state.branched = state.branched or event
        case CampaignResumed():
            state.sessions += 1
            state.status, state.stop_reason = "running", None
            told = event.model_extra or {}
            state.resumed_budget_s = told.get("budget_s") or state.resumed_budget_s
            state.resumed_options |= dict(told.get("options") or {})
        case CampaignPaused():
            state.status, state.stop_reason = "paused", event.reason
        case CampaignFinished():
            state.status, state.stop_reason, state.result = "finished", event.reason, dict(event.result)


def _apply_experiment(
    state: CampaignState,
    event: ExperimentPlanned | ExperimentCommitted | ExperimentFixed | ExperimentJudged | ExperimentRecorded,
) -> None:
    experiment = _experiment(state, event.experiment)
    match event:
        case ExperimentPlanned():
            experiment.planned = experiment.planned or event
        case ExperimentCommitted():
            experiment.committed = experiment.committed or event
        case ExperimentFixed():
            experiment.fixes[event.fix] = _merged_fix(experiment.fixes.get(event.fix), event)
        case ExperimentJudged():
            _judge(state, experiment, event)
        case ExperimentRecorded():
            if experiment.recorded is None:
                experiment.recorded = event
                state.recorded_order.append(event.experiment)


def _experiment(state: CampaignState, number: int) -> Experiment:
    known = state.experiments.get(number)
    if known is None:
        known = state.experiments[number] = Experiment(number)
    return known


def _merged_fix(known: ExperimentFixed | None, event: ExperimentFixed) -> ExperimentFixed:
    """The intent with the commit of its fulfilment; the second line need not repeat the words of the first."""
    if known is None:
        return event
    given = {name: getattr(event, name) for name in event.model_fields_set if getattr(event, name)}
    return known.model_copy(update=given | {"commit": event.commit or known.commit})


def _judge(state: CampaignState, experiment: Experiment, event: ExperimentJudged) -> None:
    """An interruption leaves the idea open; any other outcome stands unless judged again before it is recorded."""
    if experiment.recorded is not None:
        return
    if event.outcome == "interrupted":
        experiment.interruptions.append(event)
        experiment.interrupted_runs.update(run.id for run in experiment.runs)
        return
    if experiment.judged is not None and experiment.outcome != event.outcome:
        state.judged_order.remove(experiment.number)
    if experiment.outcome != event.outcome:
        state.judged_order.append(experiment.number)
    experiment.judged = event


def _apply_run(state: CampaignState, event: RunPlanned | RunStarted | RunFinished) -> None:
    run = state.runs.get(event.run)
    if run is None:
        run = state.runs[event.run] = Run(event.run)
    match event:
        case RunPlanned():
            run.planned = run.planned or event
        case RunStarted():
            run.started = run.started or event
        case RunFinished():
            run.finished = run.finished or event
    words = run.words
    number = words.experiment if words else None
    if number is None:
        return
    runs = _experiment(state, number).runs
    if not (runs and runs[-1] is run) and not any(known is run for known in runs):  # mostly it is the last one
        runs.append(run)
    if run.is_confirmation and number not in state._confirming:
        state._confirming.add(number)
        state.confirm_order.append(number)


def _add_constraint(state: CampaignState, event: ConstraintLearned) -> None:
    """A limit that says the same as one already known is not a second limit."""
    known = [(limit.key, limit.relation, limit.value) for limit in state.constraints]
    if (event.key, event.relation, event.value) not in known:
        state.constraints.append(event)


_APPLIED_BY: dict[type[Event], Callable[[CampaignState, Any], None]] = {
    **dict.fromkeys((RunPlanned, RunStarted, RunFinished), _apply_run),
    **dict.fromkeys(
        (ExperimentPlanned, ExperimentCommitted, ExperimentFixed, ExperimentJudged, ExperimentRecorded),
        _apply_experiment,
    ),
    **dict.fromkeys((Calibrated, ConstraintLearned, SharedLayerChanged, Note, UnknownEvent, BudgetTick), _apply_other),
}


def _pending(state: CampaignState) -> Iterator[Pending]:
    if state.started is None:
        return
    if state.branched is None:
        yield Pending("start_campaign", "the campaign's branch is not known to exist")
    for run in state.open_runs:
        words = "was started" if run.started else "was about to be started"
        yield Pending("settle_run", f"run {run.id} {words} and no end is known", run.experiment, run=run.id)
    for number, experiment in sorted(state.experiments.items()):
        yield from _pending_of(number, experiment)


def _pending_of(number: int, experiment: Experiment) -> Iterator[Pending]:
    """Steps of one experiment. An effect without the words to do it (its intent was lost) cannot be pending."""
    if experiment.planned and not experiment.committed:
        yield Pending("commit_experiment", f"experiment {number} is planned, its commit is not known", number)
    for fix, event in sorted(experiment.fixes.items()):
        if event.commit is None:
            yield Pending("commit_fix", f"fix {fix} of experiment {number} has no commit", number, fix=fix)
    if experiment.recorded:
        return
    if experiment.judged:
        outcome = experiment.judged.outcome
        yield Pending("record_experiment", f"experiment {number} is judged ({outcome}), not recorded", number)
    elif experiment.planned:
        yield Pending("continue_experiment", f"experiment {number} has no outcome yet", number)
