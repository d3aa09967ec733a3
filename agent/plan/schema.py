"""The playbook's words as pydantic models: readings, symptoms, axes, hypotheses, watches, rules. Data only.

Nothing here reads a file (`playbook.py`), looks at telemetry (`symptoms.py`) or decides (`planner.py`).

Values in a change may refer to what is at hand when it is applied, in braces:
`{verifier.open}` and `{verifier.close}` (the delimiters the verifier looks for), `{recipe.<dotted key>}`
(what the recipe says now) and `{observed.<name>}` (a fact of the last run, see OBSERVED). Nothing else in
braces is touched, so `{question}` and `{answer}` keep their meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.contract import FIXES, CrashClass
from agent.recipe.change import Change

Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
Unit = Annotated[float, Field(ge=0, le=1)]

OBSERVED = {
    "weakest_tag": "tag of the held-out rows with the lowest pass rate",
    "strongest_tag": "tag of the held-out rows with the highest pass rate",
}
"""Facts of a run that a change may refer to as `{observed.NAME}`."""

REFERENCE = re.compile(r"\{(recipe|verifier|observed)\.([A-Za-z0-9_.]+)\}")


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class Condition(Entry):
    """A clause on one signal, or `all` / `any` of further conditions."""

    signal: str | None = None
    """Name of a signal (`raft-agent diagnose --signals` lists them)."""
    above: float | None = None
    """True where the signal is known and greater than this."""
    below: float | None = None
    """True where the signal is known and less than this."""
    full: float | None = None
    """The value at which the symptom is as bad as it gets. A clause without it is a guard: it must hold, but
    says nothing about severity."""
    all: list[Condition] = []
    """Every one must hold."""
    any: list[Condition] = []
    """At least one must hold."""

    @model_validator(mode="after")
    def _one_form(self) -> Condition:
        forms = [self.signal is not None, bool(self.all), bool(self.any)]
        if sum(forms) != 1:
            raise ValueError("needs exactly one of signal, all, any")
        limits = [self.above is not None, self.below is not None]
        if self.signal is not None and sum(limits) != 1:
            raise ValueError("a signal needs exactly one of above, below")
        if self.signal is None and (any(limits) or self.full is not None):
            raise ValueError("above, below and full go with signal")
        if self.full is not None:
            if self.above is not None and self.full <= self.above:
                raise ValueError(f"full must be greater than above ({self.above:g})")
            if self.below is not None and self.full >= self.below:
                raise ValueError(f"full must be less than below ({self.below:g})")
        return self

    def signals(self) -> set[str]:
        named = {self.signal} if self.signal else set()
        return named.union(*(part.signals() for part in [*self.all, *self.any]))


class Reading(Entry):
    """One of the four first readings of a run: which kind of bottleneck it shows."""

    id: Identifier
    means: str
    when: Condition
    points_to: list[str]
    """Axes and tags whose hypotheses it makes likelier."""


class Symptom(Entry):
    """A named condition on measured telemetry."""

    id: Identifier
    means: str
    """What it says about the run, in one sentence."""
    reading: str
    """The bottleneck reading it belongs to."""
    when: Condition
    weight: Unit = 1.0
    """Importance: multiplies the severity."""
    explains: list[str] = []
    """Symptoms that follow from this one: while it holds they count for less."""


class RecipeCondition(Entry):
    """What the recipe must say for a hypothesis to apply: one key, one test."""

    key: str
    is_: Any = Field(None, alias="is")
    is_not: Any = None
    one_of: list[Any] | None = None
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_test(self) -> RecipeCondition:
        if len(self.model_fields_set - {"key"}) != 1:
            raise ValueError("needs exactly one of is, is_not, one_of, above, below")
        return self


class Requires(Entry):
    """What the machine and the recipe must have. Whatever is lacking is named where the idea is skipped."""

    accelerators: Annotated[int, Field(ge=0)] = 0
    """At least this many accelerators."""
    machine: list[Literal["cpu", "cuda", "rocm"]] = []
    """Only on these kinds of machine; empty is any."""
    bf16: bool = False
    """The accelerator computes bfloat16 itself."""
    packages: list[str] = []
    """Optional Python packages, all of them."""
    not_arch: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """Architecture (`gfx1151`, `sm_75`) -> why not there: a measured figure with its source."""
    unless: list[str] = []
    """Symptoms for which it is tried even there, and the reason stands beside it."""
    chat_template: bool = False
    """A model whose tokenizer has a chat template that the recipe uses."""
    when: list[RecipeCondition] = []
    """Conditions on the recipe, all of them."""

    @model_validator(mode="after")
    def _unless_goes_with_not_arch(self) -> Requires:
        if self.unless and not self.not_arch:
            raise ValueError("unless goes with not_arch")
        return self


class Variant(Entry):
    """One concrete form of a hypothesis: keys that belong together, changed together."""

    name: Identifier
    """Unique in the hypothesis."""
    set: dict[str, Any] = {}
    """Recipe key -> its new value."""
    scale: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Recipe key -> factor on what the recipe says; whole numbers stay whole, and all stay in their bounds."""
    toggle: list[str] = []
    """Recipe keys that are true or false, and become the other."""
    answers: dict[str, Unit] = {}
    """Fit by symptom, over the hypothesis' own; 0 takes one away."""
    requires: Requires = Requires()
    """On top of the hypothesis' own."""
    cost: Annotated[float, Field(gt=0)] | None = None
    """Instead of the hypothesis' own."""
    what: str | None = None
    """Instead of the hypothesis' own."""
    show: list[str] = []
    """Keys whose from and to stand in the commit subject; empty shows the first."""

    @model_validator(mode="after")
    def _is_a_change(self) -> Variant:
        Change(set=self.set, scale=self.scale, toggle=self.toggle)
        return self


