"""`bench cycle`: whole cycles (generate, verify, one update on the kept samples) with the trainer's own parts.

The update has the size that was asked for: of each prompt the best samples are kept, right or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from agent.raft.bench_arithmetic import spread
from agent.raft.bench_machine import Watch
from agent.raft.bench_products import synchronize
from agent.raft.bench_settings import BenchSettings, recipe_of
from agent.raft.engine import Training
from agent.raft.evaluate import Examiner
from agent.raft.measure import peak_memory_gb
from agent.raft.model import load_policy
from agent.raft.pulse import Pulse, no_beat
from agent.tasks.tasks import load_splits
from agent.tasks.verifiers import build_verifier

NEVER = 1e9
"""Seconds between two saved states: nothing is saved."""
PHASES = ("generate_s", "verify_s", "update_s", "rest_s", "cycle_s")
Say = Callable[[str], None]


def measure_cycles(
    settings: BenchSettings, *, cache: Path, scratch: Path, environment: Mapping[str, str], say: Say
) -> dict[str, Any]:
    """One cycle to warm up, then the repeats. Medians of the phases, and the peak of this process."""
    recipe = recipe_of(settings)
    splits = load_splits(recipe.task, recipe.evaluation, base=Path.cwd())
    say(f"loading {settings.model}")
    policy = load_policy(recipe, cache=cache, seed=settings.seed, beat=no_beat)
    cycles: list[dict[str, Any]] = []
    with build_verifier(recipe.task.verifier, base=Path.cwd(), allow_untrusted_code=False) as verifier:
        training = Training(
            recipe,
            policy=policy,
            examiner=Examiner(recipe, policy, verifier, ()),
            splits=splits,
            seed=settings.seed,
            out=scratch,
            pulse=Pulse(None),
            save_seconds=NEVER,
        )
        for number in range(settings.repeats + 1):
            cycle = _one_cycle(training, number)
            say(f"cycle {number}{' (warm-up)' if number == 0 else ''}: {cycle['cycle_s']:.2f} s")
            cycles.append(cycle)
    measured = cycles[1:]
    phases = {name: spread([cycle[name] for cycle in measured]) for name in PHASES}
    return {
        **{name: found["median"] for name, found in phases.items()},
        "peak_memory_gb": peak_memory_gb(),
        "kept": measured[-1]["kept"],
        "samples": settings.prompts * settings.samples,
        "pass_rate": sum(cycle["passed"] for cycle in measured) / sum(cycle["samples"] for cycle in measured),
        "generated_tokens_per_s": spread([cycle["tokens"] / cycle["generate_s"] for cycle in measured])["median"],
        "phases": phases,
        "cycles": measured,
        "warm_up": cycles[0],
        "prompts": settings.prompts,
        "samples_per_prompt": settings.samples,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "dtype": str(policy.compute).removeprefix("torch."),
        "device": str(policy.device),
        "model": settings.model,
        "threads": torch.get_num_threads(),
        "environment": dict(environment),
        "limits": limits({name: found["median"] for name, found in phases.items()}),
    }


def _one_cycle(training: Training, number: int) -> dict[str, Any]:
    device = training.policy.device
    synchronize(device)
    began = time.perf_counter()
    with Watch() as watch:
        batch = training.sample(number)
        chosen = training.choose(batch, number)
        report = training.train(batch, chosen, number)
        synchronize(device)
    whole = time.perf_counter() - began
    verdicts = [verdict for group in batch.verdicts for verdict in group]
    known = batch.generate_seconds + batch.verify_seconds + report.seconds
    return {
        "generate_s": batch.generate_seconds,
        "verify_s": batch.verify_seconds,
        "update_s": report.seconds,
        "rest_s": whole - known,
        "cycle_s": whole,
        "tokens": batch.generated_tokens,
        "samples": len(verdicts),
        "passed": sum(verdict.passed for verdict in verdicts),
        "kept": len(chosen),
        "kept_passed": sum(batch.verdicts[one.prompt][one.sample].passed for one in chosen),
        "optimizer_steps": report.steps,
        "loss": report.loss_sum / report.tokens if report.tokens else None,
        "cores_share": watch.cores_share,
        "load": watch.load,
    }


def limits(phases: Mapping[str, float]) -> str:
    """Where a cycle's time goes, in words."""
    words = {"generate_s": "generation", "verify_s": "waiting for the verifier", "update_s": "the update"}
    parts = sorted(words, key=lambda name: -phases[name])
    return "Of a cycle: " + ", ".join(f"{words[name]} {phases[name] / phases['cycle_s']:.0%}" for name in parts) + "."
