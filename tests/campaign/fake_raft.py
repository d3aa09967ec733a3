"""A trainer that keeps the contract and trains nothing: its metric is a known function of the recipe and the seed.

    quality = 0.40 + 0.15 log2(learning rate / 5e-4), at most +0.30
            + 0.08 without dedup
            + 0.20 without packing, as long as the learning rate is below 1e-3
            + N(0, 0.01) by seed

A prompt of any split passes where its fixed difficulty is below the quality, so runs differ prompt by prompt only where
their qualities do. After cycle n of 5 the quality is n/5 of the way from the untrained model's 0.18.

Switches, to break on purpose. Training: two epochs run out of memory unless microbatch_tokens is at most 2048, or 4096
with recomputed activations; the optimizer sgd dies of a NaN; drop_solved hangs until it is stopped; top_k 3 kills
itself. A reward threshold above 1 keeps no sample: the training stays where it began and ends early. Everything else is
a trick, by the value of top_k that TRICKS gives to its name:

    collapses               right from the first cycle nothing passes any more
    fails when evaluated    trains like any other, and hardly a held-out prompt passes
    one answer              every held-out completion is the same
    cut                     four of five held-out completions are cut
    long, short             held-out completions of 40 tokens, of 1, instead of 3
    not a number, out of range, not its rows, above pass@k
                            the summary's metric is NaN, is 1.7, is 0.1 off, has a pass@1 above the pass@k
    not its rows in confirm the same, of the confirm split alone
    too good                0.97 in the training's own evaluation, and the checkpoint is worth what it should be
    great                   0.97, and so is the checkpoint

Files in the workspace: `data-is-missing` and `disk-is-full` end every run; `kernel-is-broken` every training whose
attention is not one that is named in it, `kernel-breaks-once` the next one alone; seeds in `slow-seeds` do half as
many tokens a second, seeds in `crash-seeds` die at the start, and the summary of seeds in `wrong-seeds` is 0.1 off
its rows. The number in `near-duplicates` is that of the training rows that are refused.

FAKE_PACE seconds a cycle, and a quarter of the evaluation, make the trainings of ideas slow enough to be ended by
SIGTERM (with FAKE_PACE_ALL those of all runs). They go on later where they stopped, if their `state` is still there.
Runs whose folder's name begins with FAKE_DEAF neither end nor hear SIGTERM. Every reward, which is 1 for what passes
and else 0, has the whole length penalty taken from it.
`trained` has a letter for each cycle that was trained in the folder, `starts` one for each start.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from agent.recipe.files import load_recipe
from agent.recipe.schema import Recipe

UNTRAINED = 0.18
CYCLES = 5
# far apart: the planner takes numbers that are nearly the same for the same idea
TRICKS = {
    name: 1000 * 2**place
    for place, name in enumerate(
        (
            "collapses", "fails when evaluated", "one answer", "cut", "long", "short", "not a number", "out of range",
            "not its rows", "above pass@k", "not its rows in confirm", "too good", "great",
        )
    )
}  # fmt: skip
NAMES = {value: name for name, value in TRICKS.items()}


class Stopped(Exception):
    """SIGTERM came, and the step is done."""


@dataclass
class Training:
    """What this start of the trainer knows."""

    recipe: Recipe
    out: Path
    seed: int
    evaluates: str | None
    rung: float | None
    trick: str | None
    pace: float

    @property
    def workspace(self) -> Path:
        return self.out.parents[3]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    recipe = load_recipe(options.recipe, edited=False)
    paced = "FAKE_PACE_ALL" in os.environ or (options.evaluate is None and "-search-" in options.out.name)
    run = Training(
        recipe, options.out, options.seed, options.evaluate, options.rung,
        NAMES.get(recipe.rollout.top_k), float(os.environ.get("FAKE_PACE", "0")) if paced else 0.0,
    )  # fmt: skip
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    beat(run.out, "load")
    note(run.out / "starts", "x")
    for refused in numbers_in(run.workspace / "near-duplicates"):
        plan = {"device": "cpu", "dtype": "float32", "attention": "none", "engine": "fake", "refused_rows": refused}
        (run.out / "plan.json").write_text(json.dumps(plan))
    if seconds := float(os.environ.get("FAKE_SECONDS", "0")):
        beat(run.out, "evaluate")
        time.sleep(seconds)
    broken = break_on_purpose(run)
    if broken is not None:
        return broken
    if run.out.name.startswith(os.environ.get("FAKE_DEAF", "no run")):
        stay_deaf(run)
    rows: list[dict[str, object]] = []
    try:
        if run.evaluates is None:
            train(run, told)
        for split in options.split:
            if split != "none":
                rows += evaluate(run, split, told)
    except Stopped:
        finish(run, rows, stopped=True)
        return 0
    finish(run, rows)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--split", action="append", default=[])
    parser.add_argument("--evaluate")
    parser.add_argument("--rung", type=float)
    parser.add_argument("--time-limit")
    parser.add_argument("--cache")
    parser.add_argument("--commit")
    parser.add_argument("--allow-untrusted-code", action="store_true")
    return parser.parse_args(arguments)


# --- the truth ---------------------------------------------------------------------------------------------


def quality_of(recipe: Recipe, seed: int) -> float:
    """Of the weights that a training delivers."""
    if recipe.selection.reward_threshold > 1:
        return UNTRAINED
    if recipe.rollout.top_k == TRICKS["collapses"]:
        return 0.0
    if recipe.rollout.top_k == TRICKS["great"]:
        return 0.97
    rate = recipe.learner.learning_rate
    gain = min(0.30, 0.15 * math.log2(rate / 5e-4))
    gain += 0.08 * (not recipe.selection.dedup)
    gain += 0.20 * (not recipe.learner.packing and rate < 1e-3)
    return 0.40 + gain + random.Random(f"run {seed}").gauss(0, 0.01)


def evaluated_quality(run: Training) -> float:
    """Of a checkpoint, or of what was just trained."""
    if run.evaluates == "untrained":
        return UNTRAINED
    if run.evaluates is not None:
        return float((Path(run.evaluates) / "quality").read_text())
    if run.trick == "fails when evaluated":
        return 0.05
    return 0.97 if run.trick == "too good" else quality_of(run.recipe, run.seed)


def passes(split: str, number: int, quality: float) -> bool:
    return chance(split, number) < quality


@functools.cache
def chance(split: str, number: int) -> float:
    return random.Random(f"{split} {number}").random()


@functools.cache
def digest(split: str, number: int, passed: bool) -> str:
    return f"{random.Random(f'{split} {number} {passed}').getrandbits(32):08x}"


def draw_ahead() -> None:
    """So that processes that are forked from this one find it drawn."""
    for split in ("select", "search", "confirm", "holdout"):
        for number in range(200):
            chance(split, number), digest(split, number, True), digest(split, number, False)


# --- training ----------------------------------------------------------------------------------------------


def train(run: Training, told: list[int]) -> None:
    """Cycle 0 measures the untrained model; the others go on from the last one that an earlier start has saved."""
    state = run.out / "state" / "cycle"
    begin = int(state.read_text()) + 1 if state.exists() else 0
    if begin == 0:
        (run.out / "rung.jsonl").unlink(missing_ok=True)
    for name in ("cycles.jsonl", "select.jsonl"):
        keep_cycles(run.out / name, before=begin)
    quality, futile = quality_of(run.recipe, run.seed), ended_by(run) == "no_step"
    checkpoint = run.out / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "quality").write_text(str(quality))
    for cycle in range(begin, CYCLES + 1):
        if cycle:
            note(run.out / "trained", str(cycle))
        row = cycle_row(cycle, quality, keeps=not futile)
        note(run.out / "cycles.jsonl", json.dumps(row) + "\n")
        evaluation, now = run.recipe.evaluation, so_far(cycle, quality)
        measured = measured_row("select", cycle, now, evaluation.select_prompts, evaluation.select_samples)
        note(run.out / "select.jsonl", json.dumps(measured) + "\n")
        replace(state, str(cycle))
        if run.rung is not None and cycle >= run.rung * CYCLES and not (run.out / "rung.jsonl").exists():
            rung = measured_row("search", cycle, now, evaluation.search_prompts, evaluation.samples_per_prompt)
            note(run.out / "rung.jsonl", json.dumps(rung) + "\n")
        beat(run.out, "train")
        pause(run.pace if cycle else 0.0, told)


def keep_cycles(path: Path, *, before: int) -> None:
    """Take out the rows of cycles that are trained again: a kill between a row and its state."""
    replace(path, "".join(line for line in lines(path) if line.endswith("\n") and json.loads(line)["cycle"] < before))


def so_far(cycle: int, quality: float) -> float:
    """Quality after a cycle; a collapse is there at once."""
    way = min(1, cycle) if not quality else cycle / CYCLES
    return UNTRAINED + (quality - UNTRAINED) * way


def cycle_row(cycle: int, quality: float, *, keeps: bool) -> dict[str, object]:
    trains = cycle > 0 and keeps
    return {
        "cycle": cycle,
        "learning_rate": 5e-4 if cycle else None,
        "loss": 1.0 - 0.1 * cycle / CYCLES if trains else None,
        "grad_norm": 0.5 if trains else None,
        "pass_rate": so_far(cycle, quality),
        "samples": 512,
        "kept": 100 if trains else 0,
        "optimizer_steps": 4 if trains else 0,
        "all_solved_share": 0.05,
        "all_failed_share": 0.3,
        "zero_variance_share": 0.35,
        "truncation_rate": 0.01,
        "format_rate": 0.99,
        "entropy": 0.8,
        "unique_share": 0.6,
        "reward_mean": 0.4,
        "reward_std": 0.5,
        "select_metric": so_far(cycle, quality),
        "budget_spent": cycle / CYCLES,
    }


def measured_row(split: str, cycle: int, quality: float, prompts: int, samples: int) -> dict[str, object]:
    scores = {f"{split}-{number}": [float(passes(split, number, quality))] * samples for number in range(prompts)}
    return {"cycle": cycle, "budget_spent": cycle / CYCLES, "elapsed_s": 0.04 * cycle, "scores": scores}


def pause(seconds: float, told: list[int]) -> None:
    """The rest of a step that is slow. Raises Stopped after it, where SIGTERM came."""
    until = time.monotonic() + seconds
    while not told and time.monotonic() < until:
        time.sleep(0.005)
    if told:
        raise Stopped


def stay_deaf(run: Training) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(run.out / "deaf", "x")
    while True:
        beat(run.out, "train" if run.evaluates is None else "evaluate")
        time.sleep(0.05)


# --- evaluation --------------------------------------------------------------------------------------------


def evaluate(run: Training, split: str, told: list[int]) -> list[dict[str, object]]:
    """Its rows, written a quarter of the prompts at a time."""
    quality, count = evaluated_quality(run), getattr(run.recipe.evaluation, f"{split}_prompts")
    path = run.out / "eval.jsonl"
    kept = [line for line in lines(path) if json.loads(line)["split"] != split]
    path.write_text("".join(kept))
    rows = []
    penalty = run.recipe.task.reward.length_penalty
    for quarter in range(4):
        prompts = range(count * quarter // 4, count * (quarter + 1) // 4)
        rows += [
            sample_row(run.trick, split, number, sample, passes(split, number, quality), penalty)
            for number in prompts
            for sample in range(run.recipe.evaluation.samples_per_prompt)
        ]
        path.write_text("".join([*kept, *(json.dumps(row) + "\n" for row in rows)]))
        beat(run.out, "evaluate")
        pause(run.pace if quarter < 3 else 0.0, told)
    return rows


def sample_row(
    trick: str | None, split: str, number: int, sample: int, passed: bool, penalty: float = 0.0
) -> dict[str, object]:
    said = "00000000" if trick == "one answer" else digest(split, number, passed)
    return {
        "split": split,
        "id": f"{split}-{number}",
        "sample": sample,
        "reward": passed - penalty,
        "passed": passed,
        "formatted": True,
        "tokens": {"long": 40, "short": 1}.get(trick or "", 3),
        "finish_reason": "length" if trick == "cut" and number % 5 else "stop",
        "digest": said,
    }


# --- the end -----------------------------------------------------------------------------------------------


def finish(run: Training, rows: list[dict[str, object]], *, stopped: bool = False) -> None:
    """The summary, last and atomically."""
    recipe, trains = run.recipe, run.evaluates is None
    futile = ended_by(run) == "no_step"
    cycles = len(lines(run.out / "cycles.jsonl")) - 1 if trains else 0
    early = 0.5 if ended_by(run) in ("no_step", "decline") else 1.0
    slow = run.seed in numbers_in(run.workspace / "slow-seeds")
    summary: dict[str, object] = {
        "stopped": stopped,
        "seed": run.seed,
        "recipe_signature": recipe.signature(),
        "metric": recipe.evaluation.metric,
        "cycles": cycles,
        "optimizer_steps": 0 if futile else 4 * cycles,
        "kept": 0 if futile else 100 * cycles,
        "ended_by": "sigterm" if stopped else ended_by(run),
        "metrics": {} if stopped else metrics_of(run, rows),
        "select_metric": evaluated_quality(run),
        "train_s": early * 0.2 * cycles / CYCLES,
        "evaluate_s": None if stopped else 0.05,
        "elapsed_s": 0.3,
        "tokens_per_s": 500.0 if slow else 1000.0,
    }
    if run.trick == "above pass@k" and trains:
        summary |= {"pass_at_1": 0.9, "pass_at_k": 0.5}
    if trains and not stopped:
        shutil.rmtree(run.out / "state", ignore_errors=True)
    replace(run.out / "summary.json", json.dumps(summary))


def ended_by(run: Training) -> str:
    if run.evaluates is not None:
        return "evaluated"
    if run.recipe.selection.reward_threshold > 1:
        return "no_step"
    return "decline" if run.recipe.learner.early_stop is not None else "budget"


def metrics_of(run: Training, rows: list[dict[str, object]]) -> dict[str, float]:
    found = {}
    for split in dict.fromkeys(str(row["split"]) for row in rows):
        rewards = [float(str(row["reward"])) for row in rows if row["split"] == split]
        found[split] = sum(rewards) / len(rewards)
        if run.evaluates is None:
            wrong = run.seed in numbers_in(run.workspace / "wrong-seeds")
            found[split] = as_told("not its rows" if wrong else run.trick, split, found[split])
    return found


def as_told(trick: str | None, split: str, value: float) -> float:
    if trick == "not a number":
        return math.nan
    if trick == "out of range":
        return 1.7
    if trick == "not its rows" or (trick == "not its rows in confirm" and split == "confirm"):
        return value - 0.1
    return value


# --- breaking ----------------------------------------------------------------------------------------------


def break_on_purpose(run: Training) -> int | None:
    """An exit code, where the run ends before it did anything."""
    if (run.workspace / "data-is-missing").exists():
        return fail(run, crash_class="data", message="no such data", exception="DataError", hint="bring it", code=3)
    if (run.workspace / "disk-is-full").exists():
        return raise_("OSError: [Errno 28] No space left on device")
    if run.evaluates is not None:
        return None
    kernels = run.workspace / "kernel-is-broken"
    if kernels.exists() and run.recipe.backend.attention not in kernels.read_text().split():
        return raise_("RuntimeError: No available kernel. Aborting execution.")
    once = run.workspace / "kernel-breaks-once"
    if once.exists():
        once.unlink()
        return raise_("RuntimeError: CUDA error: an illegal memory access was encountered")
    if run.seed in numbers_in(run.workspace / "crash-seeds"):
        return raise_("RuntimeError: a seed that crashes")
    learner = run.recipe.learner
    fits = 4096 if learner.gradient_checkpointing is True else 2048
    if learner.epochs_per_cycle == 2 and learner.microbatch_tokens > fits:
        return raise_("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.08 GiB.")
    if learner.optimizer == "sgd":
        return fail(run, crash_class="numeric", message="loss is nan at step 3", exception="NumericError", code=10)
    if run.recipe.rollout.top_k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.recipe.selection.drop_solved:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            beat(run.out, "train")
            time.sleep(0.05)
    return None


def raise_(line: str) -> int:
    print('Traceback (most recent call last):\n  File "x.py", line 1, in <module>', file=sys.stderr)
    print(line, file=sys.stderr)
    return 1


def fail(run: Training, *, code: int, **failure: str) -> int:
    (run.out / "failure.json").write_text(json.dumps(failure))
    return code


# --- files -------------------------------------------------------------------------------------------------


def beat(out: Path, phase: str) -> None:
    told = {"phase": phase, "step": 1, "pid": os.getpid(), "time": time.time()}
    replace(out / "heartbeat", json.dumps(told))


def note(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def replace(path: Path, text: str) -> None:
    """A kill leaves the old file or the new one."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def numbers_in(path: Path) -> list[int]:
    return [int(word) for line in lines(path) for word in line.split()]


if __name__ == "__main__":
    sys.exit(main())
