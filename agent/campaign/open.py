"""Open a campaign: a new one from settings, or one that was stopped, from its journal."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.campaign.budget import BudgetClock, last_moment
from agent.campaign.calibration import plan_first
from agent.campaign.capacity import refuse_too_large
from agent.campaign.lockbox import close
from agent.campaign.more import changed_limits, limits_met, may_go_on_unchanged, settings_of, what_gives_more, with_more
from agent.campaign.observer import Observer, Silent
from agent.campaign.pausing import take_back
from agent.campaign.session import Session, collect_files
from agent.campaign.settings import Settings, parse_target
from agent.campaign.workbench import Workbench
from agent.errors import RecipeError, UsageError, WorkspaceError
from agent.hardware.isolation import isolation
from agent.hardware.probe import MACHINE, Machine, probe_machine
from agent.ledger.disk import disk_errors
from agent.ledger.events import CampaignPaused, CampaignStarted
from agent.ledger.git import Repository
from agent.ledger.journal import Journal
from agent.ledger.table import create_table
from agent.ledger.workspace import Workspace, check_campaign_name
from agent.plan.playbook import load_playbook
from agent.recipe.editing import refuse_uneditable
from agent.recipe.files import with_keys
from agent.recipe.places import refuse_outside
from agent.recipe.schema import Recipe
from agent.recipe.trust import refuse_unconfirmed
from agent.recipe.variables import refuse_unset


def refuse_closed_doors(recipe: Recipe, *, base: Path, name: str) -> None:
    """RecipeError where the recipe names what lies outside the workspace, UsageError where it asks for code of a model
    that the user has not confirmed, or for a variable that is not set. `name` is the recipe's."""
    refuse_outside(recipe, base=base)
    refuse_unset(recipe.task.verifier)
    refuse_unconfirmed(recipe.model, base=base, recipe=name)


def machine_of(workspace: Workspace) -> Machine:
    return probe_machine(cache=workspace.cache / MACHINE)


def look(workspace: Workspace, settings: Settings, *, machine: Machine, model_cache: Path) -> Session:
    """A session that writes nothing into a campaign's folders, for all that is not the campaign itself: it may run
    beside. What `--dry-run`, `plan` and `steer` need."""
    session = prepare(workspace, settings, observer=Silent(), machine=machine, model_cache=model_cache)
    session.folder = workspace.scratch
    session.only_reads = True
    return session


def prepare(
    workspace: Workspace, settings: Settings, *, observer: Observer, machine: Machine, model_cache: Path
) -> Session:
    """A session that nothing has been written for."""
    clock = BudgetClock(settings.budget_s, deadline=settings.deadline_time)
    return Session(
        settings=settings,
        workspace=workspace.root,
        folder=workspace.campaign_folder(settings.campaign),
        runs_folder=workspace.runs_folder(settings.campaign),
        table=workspace.results,
        cache=model_cache,
        journal=Journal(workspace.journal_path(settings.campaign), consumed=lambda: clock.consumed_s),
        repository=Repository(workspace.root),
        machine=machine,
        playbook=load_playbook(workspace.hypotheses),
        observer=observer,
        clock=clock,
    )


def start(
    workspace: Workspace,
    settings: Settings,
    *,
    observer: Observer,
    machine: Machine,
    model_cache: Path,
    stop_request: Callable[[], str | None],
) -> Session:
    """Check everything that can be checked, then write the first line of the journal and the first branch."""
    workspace.prepare()
    session = prepare(workspace, settings, observer=observer, machine=machine, model_cache=model_cache)
    session.stop_request = stop_request
    with _time_kept(session):
        _start(workspace, settings, session)
    return session


