"""More for a campaign that has met a limit: which limit that is, and which option of `resume` lifts it."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any

from agent.campaign.budget import BudgetClock
from agent.campaign.search import CRASHES_IN_A_ROW, NEXT_NEEDS, reached
from agent.campaign.settings import Settings
from agent.errors import UsageError
from agent.ledger.journal import CampaignState
from agent.report.words import duration

MORE_TIME = "--budget 1h"
LIMITS = ("deadline", "max_experiments", "target")
"""Settings that a resumption may change; beside the budget, which it adds to."""


@dataclass(frozen=True)
class Limit:
    words: str
    lifted_by: str
    """Options of `resume`, as one could write them; empty where none does."""
    is_of_time: bool = False


def settings_of(state: CampaignState) -> Settings:
    """As a campaign was started, with what resumptions have changed."""
    assert state.started is not None
    named = {"recipe_path": state.started.recipe_path, "campaign": state.started.campaign}
    return Settings(**{**named, **state.options, "budget_s": state.budget_s})


def has_passed(settings: Settings, latest: datetime.datetime | None = None) -> bool:
    """The deadline, by a clock that may have been set back since `latest`, a moment that the campaign has seen."""
    return BudgetClock(None, deadline=settings.deadline_time, latest=latest).left_s <= 0


def with_more(
    settings: Settings,
    state: CampaignState,
    *,
    deadline_passed: bool,
    budget_s: float = 0.0,
    deadline: str | None = None,
    max_experiments: int | None = None,
    target: str | None = None,
) -> Settings:
    """`budget_s` is on top of what it had; a deadline that has passed binds no more where time is given. The others are
    new limits in place of the old ones. UsageError for one that is met already."""
    tried = len(_outcomes(state))
    if max_experiments is not None and max_experiments <= tried:
        raise UsageError(
            f"--max-experiments {max_experiments} is the number of ideas in all, and {tried} were tried",
            hint=f"name a number above {tried}",
        )
    changed: dict[str, Any] = {"deadline": deadline, "max_experiments": max_experiments, "target": target}
    changed = {name: value for name, value in changed.items() if value is not None}
    if budget_s:
        changed["budget_s"] = max(settings.budget_s or 0.0, state.consumed_s) + budget_s
        if deadline_passed and deadline is None:
            changed["deadline"] = None
    return dataclasses.replace(settings, **changed)


def changed_limits(before: Settings, now: Settings) -> dict[str, Any]:
    """For the journal."""
    return {name: getattr(now, name) for name in LIMITS if getattr(now, name) != getattr(before, name)}


def limits_met(state: CampaignState, settings: Settings, *, deadline_passed: bool) -> list[Limit]:
    """Because of which no further idea would be tried under these settings. `deadline_passed`: theirs."""
    outcomes, found = _outcomes(state), []
    tried = len(outcomes)
    if settings.max_experiments is not None and tried >= settings.max_experiments:
        ideas = "1 idea was" if tried == 1 else f"{tried} ideas were"
        words = f"{ideas} tried, and --max-experiments is {settings.max_experiments}"
        found.append(Limit(words, f"--max-experiments {max(1, 2 * tried)}"))
    if settings.target is not None and state.stop_reason == reached("target", settings.target):
        found.append(Limit(state.stop_reason, "--target METRIC>=X"))
    if tried >= CRASHES_IN_A_ROW and set(outcomes[-CRASHES_IN_A_ROW:]) == {"crash"}:
        found.append(Limit(f"the last {CRASHES_IN_A_ROW} ideas crashed", ""))
    time = _time_is_up(state, settings, deadline_passed=deadline_passed)
    return [*found, Limit(time, MORE_TIME, is_of_time=True)] if time else found


def _time_is_up(state: CampaignState, settings: Settings, *, deadline_passed: bool) -> str:
    if deadline_passed:
        return "its deadline has passed"
    if settings.budget_s is not None and state.consumed_s >= settings.budget_s:
        return f"its budget of {duration(settings.budget_s)} is used up"
    same = (settings.budget_s, settings.deadline) == (state.budget_s, state.options.get("deadline"))
    reason = state.stop_reason or ""
    return reason if same and state.status == "finished" and reason.startswith(NEXT_NEEDS) else ""


def hint_for(state: CampaignState, name: str) -> str:
    """Of a finished campaign: what goes on with it, in one line."""
    settings = settings_of(state)
    return what_gives_more(name, limits_met(state, settings, deadline_passed=has_passed(settings)))


def what_gives_more(name: str, limits: list[Limit]) -> str:
    options = " ".join(limit.lifted_by for limit in limits if limit.lifted_by)
    if not options and limits:
        return f"{limits[0].words}, which no option lifts: raft-agent run --new starts another one"
    return f"raft-agent resume {name} {options or MORE_TIME} gives it more"


def _outcomes(state: CampaignState) -> list[str | None]:
    """Of the ideas, in the order of time."""
    return [state.experiments[number].outcome for number in state.judged_order if number > 0]
