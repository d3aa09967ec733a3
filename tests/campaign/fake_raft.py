"""A trainer that keeps the contract and trains nothing: its metric is a known function of the recipe and the seed.

    quality = 0.40 + 0.15 log2(learning rate / 5e-4), at most 0.70, plus N(0, 0.01) by seed

Switches, to break on purpose: two epochs run out of memory unless microbatch_tokens is at most 2048; the optimizer
sgd dies of a NaN; top_k 7 names an unknown key; drop_solved hangs until it is stopped; top_k 3 kills itself.
A reward threshold above 1 keeps no sample: the training stays where it began and ends early.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from agent.recipe.files import load_recipe
from agent.recipe.schema import Recipe


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--split", action="append", default=[])
    parser.add_argument("--evaluate")
    parser.add_argument("--time-limit")
    parser.add_argument("--cache")
    parser.add_argument("--allow-untrusted-code", action="store_true")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe)
    beat(options.out, "load")
    (options.out / "starts").open("a").write("x")
    if (options.out.parents[3] / "data-is-missing").exists():
        failure = {"crash_class": "data", "message": "no such data", "exception": "DataError", "hint": "bring it"}
        (options.out / "failure.json").write_text(json.dumps(failure))
        return 3
    if (options.out.parents[3] / "disk-is-full").exists():
        print('Traceback (most recent call last):\n  File "x.py", line 1, in <module>', file=sys.stderr)
        print("OSError: [Errno 28] No space left on device", file=sys.stderr)
        return 1
    if seconds := float(os.environ.get("FAKE_SECONDS", "0")):
        beat(options.out, "evaluate")
        time.sleep(seconds)
    broken = None if options.evaluate else break_on_purpose(recipe, options.out)
    if broken is not None:
        return broken
    quality = 0.18 if options.evaluate == "untrained" else trained_quality(recipe, checkpoint_or_seed(options))
    futile = recipe.selection.reward_threshold > 1 and not options.evaluate
    declines = recipe.learner.early_stop is not None and not options.evaluate
    splits = [split for split in options.split if split != "none"]
    rows = [row for split in splits for row in evaluate(recipe, split, quality)]
    (options.out / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not options.evaluate:
        history = cycles(quality, keeps=not futile)
        (options.out / "cycles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
        (options.out / "checkpoint").mkdir(exist_ok=True)
        (options.out / "checkpoint" / "quality").write_text(str(quality))
    summary = {
        "seed": options.seed,
        "recipe_signature": recipe.signature(),
        "metric": recipe.evaluation.metric,
        "cycles": 0 if options.evaluate else 5,
        "optimizer_steps": 0 if options.evaluate or futile else 20,
        "kept": 0 if options.evaluate or futile else 500,
        "ended_by": "evaluated" if options.evaluate else "no_step" if futile else "decline" if declines else "budget",
        "metrics": {split: mean(row["passed"] for row in rows if row["split"] == split) for split in splits},
        "select_metric": quality,
        "train_s": 0.0 if options.evaluate else 0.1 if futile or declines else 0.2,
        "evaluate_s": 0.05,
        "elapsed_s": 0.3,
        "tokens_per_s": 1000.0,
    }
    (options.out / "summary.tmp").write_text(json.dumps(summary))
    (options.out / "summary.tmp").replace(options.out / "summary.json")
    return 0


def checkpoint_or_seed(options: argparse.Namespace) -> float | int:
    if options.evaluate:
        return float((Path(options.evaluate) / "quality").read_text())
    return int(options.seed)


def trained_quality(recipe: Recipe, seed_or_quality: float | int) -> float:
    if isinstance(seed_or_quality, float):
        return seed_or_quality
    if recipe.selection.reward_threshold > 1:
        return 0.18
    rate = recipe.learner.learning_rate
    gain = min(0.30, 0.15 * math.log2(rate / 5e-4))
    return 0.40 + gain + random.Random(f"run {seed_or_quality}").gauss(0, 0.01)


def evaluate(recipe: Recipe, split: str, quality: float) -> list[dict[str, object]]:
    """A prompt passes where its fixed difficulty is below the quality."""
    count = getattr(recipe.evaluation, f"{split}_prompts")
    rows = []
    for number in range(count):
        passed = random.Random(f"{split} {number}").random() < quality
        row = {"split": split, "id": f"{split}-{number}", "sample": 0, "reward": float(passed), "passed": passed}
        rows.append(row | {"formatted": True, "tokens": 3, "finish_reason": "stop"})
    return rows


def cycles(quality: float, *, keeps: bool = True) -> list[dict[str, object]]:
    rows = []
    for cycle in range(6):
        way = cycle / 5
        rows.append(
            {
                "cycle": cycle,
                "learning_rate": 5e-4 if cycle else None,
                "loss": 1.0 - 0.1 * way if cycle and keeps else None,
                "grad_norm": 0.5 if cycle and keeps else None,
                "pass_rate": 0.18 + (quality - 0.18) * way,
                "samples": 512,
                "kept": 100 if cycle and keeps else 0,
                "optimizer_steps": 4 if cycle and keeps else 0,
                "all_solved_share": 0.05,
                "all_failed_share": 0.3,
                "zero_variance_share": 0.35,
                "truncation_rate": 0.01,
                "format_rate": 0.99,
                "entropy": 0.8,
                "unique_share": 0.6,
                "reward_mean": 0.4,
                "reward_std": 0.5,
                "select_metric": 0.18 + (quality - 0.18) * way,
                "budget_spent": way,
            }
        )
    return rows


def break_on_purpose(recipe: Recipe, out: Path) -> int | None:
    learner, rollout = recipe.learner, recipe.rollout
    if learner.epochs_per_cycle == 2 and learner.microbatch_tokens > 2048:
        print('Traceback (most recent call last):\n  File "x.py", line 1, in <module>', file=sys.stderr)
        print("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.08 GiB.", file=sys.stderr)
        return 1
    if learner.optimizer == "sgd":
        failure = {"crash_class": "numeric", "message": "loss is nan at step 3", "exception": "NumericError"}
        (out / "failure.json").write_text(json.dumps(failure))
        return 10
    if rollout.top_k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if recipe.selection.drop_solved:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            beat(out, "train")
            time.sleep(0.05)
    return None


def beat(out: Path, phase: str) -> None:
    told = {"phase": phase, "step": 1, "pid": os.getpid(), "time": time.time()}
    (out / "heartbeat.tmp").write_text(json.dumps(told))
    (out / "heartbeat.tmp").replace(out / "heartbeat")


def mean(values: object) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)


if __name__ == "__main__":
    sys.exit(main())
