"""More for a campaign that has met a limit: which limit that is, and which option of `resume` lifts it."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.campaign.budget import BudgetClock, reserve_seconds
from agent.campaign.night_recipe import measuring_of
from agent.campaign.one_split import number_or_none
from agent.campaign.search import CRASHES_IN_A_ROW, EXHAUSTED, NEXT_NEEDS, reached
from agent.campaign.settings import Settings, parse_target, target_met
from agent.campaign.standing import cost_so_far
from agent.errors import UsageError
from agent.ledger.journal import CampaignState
from agent.plan.steer import BARRED, FILE
from agent.report.numbers import Numbers
from agent.report.words import counted, duration

MORE_TIME = "--budget 1h"
LATER = "--deadline 07:30"
LIMITS = ("deadline", "max_experiments", "target")
"""Settings that a resumption may change; beside the budget, which it adds to."""


@dataclass(frozen=True)
class Limit:
    words: str
    lifted_by: str = ""
    """Options of `resume`, as one could write them; empty where none does."""
    is_of_time: bool = False
    beside: str = ""
    """What brings a further idea where no option does; empty where nothing does."""
    is_of_steering: bool = False
    """The user's own pins and bans: without them a plain `resume` goes on."""

    @property
    def said(self) -> str:
        if self.beside:
            return f"{self.words}: only {self.beside} brings a further idea"
        return f"{self.words}: no further idea is tried{f'; {self.lifted_by} lifts that' if self.lifted_by else ''}"


def settings_of(state: CampaignState) -> Settings:
    """As a campaign was started, with what resumptions have changed."""
    assert state.started is not None
    named = {"recipe_path": state.started.recipe_path, "campaign": state.started.campaign}
    return Settings(**{**named, **state.options, "budget_s": state.budget_s})


def with_more(
    settings: Settings,
    state: CampaignState,
    *,
    latest: datetime.datetime | None = None,
    budget_s: float = 0.0,
    deadline: str | None = None,
    max_experiments: int | None = None,
    target: str | None = None,
) -> Settings:
    """`budget_s` is on top of what it had; a deadline that has passed binds no more where time is given. The others are
    new limits in place of the old ones. UsageError for one that is met already, or is no target, and for time that
    would be less than there is. `latest`: a moment that the campaign has seen, as the clock may have been set back
    since."""
    tried = len(_outcomes(state))
    if max_experiments is not None and max_experiments <= tried:
        raise UsageError(
            f"--max-experiments {max_experiments} is the number of ideas in all, and {tried} were tried",
            hint=f"name a number above {tried}",
        )
    if target is not None:
        _refuse_met(state, target)
    changed: dict[str, Any] = {"deadline": deadline, "max_experiments": max_experiments, "target": target}
    changed = {name: value for name, value in changed.items() if value is not None}
    if budget_s:
        if deadline is None and _has_only_a_deadline(settings, latest):
            over = state.status == "finished"
            raise UsageError(
                f"--budget {duration(budget_s)} is no more: campaign {settings.campaign} has no budget, and "
                f"{'may go on' if over else 'goes on'} until its deadline, for "
                f"{duration(_until_deadline(settings, latest))} yet",
                hint=hint_for(state, settings.campaign)
                if over
                else f"raft-agent resume {settings.campaign} {LATER} sets a later one",
            )
        changed["budget_s"] = max(settings.budget_s or 0.0, state.consumed_s) + budget_s
        if _until_deadline(settings, latest) <= 0 and deadline is None:
            changed["deadline"] = None
    return dataclasses.replace(settings, **changed)


def _refuse_met(state: CampaignState, target: str) -> None:
    metric = measuring_of(state).metric
    wanted, best = parse_target(target, metric=metric), best_known(state)
    if best is not None and wanted.reached(best):
        raise UsageError(
            f"--target {target} is met already: the best recipe has {Numbers(metric).value(best)}",
            hint=f"name a number {'above' if wanted.at_least else 'below'} {best:.4g}",
        )


def best_known(state: CampaignState) -> float | None:
    """The incumbent's confirmed metric, as the loop wrote it down with the last outcome; None where none is known."""
    number = (state.incumbent.experiment if state.incumbent else None) or 0
    incumbent = state.experiments.get(number)
    if incumbent is not None and incumbent.recorded is not None:
        told = [record.best for one in reversed(state.recorded_order) if (record := state.experiments[one].recorded)]
        known = next((best for best in told if best is not None), None)
        if known is not None:
            return known
    judged = incumbent.judged if incumbent else None
    return number_or_none(judged.row.get("metric_value") if judged else None)


def changed_limits(before: Settings, now: Settings) -> dict[str, Any]:
    """For the journal."""
    return {name: getattr(now, name) for name in LIMITS if getattr(now, name) != getattr(before, name)}


