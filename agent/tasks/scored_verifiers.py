"""`file` and `math`: a function in a child process scores the whole response (see `agent.tasks.scorer`)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import DataError, RecipeError, Unavailable
from agent.recipe import schema
from agent.tasks import scorer
from agent.tasks.example import Example
from agent.tasks.text_verifiers import contains_answer
from agent.tasks.verdicts import Closing, OnEach, Pair, Verdict

PASS_MARK = 1.0 - 1e-9
"""A score that counts as right: 1, rounding aside."""


class FileVerifier(Closing):
    """A function of the user's: `function(response, row) -> float in [0, 1] or bool`.

    `row` is the row of the data set as a dict; `question` and `answer` are always in it. A score of 1 passes; a score
    above 0 counts as formatted, and at 0 nobody can tell. A call that exceeds the time limit scores 0. Raises
    DataError where the function raises, ends its process, or returns anything else than a number in [0, 1]: a score
    that nobody can vouch for must not be trained on.
    """

    def __init__(self, path: Path, function: str, *, timeout: float):
        self._source = f"{path.name}:{function}"
        self._scorers = scorer.file_scorers(path, function, timeout=timeout)

    def verify(self, response: str, example: Example) -> Verdict:
        return self.verify_many([(response, example)])[0]

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        requests = [{"response": response, "row": _row(example)} for response, example in pairs]
        replies = self._scorers.score_many(requests, on_each=on_each)
        return [self._verdict(reply, *pair) for reply, pair in zip(replies, pairs, strict=True)]

    def close(self) -> None:
        self._scorers.close()

    def _verdict(self, reply: scorer.Reply, response: str, example: Example) -> Verdict:
        if reply.timed_out:
            return Verdict(0.0, False, None, False, None, note=reply.ended)
        on = f"on the response {response[:60]!r} to {example.id}"
        if reply.values is None:
            raise DataError(
                f"the verifier failed {on}: {reply.error or f'its process ended by {reply.ended}'}",
                where=reply.at or self._source,
                hint="Make the function return 0.0 for a response that it cannot read.",
            )
        score = reply.values.get("value", math.nan)
        if not 0.0 <= score <= 1.0:
            returned = reply.values.get("returned", repr(score))
            raise DataError(
                f"the verifier returned {returned} {on}; a score is a bool or a number from 0 to 1",
                where=self._source,
            )
        passed = score >= PASS_MARK
        return Verdict(1.0 if passed else score, passed, True if score > 0.0 else None, False, None)


class MathVerifier(Closing):
    """The `math-verify` package: extracts LaTeX or a plain expression and compares by value.

    An expression that takes longer than the time limit is wrong. Raises DataError for a right answer that math-verify
    cannot read.
    """

    def __init__(self, *, timeout: float):
        if importlib.util.find_spec("math_verify") is None:
            raise Unavailable(
                "the package math-verify is not installed, which task.verifier.kind: math needs",
                hint="pip install 'raft-agent[math]', or choose another verifier kind.",
            )
        self._scorers = scorer.math_scorers(timeout=timeout)

    def verify(self, response: str, example: Example) -> Verdict:
        return self.verify_many([(response, example)])[0]

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        requests = [{"response": response, "right": example.answer} for response, example in pairs]
        replies = self._scorers.score_many(requests, on_each=on_each)
        return [self._verdict(reply, *pair) for reply, pair in zip(replies, pairs, strict=True)]

    def close(self) -> None:
        self._scorers.close()

    def _verdict(self, reply: scorer.Reply, response: str, example: Example) -> Verdict:
        near = contains_answer(response, example.answer, 0.0)
        if reply.values is None:
            return Verdict(0.0, False, False, near, None, note=reply.error or reply.ended)
        if not reply.values["understood"]:
            raise DataError(
                f"math-verify cannot read the right answer {example.answer!r} of {example.id}",
                hint="Mend the row, or choose another verifier kind.",
            )
        answer = reply.values["answer"]
        passed = reply.values["value"] >= PASS_MARK
        return Verdict(float(passed), passed, answer is not None, near and not passed, answer)


def file_verifier(config: schema.Verifier, *, base: Path) -> FileVerifier:
    """The verifier of `verifier.file`, `path.py:function`, relative to `base`.

    Raises RecipeError where the words are not of that form, DataError where the file is missing or does not import.
    """
    written = config.file or ""
    name, colon, function = written.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise RecipeError(f"task.verifier.file must read path.py:function, got {written!r}", key="task.verifier.file")
    path = base / name
    if not path.is_file():
        raise DataError(
            f"there is no verifier file {path}", hint="Mend task.verifier.file; it starts at the workspace."
        )
    return FileVerifier(path, function, timeout=config.timeout_seconds)


def _row(example: Example) -> Mapping[str, Any]:
    return {**example.row, "question": example.question, "answer": example.answer}