class Hypothesis(Entry):
    """A claim and the changes that would test it."""

    id: Identifier
    """Unique in the playbook: small letters, digits, dashes."""
    claim: str
    """What we expect, and why, in a sentence that can turn out false."""
    status: Literal["validated", "experimental"] = "experimental"
    """Whether the claim has been found to hold."""
    what: str
    """What changes, for the commit subject `<axis>: <what>, <from> -> <to>`."""
    answers: dict[str, Unit] = {}
    """Symptom -> how well this answers it, 0 to 1."""
    prior: Unit = 0.05
    """Worth of trying it when nothing is wrong."""
    variants: Annotated[list[Variant], Field(min_length=1)]
    """Its forms, at least one; each is tried by itself."""
    requires: Requires = Requires()
    """What machine and recipe must have for it to be tried."""
    watch: list[str] = []
    """Watches that are reported with its outcome, besides those of the axis."""
    cost: Annotated[float, Field(gt=0)] = 1.0
    """Time of a run beside the incumbent's (1 = the same), as far as the budget does not fix it, and the effort of
    judging it (a comparator, a probe)."""
    tags: list[Identifier] = []
    """Besides the axis: what kind of knob it is (precision, optimizer, sequence, ...)."""
    premise: list[str] = []
    """Further recipe keys (a section's name stands for all below it) that its result leans on, beside those of the
    groups in `premises`: a kept change of one of them brings a failed try of it back."""
    comparator: dict[str, Any] = {}
    """Keys of the run this must beat besides the incumbent (a schedule: the same recipe at a constant rate)."""
    source: Literal["seed", "reference", "own"] = "own"
    """Where the idea comes from: the seed documents, published trainers, or this project."""


class AxisFile(Entry):
    """A file with hypotheses of one axis. Several files may share an axis; one of them describes it."""

    axis: Identifier
    title: str = ""
    look_here_when: str = ""
    favor_when: list[str] = []
    watch: list[str] = []
    """Watches that every hypothesis of the axis reports."""
    hypotheses: list[Hypothesis] = []


