"""A task's rows: where they come from, how they are dealt into splits, in which order training draws them.

Dealing. Rows are grouped by question, and questions that are near-duplicates (see `agent.tasks.duplicates`) are one
group, so that what is asked in one split is asked in no other. Questions are put in an order of their own, by a hash
of split_seed and question. Groups come in the order of their first questions, and are dealt from the front: holdout,
confirm, search, select; of such a group only the first row of the first question is used, the others nowhere. The
rest is train. So the splits depend neither on the order of the rows, nor on `train_prompts` and `mix`; and a larger
split keeps the prompts it had, and leaves those that were dealt before it as they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from agent.errors import DataError, RecipeError
from agent.recipe.schema import Curriculum, Evaluation, Task
from agent.tasks import arithmetic, gym, jsonl
from agent.tasks.curriculum import PassRates
from agent.tasks.duplicates import group_numbers
from agent.tasks.example import Example
from agent.tasks.nearest import nearest

__all__ = ["Example", "PromptSource", "Splits", "load_rows", "load_splits", "refuse_shared_groups"]

BUILTIN = {"builtin:addition": arithmetic.addition_rows, "builtin:arithmetic": arithmetic.arithmetic_rows}
DEALING_ORDER = ("holdout", "confirm", "search", "select")
"""What must stay comparable for longest takes first."""
REFUSED_PAIRS = 3


@dataclass(frozen=True)
class Splits:
    """Disjoint by group of questions. A held-out question is there once; one to train on as often as in the data."""

    train: tuple[Example, ...]
    select: tuple[Example, ...]
    search: tuple[Example, ...]
    confirm: tuple[Example, ...]
    holdout: tuple[Example, ...]
    digest: str
    """SHA-256 of everything that is measured on: the rows of select, search, confirm and holdout, whole."""
    source: str = field(default="", compare=False)
    """SHA-256 of the bytes of the data set's file as they were read; empty for rows that a program made."""
    refused: int = 0
    """Rows that are not trained on because they are near-duplicates of a held-out one; exact repeats not counted."""
    refused_pairs: tuple[tuple[str, str], ...] = ()
    """Ids of a few of them, each after the id of the held-out row."""

    def refusal(self) -> str | None:
        """The same for people; None where nothing was refused."""
        if not self.refused:
            return None
        pairs = ", ".join(f"{refused} (of {held_out})" for held_out, refused in self.refused_pairs)
        return f"rows not trained on, as near-duplicates of held-out ones: {self.refused}, such as {pairs}"


def load_splits(task: Task, evaluation: Evaluation, *, base: Path) -> Splits:
    """The rows of `task.dataset`, dealt. `base` is the folder that a `jsonl:` path is relative to.

    Raises DataError where the rows do not suffice, and what `load_rows` raises.
    """
    rows: dict[str, list[Example]] = {}
    content = jsonl.content_of(task, base=base) if task.dataset.startswith(jsonl.PREFIX) else None
    for row in load_rows(task, base=base, content=content):
        rows.setdefault(_question_key(row.question), []).append(row)
    questions = sorted(rows, key=lambda key: _rank(key, task.split_seed))
    groups = group_numbers(questions)
    leaders = [number for number, group in enumerate(groups) if number == group]
    sizes = {name: int(getattr(evaluation, f"{name}_prompts")) for name in DEALING_ORDER}
    _check_enough(sizes, len(leaders), rows, task)
    order = iter(leaders)
    dealt = {group: name for name in DEALING_ORDER for group in islice(order, sizes[name])}
    first = {group: rows[questions[group]][0] for group in dealt}
    held_out = {name: tuple(first[group] for group in dealt if dealt[group] == name) for name in DEALING_ORDER}
    placed = [(group, row) for question, group in zip(questions, groups, strict=True) for row in rows[question]]
    train = [row for group, row in placed if group not in dealt]
    refuse_shared_groups({**held_out, "train": train}, {row.id: group for group, row in placed})
    members = [(group, row) for group, row in placed if group in dealt]
    refused = [(first[group].id, row.id) for group, row in members if _question_key(row.question) != questions[group]]
    return Splits(
        train=tuple(train[: task.train_prompts]),
        **held_out,
        digest=_digest(held_out),
        source="" if content is None else hashlib.sha256(content).hexdigest(),
        refused=len(refused),
        refused_pairs=tuple(refused[:REFUSED_PAIRS]),
    )


def refuse_shared_groups(splits: Mapping[str, Sequence[Example]], group_of: Mapping[str, int]) -> None:
    """Raises DataError, which names both rows, where rows of two splits are in one group. `group_of` is by row id.

    Dealing never lets that happen; a held-out metric is worth nothing where it does.
    """
    owners: dict[int, tuple[str, Example]] = {}
    for name, examples in splits.items():
        for row in examples:
            owner, first = owners.setdefault(group_of[row.id], (name, row))
            if owner != name:
                raise DataError(
                    f"row {first.id} of {owner} and row {row.id} of {name} ask the same: {first.question!r:.200}",
                    hint="This is a mistake of raft-agent: splits must be disjoint. Please report it.",
                )


