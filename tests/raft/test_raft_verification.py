"""Verification beside generation: every sample gets its verdict, the same answer to a prompt is verified once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from agent.raft.rollout import Completion, Row
from agent.raft.verification import Verification
from agent.tasks.example import Example
from agent.tasks.verdicts import Closing, OnEach, Pair, Verdict, collect


class Recording(Closing):
    """Right is an even last token; remembers what it was asked, and in which thread."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.threads: set[str] = set()

    def verify(self, response: str, example: Example) -> Verdict:
        self.asked.append((response, example.id))
        self.threads.add(threading.current_thread().name)
        passed = int(response.split()[-1]) % 2 == 0
        return Verdict(float(passed), passed, True, False, response)

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        return [self.verify(response, example) for response, example in pairs]


def completion(*tokens: int) -> Completion:
    return Completion(list(tokens), [0.0] * len(tokens), [0.0] * len(tokens), "stop")


def verified(groups: list[list[Completion]], verifier: Recording, **arguments: Any) -> list[list[bool]]:
    examiner: Any = SimpleNamespace(
        verifier=verifier, response_of=lambda completion: " ".join(map(str, completion.tokens))
    )
    examples = [Example(f"row-{place}", "q", "a") for place in range(len(groups))]
    with Verification(examiner, examples, **arguments) as verification:
        for request, group in enumerate(groups):
            for sample, one in enumerate(group):
                verification.add(Row(request, sample), one)
        found = verification.verdicts(groups, on_step=lambda: None)
    return [[verdict.passed for verdict in group] for group in found]


def test_the_same_answer_to_a_prompt_is_verified_once() -> None:
    verifier = Recording()
    told: list[tuple[Row, bool]] = []
    groups = [
        [completion(1, 2), completion(1, 3), completion(1, 2), completion(1, 2)],
        [completion(1, 2), completion(4), completion(4)],
    ]
    passed = verified(groups, verifier, on_verdict=lambda row, _, verdict: told.append((row, verdict.passed)))
    assert passed == [[True, False, True, True], [True, True, True]]
    assert sorted(verifier.asked) == [("1 2", "row-0"), ("1 2", "row-1"), ("1 3", "row-0"), ("4", "row-1")]
    assert len(told) == 7
    assert all(passed[row.request][row.sample] == verdict for row, verdict in told)


def test_many_samples_pass_through_another_thread() -> None:
    verifier = Recording()
    groups = [[completion(request, sample) for sample in range(100)] for request in range(5)]
    assert verified(groups, verifier) == [[sample % 2 == 0 for sample in range(100)]] * 5
    assert len(verifier.asked) == 500
    assert threading.current_thread().name not in verifier.threads


def test_after_an_error_the_verifier_ends_with_the_response_it_is_at() -> None:
    class Slow(Recording):
        def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
            return collect((self.verify(response, example) for response, example in pairs), on_each)

        def verify(self, response: str, example: Example) -> Verdict:
            time.sleep(0.05)
            return super().verify(response, example)

    verifier = Slow()
    examiner: Any = SimpleNamespace(verifier=verifier, response_of=lambda one: " ".join(map(str, one.tokens)))

    def interrupted() -> None:
        with Verification(examiner, [Example("row", "q", "a")]) as verification:
            for sample in range(200):
                verification.add(Row(0, sample), completion(sample))
            while not verifier.asked:
                time.sleep(0.01)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    asked = len(verifier.asked)
    assert asked < 20
    time.sleep(0.2)
    assert len(verifier.asked) == asked


def test_what_a_verifier_raises_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        verified([[Completion([], [], [], "stop"), completion(1)]], Broken())


class Broken(Recording):
    def verify(self, response: str, example: Example) -> Verdict:
        return super().verify(f"{response} none", example)
