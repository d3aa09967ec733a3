"""A study file: one recipe, what differs between its arms, the seeds, and how many cycles each run has.

Every combination of the factors' levels is an arm, or the arms are listed. All arms are validated before anything runs:
they are measured alike, no two are the same training, and none can end before its last cycle.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from agent.errors import InvalidFile, RecipeError
from agent.recipe.files import load_recipe, with_keys
from agent.recipe.places import contained
from agent.recipe.reading import key_lines, read_text, read_yaml
from agent.recipe.schema import Recipe, Section, Whole
from agent.recipe.validating import nearest, validated
from agent.text import visible

MOST_SAMPLES = 35
"""Of a `select` prompt: how many passed is kept as one digit of base 36."""
MOST_RUNS = 10_000
OURS = {
    "budget": "`cycles` of the study says how long a run is",
    "seed": "`seeds` of the study says which",
    "evaluation.select_every": "a study measures after every cycle",
}
"""Recipe keys that a study decides itself, and what says them instead."""


def _label(value: str) -> str:
    if visible(value) != value or value != value.strip() or not value or "\n" in value or "," in value:
        raise ValueError(f"must be a short text without commas, got {visible(value)!r}")
    return value


class Level(Section):
    label: Annotated[str, Field(max_length=24)]
    """What this level is called in tables."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys by dotted path."""

    @model_validator(mode="after")
    def _label_is_shown(self) -> Level:
        _label(self.label)
        return self


class ListedArm(Level):
    against: str | None = None
    """Label of the arm that this one is compared with."""


class StudyFile(Section):
    description: str = ""
    """One line for people."""
    recipe: str
    """Path of the recipe, from the workspace."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys by dotted path, for all arms."""
    factors: dict[str, list[Level]] = Field(default_factory=dict)
    """By name, the levels of each factor; all combinations are the arms."""
    arms: list[ListedArm] = Field(default_factory=list)
    """The arms one by one, instead of factors."""
    against: dict[str, str] = Field(default_factory=dict)
    """Factor and the label of its level that the other levels are compared with, all other factors being equal."""
    seeds: Whole | list[Whole] = 5
    """Seeds of the runs, or how many: 1, 2, 3, ..."""
    cycles: Whole = Field(ge=2, le=10_000)
    """Cycles of every run."""
    end_window: Whole = Field(3, ge=1)
    """The end of a run is the mean of its last so many cycles."""

    @model_validator(mode="after")
    def _arms_are_said_once(self) -> StudyFile:
        if bool(self.factors) == bool(self.arms):
            raise ValueError("needs either `factors` or `arms`, got " + ("both" if self.arms else "neither"))
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> StudyFile:
        places: list[tuple[str, Sequence[Level]]] = [("arms", self.arms)]
        places += [(f"factors.{name}", levels) for name, levels in self.factors.items()]
        for where, levels in places:
            labels = [level.label for level in levels]
            if where != "arms" and not labels:
                raise ValueError(f"{where} must have at least one level")
            twice = next((label for label in labels if labels.count(label) > 1), None)
            if twice is not None:
                raise ValueError(f"{where} must have each label once, {twice!r} is there {labels.count(twice)} times")
        return self

    @model_validator(mode="after")
    def _comparisons_exist(self) -> StudyFile:
        for factor, label in self.against.items():
            if factor not in self.factors:
                raise ValueError(f"against.{factor}: there is no such factor; {nearest(factor, self.factors)}")
            labels = [level.label for level in self.factors[factor]]
            if label not in labels:
                raise ValueError(f"against.{factor}: no level is called {label!r}; {nearest(label, labels)}")
        if len(self.against) > 1:
            raise ValueError(f"against must name one factor, got {', '.join(self.against)}")
        labels = [arm.label for arm in self.arms]
        for arm in self.arms:
            if arm.against is not None and (arm.against not in labels or arm.against == arm.label):
                raise ValueError(f"arms: {arm.label!r} is compared with {arm.against!r}, which is no other arm")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> StudyFile:
        seeds = self.seed_list
        if not seeds or min(seeds) < 0:
            raise ValueError(f"seeds must be at least one whole number from 0 on, or how many, got {self.seeds}")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        if self.end_window > self.cycles:
            raise ValueError(f"end_window must be at most cycles, got {self.end_window} and {self.cycles}")
        return self

    @property
    def seed_list(self) -> list[int]:
        return list(range(1, self.seeds + 1)) if isinstance(self.seeds, int) else self.seeds


