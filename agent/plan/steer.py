"""`steer.md`, the file by which a person steers a running campaign: text to instructions and problems.

A list item, of a list with bullets or numbers, is an instruction, or a problem that says what is wrong with it;
everything else is prose: paragraphs, headings, quotes, HTML comments, fenced code. What looks like an instruction in a
list and is none to Markdown is a problem too. docs/controls.md has every form. Nothing raises, whatever the text is.
Who may be tried is not decided here: `planner.py` leaves out what is barred, `asked.py` admits what is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.errors import AgentError
from agent.plan.playbook import nearest
from agent.plan.schema import Playbook
from agent.recipe.reading import read_yaml
from agent.recipe.schema import leaf_keys

FILE = "steer.md"
"""In the root of a workspace."""
BARRED = f"barred by {FILE}"
"""What pins and bans leave out, where ideas are counted."""
OWN = "steer"
"""Hypothesis and axis of an idea that a person wrote."""
REFINE = "refine-"
"""Before the axis: the hypothesis id of a refinement."""
MOST_INSTRUCTIONS = 200
LONGEST = 2000
"""Characters of an instruction."""
FURTHEST = 12
"""Columns by which an item may be indented, a tab being up to four: two lists inside of a list."""

Kind = Literal["pin", "ban", "try", "stop", "pause"]
Of = Literal["", "axis", "hypothesis", "key", "values"]
VERBS: tuple[Kind, ...] = ("pin", "ban", "try", "stop", "pause")
AFTER = "after this one"
FORMS = {
    "pin": "pin axis NAME, or pin hypothesis NAME",
    "ban": "ban axis NAME, ban hypothesis NAME, or ban key KEY",
    "try": "try hypothesis NAME, try NAME/FORM, try KEY VALUE, or try KEY: VALUE, KEY: VALUE",
    "stop": f"stop {AFTER}",
    "pause": f"pause {AFTER}",
}
EXAMPLE = """\
# What the agent should know tonight

Lines like this one are prose. Each list item is an instruction; take it out to take it back.

- pin axis learning-rate
- ban hypothesis lr-cosine
- ban key rollout.temperature
- try lr-exponential/standard
- try learner.learning_rate: 2e-4, learner.warmup: 0.1

<!-- kept for later:
- pause after this one
-->
"""

_ITEM = re.compile(r"(?P<indent>[ \t]*)(?:[-*+]|\d{1,9}[.)])[ \t]+(?P<rest>.*)")
_NEARLY = re.compile(rf"[ \t]*(?:[-+\u2013\u2014\u2022]|\d+[.)])[ \t]*(?P<verb>{'|'.join(VERBS)})[ \t]", re.IGNORECASE)
"""What stands as in a list and is no item of one: without a space behind the mark, or with a dash or dot for it."""
_FENCE = re.compile(r"[ \t]*(?P<fence>```+|~~~+)")
_COMMENT = re.compile(r"<!--.*?-->")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*(?:/[\w.-]+)?")
_MAPPING = re.compile(r"[A-Za-z_][\w.]*[ \t]*:(?:[ \t]|$)")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Instruction:
    line: int
    text: str
    """With single spaces; by this it is known again."""
    kind: Kind
    of: Of = ""
    name: str = ""
    """Axis, hypothesis or key."""
    variant: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of an own idea: key -> value."""

    @property
    def is_once(self) -> bool:
        """It is carried out, and then is done; the others hold as long as they stand there."""
        return self.kind in ("try", "stop", "pause")

    @property
    def words(self) -> str:
        return f"{FILE}:{self.line} ({self.text})"


@dataclass(frozen=True)
class Problem:
    line: int
    """0 where it is of the whole file."""
    text: str
    hides: bool = False
    """There may be instructions that it keeps from being read."""
    verb: str = ""
    """Of the line, where it may be an instruction that is being written."""

    @property
    def words(self) -> str:
        return f"{FILE}:{self.line}: {self.text}" if self.line else f"{FILE}: {self.text}"


