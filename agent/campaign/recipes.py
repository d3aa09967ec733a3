"""The recipes of a campaign for those who only read it: from its journal, or from its commits.

Nothing is written into the campaign's folder, so that a campaign that runs meanwhile is not disturbed.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.campaign.past import lead_of, past_of
from agent.errors import RecipeError, UsageError
from agent.files import write_atomic
from agent.ledger.git import Repository
from agent.ledger.journal import CampaignState
from agent.recipe.files import EXTENDS, load_recipe
from agent.recipe.places import inside
from agent.recipe.reading import read_yaml
from agent.recipe.schema import Recipe
from agent.text import keep_secret

RECIPES = (".yaml", ".yml")
START = "start"
NAMES = ("best", "lead", START)


@dataclass(frozen=True)
class Version:
    """One recipe of a campaign."""

    name: str
    """`#3`, `baseline`, `start`."""
    number: int | None
    """None: as the campaign found it."""
    commit: str | None
    texts: Mapping[str, str]
    """By path, as the journal holds them."""


def version_of(state: CampaignState, name: str | int) -> Version:
    """The recipe of a number (0 is the baseline), or of `best`, `lead` or `start`. UsageError for no such thing."""
    if name == START:
        return Version(START, None, state.branched.commit if state.branched else None, texts_of(state, None))
    number = _number(state, str(name))
    if number not in state.experiments and number:
        raise UsageError(f"campaign {state.campaign} has no idea {number}", hint=_what_there_is(state))
    experiment = state.experiments.get(number)
    commit = (experiment.commit if experiment else None) or (None if number else state.baseline_commit)
    return Version(f"#{number}" if number else "baseline", number, commit, texts_of(state, number))


def _number(state: CampaignState, name: str) -> int:
    incumbent = (state.incumbent.experiment if state.incumbent else None) or 0
    if name == "best":
        return incumbent
    if name == "lead":
        return lead_of(past_of(state), incumbent)
    bare = name.removeprefix("#")
    if bare.isascii() and bare.isdigit() and len(bare) < 10:
        return int(bare)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"a number, or {', '.join(NAMES)}; {_what_there_is(state)}"
    raise UsageError(f"{name!r} is no idea of campaign {state.campaign}", hint=hint)


def _what_there_is(state: CampaignState) -> str:
    return f"there are: {', '.join(str(number) for number in sorted(state.experiments)) or 'none'}"


def texts_of(state: CampaignState, number: int | None) -> dict[str, str]:
    """All files of an experiment's branch that the campaign has written, by path; of None those that it found."""
    started = state.started
    if started is None:
        return {}
    files = dict(started.files or {started.recipe_path: started.recipe})
    for one in dict.fromkeys((0, number)) if number is not None else ():
        known = state.experiments.get(one)
        if known:
            files.update(known.files)
    return files


def texts_at(repository: Repository, commit: str, recipe_path: str) -> dict[str, str]:
    """The recipe and what it extends, as a commit holds them. WorkspaceError where the commit or a file of it is
    gone, RecipeError where they are no recipe."""
    texts: dict[str, str] = {}
    path = recipe_path
    while path not in texts:
        texts[path] = repository.read_file(commit, path)
        content = read_yaml(texts[path], where=f"{commit[:12]}:{path}")
        parent = content.get(EXTENDS) if isinstance(content, dict) else None
        if not isinstance(parent, str):
            return texts
        path = os.path.normpath(Path(path).parent / parent)
    raise RecipeError(f"goes in a circle through {path}", where=f"{commit[:12]}:{recipe_path}", key=EXTENDS)


def loaded(texts: Mapping[str, str], recipe_path: str) -> Recipe:
    """The validated recipe of these texts. RecipeError names file and line."""
    with tempfile.TemporaryDirectory(prefix="raft-agent-") as scratch:
        folder = Path(scratch).resolve()
        for path, text in texts.items():
            if path.endswith(RECIPES):
                write_atomic(inside(folder, path, key="path"), text)
        try:
            recipe = load_recipe(folder / recipe_path, root=folder)
        except RecipeError as error:
            error.where = (error.where or "").replace(f"{folder}/", "")
            raise
    keep_secret(recipe.task.verifier.environment)
    return recipe
