"""`reasoning_gym:<name>`: rows of the reasoning-gym package, and the scoring rules that come with its data sets.

The package is optional and is imported at the first use.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from agent.errors import RecipeError, Unavailable
from agent.tasks import scorer
from agent.tasks.example import Example
from agent.tasks.layers import layers_here, refuse_without_walls
from agent.tasks.nearest import nearest
from agent.tasks.verdicts import PASS_MARK, Closed

PREFIX = "reasoning_gym:"
DEFAULTS = {"size": 2000, "seed": 0}
"""Instead of the package's own 500 rows, which would not fill the default held-out splits, and its random seed."""

_EXECUTES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")


def gym_rows(name: str, parameters: Mapping[str, Any]) -> list[Example]:
    """Rows of one data set of reasoning-gym, as many as `size` says.

    Raises Unavailable without the package, RecipeError for an unknown name or parameter.
    """
    package = _package()
    settings = {**DEFAULTS, **parameters}
    if name not in package.factory.DATASETS:
        raise _unknown_name(name, list(package.factory.DATASETS))
    try:
        data_set = package.create_dataset(name, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise _bad_parameters(name, settings, error, package) from None
    return [_example(name, settings, index, data_set[index]) for index in range(settings["size"])]


def _example(name: str, settings: Mapping[str, Any], index: int, entry: Mapping[str, Any]) -> Example:
    row = {"reasoning_gym": name, "parameters": dict(settings), "index": index}
    return Example(
        id=f"{name}:{index}",
        question=str(entry["question"]),
        answer="" if entry["answer"] is None else str(entry["answer"]),
        tag=entry["metadata"].get("source_dataset", name),
        row=row,
    )


class RuleOfDataSet:
    """Asks the scoring rule of a row's own data set, in a child process with a time limit."""

    def __init__(self, *, timeout: float, allow_untrusted_code: bool):
        self._timeout = timeout
        self._allow_untrusted_code = allow_untrusted_code
        self._scorers: dict[str, scorer.Scorers] = {}
        self._lock = threading.Lock()
        self._closed = False

    def accepts(self, answer: str, example: Example) -> bool:
        """Full score by the rule. False for a row that is not of a `reasoning_gym:` data set, or when time is up.

        Raises UsageError where the rule evaluates the answer as Python, too little keeps that in, and nobody has
        allowed it.
        """
        if "reasoning_gym" not in example.row:
            return False
        reply = self.reply(answer, example)
        return reply is not None and reply.values is not None and (reply.values.get("value") or 0.0) >= PASS_MARK

    def reply(self, answer: str, example: Example) -> scorer.Reply | None:
        """What the rule says: `value` in [0, 1]. None for a row that names no data set.

        A row of another source names its data set as the package's own entries do, in `metadata.source_dataset`, and
        carries in `metadata` what the rule wants to know. Raises UsageError as `accepts` does.
        """
        row = example.row
        if "reasoning_gym" in row:
            scorers = self._scorers_of(row["reasoning_gym"], row["parameters"])
            return scorers.score({"response": answer, "index": row["index"]})
        metadata = row.get("metadata")
        name = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
        if not isinstance(name, str) or name not in _package().factory.DATASETS:
            return None
        entry = {"question": example.question, "answer": example.answer, "metadata": metadata}
        return self._scorers_of(name, {}).score({"response": answer, "entry": entry})

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for scorers in self._scorers.values():
            scorers.close()

    def _scorers_of(self, name: str, parameters: Mapping[str, Any]) -> scorer.Scorers:
        key = json.dumps([name, parameters], sort_keys=True, default=str)
        with self._lock:
            if self._closed:
                raise Closed
            if key not in self._scorers:
                kept_in = None
                if executes_answers(name):
                    kept_in = layers_here()
                    what = f"reasoning_gym's rule for {name} evaluates the model's answer as Python"
                    refuse_without_walls(kept_in, what=what, allowed=self._allow_untrusted_code)
                self._scorers[key] = scorer.gym_scorers(name, parameters, timeout=self._timeout, kept_in=kept_in)
            return self._scorers[key]


def executes_answers(name: str) -> bool:
    """Whether the scoring rule of this data set runs an answer as Python; yes where that cannot be told.

    Read from the rule's source. In version 0.1.25 these are n_queens, spiral_matrix, countdown, puzzle24 and others.
    """
    data_set_class, _ = _package().factory.DATASETS[name]
    try:
        return _EXECUTES.search(inspect.getsource(data_set_class.score_answer)) is not None
    except OSError:
        return True


def _package() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError as error:
        raise Unavailable(
            f"the data set needs the package reasoning-gym, which cannot be imported: {error}",
            hint="pip install 'raft-agent[gym]', or choose another task.dataset.",
        ) from None
    package: ModuleType = reasoning_gym
    return package


def _unknown_name(name: str, known: list[str]) -> RecipeError:
    near = nearest(name, known)
    return RecipeError(
        f"reasoning_gym has no data set {name!r}; the nearest name is {near!r}",
        key="task.dataset",
        suggestion=PREFIX + near,
    )


def _bad_parameters(name: str, settings: Mapping[str, Any], error: Exception, package: ModuleType) -> RecipeError:
    """Names the unknown parameter and its nearest neighbour where the package says no more than its own call."""
    _, config_class = package.factory.DATASETS[name]
    known = list(inspect.signature(config_class).parameters)
    unknown = [key for key in settings if key not in known]
    if not unknown:
        return RecipeError(f"reasoning_gym:{name} refuses its parameters: {error}", key="task.parameters")
    near = nearest(unknown[0], known)
    return RecipeError(
        f"reasoning_gym:{name} has no parameter {unknown[0]!r}; the nearest is {near!r}",
        key=f"task.parameters.{unknown[0]}",
        suggestion=near,
    )
