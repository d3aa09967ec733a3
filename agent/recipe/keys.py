"""What a recipe may say: every key with its default, what it accepts and what it means, read off the schema."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from agent.recipe.schema import Section, leaf_fields

PLAIN = {str: "text", int: "whole number", float: "number", bool: "true | false", type(None): "null", Any: "anything"}
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


@dataclass(frozen=True)
class Key:
    name: str
    """Dotted path."""
    default: str
    """As YAML; `required` where there is none."""
    accepts: str
    locked: bool
    """Decides how a result is measured: a person may change it, the planner may not."""
    meaning: str


def describe_keys(section: str = "") -> list[Key]:
    """Every key of the schema in its order, or those at and below a dotted path; none where there is no such path."""
    return [
        Key(
            name=name,
            default="required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True)),
            accepts=_accepts(field),
            locked=locked,
            meaning=" ".join((field.description or "").split()),
        )
        for name, (field, locked) in leaf_fields().items()
        if not section or name == section or name.startswith(f"{section}.")
    ]


def _accepts(field: FieldInfo) -> str:
    """`number; > 0, <= 1`"""
    bounds = [
        f"{sign} {bound:.10g}"
        for constraint in field.metadata
        for name, sign in BOUNDS
        if isinstance(bound := getattr(constraint, name, None), int | float)
    ]
    return "; ".join([_kind(field.annotation), *([", ".join(bounds)] if bounds else [])])


def _kind(annotation: Any) -> str:
    """`number`, `text`, `list of text`, `auto | sdpa`, ..."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inside[0])
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_kind, inside))
    if origin is list:
        return f"list of {_kind(inside[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, inside))}]"
    if origin is dict:
        return f"mapping to {_kind(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"{{{', '.join(f'{name}: {_accepts(field)}' for name, field in annotation.model_fields.items())}}}"
    return PLAIN[annotation]
