"""A run's metric by prompt."""

from __future__ import annotations

import numpy as np
import pytest

from agent.campaign.scores import Scores, scores_of, select_scores, table
from agent.contract import EvalRow, SelectRow
from agent.recipe.schema import Evaluation


def row(prompt: str, sample: int, passed: bool, **keys: object) -> EvalRow:
    base = {"split": "search", "reward": float(passed), "formatted": True, "tokens": 3, "finish_reason": "stop"}
    return EvalRow.model_validate({**base, "id": prompt, "sample": sample, "passed": passed, **keys})


ROWS = [row("b", 0, False, reward=0.0, tokens=9), row("a", 0, True, reward=0.5), row("a", 1, False, reward=0.1)]


def values(evaluation: Evaluation, metric: str | None = None) -> dict[str, float]:
    scores = scores_of(
        [*ROWS, row("c", 0, True, split="confirm")], split="search", evaluation=evaluation, metric=metric
    )
    assert scores is not None
    return dict(zip(scores.ids, scores.values.tolist(), strict=True))


def test_one_value_a_prompt_by_metric_and_direction() -> None:
    assert values(Evaluation()) == {"a": 0.5, "b": 0.0}
    assert values(Evaluation(metric="pass_at_k")) == {"a": 1.0, "b": 0.0}
    assert values(Evaluation(metric="mean_reward", direction="minimize")) == {"a": pytest.approx(-0.3), "b": 0.0}


def test_another_metric_of_the_same_rows_is_read_as_it_is() -> None:
    minimized = Evaluation(metric="mean_reward", direction="minimize")
    assert values(minimized, "pass_rate") == {"a": 0.5, "b": 0.0}
    assert values(minimized, "mean_tokens") == {"a": 3.0, "b": 9.0}


def test_a_split_without_rows_has_no_scores() -> None:
    assert scores_of(ROWS, split="holdout", evaluation=Evaluation()) is None


def test_runs_are_laid_side_by_side_on_the_prompts_they_share() -> None:
    first = Scores(("a", "b", "c"), np.array([0.1, 0.2, 0.3]))
    second = Scores(("b", "c", "d"), np.array([0.5, 0.6, 0.7]))
    assert table([first, first]).shape == (2, 3)
    assert table([first, second]).tolist() == [[0.2, 0.3], [0.5, 0.6]]
    with pytest.raises(ValueError, match="no prompts in common"):
        table([first, Scores(("x",), np.array([1.0]))])
    with pytest.raises(ValueError, match="needs a run"):
        table([])


def measured(cycle: int, **scores: list[float]) -> SelectRow:
    return SelectRow(cycle=cycle, scores=scores)


def test_several_measurements_of_select_are_averaged_by_prompt() -> None:
    rows = [measured(1, a=[0.0, 1.0], b=[0.0, 0.0]), measured(2, a=[1.0, 1.0], b=[0.0, 1.0], only_here=[1.0])]
    found = select_scores(rows, Evaluation())
    assert found is not None
    assert (found.ids, found.values.tolist()) == (("a", "b"), [0.75, 0.25])
    at_k = select_scores(rows, Evaluation(metric="pass_at_k", direction="minimize"))
    assert at_k is not None
    assert at_k.values.tolist() == [-1.0, -0.5]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [measured(1, a=[1.0])],
        [measured(1, a=[1.0], b=[1.0]), measured(2, b=[1.0], c=[1.0])],
        [measured(1, a=[1.0], b=[])],
        [measured(1, a=[1.0], b=[float("nan")])],
    ],
    ids=["nothing", "one prompt", "one prompt in common", "a prompt without samples", "not a number"],
)
def test_measurements_of_select_that_no_comparison_can_be_made_of_are_none(rows: list[SelectRow]) -> None:
    assert select_scores(rows, Evaluation()) is None
