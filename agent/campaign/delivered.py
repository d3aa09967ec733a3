"""Which checkpoint stands for a recipe: of its fresh runs the best one by the select split, which no verdict used."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.campaign.recipes import loaded, texts_of
from agent.campaign.replay import runs_of
from agent.campaign.stairs import key_of, number_in
from agent.contract import CHECKPOINT, RECIPE
from agent.errors import InvalidFile, Unavailable, UsageError
from agent.ledger.journal import CampaignState, Run
from agent.recipe.files import load_recipe
from agent.recipe.schema import Evaluation, Recipe
from agent.recipe.yardstick import Digests
from agent.run.telemetry import read_summary


@dataclass(frozen=True)
class Delivered:
    """What is exported."""

    number: int | None
    """The experiment whose recipe it has; None for a run of no campaign."""
    key: str
    out: Path
    """The run's folder."""
    recipe: Recipe
    summary: dict[str, Any]
    is_winner: bool

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT


def delivered(
    workspace: Path,
    state: CampaignState,
    *,
    number: int | None = None,
    run: str | None = None,
    folder: Path | None = None,
) -> Delivered:
    """The winner's best checkpoint; that of an idea's best run, of one run by its name, or of the folder of a run that
    is of no campaign. Raises Unavailable where it is gone, InvalidFile where it is not what the run left."""
    winner = (state.incumbent.experiment if state.incumbent else None) or 0
    if folder is not None:
        return _of_folder(folder.absolute())
    if run is not None:
        chosen, of = _named(state, run)
        return _checked(workspace, state, chosen, of, winner)
    of = winner if number is None else number
    if of not in state.experiments:
        there = ", ".join(str(one) for one in sorted(state.experiments)) or "none"
        raise UsageError(f"campaign {state.campaign} has no idea {of}", hint=f"there are: {there}")
    return _checked(workspace, state, best_run(workspace, state, of), of, winner)


def best_run(workspace: Path, state: CampaignState, number: int) -> Run:
    """As the end of a campaign chooses it (`finish.py`); a run on the search split only where no other has weights."""
    left = [run for run in runs_of(state, number) if _has_weights(workspace, run)]
    fresh = [run for run in left if run.words and run.words.role != "experiment"]
    # the baseline's runs before those that it made beside others, and a first run before a later one as good
    fresh = [run for run in fresh if run.words and run.words.role == "baseline"] or fresh
    if not left:
        what = f"#{number}" if number else "the baseline"
        others = ", ".join(sorted(key_of(run) for run in state.runs.values() if _has_weights(workspace, run)))
        raise Unavailable(
            f"no checkpoint of {what} is left" + (f"; there are those of {others}" if others else ""),
            hint=f"`raft-agent replay {number}` makes one, and `raft-agent export --run FOLDER` takes it; for the "
            "winner, `raft-agent train --best` does too",
        )
    ended = state.ending.get("checkpoint")
    told = [run for run in left if run.words and ended == f"{run.words.out}/{CHECKPOINT}"]
    evaluation = loaded(texts_of(state, number), state.started.recipe_path if state.started else "").evaluation
    return (told or sorted(fresh or left, key=lambda run: -on_select(_summary(run).get("select_metric"), evaluation)))[
        0
    ]


def on_select(metric: float | None, evaluation: Evaluation) -> float:
    """A run's metric on the select split, larger is better; one that tells none comes last."""
    if metric is None:
        return float("-inf")
    return -metric if evaluation.minimize else metric


def _summary(run: Run) -> dict[str, Any]:
    return (run.finished.summary if run.finished else None) or {}


def _has_weights(workspace: Path, run: Run) -> bool:
    summary = _summary(run)
    trained = bool(summary) and summary.get("ended_by") != "evaluated" and not summary.get("stopped")
    return trained and run.words is not None and (workspace / run.words.out / CHECKPOINT).is_dir()


def _named(state: CampaignState, name: str) -> tuple[Run, int]:
    known = {key_of(run): run for run in state.runs.values() if run.finished and run.finished.summary}
    key, _, attempt = name.rpartition(".")
    chosen = known.get(key if attempt.isdecimal() else name)
    if chosen is None:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "raft-agent show N lists an idea's runs"
        raise UsageError(f"campaign {state.campaign} has no run {name} with a summary", hint=hint)
    key = key_of(chosen)
    return chosen, number_in(key)


def _checked(workspace: Path, state: CampaignState, run: Run, number: int, winner: int) -> Delivered:
    assert run.words is not None
    assert run.finished is not None
    out, key = workspace / run.words.out, key_of(run)
    if not (out / CHECKPOINT).is_dir():
        raise Unavailable(
            f"the checkpoint of {key} is gone: campaigns keep those of the baseline and of the best recipe alone",
            hint=f"`raft-agent replay {number}` makes one, and `raft-agent export --run FOLDER` takes it",
        )
    left = (run.finished.model_extra or {}).get("left") or {}
    digests = Digests()
    changed = [
        name for name, digest in left.items() if name.startswith(f"{CHECKPOINT}/") and digests.of(out / name) != digest
    ]
    if changed:
        raise InvalidFile(
            f"{changed[0]} of {key} is not what that run delivered",
            where=str(out),
            hint="what was measured does not hold for it; put it back, or replay the run",
        )
    recipe = load_recipe(out / RECIPE, edited=False)
    if recipe.signature() != run.words.recipe_signature:
        raise InvalidFile(f"{RECIPE} of {key} is not what that run trained", where=str(out))
    return Delivered(number, key, out, recipe, dict(run.finished.summary or {}), number == winner)


def _of_folder(out: Path) -> Delivered:
    """Of a replay, or a training of no campaign."""
    summary = read_summary(out)
    if summary is None or summary.stopped or not (out / CHECKPOINT).is_dir():
        raise Unavailable("this run has no checkpoint of a finished training", where=str(out))
    return Delivered(
        None, out.name, out, load_recipe(out / RECIPE, edited=False), summary.model_dump(mode="json"), False
    )
