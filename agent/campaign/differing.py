"""The single held-out prompts on which two arms of an experiment differ most, from the rows in their runs' folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.campaign.decided import direction_of, metric_of
from agent.campaign.direction import as_measured
from agent.campaign.scores import Scores, scores_of, table
from agent.campaign.stairs import key_of
from agent.campaign.story import search_runs
from agent.contract import EvalRow
from agent.ledger.journal import CampaignState
from agent.recipe.schema import Evaluation
from agent.report.story import PromptLine
from agent.run.telemetry import read_run


def differing_prompts(workspace: Path, state: CampaignState, number: int) -> tuple[str, list[PromptLine], list[str]]:
    """The split, its prompts with the greatest difference first, and the runs whose rows are gone.

    Of the confirm split where the idea was confirmed, else of search. From the rows in the runs' folders.
    """
    experiment = state.experiments[number]
    numbers = experiment.judged.numbers if experiment.judged else {}
    split, ours, theirs = _arms(state, number)
    if not ours or not theirs:
        return split, [], []
    evaluation = Evaluation.model_validate({"metric": metric_of(state, experiment), "direction": direction_of(numbers)})
    mine, other = (_rows_of(workspace, state, keys, split) for keys in (ours, theirs))
    gone = [key for rows in (mine, other) for key, found in rows.items() if not found]
    scores = [[_scores(found, split, evaluation) for found in rows.values() if found] for rows in (mine, other)]
    if not scores[0] or not scores[1]:
        return split, [], gone
    values = table([*scores[0], *scores[1]])
    differences = values[: len(scores[0])].mean(axis=0) - values[len(scores[0]) :].mean(axis=0)
    shared = sorted(set.intersection(*(set(one.ids) for arm in scores for one in arm)))
    passed, before = _tally(mine), _tally(other)
    lines = [
        PromptLine(
            prompt, *before[prompt], *passed[prompt], as_measured(float(difference), minimize=evaluation.minimize)
        )
        for prompt, difference in zip(shared, differences, strict=True)
        if difference
    ]
    return split, sorted(lines, key=lambda line: (-abs(line.difference), line.id)), gone


def _arms(state: CampaignState, number: int) -> tuple[str, list[str], list[str]]:
    """Split, keys of the candidate's runs, keys of the incumbent's."""
    experiment = state.experiments[number]
    told = dict(experiment.judged.numbers.get("runs") or {}) if experiment.judged else {}
    candidate = list(told.get("candidate") or ())
    if not number:
        return "search", candidate, ["untrained-search"]
    if candidate:
        return "confirm", candidate, list(told.get("incumbent") or ())
    planned = experiment.planned
    return "search", list(told.get("search") or ()), search_runs(state, (planned.incumbent if planned else None) or 0)


def _rows_of(workspace: Path, state: CampaignState, keys: Sequence[str], split: str) -> dict[str, list[EvalRow]]:
    """By key of the run; none where its folder is gone."""
    folders = {key_of(run): workspace / run.words.out for run in state.runs.values() if run.words}
    return {
        key: [row for row in read_run(folders[key]).evals if row.split == split] if key in folders else []
        for key in keys
    }


def _scores(rows: Sequence[EvalRow], split: str, evaluation: Evaluation) -> Scores:
    found = scores_of(rows, split=split, evaluation=evaluation)
    assert found is not None  # there are rows
    return found


def _tally(runs: Mapping[str, Sequence[EvalRow]]) -> dict[str, tuple[int, int]]:
    """Prompt -> samples that passed and samples, over all runs."""
    found: dict[str, tuple[int, int]] = {}
    for row in (row for rows in runs.values() for row in rows):
        passed, samples = found.get(row.id, (0, 0))
        found[row.id] = passed + row.passed, samples + 1
    return found