def load_rows(task: Task, *, base: Path, content: bytes | None = None) -> list[Example]:
    """Every row of `task.dataset`; `content` is its file's, where it was read already. Raises RecipeError, DataError
    or Unavailable, with what to do."""
    name = task.dataset
    if name.startswith(jsonl.PREFIX):
        if task.parameters:
            raise RecipeError("task.parameters has no meaning for jsonl:", key="task.parameters", where=name)
        return jsonl.jsonl_rows(task, base=base, content=content)
    if task.fields or task.answer_after is not None:
        key = "task.fields" if task.fields else "task.answer_after"
        raise RecipeError(f"{key} is for jsonl: data sets", key=key, where=name)
    if name.startswith(gym.PREFIX):
        return gym.gym_rows(name.removeprefix(gym.PREFIX), task.parameters)
    if name in BUILTIN:
        return BUILTIN[name](task.parameters)
    known = [*BUILTIN, "reasoning_gym:<name>", "jsonl:<path>"]
    near = nearest(name, known)
    raise RecipeError(
        f"task.dataset {name!r} is none of {', '.join(known)}; the nearest is {near!r}",
        key="task.dataset",
        suggestion=near,
    )


def _question_key(question: str) -> str:
    """Questions that differ in white space or case only are one question."""
    return " ".join(question.split()).casefold()


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()


def _check_enough(sizes: Mapping[str, int], groups: int, rows: Mapping[str, Sequence[Example]], task: Task) -> None:
    """At least one question must be left to train on."""
    wanted = sum(sizes.values())
    if wanted < groups:
        return
    total = sum(map(len, rows.values()))
    near = " (near-duplicates are one)" if groups < len(rows) else ""
    keys = ", ".join(f"evaluation.{name}_prompts ({size})" for name, size in sizes.items())
    raise DataError(
        f"the data set has {total} rows with {groups} different questions{near}, but the held-out splits take {wanted} "
        "and training needs some too",
        where=task.dataset,
        hint=f"Lower {keys}, or bring more rows.",
    )


def _digest(held_out: Mapping[str, Sequence[Example]]) -> str:
    digest = hashlib.sha256()
    for name in DEALING_ORDER:
        digest.update(name.encode() + b"\n" + _plain(held_out[name]))
    return digest.hexdigest()


def _plain(rows: Sequence[Example]) -> bytes:
    """All that a verifier may look at."""
    told = [[row.id, row.question, row.answer, row.tests, row.row] for row in rows]
    return json.dumps(told, default=str).encode()


