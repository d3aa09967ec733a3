"""The process in which Optuna draws points. Its Gaussian process needs torch, which the agent's own process never
loads: a few hundred MB, and on some machines an import that hangs.

Lines of JSON. In: {"knobs": {key: [low, high]}, "trials": [[{key: value}, gain]], "worst": gain, "seed": n} begins
anew; {"next": true} asks for a point. Out, for each: {"ok": true}, {"point": {key: value}}, or {"failed": why}. A point
that is followed by another `next` is told to the sampler as the worst, so that the next one lies elsewhere. It ends
with its input. `sampler.py` is the other end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints, compiled code too
    drawing = Drawing()
    for line in sys.stdin:
        try:
            told = drawing.answer(json.loads(line))
        except Exception as error:
            told = {"failed": f"{type(error).__name__}: {error}"}
        answer.write(json.dumps(told) + "\n")
        answer.flush()


class Drawing:
    """One study at a time."""

    def __init__(self) -> None:
        self.study: Any = None
        self.space: dict[str, Any] = {}
        self.worst = 0.0
        self.drawn: Any = None

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if "knobs" in asked:
            self.begin(**asked)
            return {"ok": True}
        return {"point": self.next_point()}

    def begin(
        self, *, knobs: Mapping[str, list[float]], trials: list[tuple[dict[str, float], float]], worst: float, seed: int
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space = {
            key: optuna.distributions.FloatDistribution(low, high, log=True) for key, (low, high) in knobs.items()
        }
        sampler = optuna.samplers.GPSampler(n_startup_trials=0, seed=seed % 2**32, deterministic_objective=False)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        for point, gain in trials:
            self.study.add_trial(optuna.trial.create_trial(value=gain, params=point, distributions=dict(self.space)))
        self.worst, self.drawn = worst, None

    def next_point(self) -> dict[str, float]:
        if self.drawn is not None:
            self.study.tell(self.drawn, self.worst)
        self.drawn = self.study.ask(self.space)
        return dict(self.drawn.params)


if __name__ == "__main__":
    main()
