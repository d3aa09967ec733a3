"""`regex`, `math`, `reasoning_gym` and `python:FILE.py:FUNCTION`: a child process looks at the response.

See `agent.tasks.scorer` for the process, and `agent.tasks.faults` for what happens when a verification fails.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.contract import FILES_VARIABLE
from agent.errors import DataError, Unavailable
from agent.recipe import schema
from agent.recipe.places import inside
from agent.recipe.variables import refuse_unset
from agent.tasks import scorer
from agent.tasks.example import Example
from agent.tasks.faults import Faults
from agent.tasks.gym import RuleOfDataSet
from agent.tasks.layers import Layers, layers_here, refuse_without_walls
from agent.tasks.text_verifiers import between, contains_answer, refuse_empty_delimiters, same_answer
from agent.tasks.verdicts import PASS_MARK, Closing, OnEach, Pair, Verdict, collect, spread

Request = Mapping[str, Any]


class ScoredVerifier(Closing, ABC):
    """What the verifiers of this file share: a request for each pair, a reply from a child, a verdict on it."""

    _scorers: scorer.Scorers
    _faults: Faults

    def verify(self, response: str, example: Example) -> Verdict:
        return self.verify_many([(response, example)])[0]

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        requests = [self._request(*pair) for pair in pairs]
        with contextlib.closing(self._scorers.replies(requests)) as replies:
            judged = (
                self._faults.checked(self._verdict(reply, *pair), *pair)
                for reply, pair in zip(replies, pairs, strict=True)
            )
            return collect(judged, on_each)

    def close(self) -> None:
        self._scorers.close()

    @abstractmethod
    def _request(self, response: str, example: Example) -> Request:
        """What the child is asked."""

    @abstractmethod
    def _verdict(self, reply: scorer.Reply, response: str, example: Example) -> Verdict:
        """What its reply means."""


class FunctionVerifier(ScoredVerifier):
    """A function of the user's: `function(response: str, row: dict) -> float in [0, 1] or bool`.

    `row` is the row of the data set; `question` and `answer` are always in it. A score of 1 passes; a score above 0
    counts as formatted, and at 0 nobody can tell. A call that raises, exceeds the time limit, ends its process or
    returns NaN or None is a fault: it scores 0, and DataError where such are many (see `agent.tasks.faults`). Raises
    DataError at once for a result that is no number, or not in [0, 1]: such a function means something else by a
    score, and no reading of it could be vouched for.
    """

    def __init__(self, source: str, scorers: scorer.Scorers, *, kept_in: Layers | None = None):
        """`source`: `FILE.py:FUNCTION`, for messages; `kept_in`: the layers that it runs behind, where it is not
        trusted."""
        self._source = source
        self._kept_in = kept_in
        self._scorers = scorers
        self._faults = Faults(self._source, hint="Make it return 0.0 for a response that it cannot read.")

    def kept_in_by(self) -> str | None:
        return None if self._kept_in is None else str(self._kept_in)

    def files(self) -> dict[str, str]:
        """Digest by path of what the function was made of: its file, what it imported and read beside that."""
        return self._scorers.files()

    def _request(self, response: str, example: Example) -> Request:
        return {"response": response, "row": {**example.row, "question": example.question, "answer": example.answer}}

    def _verdict(self, reply: scorer.Reply, response: str, example: Example) -> Verdict:
        if reply.values is None:
            return _fault(_why(reply))
        score = reply.values.get("value", math.inf)
        if score is None or math.isnan(score):
            return _fault("it returned None" if score is None else "it returned NaN")
        if not 0.0 <= score <= 1.0:
            returned = reply.values.get("returned", repr(score))
            raise DataError(
                f"the verifier returned {returned} on the response {response[:60]!r} to {example.id}; "
                "a score is a bool or a number from 0 to 1",
                where=self._source,
            )
        passed = score >= PASS_MARK
        return Verdict(1.0 if passed else score, passed, True if score > 0.0 else None, False, None)


class RegexVerifier(ScoredVerifier):
    """The group of the pattern's last match is the answer, compared as a number where both are, else as text.

    Given a response and a row with an answer. Returns score 1 or 0; `formatted` where the pattern matches with
    something in its group. A pattern that takes longer than the time limit is a fault (see `agent.tasks.faults`).
    """

    def __init__(self, config: schema.Verifier, *, rule: RuleOfDataSet):
        self._config = config
        self._rule = rule
        self._scorers = scorer.pattern_scorers(config.pattern or "", timeout=config.timeout_seconds)
        self._faults = Faults(
            "task.verifier.pattern",
            hint="Nested repetitions such as (a+)+ take for ever on a near miss: write the pattern without them.",
        )

    def close(self) -> None:
        super().close()
        self._rule.close()

    def _request(self, response: str, example: Example) -> Request:
        return {"response": response}

    def _verdict(self, reply: scorer.Reply, response: str, example: Example) -> Verdict:
        if reply.values is None:
            return _fault(_why(reply), near=contains_answer(response, example.answer, self._config))
        answer = (reply.values["answer"] or "").strip() or None
        passed = answer is not None and (
            same_answer(answer, example.answer, self._config) or self._rule.accepts(answer, example)
        )
        near = not passed and contains_answer(response, example.answer, self._config)
        return Verdict(float(passed), passed, answer is not None, near, answer)


class MathVerifier(ScoredVerifier):
    """The `math-verify` package: extracts LaTeX or a plain expression and compares by value.

    Given a response and a row with an answer. Returns score 1 or 0; `formatted` where math-verify extracts something.
    An expression that takes longer than the time limit is wrong. A right answer that math-verify cannot read is a
    fault (see `agent.tasks.faults`).
    """

    def __init__(self, config: schema.Verifier):
        if importlib.util.find_spec("math_verify") is None:
            raise Unavailable(
                "the package math-verify is not installed, which task.verifier.kind: math needs",
                hint="pip install 'raft-agent[math]', or choose another verifier kind.",
            )
        self._config = config
        self._scorers = scorer.math_scorers(timeout=config.timeout_seconds)
        self._faults = Faults("math-verify", hint="Mend these rows, or choose another task.verifier.kind.")

    def _request(self, response: str, example: Example) -> Request:
        return {"response": response, "right": example.answer}

    def _verdict(self, reply: scorer.Reply, response: str, example: Example) -> Verdict:
        near = contains_answer(response, example.answer, self._config)
        if reply.values is None:
            # Too long or too large is what was written; an exception is of the package.
            return Verdict(0.0, False, False, near, None, note=_why(reply), fault=reply.error is not None)
        if not reply.values["understood"]:
            return _fault(f"math-verify cannot read the right answer {example.answer!r}")
        answer = reply.values["answer"]
        passed = reply.values["value"] >= PASS_MARK
        return Verdict(float(passed), passed, answer is not None, near and not passed, answer)


class GymVerifier(Closing):
    """What stands between the delimiters, scored by the rule of the row's reasoning_gym data set.

    Given a response and a row of `reasoning_gym:<name>`, or of another source that has in `metadata` what the
    package's entries have there, `source_dataset` among it. Returns the rule's score, partial credit included; 1
    passes. `formatted` where there is a pair of delimiters with something in it. An answer on which the rule raises or
    exceeds the time limit is wrong. A row that names no data set, and a score that is not in [0, 1], are faults (see
    `agent.tasks.faults`).
    """

    def __init__(self, config: schema.Verifier, *, rule: RuleOfDataSet):
        refuse_empty_delimiters(config)
        self._config = config
        self._rule = rule
        self._workers = min(4, os.cpu_count() or 1)
        self._faults = Faults("reasoning_gym's rule", hint="Look at the row, or choose another task.verifier.kind.")

    def verify(self, response: str, example: Example) -> Verdict:
        return self._faults.checked(self._verdict(response, example), response, example)

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        # A child for each worker takes seconds to import the package: not for a handful.
        workers = self._workers if len(pairs) >= 2 * self._workers else 1
        verdicts = spread(lambda pair: self._verdict(*pair), pairs, workers=workers, name="rule")
        with contextlib.closing(verdicts):
            counted = (self._faults.checked(verdict, *pair) for verdict, pair in zip(verdicts, pairs, strict=True))
            return collect(counted, on_each)

    def close(self) -> None:
        self._rule.close()

    def _verdict(self, response: str, example: Example) -> Verdict:
        answer = between(response, self._config)
        near = contains_answer(response, example.answer, self._config)
        if answer is None:
            return Verdict(0.0, False, False, near, None)
        reply = self._rule.reply(answer, example)
        if reply is None:
            return _fault("the row names no data set of reasoning_gym in metadata.source_dataset", near=near)
        if reply.values is None:
            return Verdict(0.0, False, True, near, answer, note=_why(reply))
        score = reply.values.get("value")
        if score is None or not 0.0 <= score <= 1.0:
            return _fault(f"the rule says {score!r}", near=near)
        passed = score >= PASS_MARK
        return Verdict(1.0 if passed else score, passed, True, near and not passed, answer)


def function_verifier(config: schema.Verifier, *, base: Path, allow_untrusted_code: bool = False) -> FunctionVerifier:
    """The verifier `python:FILE.py:FUNCTION`, its file relative to `base`.

    Raises DataError where the file is missing or does not import, UsageError where it is untrusted and too little would
    keep it in, and where a variable that it is to get is not set.
    """
    named = config.own_function()
    assert named is not None
    path = _in_effect(named[0], base=base)
    if not path.is_file():
        raise DataError(
            f"there is no verifier file {path}",
            hint="task.verifier.kind is python:FILE.py:FUNCTION, and the path starts at the workspace.",
        )
    kept_in = None
    if config.untrusted:
        kept_in = layers_here()
        what = "the verifier's file is marked task.verifier.untrusted"
        refuse_without_walls(kept_in, what=what, allowed=allow_untrusted_code)
    refuse_unset(config)
    scorers = scorer.function_scorers(
        path,
        named[1],
        timeout=config.timeout_seconds,
        beside=(base / named[0]).parent,
        kept_in=kept_in,
        environment=config.environment,
    )
    return FunctionVerifier(f"{path.name}:{named[1]}", scorers, kept_in=kept_in)


def _in_effect(name: str, *, base: Path) -> Path:
    """The file in the workspace, or what stands for it (`agent.contract.FILES_VARIABLE`)."""
    folder = os.environ.get(FILES_VARIABLE)
    instead = Path(folder) / name if folder else None
    if instead is not None and instead.is_file():
        return instead
    return inside(base, name, key="task.verifier.kind")


def _why(reply: scorer.Reply) -> str:
    """`time limit of 5 s`, `KeyError: 'x' (check.py:12)`, `its process ended by signal 11`."""
    if reply.error is not None:
        return f"{reply.error} ({reply.at})" if reply.at else reply.error
    return str(reply.ended) if reply.timed_out else f"its process ended by {reply.ended}"


def _fault(why: str, *, near: bool = False) -> Verdict:
    return Verdict(0.0, False, None, near, None, note=why, fault=True)
