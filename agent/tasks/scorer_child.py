"""The child side of `agent.tasks.scorer`: answers one JSON line with one JSON line, until its input ends.

Started by path, so that it needs nothing of this package. The first line says what to score with: a function in a
user's file, `math-verify`, a regular expression, or the rule of a reasoning_gym data set. Every request carries a
number, which its answer repeats, and its own time limit, after which the alarm ends this process even where the parent
is gone and where the code is deaf to signals' handlers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any, TextIO

Score = Callable[[dict[str, Any]], dict[str, Any]]
Isolated = Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]

# The parent's own limit comes first; this one is for a parent that no longer exists.
ALARM_GRACE_SECONDS = 2.0
MEMORY_BYTES = 4 << 30


def main(isolated: Isolated | None = None) -> None:
    """Serve until the end of input; with `isolated`, every request in a process of its own, made by that."""
    requests, replies = _take_pipes()
    setup = json.loads(requests.readline())
    _alarm_after(setup["timeout"])
    try:
        score = _scorer_of(setup)
    except BaseException as error:
        _reply(replies, setup, _failure(error))
        return
    _reply(replies, setup, {"ready": True, "files": _files_used()})
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in requests:
        request = json.loads(line)
        if "files" in request:
            _reply(replies, request, {"files": _files_used()})
            continue
        _alarm_after(request["timeout"])
        reply = isolated(lambda: _answered(score, request)) if isolated else _answered(score, request)  # noqa: B023
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, request, reply)


def _answered(score: Score, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return score(request)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _failure(error)


def _take_pipes() -> tuple[TextIO, TextIO]:
    """Requests and replies, out of the reach of `input()` and `print()`: what is printed goes to the log."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, replies


def _alarm_after(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_GRACE_SECONDS)


def _reply(replies: TextIO, request: dict[str, Any], reply: dict[str, Any]) -> None:
    replies.write(json.dumps({**reply, "number": request["number"]}) + "\n")
    replies.flush()


def _failure(error: BaseException) -> dict[str, Any]:
    """The exception line, and the innermost line of code that is not this program's."""
    exception = traceback.format_exception_only(error)[-1].strip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    at = f"{own[-1].filename}:{own[-1].lineno}" if own else None
    if isinstance(error, SyntaxError) and error.filename:
        at = f"{error.filename}:{error.lineno}"
    return {"error": exception, "at": at}


def _scorer_of(setup: dict[str, Any]) -> Score:
    match setup["kind"]:
        case "python":
            return _function_scorer(Path(setup["path"]), setup["function"], beside=setup.get("beside"))
        case "regex":
            return _pattern_scorer(setup["pattern"])
        case "math":
            _limit_memory()
            return _math_scorer()
        case "reasoning_gym":
            _limit_memory()
            return _gym_scorer(setup["dataset"], setup["parameters"])
    raise ValueError(setup["kind"])


def _limit_memory() -> None:
    """Symbolic arithmetic on what a model wrote can ask for any amount: it gets a MemoryError instead."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _function_scorer(path: Path, name: str, *, beside: str | None) -> Score:
    """`beside`: the folder whose modules the file may import, where it is not its own."""
    folder = beside or str(path.parent)
    sys.path.insert(0, folder)
    _watch(folder)
    spec = importlib.util.spec_from_loader(path.stem, _Loader(path.stem, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, name)

    def score(request: dict[str, Any]) -> dict[str, Any]:
        value = function(request["response"], request["row"])
        if hasattr(value, "item"):
            # A numpy or torch scalar.
            value = value.item()
        if value is None:
            return {"value": None}
        if isinstance(value, bool | int | float):
            return {"value": float(value)}
        return {"returned": repr(value)[:200]}

    return score


# What the user's function is made of ------------------------------------------------------------------------

_loaded: dict[str, str] = {}
"""By path, the digest of the very bytes that were compiled or are being read."""
_read: set[str] = set()
_written: set[str] = set()


class _Loader(SourceFileLoader):
    """Compiles the source and tells which it was. Bytecode that lies beside it is not looked at: it may be
    another's."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        data = self.get_data(path)
        _loaded[os.path.realpath(path)] = _digest(data)
        return self.source_to_code(data, path)


def _watch(folder: str) -> None:
    """Modules below `folder` come by our loader; of data files the names are remembered."""
    root = os.path.realpath(folder)
    make = FileFinder.path_hook((_Loader, [".py"]))

    def finder(path: str) -> Any:
        real = os.path.realpath(path)
        if real != root and not real.startswith(root + os.sep):
            raise ImportError
        return make(path)

    def opened(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(root + os.sep) or path in _loaded:
            return
        flags = arguments[2] or 0
        (_written if flags & (os.O_WRONLY | os.O_RDWR) else _read).add(path)

    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()
    sys.addaudithook(opened)


def _files_used() -> dict[str, str]:
    """By path: modules as they were compiled, data files as they are now, and modules of the import path that are
    neither Python's own, nor ours, nor an installed package's."""
    found = dict(_loaded)
    for path in sorted(_read - _written - found.keys()):
        if Path(path).is_file():
            found[path] = _digest(Path(path).read_bytes())
    for module in list(sys.modules.values()):
        named = getattr(module, "__file__", None)
        if named and named.endswith(".py") and named != __file__ and not _installed(named):
            real = os.path.realpath(named)
            if real not in found and Path(real).is_file():
                found[real] = _digest(Path(real).read_bytes())
    return found


def _installed(path: str) -> bool:
    import sysconfig

    known = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    known.add(str(Path(__file__).parents[1]))  # behind walls they are loaded and cannot be read again
    return any(path.startswith(folder + os.sep) for folder in known if folder)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _pattern_scorer(text: str) -> Score:
    pattern = re.compile(text)

    def score(request: dict[str, Any]) -> dict[str, Any]:
        found = [match[1] for match in pattern.finditer(request["response"]) if match[1] is not None]
        return {"answer": found[-1] if found else None}

    return score


def _math_scorer() -> Score:
    import math_verify

    # It warns once that its own time limit is off; ours covers it.
    logging.disable(logging.WARNING)

    def score(request: dict[str, Any]) -> dict[str, Any]:
        right = math_verify.parse(f"${request['right']}$", parsing_timeout=None)
        right = right or math_verify.parse(request["right"], parsing_timeout=None)
        found = math_verify.parse(request["response"], parsing_timeout=None)
        passed = bool(found) and bool(right) and math_verify.verify(right, found, timeout_seconds=None)
        return {"value": float(passed), "answer": str(found[-1]) if found else None, "understood": bool(right)}

    return score


def _gym_scorer(name: str, parameters: dict[str, Any]) -> Score:
    import reasoning_gym

    data_set = reasoning_gym.create_dataset(name, **parameters)

    def score(request: dict[str, Any]) -> dict[str, Any]:
        entry = request["entry"] if "entry" in request else data_set[request["index"]]
        return {"value": float(data_set.score_answer(request["response"], entry))}

    return score


if __name__ == "__main__":
    main()
