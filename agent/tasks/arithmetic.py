"""Built-in data sets: two-digit sums for the character model, and arithmetic for language models.

Answers are exact integers. A data set is all of its questions where there are few, else a seeded sample of distinct
ones; either way the same parameters give the same rows.
"""

from __future__ import annotations

import itertools
import operator
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.errors import RecipeError
from agent.tasks.example import Example
from agent.tasks.nearest import nearest

Operation = Literal["add", "sub", "mul"]


@dataclass(frozen=True)
class _Operator:
    sign: str
    word: str
    apply: Callable[[int, int], int]


_OPERATORS: dict[Operation, _Operator] = {
    "add": _Operator("+", "plus", operator.add),
    "sub": _Operator("-", "minus", operator.sub),
    "mul": _Operator("*", "times", operator.mul),
}
LEVELS = 3
ENUMERATE_AT_MOST = 200_000
DEFAULT_COUNT = 20_000
"""Questions of a space that is too large to enumerate."""


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    low: int = 0
    """Smallest operand."""
    high: int
    """Largest operand."""

    @model_validator(mode="after")
    def _a_range(self) -> Parameters:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")
        return self


P = TypeVar("P", bound=Parameters)


class AdditionParameters(Parameters):
    """`builtin:addition`: every ordered pair of low..high."""

    low: int = Field(10, ge=0, le=9999)
    high: int = Field(99, ge=0, le=9999)


class ArithmeticParameters(Parameters):
    """`builtin:arithmetic`."""

    operations: list[Operation] = Field(["add", "sub", "mul"], min_length=1)
    """Operations that may occur; with more than two terms each place draws its own."""
    low: int = Field(2, ge=0, le=10**9)
    high: int = Field(12, ge=0, le=10**9)
    terms: int = Field(2, ge=2, le=8)
    """Operands of one question."""
    count: int | None = Field(None, ge=1, le=1_000_000)
    """Questions; null takes all, or 20,000 of a space too large to list."""
    seed: int = Field(0, ge=0)
    """Of the sample, where `count` takes fewer than there are."""
    style: Literal["signs", "words"] = "signs"
    """`7 * 8` or `7 times 8`."""
    question: str = "What is {expression}?"
    """Wording; `{expression}` is replaced."""

    @model_validator(mode="after")
    def _wording_asks(self) -> ArithmeticParameters:
        if "{expression}" not in self.question:
            raise ValueError("question must contain {expression}")
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations names one twice: {self.operations}")
        return self


def addition_rows(parameters: dict[str, Any]) -> list[Example]:
    """`12+34=` with answer `46` for every ordered pair; the tag counts the carries: `carry0` to `carry2`."""
    settings = _validated(AdditionParameters, parameters)
    numbers = range(settings.low, settings.high + 1)
    if len(numbers) ** 2 > ENUMERATE_AT_MOST:
        raise RecipeError(
            f"builtin:addition lists every pair, and {len(numbers) ** 2:,} are more than {ENUMERATE_AT_MOST:,}",
            key="task.parameters.high",
            hint="Bring low and high closer together, or use builtin:arithmetic, which samples.",
        )
    return [
        Example(id=f"{a}+{b}", question=f"{a}+{b}=", answer=str(a + b), tag=f"carry{_carries(a, b)}")
        for a, b in itertools.product(numbers, repeat=2)
    ]


def _carries(a: int, b: int) -> int:
    """How often a digit is carried when adding by hand: half of what the digit sum loses, over 9."""
    return (_digit_sum(a) + _digit_sum(b) - _digit_sum(a + b)) // 9


def _digit_sum(number: int) -> int:
    return sum(map(int, str(number)))


def arithmetic_rows(parameters: dict[str, Any]) -> list[Example]:
    """`What is 7 * 8?` with answer `56`. The tag is `operation/level`: `mul/1` to `mul/3` by the largest operand;
    questions that mix operations are `mixed/...`. `task.mix` may weigh `mul` or `mul/3`.
    """
    settings = _validated(ArithmeticParameters, parameters)
    places = settings.terms - 1
    space = (settings.high - settings.low + 1) ** settings.terms * len(settings.operations) ** places
    count = min(settings.count or (space if space <= ENUMERATE_AT_MOST else DEFAULT_COUNT), space)
    return [_row(settings, *_expression_at(settings, number)) for number in _chosen(space, count, settings.seed)]


def _chosen(space: int, count: int, seed: int) -> Iterable[int]:
    """`count` distinct numbers below `space`."""
    if count == space:
        return range(space)
    source = random.Random(seed)
    if space <= sys.maxsize:
        return source.sample(range(space), count)
    # Too many for `range`, and for two draws ever to agree often.
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[source.randrange(space)] = None
    return chosen


def _expression_at(settings: ArithmeticParameters, number: int) -> tuple[tuple[int, ...], tuple[Operation, ...]]:
    """Operands and operations of the question with this number: its digits, in a mixed base."""
    operands, operations = [], []
    for _ in range(settings.terms):
        number, digit = divmod(number, settings.high - settings.low + 1)
        operands.append(settings.low + digit)
    for _ in range(settings.terms - 1):
        number, digit = divmod(number, len(settings.operations))
        operations.append(settings.operations[digit])
    return tuple(operands), tuple(operations)


def _row(settings: ArithmeticParameters, operands: tuple[int, ...], operations: tuple[Operation, ...]) -> Example:
    signs = _expression(operands, [_OPERATORS[name].sign for name in operations])
    words = _expression(operands, [_OPERATORS[name].word for name in operations])
    kind = operations[0] if len(set(operations)) == 1 else "mixed"
    return Example(
        id=signs.replace(" ", ""),
        question=settings.question.replace("{expression}", words if settings.style == "words" else signs),
        answer=str(evaluate(operands, operations)),
        tag=f"{kind}/{_level(settings, max(operands))}",
    )


def _expression(operands: tuple[int, ...], between: list[str]) -> str:
    rest = zip(between, operands[1:], strict=True)
    return " ".join([str(operands[0]), *(f"{sign} {number}" for sign, number in rest)])


def evaluate(operands: tuple[int, ...], operations: tuple[Operation, ...]) -> int:
    """Value with the usual precedence: products first, then sums and differences from left to right."""
    summands, pending = [operands[0]], []
    for name, number in zip(operations, operands[1:], strict=True):
        if name == "mul":
            summands[-1] = _OPERATORS[name].apply(summands[-1], number)
        else:
            pending.append(name)
            summands.append(number)
    value = summands[0]
    for name, number in zip(pending, summands[1:], strict=True):
        value = _OPERATORS[name].apply(value, number)
    return value


def _level(settings: ArithmeticParameters, largest: int) -> int:
    """1 to 3: the third of low..high that the largest operand lies in."""
    return 1 + LEVELS * (largest - settings.low) // (settings.high - settings.low + 1)


def _validated(kind: type[P], parameters: dict[str, Any]) -> P:
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("task", "parameters", *first["loc"])))
        if first["type"] == "extra_forbidden":
            name = nearest(str(first["loc"][-1]), kind.model_fields)
            raise RecipeError(
                f"{path} is not a parameter; the nearest is {name!r}", key=path, problem="unknown", suggestion=name
            ) from None
        raise RecipeError(f"{path}: {first['msg']}", key=path) from None
