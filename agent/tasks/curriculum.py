"""Which training prompts deserve to be asked, by the pass rates that the training itself has measured.

A prompt that always passes, or never, gives a RAFT step nothing to learn from. Here each prompt has an interest: 1 at
the target pass rate, in straight lines down to 0 at the pass rates 0 and 1, and 1 where it was never tried. Not here:
`task.mix`, and the share of prompts that come round whatever their interest; see `agent.tasks.tasks.PromptSource`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

KEPT = 0.5
"""Of what was measured before counts this much beside a new measurement: the model moves on."""


class PassRates:
    """Pass rate of each prompt that was tried, and seeded draws that prefer those near the target."""

    def __init__(self, *, target: float, seed: int):
        self._target = target
        self._seed = seed
        self._draws = 0
        self._measured: dict[str, tuple[float, float]] = {}
        """By id: passed and samples, older measurements with less weight."""

    def record(self, example_id: str, passed: int, samples: int) -> None:
        """Count a measurement. With 0 samples: the prompt could not be asked, and is of no interest for now."""
        if not 0 <= passed <= samples:
            raise ValueError(f"{example_id}: {passed} of {samples} samples cannot have passed")
        old_passed, old_samples = self._measured.get(example_id, (0.0, 0.0))
        self._measured[example_id] = KEPT * old_passed + passed, KEPT * old_samples + samples

    def interest(self, example_id: str) -> float:
        """In [0, 1]: how much there is to learn from the prompt."""
        if example_id not in self._measured:
            return 1.0
        passed, samples = self._measured[example_id]
        if samples == 0:
            return 0.0
        rate = passed / samples
        return rate / self._target if rate <= self._target else (1.0 - rate) / (1.0 - self._target)

    def choose(self, weights: Sequence[tuple[int, float]], count: int) -> list[int]:
        """At most `count` different rows, each step in proportion to the weights of those left; never weight 0.

        One pass with exponential keys: Efraimidis and Spirakis, Information Processing Letters 97 (2006).
        """
        source = random.Random(f"{self._seed}/curriculum/{self._draws}")
        self._draws += 1
        # 1 - u, because u may be 0. The smallest waiting times win.
        waits = ((-math.log(1.0 - source.random()) / weight, row) for row, weight in weights if weight > 0)
        return [row for _, row in heapq.nsmallest(count, waits)]

    def state(self) -> dict[str, Any]:
        """Everything measured and drawn, as JSON values."""
        return {"draws": self._draws, "measured": {name: list(pair) for name, pair in self._measured.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._draws = int(state["draws"])
        self._measured = {name: (float(passed), float(of)) for name, (passed, of) in state["measured"].items()}
