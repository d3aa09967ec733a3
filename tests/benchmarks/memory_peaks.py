"""Holds the memory estimate against measured peaks: `python tests/benchmarks/memory_peaks.py [--shapes small,...]`.

Makes a model folder with random weights for each shape (in a child process, so that this one needs no torch), runs
the real trainer on it for two cycles that keep every sample, and prints the estimate beside what the trainer
measured: resident memory of its process on a CPU, what torch allocated on an accelerator. Takes minutes for the
larger shapes; nothing is downloaded. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from agent.campaign.capacity import facts_of
from agent.contract import PLAN, SUMMARY
from agent.hardware.probe import probe_machine
from agent.hardware.sensors import memory
from agent.raft.environment import trainer_environment
from agent.recipe.files import load_recipe, resolved_text
from agent.recipe.memory import GIB, estimate
from agent.recipe.schema import Recipe
from agent.recipe.shapes import shape_from_config

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "architecture": "LlamaForCausalLM",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 9,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
    },
    "135M": {
        "architecture": "LlamaForCausalLM",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 8192,
    },
    "360M": {
        "architecture": "Qwen2ForCausalLM",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "vocab_size": 16384,
    },
}
"""Of SmolLM2's sizes with small vocabularies: what differs is how much goes to weights and how much to activations."""
FILLER = "Add the two numbers and write the sum. "


def main() -> None:
    options = parse()
    if options.build is not None:
        build(options.build, SHAPES[options.shapes[0]])
        return
    with tempfile.TemporaryDirectory(prefix="memory-peaks-") as scratch:
        rows = [measure(name, Path(options.work or scratch), options) for name in options.shapes]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Estimated and measured peak memory of real trainings.")
    parser.add_argument("--shapes", default=list(SHAPES), type=lambda text: text.split(","), help=", ".join(SHAPES))
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--lora", action="store_true", help="train adapters of rank 16")
    parser.add_argument("--quantize", choices=["8bit", "4bit"], help="with --lora: bits of the frozen weights")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--tokens", type=int, default=2048, help="learner.microbatch_tokens (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.shapes) - set(SHAPES)
    if unknown:
        parser.error(f"no such shape: {', '.join(sorted(unknown))}")
    return options


def build(folder: Path, sizes: dict[str, Any]) -> None:
    """A model folder with random weights and the tokenizer of the built-in model. Runs in a child process."""
    import transformers

    from agent.raft.tiny import CharTokenizer

    values = dict(sizes)
    model_class = getattr(transformers, values.pop("architecture"))
    config = model_class.config_class(**values, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    model_class(config).save_pretrained(folder)
    CharTokenizer().save_pretrained(str(folder))


def measure(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One shape: build, estimate, train, compare. Sizes are in bytes."""
    folder, out = work / f"model-{name}", work / f"run-{name}"
    if not folder.exists():
        run(__file__, "--build", str(folder), "--shapes", name)
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe_for(folder, options)), encoding="utf-8")
    recipe = load_recipe(path)
    path.write_text(resolved_text(recipe), encoding="utf-8")
    cache = str(work / "cache")
    run("-m", "agent.raft.worker", "--recipe", str(path), "--out", str(out), "--seed", "0", "--split", "none",
        "--cache", cache, **trainer_environment(recipe.backend, cache=Path(cache)))  # fmt: skip
    summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
    return compared(name, recipe, folder, measured=summary["peak_memory_gb"] * 1e9, plan=plan)


def compared(name: str, recipe: Recipe, folder: Path, *, measured: float, plan: dict[str, Any]) -> dict[str, Any]:
    shape = shape_from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    machine = probe_machine(cache=None)
    free = memory().available  # before the training as after it
    found = estimate(recipe, shape, facts_of(machine, recipe), dtype=plan["dtype"], available_gb=free)
    assert plan["parameters"] - plan["trainable_parameters"] in (0, shape.parameters), "the shape is not the model's"
    return {
        "shape": name,
        "parameters": shape.parameters,
        "dtype": found.dtype,
        "device": plan["device"],
        "checkpointing": found.checkpointing,
        "lora": recipe.model.lora is not None,
        "quantize": recipe.model.quantize,
        "microbatch_tokens": recipe.learner.microbatch_tokens,
        "estimated_bytes": found.peak,
        "measured_bytes": round(measured),
        "ratio": found.peak / measured,
        "phase": found.peak_phase,
        "parts": {part.name: part.bytes for part in found.parts},
    }


def recipe_for(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Two cycles that keep every sample, whatever random weights write, so that the microbatches are full."""
    adapters = {"lora": {"rank": 16}, "quantize": options.quantize} if options.lora else {}
    return {
        "model": {"source": str(folder), "dtype": options.dtype, **adapters},
        "task": {"dataset": "builtin:addition"},
        "prompt": {"template": FILLER + "{question}"},
        "rollout": {
            "prompts_per_cycle": 16,
            "samples_per_prompt": 4,
            "max_new_tokens": 80,
            "max_total_sequence_length": 128,
            "slots": 64,
        },
        "selection": {"reward_threshold": 0.0, "max_per_prompt": 4, "dedup": False, "truncated_as_positive": True},
        "learner": {"microbatch_tokens": options.tokens, "gradient_checkpointing": options.checkpointing},
        "evaluation": {
            "select_prompts": 8,
            "search_prompts": 8,
            "confirm_prompts": 8,
            "holdout_prompts": 8,
            "samples_per_prompt": 1,
            "max_new_tokens": 16,
        },
        "budget": {"cycles": 2},
    }


def run(*arguments: str, **variables: str) -> None:
    """Another Python; its output is shown only where it fails."""
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(arguments[:2])} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'shape':<8}{'parameters':>12}  {'dtype':<10}{'estimate':>10}{'measured':>10}{'ratio':>7}  peak in"]
    lines += [
        f"{row['shape']:<8}{row['parameters'] / 1e6:>10.1f}M  {row['dtype']:<10}"
        f"{row['estimated_bytes'] / GIB:>6.2f} GiB{row['measured_bytes'] / GIB:>6.2f} GiB{row['ratio']:>7.2f}"
        f"  {row['phase']}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