class Alarm(Entry):
    """When a watch speaks up: the candidate's signal against the incumbent's, or against a fixed limit."""

    signal: str
    rises_by: Annotated[float, Field(gt=0)] | None = None
    falls_by: Annotated[float, Field(gt=0)] | None = None
    falls_by_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of the incumbent's value; for signals that are no shares, such as tokens a second."""
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Alarm:
        if len(self.model_fields_set - {"signal"}) != 1:
            raise ValueError("needs exactly one of rises_by, falls_by, falls_by_share, above, below")
        return self


class ProbeVariant(Entry):
    name: Identifier
    set: dict[str, Any]
    """Prompt keys, with references, that the evaluation uses instead of the candidate's own."""

    @model_validator(mode="after")
    def _prompt_only(self) -> ProbeVariant:
        for key in self.set:
            if not key.startswith("prompt."):
                raise ValueError(f"a probe may only reword the prompt, {key} is not below prompt")
        return self


class Watch(Entry):
    """What is reported with an outcome: signals of the run, or a probe, which is a run of its own (evaluation only)."""

    id: Identifier
    read: str
    """How to read it."""
    signals: list[str] = []
    alarms: list[Alarm] = []
    probe: list[ProbeVariant] = []
    """Evaluations of the candidate's and the incumbent's checkpoint with other prompt keys."""
    vanishes_below: Unit = 0.5
    """A probe: the gain counts as gone where less than this share of it is left."""

    @model_validator(mode="after")
    def _reports_something(self) -> Watch:
        if not self.signals and not self.probe:
            raise ValueError("a watch needs signals or a probe")
        return self


class Action(Entry):
    """Something the campaign or the user does; it touches locked keys, so it is never an experiment."""

    id: Identifier
    answers: dict[str, Unit]
    does: str
    scale: dict[str, float] = {}
    """Locked keys and the factor proposed for them."""


class ResourceRule(Entry):
    """Which ideas come first, and which last, on a machine of this size and kind."""

    id: Identifier
    says: str
    """Why, with the source of a figure."""
    at_least: int = 0
    at_most: int | None = None
    """Accelerators, both ends included."""
    machine: list[Literal["cpu", "cuda", "rocm"]] = []
    """Only on these kinds of machine; empty is any, and a machine of which nothing is known."""
    arch: list[str] = []
    """Only with an accelerator of one of these architectures (`gfx1151`); empty is any."""
    when: list[RecipeCondition] = []
    """Conditions on the recipe, all of them."""
    prefer: list[str] = []
    """Axes, tags, hypotheses, or single forms (`hypothesis/form`) whose score is multiplied by `factor`."""
    defer: list[str] = []
    """Such whose score is divided by it."""
    factor: Annotated[float, Field(ge=1, le=3)] = 1.3
    """Of several rules that prefer an idea the strongest counts, and likewise of those that defer it."""

    @model_validator(mode="after")
    def _moves_something(self) -> ResourceRule:
        if not self.prefer and not self.defer:
            raise ValueError("a resource rule needs prefer or defer")
        return self


class CrashRule(Entry):
    """What becomes of an idea that crashes; at most one rule a class."""

    id: Identifier
    crash_class: CrashClass | Literal["any"]
    """`any` is for `fixes` alone: of all that have no rule of their own, or one that leaves them open."""
    says: str
    first: str
    """What a campaign does about it, for people: `raft-agent diagnose` prints it."""
    fixes: Annotated[int, Field(ge=0, le=10)] | None = None
    """Fixes and repeats of an idea before a further crash of this class is recorded as its outcome."""


class Queue(Entry):
    """A kept change of these keys puts hypotheses at the head of the queue."""

    id: Identifier
    says: str
    after_kept: list[str]
    """Recipe keys (a section's name stands for all below it)."""
    then: list[str]
    """Hypothesis ids."""
    boost: Unit = 0.5


