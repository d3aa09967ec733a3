"""Real runs of the built-in model that each have one planted fault, and the healthy runs beside them.

    python tests/plan/faults.py                 the table, from the recorded runs
    python tests/plan/faults.py --record        run them all again with the real worker (about 10 minutes)
    python tests/plan/faults.py --record NAME   only these

A recording holds what the diagnosis needs: cycle rows, summary, held-out rows. The fast tests replay it; the slow
ones make it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan_fixtures import BOOK, HEALTHY_RATE, ROOT, machine

from agent.contract import CycleRow, EvalRow, Failure, Summary
from agent.files import read_jsonl
from agent.plan.planner import plan, random_order
from agent.plan.proposal import Proposal
from agent.plan.signals import Observation
from agent.plan.symptoms import diagnose
from agent.recipe.files import load_recipe, resolved_text, with_keys
from agent.recipe.schema import Recipe

RECORDED = Path(__file__).parent / "recorded"
CYCLES = 24
COLUMNS = [name for name in CycleRow.model_fields if name not in ("cycle", "seconds", "elapsed_s", "budget_spent")]
BASE = {
    "learner.learning_rate": HEALTHY_RATE,
    **{f"evaluation.{split}_prompts": 256 for split in ("search", "confirm", "holdout")},
    "budget": {"cycles": CYCLES},
}
"""On top of `tiny-addition`: a rate at which training is healthy, and the sizes of the recordings."""
UP, DOWN, ANY = "up", "down", "any"


@dataclass(frozen=True)
class Run:
    """A recipe as changes of `tiny-addition`, the symptoms it must show, and for a fault what would repair it."""

    name: str
    changes: dict[str, Any]
    symptoms: tuple[str, ...] = ()
    """Each must be found."""
    repairs: dict[str, str | list[Any]] = field(default_factory=dict)
    """Key -> direction of a repair, or the values that are one. Empty: no fault of the trial."""
    planted: str = ""
    seed: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """Files in the folder that the run is started from: data, a verifier."""
    beside: int = 0
    """Processes that keep the machine busy meanwhile."""
    usual: str = ""
    """The run whose throughput counts as usual for this recipe and machine."""
    memory_gb: float = 16.0
    """Memory of the machine that the run is judged on."""
    again: tuple[str, ...] = ()
    """What a new training must show, where the way to ruin hangs on the last bit of the arithmetic; else `symptoms`."""

    @property
    def recipe(self) -> Recipe:
        return with_keys(load_recipe(ROOT / "recipes/tiny-addition.yaml"), {**BASE, **self.changes})

    def repaired_by(self, proposal: Proposal) -> bool:
        return any(key in proposal.values and _counts(proposal.values[key], way) for key, way in self.repairs.items())


def _counts(move: tuple[Any, Any], way: str | list[Any]) -> bool:
    old, new = move
    if isinstance(way, list):
        return new in way
    if way == ANY:
        return True
    if new is None or old is None:
        return way == UP and new is None  # a limit that is lifted
    return new > old if way == UP else new < old


HEALTHY = [
    Run("healthy", {}),
    Run("healthy-seed-1", {}, seed=1),
    Run("healthy-short", {"budget": {"cycles": 8}}, seed=2),
    Run("healthy-long", {"budget": {"cycles": 60}}, seed=3),
    Run("four-epochs-long", {"learner.epochs_per_cycle": 4, "budget": {"cycles": 60}}),
    Run("rate-x2-long", {"learner.learning_rate": 4e-4, "budget": {"cycles": 60}}),
]

FAULTS = [
    Run(
        "completions-cut",
        {"rollout.max_new_tokens": 3},
        ("truncated_completions",),
        {"rollout.max_new_tokens": UP},
        "completions cut at 3 tokens",
    ),
    Run(
        "rate-x50",
        {"learner.learning_rate": 1e-2},
        ("learning_too_hot",),
        {"learner.learning_rate": DOWN},
        "learning rate x50",
    ),
    Run(
        "rate-x0.02",
        {"learner.learning_rate": 4e-6},
        ("learning_too_slow",),
        {"learner.learning_rate": UP},
        "learning rate x0.02",
    ),
    Run(
        "one-sample",
        {"rollout.samples_per_prompt": 1},
        ("one_sample_a_prompt",),
        {"rollout.samples_per_prompt": UP},
        "one sample a prompt",
    ),
    Run(
        "stop-string",
        {"prompt.stop": ["1"]},
        ("wrong_stop_string",),
        {"prompt.stop": [[]]},
        "stop string inside answers",
    ),
    Run(
        "threshold",
        {"selection.reward_threshold": 1.5},
        ("nothing_kept",),
        {"selection.reward_threshold": DOWN, "task.reward.scale": UP},
        "threshold that keeps nothing",
    ),
    Run("too-cold", {"rollout.temperature": 0.1}, ("low_diversity",), {"rollout.temperature": UP}, "temperature 0.1"),
    Run(
        "too-hot",
        {"rollout.temperature": 3.0},
        ("sampling_too_random",),
        {"rollout.temperature": DOWN},
        "temperature 3",
    ),
    Run(
        "few-prompts",
        {"task.train_prompts": 16, "learner.learning_rate": 5e-4, "budget": {"cycles": 40}},
        ("few_training_prompts", "train_up_validation_flat", "mostly_solved"),
        {"task.train_prompts": UP},
        "16 training prompts",
    ),
    Run(
        "starved-mix",
        {"task.mix": {"carry0": 1.0, "carry1": 0.0, "carry2": 0.0}, "budget": {"cycles": 60}},
        ("uneven_tags",),
        {"task.mix": ANY},
        "mix without carries",
    ),
    Run(
        "few-steps",
        {"rollout.prompts_per_cycle": 1024, "learner.microbatch_tokens": 65536, "budget": {"cycles": 3}},
        ("too_few_steps",),
        {"learner.microbatch_tokens": DOWN, "rollout.prompts_per_cycle": DOWN, "learner.epochs_per_cycle": UP},
        "three huge steps",
    ),
    Run(
        "min-samples",
        {"selection.min_samples": 100000},
        ("nothing_kept",),
        {"selection.min_samples": DOWN},
        "cycles never large enough",
    ),
    Run(
        "many-epochs",
        {"learner.epochs_per_cycle": 16, "learner.learning_rate": 5e-4, "rollout.temperature": 0.7},
        ("too_many_epochs", "entropy_collapse"),
        {"learner.epochs_per_cycle": DOWN},
        "16 epochs a cycle",
    ),
]

FRESH = [
    Run(
        "fresh-cut",
        {"rollout.max_new_tokens": 2},
        (),
        {"rollout.max_new_tokens": UP},
        "completions cut at 2 tokens",
        11,
    ),
    Run(
        "fresh-rate-x20", {"learner.learning_rate": 4e-3}, (), {"learner.learning_rate": DOWN}, "learning rate x20", 12
    ),
    Run(
        "fresh-rate-x0.05",
        {"learner.learning_rate": 1e-5},
        (),
        {"learner.learning_rate": UP},
        "learning rate x0.05",
        13,
    ),
    Run(
        "fresh-two-samples",
        {"rollout.samples_per_prompt": 2},
        (),
        {"rollout.samples_per_prompt": UP},
        "two samples a prompt",
        14,
    ),
    Run("fresh-stop", {"prompt.stop": ["0", "5"]}, (), {"prompt.stop": [[]]}, "two stop strings in answers", 15),
    Run(
        "fresh-clip",
        {"task.reward.clip": [0.0, 0.5]},
        (),
        {"task.reward.clip": [None], "selection.reward_threshold": DOWN},
        "clip below the threshold",
        16,
    ),
    Run("fresh-cold", {"rollout.temperature": 0.2}, (), {"rollout.temperature": UP}, "temperature 0.2", 17),
    Run("fresh-hot", {"rollout.temperature": 2.0}, (), {"rollout.temperature": DOWN}, "temperature 2", 18),
    Run(
        "fresh-prompts",
        {"task.train_prompts": 24, "budget": {"cycles": 40}},
        (),
        {"task.train_prompts": UP},
        "24 training prompts",
        19,
    ),
    Run(
        "fresh-mix",
        {"task.mix": {"carry0": 5.0, "carry1": 0.05, "carry2": 0.05}, "budget": {"cycles": 60}},
        (),
        {"task.mix": ANY},
        "mix of nearly one kind",
        20,
    ),
    Run(
        "fresh-sgd",
        {"learner.optimizer": "sgd"},
        (),
        {"learner.optimizer": ["adamw"], "learner.learning_rate": UP},
        "sgd at adamw's rate",
        21,
    ),
    Run(
        "fresh-epochs",
        {"learner.epochs_per_cycle": 32},
        (),
        {"learner.epochs_per_cycle": DOWN},
        "32 epochs a cycle",
        22,
    ),
    Run("fresh-greedy", {"rollout.top_k": 1}, (), {"rollout.top_k": [0]}, "only the likeliest token", 23),
    Run(
        "fresh-accumulation",
        {"rollout.prompts_per_cycle": 512, "learner.gradient_accumulation": 64, "budget": {"cycles": 4}},
        (),
        {
            "learner.gradient_accumulation": DOWN,
            "rollout.prompts_per_cycle": DOWN,
            "learner.microbatch_tokens": DOWN,
            "learner.epochs_per_cycle": UP,
        },
        "accumulation over whole cycles",
        24,
    ),
]
"""Other sizes, seeds and kinds of fault than those with which thresholds and fits were set: a test of the playbook
that it has not seen. Run once the playbook stood (see the report in test_plan_trial.py)."""

LENGTHS = {"low": 60, "high": 160}
SPIKE = {"kind": "list", "by": "cycle", "values": [1.0] * 15 + [100.0] + [1.0] * 8}
"""One cycle at 100 times the rate."""
LEARN_ALL = {"selection.reward_threshold": 0.0}
"""Failures are trained on too, so that a ruined model goes on training."""
SLOW_VERIFIER = """
import time