@dataclass(frozen=True)
class Arm:
    label: str
    recipe: Recipe
    levels: Mapping[str, str]
    """Factor -> label; empty for a listed arm."""
    against: str | None
    """Label of the arm that it is compared with."""
    digest: str
    """Names the training, see `training_digest`."""

    @property
    def slug(self) -> str:
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-.")[:60] or "arm"


@dataclass(frozen=True)
class Study:
    name: str
    """Stem of its file."""
    path: Path
    description: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    cycles: int
    end_window: int
    compared: str | None
    """Factor whose levels are compared."""

    @property
    def size(self) -> int:
        return len(self.arms) * len(self.seeds)

    def place_of(self, arm: Arm) -> tuple[str, str]:
        """(the other factors' levels, the compared factor's) in words: `rate 2.0e-5` and `x0.85`. Without a compared
        factor nothing and the arm's label."""
        if self.compared is None:
            return "", arm.label
        others = [f"{factor} {label}" for factor, label in arm.levels.items() if factor != self.compared]
        return ", ".join(others), arm.levels[self.compared]

    def order(self) -> Iterator[tuple[Arm, int]]:
        """All arms with the first seed, then with the second, ...: cut short, every arm has about as many runs."""
        for seed in self.seeds:
            for arm in self.arms:
                yield arm, seed


def load_study(path: Path, *, root: Path) -> Study:
    """Read and validate the file and all of its arms. `root` is the workspace. Raises InvalidFile."""
    text = read_text(path, root=root)
    content = read_yaml(text, where=str(path))
    if not isinstance(content, dict):
        raise InvalidFile("a study is a mapping of keys: recipe, factors, seeds, cycles", where=str(path))
    try:
        file = validated(StudyFile, content, where=str(path), error=InvalidFile)
    except InvalidFile as error:
        raise _with_line(error, path, text) from None
    arms = tuple(_arms(file, path, root))
    if len(arms) * len(file.seed_list) > MOST_RUNS:
        raise InvalidFile(f"asks for {len(arms) * len(file.seed_list)} runs, more than {MOST_RUNS}", where=str(path))
    _refuse_unlike(arms, path)
    return Study(
        name=path.stem,
        path=path,
        description=file.description,
        arms=arms,
        seeds=tuple(file.seed_list),
        cycles=file.cycles,
        end_window=file.end_window,
        compared=next(iter(file.against), None),
    )


def _with_line(error: InvalidFile, path: Path, text: str) -> InvalidFile:
    """The same with the line of its key, where the key is in the file."""
    key = (error.where or "").removeprefix(f"{path}: ")
    lines = key_lines(text)
    while key and key not in lines:
        key = key.rpartition(".")[0]
    if key:
        error.where = (error.where or "").replace(str(path), f"{path}:{lines[key]}", 1)
    return error


def _arms(file: StudyFile, path: Path, root: Path) -> Iterator[Arm]:
    where = f"{path}: recipe"
    try:
        base = load_recipe(contained(root / file.recipe, root, name=file.recipe, key="recipe"), root=root)
    except RecipeError as error:
        raise InvalidFile(str(error), where=where) from None
    base = _with(base, file.set, where=f"{path}: set")
    fixed = {f"budget.{kind}": None for kind in ("train_seconds", "tokens")}
    base = with_keys(base, {**fixed, "budget.cycles": file.cycles, "evaluation.select_every": 1, "seed": 0})
    if file.arms:
        for one in file.arms:
            yield _arm(one.label, {}, [(f"{path}: arms.{one.label}", one.set)], base, one.against)
        return
    names = list(file.factors)
    for levels in itertools.product(*file.factors.values()):
        chosen = dict(zip(names, (level.label for level in levels), strict=True))
        sets = [(f"{path}: factors.{name}.{level.label}", level.set) for name, level in zip(names, levels, strict=True)]
        yield _arm(_joined(chosen), chosen, sets, base, _comparator(chosen, file.against))


