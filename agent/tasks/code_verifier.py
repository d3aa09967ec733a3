"""`python_tests`: take the code out of a response and run the row's tests on it in the sandbox.

Two forms of rows. Where the question describes a function in words (MBPP), the code is the last complete ``` block
that defines what is tested, else the last block, else the whole response. Where the question, or the row's `prompt`,
is itself the beginning of the function `entry_point` (HumanEval: signature and docstring), a response may also be the
body that continues it, bare up to the first line at the left margin, or in a block; and a whole function finds the
imports and functions before its beginning, and so do the tests, as the row has them.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import DataError
from agent.recipe import schema
from agent.tasks import sandbox
from agent.tasks.example import Example
from agent.tasks.layers import Layers
from agent.tasks.verdicts import Closing, OnEach, Pair, Verdict, collect, spread

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_OPEN_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n((?:(?!```).)*)\Z", re.DOTALL | re.MULTILINE)
_FIRST_CODE_LINE = re.compile(r"^(?:def |class |import |from \w|@\w|async def )", re.MULTILINE)
BODY_INDENT = "    "
_DEFINED = re.compile(r"^(?:async\s+)?(?:def|class)\s+(\w+)|^(\w+)\s*=", re.MULTILINE)


class CodeVerifier(Closing):
    """Runs the tests of each response; several at a time, the same code on the same tests once a batch.

    Given a response and a row with `tests` (and `entry_point` where these are HumanEval's `check(candidate)`).
    Returns score 1 where all tests pass, else 0; `formatted` where the code compiles; `near` where other code in the
    response passes; with `count_assertions` the `share` of assertions that hold where not all do. Code over the time
    limit is wrong.
    """

    def __init__(self, config: schema.Verifier, *, workers: int | None = None, count_assertions: bool = False):
        self._limits = sandbox.Limits(wall_seconds=config.timeout_seconds)
        self._count = count_assertions
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._sandbox = sandbox.Sandbox(slots=self._workers)

    def layers(self) -> Layers:
        return self._sandbox.layers()

    def kept_in_by(self) -> str | None:
        return str(self.layers())

    def verify(self, response: str, example: Example) -> Verdict:
        tests = example.tests or ""
        entry_point = example.row.get("entry_point")
        calls = calls_of(tests, entry_point=entry_point, where=example.id)
        begun = begun_function(example)
        used = names_used(tests) | ({begun.name} if begun else set())
        code = begun.completed(response) if begun else extract_code(response, used)
        given = begun.given_to(tests) if begun else ""
        tested = _Tests(given + tests, calls, entry_point if isinstance(entry_point, str) else None)
        outcome = self._run(code, tested, count=self._count)
        passed = outcome.status == "passed"
        others = [(begun.before if begun else "") + text for text in code_elsewhere(response, used)]
        near = not passed and self._one_passes(others, code, tested)
        formatted = outcome.status != "syntax"
        return Verdict(float(passed), passed, formatted, near, code or None, note=_note(outcome), share=outcome.share)

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        distinct = {(response, example.id): (response, example) for response, example in pairs}
        found = spread(lambda pair: self.verify(*pair), distinct.values(), workers=self._workers, name="sandbox")
        with contextlib.closing(found):
            verdicts = collect(found, on_each)
        by_key = dict(zip(distinct, verdicts, strict=True))
        return [by_key[response, example.id] for response, example in pairs]

    def close(self) -> None:
        self._sandbox.close()

    def _run(self, code: str, tests: _Tests, *, trim: bool = False, count: bool = False) -> sandbox.Outcome:
        if not code.strip():
            return sandbox.Outcome("syntax", "no code")
        return self._sandbox.run(
            code,
            tests.text,
            calls=tests.calls,
            entry_point=tests.entry_point,
            trim=trim,
            count=count,
            limits=self._limits,
        )

    def _one_passes(self, texts: Sequence[str], tried: str, tests: _Tests) -> bool:
        """Whether code elsewhere in the response is right: in another block, in one that was cut, or amid prose."""
        candidates = [text for text in texts if text.strip() != tried.strip()]
        return any(self._run(code, tests, trim=True).status == "passed" for code in candidates[:2])


@dataclass(frozen=True)
class _Tests:
    text: str
    calls: Sequence[str]
    entry_point: str | None


@dataclass(frozen=True)
class BegunFunction:
    """A question that is the beginning of a function: its signature and docstring, and what stands before them."""

    name: str
    text: str
    before: str
    """Imports and other functions before the signature."""

    def given_to(self, tests: str) -> str:
        """What stands before the signature, where the tests use it: the row's, whatever a response makes of its names.

        HumanEval/32 tests a root by the question's own `poly`; 38 and 50 decode what the question's function encodes.
        """
        if not names_used(tests) & _defined(self.before):
            return ""
        try:
            ast.parse(self.before + tests)
        except (SyntaxError, ValueError):
            return ""
        return self.before

    def completed(self, response: str) -> str:
        """The whole code that the response makes of it; empty where it adds nothing."""
        blocks = _blocks(response)
        whole = next((block for block in reversed(blocks) if self.name in _defined(block)), None)
        if whole is not None:
            return self.before + whole
        if blocks and not _continues(response):
            return f"{self.text.rstrip()}\n{textwrap.indent(blocks[-1], BODY_INDENT)}"
        if self.name in _defined(response):
            return self.before + response
        body = _up_to_the_margin(response)
        # `agent.tasks.prompts` ends a request with a new line where the question does not end in one of these.
        between = "" if self.text.endswith(("\n", " ", "\t", ":", "=")) else "\n"
        return self.text + between + body if body.strip() else ""


def begun_function(example: Example) -> BegunFunction | None:
    """The function that the row's question, or its `prompt`, begins; None where they only speak of it."""
    name = example.row.get("entry_point")
    if not isinstance(name, str) or not name.isidentifier():
        return None
    for text in (example.question, example.row.get("prompt")):
        found = re.search(rf"^(?:async[ \t]+)?def[ \t]+{name}[ \t]*\(", str(text), re.MULTILINE)
        if found:
            return BegunFunction(name, str(text), str(text)[: found.start()])
    return None


def _continues(response: str) -> bool:
    """Whether a response begins with an indented line of code, as the body of a function does."""
    line = next((line for line in response.splitlines() if line.strip()), "")
    return line[:1].isspace() and not line.lstrip().startswith("```")


def _up_to_the_margin(response: str) -> str:
    """The lines before the first one, after the first, that stands at the left margin: there a function has ended."""
    lines = response.splitlines(keepends=True)
    at_margin = (number for number, line in enumerate(lines) if number and line.strip() and not line[0].isspace())
    return "".join(lines[: next(at_margin, len(lines))])


def extract_code(response: str, used: set[str]) -> str:
    """The last complete ``` block that defines one of the names `used`, else the last one, else the whole response."""
    blocks = _blocks(response)
    if not blocks:
        return response
    return next((block for block in reversed(blocks) if used & _defined(block)), blocks[-1])


def code_elsewhere(response: str, used: set[str]) -> list[str]:
    """Other texts in the response that define one of the names `used`: blocks, one without its end, bare code."""
    texts = [*reversed(_blocks(response)), *map(textwrap.dedent, _OPEN_BLOCK.findall(response))]
    first_line = _FIRST_CODE_LINE.search(response)
    if first_line:
        texts.append(response[first_line.start() :])
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
