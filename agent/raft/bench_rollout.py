"""`bench rollout`: our engine and transformers' `generate` on the same prompts, against what the matrix products take.

Contenders take turns in one process, each with a model of its own in the same arithmetic: ours as the trainer holds
it, theirs as a user would load it. Useful tokens count, up to and including the one that ends a completion.

The bound is what the matrix products of our own steps (all linear layers and the head, at the row counts that each
step had, and the prefill) take when nothing else runs: attention, sampling and Python for free.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import torch

from agent.raft import let_in, rollout, sources
from agent.raft.attention import PackedLayout
from agent.raft.bench_arithmetic import spread, useful_tokens
from agent.raft.bench_machine import Watch
from agent.raft.bench_products import (
    Product,
    ProductRecorder,
    bandwidth,
    faster_ways,
    peak_flops,
    seconds_of,
    synchronize,
    timed_products,
    total_seconds,
)
from agent.raft.bench_settings import BenchSettings, recipe_of
from agent.raft.cache import DecodeLayout
from agent.raft.cpu_products import works
from agent.raft.generate_hf import left_padded
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.pulse import no_beat
from agent.raft.rollout import Completion, Request, generate
from agent.raft.sampling import Sampling
from agent.raft.seeds import seed_of
from agent.recipe.schema import Recipe
from agent.tasks.prompts import render
from agent.tasks.tasks import PromptSource, load_splits

WARM_UP_TOKENS = 4
Say = Callable[[str], None]
Contender = Callable[[int, int], list[list[int]]]
"""Given the number of the repeat and a token limit: all completions, useful tokens only."""


@dataclass
class Turns:
    """What a contender did, by repeat."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cores_share: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        speeds = [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]
        return {"tokens_per_s": spread(speeds), **vars(self)}


def measure_rollout(
    settings: BenchSettings, *, cache: Path, environment: Mapping[str, str], say: Say
) -> dict[str, Any]:
    """`useful_tokens_per_s` and the rest are medians of the repeats; None for what was not measured."""
    recipe = recipe_of(settings)
    say(f"loading {settings.model}")
    policy = load_policy(recipe, cache=cache, seed=settings.seed, beat=no_beat)
    requests = requests_of(policy, recipe)
    sampling = sampling_of(policy, recipe)
    contenders = {"ours": _ours(policy, requests, sampling)}
    if settings.lora_rank:
        contenders["ours_adapters_apart"] = _ours(policy, requests, sampling, merge=False)
    if settings.compares:
        contenders |= _theirs(policy, recipe, requests, settings, cache=cache)

    def once() -> list[list[int]]:
        return contenders["ours"](0, settings.max_new_tokens)

    failed = _warm_up(contenders, settings, say)
    found = {name: Turns() for name in contenders if name not in failed}
    work: Work | None = None
    for repeat in range(settings.repeats):
        _take_turns(contenders, found, repeat, settings, policy, say)
        work = work or _recorded(policy, once)
        say(f"repeat {repeat + 1}: the matrix products of our steps")
        work.time(policy.device)
    assert work is not None, "there is at least one repeat"
    bound = _bound(policy, work, quick=settings.quick)
    say("where our time goes")
    phases = _phases(policy, once, bound)
    return _report(settings, policy, requests, found, failed, work, bound, phases, environment)


def requests_of(policy: Policy, recipe: Recipe, *, cycle: int = 0) -> list[Request]:
    """The prompts of a cycle's rollout as the engine is asked them."""
    splits = load_splits(recipe.task, recipe.evaluation, base=Path.cwd())
    examples = PromptSource(splits.train, mix=recipe.task.mix, seed=recipe.seed).draw(recipe.rollout.prompts_per_cycle)
    prompts = [render(recipe.prompt, example, tokenizer=policy.tokenizer) for example in examples]
    samples = recipe.rollout.samples_per_prompt
    return [Request(ids, samples, seed_of("sample", recipe.seed, cycle, i)) for i, ids in enumerate(prompts)]


