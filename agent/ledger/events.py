"""What a campaign's journal can say, one model per kind of line.

Events carry facts, not decisions about what to do next. An intent comes before the effect it announces
(`run_planned` before the process starts, `experiment_planned` before the commit, `experiment_judged` before
note, record and table row), and names everything that is needed to do the effect again. Fields beyond the
ones listed here are kept as they are; a kind that this version does not know is read as `UnknownEvent`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Outcome = Literal["keep", "discard", "crash", "interrupted"]
Role = Literal["baseline", "experiment", "confirm", "holdout"]
Rung = Literal["screen", "full", "confirm", "calibrate", "holdout"]
EndedBy = Literal["itself", "time_limit", "hang", "slow", "stop", "memory", "disk", "flood", "lost"]


FORMAT = 1
"""Of the journal. It goes up where an older version that goes on with a campaign would do harm."""


class Event(BaseModel):
    """`seq` counts from 1 without gaps in an undamaged journal; `time` is Unix seconds of the wall clock."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    seq: int = Field(ge=1)
    time: float
    consumed_s: float | None = Field(None, ge=0)
    """Campaign seconds consumed so far, over all sessions; downtime is not in it. Never a difference."""


class CampaignStarted(Event):
    kind: Literal["campaign_started"]
    campaign: str
    recipe_path: str
    """Relative to the workspace; the key in `files` of the experiments."""
    recipe: str
    """Text of the recipe as the campaign found it."""
    base_commit: str
    budget_s: float | None = None
    options: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    files: dict[str, str] = {}
    """All files of the start commit (the recipe and what it extends); empty means the recipe alone."""
    format: int = 1


class CampaignBranched(Event):
    """`raft/<campaign>/best` exists; `commit` is its first commit after the base."""

    kind: Literal["campaign_branched"]
    commit: str


class CampaignResumed(Event):
    kind: Literal["campaign_resumed"]
    reason: str = ""


class CampaignPaused(Event):
    kind: Literal["campaign_paused"]
    reason: str


class CampaignFinished(Event):
    kind: Literal["campaign_finished"]
    reason: str
    result: dict[str, Any] = {}


class Calibrated(Event):
    """What the repeated baseline says: run noise, throughput, smallest detectable gain. The last one holds."""

    kind: Literal["calibrated"]
    values: dict[str, Any]


class BudgetTick(Event):
    kind: Literal["budget_tick"]
    consumed_s: float = Field(ge=0)


class ExperimentPlanned(Event):
    """One idea, with everything that its commit needs."""

    kind: Literal["experiment_planned"]
    experiment: int = Field(ge=0)
    hypothesis: str
    axis: str
    slug: str
    subject: str
    files: dict[str, str]
    body: str = ""
    trailers: dict[str, str] = {}
    symptom: str | None = None
    changes: dict[str, Any] = {}
    """Dotted recipe key -> [from, to]."""
    recipe_signature: str | None = None
    parent_commit: str | None = None
    incumbent: int | None = None
    """Experiment number of the recipe that it changes, of the incumbent or of what leads; None is the baseline."""


class ExperimentCommitted(Event):
    kind: Literal["experiment_committed"]
    experiment: int = Field(ge=0)
    branch: str
    commit: str


class ExperimentFixed(Event):
    """A fix after a crash: first without `commit` (the intent), then again with it."""

    kind: Literal["experiment_fixed"]
    experiment: int = Field(ge=0)
    fix: int = Field(ge=1)
    """1, 2, ... within the experiment."""
    subject: str = ""
    body: str = ""
    files: dict[str, str] = {}
    crash_class: str | None = None
    why: str = ""
    recipe_signature: str | None = None
    commit: str | None = None