@dataclass(frozen=True)
class Steering:
    instructions: tuple[Instruction, ...] = ()
    problems: tuple[Problem, ...] = ()

    def is_without(self, text: str) -> bool:
        """Whether an instruction of these words stands in the file no more, as far as it can be read."""
        if any(one.text == text for one in self.instructions):
            return False
        return not any(problem.hides or problem.verb == verb_of(text) for problem in self.problems)

    def of_kind(self, *kinds: Kind) -> list[Instruction]:
        return [one for one in self.instructions if one.kind in kinds]

    def against(self, hypothesis: str, axis: str) -> str | None:
        """Why a hypothesis is not planned, or None. A ban counts more than a pin."""
        banned = next((one for one in self.of_kind("ban") if _is_of(one, hypothesis, axis)), None)
        if banned is not None:
            return f"banned by {banned.words}"
        pins = self.of_kind("pin")
        if pins and not any(_is_of(one, hypothesis, axis) for one in pins):
            return f"not among what is pinned by {' and '.join(one.words for one in pins)}"
        return None

    def against_keys(self, keys: Iterable[str]) -> str | None:
        """Why nothing that moves these keys is planned, or None."""
        bans = [one for one in self.of_kind("ban") if one.of == "key"]
        for key in keys:
            for ban in bans:
                if key == ban.name or key.startswith(f"{ban.name}.") or ban.name.startswith(f"{key}."):
                    return f"it moves {key}, which is banned by {ban.words}"
        return None


def verb_of(words: str) -> str:
    """That an item begins with, of VERBS; empty where it begins with none."""
    first = words.strip().strip("`").partition(" ")[0].lower()
    return first if first in VERBS else ""


FREE = Steering()
"""Nobody steers."""


def _is_of(one: Instruction, hypothesis: str, axis: str) -> bool:
    return (one.of == "axis" and one.name == axis) or (one.of == "hypothesis" and one.name == hypothesis)


def read_steering(text: str, playbook: Playbook, *, only: str | None = None) -> Steering:
    """What a text asks for. `only`: the axis or hypothesis that a directed campaign is for."""
    instructions: list[Instruction] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for line, item in _items(text):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        words = " ".join(item.strip().strip("`").split())
        try:
            instruction = _instruction(line, words, playbook, only)
        except _Wrong as wrong:
            problems.append(Problem(line, str(wrong), verb=verb_of(words)))
            continue
        if words in first:
            problems.append(Problem(line, f"the same as line {first[words]}; it counts once"))
        elif len(instructions) >= MOST_INSTRUCTIONS:
            words = f"more than {MOST_INSTRUCTIONS} instructions; this one is left out"
            problems.append(Problem(line, words, hides=True))
        else:
            first[words] = line
            instructions.append(instruction)
    return Steering(tuple(instructions), tuple(problems))


# --- lines -------------------------------------------------------------------------------------------------


def _items(text: str) -> Iterator[tuple[int, str | Problem]]:
    """(line, text of its list item), without comments and fenced code. One that is not closed hides what follows, and
    that is a problem."""
    fence, opened, in_comment = "", 0, False
    for number, line in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), start=1):
        if fence:
            closing = line.strip()
            if closing.startswith(fence) and not closing.strip(fence[0]):
                fence = ""
            continue
        if in_comment:
            _, end, line = line.partition("-->")
            if not end:
                continue
            in_comment = False
        elif found := _FENCE.match(line):
            fence, opened = found["fence"], number
            continue
        line = _COMMENT.sub(" ", line)
        line, begin, _ = line.partition("<!--")
        if begin:
            in_comment, opened = True, number
        found = _ITEM.fullmatch(line)
        if found and found["rest"].strip():
            columns = len(found["indent"].expandtabs(4))
            words = f"stands {columns} columns to the right, too far for a list ({FURTHEST} at most)"
            far = Problem(number, words, verb=verb_of(" ".join(found["rest"].split())))
            yield number, found["rest"] if columns <= FURTHEST else far
        elif nearly := _NEARLY.match(line):
            verb = nearly["verb"].lower()
            yield number, Problem(number, f"is no list item: write - {verb} ..., with a space", verb=verb)
    if fence or in_comment:
        what = "the fenced code" if fence else "the comment"
        words = f"{what} that begins here has no end, so nothing after it counts"
        yield opened, Problem(opened, words, hides=True)


class _Wrong(Exception):
    """Why an item is no instruction."""


