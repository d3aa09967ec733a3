"""`jsonl:<path>`: one JSON object a line. Every complaint names the file, the line and the field."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.errors import DataError, RecipeError, Unavailable
from agent.recipe.places import inside
from agent.recipe.schema import Task
from agent.tasks.code_verifier import calls_of
from agent.tasks.example import Example
from agent.tasks.nearest import nearest

PREFIX = "jsonl:"
FIELDS = ("question", "answer", "tests", "tag", "id")


def jsonl_rows(task: Task, *, base: Path, content: bytes | None = None) -> list[Example]:
    """Rows of the file that `task.dataset` names, relative to `base`. Empty lines are passed over. `content` is what
    `content_of` has read, where it was read already.

    With `python_tests` a row needs tests and no answer, otherwise an answer. Without a field for `id`, rows are
    `line:1`, `line:2`, ... Raises Unavailable for a missing file, DataError for a bad one, RecipeError for a role in
    `task.fields` that does not exist, or a path that leads out of `base`.
    """
    path = inside(base, task.dataset.removeprefix(PREFIX), key="task.dataset")
    fields = _fields(task)
    content = content_of(task, base=base) if content is None else content
    examples: dict[str, Example] = {}
    lines: dict[str, int] = {}
    for line, row in _objects(content, path):
        example = _example(line, row, task, fields, path=path)
        if example.id in examples:
            raise DataError(
                f"field {fields['id']!r} repeats the id {example.id!r} of line {lines[example.id]}",
                where=f"{path}, line {line}",
                hint="Ids tell held-out prompts apart; leave task.fields.id out to use line numbers.",
            )
        examples[example.id], lines[example.id] = example, line
    if not examples:
        raise DataError("the file has no rows", where=str(path), hint="Each line is one JSON object.")
    return list(examples.values())


def _fields(task: Task) -> dict[str, str]:
    """Field name by role, for the roles that a row must have and those that the recipe names."""
    for role in task.fields:
        if role not in FIELDS:
            raise RecipeError(
                f"task.fields.{role} is none of {', '.join(FIELDS)}; the nearest is {nearest(role, FIELDS)!r}",
                key=f"task.fields.{role}",
                problem="unknown",
                suggestion=nearest(role, FIELDS),
            )
    needed = ("question", "tests") if task.verifier.kind == "python_tests" else ("question", "answer")
    fields = {role: role for role in needed} | task.fields
    if task.answer_after is not None and "answer" not in fields:
        raise RecipeError(
            "task.answer_after has no meaning where rows have tests and no answer",
            key="task.answer_after",
            hint="Leave it out, or name the field of the answer in task.fields.answer.",
        )
    return fields


def content_of(task: Task, *, base: Path) -> bytes:
    """The file's bytes. Raises Unavailable where it cannot be read."""
    path = base / task.dataset.removeprefix(PREFIX)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError(errno.EINVAL, "it is a pipe, a device or a socket")  # reading it might never end
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(
            f"the data set cannot be read: {error.strerror}",
            where=str(path),
            hint="task.dataset is `jsonl:` and a path that starts at the workspace.",
        ) from None


def _objects(content: bytes, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and object of every line that is not empty."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error.reason} at byte {error.start} of the line", where=where) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=where, hint="Each line is one JSON object.") from None
        if not isinstance(row, dict):
            raise DataError(f"a {type(row).__name__}, not an object", where=where, hint="Each line is one JSON object.")
        yield number, row


def _example(number: int, row: Mapping[str, Any], task: Task, fields: Mapping[str, str], *, path: Path) -> Example:
    where = f"{path}, line {number}"
    text = {role: _text(row, role, name, where=where) for role, name in fields.items()}
    if "tests" in text:
        text["tests"] = _setup_of_tests(row) + text["tests"]
        calls_of(text["tests"], entry_point=row.get("entry_point"), where=f"{where}, field {fields['tests']!r}")
    answer = text.get("answer", "")
    if task.answer_after is not None and "answer" in text:
        answer = _after(answer, task.answer_after, where=f"{where}, field {fields['answer']!r}")
    return Example(
        id=text.get("id", f"line:{number}"),
        question=text["question"],
        answer=answer,
        tag=text.get("tag"),
        tests=text.get("tests"),
        row=row,
    )


def _text(row: Mapping[str, Any], role: str, name: str, *, where: str) -> str:
    """The field as text: numbers as JSON writes them, a list of tests as lines."""
    if name not in row:
        raise DataError(
            f"the row has no field {name!r}, which holds the {role}; it has {', '.join(map(repr, row)) or 'none'}",
            where=where,
            hint=f"Say which field holds it: task.fields.{role}"
            + (f", perhaps {nearest(name, row)!r}." if row else "."),
        )
    value = row[name]
    if role == "tests" and isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if not isinstance(value, str):
        raise DataError(f"field {name!r} must be text or a number, got {json.dumps(value)[:60]}", where=where)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(
            f"field {name!r} has half a character in it, as of an emoji that was cut: {ascii(value)[:60]}",
            where=where,
            hint="Take it out, or write the file anew from its source.",
        )
    if not value.strip():
        raise DataError(f"field {name!r} is empty, and it holds the {role}", where=where)
    return value


def _setup_of_tests(row: Mapping[str, Any]) -> str:
    """What MBPP's own files want to run before the tests: `test_setup_code`, and `test_imports` in its checked half."""
    setup, imports = row.get("test_setup_code"), row.get("test_imports")
    lines = [setup] if isinstance(setup, str) and setup.strip() else []
    if isinstance(imports, list):
        lines += [line for line in imports if isinstance(line, str)]
    return "".join(f"{line}\n" for line in lines)


def _after(answer: str, mark: str, *, where: str) -> str:
    _, found, rest = answer.rpartition(mark)
    if not found or not rest.strip():
        raise DataError(f"nothing follows {mark!r}, where task.answer_after looks for the answer", where=where)
    return rest.strip()
