"""Content of a YAML file as a model, with the first problem named: its key path, and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agent.errors import AgentError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], content: Any, *, where: str, error: type[AgentError]) -> Model:
    """The content as a model. Raises `error` for the first problem."""
    try:
        return model.model_validate(content)
    except ValidationError as found:
        detail = _most_telling(found.errors())
    path = ".".join(map(str, detail["loc"]))
    place = f"{where}: {path}" if path else where
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, detail["loc"][:-1])
        raise error("unknown key", where=place, hint=nearest(str(detail["loc"][-1]), known)) from None
    if detail["type"] == "missing":
        raise error("is missing", where=place) from None
    message = detail["msg"].removeprefix("Value error, ")
    raise error(message[:1].lower() + message[1:], where=place) from None


def _most_telling(details: Sequence[Any]) -> Any:
    """The first problem; where a key is missing and another one beside it is unknown, that one: it is a misspelling."""
    first = details[0]
    if first["type"] != "missing":
        return first
    beside = (
        other for other in details if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]
    )
    return next(beside, first)


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Field names (aliases, where they have one) of the model that a location points into."""
    current: Any = model
    for part in loc:
        if isinstance(part, int) or current is None:
            continue
        fields = current.model_fields
        field = fields.get(part)
        current = _model_in(field.annotation) if field else current
    if current is None:
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest of the known names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}" if known else "there is none to choose from"