class Premise(Entry):
    """Recipe keys that interact. The result of an idea that moved one of them leans on all of them."""

    id: Identifier
    says: str
    """Why they belong together."""
    keys: Annotated[list[str], Field(min_length=1)]
    """Recipe keys; a section's name stands for all below it."""
    crash_class: CrashClass | None = None
    """Only for crashes of this class, and instead of all other groups. Such a crash loses its premise where one of
    the keys needs less than it did: a smaller number, or an earlier one of the choices in `order`."""
    order: dict[str, Annotated[list[Any], Field(min_length=2)]] = {}
    """Key -> its choices, those that need least first."""

    @model_validator(mode="after")
    def _order_goes_with_a_crash(self) -> Premise:
        if self.order and self.crash_class is None:
            raise ValueError("order goes with crash_class")
        return self


class Template(Entry):
    id: Identifier
    axis: str
    pattern: str
    """A commit subject of this kind of experiment."""
    hypothesis: str
    """The hypothesis whose subject follows it."""


class GroundRule(Entry):
    id: Identifier
    says: str
    held_by: str
    """What in the program holds it."""


class Fact(Entry):
    id: Identifier
    says: str
    status: Literal["validated", "hypothesis", "unknown"]
    source: str
    tested_by: list[str] = []
    """Hypotheses that put it to the test."""
    advice: str = ""
    """What follows from it for the choice of a learning rate: `raft-agent lr --recommendations` is made of these."""


class RulesFile(Entry):
    """A file without an axis: any of these lists."""

    readings: list[Reading] = []
    symptoms: list[Symptom] = []
    watches: list[Watch] = []
    actions: list[Action] = []
    resources: list[ResourceRule] = []
    crashes: list[CrashRule] = []
    queues: list[Queue] = []
    premises: list[Premise] = []
    templates: list[Template] = []
    ground_rules: list[GroundRule] = []
    facts: list[Fact] = []


@dataclass
class Axis:
    id: str
    title: str = ""
    look_here_when: str = ""
    favor_when: list[str] = field(default_factory=list)
    watch: list[str] = field(default_factory=list)


@dataclass
class Playbook:
    """Everything in the `hypotheses/` folder, by id, in the order of the files."""

    folder: Path
    axes: dict[str, Axis] = field(default_factory=dict)
    hypotheses: dict[str, Hypothesis] = field(default_factory=dict)
    axis_of: dict[str, str] = field(default_factory=dict)
    """Hypothesis id -> axis."""
    readings: dict[str, Reading] = field(default_factory=dict)
    symptoms: dict[str, Symptom] = field(default_factory=dict)
    watches: dict[str, Watch] = field(default_factory=dict)
    actions: dict[str, Action] = field(default_factory=dict)
    resources: dict[str, ResourceRule] = field(default_factory=dict)
    crashes: dict[str, CrashRule] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    premises: dict[str, Premise] = field(default_factory=dict)
    templates: dict[str, Template] = field(default_factory=dict)
    ground_rules: dict[str, GroundRule] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """`kind:id` -> the place it was read from, for messages."""

    def tags_of(self, hypothesis: str) -> set[str]:
        """The axis and the tags of a hypothesis: what readings and resource rules point to."""
        return {self.axis_of[hypothesis], *self.hypotheses[hypothesis].tags}

    def crash_rule(self, crash_class: str) -> CrashRule | None:
        """Of this class."""
        return next((rule for rule in self.crashes.values() if rule.crash_class == crash_class), None)

    def fixes_after(self, crash_class: str) -> int:
        """Fixes and repeats that an idea has before a crash of this class is its outcome."""
        rules = [rule for rule in self.crashes.values() if rule.crash_class in (crash_class, "any")]
        rules.sort(key=lambda rule: rule.crash_class == "any")
        return next((rule.fixes for rule in rules if rule.fixes is not None), FIXES)

    def watches_of(self, hypothesis: str) -> list[str]:
        """Watch ids: the hypothesis' own first, then those of its axis."""
        axis = self.axes[self.axis_of[hypothesis]]
        return list(dict.fromkeys([*self.hypotheses[hypothesis].watch, *axis.watch]))
