"""A small study in a workspace, and runs of it that are made up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.ledger.workspace import Workspace
from agent.study.definition import Study, load_study
from agent.study.results import Passes, Results, RunLine, digest_of_ids

FAKE = (sys.executable, str(Path(__file__).parents[1] / "campaign" / "fake_raft.py"))
"""Its trainings have five cycles."""
RECIPE = """\
model: {source: builtin:tiny}
task: {dataset: "builtin:addition"}
learner: {learning_rate: 5.0e-4}
evaluation: {select_prompts: 40, search_prompts: 20, confirm_prompts: 20, holdout_prompts: 20, temperature: 0}
budget: {train_seconds: 1}
"""
STUDY = """\
description: a small study
recipe: recipes/test.yaml
factors:
  rate:
    - {label: low, set: {learner.learning_rate: 5.0e-4}}
    - {label: high, set: {learner.learning_rate: 1.0e-3}}
  schedule:
    - {label: constant, set: {learner.lr_schedule: {kind: constant, by: cycle}}}
    - {label: x0.5, set: {learner.lr_schedule: {kind: exponential, by: cycle, decay: 0.5}}}
against: {schedule: constant}
seeds: 3
cycles: 5
end_window: 2
"""
IDS = sorted(f"{a}+{b}" for a in range(10, 30) for b in range(10, 30))


def workspace_with(root: Path, study: str = STUDY, *, recipe: str = RECIPE) -> Workspace:
    workspace = Workspace(root / "ws")
    for folder in (workspace.recipes, workspace.hypotheses, workspace.studies):
        folder.mkdir(parents=True)
    (workspace.recipes / "test.yaml").write_text(recipe)
    (workspace.studies / "small.yaml").write_text(study)
    return workspace


def small(workspace: Workspace) -> Study:
    return load_study(workspace.studies / "small.yaml", root=workspace.root)


def made_line(study: Study, label: str, seed: int, counts: NDArray[np.int64], **keys: Any) -> RunLine:
    """`counts`: cycles x prompts."""
    arm = next(arm for arm in study.arms if arm.label == label)
    cycles = len(counts) - 1
    content: dict[str, Any] = {
        "study": study.name,
        "arm": label,
        "seed": seed,
        "training": arm.digest,
        "signature": arm.recipe.signature(),
        "cycles": cycles,
        "data": "rows",
        "prompts": digest_of_ids(IDS[: counts.shape[1]]),
        "samples": 1,
        "passes": Passes(counts).text(),
        "series": {name: [0.5] * (cycles + 1) for name in ("entropy", "unique_share", "pass_rate")},
        "elapsed_s": 40.0,
        "provenance": {"machine": "a machine", "torch": "2"},
    }  # fmt: skip
    return RunLine.model_validate({**content, **keys})


def drawn(course: NDArray[np.float64], rng: np.random.Generator, *, prompts: int = 400) -> NDArray[np.int64]:
    """Passes of one run whose chance of passing a prompt of difficulty 0 is the logistic of `course`."""
    chance = 1 / (1 + np.exp(-(course[:, None] + np.linspace(-2, 2, prompts)[None, :])))
    return (rng.random(chance.shape) < chance).astype(np.int64)


def fill(study: Study, path: Path, courses: dict[str, NDArray[np.float64]], *, seed: int = 0) -> Results:
    """A results file with a run of every arm in `courses` and every seed."""
    results, rng = Results(path), np.random.default_rng(seed)
    for arm, number in study.order():
        if arm.label in courses:
            counts = drawn(courses[arm.label], rng)
            results.add(made_line(study, arm.label, number, counts), ids=IDS[: counts.shape[1]])
    return results
