"""Readable stand-ins for the plan tests: a recipe, machines, synthetic telemetry of a healthy run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.contract import CycleRow, EvalRow, Summary
from agent.hardware.probe import Machine
from agent.plan.memory import Attempt
from agent.plan.planner import Ranking
from agent.plan.playbook import Playbook, load_playbook
from agent.plan.proposal import Proposal
from agent.plan.signals import Observation
from agent.recipe.files import load_recipe, with_keys
from agent.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
BOOK: Playbook = load_playbook(ROOT / "hypotheses")


HEALTHY_RATE = 2e-4
"""Learning rate at which the built-in model fares about best; the shipped recipe is more careful."""


def tiny(**sections: Any) -> Recipe:
    """`recipes/tiny-addition.yaml` at HEALTHY_RATE, with dotted keys given as `learner__packing=True` changed."""
    recipe = load_recipe(ROOT / "recipes/tiny-addition.yaml")
    changes = {key.replace("__", "."): value for key, value in sections.items()}
    return with_keys(recipe, {"learner.learning_rate": HEALTHY_RATE, **changes})


def shipped(name: str, **keys: Any) -> Recipe:
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml")
    return with_keys(recipe, {key.replace("__", "."): value for key, value in keys.items()})


def machine(accelerators: int = 0, *, packages: tuple[str, ...] = (), **fields: Any) -> Machine:
    """A CPU, or a ROCm machine with this many accelerators."""
    gpu = accelerators > 0
    defaults: dict[str, Any] = {
        "kind": "rocm" if gpu else "cpu",
        "accelerators": accelerators,
        "arch": "gfx1151" if gpu else None,
        "name": "test machine",
        "cores": 2,
        "memory_gb": 16.0,
        "accelerator_memory_gb": 100.0 if gpu else None,
        "bf16": gpu,
        "unified_memory": gpu,
        "torch": "2.13",
        "packages": frozenset(packages),
    }
    return Machine(**(defaults | fields))


def cycle(number: int, **fields: Any) -> CycleRow:
    """A cycle of a healthy training that goes from 15% to 50% passed over 20 cycles."""
    done = min(number, 20) / 20
    base: dict[str, Any] = {
        "cycle": number,
        "learning_rate": 5e-4,
        "temperature": 1.0,
        "pass_rate": 0.15 + 0.35 * done,
        "samples": 512,
        "all_solved_share": 0.02 + 0.2 * done,
        "all_failed_share": 0.4 - 0.2 * done,
        "zero_variance_share": 0.42,
        "truncation_rate": 0.01,
        "format_rate": 1.0,
        "near_rate": 0.0,
        "entropy": 1.0 - 0.4 * done,
        "unique_share": 0.9 - 0.2 * done,
        "reward_mean": 0.15 + 0.35 * done,
        "reward_std": 0.4,
        "completion_tokens_mean": 3.8,
        "prompt_tokens_mean": 6.0,
        "padding_share": 0.05,
        "select_metric": 0.18 + 0.35 * done if number % 4 == 0 else None,
        "generated_tokens": 2000,
    }
    trained: dict[str, Any] = {
        "loss": 0.9 - 0.2 * done,
        "grad_norm": 1.5,
        "clip_share": 0.8,
        "kept": 120,
        "optimizer_steps": 1,
        "trained_tokens": 480,
        "logprob_gap": 1e-6,
        "logprob_drift": 1e-6,
        "trajectory_age": 0.0,
        "seconds": {"generate": 0.15, "verify": 0.01, "train": 0.06, "evaluate": 0.03, "wait": 0.0},
    }
    return CycleRow.model_validate(base | (trained if number else {}) | fields)


def run(
    count: int = 20, *, recipe: Recipe | None = None, start: dict[str, Any] | None = None, **fields: Any
) -> Observation:
    """A healthy run of `count` cycles, with `fields` in every trained cycle and `start` in cycle 0 instead."""
    rows = [cycle(0, **(start or {})), *(cycle(n, **fields) for n in range(1, count + 1))]
    kept, steps = sum(row.kept for row in rows), sum(row.optimizer_steps for row in rows)
    summary = Summary(
        seed=0,
        recipe_signature="x",
        cycles=count,
        optimizer_steps=steps,
        kept=kept,
        metric="pass_rate",
        metrics={"search": 0.52},
        tokens_per_s=9000.0,
        peak_memory_gb=1.0,
    )
    return Observation(
        recipe=recipe or tiny(),
        cycles=rows,
        summary=summary,
        evals=evals(),
        untrained_metric=0.18,
        noise=0.025,
        reference_tokens_per_s=9000.0,
        machine=machine(),
    )


def evals(**fields: Any) -> list[EvalRow]:
    base: dict[str, Any] = {"split": "search", "sample": 0, "formatted": True, "tokens": 4, "finish_reason": "stop"}
    return [
        EvalRow.model_validate(
            base | {"id": str(n), "reward": float(n % 2), "passed": n % 2 == 0, "tag": "ab"[n // 2 % 2]} | fields
        )
        for n in range(256)
    ]


def attempt(proposal: Proposal, outcome: str = "discard", **fields: Any) -> Attempt:
    """What became of a proposal, in a campaign called `now`."""
    base: dict[str, Any] = {
        "hypothesis": proposal.hypothesis,
        "axis": proposal.axis,
        "values": proposal.values,
        "signature": proposal.recipe.signature(),
        "outcome": outcome,
        "campaign": "now",
        "variant": proposal.variant,
        "symptom": proposal.symptom,
    }
    return Attempt(**(base | fields))


def named(ranking: Ranking, hypothesis: str, variant: str) -> Proposal:
    return next(p for p in ranking.proposals if (p.hypothesis, p.variant) == (hypothesis, variant))
