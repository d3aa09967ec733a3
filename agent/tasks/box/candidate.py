"""The candidate's process: runs the code, then answers the tester's requests until it is killed.

Everything here is in the hands of the code that it runs, so nothing here is relied on: the tester takes what comes
from this process as it takes a stranger's words. It never learns what is tested or what is expected, only which names
are used and what its functions are called with.

A request is `[operation, number, ...]`. The answer is `["=", number, value, changes]`, where `changes` says what
arguments hold now that have been changed in place, or `["!", number, error]`. In between the candidate may ask
`["k", function, positional, named]`, to call a function that it was given.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import operator
import sys
import types
from typing import Any

from agent.tasks.box.wire import SAFE_TYPES, CannotCross, Decoder, Encoder, Gone, Wire

FUNCTION, CLASS, ERROR_CLASS, OBJECT, COROUTINE = "function", "class", "error", "object", "coroutine"


def serve(wire: Wire) -> None:
    """Answer requests until the tester is gone."""
    candidate = Candidate(wire)
    while True:
        operation, number, *parts = wire.receive()
        try:
            value, changes = candidate.answer(operation, *parts)
            answer = ["=", number, value, changes]
        except Gone:
            raise
        except BaseException as error:
            answer = ["!", number, candidate.written_error(error)]
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        try:
            wire.send(answer)
        except CannotCross as error:
            wire.send(["!", number, candidate.written_error(OverflowError(f"the result is too large: {error}"))])


class Candidate:
    def __init__(self, wire: Wire):
        self._wire = wire
        self._module = types.ModuleType("solution")
        self._objects: list[Any] = []
        self._number_of: dict[int, int] = {}

    def answer(self, operation: str, *parts: Any) -> tuple[Any, list[Any]]:
        if operation == "run":
            return self._run(*parts), []
        if operation == "names":
            return self._names(*parts), []
        if operation == "call":
            return self._call(*parts)
        return self._operate(operation, *parts), []

    def _run(self, text: str, trim: bool) -> list[str]:
        """Execute the code in a module of its own. `["ran"]`, or what came in between and its line."""
        try:
            code = compiled(text, trim=trim)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return ["syntax", exception_line(error)]
        self._module = types.ModuleType("solution")
        sys.modules["solution"] = self._module
        try:
            exec(code, self._module.__dict__)
        except BaseException as error:
            return ["error", exception_line(error)]
        return ["ran"]

    def _names(self, names: list[str]) -> list[Any]:
        """`[name, value]` for those that the code has defined, `[name, "module", its name]` for what it imported."""
        found: list[Any] = []
        for name in names:
            if name not in self._module.__dict__:
                continue
            value = self._module.__dict__[name]
            if type(value) is types.ModuleType:
                found.append([name, "module", value.__name__])
                continue
            with contextlib.suppress(CannotCross):
                found.append([name, "value", Encoder(self._written_object).encode(value)])
        return found

    def _call(self, number: int, positional: list[Any], named: list[Any]) -> tuple[Any, list[Any]]:
        decoder = Decoder(self._read_object)
        arguments = decoder.items(positional, 0)
        keywords = {name: decoder.decode(node) for name, node in named}
        before = self._contents(decoder)
        try:
            result = self._objects[number](*arguments, **keywords)
        except BaseException as error:
            return ["!", self.written_error(error)], self._changes(decoder, before)
        encoder = Encoder(self._written_object, known=decoder.containers)
        return encoder.encode(result), self._changes(decoder, before)

    def _contents(self, decoder: Decoder) -> list[Any]:
        encoder = Encoder(self._written_object, known=decoder.containers)
        return [encoder.content(container) for container in decoder.containers]

    def _changes(self, decoder: Decoder, before: list[Any]) -> list[Any]:
        now = self._contents(decoder)
        return [[n, new] for n, (old, new) in enumerate(zip(before, now, strict=True), start=1) if old != new]

    def _operate(self, operation: str, number: int, *nodes: Any) -> Any:
        """What the tester does with an object of ours."""
        decoder = Decoder(self._read_object)
        target, operands = self._objects[number], [decoder.decode(node) for node in nodes]
        act: Any = {
            "get": getattr,
            "set": setattr,
            "item": operator.getitem,
            "put": operator.setitem,
            "delete": operator.delitem,
            "length": len,
            "iterate": iter,
            "next": next,
            "truth": bool,
            "text": str,
            "shown": repr,
            "instance": lambda kind, value: isinstance(value, kind),
            "remove": delattr,
            "whole": int,
            "real": float,
            "reversed": reversed,
            "format": format,
            "enter": lambda manager: type(manager).__enter__(manager),
            "exit": lambda manager, kind: type(manager).__exit__(manager, kind, kind and kind(), None),
            "await": _awaited,
        }.get(operation) or getattr(operator, f"__{operation}__")
        return Encoder(self._written_object).encode(act(target, *operands))

    # What has no form as plain data --------------------------------------------------------------------------

    def _written_object(self, value: Any) -> Any:
        if isinstance(value, type) and SAFE_TYPES.get(value.__name__) is value:
            return ["n", value.__name__]
        if isinstance(value, type):
            kind = ERROR_CLASS if issubclass(value, BaseException) else CLASS
            return ["h", self._number(value), kind, value.__name__, _line_of_errors(value)]
        kind = FUNCTION if callable(value) else COROUTINE if type(value) is types.CoroutineType else OBJECT
        return ["h", self._number(value), kind, type(value).__name__, []]

    def _number(self, value: Any) -> int:
        if id(value) not in self._number_of:
            # Kept for good, so that the number of one is never that of another.
            self._number_of[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._number_of[id(value)]

    def _read_object(self, tag: str, parts: list[Any]) -> Any:
        if tag == "h":
            return self._objects[parts[0]]
        if tag == "k":
            return self._callback(parts[0])
        if tag == "I":
            return iter(Decoder(self._read_object).items(parts[0], 0))
        if tag == "g":
            return operator.attrgetter(parts[1])(importlib.import_module(parts[0]))
        raise ValueError(tag)

    def _callback(self, number: int) -> Any:
        def call(*positional: Any, **named: Any) -> Any:
            encoder = Encoder(self._written_object)
            keywords = [[name, encoder.encode(value)] for name, value in named.items()]
            self._wire.send(["k", number, encoder.items(positional, 0), keywords])
            while True:
                head, *rest = self._wire.receive()
                if head == "k=":
                    return Decoder(self._read_object).decode(rest[0])
                if head == "k!":
                    raise getattr(builtins, rest[0], RuntimeError)(*Decoder(self._read_object).items(rest[1], 0))
                # The function has called one of ours.
                self._answer_within(head, *rest)

        return call

    def _answer_within(self, operation: str, number: int, *parts: Any) -> None:
        try:
            value, changes = self.answer(operation, *parts)
            self._wire.send(["=", number, value, changes])
        except BaseException as error:
            self._wire.send(["!", number, self.written_error(error)])

    def written_error(self, error: BaseException) -> list[Any]:
        """`[line of its classes, arguments, text, numbers of the code's own classes]`."""
        try:
            own = [self._number(kind) for kind in type.mro(type(error)) if kind.__module__ == "solution"]
            text = str(error)[:500]
        except BaseException:
            own, text = [], ""
        try:
            arguments = [Encoder(self._written_object).encode(value) for value in error.args]
        except BaseException:
            arguments = [text]
        return [_line_of_errors(type(error)), arguments, text, own]


def _awaited(coroutine: types.CoroutineType[Any, Any, Any]) -> Any:
    # Only here, because most code does without.
    import asyncio

    return asyncio.run(coroutine)


def _line_of_errors(kind: type) -> list[str]:
    """The exception classes that it derives from and that others know: `builtins:ValueError`."""
    known = [base for base in type.mro(kind) if issubclass(base, BaseException) and base.__module__ != "solution"]
    return [f"{base.__module__}:{base.__qualname__}" for base in known]


def compiled(text: str, *, trim: bool) -> types.CodeType:
    """Code object of `text`; with `trim`, of the longest run of whole lines from its start that compiles."""
    lines = text.splitlines()
    for count in range(len(lines), 0, -1) if trim else ():
        with contextlib.suppress(SyntaxError):
            return compile("\n".join(lines[:count]), "<solution>", "exec", dont_inherit=True)
    # Without this file's own `from __future__`: annotations of names that are nowhere are an error.
    return compile(text, "<solution>", "exec", dont_inherit=True)


def exception_line(error: BaseException) -> str:
    """`ValueError: message`; a message that cannot be made is left out."""
    try:
        message = str(error)[:200]
    except BaseException:
        message = ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name
