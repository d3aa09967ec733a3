"""`python_tests`: which code is taken, what the tests are, and what passes."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest

from agent.errors import DataError
from agent.recipe.schema import Verifier
from agent.tasks.code_verifier import calls_of, extract_code
from agent.tasks.example import Example
from agent.tasks.verifiers import AnswerVerifier, Verdict, build_verifier

TESTS = "def test_solution():\n    assert add(1, 2) == 3\n    assert add(-1, 1) == 0\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"


def row(tests: str = TESTS, **fields: object) -> Example:
    return Example("line:1", "Add two numbers.", "", tests=tests, row=fields)


def verifier(timeout: float = 5.0) -> AnswerVerifier:
    config = Verifier(kind="python_tests", timeout_seconds=timeout)
    return build_verifier(config, base=Path(), allow_untrusted_code=True)


def check(response: str, example: Example | None = None) -> Verdict:
    return verifier().verify(response, example or row())


@pytest.mark.parametrize(
    "response",
    [
        RIGHT,
        f"```python\n{RIGHT}```",
        f"Here:\n```\n{RIGHT}```\nDone.",
        f"First try:\n```python\n{WRONG}```\nBetter:\n```python\n{RIGHT}```\n",
        # The last block only shows how to use it.
        f"```python\n{RIGHT}```\nUse it:\n```python\nprint(add(1, 2))\n```",
        f"1. So:\n   ```py\n{textwrap.indent(RIGHT, '   ')}   ```",
    ],
)
def test_right_code_passes_however_it_is_wrapped(response: str) -> None:
    verdict = check(response)
    assert (verdict.passed, verdict.formatted, verdict.near, verdict.score) == (True, True, False, 1.0)


@pytest.mark.parametrize(
    ("response", "formatted", "near", "note"),
    [
        (WRONG, True, False, "failed: AssertionError in the tests"),
        (f"```python\n{WRONG}```", True, False, "failed: AssertionError in the tests"),
        ("I would add the two numbers.", False, False, "syntax: "),
        ("", False, False, "syntax: no code"),
        ("```python\n```", False, False, "syntax: no code"),
        # Right code, but not where it is looked for: prose around it, a block that never ends, a later wrong one.
        (f"Here it is:\n{RIGHT}\nIt adds.", False, True, "syntax: "),
        (f"Sure!\n```python\n{RIGHT}", False, True, "syntax: "),
        (f"```python\n{RIGHT}```\nor\n```python\n{WRONG}```", True, True, "failed: "),
        ("def other(): pass", True, False, "error: NameError in the tests"),
    ],
)
def test_what_does_not_pass(response: str, formatted: bool, near: bool, note: str) -> None:
    verdict = check(response)
    assert (verdict.passed, verdict.formatted, verdict.near) == (False, formatted, near)
    assert (verdict.note or "").startswith(note)


def test_forms_of_tests() -> None:
    assert check(RIGHT, row("assert add(1, 2) == 3\n")).passed
    assert not check(RIGHT, row("assert add(1, 2) == 4\n")).passed
    human_eval = "def check(candidate):\n    assert candidate(1, 2) == {}\n"
    assert check(RIGHT, row(human_eval.format(3), entry_point="add")).passed
    assert not check(RIGHT, row(human_eval.format(4), entry_point="add")).passed
    # A function of the response that is named like a test is not one.
    assert check(RIGHT + "def test_mine():\n    assert False\n").passed


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("", "would run nothing"),
        ("import math\nx = 3\n", "would run nothing"),
        ("def check(candidate):\n    assert candidate(1)\n", "would run nothing"),
        ("def test_a(x):\n    assert x\n", "would run nothing"),
        ("assert add(1, 2 == 3\n", "not Python"),
    ],
)
def test_tests_that_test_nothing_are_refused(tests: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        calls_of(tests, where="line 1")


def test_the_block_that_defines_what_is_tested_is_taken() -> None:
    assert extract_code(f"```\n{RIGHT}```\n```\nprint(1)\n```", TESTS) == RIGHT
    assert extract_code("```\na = 1\n```\n```\nb = 2\n```", TESTS) == "b = 2\n"
    assert extract_code("add = max", TESTS) == "add = max"


def test_a_batch_keeps_its_order_and_runs_at_the_same_time() -> None:
    sleeper = "import time\ntime.sleep(1.0)\n" + RIGHT
    responses = [RIGHT, WRONG, sleeper, RIGHT, sleeper + "#2", "nonsense", WRONG]
    started = time.monotonic()
    with verifier() as checker:
        verdicts = checker.verify_many([(response, row()) for response in responses])
    assert [verdict.passed for verdict in verdicts] == [True, False, True, True, True, False, False]
    assert time.monotonic() - started < 6.0


def test_the_time_limit_of_the_recipe_holds() -> None:
    started = time.monotonic()
    verdict = verifier(timeout=0.5).verify("while True: pass\n", row())
    assert time.monotonic() - started < 4.0
    assert (verdict.passed, verdict.formatted, verdict.note) == (False, True, "timeout: 0.5 s")