def _comparator(levels: Mapping[str, str], against: Mapping[str, str]) -> str | None:
    other = {**levels, **against}
    return _joined(other) if other != levels else None


def _joined(levels: Mapping[str, str]) -> str:
    return ", ".join(levels.values())


def _arm(
    label: str, levels: Mapping[str, str], sets: list[tuple[str, dict[str, Any]]], base: Recipe, against: str | None
) -> Arm:
    recipe, seen = base, dict[str, str]()
    for where, values in sets:
        for key in values:
            if key in seen:
                raise InvalidFile(f"{key} is set by {seen[key].rpartition('factors.')[2]} too", where=where)
            seen[key] = where
        recipe = _with(recipe, values, where=where)
    if recipe.learner.early_stop is not None:
        hint = "write `set: {learner.early_stop: null}`: a run that ends early cannot show what its last cycles do"
        raise InvalidFile("learner.early_stop is on", where=sets[0][0] if sets else label, hint=hint)
    return Arm(label, recipe, levels, against, training_digest(recipe))


def _with(recipe: Recipe, values: Mapping[str, Any], *, where: str) -> Recipe:
    for key in values:
        for ours, instead in OURS.items():
            if key == ours or key.startswith(f"{ours}."):
                raise InvalidFile(f"{key} cannot be set here: {instead}", where=where)
    try:
        return with_keys(recipe, values, where=where)
    except RecipeError as error:
        raise InvalidFile(error.message, where=error.where, hint=error.hint) from None


def training_digest(recipe: Recipe) -> str:
    """Names a training by what its recipe says beyond the schema's defaults, words and seed aside.

    Like `Recipe.signature`, but a key that the schema gets later, with its default, does not make it another training:
    results outlive versions of the program.
    """
    content = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"description", "seed"})
    for key in recipe.unread_keys():
        _take_out(content, key.split("."))
    content.setdefault("learner", {}).setdefault(
        "lr_schedule", {}
    )  # a constant rate is the same, however it is written
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _take_out(content: dict[str, Any], path: Sequence[str]) -> None:
    """And the section that it leaves empty; one that was empty before says something (`model.lora: {}`)."""
    name, *below = path
    inner = content.get(name)
    if not below:
        content.pop(name, None)
    elif isinstance(inner, dict) and inner:
        _take_out(inner, below)
        if not inner:
            del content[name]


def _refuse_unlike(arms: tuple[Arm, ...], path: Path) -> None:
    """What is compared has to be measured alike, and must not be the same thing twice."""
    first = arms[0]
    if first.recipe.evaluation.metric == "mean_reward" or first.recipe.evaluation.direction != "maximize":
        raise InvalidFile(
            "a study measures the share of `select` samples that pass; evaluation.metric must not be mean_reward, "
            "nor evaluation.direction minimize",
            where=str(path),
        )
    if first.recipe.evaluation.select_samples > MOST_SAMPLES:
        raise InvalidFile(f"evaluation.select_samples must be at most {MOST_SAMPLES} in a study", where=str(path))
    if first.recipe.evaluation.select_prompts < 2:
        raise InvalidFile("evaluation.select_prompts must be at least 2: they are halved", where=str(path))
    known: dict[str, str] = {}
    for arm in arms:
        if _measured_by(arm.recipe) != _measured_by(first.recipe):
            raise InvalidFile(
                f"the arms {first.label!r} and {arm.label!r} are measured differently",
                where=str(path),
                hint="evaluation, data set and verifier belong into `set` of the study, not into an arm",
            )
        if arm.digest in known:
            raise InvalidFile(
                f"the arms {known[arm.digest]!r} and {arm.label!r} are the same training", where=str(path)
            )
        known[arm.digest] = arm.label


def _measured_by(recipe: Recipe) -> tuple[object, ...]:
    task = recipe.task
    held_out = (task.dataset, task.parameters, task.fields, task.answer_after, task.split_seed)
    return (recipe.evaluation, *held_out, task.verifier)
