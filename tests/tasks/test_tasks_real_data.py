"""The files of the shared data folder beside the repository, where it is there, or of RAFT_TEST_DATA.

MBPP and HumanEval with their reference solutions (mbpp.jsonl, HumanEval.jsonl, as they are published) are looked for
there too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.recipe.schema import Evaluation, Task, Verifier
from agent.tasks.duplicates import group_numbers
from agent.tasks.example import Example
from agent.tasks.tasks import load_rows, load_splits
from agent.tasks.verifiers import build_verifier

DATA = Path(os.environ.get("RAFT_TEST_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="there is no ../shared/data beside the repository")

GSM8K = Task(dataset="jsonl:gsm8k_train.jsonl", answer_after="####", verifier=Verifier(kind="last_number"))
MBPP = Task(
    dataset="jsonl:mbpp_train.jsonl",
    fields={"question": "prompt", "id": "task_id"},
    verifier=Verifier(kind="python_tests"),
)

SOLUTIONS = {
    # reverse words in a given string
    "604": "def reverse_words(s):\n    return ' '.join(reversed(s.split()))\n",
    # check if the given integer is a prime number
    "605": "def prime_num(num):\n    return num > 1 and all(num % d for d in range(2, int(num**0.5) + 1))\n",
    # convert degrees to radians
    "606": "import math\n\ndef radian_degree(degree):\n    return math.radians(degree)\n",
    # first repeated character, "None" where there is none
    "602": (
        "def first_repeated_char(s):\n    seen = set()\n    for c in s:\n        if c in seen:\n            return c\n"
        "        seen.add(c)\n    return 'None'\n"
    ),
    # longest chain of pairs; the tests need a class as well
    "601": (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n\n"
        "def max_chain_length(pairs, n):\n    pairs = sorted(pairs, key=lambda p: p.b)\n    count, end = 0, None\n"
        "    for p in pairs:\n        if end is None or p.a > end:\n            count, end = count + 1, p.b\n"
        "    return count\n"
    ),
}


@pytest.mark.slow
def test_every_gsm8k_answer_parses_and_is_right_about_itself() -> None:
    rows = load_rows(GSM8K, base=DATA)
    assert len(rows) == 7473
    with build_verifier(GSM8K.verifier, base=DATA) as verifier:
        own = verifier.verify_many([(f"So the answer is {row.answer}.", row) for row in rows])
        worked = verifier.verify_many([(row.row["answer"], row) for row in rows])
        wrong = verifier.verify_many([(f"{row.answer}1", row) for row in rows])
    assert all(verdict.passed for verdict in own)
    assert all(verdict.passed for verdict in worked)
    assert not any(verdict.passed for verdict in wrong)


@pytest.mark.slow
def test_gsm8k_deals_into_the_default_splits() -> None:
    splits = load_splits(GSM8K, Evaluation(), base=DATA)
    questions = len({" ".join(row.question.split()).casefold() for row in load_rows(GSM8K, base=DATA)})
    assert len({row.question for row in splits.train}) == questions - 64 - 3 * 128
    assert splits.digest == load_splits(GSM8K, Evaluation(), base=DATA).digest


@pytest.mark.slow
def test_gsm8k_asks_one_question_of_two_people() -> None:
    rows = load_rows(GSM8K, base=DATA)
    assert near_duplicates(rows) == [("line:2484", "line:6692")]
    splits = load_splits(GSM8K.model_copy(update={"split_seed": 4}), Evaluation(), base=DATA)
    assert splits.refused_pairs == (("line:2484", "line:6692"),)
    assert splits.refused == 1
    assert len(splits.train) == len(rows) - 64 - 3 * 128 - 1


def test_mbpp_asks_some_questions_twice() -> None:
    found = near_duplicates(load_rows(MBPP, base=DATA))
    # One article more; left or right; even or odd; with or without `by using regex`.
    assert ("758", "779") in found
    assert len(found) == 17
    sizes = dict.fromkeys(("select_prompts", "search_prompts", "confirm_prompts", "holdout_prompts"), 40)
    splits = load_splits(MBPP, Evaluation(**sizes), base=DATA)
    assert 0 < splits.refused == 374 - 160 - len(splits.train)


def near_duplicates(rows: Sequence[Example]) -> list[tuple[str, str]]:
    """Id of the first row of a group and of each later one."""
    groups = group_numbers([row.question for row in rows])
    return [(rows[group].id, rows[number].id) for number, group in enumerate(groups) if group != number]


def test_mbpp_rows_load_and_each_has_tests_that_run_something() -> None:
    rows = load_rows(MBPP, base=DATA)
    assert len(rows) == 374
    assert all("assert" in (row.tests or "") for row in rows)


def test_mbpp_tests_pass_right_code_and_fail_wrong_code() -> None:
    rows = {row.id: row for row in load_rows(MBPP, base=DATA)}
    pairs = [(f"```python\n{code}```", rows[name]) for name, code in SOLUTIONS.items()]
    empty = [(f"def {rows[name].row['entry_point']}(*_):\n    return None\n", rows[name]) for name in SOLUTIONS]
    with build_verifier(MBPP.verifier, base=DATA, allow_untrusted_code=True) as verifier:
        right, wrong = verifier.verify_many(pairs), verifier.verify_many(empty)
    assert [(verdict.passed, verdict.note) for verdict in right] == [(True, None)] * len(SOLUTIONS)
    assert not any(verdict.passed for verdict in wrong)
    assert all(verdict.formatted for verdict in wrong)


# Reference solutions ------------------------------------------------------------------------------------------


def published(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def passes_plainly(program: str) -> bool:
    """What a Python without any walls says of code and tests in one file."""
    try:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def judged_alike(cases: Sequence[tuple[str, Example]], programs: Sequence[str]) -> tuple[int, list[str]]:
    """How many reference solutions are right, and those of them that the verifier does not pass, with its note."""
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(passes_plainly, programs))
    config = Verifier(kind="python_tests", timeout_seconds=20)
    with build_verifier(config, base=DATA, allow_untrusted_code=True) as verifier:
        verdicts = verifier.verify_many([(f"```python\n{code}\n```", row) for code, row in cases])
    refused = [
        f"{row.id}: {verdict.note}"
        for ok, verdict, (_, row) in zip(right, verdicts, cases, strict=True)
        if ok and not verdict.passed
    ]
    return sum(right), refused


@pytest.mark.slow
def test_every_reference_solution_of_mbpp_that_is_right_passes() -> None:
    rows = published("mbpp.jsonl")
    tests = ["\n".join([row.get("test_setup_code") or "", *row["test_list"]]) for row in rows]
    cases = [
        (row["code"], Example(str(row["task_id"]), row["text"], "", tests=text))
        for row, text in zip(rows, tests, strict=True)
    ]
    right, refused = judged_alike(cases, [f"{row['code']}\n{text}" for row, text in zip(rows, tests, strict=True)])
    assert right > 0.95 * len(rows)
    assert refused == []


@pytest.mark.slow
def test_every_reference_solution_of_human_eval_passes() -> None:
    rows = published("HumanEval.jsonl")
    codes = [row["prompt"] + row["canonical_solution"] for row in rows]
    cases = [
        (code, Example(row["task_id"], row["prompt"], "", tests=row["test"], row={"entry_point": row["entry_point"]}))
        for code, row in zip(codes, rows, strict=True)
    ]
    programs = [f"{code}\n{row['test']}\ncheck({row['entry_point']})" for code, row in zip(codes, rows, strict=True)]
    right, refused = judged_alike(cases, programs)
    assert right == len(rows)
    assert refused == []