def _start(workspace: Workspace, settings: Settings, session: Session) -> None:
    machine, model_cache = session.machine, session.cache
    check_campaign_name(settings.campaign, [*workspace.campaign_names(), *session.repository.list_campaigns()])
    files = collect_files(workspace.root, settings.recipe_path)
    recipe = session.recipe_from(files, label="check")
    refuse_uneditable(files[settings.recipe_path], where=settings.recipe_path)
    refuse_closed_doors(recipe, base=workspace.root, name=settings.recipe_path)
    refuse_too_large(recipe, machine, cache=model_cache, base=workspace.root, where=settings.recipe_path)
    _say_what_keeps_code_in(session, recipe)
    if settings.target:
        parse_target(settings.target, metric=recipe.evaluation.metric)
    _ = session.rules  # a mistake in them is better said now than at the first crash
    if settings.only:
        _check_only(session, settings.only)
    plan_first(Workbench(session))
    create_table(workspace.results)
    session.tell(
        "campaign_started",
        campaign=settings.campaign,
        recipe_path=settings.recipe_path,
        recipe=files[settings.recipe_path],
        base_commit=session.repository.head().commit,
        budget_s=settings.budget_s,
        options=settings.plain(),
        machine=dataclasses.asdict(machine),
        files=files,
        lockbox=close(recipe, workspace=workspace.root),
    )
    tell_known_limits(session, recipe)
    branch(session)


@contextlib.contextmanager
def _time_kept(session: Session) -> Iterator[None]:
    """The seconds consumed are on the disk from here on, until the campaign's end, or now where it cannot be opened."""
    session.keep_time()
    try:
        with disk_errors(session.folder):
            yield
    except BaseException:
        session.close()
        raise


def _say_what_keeps_code_in(session: Session, recipe: Recipe) -> None:
    """UsageError where that is too little, before a run finds out."""
    if not recipe.task.verifier.runs_untrusted_code:
        return
    found = isolation()
    if not found.enough and not session.settings.allow_untrusted_code:
        raise UsageError(
            f"{session.settings.recipe_path} runs untrusted code, and this machine has too little to keep it in: "
            f"{found.words}",
            hint="raft-agent doctor says what would be enough; --allow-untrusted-code lets it run with your rights.",
        )
    session.observer.say(f"untrusted code is kept in by {found.words}")


def tell_known_limits(session: Session, recipe: Recipe) -> None:
    """What earlier campaigns found not to fit on this machine, for the planner: what would bind this recipe, if it had
    that size."""
    for known in session.limits.about(recipe.model.source):
        try:
            binds = known.binds(with_keys(recipe, {known.limit.key: _as_size(known.limit.below)}), free_gb=None)
        except RecipeError:
            continue
        if binds:
            session.tell(
                "constraint_learned",
                key=known.limit.key,
                relation="<",
                value=known.limit.below,
                why=known.words,
                context=known.limit.context,
            )