def limits_met(state: CampaignState, settings: Settings, *, latest: datetime.datetime | None = None) -> list[Limit]:
    """Because of which no further idea would be tried under these settings."""
    outcomes, found = _outcomes(state), []
    tried = len(outcomes)
    if settings.max_experiments is not None and tried >= settings.max_experiments:
        ideas = counted(tried, "idea was", "ideas were")
        words = f"{ideas} tried, and --max-experiments is {settings.max_experiments}"
        found.append(Limit(words, f"--max-experiments {max(1, 2 * tried)}"))
    if settings.target is not None and _is_met(state, settings.target):
        found.append(Limit(reached("target", settings.target), "--target 'METRIC>=X'"))
    if tried >= CRASHES_IN_A_ROW and set(outcomes[-CRASHES_IN_A_ROW:]) == {"crash"}:
        found.append(Limit(f"the last {CRASHES_IN_A_ROW} ideas crashed"))
    if _ended_with(state, EXHAUSTED):
        barred = BARRED in (state.stop_reason or "")
        ways = (
            f"a new hypothesis, an idea in {FILE} or taking out a pin or ban"
            if barred
            else f"a new hypothesis or an idea in {FILE}"
        )
        found.append(Limit("the playbook was exhausted", beside=ways, is_of_steering=barred))
    return [*found, *_of_time(state, settings, latest)]


def may_go_on_unchanged(limits: list[Limit]) -> bool:
    """Whether a finished campaign needs no option: what ended it stands in a file of the user's, who may have changed
    it since."""
    return bool(limits) and all(limit.is_of_steering for limit in limits)


def _is_met(state: CampaignState, target: str) -> bool:
    best = best_known(state)
    if best is None:  # a journal without numbers: by what it says
        return state.stop_reason == reached("target", target)
    return target_met(target, best, metric=measuring_of(state).metric)


def _ended_with(state: CampaignState, words: str) -> bool:
    return state.status == "finished" and (state.stop_reason or "").startswith(words)


# --- time --------------------------------------------------------------------------------------------------


def _of_time(state: CampaignState, settings: Settings, latest: datetime.datetime | None) -> Iterator[Limit]:
    if _until_deadline(settings, latest) <= 0:
        yield Limit("its deadline has passed", MORE_TIME, is_of_time=True)  # which takes the deadline away
        return
    before, bound = settings_of(state), _too_short(state, latest)
    if _budget_left(state, settings) <= 0:
        yield Limit(f"its budget of {duration(settings.budget_s or 0.0)} is used up", MORE_TIME, is_of_time=True)
    elif "budget" in bound and settings.budget_s == before.budget_s:
        yield Limit("its budget leaves too little for another idea", MORE_TIME, is_of_time=True)
    if "deadline" in bound and settings.deadline == before.deadline:
        yield Limit("its deadline is too near for another idea", LATER, is_of_time=True)


def _too_short(state: CampaignState, latest: datetime.datetime | None) -> set[str]:
    """Of budget and deadline, what leaves a campaign no other idea that ended by lack of time: the one that binds, and
    the other where that leaves too little as well."""
    if not _ended_with(state, NEXT_NEEDS):
        return set()
    before = settings_of(state)
    left = {"budget": _budget_left(state, before), "deadline": _until_deadline(before, latest)}
    cost = cost_so_far(state)
    needed = max(min(left.values()), cost.total_s + reserve_seconds(cost) if cost else -math.inf)
    return {name for name, seconds in left.items() if seconds <= needed and seconds < math.inf}


def _budget_left(state: CampaignState, settings: Settings) -> float:
    return math.inf if settings.budget_s is None else settings.budget_s - state.consumed_s


def _has_only_a_deadline(settings: Settings, latest: datetime.datetime | None) -> bool:
    """One that is still ahead: a budget would be a limit more, and no more time."""
    return settings.budget_s is None and 0 < _until_deadline(settings, latest) < math.inf


def _until_deadline(settings: Settings, latest: datetime.datetime | None) -> float:
    return BudgetClock(None, deadline=settings.deadline_time, latest=latest).left_s


# --- in words ----------------------------------------------------------------------------------------------


def hint_for(state: CampaignState, name: str) -> str:
    """Of a finished campaign: what goes on with it, in one line."""
    settings = settings_of(state)
    return what_gives_more(name, limits_met(state, settings), settings)


def what_gives_more(
    name: str, limits: list[Limit], settings: Settings, *, latest: datetime.datetime | None = None
) -> str:
    """What no option lifts decides: an option that is named has to help."""
    options = " ".join(limit.lifted_by for limit in limits if limit.lifted_by)
    if not options and not may_go_on_unchanged(limits):
        options = LATER if _has_only_a_deadline(settings, latest) else MORE_TIME
    more = f"raft-agent resume {name} {options}".rstrip()
    held = sorted((limit for limit in limits if not limit.lifted_by), key=lambda limit: bool(limit.beside))
    if not held:
        return f"{more} gives it more"
    last = held[0]
    goes_on = f"with {last.beside} {more} goes on" if last.beside else "raft-agent run --new starts another one"
    return f"{last.words}, which no option lifts: {goes_on}"


def _outcomes(state: CampaignState) -> list[str | None]:
    """Of the ideas, in the order of time."""
    return [state.experiments[number].outcome for number in state.judged_order if number > 0]
