"""`bench train`: one update on kept samples, against the matrix-product peak and against transformers' Trainer.

The samples are drawn once, by our engine, and handed to both as token ids. Each trains in a process of its own, so
that each peak of memory is its own: float32 weights and AdamW in both, the same arithmetic, the same mean over
completion tokens, one optimizer step over all samples.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from agent.raft import let_in, sources
from agent.raft.bench_arithmetic import spread
from agent.raft.bench_machine import Watch
from agent.raft.bench_products import (
    Product,
    ProductRecorder,
    fastest_products,
    peak_flops,
    seconds_of,
    synchronize,
)
from agent.raft.bench_rollout import completions_of
from agent.raft.bench_settings import LEARNING_RATE, BenchSettings, recipe_of
from agent.raft.device import choose_device, facts_of
from agent.raft.learner import Trainer, TrainReport
from agent.raft.measure import peak_memory_gb
from agent.raft.microbatch import TrainingSample
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.pulse import no_beat
from agent.recipe.memory import arithmetic
from agent.recipe.schema import Recipe
from agent.recipe.shapes import shape_of

IGNORED = -100
"""Label of a token without loss, as torch's cross-entropy has it."""
PEAK_ROWS = 2048
Say = Callable[[str], None]


def draw_samples(settings: BenchSettings, *, cache: Path, say: Say) -> list[dict[str, Any]]:
    """The samples of one update, as plain values: of each prompt the first ones, as many as `kept` asks for."""
    recipe = recipe_of(settings)
    policy = load_policy(recipe, cache=cache, seed=settings.seed, beat=no_beat)
    say("drawing the samples to train on")
    requests, groups = completions_of(policy, recipe)
    chosen = [
        TrainingSample(request.prompt, completion.tokens, completion.logprobs)
        for request, group in zip(requests, groups, strict=True)
        for completion in group[: settings.kept_of_a_prompt]
    ]
    return [asdict(sample) for sample in chosen]


def read_samples(path: Path) -> list[TrainingSample]:
    return [TrainingSample(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


# Ours ------------------------------------------------------------------------------------------------------------


def train_ours(settings: BenchSettings, samples: Sequence[TrainingSample], *, cache: Path, say: Say) -> dict[str, Any]:
    """Seconds of an update by repeat, the peak measured between them, and the operations that were needed and done."""
    recipe = recipe_of(settings)
    policy = load_policy(recipe, cache=cache, seed=settings.seed, beat=no_beat)
    trainer = Trainer(policy, recipe.learner)
    _update(trainer, samples, seed=-1)
    seconds: list[float] = []
    peaks: list[float] = []
    cores: list[float] = []
    report, memory = TrainReport(), 0.0
    for repeat in range(settings.repeats):
        reports: list[TrainReport] = []

        def update(repeat: int = repeat, reports: list[TrainReport] = reports) -> None:
            reports.append(_update(trainer, samples, seed=repeat))

        with Watch() as watch:
            seconds.append(seconds_of(update, policy.device))
        report = reports[0]
        cores.append(watch.cores_share)
        memory = memory or peak_memory_gb()  # before the buffers of the first peak
        peaks.append(_peak(policy, recipe, cache=cache, quick=settings.quick))
        say(f"repeat {repeat + 1}: ours {seconds[-1]:.2f} s")
    with ProductRecorder() as recorder:
        _update(trainer, samples, seed=settings.repeats)
    return {
        "seconds": spread(seconds),
        "peak_flops_per_s": statistics.median(peaks),
        "peaks_flops_per_s": peaks,
        "computed_flops": recorder.flops,
        "computed_attention_flops": recorder.attention_flops,
        "forward_tokens": report.forward_tokens,
        "optimizer_steps": report.steps,
        "loss": report.loss_sum / report.tokens,
        "cores_share": cores,
        "peak_memory_gb": memory,
        "shape": trainer.shape,
        "dtype": str(policy.compute).removeprefix("torch."),
        "device": str(policy.device),
    }


def _update(trainer: Trainer, samples: Sequence[TrainingSample], *, seed: int) -> TrainReport:
    return trainer.train(samples, learning_rate=lambda share: LEARNING_RATE, seed=seed)


def _peak(policy: Policy, recipe: Recipe, *, cache: Path, quick: bool) -> float:
    """Operations a second: the best of square products and the model's largest one at a training batch's rows."""
    found = [peak_flops(policy.compute, policy.device, repeats=3, quick=quick)]
    shape = shape_of(recipe.model, cache=cache, base=Path.cwd()).shape
    if shape is not None:
        inputs, outputs = max(shape.matrices().values(), key=lambda sizes: sizes[0] * sizes[1])
        product = Product(PEAK_ROWS, inputs, outputs, policy.compute)
        seconds = fastest_products([product], layers=shape.layers, device=policy.device)
        found.append(2 * PEAK_ROWS * inputs * outputs / seconds[product])
    return max(found)


# Theirs ----------------------------------------------------------------------------------------------------------


class _Rows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """The samples as the Trainer wants them, the prompt without loss."""

    def __init__(self, samples: Sequence[TrainingSample]):
        self._rows = [
            {
                "input_ids": sample.prompt + sample.completion,
                "attention_mask": [1] * len(sample),
                "labels": [IGNORED] * len(sample.prompt) + sample.completion,
            }
            for sample in samples
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        return self._rows[place]


def train_theirs(
    settings: BenchSettings, samples: Sequence[TrainingSample], *, cache: Path, scratch: Path, say: Say
) -> dict[str, Any]:
    """transformers' Trainer: dynamic padding, an epoch of one optimizer step for each repeat and one to warm up."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers import Trainer as TheirTrainer
    from transformers.utils import logging

    logging.disable_progress_bar()
    recipe = recipe_of(settings)
    device, _ = choose_device()
    shape = shape_of(recipe.model, cache=cache, base=Path.cwd()).shape
    narrow = arithmetic(recipe.model.dtype, facts_of(device), parameters=shape.parameters if shape else None)
    source = sources.fetch(recipe.model, cache=cache, beat=no_beat)
    with let_in.reading(source):
        model = AutoModelForCausalLM.from_pretrained(source.place, **source.how_weights, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source.place, **source.how)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = min(settings.trainer_rows, len(samples))
    began: list[float] = []
    seconds: list[float] = []

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize(device)
            began.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(device)
            seconds.append(time.perf_counter() - began[-1])
            say(f"step {len(seconds)}: transformers' Trainer {seconds[-1]:.2f} s")

    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=-(-len(samples) // rows),
        num_train_epochs=settings.repeats + 1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=recipe.learner.max_grad_norm,
        bf16=narrow == "bfloat16",
        fp16=narrow == "float16",
        use_cpu=device.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )
    trainer = TheirTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(samples),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[Timer()],
    )
    trainer.train()
    return {
        "seconds": spread(seconds[1:]),
        "peak_memory_gb": peak_memory_gb(),
        "rows": rows,
        "optimizer_steps": len(seconds),
        "dtype": narrow,
    }
