"""The tester's process: runs a row's tests on a candidate that lives in another process, and says what came of it.

Names that the tests use and the code defines are stand-ins here: a call goes to the candidate with its arguments as
plain data, comes back as plain data, and is compared here, where nothing is the candidate's. So it does not matter what
the candidate prints, patches, closes, or writes where; all it can do to the tests is give other values back, and what
its in-place functions may do too: change the arguments that it was given.

- An object of the candidate's own class stays there; here is a stand-in (`stand_ins.py`), which is equal to itself and
  to nothing else.
- A built-in name means the built-in (`len`, `set`, `abs`), whatever the code defines, unless it is what is tested; a
  library's name that is used as such means the library (`math.isclose`, `np.allclose`).
- A function of the tests' that is passed to the candidate is called back here.

A pass is said once, after the last test, by this process alone.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

from agent.tasks.box.candidate import CLASS, COROUTINE, ERROR_CLASS, FUNCTION, OBJECT, exception_line
from agent.tasks.box.names import (
    CANDIDATE,
    LIBRARIES,
    names_imported,
    names_of_candidate,
    names_of_libraries,
    own_module,
)
from agent.tasks.box.stand_ins import Remote, RemoteClass, RemoteFunction, coroutine
from agent.tasks.box.wire import SAFE_TYPES, Broken, CannotCross, Decoder, Encoder, Gone, Wire, replace_content

MOST_ITEMS = 100_000
"""Of an iterator that the tests pass to the candidate."""
MOST_OBJECTS = 100_000
"""Stand-ins for the candidate's objects, and functions that were passed to it."""


def run_job(report: Wire, candidate: Wire) -> None:
    """Read a job, test, and say `{"status", "detail"}`; where it counts, `{"share"}` after that."""
    job = report.receive()
    session = Session(candidate)
    status, detail = _outcome(job, session)
    report.send({"status": status, "detail": _clean(detail)})
    # The verdict first: what is counted after it may run into the limit.
    if job["count"] and status in ("failed", "error"):
        report.send({"share": _share_of_assertions(job, session)})


def _outcome(job: dict[str, Any], session: Session) -> tuple[str, str]:
    try:
        step, detail = session.run(job["code"], trim=job["trim"])
        if step != "ran":
            return step, detail
        namespace = session.namespace(job)
        for text in (job["tests"], *job["calls"]):
            exec(_compiled(text), namespace)
    except Lost:
        pass
    except BaseException as error:
        if session.lost is None:
            return "failed" if isinstance(error, AssertionError) else "error", _line(error, "tests")
    if session.lost is None:
        return "passed", ""
    return "ended", "" if isinstance(session.lost, Gone) else "it answered the tests with something that is no value"


def _compiled(tests: str | ast.Module) -> CodeType:
    """Without this file's own `from __future__`."""
    return compile(tests, "<tests>", "exec", dont_inherit=True)


def _line(error: BaseException, step: str) -> str:
    name, colon, message = exception_line(error).partition(":")
    return f"{name} in the {step}{colon}{message}"


def _clean(text: str) -> str:
    """Without control characters: it goes to a log, and then to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


# Counting -------------------------------------------------------------------------------------------------------


def _share_of_assertions(job: dict[str, Any], session: Session) -> float:
    """Share of the tests' assertions that hold each time they are met. Those that are never met do not hold."""
    counting = _Counting()
    tests = ast.fix_missing_locations(counting.visit(ast.parse(job["tests"])))
    if counting.count == 0:
        return 0.0
    held: set[int] = set()
    missed: set[int] = set()
    with contextlib.suppress(BaseException):
        step, _ = session.run(job["code"], trim=job["trim"])
        if step == "ran":
            namespace = session.namespace(job)
            namespace |= {_Counting.HELD: held.add, _Counting.MISSED: missed.add}
            for text in (tests, *job["calls"]):
                with contextlib.suppress(BaseException):
                    exec(_compiled(text), namespace)
    return len(held - missed) / counting.count


class _Counting(ast.NodeTransformer):
    """Has every assertion note whether it holds, and go on where it does not."""

    HELD, MISSED = "_assertion_held", "_assertion_missed"

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.Try:
        number = self.count
        self.count += 1
        missed = ast.ExceptHandler(None, None, [self._note(self.MISSED, number)])
        return ast.Try(body=[node], handlers=[missed], orelse=[self._note(self.HELD, number)], finalbody=[])

    def _note(self, name: str, number: int) -> ast.Expr:
        return ast.Expr(ast.Call(ast.Name(name, ast.Load()), [ast.Constant(number)], []))