class ExperimentJudged(Event):
    """The outcome, decided. What follows (note, record commit, table row) can be done again from this line."""

    kind: Literal["experiment_judged"]
    experiment: int = Field(ge=0)
    outcome: Outcome
    reason: str
    numbers: dict[str, Any] = {}
    crash_class: str | None = None
    note: str | None = None
    """Text of the git note."""
    row: dict[str, Any] = {}
    """Cells of the results table."""


class ExperimentRecorded(Event):
    """Note, record commit and table row are done."""

    kind: Literal["experiment_recorded"]
    experiment: int = Field(ge=0)
    commit: str | None = None
    """The record commit on `best`."""
    best: float | None = None
    """The incumbent's metric, by what has been measured of it so far."""


class _RunWords(Event):
    run: str
    """Id, unique in the campaign."""
    experiment: int | None = None
    """None: a run of no experiment (baseline, holdout)."""
    role: Role
    rung: Rung
    arm: str | None = None
    """Whose recipe it runs, where the role leaves that open: candidate, incumbent, baseline, untrained, winner."""
    seed: int
    recipe_signature: str
    out: str
    """Output folder, relative to the workspace or absolute."""


class RunPlanned(_RunWords):
    """Intent to start a process. A kill right after it may leave a process that the journal does not know by
    number; `out` is where it can be found (its heartbeat names the pid)."""

    kind: Literal["run_planned"]


class RunStarted(_RunWords):
    kind: Literal["run_started"]
    pid: int
    process_started: float
    """Create time of the process, Unix seconds."""
    boot_id: str | None = None


class RunFinished(Event):
    kind: Literal["run_finished"]
    run: str
    ended_by: EndedBy
    """`lost`: agent and process both died (power cut) and left no summary."""
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    elapsed_s: float | None = None
    summary: dict[str, Any] | None = None
    """Digest of `summary.json`; None means that there is none."""


class ConstraintLearned(Event):
    """A limit that a crash taught, for the planner: `learner.microbatch_tokens` `<=` 4096."""

    kind: Literal["constraint_learned"]
    key: str
    relation: Literal["<", "<=", ">=", "=="]
    value: Any
    why: str
    experiment: int | None = None


class SharedLayerChanged(Event):
    """A change for all later runs: recipe keys and environment variables."""

    kind: Literal["shared_layer_changed"]
    values: dict[str, Any] = {}
    env: dict[str, str] = {}
    why: str
    experiment: int | None = None
    run: str | None = None
    """Key of the run that showed that it helps; it had the change already."""


class Note(Event):
    kind: Literal["note"]
    text: str


class UnknownEvent(Event):
    """A kind of a newer version, or a line that does not validate. Folding passes over it and counts it."""


KnownEvent = Annotated[
    CampaignStarted
    | CampaignBranched
    | CampaignResumed
    | CampaignPaused
    | CampaignFinished
    | Calibrated
    | BudgetTick
    | ExperimentPlanned
    | ExperimentCommitted
    | ExperimentFixed
    | ExperimentJudged
    | ExperimentRecorded
    | RunPlanned
    | RunStarted
    | RunFinished
    | ConstraintLearned
    | SharedLayerChanged
    | Note,
    Field(discriminator="kind"),
]
_known: TypeAdapter[KnownEvent] = TypeAdapter(KnownEvent)
_validated = _known.validator.validate_python  # the adapter's own method looks at eight options first, for every line
KINDS = frozenset(get_args(model.model_fields["kind"].annotation)[0] for model in get_args(get_args(KnownEvent)[0]))
"""Kinds of events that this version knows."""


def event_from(fields: dict[str, Any]) -> Event:
    """The typed event of one journal line. Raises pydantic's ValidationError."""
    event: Event = _validated(fields)
    return event


def read_event(fields: dict[str, Any]) -> Event | None:
    """As `event_from`, for lines from a disk: UnknownEvent where it is no known event, None where it is no event."""
    try:
        known: Event = _validated(fields)
        return known
    except ValidationError:
        pass
    try:
        return UnknownEvent.model_validate(fields)
    except ValidationError:
        return None
