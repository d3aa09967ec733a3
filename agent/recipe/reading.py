"""Read a YAML file that somebody wrote: YAML 1.2 scalars, plain values only, whatever is in it.

Nothing but text, numbers, booleans, null, lists and mappings comes out; a tag that asks for more is refused, and so is
what would take long or much memory: a large file, deep nesting, aliases that multiply, a number of a thousand digits, a
file that is none (a pipe, a device). Every refusal names file and line, where there is one.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from agent.errors import RecipeError
from agent.recipe.places import contained
from agent.text import visible

MOST_BYTES = 256 << 10
"""The largest file that is read; ours have 20 kB at most. The strict parser takes about two seconds for as much."""
MOST_DEPTH = 50
MOST_NODES = 100_000
"""After every alias is written out."""
LONGEST_INT = 40
"""Digits. Python refuses to write integers of more than 4300 in a message (its documentation, "Integer string
conversion length limitation")."""
TAG = "tag:yaml.org,2002:"
PLAIN = frozenset({f"{TAG}{kind}" for kind in ("str", "int", "float", "bool", "null")})


class Yaml12Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2 has them: `5e-5` is a float, `yes`, `no`, `on` and `12:30` are strings."""


_libyaml: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a PyYAML may have been built without it


class _FastLoader(_libyaml):
    """The same values five times as fast. It also takes some texts that are not YAML, such as one with a tab."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > LONGEST_INT:
        raise _refusal(f"a number of {len(text)} digits", node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text, base)
    except ValueError:
        raise _refusal(f"{visible(text[:40])!r} is no whole number", node) from None


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    try:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise _refusal(f"{visible(text[:40])!r} is no number", node) from None


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in ("true", "false"):
        raise _refusal(f"{visible(text[:40])!r} is neither true nor false", node)
    return text == "true"


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A repeated key is a mistake that plain PyYAML swallows."""
    if not isinstance(node, yaml.MappingNode):
        raise _refusal("expected a mapping", node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag not in PLAIN:
            raise _refusal("a key must be a plain value", key_node)
        key = loader.construct_object(key_node)
        if key in seen:
            raise _refusal(f"key {visible(str(key))!r} is given twice", key_node)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _construct_list(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _construct_null(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> None:
    loader.construct_scalar(node)


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise _refusal(f"the tag {visible(str(node.tag))} is not allowed: only plain values are", node)


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _loader in (Yaml12Loader, _FastLoader):
    _loader.yaml_implicit_resolvers = {}
    for _kind, _pattern, _first in [
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+.0123456789",
        ),
    ]:
        _loader.add_implicit_resolver(f"{TAG}{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))
    # What is not in these tables is not built, whatever PyYAML's own loaders know.
    _loader.yaml_multi_constructors = {}
    _loader.yaml_constructors = {
        f"{TAG}str": yaml.SafeLoader.construct_scalar,
        f"{TAG}int": _construct_int,
        f"{TAG}float": _construct_float,
        f"{TAG}bool": _construct_bool,
        f"{TAG}null": _construct_null,
        f"{TAG}map": _construct_mapping,
        f"{TAG}seq": _construct_list,
        None: _refuse_tag,
    }


# --- text --------------------------------------------------------------------------------------------------


def read_yaml(text: str, *, where: str, edited: bool = True) -> Any:
    """Parse YAML; RecipeError with line and column where it is not YAML, or more than plain values of modest size.

    A text that nobody is going to edit (`edit_text` reads strictly) may be read by the faster parser.
    """
    if len(text) > MOST_BYTES:
        raise _too_large(where)
    try:
        _refuse_depth(text)
        try:
            found = _loaded(text, _FastLoader)
        except _TooMuch:
            raise
        except yaml.YAMLError:
            return _loaded(text, Yaml12Loader)  # its message says more
        return _loaded(text, Yaml12Loader) if edited else found
    except yaml.YAMLError as error:
        raise yaml_error(error, where=where, text=text) from None
    except RecursionError:
        raise RecipeError("not valid YAML: nested too deeply", where=where, problem="syntax") from None


def _loaded(text: str, loader_class: Any) -> Any:
    loader = loader_class(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_bomb(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _TooMuch(yaml.constructor.ConstructorError):
    """What no parser should go on with: the strict one takes quadratic time for what is nested deeply."""


def _refuse_depth(text: str) -> None:
    """Before anything is built: the fast parser composes by recursion, in C."""
    depth = 0
    with contextlib.suppress(yaml.parser.ParserError, yaml.reader.ReaderError):
        try:
            for event in yaml.parse(text, Loader=_FastLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > MOST_DEPTH:
                    raise _TooMuch(None, None, "nested too deeply", event.start_mark)  # type: ignore[arg-type]
        except yaml.scanner.ScannerError as error:
            if "nesting" in str(error.problem):  # libyaml's own limit
                raise _TooMuch(None, None, "nested too deeply", error.problem_mark) from None


def _refuse_bomb(root: yaml.Node) -> None:
    """A few lines of aliases to aliases stand for billions of values; one to itself stands for no end of them."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise _TooMuch(None, None, "an alias refers to what it is part of", node.start_mark)
        if id(node) in sizes:
            return sizes[id(node)]
        if depth > MOST_DEPTH:
            raise _TooMuch(None, None, "nested too deeply", node.start_mark)
        open_nodes.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        inner = [part for pair in pairs for part in pair] or (node.value if isinstance(node, yaml.SequenceNode) else [])
        total = 1 + sum(size(part, depth + 1) for part in inner)
        open_nodes.discard(id(node))
        if total > MOST_NODES:
            raise _TooMuch(None, None, f"it stands for more than {MOST_NODES} values", node.start_mark)
        sizes[id(node)] = total
        return total

    size(root, 1)


def yaml_error(error: yaml.YAMLError, *, where: str, text: str = "") -> RecipeError:
    """What PyYAML says, with the place in the file."""
    mark = getattr(error, "problem_mark", None)
    place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        place = f"{where}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        problem = f"a character that cannot be in YAML (U+{int(error.character):04X})"
        return RecipeError(f"not valid YAML: {problem}", where=place, hint="take it out", problem="syntax")
    problem = getattr(error, "problem", None) or str(error)
    hint = "a tab cannot indent in YAML" if "'\\t'" in problem else "check indentation, quotes and colons there"
    return RecipeError(f"not valid YAML: {problem}", where=place, hint=hint, problem="syntax")


def key_lines(text: str) -> dict[str, int]:
    """Line number (from 1) of every dotted key that the text itself contains."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                path = f"{prefix}{key_node.value}"
                lines[path] = key_node.start_mark.line + 1
                visit(value_node, f"{path}.")
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                lines[f"{prefix}{position}"] = item.start_mark.line + 1
                visit(item, f"{prefix}{position}.")

    try:
        root = yaml.compose(text, Loader=Yaml12Loader)
    except yaml.YAMLError:
        return {}
    if root is not None:
        visit(root, "")
    return lines


# --- files -------------------------------------------------------------------------------------------------


def read_text(path: Path, *, root: Path | None = None) -> str:
    """The file's text with its line ends as they are; RecipeError where it cannot be read, or is no plain file.

    `root`: the workspace, which no link may lead out of.
    """
    if root is not None:
        _refuse_outside(path, root)
    try:
        return _bytes_of(path).decode("utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        hint = (
            f"did you mean {path.parent / near[0]}?" if near else "raft-agent init DIR makes a workspace with recipes"
        )
        raise RecipeError("no such recipe", where=str(path), hint=hint) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 text (byte {error.start})", where=str(path)) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError:  # a NUL in the name
        raise RecipeError("is no name that a file can have", where=visible(str(path))) from None


def _refuse_outside(path: Path, root: Path) -> None:
    try:
        contained(path, root, name=path.name, key="link")
    except RecipeError as error:
        raise RecipeError(error.message, where=str(path), hint=error.hint) from None


def _bytes_of(path: Path) -> bytes:
    """Opened without waiting: a pipe without a writer would never answer, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe, a device or a socket"
        raise RecipeError(f"is {what}, not a file", where=str(path), hint="name a YAML file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _too_large(str(path))
    return content


def _too_large(where: str) -> RecipeError:
    return RecipeError(f"is larger than {MOST_BYTES >> 10} KiB, so it is no recipe or playbook", where=where)


def _siblings(path: Path) -> list[Path]:
    try:
        return sorted(path.parent.glob("*.yaml"))
    except OSError:
        return []
