"""Verification beside generation: answers are checked in a second thread while the model goes on sampling.

A verifier that takes long (running a program's tests) costs nothing then as long as generation takes longer; what is
left when the last sample ends is what a cycle waits for. Verifiers are called by one thread only, and once for samples
of a prompt that are the same to the token, as many are once a model has learned something.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agent.raft.rollout import Completion, Row
from agent.tasks.verdicts import Closed
from agent.tasks.verifiers import Verdict

if TYPE_CHECKING:
    from agent.raft.evaluate import Examiner
    from agent.tasks.tasks import Example

AT_ONCE = 64
"""Most responses in one call of the verifier."""
LOOK_SECONDS = 0.2
"""Between two signs of life while waiting for the verifier."""
MOST_SECONDS = 10.0
"""To wait for the verifier after the training has ended."""


class Verification:
    """Takes completions as they end; `verdicts` waits for the rest. A context, so that no thread is left behind."""

    def __init__(
        self,
        examiner: Examiner,
        examples: Sequence[Example],
        *,
        on_verdict: Callable[[Row, Completion, Verdict], None] = lambda row, completion, verdict: None,
    ):
        self._examiner = examiner
        self._examples = examples
        self._on_verdict = on_verdict
        self._waiting: queue.SimpleQueue[tuple[Row, Completion] | None] = queue.SimpleQueue()
        self._verdicts: dict[Row, Verdict] = {}
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="verification", daemon=True)

    def __enter__(self) -> Verification:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """After an error or the end of the training the verifier ends with the response that it is at: what comes next
        may need the cores, and the verifier."""
        self._abandoned = kind is not None
        self._waiting.put(None)
        self._thread.join(MOST_SECONDS if self._abandoned else None)

    def add(self, row: Row, completion: Completion) -> None:
        """Called by the engine for each sample that ends. Raises what the verifier has raised."""
        self._raise_error()
        self._waiting.put((row, completion))

    def verdicts(
        self, completions: Sequence[Sequence[Completion]], *, on_step: Callable[[], None]
    ) -> list[list[Verdict]]:
        """By prompt and sample, for completions that have all been added."""
        self._waiting.put(None)
        while self._thread.is_alive():
            on_step()
            self._thread.join(LOOK_SECONDS)
        self._raise_error()
        return [[self._verdicts[Row(i, s)] for s in range(len(group))] for i, group in enumerate(completions)]

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            known: dict[tuple[int, tuple[int, ...]], Verdict] = {}
            while batch := self._next_batch():
                answers = [(row.request, tuple(completion.tokens)) for row, completion in batch]
                new = {
                    answer: (self._examiner.response_of(completion), self._examples[row.request])
                    for answer, (row, completion) in zip(answers, batch, strict=True)
                    if answer not in known
                }
                verdicts = self._examiner.verifier.verify_many(list(new.values()), on_each=self._go_on)
                known.update(zip(new, verdicts, strict=True))
                for answer, (row, completion) in zip(answers, batch, strict=True):
                    self._verdicts[row] = known[answer]
                    self._on_verdict(row, completion, known[answer])
        except BaseException as error:
            self._error = error

    def _go_on(self) -> None:
        if self._abandoned:
            raise Closed

    def _next_batch(self) -> list[tuple[Row, Completion]]:
        """What has been added since, at most AT_ONCE; empty when there will be no more."""
        item = self._waiting.get()
        batch: list[tuple[Row, Completion]] = []
        while item is not None and not self._abandoned:
            batch.append(item)
            if len(batch) == AT_ONCE or self._waiting.empty():
                return batch
            item = self._waiting.get()
        if batch:
            self._waiting.put(None)
        return batch
