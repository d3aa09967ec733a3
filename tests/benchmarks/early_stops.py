"""What `learner.early_stop` would have done in the runs of the shipped studies, in which nothing was stopped.

    python tests/benchmarks/early_stops.py [--window 3] [--level 0.05]

Its own test (`agent.raft.early_stop`) goes through every run in studies/results/ cycle by cycle, from the untrained
policy on, by the `select` prompts that the study kept. Where it would have ended the run, what is lost is how far the
best cycle until then lies below the best of all: in points, and with the luck of picking among more cycles in it. It is
no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.contract import EvalRow
from agent.raft.early_stop import Decline
from agent.recipe.schema import EarlyStop
from agent.study.definition import Study, load_study
from agent.study.results import Results, counts_of

ROOT = Path(__file__).parents[2]
PATIENCE = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=3)
    parser.add_argument("--level", type=float, default=0.05)
    options = parser.parse_args()
    settings = [EarlyStop(window=options.window, level=options.level, patience=patience) for patience in PATIENCE]
    lost: dict[int, list[float]] = {patience: [] for patience in PATIENCE}
    runs = 0
    for path in sorted((ROOT / "studies" / "results").glob("*.jsonl")):
        study = load_study(ROOT / "studies" / f"{path.stem}.yaml", root=ROOT)
        for arm, found in courses_of(study, Results.read(path)).items():
            runs += len(found)
            for one in settings:
                losses = [loss for counts, samples in found if (loss := lost_by(counts, samples, one)) is not None]
                lost[one.patience] += losses
                if losses:
                    print(f"{study.name}, {arm}, patience {one.patience}: {in_words(losses, len(found))}")
    for patience, losses in lost.items():
        print(f"all, patience {patience}: {in_words(losses, runs)}")


def courses_of(study: Study, results: Results) -> dict[str, list[tuple[NDArray[np.int64], int]]]:
    """By arm its runs: (passes as cycles x prompts, samples a prompt)."""
    found: dict[str, list[tuple[NDArray[np.int64], int]]] = {}
    for arm, seed in study.order():
        run = results.runs.get((arm.digest, seed))
        if run is not None:
            found.setdefault(arm.label, []).append((counts_of(run, results), run.samples))
    return found


def lost_by(counts: NDArray[np.int64], samples: int, settings: EarlyStop) -> float | None:
    """Points of accuracy; None where it would not have ended the run."""
    watch, accuracy = Decline(settings, metric="pass_rate", maximize=True), counts.mean(axis=1) / samples
    for cycle, passes in enumerate(counts):
        if watch.add(rows_of(passes, samples)):
            return float(100 * (accuracy.max() - accuracy[: cycle + 1].max()))
    return None


def rows_of(passes: NDArray[np.int64], samples: int) -> list[EvalRow]:
    common = {"split": "select", "reward": 1.0, "tokens": 1, "finish_reason": "stop"}
    return [
        EvalRow(**common, id=str(prompt), sample=sample, passed=bool(sample < count))
        for prompt, count in enumerate(passes)
        for sample in range(samples)
    ]


def in_words(losses: list[float], runs: int) -> str:
    if not losses:
        return f"0 of {runs} ended"
    return f"{len(losses)} of {runs} ended; lost {np.mean(losses):.1f} points on average, at most {max(losses):.1f}"


if __name__ == "__main__":
    main()