def score(response, row):
    time.sleep(0.005)  # a service that is asked
    return response.strip() == row["answer"]
"""
LONG_AND_SHORT = "".join(
    json.dumps({"question": "+".join(["1"] * (60 if n % 8 == 0 else 2)) + f"+{n}=", "answer": str(n + 2)}) + "\n"
    for n in range(200)
)
"""One sum in eight is very long."""
SMALL_SPLITS = {"evaluation.select_prompts": 16, "evaluation.search_prompts": 16, "evaluation.confirm_prompts": 16} | {
    "evaluation.holdout_prompts": 16
}
SICK = [
    Run("tags-missing", {"task.verifier": {"kind": "delimited"}}, ("format_missing", "answer_near_but_not_in_format")),
    Run("limit-tight", {"rollout.max_new_tokens": 4}, ("long_completions",)),
    Run(
        "prompts-long",
        {"task.parameters": LENGTHS, "rollout.max_total_sequence_length": 8, "rollout.max_new_tokens": 4},
        ("dropped_prompts",),
    ),
    Run(
        "one-of-128-kept",
        {"rollout.samples_per_prompt": 128, "rollout.prompts_per_cycle": 8, "selection.max_per_prompt": 1},
        ("few_kept",),
    ),
    Run("hard-sums", {"task.parameters": {"low": 100, "high": 400}}, ("mostly_failed",)),
    Run(
        "rate-1-sgd",
        {"learner.optimizer": "sgd", "learner.learning_rate": 1.0, "learner.max_grad_norm": 1e6},
        ("learning_too_hot",),
    ),
    Run("norm-tiny", {"learner.max_grad_norm": 0.01}, ("always_clipping",)),
    Run(
        "eight-prompts",
        {
            "task.train_prompts": 8,
            "learner.learning_rate": 2e-4,
            "rollout.samples_per_prompt": 4,
            "budget": {"cycles": 60},
        },
        ("reward_saturated", "mostly_solved"),
    ),
    Run(
        "rate-rises-late",
        {
            "learner.lr_schedule": {"kind": "list", "by": "cycle", "values": [1.0] * 36 + [12.0] * 4},
            "budget": {"cycles": 48},
        },
        ("late_degradation",),
    ),
    Run("accumulation", {"learner.microbatch_tokens": 64, "learner.gradient_accumulation": 8}, ("memory_headroom",)),
    Run("few-held-out", {"evaluation.search_prompts": 16}, ("noisy_signal",)),
    Run(
        "one-row-at-a-time",
        {"rollout.slots": 1, "rollout.prompts_per_cycle": 16, "budget": {"cycles": 6}},
        ("generation_bound",),
    ),
    Run(
        "a-sample-a-microbatch",
        {
            "learner.epochs_per_cycle": 4,
            "learner.microbatch_tokens": 16,
            "learner.gradient_accumulation": 16,
            "budget": {"cycles": 8},
        },
        ("training_bound", "memory_headroom"),
    ),
    Run(
        "slow-verifier",
        {"task.verifier": {"kind": "python:slow.py:score"}, "budget": {"cycles": 4}},
        ("verify_bound",),
        files={"slow.py": SLOW_VERIFIER},
    ),
    Run(
        "long-and-short",
        {
            "task.dataset": "jsonl:sums.jsonl",
            "selection.reward_threshold": 0.0,
            "rollout.max_total_sequence_length": 160,
            "learner.microbatch_tokens": 65536,
            "learner.packing": False,
            "budget": {"cycles": 8},
            **SMALL_SPLITS,
        },
        ("padding_waste",),
        files={"sums.jsonl": LONG_AND_SHORT},
    ),
    Run("busy-machine", {"budget": {"cycles": 8}}, ("slow_throughput",), beside=4, usual="healthy"),
    Run("small-machine", {}, ("memory_tight",), memory_gb=0.34),
    Run(
        "dropout-in-the-learner",
        {"model.lora": {"rank": 16, "alpha": 64, "dropout": 0.6}, "learner.learning_rate": 3e-3},
        ("logprob_mismatch",),
    ),
    Run(
        "many-steps-a-cycle",
        {
            "rollout.prompts_per_cycle": 128,
            "learner.microbatch_tokens": 64,
            "learner.epochs_per_cycle": 4,
            "learner.learning_rate": 1e-3,
            "budget": {"cycles": 6},
        },
        ("stale_data",),
    ),
    Run(
        "everything-kept-rate-1",
        {**LEARN_ALL, "learner.learning_rate": 1.0, "learner.optimizer": "sgd", "learner.max_grad_norm": 1e6},
        ("unstable_loss", "grad_spikes"),
        again=("learning_too_hot",),
        seed=2,
    ),
    Run(
        "rate-spike",
        {
            "learner.lr_schedule": SPIKE,
            "learner.optimizer": "sgd",
            "learner.learning_rate": 0.05,
            "learner.max_grad_norm": 1e6,
            "learner.epochs_per_cycle": 4,
            "learner.microbatch_tokens": 512,
        },
        ("unstable_loss", "grad_spikes", "late_degradation"),
        seed=2,
    ),
    Run(
        "float16-jumps",
        {
            **LEARN_ALL,
            "model.dtype": "float16",
            "learner.learning_rate": 1.0,
            "learner.optimizer": "sgd",
            "learner.max_grad_norm": 1e6,
        },
        ("fp16_overflow",),
        again=("learning_too_hot",),
    ),
    Run(
        "float16-ends",
        {
            **LEARN_ALL,
            "model.dtype": "float16",
            "selection.truncated_as_positive": True,
            "learner.learning_rate": 1.0,
            "learner.epochs_per_cycle": 8,
            "learner.microbatch_tokens": 512,
            "budget": {"cycles": 8},
        },
        ("non_finite", "fp16_overflow"),
    ),
]
RUNS = {run.name: run for run in [*HEALTHY, *FAULTS, *SICK, *FRESH]}


# --- running and recording ---------------------------------------------------------------------------------


def execute(run: Run, out: Path, *, cache: Path, timeout_s: float = 240.0) -> None:
    """One training of the real worker in a process of its own."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(resolved_text(run.recipe), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "agent.raft.worker",
        "--recipe",
        str(recipe),
        "--out",
        str(out),
        "--seed",
        str(run.seed),
    ]
    command += ["--split", "search", "--cache", str(cache)]
    for name, text in run.files.items():
        (out.parent / name).write_text(text, encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with busy(run.beside):
        done = subprocess.run(command, cwd=out.parent, env=env, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0 and not (out / "cycles.jsonl").exists():
        raise RuntimeError(f"{run.name}: the worker ended with {done.returncode}\n{done.stderr[-2000:]}")


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but count, for as long as the block runs."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def observe(run: Run, out: Path, *, usual_tokens_per_s: float | None = None) -> Observation:
    """The run as the planner sees it. A training that crashed has cycles and no summary.

    `usual_tokens_per_s` is what `run.usual` does on this machine; what it did when it was recorded, if not given.
    """
    summary = next(
        iter(
            [Summary.model_validate_json((out / "summary.json").read_text())] if (out / "summary.json").exists() else []
        ),
        None,
    )
    return Observation(
        recipe=run.recipe,
        cycles=[CycleRow.model_validate(row) for row in read_jsonl(out / "cycles.jsonl")],
        evals=[EvalRow.model_validate(row) for row in read_jsonl(out / "eval.jsonl")],
        summary=summary,
        failure=Failure.model_validate_json((out / "failure.json").read_text())
        if (out / "failure.json").exists()
        else None,
        **_surroundings(run, usual_tokens_per_s),
    )


def _surroundings(run: Run, usual_tokens_per_s: float | None = None) -> dict[str, Any]:
    """What the campaign knows beside the run's own files."""
    usual = json.loads((RECORDED / f"{run.usual}.jsonl").read_text().splitlines()[0])["summary"] if run.usual else {}
    return {
        "noise": 0.025,
        "machine": machine(memory_gb=run.memory_gb),
        "reference_tokens_per_s": usual_tokens_per_s or usual.get("tokens_per_s"),
    }


def record(run: Run, out: Path, folder: Path = RECORDED) -> Path:
    observation = observe(run, out)
    cycles = [_compact(row) for row in observation.cycles]
    summary = observation.summary
    rows = {
        "run": run.name,
        "summary": summary.model_dump(mode="json", exclude={"provenance"}) if summary else None,
        "failure": observation.failure.model_dump(mode="json") if observation.failure else None,
        "evals": _columns(observation.evals),
        "columns": list(COLUMNS),
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{run.name}.jsonl"
    lines = [json.dumps(rows, separators=(",", ":")), *(json.dumps(cycle, separators=(",", ":")) for cycle in cycles)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _compact(row: CycleRow) -> list[Any]:
    seconds = [round(getattr(row.seconds, part), 3) for part in ("generate", "verify", "train", "evaluate", "wait")]
    return [row.cycle, seconds, *(_short(getattr(row, column)) for column in COLUMNS)]


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def _columns(rows: list[EvalRow] | Any) -> dict[str, Any]:
    """Held-out rows as one character a row and column."""
    tags = sorted({row.tag or "" for row in rows})
    bits = {name: "".join("01"[bool(getattr(row, name))] for row in rows) for name in ("passed", "formatted", "near")}
    return {
        **bits,
        "cut": "".join("01"[row.finish_reason == "length"] for row in rows),
        "tags": tags,
        "tag": "".join(str(tags.index(row.tag or "")) for row in rows),
        "samples": len(rows) // max(1, len({row.id for row in rows})),
    }


def replay(run: Run, folder: Path = RECORDED) -> Observation:
    """The recorded run."""
    head, *cycles = [
        json.loads(line) for line in (folder / f"{run.name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    parts = ("generate", "verify", "train", "evaluate", "wait")
    rows = [
        CycleRow.model_validate(
            {
                "cycle": number,
                "seconds": dict(zip(parts, seconds, strict=True)),
                **dict(zip(head["columns"], values, strict=True)),
            }
        )
        for number, seconds, *values in cycles
    ]
    return Observation(
        recipe=run.recipe,
        cycles=rows,
        evals=_rows(head["evals"]),
        summary=Summary.model_validate(head["summary"]) if head["summary"] else None,
        failure=Failure.model_validate(head["failure"]) if head.get("failure") else None,
        **_surroundings(run),
    )


def _rows(columns: dict[str, Any]) -> list[EvalRow]:
    samples = max(1, columns["samples"])
    return [
        EvalRow(
            split="search",
            id=str(place // samples),
            sample=place % samples,
            reward=float(passed),
            passed=passed == "1",
            formatted=columns["formatted"][place] == "1",
            near=columns["near"][place] == "1",
            tokens=1,
            finish_reason="length" if columns["cut"][place] == "1" else "stop",
            tag=columns["tags"][int(columns["tag"][place])] or None,
        )
        for place, passed in enumerate(columns["passed"])
    ]


# --- the table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """How one fault fared."""

    fault: Run
    rank: int | None
    """Place of the first idea that repairs it, from 1; None where there is none."""
    of: int
    idea: str
    random_mean: float
    """Mean place in random orders of the same ideas."""
    random_in_three: float
    """Share of random orders that have a repair among the first three."""
    found: str


def judge(fault: Run, observation: Observation, *, orders: int = 400) -> Row:
    """Rank of the repair in the plan, beside `orders` random orders of the same playbook."""
    ranking = plan(BOOK, recipe=fault.recipe, observation=observation, machine=machine())
    rank = place(fault, ranking.proposals)
    shuffled = []
    proposals = random_order(
        BOOK, recipe=fault.recipe, observation=observation, machine=machine(), rng=random.Random(0)
    )
    for seed in range(orders):
        random.Random(seed).shuffle(proposals)
        shuffled.append(place(fault, proposals) or len(proposals) + 1)
    return Row(
        fault=fault,
        rank=rank,
        of=len(proposals),
        idea=ranking.proposals[rank - 1].subject if rank else "",
        random_mean=statistics.fmean(shuffled),
        random_in_three=statistics.fmean(place <= 3 for place in shuffled),
        found=", ".join(f"{f.symptom} {f.severity:.2f}" for f in diagnose(observation, BOOK)[:3]),
    )


def place(fault: Run, proposals: list[Proposal]) -> int | None:
    return next((n for n, proposal in enumerate(proposals, start=1) if fault.repaired_by(proposal)), None)


def table(rows: list[Row]) -> str:
    if not rows:
        return "no recorded fault"
    lines = [f"{'planted fault':<30} {'rank':>4} {'of':>4} {'random':>7} {'in 3':>5}  first repair | symptoms"]
    for row in rows:
        lines.append(
            f"{row.fault.planted:<30} {row.rank or '-':>4} {row.of:>4} {row.random_mean:>7.1f} "
            f"{row.random_in_three:>5.0%}  {row.idea} | {row.found}"
        )
    ranks = [row.rank or row.of + 1 for row in rows]
    first_three = sum(rank <= 3 for rank in ranks)
    lines.append(
        f"among the first three: {first_three} of {len(rows)} (random order: "
        f"{sum(row.random_in_three for row in rows):.1f}); mean rank {statistics.fmean(ranks):.1f} "
        f"(random order: {statistics.fmean(row.random_mean for row in rows):.1f})"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", nargs="*", metavar="NAME", choices=[*RUNS, []])
    parser.add_argument("--cache", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.record is not None:
        for run in [RUNS[name] for name in arguments.record] or RUNS.values():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                try:
                    execute(run, out, cache=arguments.cache or Path(folder) / "cache")
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    print(error)
                    continue
                path = record(run, out)
            found = [f"{f.symptom} {f.severity:.2f}" for f in diagnose(replay(run), BOOK)]
            print(f"{run.name}: {path.stat().st_size} bytes: {', '.join(found) or 'no symptom'}", flush=True)
    for faults in (FAULTS, FRESH):
        print(table([judge(fault, replay(fault)) for fault in faults if (RECORDED / f"{fault.name}.jsonl").exists()]))


if __name__ == "__main__":
    main()