class PromptSource:
    """Draws training prompts: seeded, in epochs without replacement, weighted by `task.mix`.

    Rows of equal weight form one stream. A stream hands out each of its rows once, in a shuffled order, before it
    begins anew; how often a stream is asked follows its share of the total weight exactly, not by chance. Without a
    mix there is one stream, and so plain epochs. No prompt comes twice in one draw while there is another.

    With a curriculum, the share `floor` of every draw (at least one prompt) comes from these streams, so that each
    row still comes round, without a mix in every 2 N / (floor * count) draws; the others are drawn at random by
    interest (see `agent.tasks.curriculum`) times weight, and where nothing else is of interest, by weight alone.
    """

    def __init__(
        self,
        train: Sequence[Example],
        *,
        mix: Mapping[str, float] | None = None,
        curriculum: Curriculum | None = None,
        seed: int = 0,
    ):
        """Raises DataError without rows, RecipeError for a tag in `mix` that no training row has."""
        if not train:
            raise DataError("there are no training prompts to draw from", hint="Raise task.train_prompts.")
        self._train = tuple(train)
        self._seed = seed
        weights = [weight_of(row.tag, mix or {}) for row in self._train]
        _check_tags(self._train, mix or {})
        if not any(weights):
            raise RecipeError("task.mix gives every training row the weight 0", key="task.mix")
        distinct = sorted({weight for weight in weights if weight > 0})
        members = [[index for index, weight in enumerate(weights) if weight == one] for one in distinct]
        total = sum(weights)
        self._streams = [
            _Stream(rows, share=one * len(rows) / total, name=f"{seed}/{place}")
            for place, (one, rows) in enumerate(zip(distinct, members, strict=True))
        ]
        self._weights = weights
        self._curriculum = curriculum
        self._rates = PassRates(target=curriculum.target, seed=seed) if curriculum else None
        self._ids = {row.id for row in self._train}

    def draw(self, count: int) -> list[Example]:
        """The next `count` prompts. Some repeat only where `count` exceeds the rows of positive weight."""
        in_this_round: set[int] = set()
        if self._curriculum is None or self._rates is None:
            drawn = self._come_round(count, in_this_round)
        else:
            steady = min(count, max(1, math.ceil(self._curriculum.floor * count - 1e-9)))
            drawn = self._come_round(steady, in_this_round)
            drawn += self._of_interest(self._rates, count - steady, in_this_round)
            drawn += self._come_round(count - len(drawn), in_this_round)
        return [self._train[index] for index in drawn]

    def record(self, example_id: str, passed: int, samples: int) -> None:
        """Note that `passed` of `samples` completions of a training prompt passed; 0 of 0 where it does not fit.

        Without a curriculum this changes nothing. Raises ValueError for numbers that cannot be, or an unknown id.
        """
        if example_id not in self._ids:
            raise ValueError(f"{example_id} is no training prompt")
        if self._rates is not None:
            self._rates.record(example_id, passed, samples)

    def _of_interest(self, rates: PassRates, count: int, in_this_round: set[int]) -> list[int]:
        """Rows by interest and weight, then by weight; none that this draw has already, fewer where there are none."""
        interests = [rates.interest(row.id) for row in self._train]
        chosen: list[int] = []
        for weights in ([w * i for w, i in zip(self._weights, interests, strict=True)], self._weights):
            if len(chosen) == count:
                break
            open_rows = [(index, weight) for index, weight in enumerate(weights) if index not in in_this_round]
            chosen += rates.choose(open_rows, count - len(chosen))
            in_this_round.update(chosen)
        return chosen

    def _come_round(self, count: int, in_this_round: set[int]) -> list[int]:
        """The next rows of the streams. `in_this_round` is what the draw has already, and is kept up to date."""
        drawn: list[int] = []
        for _ in range(count):
            open_streams = [stream for stream in self._streams if not stream.exhausted(in_this_round)]
            if not open_streams:
                in_this_round.clear()
                open_streams = self._streams
            index = self._next_stream(open_streams).take(avoid=in_this_round)
            in_this_round.add(index)
            drawn.append(index)
        return drawn

    def state(self) -> dict[str, Any]:
        """Where the source stands, as JSON values."""
        state = {"rows": self._fingerprint(), "streams": [stream.state() for stream in self._streams]}
        return state if self._rates is None else {**state, "curriculum": self._rates.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. DataError if it was made with other rows, another mix, curriculum or seed."""
        if state["rows"] != self._fingerprint():
            raise DataError(
                "the saved position belongs to other training rows, another task.mix, task.curriculum or seed",
                hint="Start this training in a new folder.",
            )
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.restore(saved)
        if self._rates is not None:
            self._rates.restore(state["curriculum"])

    def _next_stream(self, streams: Sequence[_Stream]) -> _Stream:
        """The one that lags furthest behind its share."""
        for stream in streams:
            stream.credit += stream.share
        chosen = max(streams, key=lambda stream: stream.credit)
        chosen.credit -= sum(stream.share for stream in streams)
        return chosen

    def _fingerprint(self) -> str:
        rows: list[Any] = [
            [stream.name, stream.share, [self._train[index].id for index in stream.rows]] for stream in self._streams
        ]
        if self._curriculum is not None:
            rows.append(self._curriculum.model_dump())
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class _Stream:
    """Rows that are equally likely, in epochs. The order of an epoch follows from its number and what it puts off."""

    def __init__(self, rows: Sequence[int], *, share: float, name: str):
        self.rows = list(rows)
        self.share = share
        self.name = name
        self.credit = 0.0
        self._epoch = 0
        self._position = 0
        self._put_off: list[int] = []
        self._order = self._shuffled()

    def exhausted(self, drawn: set[int]) -> bool:
        """Whether every row has been drawn already."""
        return len(drawn) >= len(self.rows) and drawn.issuperset(self.rows)

    def take(self, *, avoid: set[int]) -> int:
        """The next row. Where an epoch ends, those to avoid go to the end of the next one."""
        if self._position == len(self._order):
            self._epoch += 1
            self._position = 0
            self._put_off = sorted(avoid.intersection(self.rows))
            self._order = self._shuffled()
        self._position += 1
        return self._order[self._position - 1]

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "position": self._position, "put_off": self._put_off, "credit": self.credit}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._put_off, self.credit = list(state["put_off"]), float(state["credit"])
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(self.rows)
        random.Random(f"{self.name}/{self._epoch}").shuffle(order)
        put_off = set(self._put_off)
        return sorted(order, key=put_off.__contains__)


def weight_of(tag: str | None, mix: Mapping[str, float]) -> float:
    """Weight of one row: that of its tag `mul/3`, else of the tag's first part `mul`, else 1."""
    if tag is None:
        return 1.0
    return float(mix.get(tag, mix.get(tag.partition("/")[0], 1.0)))


def _check_tags(train: Sequence[Example], mix: Mapping[str, float]) -> None:
    tags = {row.tag for row in train if row.tag is not None}
    known = sorted(tags | {tag.partition("/")[0] for tag in tags})
    for tag in mix:
        if tag not in known:
            near = nearest(tag, known) if known else None
            raise RecipeError(
                f"task.mix.{tag}: no training row has this tag; there are {', '.join(known[:20]) or 'no tags'}",
                key=f"task.mix.{tag}",
                problem="unknown",
                suggestion=near,
            )
