"""Does a hypothesis fit this recipe on this machine, and what exactly would it change there?

Decides nothing about worth (`scoring.py`). Every refusal is a sentence for a person.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.plan.schema import REFERENCE, Hypothesis, RecipeCondition, Requires, Variant
from agent.recipe.change import Change, short
from agent.recipe.files import get_key
from agent.recipe.schema import Recipe

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

DELIMITED = ("delimited", "reasoning_gym")


def lacking(
    hypothesis: Hypothesis,
    variant: Variant,
    recipe: Recipe,
    *,
    machine: Machine | None,
    machine_matters: bool = True,
    symptoms: Collection[str] = (),
) -> str | None:
    """Why the hypothesis cannot be tried here, or None where it can.

    An unknown machine (None) has no accelerator and no optional package. `symptoms` are those that were found: they
    can ask for what the machine speaks against.
    """
    for requires in (hypothesis.requires, variant.requires):
        reason = _machine_lacks(requires, machine, symptoms) if machine_matters else None
        reason = reason or _recipe_lacks(requires, recipe)
        if reason:
            return reason
    if "{verifier." in repr(variant.set) and recipe.task.verifier.kind not in DELIMITED:
        return f"needs a verifier with delimiters, this one is {recipe.task.verifier.kind}"
    return None


def in_spite_of(
    hypothesis: Hypothesis, variant: Variant, *, machine: Machine | None, symptoms: Collection[str]
) -> list[str]:
    """What speaks against the hypothesis on this machine though it may be tried, and the symptoms that ask for it."""
    words = []
    for requires in (hypothesis.requires, variant.requires):
        against, asked = _against(requires, machine), [name for name in requires.unless if name in symptoms]
        if against and asked:
            words.append(f"because of {' and '.join(asked)}, in spite of this: {against}")
    return words


def _against(requires: Requires, machine: Machine | None) -> str | None:
    """Why this machine's architecture speaks against it, or None."""
    return requires.not_arch.get(machine.arch) if machine is not None and machine.arch else None


def _machine_lacks(requires: Requires, machine: Machine | None, symptoms: Collection[str]) -> str | None:
    against = _against(requires, machine)
    if against and not set(requires.unless) & set(symptoms):
        excuse = f" (tried there only for {' or '.join(requires.unless)})" if requires.unless else ""
        return f"is not for {machine.arch if machine else ''}: {against}{excuse}"
    accelerators = machine.accelerators if machine else 0
    if requires.accelerators > accelerators:
        return f"needs {requires.accelerators} accelerators or more, this machine has {accelerators}"
    kind = machine.kind if machine else "cpu"
    if requires.machine and kind not in requires.machine:
        return f"is for {' or '.join(requires.machine)}, this machine is {kind}"
    if requires.bf16 and not (machine and machine.bf16):
        return "needs a device that computes bfloat16, this one does not"
    for package in requires.packages:
        if machine is None or package not in machine.packages:
            return f"needs the package {package}, which is not installed"
    return None


def fails(conditions: Iterable[RecipeCondition], recipe: Recipe) -> str | None:
    """The first condition that the recipe does not meet, in words, or None."""
    return next((reason for condition in conditions if (reason := _fails(condition, recipe))), None)


def _recipe_lacks(requires: Requires, recipe: Recipe) -> str | None:
    if requires.chat_template and recipe.prompt.chat == "never":
        return "needs a chat template, prompt.chat is never"
    if requires.chat_template and recipe.model.source == "builtin:tiny":
        return "needs a chat template, the built-in model has none"
    return fails(requires.when, recipe)


def _fails(condition: RecipeCondition, recipe: Recipe) -> str | None:
    value = get_key(recipe, condition.key)
    test = next(iter(condition.model_fields_set - {"key"}))
    wanted = getattr(condition, test)
    if test in ("above", "below"):
        if isinstance(value, int | float) and (value > wanted if test == "above" else value < wanted):
            return None
        return f"needs {condition.key} {test} {wanted:g}, it is {short(value)}"
    if value in wanted if test == "one_of" else (value == wanted) == (test == "is_"):
        return None
    words = {"is_": "to be", "is_not": "to be other than", "one_of": "to be one of"}[test]
    choices = ", ".join(map(short, wanted)) if test == "one_of" else short(wanted)
    got = "" if test == "is_not" else f", it is {short(value)}"
    return f"needs {condition.key} {words} {choices}{got}"


@dataclass(frozen=True)
class Built:
    """The change, or why there is none on this recipe."""

    change: Change | None
    why_not: str = ""


def build_change(variant: Variant, recipe: Recipe, *, facts: Mapping[str, str], strength: float = 1.0) -> Built:
    """The variant as a change of this recipe: references filled in, factors raised to `strength`.

    `strength` below 1 narrows a numeric step (a factor 4 becomes 2 at strength 0.5). Keys below an optional
    section that is absent are left to the schema's defaults; nothing that stays as it is counts as a change.
    """
    try:
        values = {key: fill(value, recipe, facts=facts) for key, value in variant.set.items()}
    except _Unknown as error:
        return Built(None, str(error))
    scale = {key: factor**strength for key, factor in variant.scale.items()}
    absent = [key for key in scale if get_key(recipe, key) is None]
    if absent:
        return Built(None, f"the recipe has no {absent[0]} to scale")
    change = Change(set=values, scale=scale, toggle=variant.toggle)
    moves = change.values(recipe)
    if not moves:
        what = ", ".join(f"{key} is {short(get_key(recipe, key))}" for key in [*values, *scale, *variant.toggle][:2])
        return Built(None, f"the recipe has it already: {what}")
    if any(key not in moves for key in scale):
        stuck = next(key for key in scale if key not in moves)
        return Built(None, f"{stuck} is at the end of its range, {short(get_key(recipe, stuck))}")
    return Built(change)


class _Unknown(Exception):
    """A reference to something that this run does not tell."""


def fill(value: Any, recipe: Recipe, *, facts: Mapping[str, str]) -> Any:
    """`value` with its references replaced, inside lists and mappings too."""
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: _look_up(found, recipe, facts), value)
    if isinstance(value, list):
        return [fill(item, recipe, facts=facts) for item in value]
    if isinstance(value, dict):
        return {fill(key, recipe, facts=facts): fill(item, recipe, facts=facts) for key, item in value.items()}
    return value


def _look_up(found: re.Match[str], recipe: Recipe, facts: Mapping[str, str]) -> str:
    kind, name = found.groups()
    if kind == "verifier":
        return str(getattr(recipe.task.verifier, name))
    if kind == "recipe":
        value = get_key(recipe, name)
        return "" if value is None else str(value)
    if name not in facts:
        raise _Unknown(f"needs {name.replace('_', ' ')}, which the last run does not tell")
    return facts[name]
