"""Everything a user can get wrong before a training starts: one message that says what to do, the right exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import register, run
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace
from agent.recipe.files import get_key, load_recipe

register()
KnowMachine = Callable[[Path], None]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run(arguments)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: ")
    return code, said


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("0", "write it like 8h"),
        ("-5m", "write it like 8h"),
        ("8 hours", "write it like 8h"),
        ("1e9h", "write it like 8h"),
        ("90", "90m or 90s"),
        ("800d", "longer than 30 days"),
    ],
)
def test_budgets_that_are_none(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], budget: str, said: str
) -> None:
    code, message = refused(capsys, "run", f"--budget={budget}")
    assert code == 2
    assert said in message
    assert not workspace.campaign_names()


def test_a_budget_that_affords_no_idea(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "run", "--budget", "15s")
    assert code == 6
    assert "affords no idea" in message
    assert not workspace.campaign_names()


def test_no_budget_at_all(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "run")
    assert code == 2
    assert "--budget 8h" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the recipe is empty"),
        ("model: {sorce: x}\n", "did you mean model.source?"),
        (
            "task: {dataset: x}\nmodel: {source: y}\nbudget: {cycles: 1}\nprompt: {stop: [a, 3]}\n",
            "prompt.stop.1",
        ),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_recipes_that_are_none(workspace: Workspace, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (workspace.recipes / "mine.yaml").write_text(text)
    code, message = refused(capsys, "run", "mine", "--budget", "1h")
    assert code == 3
    assert said in message
    assert "mine.yaml" in message


def test_a_missing_recipe_names_the_nearest(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "run", "tiny-adition", "--budget", "1h")
    assert code == 2
    assert "did you mean recipes/tiny-addition.yaml?" in message


def test_not_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = refused(capsys, "run", "--budget", "1h")
    assert code == 5
    assert "raft-agent init DIR" in message


def test_not_a_git_repository(workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (workspace.root / ".git").rename(tmp_path / "git-elsewhere")
    code, message = refused(capsys, "run", "--budget", "1h")
    assert code == 5
    assert "git init" in message


def test_a_repository_without_a_commit(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (workspace.root / ".git").rename(tmp_path / "git-elsewhere")
    subprocess.run(["git", "init", "-q"], cwd=workspace.root, check=True)
    code, message = refused(capsys, "run", "--budget", "1h")
    assert code == 5
    assert "no commit yet" in message
    assert "git commit" in message


def test_a_detached_head_is_no_obstacle(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "checkout", "-q", "--detach"], cwd=workspace.root, check=True)
    assert run(["run", "--budget", "1h", "--dry-run"]) == 0
    assert "nothing was run" in capsys.readouterr().out


def test_a_second_run_in_the_same_workspace(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(workspace, what="campaign other"):
        code, message = refused(capsys, "run", "--budget", "1h")
    assert code == 7
    assert "campaign other" in message


def test_an_unknown_axis_or_command(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "plan", "tiny-addition", "--only", "learning-rat")
    assert code == 2
    assert "learning-rate" in message
    code, message = refused(capsys, "rum")
    assert code == 2
    assert "rum" in message


def test_a_playbook_with_a_typo(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace.hypotheses / "mine.yaml"
    path.write_text(
        "axis: prompt\nhypotheses:\n  - id: mine\n    claim: c\n    what: w\n"
        "    variants: [{name: up, set: {rollout.temprature: 1.5}}]\n"
    )
    code, message = refused(capsys, "run", "--budget", "1h")
    assert code == 3
    assert "rollout.temperature" in message
    assert "mine.yaml" in message


@pytest.mark.slow
def test_check_lists_every_problem_and_fails(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace.recipes / "one.yaml").write_text("")
    (workspace.recipes / "two.yaml").write_text("model: 3\n")
    assert run(["check"]) == 3
    said = capsys.readouterr().out
    assert "one.yaml" in said
    assert "two.yaml" in said
    (workspace.recipes / "one.yaml").unlink()
    (workspace.recipes / "two.yaml").unlink()
    assert run(["check"]) == 0
    assert "all good" in capsys.readouterr().out


def test_status_log_and_show_before_any_campaign(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["show", "1"], ["resume"], ["finalize"]):
        code, message = refused(capsys, *command)
        assert code in (2, 5)
        assert "raft-agent run" in message
    assert run(["log"]) == 0


@pytest.mark.slow
def test_init_with_data_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], know_machine: KnowMachine
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "my.jsonl"
    data.write_text("".join(f'{{"problem": "what is {n}?", "solution": "{n}"}}\n' for n in range(400)))
    assert run(["init", "ws", "--data", str(data), "--model", "builtin:tiny"]) == 0
    capsys.readouterr()
    know_machine(tmp_path / "ws")
    monkeypatch.chdir(tmp_path / "ws")
    assert run(["check"]) == 0
    assert run(["run", "--budget", "8h", "--dry-run"]) == 0
    assert "recipes/main.yaml" in capsys.readouterr().out
    data.write_text("no json\n")
    monkeypatch.chdir(tmp_path)
    code, message = refused(capsys, "init", "other", "--data", str(data))
    assert code == 2
    assert "JSON" in message


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 5e-5),
        ("Qwen/Qwen2.5-3B", 1e-4),
        ("Qwen/Qwen2.5-1.5B", None),
        ("someone/Not-In-The-Table-8B-Instruct", 5e-5),
        ("someone/Mixture-30B-A3B", 5e-5),
        ("someone/Small-0.6B", None),
        ("someone/v4b2", None),
    ],
)
def test_init_trains_adapters_of_models_from_3b_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, rate: float | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert run(["init", "ws", "--model", model]) == 0
    recipe = load_recipe(tmp_path / "ws/recipes/main.yaml")
    assert (recipe.model.lora is not None) is (rate is not None)
    assert recipe.learner.learning_rate == (rate or 2e-5)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "How many?", "answer": "He has 3 + 4.\n#### 7"},
            {"task.answer_after": "####", "task.verifier.kind": "last_number", "evaluation.max_new_tokens": 64},
        ),
        (
            {"question": "How much?", "answer": "$1,234.50"},
            {"task.answer_after": None, "task.verifier.kind": "last_number"},
        ),
        (
            {"input": "Who wrote\u2028Emma?", "output": "Jane Austen"},
            {"task.fields": {"question": "input", "answer": "output"}, "task.verifier.kind": "exact"},
        ),
        (
            {"question": "Why?", "answer": "Because " + "it is so " * 100},
            {
                "rollout.max_new_tokens": 512,
                "evaluation.max_new_tokens": 512,
                "rollout.max_total_sequence_length": 1024,
            },
        ),
        (
            {"text": "Reverse it.", "code": "def rev(s): ...", "test_list": ["assert rev('ab') == 'ba'"]},
            {
                "task.fields": {"question": "text", "tests": "test_list"},
                "task.verifier.kind": "python_tests",
                "prompt.template": "{question}\nThe code has to pass these tests:\n{tests}",
                "evaluation.max_new_tokens": 256,
            },
        ),
    ],
    ids=["gsm8k", "numbers", "words", "long-answers", "code"],
)
def test_init_makes_a_recipe_that_fits_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "my rows.jsonl"
    data.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 50)
    assert run(["init", "ws", "--data", str(data), "--model", "builtin:tiny"]) == 0
    recipe = load_recipe(tmp_path / "ws/recipes/main.yaml")
    assert {key: get_key(recipe, key) for key in expected} == expected
    assert recipe.task.dataset == "jsonl:data/my rows.jsonl"
    assert (tmp_path / "ws/data/my rows.jsonl").read_bytes() == data.read_bytes()
    assert recipe.evaluation.search_prompts == 2, "fifty rows with one question fill no split"


@pytest.mark.parametrize(("rows", "asked"), [(30, 18), (106, 64), (105, 65), (500, 64)])
def test_init_asks_no_row_twice_a_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, asked: int) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "few.jsonl"
    data.write_text("".join(f'{{"question": "what is {n}?", "answer": "{n}"}}\n' for n in range(rows)))
    assert run(["init", "ws", "--data", str(data), "--model", "builtin:tiny"]) == 0
    recipe = load_recipe(tmp_path / "ws/recipes/main.yaml")
    held_out = 4 * (rows // 10)
    assert recipe.rollout.prompts_per_cycle == min(64, rows - held_out) == min(asked, 64)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (5, "my.jsonl has 5 different questions, which are too few to hold some out in four splits"),
        (60, "my.jsonl has 60 different questions, so each split holds 6 out: only very large differences"),
        (500, ""),
    ],
)
def test_init_says_what_few_rows_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").write_text("".join(f'{{"question": "what is {n}?", "answer": "{n}"}}\n' for n in range(rows)))
    assert run(["init", "ws", "--data", "my.jsonl", "--model", "builtin:tiny"]) == 0
    warned = capsys.readouterr().err
    assert words in warned
    assert ("warning: " in warned) == bool(words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ('{"question": "a", "answer": "b"}\n[1]\n', "line 2 is no JSON object"),
        ('{"question": "a", "reply": "b"}\n', "no field for the answer among question, reply"),
    ],
)
def test_init_refuses_rows_it_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").write_text(text)
    code, message = refused(capsys, "init", "ws", "--data", "my.jsonl")
    assert code == 2
    assert said in message
    assert not Path("ws").exists()


def test_help_is_instant_and_names_the_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "agent.cli", "--help"], capture_output=True, text=True, check=True)
    for word in ("run", "resume", "130", "init"):
        assert word in done.stdout


def test_check_explains_the_keys_of_a_section(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--keys", "learner.lr_schedule"]) == 0
    said = capsys.readouterr().out
    assert "learner.lr_schedule.decay: 0.85  (number; > 0, <= 1)\n    Factor per cycle" in said
    assert "learner.learning_rate" not in said
    assert max(map(len, said.splitlines())) <= 100
    code, message = refused(capsys, "check", "--keys", "lerner")
    assert code == 2
    assert "did you mean learner?" in message