def sampling_of(policy: Policy, recipe: Recipe) -> Sampling:
    rollout_keys = recipe.rollout
    return Sampling(
        temperature=rollout_keys.temperature,
        max_new_tokens=rollout_keys.max_new_tokens,
        max_total=policy.max_length,
        slots=rollout_keys.slots,
        engine=policy.engine_for(rollout_keys.engine),
    )


# The contenders ------------------------------------------------------------------------------------------------


def _ours(policy: Policy, requests: Sequence[Request], sampling: Sampling, *, merge: bool = True) -> Contender:
    weights = partialmethod(Policy.sampling_weights, merge=merge)

    def run(repeat: int, limit: int) -> list[list[int]]:
        asked = [
            Request(request.prompt, request.samples, seed_of("bench", request.seed, repeat)) for request in requests
        ]
        with replaced(Policy, "sampling_weights", weights):
            groups = generate(policy, asked, replace(sampling, max_new_tokens=limit))
        return [completion.tokens for group in groups for completion in group]

    return run


def _theirs(
    policy: Policy, recipe: Recipe, requests: Sequence[Request], settings: BenchSettings, *, cache: Path
) -> dict[str, Contender]:
    """transformers, called as a user calls it: left padding, plain sampling, nothing kept but the tokens."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = sources.fetch(recipe.model, cache=cache, beat=no_beat)
    with let_in.reading(source):
        model = AutoModelForCausalLM.from_pretrained(source.place, **source.how_weights, dtype=policy.compute)
    model = model.to(policy.device).eval()
    stop = _stop_ids(model)
    prompts = [request.prompt for request in requests for _ in range(request.samples)]
    keys = {
        "do_sample": True,
        "temperature": settings.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "pad_token_id": policy.pad_id,
    }

    def in_batches(rows: int) -> Contender:
        def run(repeat: int, limit: int) -> list[list[int]]:
            torch.manual_seed(seed_of("bench", settings.seed, repeat))
            done: list[list[int]] = []
            for start in range(0, len(prompts), rows):
                ids, mask = left_padded(prompts[start : start + rows], policy.pad_id, policy.device)
                out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, **keys)
                done += [tokens[: useful_tokens(tokens, stop)] for tokens in out[:, ids.shape[1] :].tolist()]
            return done

        return run

    def continuously(repeat: int, limit: int) -> list[list[int]]:
        from transformers import GenerationConfig

        torch.manual_seed(seed_of("bench", settings.seed, repeat))
        config = GenerationConfig(**keys, max_new_tokens=limit, eos_token_id=sorted(stop) or None)
        out = model.generate_batch(inputs=prompts, generation_config=config)
        done = [list(answer.generated_tokens) for answer in out.values()]
        if len(done) < len(prompts):
            raise RuntimeError(f"it answered {len(done)} of {len(prompts)} prompts")
        return [tokens[: useful_tokens(tokens, stop)] for tokens in done]

    rows = min(settings.rows_of_theirs, len(prompts))
    found = {f"transformers_{count}_rows": in_batches(count) for count in sorted({rows, len(prompts)})}
    if settings.continuous_batching:
        found["transformers_generate_batch"] = continuously
    return found


def _stop_ids(model: Any) -> frozenset[int]:
    ids = model.generation_config.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or [])


def _warm_up(contenders: Mapping[str, Contender], settings: BenchSettings, say: Say) -> dict[str, str]:
    """Each once, for a few tokens. Who failed, and why."""
    failed: dict[str, str] = {}
    for name, run in contenders.items():
        say(f"warming up {_words(name)}")
        try:
            run(-1, min(WARM_UP_TOKENS, settings.max_new_tokens))
        except (RuntimeError, ValueError, ImportError, AttributeError, TypeError, KeyError, IndexError) as error:
            if name == "ours":
                raise
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return failed


def _take_turns(
    contenders: Mapping[str, Contender],
    found: Mapping[str, Turns],
    repeat: int,
    settings: BenchSettings,
    policy: Policy,
    say: Say,
) -> None:
    """Each once, another one first in each repeat, so that a slow minute meets all."""
    names = list(found)
    for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
        _one_turn(found[name], partial(contenders[name], repeat, settings.max_new_tokens), policy)
        say(f"repeat {repeat + 1}: {_words(name)} {found[name].tokens[-1] / found[name].seconds[-1]:.0f} tokens/s")


def _one_turn(turns: Turns, run: Callable[[], list[list[int]]], policy: Policy) -> None:
    done: list[list[list[int]]] = []
    with Watch() as watch:
        seconds = seconds_of(lambda: done.append(run()), policy.device)
    turns.seconds.append(seconds)
    turns.tokens.append(sum(map(len, done[0])))
    turns.cores_share.append(watch.cores_share)
    turns.load.append(watch.load)


def _words(name: str) -> str:
    return name.replace("_", " ")


# The bound -------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What one of our rollouts computes, and what its matrix products take by themselves."""

    tokens: int
    products: Counter[Product]
    decode: Counter[Product]
    """Those of the decode steps alone."""
    flops: int
    bytes_read: int
    """Weights, once a product, and the keys and values of completions."""
    steps_by_rows: dict[int, int]
    layers: int
    timings: list[dict[Product, float]] = field(default_factory=list)
    """Seconds of each product, by repeat."""

    def time(self, device: torch.device) -> None:
        """Once more, with weights as they lie in memory and, where that is possible, as oneDNN lays them out."""
        timed = partial(timed_products, layers=self.layers, device=device)
        seconds = timed(_all_packed(self.products, False))
        if device.type == "cpu" and works(next(iter(self.products)).dtype):
            seconds |= timed(_all_packed(self.products, True))
        self.timings.append(seconds)


