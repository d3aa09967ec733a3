"""Recipe files: read with YAML 1.2 scalars, inherit with `extends`, validate; and a recipe's keys by dotted path.

What this does not do: write a recipe in the user's style, or change a file (`agent.recipe.editing`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from agent.errors import AgentError, RecipeError
from agent.recipe.editing import set_in
from agent.recipe.places import contained
from agent.recipe.reading import key_lines, read_text, read_yaml
from agent.recipe.schema import Budget, Recipe, section_of
from agent.text import visible

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # a PyYAML may have been built without libyaml
EXTENDS = "extends"
WORKSPACE_FOLDERS = ("recipes", "hypotheses")
BUDGET_KINDS = ("train_seconds", "cycles", "tokens")


# --- reading -----------------------------------------------------------------------------------------------


def load_mapping(
    path: Path, *, edited: bool = True, root: Path | None = None, _seen: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The file's keys merged over those of the file it extends; not yet validated.

    What it extends lies below `root` (default: the workspace that the file is in), wherever links lead.
    """
    workspace = workspace_of(path) if root is None else root
    root = workspace or path.absolute().parent
    text = read_text(path, root=workspace)
    content = read_yaml(text, where=str(path), edited=edited)
    if content is None:
        raise RecipeError("the recipe is empty", where=str(path), hint="it needs at least model, task and budget")
    if not isinstance(content, dict):
        raise RecipeError(f"a recipe is a mapping of keys, got a {type(content).__name__}", where=str(path))
    parent_name = content.pop(EXTENDS, None)
    if parent_name is None:
        return content
    if not isinstance(parent_name, str):
        raise RecipeError(f"must be a file name, got {parent_name!r}", where=f"{path}: {EXTENDS}", key=EXTENDS)
    parent_path = _extended(path, parent_name, root)
    if parent_path in _seen or parent_path == path.resolve():
        raise RecipeError(f"goes in a circle through {parent_name}", where=f"{path}: {EXTENDS}", key=EXTENDS)
    return merge(load_mapping(parent_path, edited=edited, root=root, _seen=(*_seen, path.resolve())), content)


def extended_by(path: Path) -> Path | None:
    """Real path of the file that the recipe at `path` names in `extends`, wherever that is; None without one, or where
    the file cannot be read."""
    try:
        content = read_yaml(read_text(path), where=str(path), edited=False)
    except AgentError:
        return None
    name = content.get(EXTENDS) if isinstance(content, dict) else None
    return (path.parent / name).resolve() if isinstance(name, str) else None


def _extended(path: Path, name: str, root: Path) -> Path:
    """Real path of the file that the recipe at `path` extends; RecipeError where it is not below `root`."""
    where = f"{path}: {EXTENDS}"
    if name.startswith(("/", "~")) or visible(name) != name or "\n" in name or not name.strip():
        hint = "write it from the folder of this recipe on"
        raise RecipeError(f"must be a path inside the workspace, got {name!r}", where=where, key=EXTENDS, hint=hint)
    try:
        return contained(path.parent / name, root, name=name, key=EXTENDS).resolve()
    except RecipeError as error:
        error.where = str(path)
        raise


def workspace_of(path: Path) -> Path | None:
    """The folder that a recipe belongs to: the nearest above it with recipes/ and hypotheses/; None without one."""
    folder = path.absolute().parent
    for above in (folder, *folder.parents):
        if all((above / name).is_dir() for name in WORKSPACE_FOLDERS):
            return above
    return None


def merge(base: Mapping[str, Any], over: Mapping[str, Any], section: type[BaseModel] = Recipe) -> dict[str, Any]:
    """`over` on `base`, section by section. A free mapping (task.mix) or a list replaces the base's."""
    merged = dict(base)
    if section is Budget and any(kind in over for kind in BUDGET_KINDS):
        merged = {key: value for key, value in merged.items() if key not in BUDGET_KINDS}
    for key, value in over.items():
        field = section.model_fields.get(key)
        inner = section_of(field.annotation) if field else None
        if inner is not None and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value, inner)
        else:
            merged[key] = value
    return merged


def load_recipe(path: Path, *, edited: bool = True, root: Path | None = None) -> Recipe:
    """Read, inherit and validate. RecipeError names file, line where it is known, key and what to do.

    Not `edited`: written by a program (`resolved_text`), so that the faster parser is strict enough. `root`: see
    `load_mapping`.
    """
    return recipe_from(load_mapping(path, edited=edited, root=root), where=str(path), text=lambda: read_text(path))


# --- validating --------------------------------------------------------------------------------------------


def recipe_from(mapping: Mapping[str, Any], *, where: str, text: Callable[[], str] | None = None) -> Recipe:
    """Validate a mapping; every problem is in the message, the first one in the error's fields.

    Only a problem asks for the text, which then tells its line: finding lines takes as long as reading YAML.
    """
    try:
        return Recipe.model_validate(mapping)
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors()]
    first = problems[0]
    key_line = key_lines(text()).get(first.key or "") if text else None
    place = f"{where}:{key_line}" if key_line else where
    message = (
        first.message
        if len(problems) == 1
        else "\n  ".join(
            [
                f"{len(problems)} problems",
                *(f"{p.message}{f' ({p.hint})' if p.hint else ''}" for p in problems),
            ]
        )
    )
    hint = first.hint if len(problems) == 1 else None
    raise RecipeError(
        message,
        where=place,
        hint=hint,
        key=first.key,
        problem=first.problem or "invalid",
        suggestion=first.suggestion,
    ) from None


