"""`python_tests`: which code is taken, what the tests are, and what passes."""

from __future__ import annotations

import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import DataError
from agent.recipe.schema import Verifier
from agent.tasks.code_verifier import begun_function, calls_of, extract_code
from agent.tasks.example import Example
from agent.tasks.verifiers import AnswerVerifier, Verdict, build_verifier, refuse_hopeless_data

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


@pytest.mark.one_in(3)
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
    assert extract_code(f"```\n{RIGHT}```\n```\nprint(1)\n```", {"add"}) == RIGHT
    assert extract_code("```\na = 1\n```\n```\nb = 2\n```", {"add"}) == "b = 2\n"
    assert extract_code("add = max", {"add"}) == "add = max"


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


# Rows that begin a function -----------------------------------------------------------------------------------

BEGUN = '''from typing import List


def double(x: int) -> int:
    return 2 * x


def total(numbers: List[int]) -> int:
    """ Twice the sum.
    >>> total([1, 2])
    6
    """
'''
CHECK = """METADATA = {'author': 'x'}


def check(candidate):
    assert candidate([1, 2]) == 6
    assert candidate([]) == 0
    assert candidate([-1]) == -2
"""
BODY = "    return sum(double(number) for number in numbers)\n"
WHOLE = f"def total(numbers: List[int]) -> int:\n{BODY}"


def human_eval(question: str = BEGUN, **fields: object) -> Example:
    return Example("HumanEval/0", question, "", tests=CHECK, row={"entry_point": "total", **fields})


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "response",
    [
        BODY,
        "\n" + BODY,
        # What a base model writes after the end of the function does not count.
        BODY + "\n\nprint(total([1]))\ndef more(:\n",
        BODY + "\nIt doubles each number.",
        BODY + "\n# next\n```",
        "    # double them\n\n    total = 0\n    for n in numbers:\n        total += double(n)\n    return total",
        # The whole function, with the imports and functions before it only in the prompt.
        f"```python\n{WHOLE}```",
        f"Sure:\n```python\n{WHOLE}```\nDone.",
        f"```python\n{BEGUN}{BODY}```",
        WHOLE,
        # The body alone, in a block.
        f"```python\n{BODY}```",
        f"```\n{textwrap.dedent(BODY)}```",
    ],
)
def test_a_begun_function_may_be_continued_or_written_anew(response: str) -> None:
    verdict = check(response, human_eval())
    assert (verdict.passed, verdict.note) == (True, None)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("response", "formatted", "near", "note"),
    [
        ("", False, False, "syntax: no code"),
        ("\n\nprint('x')\n", False, False, "syntax: no code"),
        ("return sum(numbers)\n", False, False, "syntax: "),
        ("I would double each number.", False, False, "syntax: "),
        ("    return sum(numbers)\n", True, False, "failed: AssertionError in the tests"),
        ("    pass\n", True, False, "failed: AssertionError in the tests"),
        (f"Here it is:\n{WHOLE}\nIt doubles.", False, True, "syntax: "),
        (f"Sure!\n```python\n{WHOLE}", False, True, "syntax: "),
    ],
)
def test_a_begun_function_that_is_not_completed_rightly(response: str, formatted: bool, near: bool, note: str) -> None:
    verdict = check(response, human_eval())
    assert (verdict.passed, verdict.formatted, verdict.near) == (False, formatted, near)
    assert (verdict.note or "").startswith(note)


def test_the_beginning_may_stand_in_the_rows_prompt_and_may_end_without_a_new_line() -> None:
    row_of_an_instruction = human_eval("Complete this function.", prompt=BEGUN)
    assert check(BODY, row_of_an_instruction).passed
    assert check(BODY, human_eval(BEGUN.rstrip())).passed
    assert check(" return sum(double(n) for n in numbers)", human_eval(BEGUN[: BEGUN.index('    """')].rstrip())).passed


