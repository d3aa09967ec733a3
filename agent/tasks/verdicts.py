"""What a verifier says about a response, and what every verifier can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from agent.tasks.example import Example

Pair = tuple[str, Example]
T = TypeVar("T")
OnEach = Callable[[], None]


@dataclass(frozen=True)
class Verdict:
    """What a verifier says about one response."""

    score: float
    """In [0, 1]; 1 is right."""
    passed: bool
    formatted: bool | None
    """An answer could be extracted; None where the verifier cannot tell."""
    near: bool
    """Did not pass, but contains the right answer."""
    answer: str | None
    """What was extracted, for people."""
    note: str | None = None
    """Why it failed, where the verifier knows more than `wrong`: a time limit, an exception line."""


class AnswerVerifier(Protocol):
    """Checks responses. A response is `prompt.response_prefix` + the decoded completion, stop string included."""

    def verify(self, response: str, example: Example) -> Verdict: ...

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        """Verdicts in the order of `pairs`. `on_each` is called in this thread as verdicts arrive, for a heartbeat;
        what it raises ends the batch.
        """
        ...

    def close(self) -> None:
        """End the child processes, if there are any."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Closing:
    """A context manager whose end is `close`; most verifiers have nothing to close."""

    def close(self) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def collect(results: Iterable[T], on_each: OnEach | None) -> list[T]:
    """The results as a list, with a call of `on_each` after each."""
    collected = []
    for result in results:
        collected.append(result)
        if on_each is not None:
            on_each()
    return collected
