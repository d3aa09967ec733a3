"""Which of the names that tests read are the candidate's, and which are libraries whatever the candidate calls so."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

LIBRARIES = {"np": "numpy"}
"""What everybody calls otherwise."""
CANDIDATE = "solution"
"""The module that the code is for tests that import it."""


def names_of_candidate(tests: str, calls: Iterable[str], *, entry_point: str | None) -> list[str]:
    """Names that the tests read and that the code may define.

    A built-in is one of them only where it must be what is tested: it is the `entry_point`, or the tests read nothing
    but built-ins, and it is what an assertion calls first (`assert sum(10, 15) == 6` in MBPP).
    """
    trees = [ast.parse(text) for text in (tests, *calls)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    read -= {"__builtins__", "__name__"}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    known = set(dir(builtins))
    tested = {entry_point} if entry_point else set()
    if not tested and not read - bound - known:
        tested = {name for node in nodes if isinstance(node, ast.Assert) for name in _called_first(node.test)}
    # What the tests bind somewhere, they may read somewhere else before: then it is the code's.
    return sorted(name for name in read if name not in known or name in tested)


def names_imported(tests: str) -> list[str]:
    """What the tests import from the code's module: `from solution import f`, or `import solution` and `solution.f`."""
    nodes = list(ast.walk(ast.parse(tests)))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == CANDIDATE]
    whole = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names if alias.name == CANDIDATE]
    found = {alias.name for node in froms for alias in node.names}
    for called in {alias.asname or alias.name for alias in whole}:
        found |= {attribute for name, attribute in _dotted(nodes) if name == called}
    return sorted(found - {"*"})


def names_of_libraries(tests: str, calls: Iterable[str]) -> dict[str, ModuleType]:
    """Names that the tests use as a library is used, `name.attribute` and nothing else, and the libraries they mean."""
    nodes = [node for text in (tests, *calls) for node in ast.walk(ast.parse(text))]
    parts = _dotted(nodes)
    met = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    met.subtract(name for name, _ in parts)
    found: dict[str, ModuleType] = {}
    for name in {name for name, _ in parts if met[name] == 0}:
        module = own_module(LIBRARIES.get(name, name))
        # A queue of the code's, `queue.put(1)`, is not the library of that name.
        if module is not None and all(hasattr(module, attribute) for of, attribute in parts if of == name):
            found[name] = module
    return found


def _dotted(nodes: Iterable[ast.AST]) -> list[tuple[str, str]]:
    """`(a, b)` for every `a.b`."""
    parts = [node for node in nodes if isinstance(node, ast.Attribute)]
    return [(part.value.id, part.attr) for part in parts if isinstance(part.value, ast.Name)]


def _called_first(test: ast.expr) -> Iterator[str]:
    first = test.left if isinstance(test, ast.Compare) else test
    if isinstance(first, ast.UnaryOp):
        first = first.operand
    if isinstance(first, ast.Call) and isinstance(first.func, ast.Name):
        yield first.func.id


def own_module(name: Any) -> Any:
    """A module of the standard library, or one installed beside it, imported here; None for anything else."""
    if type(name) is not str or name.split(".")[0] not in {*sys.stdlib_module_names, "numpy"}:
        return None
    try:
        return importlib.import_module(name)
    except Exception:
        return None
