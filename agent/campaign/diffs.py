"""How two recipes of a campaign differ: key by key, and as a textual diff. For `diff` and `show`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.campaign.recipes import START, Version, loaded, version_of
from agent.errors import AgentError
from agent.ledger.git import Repository
from agent.ledger.journal import CampaignState
from agent.plan.memory import Moves
from agent.run.remedies import moved_keys


@dataclass(frozen=True)
class Difference:
    """From `old` to `new`."""

    old: Version
    new: Version
    moves: Moves
    """Key -> (from, to)."""
    text: str
    outcomes: tuple[str, str]
    """Of both, a line each."""
    notes: tuple[str, ...]
    """What could not be told, in words."""


def difference(workspace: Path, state: CampaignState, new: str, old: str | None = None) -> Difference:
    """The recipe of `new` against that of `old`, or against the one that it changes. UsageError for no such idea."""
    ours = version_of(state, new)
    theirs = version_of(state, old) if old is not None else parent_of(state, ours)
    notes: list[str] = []
    if old is None and ours.number:
        text, trouble = own_diff(workspace, state, ours.number)
    else:
        text, trouble = text_between(workspace, theirs.commit, ours.commit, theirs.texts, ours.texts)
    if trouble:
        notes.append(trouble)
    return Difference(
        theirs, ours, _moves(state, theirs, ours, notes), text,
        (outcome_line(state, theirs), outcome_line(state, ours)), tuple(notes),
    )  # fmt: skip


def parent_of(state: CampaignState, version: Version) -> Version:
    """The recipe that it changes: an idea's is the incumbent or the lead of its time, the baseline's what was found."""
    if not version.number:
        return version_of(state, START)
    planned = state.experiments[version.number].planned
    return version_of(state, (planned.incumbent if planned else None) or 0)


def own_diff(workspace: Path, state: CampaignState, number: int) -> tuple[str, str | None]:
    """Of an idea against what its branch starts from; see `text_between`."""
    ours = version_of(state, number)
    theirs, planned = parent_of(state, ours), state.experiments[number].planned
    parent = (planned.parent_commit if planned else None) or theirs.commit
    return text_between(workspace, parent, ours.commit, theirs.texts, ours.texts)


def text_between(
    workspace: Path, old: str | None, new: str | None, before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[str, str | None]:
    """(diff, trouble in words): between two commits, or, where git no longer has them, between the journal's texts."""
    trouble = None
    if old and new:
        try:
            return Repository(workspace).diff(old, new), None
        except AgentError as error:
            trouble = f"this diff is from the journal, since git cannot tell: {error.message}"
    return diff_of_texts(before, after), trouble


def diff_of_texts(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """As `diff -u` writes it, file by file."""
    lines: list[str] = []
    for path in sorted({*before, *after}):
        pair = before.get(path, "").splitlines(), after.get(path, "").splitlines()
        lines += difflib.unified_diff(*pair, f"a/{path}", f"b/{path}", lineterm="")
    return "\n".join(lines)


def _moves(state: CampaignState, old: Version, new: Version, notes: list[str]) -> Moves:
    path = state.started.recipe_path if state.started else ""
    recipes = []
    for version in (old, new):
        try:
            recipes.append(loaded(version.texts, path))
        except AgentError as error:
            notes.append(f"the recipe of {version.name} is not valid, so keys cannot be compared: {error.message}")
    return moved_keys(*recipes) if len(recipes) == 2 else {}


def outcome_line(state: CampaignState, version: Version) -> str:
    """`#3 learning-rate: raise the rate: keep: gain ...`."""
    if version.number is None:
        return f"{version.name}: the recipe as the campaign found it"
    experiment = state.experiments.get(version.number)
    if experiment is None:
        return f"{version.name}: not run yet"
    subject = experiment.planned.subject if experiment.planned and version.number else ""
    judged = experiment.judged
    became = f"{judged.outcome}: {judged.reason}" if judged else f"{experiment.status}, without an outcome so far"
    return f"{f'{version.name} {subject}'.strip()}: {became}"