def _instruction(line: int, words: str, playbook: Playbook, only: str | None) -> Instruction:
    if len(words) > LONGEST:
        raise _Wrong(f"an instruction has at most {LONGEST} characters, this has {len(words)}")
    verb, _, rest = words.partition(" ")
    kind = next((one for one in VERBS if one == verb.lower()), None)
    if kind is None:
        raise _Wrong(f"{_quoted(verb)} is no instruction: {nearest(verb.lower(), VERBS)} (prose is not in a list)")
    if kind in ("stop", "pause"):
        if rest.lower() != AFTER:
            raise _Wrong(f"write {FORMS[kind]}")
        return Instruction(line, words.lower(), kind)
    if not rest:
        raise _Wrong(f"{kind} what? Write {FORMS[kind]}")
    if kind == "try":
        return _try(line, words, rest, playbook)
    what, _, name = rest.partition(" ")
    if what == "axis" and name:
        _refuse_unknown(name, "axis", playbook.axes)
        found = Instruction(line, words, kind, "axis", name)
    elif what == "hypothesis" and name:
        _refuse_unknown(name, "hypothesis", [*playbook.hypotheses, *(f"{REFINE}{axis}" for axis in playbook.axes)])
        found = Instruction(line, words, kind, "hypothesis", name)
    elif what == "key" and name and kind == "ban":
        _refuse_unknown(name, "key", _keys_and_sections())
        found = Instruction(line, words, kind, "key", name)
    else:
        raise _Wrong(f"write {FORMS[kind]}")
    if kind == "pin" and not _inside(found, only, playbook):
        raise _Wrong(f"this campaign is directed, --only {only}, and {name} is outside of that")
    return found


def _inside(pin: Instruction, only: str | None, playbook: Playbook) -> bool:
    """Whether the pin leaves something of what a directed campaign is for."""
    axis_of = playbook.axis_of | {f"{REFINE}{axis}": axis for axis in playbook.axes}
    if pin.of == "axis":
        return only in (None, pin.name) or axis_of.get(str(only)) == pin.name
    return only in (None, pin.name, axis_of.get(pin.name))


def _refuse_unknown(name: str, what: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise _Wrong(f"no {what} {_quoted(name)}: {nearest(name, known)}")


def _keys_and_sections() -> list[str]:
    leaves = list(leaf_keys())
    sections = {key.rsplit(".", depth)[0] for key in leaves for depth in range(1, key.count(".") + 1)}
    return [*leaves, *sorted(sections)]


# --- try ---------------------------------------------------------------------------------------------------


def _try(line: int, words: str, rest: str, playbook: Playbook) -> Instruction:
    if _MAPPING.match(rest):
        return Instruction(line, words, "try", "values", values=_values(f"{{{rest}}}"))
    first, _, more = rest.partition(" ")
    if first == "hypothesis":
        if not _NAME.fullmatch(more):
            raise _Wrong(f"write {FORMS['try']}")
        return _form(line, words, more, playbook)
    if more:
        _refuse_unknown(first, "key", _keys_and_sections())
        return Instruction(line, words, "try", "values", values=_values(f"{{{first}: {more}}}"))
    if not _NAME.fullmatch(rest):
        is_key = rest in leaf_keys()
        raise _Wrong(f"{rest} needs a value, try {rest} VALUE" if is_key else f"write {FORMS['try']}")
    return _form(line, words, rest, playbook)


def _form(line: int, words: str, rest: str, playbook: Playbook) -> Instruction:
    name, _, variant = rest.partition("/")
    _refuse_unknown(name, "hypothesis", playbook.hypotheses)
    forms = [one.name for one in playbook.hypotheses[name].variants]
    if variant and variant not in forms:
        raise _Wrong(f"{name} has no form {_quoted(variant)}: {nearest(variant, forms)}")
    return Instruction(line, words, "try", "hypothesis", name, variant)


def _values(flow: str) -> dict[str, Any]:
    try:
        found = read_yaml(flow, where="", edited=False)
    except AgentError as error:
        raise _Wrong(f"cannot be read: {error.message}; a text with a comma or a colon needs quotes") from None
    if not isinstance(found, dict) or not found:
        raise _Wrong(f"write {FORMS['try']}")
    known = _keys_and_sections()
    for key, value in found.items():
        _refuse_unknown(str(key), "key", known)
        if "." not in str(key) and key not in leaf_keys():
            raise _Wrong(f"{key} is a whole section: name the setting in it")
        if value is None and flow.rstrip("}").rstrip().endswith(f"{key}:"):
            raise _Wrong(f"{key} needs a value (null for none)")
    return {str(key): value for key, value in found.items()}


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