def _as_size(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _check_only(session: Session, only: str) -> None:
    from agent.campaign.choose import rank

    rank(session, None)  # refuses an unknown axis or hypothesis with the nearest name


def branch(session: Session) -> None:
    """The campaign's `best`: made once, found from then on, and put back where it stood if it was deleted. A new one
    would have nothing of what was kept."""
    state = session.state
    started = state.started
    assert started is not None
    if state.branched is not None:
        session.branches = session.repository.open_campaign(
            started.campaign, base=started.base_commit, last_known_best=state.best_commit
        )
        return
    session.branches = session.repository.start_campaign(
        started.campaign, base=started.base_commit, files=session.start_files()
    )
    session.tell("campaign_branched", commit=session.branches.start.commit)


def unfinished(workspace: Workspace, settings: Settings, *, name: str | None = None) -> str | None:
    """A campaign that `run` should go on with rather than start another: the named one, unless it is finished; without
    a name the last one, where something else than a person cut it short while it ran this recipe. None where none is.

    Raises UsageError where it was started from another text of the recipe, or with other options: then it is for a
    person to say what is meant.
    """
    names = workspace.campaign_names()
    chosen = name or (names[-1] if names else None)
    if chosen not in names:
        return None
    journal = Journal(workspace.journal_path(chosen))
    state = journal.state()
    if state.started is None or state.started.recipe_path != settings.recipe_path or state.status == "finished":
        return None
    if name is None and state.status == "paused" and not _cut_short(journal):
        return None
    differs = _what_differs(workspace, state.started, settings)
    if differs:
        raise UsageError(
            f"campaign {chosen} is not finished, and was started with {differs}",
            hint=f"raft-agent resume {chosen} goes on with it as it was; --new starts another one",
        )
    return chosen


CUT_SHORT = ("ResourceError",)
"""Errors after which a campaign goes on by itself once there is room again."""


def _cut_short(journal: Journal) -> bool:
    """Whether the machine made the last pause and not a person: a shutdown, or a disk that took nothing."""
    pauses = [event for event in journal.events() if isinstance(event, CampaignPaused)]
    told = pauses[-1].model_extra or {}
    return pauses[-1].reason == "stopped by SIGTERM" or told.get("error") in CUT_SHORT


def _what_differs(workspace: Workspace, started: CampaignStarted, settings: Settings) -> str:
    """Between how a campaign was started and how it would be now; empty where it is the same."""
    before = started.files or {started.recipe_path: started.recipe}
    changed = [
        path for path, text in collect_files(workspace.root, settings.recipe_path).items() if before.get(path) != text
    ]
    if changed:
        return f"another text of {', '.join(changed)}"
    now = settings.plain()
    # a name says which campaign is meant, and 07:30 is another moment each day
    names = [
        name
        for name, value in now.items()
        if name not in ("campaign", "deadline") and name in started.options and started.options[name] != value
    ]
    return ", ".join(f"{name} {started.options[name]} instead of {now[name]}" for name in names)


def _refuse_another_repository(session: Session, started: CampaignStarted) -> None:
    """A journal that was copied into another clone, or whose repository was made anew."""
    if session.repository.find(started.base_commit) is None:
        raise WorkspaceError(
            f"the campaign started from commit {started.base_commit[:12]}, which this repository does not have",
            where=str(session.journal.path),
            hint="its journal is of another repository: resume there; raft-agent run --new starts a new campaign here",
        )


def resume(
    workspace: Workspace,
    name: str | None,
    *,
    observer: Observer,
    machine: Machine,
    model_cache: Path,
    stop_request: Callable[[], str | None],
    extra_budget_s: float = 0.0,
    deadline: str | None = None,
    max_experiments: int | None = None,
    target: str | None = None,
    take_back_pause: bool = False,
) -> Session:
    """Open a campaign that was paused or killed, or one that is finished and is given more (`more.py`); the last one
    without a name. `take_back_pause`: what was asked by `raft-agent pause`, and not carried out yet, is asked no more.
    """
    names = workspace.campaign_names()
    if not names:
        raise UsageError("no campaign to resume in this workspace", hint="raft-agent run --budget 8h starts one")
    chosen = name or names[-1]
    if chosen not in names:
        raise UsageError(f"there is no campaign {chosen}", hint=f"there are: {', '.join(names)}")
    journal = Journal(workspace.journal_path(chosen))
    journal.refuse_foreign(chosen)
    state = journal.state()
    assert state.started is not None
    latest = last_moment(event.time for event in journal.events())
    before = settings_of(state)
    settings = with_more(
        before,
        state,
        latest=latest,
        budget_s=extra_budget_s,
        deadline=deadline,
        max_experiments=max_experiments,
        target=target,
    )
    limits = limits_met(state, settings, latest=latest)
    hint = what_gives_more(chosen, limits, settings, latest=latest)
    nothing_new = settings == before and not may_go_on_unchanged(limits)
    if state.status == "finished" and (nothing_new or any(limit.is_of_time for limit in limits)):
        raise UsageError(f"campaign {chosen} is finished: {state.stop_reason}", hint=hint)
    session = prepare(workspace, settings, observer=observer, machine=machine, model_cache=model_cache)
    _refuse_another_repository(session, state.started)
    if take_back_pause or state.status != "running":
        take_back(session.folder)
    session.clock = BudgetClock(
        settings.budget_s, consumed_s=state.consumed_s, deadline=settings.deadline_time, latest=latest
    )
    session.journal.consumed = lambda: session.clock.consumed_s
    session.stop_request = stop_request
    with _time_kept(session):
        for damage in journal.damages():
            observer.warn(f"{workspace.relative(journal.path)}: {damage}; what it said is done again or looked up")
        for limit in limits:
            observer.say(limit.said)
        branch(session)
        session.lockbox.check_journal()
        session.lockbox.check("when it was resumed")
        changed = changed_limits(before, settings)
        session.tell(
            "campaign_resumed", reason="", budget_s=settings.budget_s, **({"options": changed} if changed else {})
        )
    return session