def test_what_stands_before_the_signature_is_the_rows_own_in_the_tests() -> None:
    """HumanEval/32 in small: what is found is put into the question's own function."""
    question = BEGUN.replace("Twice the sum", "What double() makes the sum of").replace("6", "1.5")
    tests = "def check(candidate):\n    assert double(candidate([1, 2])) == 3\n"
    halves = replace(human_eval(question), tests=tests)
    assert check("    return sum(numbers) / 2\n", halves).passed
    assert not check("    return 7\n", halves).passed
    forged = "```python\ndef double(x): return 3\ndef total(numbers): return 0\n```"
    assert not check(forged, halves).passed
    assert not check("    return 0\n\n\ndef double(x): return 3\n", halves).passed
    # Words before the signature are nothing to run, whatever they seem to define.
    words = replace(human_eval("double = twice. Write:\n" + BEGUN), tests=CHECK + "    assert double\n")
    assert (check(BODY, words).note or "").startswith("syntax")


def test_a_row_that_only_speaks_of_the_function_is_as_before() -> None:
    assert begun_function(human_eval("Write total(numbers).", prompt="Write total(numbers).")) is None
    assert begun_function(row()) is None


# Partial credit -----------------------------------------------------------------------------------------------

THREE = "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(2, 2) == 4\n"


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("code", "tests", "share"),
    [
        # add(0, 0) alone holds.
        (WRONG, THREE, 1 / 3),
        (WRONG, "def test_solution():\n" + textwrap.indent(THREE, "    "), 1 / 3),
        ("def add(a, b):\n    return a * b\n", THREE, 2 / 3),
        ("def add(a, b):\n    return 1 / (a - b)\n", THREE, 0.0),
        ("def add(a, b):\n    exit() if a else 0\n    return 0\n", THREE, 1 / 3),
        # Assertions in a loop count once, and hold where they always do.
        (
            "def add(a, b):\n    return a\n",
            "for n in range(3):\n    assert add(n, 0) == n\n    assert add(n, 1) == n + 1\n",
            0.5,
        ),
        # What ends the tests ends the counting: the second is never met.
        (WRONG, "assert add(0, 0) == 0\nadd('', '')\nassert add(0, 0) == 0\n", 0.5),
        ("def other(): pass\n", THREE, 0.0),
        ("1 / 0\n", THREE, 0.0),
        ("not code", THREE, 0.0),
        # A pass and a loop without end have no share.
        (RIGHT, THREE, 0.0),
        ("def add(a, b):\n    while a: pass\n    return 0\n", THREE, 0.0),
    ],
)
def test_the_share_of_assertions_that_hold(code: str, tests: str, share: float) -> None:
    config = Verifier(kind="python_tests", timeout_seconds=0.6)
    with build_verifier(config, base=Path(), allow_untrusted_code=True, count_assertions=True) as counting:
        counted = counting.verify(code, row(tests))
    assert counted.share == pytest.approx(share)
    assert counted.score == float(counted.passed)
    assert counted.passed == (code == RIGHT)


def test_a_verdict_that_came_before_the_limit_stands_when_the_counting_runs_into_it() -> None:
    config = Verifier(kind="python_tests", timeout_seconds=0.6)
    loops_later = "def add(a, b):\n    while b == 3: pass\n    return 0\n"
    with build_verifier(config, base=Path(), allow_untrusted_code=True, count_assertions=True) as counting:
        verdict = counting.verify(loops_later, row("assert add(1, 2) == 3\nassert add(0, 3) == 3\n"))
    assert (verdict.note or "").startswith("failed: AssertionError")
    assert verdict.share == 0.0


def test_shares_are_not_counted_unless_asked_for() -> None:
    assert check(WRONG, row(THREE)).share == 0.0


def test_code_rows_whose_own_solutions_fail_are_refused() -> None:
    config = Verifier(kind="python_tests")

    def rows(*answers: str) -> list[Example]:
        return [Example(f"line:{n}", "q", answer, tests=TESTS) for n, answer in enumerate(answers)]

    with verifier() as checker:
        refuse_hopeless_data(checker, config, rows("", ""), dataset="d")
        refuse_hopeless_data(checker, config, rows(RIGHT, WRONG), dataset="d")
        with pytest.raises(DataError, match="none of the first 2 rows' own answers"):
            refuse_hopeless_data(checker, config, rows(WRONG, "", WRONG), dataset="d")