def _explain(detail: Any) -> RecipeError:
    loc = [part for part in detail["loc"] if not _is_union_label(part)]
    key = ".".join(map(str, loc))
    kind, context, value = detail["type"], detail.get("ctx") or {}, detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(loc, key)
    if kind == "missing":
        return RecipeError(f"{key}: is missing", hint=describe_key(key), key=key, problem="missing")
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        choices = [part.strip(" '") for part in re.split(r",| or ", context["expected"])]
        near = difflib.get_close_matches(str(value), choices, n=1)
        return RecipeError(
            f"{key}: {value!r} is not one of {', '.join(choices)}",
            hint=f"did you mean {near[0]}?" if near else None,
            key=key,
            problem="choice",
            suggestion=near[0] if near else None,
        )
    bounds = {name: context[name] for name in ("ge", "gt", "le", "lt") if name in context}
    if bounds and isinstance(value, int | float):
        return RecipeError(
            f"{key}: {message[0].lower()}{message[1:]}, got {value!r}",
            hint=describe_key(key),
            key=key,
            problem="range",
            suggestion=_nearest_in_range(value, bounds),
        )
    if "must " in message or "needs " in message or "needed " in message or "has only" in message:
        return RecipeError(message if not key or key in message else f"{key}: {message}", key=key or None)
    return RecipeError(
        f"{key}: {message[0].lower()}{message[1:]}" + ("" if f"got {value!r}" in message else f", got {value!r}"),
        hint=describe_key(key),
        key=key,
        problem="type",
        suggestion=_as_number(value),
    )


def _is_union_label(part: object) -> bool:
    """Pydantic puts the branch of a union into the location; it is no key of the file."""
    return (
        isinstance(part, str)
        and bool(re.search(r"[\[\](]|^(str|int|float|literal|function-)", part))
        and "." not in part
        and part not in _all_names()
    )


def _all_names(section: type[BaseModel] = Recipe) -> set[str]:
    names = set(section.model_fields)
    for field in section.model_fields.values():
        inner = section_of(field.annotation)
        if inner is not None:
            names |= _all_names(inner)
    return names


def _unknown_key(loc: list[Any], key: str) -> RecipeError:
    section = _section_at(loc[:-1])
    known = list(section.model_fields) if section else []
    here = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    elsewhere = [path for path in _all_paths() if path.rsplit(".", 1)[-1] == loc[-1]]
    suggestion = elsewhere[0] if elsewhere else None
    if here and (not elsewhere or difflib.SequenceMatcher(None, here[0], str(loc[-1])).ratio() > 0.8):
        suggestion = ".".join([*map(str, loc[:-1]), here[0]])
    hint = f"did you mean {suggestion}?" if suggestion else f"valid here: {', '.join(known)}"
    return RecipeError(f"{key}: unknown key", hint=hint, key=key, problem="unknown_key", suggestion=suggestion)


def _all_paths(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = section_of(field.annotation)
        if inner is not None:
            yield from _all_paths(inner, f"{prefix}{name}.")


def _section_at(loc: list[Any]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Recipe
    for part in loc:
        field = section.model_fields.get(str(part)) if section else None
        section = section_of(field.annotation) if field else None
    return section


def field_at(key: str) -> FieldInfo | None:
    """The schema's field at a dotted key, or None where there is no such key."""
    *path, name = key.split(".")
    section = _section_at(path)
    return section.model_fields.get(name) if section else None


def describe_key(key: str) -> str | None:
    """The first sentence of the key's documentation."""
    field = field_at(key)
    if field is None or not field.description:
        return None
    return f"{key.rsplit('.', 1)[-1]}: {' '.join(field.description.split())}"


def bounds_of(key: str) -> dict[str, float]:
    """The schema's limits of a number: any of ge, gt, le, lt."""
    field = field_at(key)
    found: dict[str, float] = {}
    for item in field.metadata if field else ():
        for name in ("ge", "gt", "le", "lt"):
            limit = getattr(item, name, None)
            if limit is not None:
                found[name] = float(limit)
    return found


def _nearest_in_range(value: float, bounds: Mapping[str, Any]) -> Any:
    """The closest permitted value; for an open bound there is none, so the key's default is better."""
    for name in ("ge", "le"):
        if name in bounds:
            return bounds[name]
    return None


def _as_number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            parsed = read_yaml(value, where="value")
        except RecipeError:
            return None
        return parsed if isinstance(parsed, int | float | bool) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def get_key(recipe: Recipe, key: str) -> Any:
    """Value at a dotted key; None below an optional section that is absent. KeyError for no such key."""
    if field_at(key) is None:
        raise KeyError(key)
    value: Any = recipe
    for part in key.split("."):
        if value is None:
            return None
        value = getattr(value, part)
    return value


def with_keys(recipe: Recipe, values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """A validated copy with dotted keys set. An optional section that is absent is created."""
    content = recipe.model_dump(mode="json")
    for key, value in values.items():
        set_in(content, key, value)
    return recipe_from(content, where=where)


def resolved_text(recipe: Recipe) -> str:
    """The whole recipe, defaults filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    # PyYAML writes 5e-05, which YAML 1.1 readers take for a string; ours and YAML 1.2 readers do not.
    content = recipe.model_dump(mode="json")
    return str(yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=100))
