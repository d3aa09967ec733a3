"""Mend a slip in a user's Python file where only one mending is possible, from the exception it raised.

A name or attribute that is one letter off the only thing it can mean, a module of the standard library that was not
imported, a missing colon, mixed tabs. What comes out compiles and differs in that place alone. Everything else is a
person's to mend: no guess is made about what code should do.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SAFE_MODULES = frozenset(
    {
        "ast", "bisect", "collections", "copy", "csv", "datetime", "decimal", "difflib", "enum", "fractions",
        "functools", "hashlib", "heapq", "html", "io", "itertools", "json", "keyword", "math", "numbers",
        "operator", "os", "random", "re", "shlex", "statistics", "string", "struct", "sys", "textwrap",
        "time", "tokenize", "traceback", "types", "typing", "unicodedata", "urllib", "warnings",
    }
)  # fmt: skip
"""Of the standard library: importing them to look inside does nothing."""
BUILT_IN = {kind.__name__: kind for kind in (str, list, dict, int, float, set, tuple, bytes, bool)}


@dataclass(frozen=True)
class Mended:
    text: str
    why: str


def mend(text: str, *, exception: str, message: str, line: int) -> Mended | None:
    """The file with its slip mended. `line`, from 1, is where the exception came from; None where it is not certain."""
    found = _mended(text, exception, message, line)
    if found is None or found.text == text or not _compiles(found.text):
        return None
    return found


def _mended(text: str, exception: str, message: str, line: int) -> Mended | None:
    match exception:
        case "NameError" | "UnboundLocalError":
            return _name(text, message, line)
        case "AttributeError":
            return _attribute(text, message, line)
        case "ModuleNotFoundError":
            return _module(text, message, line)
        case "SyntaxError" if message.startswith("expected ':'"):
            return _colon(text, line)
        case "TabError":
            return _tabs(text)
    return None


def _tabs(text: str) -> Mended | None:
    """Blanks instead of tabs, if only one width of a tab gives a file that compiles, or all of them the same."""
    trees = {width: _parsed(text.expandtabs(width)) for width in (2, 4, 8)}
    good = {width: ast.dump(tree) for width, tree in trees.items() if tree is not None}
    if len(set(good.values())) != 1:
        return None
    return Mended(text.expandtabs(next(iter(good))), "tabs and blanks were mixed")


# --- names ---------------------------------------------------------------------------------------------------


def _name(text: str, message: str, line: int) -> Mended | None:
    named = re.match(r"name '(\w+)' is not defined", message)
    tree = _parsed(text)
    if named is None or tree is None:
        return None
    name = named.group(1)
    if name in SAFE_MODULES:
        return _imported(text, tree, name)
    meant = _only_near(name, _names_at(tree, line))
    if meant is None or meant == name:
        return None
    places = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    if any(not isinstance(node.ctx, ast.Load) for node in places):
        return None  # it is assigned somewhere: then it is not a slip of the name
    if _two_things(tree, name, meant):
        return None
    changed = _replaced(text, [(node.lineno, node.col_offset, name) for node in places], meant)
    return Mended(changed, f"{name} -> {meant}, the only name there that it can mean") if changed else None


def _two_things(tree: ast.Module, name: str, meant: str) -> bool:
    """`golds == gold` is no slip of `gold == gold`, nor `answer1` of `answer2`, nor `num == gold` of `sum == gold`."""
    if re.sub(r"\d", "", name) == re.sub(r"\d", "", meant):
        return True
    if meant in dir(builtins) and not _called(tree, name):
        return True
    exchanged = sorted(name) == sorted(meant)  # two letters in the wrong order are a slip wherever they stand
    return not exchanged and _stands_beside(tree, name, meant)


def _stands_beside(tree: ast.Module, name: str, meant: str) -> bool:
    """Some statement without a body, or some expression, names both."""
    for node in ast.walk(tree):
        simple = isinstance(node, ast.expr) or (isinstance(node, ast.stmt) and not hasattr(node, "body"))
        if simple and {name, meant} <= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}:
            return True
    return False


def _called(tree: ast.Module, name: str) -> bool:
    """Wherever it stands, it is called."""
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return all(any(use is call for call in calls) for use in uses)


def _imported(text: str, tree: ast.Module, name: str) -> Mended | None:
    """`import name`, if all that is used of it is there."""
    used = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    ]
    module = importlib.import_module(name)
    if not used or not all(hasattr(module, attribute) for attribute in used):
        return None
    lines = text.splitlines(keepends=True)
    lines.insert(_after_opening(tree), f"import {name}\n")
    return Mended("".join(lines), f"import {name} was missing")


def _after_opening(tree: ast.Module) -> int:
    """Number of lines before the place for an import: behind the docstring and imports from __future__."""
    place = 0
    for node in tree.body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if not text and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        place = node.end_lineno or place
    return place


def _names_at(tree: ast.Module, line: int) -> set[str]:
    """Names that code on that line can see."""
    names = set(dir(builtins)) | set(_bound(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if node.lineno <= line <= (node.end_lineno or line):
                names |= {one.arg for one in _arguments(node.args)}
                body = node.body if isinstance(node.body, list) else [node.body]
                names |= {name for part in body for name in _bound(part)}
        elif isinstance(node, ast.comprehension):
            names |= set(_bound(node.target))
    return names


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (one for one in (arguments.vararg, arguments.kwarg) if one is not None)


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that are assigned, imported or defined in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (one.asname or one.name.split(".")[0] for one in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


# --- attributes, modules, syntax -----------------------------------------------------------------------------


def _attribute(text: str, message: str, line: int) -> Mended | None:
    of_module = re.match(r"module '(\w+)' has no attribute '(\w+)'", message)
    of_value = re.match(r"'(\w+)' object has no attribute '(\w+)'", message)
    if of_module and of_module.group(1) in SAFE_MODULES:
        owner: object = importlib.import_module(of_module.group(1))
        name = of_module.group(2)
    elif of_value and of_value.group(1) in BUILT_IN:
        owner, name = BUILT_IN[of_value.group(1)], of_value.group(2)
    else:
        return None
    tree, meant = _parsed(text), _only_near(name, [one for one in dir(owner) if not one.startswith("_")])
    if tree is None or meant is None:
        return None
    places = [
        (node.end_lineno or node.lineno, (node.end_col_offset or 0) - len(name.encode()), name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == name and node.lineno <= line <= (node.end_lineno or line)
    ]
    changed = _replaced(text, places, meant)
    return Mended(changed, f".{name} -> .{meant}, the only attribute that it can mean") if changed else None


def _module(text: str, message: str, line: int) -> Mended | None:
    named = re.match(r"No module named '(\w+)'", message)
    meant = _only_near(named.group(1), SAFE_MODULES) if named else None
    lines = text.splitlines(keepends=True)
    if named is None or meant is None or not 0 < line <= len(lines):
        return None
    name = named.group(1)
    if not re.match(rf"\s*(?:import|from)\s+{name}\b", lines[line - 1]):
        return None
    changed = re.sub(rf"\b{name}\b", meant, text)
    return Mended(changed, f"module {name} -> {meant}, the only one of the standard library that it can mean")


def _colon(text: str, line: int) -> Mended | None:
    lines = text.splitlines(keepends=True)
    if not 0 < line <= len(lines):
        return None
    code = lines[line - 1].rstrip("\r\n")
    ending = lines[line - 1][len(code) :]
    bare, comment = re.match(r"^(.*?)(\s*(?:#.*)?)$", code).groups()  # type: ignore[union-attr]  # matches any line
    lines[line - 1] = f"{bare}:{comment}{ending}"
    return Mended("".join(lines), f"a colon was missing at the end of line {line}")


# --- help ----------------------------------------------------------------------------------------------------


def _only_near(name: str, known: Iterable[str]) -> str | None:
    """The one that is a single letter off; None where there is none, or more than one."""
    if len(name) < 3:
        return None
    near = {one for one in known if one != name and len(one) >= 3 and one_off(name, one)}
    return near.pop() if len(near) == 1 else None


def one_off(left: str, right: str) -> bool:
    """One letter more, less or another, or two neighbours exchanged."""
    if abs(len(left) - len(right)) > 1:
        return False
    same = next((place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    if same is None:
        return len(left) != len(right)
    a, b = left[same:], right[same:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[:2][::-1] and a[2:] == b[2:])


def _replaced(text: str, places: list[tuple[int, int, str]], new: str) -> str | None:
    """(line from 1, offset in UTF-8 bytes, what stands there) of each place."""
    if not places:
        return None
    lines = text.splitlines(keepends=True)
    for line, offset, old in sorted(set(places), reverse=True):
        raw = lines[line - 1].encode()
        if raw[offset : offset + len(old.encode())] != old.encode():
            return None
        lines[line - 1] = (raw[:offset] + new.encode() + raw[offset + len(old.encode()) :]).decode()
    return "".join(lines)


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _compiles(text: str) -> bool:
    return _parsed(text) is not None
