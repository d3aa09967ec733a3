"""Reads the playbook: every YAML file of the `hypotheses/` folder, validated and cross-checked.

What it does not do: apply a hypothesis to a recipe (`fit.py`) or rank anything (`planner.py`). Every message
names file and key path; an unknown signal, symptom, watch, axis, tag or recipe key names the nearest valid one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from agent.errors import AgentError, PlaybookError, RecipeError
from agent.plan.fit import build_change, lacking
from agent.plan.schema import (
    OBSERVED,
    REFERENCE,
    Axis,
    AxisFile,
    Condition,
    Hypothesis,
    Playbook,
    Requires,
    RulesFile,
    Variant,
)
from agent.plan.signals import SIGNALS
from agent.recipe import validating
from agent.recipe.change import ChangeRefused, refuse_forbidden
from agent.recipe.files import bounds_of, field_at
from agent.recipe.reading import read_text, read_yaml
from agent.recipe.schema import Recipe, leaf_keys
from agent.recipe.validating import nearest

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

__all__ = ["Playbook", "PlaybookError", "Problem", "check_playbook", "load_playbook"]

LISTS = tuple(RulesFile.model_fields)
Model = TypeVar("Model", bound=BaseModel)


def load_playbook(folder: Path) -> Playbook:
    """Every `*.yaml` of the folder, in name order. PlaybookError for the first thing that is wrong."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise PlaybookError(
            "no hypotheses there", where=str(folder), hint="raft-agent init DIR makes a workspace with a playbook"
        )
    playbook = Playbook(folder=folder)
    for path in paths:
        _read_file(path, playbook)
    _Check(playbook).everything()
    return playbook


@dataclass(frozen=True)
class Problem:
    """A hypothesis that cannot be applied where it says it could."""

    hypothesis: str
    variant: str
    recipe: str
    message: str

    def __str__(self) -> str:
        return f"{self.hypothesis} ({self.variant}) on {self.recipe}: {self.message}"


def check_playbook(playbook: Playbook, recipes: Mapping[str, Recipe], machine: Machine | None = None) -> list[Problem]:
    """Apply each variant of each hypothesis to each recipe that has what it requires.

    Machine requirements are looked at only where a machine is given; without one every hypothesis is applied
    to every recipe that it fits, so the check means the same everywhere. References to what a run has observed
    are filled with a stand-in.
    """
    stand_in = dict.fromkeys(OBSERVED, "tag")
    problems = []
    for hypothesis, variant in _variants(playbook):
        for name, recipe in recipes.items():
            if lacking(hypothesis, variant, recipe, machine=machine, machine_matters=machine is not None):
                continue
            try:
                built = build_change(variant, recipe, facts=stand_in)
                if built.change is not None:
                    built.change.apply(recipe)
            except AgentError as error:
                problems.append(Problem(hypothesis.id, variant.name, name, error.message))
    return problems


def _variants(playbook: Playbook) -> Iterator[tuple[Hypothesis, Variant]]:
    for hypothesis in playbook.hypotheses.values():
        for variant in hypothesis.variants:
            yield hypothesis, variant


# --- reading one file --------------------------------------------------------------------------------------


def _read_file(path: Path, playbook: Playbook) -> None:
    try:
        content = read_yaml(read_text(path, root=path.absolute().parent.parent), where=str(path), edited=False)
    except RecipeError as error:
        raise PlaybookError(error.message, where=error.where, hint=error.hint) from None
    if content is None:
        return
    if not isinstance(content, dict):
        raise PlaybookError(f"a playbook file is a mapping of keys, got a {type(content).__name__}", where=str(path))
    if "axis" in content:
        _add_axis(validated(AxisFile, content, where=str(path)), playbook, where=str(path))
    else:
        _add_rules(validated(RulesFile, content, where=str(path)), playbook, where=str(path))


def _add_axis(file: AxisFile, playbook: Playbook, *, where: str) -> None:
    axis = playbook.axes.setdefault(file.axis, Axis(file.axis))
    axis.title = axis.title or file.title
    axis.look_here_when = axis.look_here_when or file.look_here_when
    axis.favor_when += file.favor_when
    axis.watch += [watch for watch in file.watch if watch not in axis.watch]
    playbook.files.setdefault(f"axes:{file.axis}", where)
    for position, hypothesis in enumerate(file.hypotheses):
        _add(playbook, "hypotheses", hypothesis, where=where, position=position)
        playbook.axis_of[hypothesis.id] = file.axis


