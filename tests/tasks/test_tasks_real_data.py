"""The files of the shared data folder beside the repository, where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.recipe.schema import Evaluation, Task, Verifier
from agent.tasks.tasks import load_rows, load_splits
from agent.tasks.verifiers import build_verifier

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
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


def test_gsm8k_deals_into_the_default_splits() -> None:
    splits = load_splits(GSM8K, Evaluation(), base=DATA)
    questions = len({" ".join(row.question.split()).casefold() for row in load_rows(GSM8K, base=DATA)})
    assert len({row.question for row in splits.train}) == questions - 64 - 3 * 128
    assert splits.digest == load_splits(GSM8K, Evaluation(), base=DATA).digest


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
