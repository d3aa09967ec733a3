"""Recipes under which no verdict could mean anything: refused before anything runs, with file and key named."""

from __future__ import annotations

import pytest

from agent.cli.main import register, run
from agent.ledger.workspace import Workspace

register()


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ("search_prompts: 1", "evaluation.search_prompts: input should be greater than or equal to 2, got 1"),
        ("confirm_prompts: 1", "evaluation.confirm_prompts: input should be greater than or equal to 2, got 1"),
        ("holdout_prompts: 1", "evaluation.holdout_prompts: input should be greater than or equal to 2, got 1"),
        ("min_effect: 2", "evaluation.min_effect must be below 1, pass_rate lies between 0 and 1"),
        ("min_effect: -0.1", "evaluation.min_effect: input should be greater than or equal to 0, got -0.1"),
        (
            "metric: mean_reward, min_effect: 2",
            "evaluation.min_effect must be below 1, mean_reward lies between 0 and 1 (task.reward); got 2",
        ),
        (
            "guards: [{metric: pass_rate, direction: minimize}]",
            "evaluation.guards must not ask to minimize pass_rate, which evaluation.direction asks to maximize",
        ),
        (
            "direction: minimize, guards: [{metric: pass_rate}]",
            "evaluation.guards must not ask to maximize pass_rate, which evaluation.direction asks to minimize",
        ),
        (
            "guards: [{metric: mean_tokens}, {metric: mean_tokens, direction: minimize}]",
            "evaluation.guards must name each metric once; mean_tokens is there 2 times",
        ),
        ("guards: [{metric: mean_tokns}]", "did you mean mean_tokens?"),
        ("guards: [{metric: mean_tokens, margin: -1}]", "evaluation.guards.0.margin: input should be greater"),
        ("direction: up", "evaluation.direction: 'up' is not one of maximize, minimize"),
    ],
)
def test_an_evaluation_that_could_prove_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], evaluation: str, said: str
) -> None:
    (workspace.recipes / "bad.yaml").write_text(f"extends: tiny-addition.yaml\nevaluation: {{{evaluation}}}\n")
    assert run(["run", "bad", "--budget", "1h"]) == 3
    message = capsys.readouterr().err
    assert said in message
    assert "bad.yaml" in message
    assert "{'" not in message, "the whole section is no help"
    assert not workspace.campaign_names()


def test_check_names_it_too(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace.recipes / "bad.yaml").write_text("extends: tiny-addition.yaml\nevaluation: {min_effect: 2}\n")
    assert run(["check", "bad"]) == 3
    assert "bad.yaml:2: evaluation.min_effect must be below 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "span"),
    [
        ("task: {reward: {scale: 4, format_bonus: -1}}", None),
        ("task: {reward: {scale: 1.25, format_bonus: 0.25}}", "below 1.5, mean_reward lies between 0 and 1.5"),
        ("task: {reward: {length_penalty: 0.5}}", "below 1.5, mean_reward lies between -0.5 and 1"),
    ],
)
def test_a_min_effect_in_units_of_the_reward(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], lines: str, span: str | None
) -> None:
    evaluation = "evaluation: {metric: mean_reward, min_effect: 2}"
    (workspace.recipes / "mine.yaml").write_text(f"extends: tiny-addition.yaml\n{lines}\n{evaluation}\n")
    assert run(["run", "mine", "--budget", "1h", "--dry-run"]) == (3 if span else 0)
    assert span is None or span in capsys.readouterr().err