# The candidate, seen from here ----------------------------------------------------------------------------------


class Lost(BaseException):
    """The candidate is gone, or speaks no sense any more. Not an Exception: tests must not get over it."""


class Session:
    """A conversation with the candidate: one request after the other, with calls back in between."""

    def __init__(self, wire: Wire):
        self.lost: Broken | None = None
        self._wire = wire
        self._asked = 0
        self._remotes: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        """Of exception classes made here, by their id."""
        self._functions: list[Callable[..., Any]] = []

    def run(self, code: str, *, trim: bool) -> tuple[str, str]:
        """`ran`, or `syntax` or `error` with the exception line."""
        answer, _ = self._ask("run", code, trim)
        match answer:
            case ["ran"]:
                return "ran", ""
            case ["syntax", str(line)]:
                name, colon, message = line.partition(":")
                return "syntax", f"{name} in the code{colon}{message}"
            case ["error", str(line)]:
                name, colon, message = line.partition(":")
                return "error", f"{name} in the code{colon}{message}"
        raise self._lost_by(Broken("not an answer to run"))

    def namespace(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the tests are executed in: the code's own names, where they use them, as stand-ins or data."""
        names = names_of_candidate(job["tests"], job["calls"], entry_point=job["entry_point"])
        imported = names_imported(job["tests"]) if CANDIDATE in job["tests"] else []
        answer, _ = self._ask("names", sorted({*names, *imported}))
        libraries: dict[str, ModuleType] = {}
        found: dict[str, Any] = {}
        with self._reading():
            if any(name in LIBRARIES or name in sys.stdlib_module_names for name, _, _ in answer):
                libraries = names_of_libraries(job["tests"], job["calls"])
            for name, kind, value in answer:
                if name not in names and name not in imported:
                    raise Broken("a name that was not asked for")
                if name in libraries and name != job["entry_point"]:
                    found[name] = libraries[name]
                elif kind == "value":
                    found[name] = self._decoder().decode(value)
                # A name of the library's means that module, whatever the code calls so.
                elif (module := own_module(name if name in sys.stdlib_module_names else value)) is not None:
                    found[name] = module
        sys.modules[CANDIDATE] = ModuleType(CANDIDATE)
        sys.modules[CANDIDATE].__dict__.update(found)
        # As in a script that has the tests at its end.
        namespace = {name: value for name, value in found.items() if name in names}
        namespace |= {"__name__": "__main__", "__builtins__": builtins}
        return namespace

    def operate(self, operation: str, number: int, *operands: Any) -> Any:
        with _no_end(expected=operation == "next"):
            answer, _ = self._ask(operation, number, *Encoder(self._written).items(operands, 0))
        with self._reading():
            return self._decoder().decode(answer)

    def call(self, number: int, positional: tuple[Any, ...], named: dict[str, Any], *, may_end: bool = False) -> Any:
        """`may_end`: it may raise StopIteration."""
        encoder = Encoder(self._written, numbered=True)
        arguments = encoder.items(positional, 0)
        keywords = [[name, encoder.encode(value)] for name, value in named.items()]
        with _no_end(expected=may_end):
            answer, changes = self._ask("call", number, arguments, keywords)
            with self._reading():
                for place, content in changes:
                    _apply(encoder.containers, place, self._decoder(encoder.containers).decode(content))
                if not (isinstance(answer, list) and answer and answer[0] == "!"):
                    return self._decoder(encoder.containers).decode(answer)
                error = self._error(answer[1])
            raise error

    def nearest_built_in(self, kind: type | None) -> type | None:
        return next((one for one in kind.__mro__ if SAFE_TYPES.get(one.__name__) is one), None) if kind else None

    def _ask(self, operation: str, *parts: Any) -> tuple[Any, Any]:
        """Value and changes of the answer; raises what the candidate has raised, and Lost for good after nonsense."""
        if self.lost is not None:
            raise Lost
        self._asked += 1
        number = self._asked
        error = None
        with self._reading():
            self._wire.send([operation, number, *parts])
            while True:
                match self._wire.receive():
                    case ["=", int(answered), value, list(changes)] if answered == number:
                        return value, changes
                    case ["!", int(answered), raised] if answered == number:
                        error = self._error(raised)
                        break
                    case ["k", int(function), list(positional), list(named)]:
                        self._call_back(function, positional, named)
                    case _:
                        raise Broken("an answer to nothing")
        raise error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Broken as error:
            raise self._lost_by(error) from None
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise self._lost_by(Broken(str(error))) from None

    def _lost_by(self, error: Broken) -> Lost:
        self.lost = error
        return Lost()

    def _decoder(self, known: list[Any] | None = None) -> Decoder:
        return Decoder(self._resolve, known=known)

    # What has no form as plain data --------------------------------------------------------------------------

    def _resolve(self, tag: str, parts: list[Any]) -> Any:
        match tag, parts:
            case "h", [int(number), str(kind), str(name), list(line)]:
                if number not in self._remotes:
                    if len(self._remotes) >= MOST_OBJECTS:
                        raise Broken("too many objects")
                    self._remotes[number] = self._stand_in(number, kind, name, line)
                return self._remotes[number]
        raise Broken("a value of no known form")

    def _stand_in(self, number: int, kind: str, name: str, line: list[Any]) -> Any:
        if kind == ERROR_CLASS:
            # `except` takes nothing but a class.
            made = type(name if name.isidentifier() else "Error", (_nearest_error(line),), {})
            self._numbers[id(made)] = number
            return made
        makers = {FUNCTION: RemoteFunction, CLASS: RemoteClass, OBJECT: Remote, COROUTINE: coroutine}
        return makers[kind](self, number)

    def _written(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["h", value._raft_number]
        if isinstance(value, type):
            if id(value) in self._numbers:
                return ["h", self._numbers[id(value)]]
            if SAFE_TYPES.get(value.__name__) is value:
                return ["n", value.__name__]
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(module, str) and isinstance(name, str) and own_module(module) is not None:
            found: Any = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is value:
                return ["g", module, name]
        if callable(value):
            if len(self._functions) >= MOST_OBJECTS:
                raise CannotCross("too many functions")
            self._functions.append(value)
            return ["k", len(self._functions) - 1]
        if hasattr(value, "__next__"):
            items = [item for item, _ in zip(value, range(MOST_ITEMS + 1), strict=False)]
            if len(items) <= MOST_ITEMS:
                return ["I", Encoder(self._written).items(items, 1)]
        raise CannotCross(
            f"a {type(value).__name__} cannot be passed to the code: only plain data, functions and its own"
        )

    def _call_back(self, number: int, positional: list[Any], named: list[Any]) -> None:
        decoder = self._decoder()
        if not 0 <= number < len(self._functions):
            raise Broken("a function that was not passed")
        arguments = decoder.items(positional, 0)
        keywords = {name: decoder.decode(node) for name, node in named if type(name) is str}
        try:
            result = self._functions[number](*arguments, **keywords)
            answer = ["k=", Encoder(self._written).encode(result)]
        except Exception as error:
            kind = self.nearest_built_in(type(error)) or Exception
            answer = ["k!", kind.__name__, [str(error)]]
        self._wire.send(answer)

    def _error(self, raised: Any) -> BaseException:
        line, arguments, text, own = raised
        known = [self._remotes[number] for number in own if number in self._remotes]
        kind = next((one for one in known if isinstance(one, type)), None) or _nearest_error(line)
        values = self._decoder().items(arguments, 0)
        for attempt in (values, [str(text)]):
            with contextlib.suppress(Exception):
                made = kind(*attempt)
                if isinstance(made, BaseException):
                    return made
        return RuntimeError(str(text))


@contextlib.contextmanager
def _no_end(*, expected: bool) -> Iterator[None]:
    """Has StopIteration end nothing of the tests' that iterates: `all(map(f, cases))` would be true by it (PEP 479)."""
    try:
        yield
    except StopIteration as error:
        if expected:
            raise
        raise RuntimeError(f"the code raised {exception_line(error)}") from None


def _apply(containers: list[Any], number: Any, value: Any) -> None:
    if type(number) is not int or not 1 <= number <= len(containers):
        raise Broken("a change of nothing")
    container = containers[number - 1]
    if type(value) not in type(container).__mro__ or type(value) is object:
        raise Broken("a change to another type")
    replace_content(container, value)


def _nearest_error(line: list[Any]) -> type[BaseException]:
    """The first class of the line that is known here, of the built-in ones or of a module that is loaded."""
    for entry in line:
        module, _, name = str(entry).partition(":")
        if module.split(".")[0] in sys.stdlib_module_names:
            found = getattr(sys.modules.get(module), name, None)
            if isinstance(found, type) and issubclass(found, BaseException):
                return found
    return RuntimeError
