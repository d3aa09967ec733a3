"""`python_tests`: take the code out of a response and run the row's tests on it in the sandbox."""

from __future__ import annotations

import ast
import os
import re
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agent.errors import DataError
from agent.recipe import schema
from agent.tasks import sandbox
from agent.tasks.example import Example
from agent.tasks.verdicts import Closing, OnEach, Pair, Verdict, collect

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_OPEN_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n((?:(?!```).)*)\Z", re.DOTALL | re.MULTILINE)
_FIRST_CODE_LINE = re.compile(r"^(?:def |class |import |from \w|@\w|async def )", re.MULTILINE)
_DEFINED = re.compile(r"^(?:async\s+)?(?:def|class)\s+(\w+)|^(\w+)\s*=", re.MULTILINE)


class CodeVerifier(Closing):
    """Runs the tests of each response; several at a time, the same code on the same tests once a batch."""

    def __init__(self, config: schema.Verifier, *, workers: int | None = None):
        self._limits = sandbox.Limits(wall_seconds=config.timeout_seconds)
        self._workers = workers or min(4, os.cpu_count() or 1)

    def verify(self, response: str, example: Example) -> Verdict:
        tests = example.tests or ""
        calls = calls_of(tests, entry_point=example.row.get("entry_point"), where=example.id)
        code = extract_code(response, tests)
        outcome = self._run(code, tests, calls)
        passed = outcome.status == "passed"
        near = not passed and self._other_code_passes(response, code, tests, calls)
        formatted = outcome.status != "syntax"
        return Verdict(float(passed), passed, formatted, near, code or None, note=_note(outcome))

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        distinct = {(response, example.id): (response, example) for response, example in pairs}
        with ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox") as pool:
            verdicts = collect(pool.map(lambda pair: self.verify(*pair), distinct.values()), on_each)
        by_key = dict(zip(distinct, verdicts, strict=True))
        return [by_key[response, example.id] for response, example in pairs]

    def _run(self, code: str, tests: str, calls: Sequence[str], *, trim: bool = False) -> sandbox.Outcome:
        if not code.strip():
            return sandbox.Outcome("syntax", "no code")
        return sandbox.run_tests(code, tests, calls=calls, trim=trim, limits=self._limits)

    def _other_code_passes(self, response: str, tried: str, tests: str, calls: Sequence[str]) -> bool:
        """Whether code elsewhere in the response is right: in another block, in one that was cut, or amid prose."""
        candidates = [text for text in code_elsewhere(response, tests) if text.strip() != tried.strip()]
        return any(self._run(code, tests, calls, trim=True).status == "passed" for code in candidates[:2])


def extract_code(response: str, tests: str) -> str:
    """The last complete ``` block that defines a name the tests use, else the last one, else the whole response."""
    blocks = _blocks(response)
    if not blocks:
        return response
    used = names_used(tests)
    return next((block for block in reversed(blocks) if used & _defined(block)), blocks[-1])


def code_elsewhere(response: str, tests: str) -> list[str]:
    """Other texts in the response that define a name the tests use: blocks, a block without its end, bare code."""
    texts = [*reversed(_blocks(response)), *map(textwrap.dedent, _OPEN_BLOCK.findall(response))]
    first_line = _FIRST_CODE_LINE.search(response)
    if first_line:
        texts.append(response[first_line.start() :])
    used = names_used(tests)
    return [text for text in dict.fromkeys(texts) if used & _defined(text)]


def _blocks(response: str) -> list[str]:
    """Complete ``` blocks, without the indentation that they have in a list."""
    return [textwrap.dedent(block) for block in _BLOCK.findall(response)]


def calls_of(tests: str, *, entry_point: object = None, where: str) -> list[str]:
    """Expressions that run the tests once their source is executed: `test_solution()`, `check(add)`.

    Every function `test...` without arguments, and `check(candidate)` where the row has an `entry_point`
    (HumanEval's form). None are needed for bare assertions. Raises DataError for tests that do not parse or that
    would run nothing and so pass everything.
    """
    body = _parse_tests(tests, where=where).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    calls = [f"{node.name}()" for node in functions if node.name.startswith("test") and not node.args.args]
    if isinstance(entry_point, str) and entry_point.isidentifier():
        calls += [f"check({entry_point})" for node in functions if node.name == "check" and len(node.args.args) == 1]
    idle = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)
    if not calls and all(isinstance(node, idle) for node in body):
        raise DataError(
            "the tests would run nothing, so any code would pass",
            where=where,
            hint="Tests are assertions, functions named test..., or check(candidate) with the field entry_point.",
        )
    return calls


def names_used(tests: str) -> set[str]:
    """Names that the tests read. Tests that do not parse use none."""
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError):
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _defined(code: str) -> set[str]:
    """Names that are defined at the left margin. By pattern: parsing what a model wrote can crash the parser."""
    return {first or second for first, second in _DEFINED.findall(code)}


def _parse_tests(tests: str, *, where: str) -> ast.Module:
    try:
        return ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise DataError(
            f"the tests are not Python: {error}", where=f"{where}, line {line}" if line else where
        ) from None


def _note(outcome: sandbox.Outcome) -> str | None:
    return None if outcome.status == "passed" else f"{outcome.status}: {outcome.detail}"
