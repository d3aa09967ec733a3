"""What a verifier says about a response, and what every verifier can do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from agent.tasks.example import Example

Pair = tuple[str, Example]
S = TypeVar("S")
T = TypeVar("T")
OnEach = Callable[[], None]
PASS_MARK = 1.0 - 1e-9
"""A score that counts as right: 1, rounding aside."""


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
    share: float = 0.0
    """For code that did not pass: share of the tests' assertions that hold, where the verifier was asked to count."""
    fault: bool = False
    """Not the response but the verification failed (see `agent.tasks.faults`); the score is 0 and `note` says why."""


class AnswerVerifier(Protocol):
    """Checks responses. A response is `prompt.response_prefix` + the decoded completion, stop string included.

    May be used from any thread, and from several at a time: what has to be limited in time runs in processes of its
    own, which are started afresh (never forked from this one, which holds the threads of torch), and nothing in this
    process relies on signals. `close` may be called while another thread verifies: that one then raises.
    """

    def verify(self, response: str, example: Example) -> Verdict: ...

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        """Verdicts in the order of `pairs`. `on_each` is called in this thread as verdicts arrive, for a heartbeat;
        what it raises ends the batch.
        """
        ...

    def kept_in_by(self) -> str | None:
        """Which layers keep untrusted code in, in words; None where none is run."""
        ...

    def close(self) -> None:
        """End the child processes, if there are any."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Closed(Exception):
    """Verification went on in a thread after another one had closed the verifier."""


class Closing:
    """A context manager whose end is `close`; most verifiers have nothing to close, and run no untrusted code."""

    def kept_in_by(self) -> str | None:
        return None

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


def spread(function: Callable[[S], T], items: Iterable[S], *, workers: int, name: str) -> Generator[T]:
    """Results in the order of `items`, worked out `workers` at a time in threads called `name`.

    Where the caller stops early (close the iterator), what has not begun is dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