@dataclass(frozen=True)
class Bound:
    """What the products of one of our rollouts take by themselves. Seconds; medians of the repeats, product by product,
    where nothing else is said."""

    seconds: list[float]
    """By repeat, each product the faster way."""
    plain_seconds: float
    """With weights as they lie in memory, by torch's own linear layer."""
    packed_seconds: float | None
    """With weights that oneDNN has laid out beforehand (`agent.raft.cpu_products`); None where it cannot."""
    decode_seconds: float
    """Of the decode steps alone, the way they were run."""
    step_seconds: dict[int, float]
    """Of the products of one decode step, by its rows."""
    peak_flops: float
    peak_bytes: float


def _recorded(policy: Policy, run: Callable[[], list[list[int]]]) -> Work:
    decode = ProductRecorder()
    forward = Policy.forward

    def recorded(*arguments: Any, **keys: Any) -> Any:
        if _is_prefill(*arguments, **keys):
            return forward(*arguments, **keys)
        with decode:
            return forward(*arguments, **keys)

    with ProductRecorder() as recorder, replaced(Policy, "forward", recorded):
        completions = run()
    own_tokens = sum(n * (n - 1) // 2 for n in map(len, completions))
    weights = sum(product.weight_bytes * times for product, times in recorder.products.items())
    return Work(
        tokens=sum(map(len, completions)),
        products=recorder.products,
        decode=decode.products,
        flops=recorder.flops,
        bytes_read=weights + policy.cache_bytes * own_tokens,
        steps_by_rows=_steps_by_rows(policy, decode.products),
        layers=int(getattr(policy.config, "num_hidden_layers", 1)),
    )


def _bound(policy: Policy, work: Work, *, quick: bool) -> Bound:
    usual = {product: statistics.median(found[product] for found in work.timings) for product in work.timings[0]}
    plain, packed = _all_packed(work.products, False), _all_packed(work.products, True)
    dtype = next(iter(work.products)).dtype
    return Bound(
        seconds=[total_seconds(plain, faster_ways(found)) for found in work.timings],
        plain_seconds=total_seconds(plain, usual),
        packed_seconds=_total_where_known(packed, usual),
        decode_seconds=total_seconds(work.decode, usual),
        step_seconds={
            rows: sum(n * usual[p] for p, n in work.decode.items() if p.rows == rows) / times
            for rows, times in work.steps_by_rows.items()
        },
        peak_flops=peak_flops(dtype, policy.device, repeats=5, quick=quick),
        peak_bytes=max(max(found) for found in bandwidth(policy.device, repeats=3, quick=quick).values()),
    )


def _all_packed(counts: Mapping[Product, int], packed: bool) -> Counter[Product]:
    """The same products with all weights laid out beforehand, or none."""
    found: Counter[Product] = Counter()
    for product, times in counts.items():
        found[replace(product, packed=packed)] += times
    return found


def _total_where_known(counts: Mapping[Product, int], seconds: Mapping[Product, float]) -> float | None:
    return total_seconds(counts, seconds) if all(product in seconds for product in counts) else None


def _steps_by_rows(policy: Policy, products: Mapping[Product, int]) -> dict[int, int]:
    """How many decode steps had so many rows: the head runs once in each."""
    vocabulary = policy.inner.get_output_embeddings().weight.shape[0]
    found = {product.rows: times for product, times in products.items() if product.outputs == vocabulary}
    return dict(sorted(found.items()))


def _is_prefill(*arguments: Any, **keys: Any) -> bool:
    """Whether a forward pass with these arguments reads prompts."""
    return any(isinstance(value, PackedLayout) for value in (*arguments, *keys.values()))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# Where the time goes ---------------------------------------------------------------------------------------------


class Clock:
    """Adds up wall-clock time by name, the device waited for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        synchronize(self.device)
        began = time.perf_counter()
        try:
            yield
        finally:
            synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def of(self, name: str) -> float:
        return self.seconds.get(name, 0.0)


def _phases(policy: Policy, run: Callable[[], object], bound: Bound) -> dict[str, float]:
    """Seconds of one more repeat: forward passes over prompts, then of the decode steps attention, the matrix products
    (as timed alone), what else the model does, sampling, and everything outside of the model."""
    clock = Clock(policy.device)
    forward, pick, attend = Policy.forward, rollout.pick, DecodeLayout.attend

    def timed_forward(*arguments: Any, **keys: Any) -> Any:
        with clock.on("prefill" if _is_prefill(*arguments, **keys) else "decode"):
            return forward(*arguments, **keys)

    def timed_attend(*arguments: Any, **keys: Any) -> Any:
        with clock.on("attention"):
            return attend(*arguments, **keys)

    def timed_pick(*arguments: Any, **keys: Any) -> Any:
        with clock.on("sampling"):
            return pick(*arguments, **keys)

    with (
        replaced(Policy, "forward", timed_forward),
        replaced(DecodeLayout, "attend", timed_attend),
        replaced(rollout, "pick", timed_pick),
    ):
        whole = seconds_of(run, policy.device)
    inside = clock.of("decode") - clock.of("attention")
    products = min(inside, bound.decode_seconds)
    return {
        "prefill": clock.of("prefill"),
        "matrix_products": products,
        "attention": clock.of("attention"),
        "rest_of_the_model": inside - products,
        "sampling": clock.of("sampling"),
        "rest": whole - clock.of("prefill") - clock.of("decode") - clock.of("sampling"),
        "whole": whole,
    }


# What it says ----------------------------------------------------------------------------------------------------


def _report(
    settings: BenchSettings,
    policy: Policy,
    requests: Sequence[Request],
    found: Mapping[str, Turns],
    failed: Mapping[str, str],
    work: Work,
    bound: Bound,
    phases: Mapping[str, float],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    reports = {name: turns.report() for name, turns in found.items()}
    medians = {name: report["tokens_per_s"]["median"] for name, report in reports.items()}
    ours = medians["ours"]
    theirs = {name: value for name, value in medians.items() if not name.startswith("ours")}
    best = max(theirs, key=lambda name: theirs[name]) if theirs else None
    bound_speeds = spread([work.tokens / seconds for seconds in bound.seconds])
    pairs = zip(reports["ours"]["tokens_per_s"]["repeats"], bound_speeds["repeats"], strict=True)
    share_of_bound = statistics.median(mine / alone for mine, alone in pairs)
    busy = min(min(turns.cores_share) for turns in found.values()) if policy.device.type == "cpu" else None
    return {
        "useful_tokens_per_s": ours,
        "transformers_tokens_per_s": theirs[best] if best else None,
        "speedup": ours / theirs[best] if best else None,
        "bound_tokens_per_s": bound_speeds["median"],
        "share_of_bound": share_of_bound,
        "compute_bound_tokens_per_s": work.tokens * bound.peak_flops / work.flops,
        "bandwidth_bound_tokens_per_s": work.tokens * bound.peak_bytes / work.bytes_read,
        "plain_bound_tokens_per_s": work.tokens / bound.plain_seconds,
        "packed_bound_tokens_per_s": work.tokens / bound.packed_seconds if bound.packed_seconds else None,
        "bound_repeats": bound_speeds,
        "better_transformers": best,
        "contenders": reports,
        "failed": dict(failed),
        "phases_s": dict(phases),
        "products_s": work.tokens / bound_speeds["median"],
        "steps_by_rows": {str(rows): times for rows, times in work.steps_by_rows.items()},
        "step_products_s_by_rows": {str(rows): found for rows, found in bound.step_seconds.items()},
        "limits": limits(phases, share_of_bound, busy),
        "cores_share": busy,
        "prompts": len(requests),
        "samples_per_prompt": settings.samples,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "completion_tokens_mean": work.tokens / sum(request.samples for request in requests),
        "engine_rows": settings.engine_rows,
        "engine_why": policy.layout_why_not,
        "lora_rank": settings.lora_rank,
        "model": settings.model,
        "dtype": str(policy.compute).removeprefix("torch."),
        "device": str(policy.device),
        "device_why": policy.device_why,
        "threads": torch.get_num_threads(),
        "environment": dict(environment),
        "load_average": os.getloadavg()[0],
    }


WORDS = {
    "prefill": "reading the prompts",
    "matrix_products": "matrix products",
    "attention": "attention",
    "rest_of_the_model": "the rest of the model (norms, rotary positions, activations, calls)",
    "sampling": "drawing tokens",
    "rest": "everything outside of the model",
}
BUSY = 0.8
"""Share of its threads' time below which a run on a CPU was disturbed, or idle in single-threaded stretches."""


def limits(phases: Mapping[str, float], share_of_bound: float | None, cores_share: float | None) -> str:
    """What takes our time, the largest part first, in one or two sentences."""
    parts = sorted((name for name in WORDS if phases[name] > 0), key=lambda name: -phases[name])
    told = ", ".join(f"{WORDS[name]} {phases[name] / phases['whole']:.0%}" for name in parts[:3])
    text = f"Of our time: {told}."
    if share_of_bound is not None:
        text += f" At {share_of_bound:.0%} of what the matrix products alone would allow."
    if cores_share is not None and cores_share < BUSY:
        text += (
            f" In the worst repeat only {cores_share:.0%} of the threads' time was used: other work on this machine, "
            "or stretches that one thread does alone."
        )
    return text


def completions_of(policy: Policy, recipe: Recipe) -> tuple[list[Request], list[list[Completion]]]:
    """One rollout of the recipe, for what is measured on its samples."""
    requests = requests_of(policy, recipe)
    return requests, generate(policy, requests, sampling_of(policy, recipe))