def _add_rules(file: RulesFile, playbook: Playbook, *, where: str) -> None:
    for name in LISTS:
        for position, entry in enumerate(getattr(file, name)):
            _add(playbook, name, entry, where=where, position=position)


def _add(playbook: Playbook, kind: str, entry: Any, *, where: str, position: int) -> None:
    entries: dict[str, Any] = getattr(playbook, kind)
    if entry.id in entries:
        first = playbook.files[f"{kind}:{entry.id}"]
        raise PlaybookError(f"{entry.id!r} is already in {first}", where=f"{where}: {kind}.{position}.id")
    entries[entry.id] = entry
    playbook.files[f"{kind}:{entry.id}"] = f"{where}: {kind}.{position}"


def validated(model: type[Model], content: Any, *, where: str) -> Model:
    """The content as a model; PlaybookError for the first problem, with its key path."""
    return validating.validated(model, content, where=where, error=PlaybookError)


# --- cross-checks ------------------------------------------------------------------------------------------


class _Check:
    """Every name that one entry uses must exist in another, in the signal table or in the recipe's schema."""

    def __init__(self, playbook: Playbook):
        self.book = playbook
        self.pointers = {*playbook.axes, *(tag for h in playbook.hypotheses.values() for tag in h.tags)}

    def everything(self) -> None:
        for axis in self.book.axes.values():
            self._names(axis.watch, self.book.watches, "watch", self._at("axes", axis.id, "watch"))
        for hypothesis in self.book.hypotheses.values():
            self._hypothesis(hypothesis)
        for reading in self.book.readings.values():
            self._condition(reading.when, self._at("readings", reading.id, "when"))
            self._names(reading.points_to, self.pointers, "axis or tag", self._at("readings", reading.id, "points_to"))
        for symptom in self.book.symptoms.values():
            place = self._at("symptoms", symptom.id, "when")
            self._condition(symptom.when, place)
            self._names([symptom.reading], self.book.readings, "reading", self._at("symptoms", symptom.id, "reading"))
            self._names(symptom.explains, self.book.symptoms, "symptom", self._at("symptoms", symptom.id, "explains"))
        self._rules()

    def _rules(self) -> None:
        book = self.book
        for watch in book.watches.values():
            self._names(watch.signals, SIGNALS, "signal", self._at("watches", watch.id, "signals"))
            alarms = [alarm.signal for alarm in watch.alarms]
            self._names(alarms, watch.signals, "signal of this watch", self._at("watches", watch.id, "alarms"))
            for probe in watch.probe:
                self._values(probe.set, self._at("watches", watch.id, f"probe.{probe.name}"))
        for action in book.actions.values():
            self._names(action.answers, book.symptoms, "symptom", self._at("actions", action.id, "answers"))
            self._names(action.scale, leaf_keys(), "recipe key", self._at("actions", action.id, "scale"))
        for rule in book.resources.values():
            for part in ("prefer", "defer"):
                place = self._at("resources", rule.id, part)
                self._names(
                    getattr(rule, part), {*self.pointers, *self._forms()}, "axis, tag, hypothesis or form", place
                )
            self._keys([condition.key for condition in rule.when], self._at("resources", rule.id, "when"))
        classes: dict[str, str] = {}
        for crash in book.crashes.values():
            first = classes.setdefault(crash.crash_class, crash.id)
            if first != crash.id:
                raise PlaybookError(
                    f"{crash.crash_class} has a rule already, {first}",
                    where=self._at("crashes", crash.id, "crash_class"),
                    hint=f"a class has one rule: delete {self._begin_of(crash.id)} or {self._begin_of(first)}",
                )
        for queue in book.queues.values():
            self._names(queue.then, book.hypotheses, "hypothesis", self._at("queues", queue.id, "then"))
            self._keys(queue.after_kept, self._at("queues", queue.id, "after_kept"))
        for premise in book.premises.values():
            self._keys(premise.keys, self._at("premises", premise.id, "keys"))
            self._names(premise.order, premise.keys, "key of this premise", self._at("premises", premise.id, "order"))
        for template in book.templates.values():
            self._names([template.axis], book.axes, "axis", self._at("templates", template.id, "axis"))
            place = self._at("templates", template.id, "hypothesis")
            self._names([template.hypothesis], book.hypotheses, "hypothesis", place)
        for fact in book.facts.values():
            self._names(fact.tested_by, book.hypotheses, "hypothesis", self._at("facts", fact.id, "tested_by"))

    def _begin_of(self, crash: str) -> str:
        """File and line of a crash rule's id, as an editor has them."""
        path = self.book.files[f"crashes:{crash}"].rpartition(": ")[0]
        text = read_text(Path(path), root=Path(path).absolute().parent.parent)
        found = re.search(rf"\bid:\s*[\"']?{re.escape(crash)}(?![\w-])", text)
        line = text.count("\n", 0, found.start()) + 1 if found else 0
        return f"the entry {crash} at {path}:{line}" if line else f"the entry {crash} of {path}"

    def _forms(self) -> set[str]:
        """Hypotheses, and their forms as `hypothesis/form`."""
        forms = {f"{hypothesis.id}/{variant.name}" for hypothesis, variant in _variants(self.book)}
        return forms | set(self.book.hypotheses)

    def _requires(self, requires: Requires, place: str) -> None:
        self._keys([condition.key for condition in requires.when], f"{place}.when")
        self._names(requires.unless, self.book.symptoms, "symptom", f"{place}.unless")

    def _hypothesis(self, hypothesis: Hypothesis) -> None:
        place = self._at("hypotheses", hypothesis.id)
        self._names(hypothesis.answers, self.book.symptoms, "symptom", f"{place}.answers")
        self._names(hypothesis.watch, self.book.watches, "watch", f"{place}.watch")
        self._keys(hypothesis.premise, f"{place}.premise")
        self._values(hypothesis.comparator, f"{place}.comparator")
        self._requires(hypothesis.requires, f"{place}.requires")
        names = [variant.name for variant in hypothesis.variants]
        if len(set(names)) < len(names):
            raise PlaybookError(f"two variants have the same name: {', '.join(names)}", where=f"{place}.variants")
        for variant in hypothesis.variants:
            self._variant(variant, f"{place}.variants.{variant.name}")

    def _variant(self, variant: Variant, place: str) -> None:
        self._names(variant.answers, self.book.symptoms, "symptom", f"{place}.answers")
        self._values(variant.set, f"{place}.set")
        self._keys(variant.scale, f"{place}.scale")
        self._keys(variant.toggle, f"{place}.toggle")
        for key in variant.scale:
            if not _is_number(key):
                raise PlaybookError(f"{key} is no number, it cannot be scaled", where=f"{place}.scale")
        changed = [*variant.set, *variant.scale, *variant.toggle]
        self._names(variant.show, changed, "key of this change", f"{place}.show")
        self._requires(variant.requires, f"{place}.requires")
        try:
            refuse_forbidden(changed)
        except ChangeRefused as error:
            raise PlaybookError(error.message, where=place, hint=error.hint) from None

    def _condition(self, condition: Condition, place: str) -> None:
        self._names(sorted(condition.signals()), SIGNALS, "signal", place)

    def _values(self, values: Mapping[str, Any], place: str) -> None:
        for key, value in values.items():
            self._key(key, place)
            for kind, name in REFERENCE.findall(repr(value)):
                if kind == "recipe":
                    self._key(name, f"{place}.{key}")
                elif kind == "verifier":
                    self._names([name], ("open", "close"), "part of the verifier", f"{place}.{key}")
                else:
                    self._names([name], OBSERVED, "observed fact", f"{place}.{key}")

    def _keys(self, keys: Iterable[str], place: str) -> None:
        for key in keys:
            self._key(key, place)

    def _key(self, key: str, place: str) -> None:
        if field_at(key) is None:
            raise PlaybookError(f"{key}: unknown recipe key", where=place, hint=nearest(key, _all_keys()))

    def _names(self, names: Iterable[str], known: Iterable[str], what: str, place: str) -> None:
        known = list(known)
        for name in names:
            if name not in known:
                raise PlaybookError(f"{name}: unknown {what}", where=place, hint=nearest(name, known))

    def _at(self, kind: str, identifier: str, part: str = "") -> str:
        place = f"{self.book.files[f'{kind}:{identifier}']} ({identifier})"
        return f"{place}.{part}" if part else place


def _all_keys() -> list[str]:
    leaves = leaf_keys()
    sections = {key[:end] for key in leaves for end in range(len(key)) if key[end] == "."}
    return [*leaves, *sorted(sections)]


def _is_number(key: str) -> bool:
    """Numbers of the schema all have a range."""
    return bool(bounds_of(key))
