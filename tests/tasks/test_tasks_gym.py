"""reasoning_gym data sets: rows, names, parameters, and the scoring rules that come with them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import DataError, RecipeError, Unavailable, UsageError
from agent.recipe.schema import Evaluation, Task, Verifier
from agent.tasks.example import Example
from agent.tasks.gym import executes_answers, gym_rows
from agent.tasks.layers import Layers
from agent.tasks.tasks import load_splits
from agent.tasks.verifiers import build_verifier, refuse_hopeless_data

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed (pip install raft-agent[gym])",
)
SMALL = Evaluation(select_prompts=2, search_prompts=3, confirm_prompts=3, holdout_prompts=3)


@needs_gym
def test_rows_are_seeded_and_dealt() -> None:
    task = Task(dataset="reasoning_gym:chain_sum", parameters={"size": 40, "seed": 7, "max_terms": 3})
    splits = load_splits(task, SMALL, base=Path())
    assert splits == load_splits(task, SMALL, base=Path())
    assert len(splits.train) == 40 - 11
    for row in splits.train:
        assert str(eval(row.question.removesuffix("=").rpartition(":")[2])) == row.answer
        assert row.tag == "chain_sum"


@needs_gym
@pytest.mark.parametrize(
    ("name", "parameters", "key", "suggestion"),
    [
        ("chainsum", {}, "task.dataset", "reasoning_gym:chain_sum"),
        ("chain_sum", {"max_term": 3}, "task.parameters.max_term", "max_terms"),
        ("chain_sum", {"min_terms": 9, "max_terms": 3}, "task.parameters", None),
        ("chain_sum", {"size": 0}, "task.parameters", None),
        ("chain_sum", {"size": "many"}, "task.parameters", None),
    ],
)
def test_unknown_names_and_parameters(name: str, parameters: dict[str, Any], key: str, suggestion: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        gym_rows(name, parameters)
    assert (caught.value.key, caught.value.suggestion) == (key, suggestion)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(Unavailable, match=r"raft-agent\[gym\]"):
        gym_rows("chain_sum", {})


@pytest.mark.slow
@needs_gym
def test_another_right_answer_passes_by_the_rule_of_the_data_set() -> None:
    row = gym_rows("countdown", {"size": 1})[0]
    other = f"({row.answer})"
    with build_verifier(Verifier(kind="delimited"), base=Path(), allow_untrusted_code=True) as verifier:
        assert verifier.verify(f"<answer>{other}</answer>", row).passed
        wrong = verifier.verify("<answer>1 + 1</answer>", row)
        assert (wrong.score, wrong.passed, wrong.formatted) == (0.0, False, True)


@pytest.mark.slow
@needs_gym
def test_a_rule_that_evaluates_answers_does_it_behind_walls_and_each_time_anew(walls: Layers) -> None:
    row = gym_rows("countdown", {"size": 1})[0]
    config = Verifier(kind="reasoning_gym")
    spoilt = "__import__('reasoning_gym').games.countdown.CountdownDataset.__dict__.clear() or (lambda: 1)"
    evil = (
        "[type(d).__setattr__(d, 'score_answer', lambda a, entry: 1.0) for d in __import__('gc').get_objects() "
        "if type(d).__name__ == 'CountdownDataset']"
    )
    out = Path("/tmp/raft-was-here")
    with build_verifier(config, base=Path()) as verifier:
        for text in (evil, spoilt, f"open({str(out)!r}, 'w')", "__import__('os')._exit(0)"):
            assert not verifier.verify(f"<answer>{text}</answer>", row).passed
            assert not verifier.verify("<answer>1 + 1</answer>", row).passed
            assert verifier.verify(f"<answer>{row.answer}</answer>", row).passed
    assert not out.exists()


@pytest.mark.slow
@needs_gym
@pytest.mark.parametrize(
    "said", ['{"value": "x"}', '{"value": [1]}', '{"error": 1}', '{"error": "x"}', "{}", "[", "[1]"]
)
def test_an_answer_that_answers_for_its_rule_ends_nothing(walls: Layers, said: str) -> None:
    row = gym_rows("countdown", {"size": 1})[0]
    with build_verifier(Verifier(kind="reasoning_gym"), base=Path()) as verifier:
        text = f"__import__('os').write(3, {said.encode()!r}) and __import__('os')._exit(0)"
        assert verifier.verify(f"<answer>{text}</answer>", row).score == 0.0
        assert verifier.verify(f"<answer>{row.answer}</answer>", row).passed


@pytest.mark.slow
@needs_gym
def test_a_rule_finds_an_empty_folder_each_time(walls: Layers) -> None:
    if not walls.temporary:
        pytest.skip("no file can be written here")
    row = gym_rows("countdown", {"size": 1})[0]
    # Waits for ever where it finds what another one has left.
    text = "__import__('os').path.exists('left') and __import__('time').sleep(99) or open('left', 'w')"
    config = Verifier(kind="reasoning_gym", timeout_seconds=3.0)
    with build_verifier(config, base=Path()) as verifier:
        notes = [verifier.verify(f"<answer>{text}</answer>", row).note for _ in range(3)]
    assert not [note for note in notes if "time limit" in (note or "")]


@needs_gym
def test_a_rule_that_evaluates_answers_needs_the_flag_where_there_are_no_walls(bare: Layers) -> None:
    row = gym_rows("countdown", {"size": 1})[0]
    with (
        build_verifier(Verifier(), base=Path()) as verifier,
        pytest.raises(UsageError, match="--allow-untrusted-code"),
    ):
        verifier.verify("1 + 1", row)


@needs_gym
def test_rules_that_evaluate_answers_are_known() -> None:
    assert all(map(executes_answers, ["countdown", "n_queens", "simple_integration", "spiral_matrix"]))
    assert not any(map(executes_answers, ["chain_sum", "basic_arithmetic", "gcd", "maze"]))


@pytest.mark.slow
@needs_gym
def test_the_rule_of_a_row_gives_partial_credit(in_thread: Callable[[Callable[[], Any]], Any]) -> None:
    row = gym_rows("chain_sum", {"size": 1})[0]
    texts = (f"<answer>{row.answer}</answer>", f"<answer>it is {row.answer}</answer>", row.answer, "<answer></answer>")
    with build_verifier(Verifier(kind="reasoning_gym"), base=Path()) as verifier:
        right, padded, bare, empty = in_thread(lambda: verifier.verify_many([(text, row) for text in texts]))
    assert (right.score, right.passed, right.formatted) == (1.0, True, True)
    # The package's usual rule: length of the answer / length of the text around it.
    share = len(row.answer) / len(f"it is {row.answer}")
    assert (padded.score, padded.passed, padded.formatted, padded.near) == (pytest.approx(share), False, True, True)
    assert (bare.score, bare.formatted, bare.near) == (0.0, False, True)
    assert (empty.score, empty.formatted) == (0.0, False)


@pytest.mark.slow
@needs_gym
def test_rows_of_another_source_name_their_data_set() -> None:
    numbers = {"source_dataset": "countdown", "numbers": [6, 61, 94, 4], "target": 309}
    row = Example("line:1", "Calculate 309.", "94*4 - 61 - 6", row={"metadata": numbers})
    config = Verifier(kind="reasoning_gym")
    with build_verifier(config, base=Path(), allow_untrusted_code=True) as verifier:
        refuse_hopeless_data(verifier, config, [row], dataset="jsonl:my.jsonl")
        assert verifier.verify("<answer>4*94 - 6 - 61</answer>", row).passed
        assert 0 < verifier.verify("<answer>4*94 - 6 + 61</answer>", row).score < 1


@needs_gym
@pytest.mark.parametrize("row", [{}, {"metadata": "x"}, {"metadata": {"source_dataset": "no_such"}}])
def test_rows_that_name_no_data_set_are_refused_before_the_training(row: dict[str, Any]) -> None:
    config = Verifier(kind="reasoning_gym")
    with build_verifier(config, base=Path()) as verifier:
        verdict = verifier.verify("<answer>1</answer>", Example("line:1", "q", "1", row=row))
        assert (verdict.score, verdict.fault) == (0.0, True)
        with pytest.raises(DataError, match=r"metadata\.source_dataset"):
            refuse_hopeless_data(verifier, config, [Example("line:1", "q", "1", row=row)], dataset="jsonl:my.jsonl")
