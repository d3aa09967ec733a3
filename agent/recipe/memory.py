"""How much memory a training needs, by part and by phase, before anything is loaded.

Pure arithmetic on a recipe, the shape of its model and a few facts about the machine. The formulas follow what the
trainer in `agent.raft` keeps; what autograd saves for one token was counted with torch's saved-tensor hooks on
transformers' Llama, Qwen2, Qwen3 and GPT-2 (the formulas of `_saved_by_layer` met those counts to the byte). Batch
sizes are upper bounds: full slots, prompts and completions of the greatest length. `tests/benchmarks/memory_peaks.py`
holds the estimate against measured peaks; docs/hardware.md has the figures.

It does not: know how full the machine is, which architecture a model has (`agent.recipe.shapes`), or how memory
breaks into pieces that are too small (an allocator needs a few percent more than it is asked for).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from agent.recipe.files import with_keys
from agent.recipe.schema import Recipe
from agent.recipe.shapes import ModelShape

GIB = 1024.0**3
Kind = Literal["cpu", "cuda", "rocm"]
Phase = Literal["load", "generate", "train", "update", "keep"]
PHASES: tuple[Phase, ...] = ("load", "generate", "train", "update", "keep")
"""load: weights come from their files. generate: sampling and evaluation. train: forward and backward of one
microbatch. update: the optimizer's step. keep: a better cycle's weights are put aside, or written to disk."""
AFTER_LOADING: tuple[Phase, ...] = ("generate", "train", "update", "keep")

FLOAT = 4
HALF = 2
LOSS_LOGITS = 1 << 26
"""Logits of the loss that exist at the same time (`agent.raft.loss`)."""
PREFILL_TOKENS = 4096
"""Prompt tokens that go through the model at once."""
SAMPLING_COPIES = 4
"""float32 copies of the logits while a token is drawn on an accelerator: shifted, exponentials, weights, products. A
CPU works on slices that fit its cache."""
HF_LOGITS = 5
"""float32 copies of one step's logits in transformers' `generate`: itself, scores, their softmax, and the logarithm
and exponentials that a completion's records are made from."""
KEYS_REPEATED = 1.5
"""A packed row gathers keys and values for each segment: prompts that samples share, once for each, and padding."""
MASK_BYTES = 9
"""Of one pair of query and key in a packed row: a bool, and the distance as int64."""
NARROW_FROM_PARAMETERS = 20_000_000
"""On a CPU, `model.dtype: auto` is bfloat16 from this size on."""
SAMPLING_WEIGHTS_SHARE = 0.25
"""Most of the free memory that copies of the weights for sampling may take; without them it is only slower."""
QUANTIZED_BLOCK = 64
"""Weights of 4 bits with one float32 scale between them: NF4 as QLoRA describes it (arXiv 2305.14314, section 3),
without the second quantization of the scales. Of 8-bit weights each row has a scale (LLM.int8, arXiv 2208.07339)."""
RUNTIME: dict[Kind, float] = {"cpu": 0.40 * GIB, "cuda": 0.60 * GIB, "rocm": 2.0 * GIB}
"""What a process holds before it has a model. cpu: measured, 379 MiB resident after importing torch 2.13,
transformers 5.23 and peft 0.21. cuda: the context on the card. rocm: context and libraries, which unified memory
holds both. The last two are assumptions."""


@dataclass(frozen=True)
class MachineFacts:
    """What the estimate has to know of a machine."""

    kind: Kind
    bf16: bool
    """It computes bfloat16 natively."""
    unified: bool = False
    """The accelerator's memory is the host's."""


@dataclass(frozen=True)
class Part:
    name: str
    bytes: int
    phases: tuple[Phase, ...]
    how: str
    """The arithmetic, in words."""


@dataclass(frozen=True)
class MemoryEstimate:
    parts: tuple[Part, ...]
    dtype: str
    """Arithmetic of forward and backward."""
    checkpointing: bool
    parameters: int
    trained: int
    """Parameters that are trained."""
    full: bool
    """All weights are trained, not adapters."""
    moments: int
    """Bytes of optimizer state for each trained parameter (0 where it is factored)."""

    def of(self, phase: Phase) -> int:
        """Bytes resident in a phase."""
        return sum(part.bytes for part in self.parts if phase in part.phases)

    @property
    def peak_phase(self) -> Phase:
        return max(PHASES, key=self.of)

    @property
    def peak(self) -> int:
        """Most bytes at any time."""
        return self.of(self.peak_phase)

    def part(self, name: str) -> int:
        """Bytes of a part by name; 0 where there is none."""
        return sum(part.bytes for part in self.parts if part.name == name)


def estimate(
    recipe: Recipe,
    shape: ModelShape,
    facts: MachineFacts,
    *,
    dtype: str | None = None,
    available_gb: float | None = None,
) -> MemoryEstimate:
    """Memory of this training on such a machine.

    `dtype` is the arithmetic where the caller has settled it, else that of `arithmetic`. `available_gb` (GiB)
    decides `learner.gradient_checkpointing: auto`, and whether there is room for copies of the weights for sampling;
    without it, auto is off and there are none.
    """
    settled = dtype or arithmetic(recipe.model.dtype, facts, parameters=shape.parameters)
    found = _estimate(recipe, shape, facts, dtype=settled, available_gb=available_gb)
    if available_gb is None:
        return found
    copies = _sampling_weights(recipe, shape, facts, half=settled != "float32")
    # They are made only where they fit easily, so they never decide whether a training fits.
    if not 0 < copies.bytes <= SAMPLING_WEIGHTS_SHARE * (available_gb * GIB - found.of("generate")):
        return found
    return replace(found, parts=(*found.parts, copies))


def arithmetic(dtype: str, facts: MachineFacts, *, parameters: int | None) -> str:
    """What `model.dtype` means on this machine: `float32`, `bfloat16` or `float16`.

    `auto` is bfloat16 where the device computes it natively. A CPU gains from that only with matrices of some size:
    below, casting costs more than the products save. A model of unknown size is taken for a large one.
    """
    if dtype != "auto":
        return dtype
    if not facts.bf16 or (facts.kind == "cpu" and parameters is not None and parameters < NARROW_FROM_PARAMETERS):
        return "float32"
    return "bfloat16"


def fits(found: MemoryEstimate, available_gb: float) -> tuple[bool, str]:
    """Whether the peak is within `available_gb` (GiB), and the numbers in words."""
    words = f"needs about {gib(found.peak)} at its peak ({WORDS[found.peak_phase]}), {available_gb:.1f} GiB can be used"
    if found.peak <= available_gb * GIB:
        return True, words
    if found.full and found.moments:
        each = 2 * FLOAT + found.moments
        words += (
            f"; float32 weights, gradients and optimizer moments of {found.parameters / 1e9:.2f}B parameters alone "
            f"take {each} bytes each: {gib(each * found.trained)}"
        )
    return False, words


WORDS: dict[Phase, str] = {
    "load": "loading the weights",
    "generate": "generating",
    "train": "in forward and backward",
    "update": "in the optimizer's step",
    "keep": "keeping the best cycle's weights",
}


def needs_checkpointing(
    recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, available_gb: float, dtype: str | None = None
) -> tuple[bool, str]:
    """Whether `learner.gradient_checkpointing: auto` is on here, and why.

    Recomputing costs a third of the learner's speed, so it is on only where the training would not fit without it.
    """
    settled = dtype or arithmetic(recipe.model.dtype, facts, parameters=shape.parameters)
    plain = _estimate(recipe, shape, facts, dtype=settled, checkpointing=False)
    enough, words = fits(plain, available_gb)
    if enough:
        return False, f"activations of {gib(plain.part(ACTIVATIONS))} fit: the training {words}"
    return True, f"without it the training {words}"


def remedy(
    recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, available_gb: float
) -> tuple[dict[str, Any], MemoryEstimate] | None:
    """The least change of the recipe with which it fits, as keys and values, and its estimate; None where none does.

    In the order of what they cost: recomputing activations, smaller microbatches at the same optimizer step, fewer
    rows in flight, adapters instead of all weights.
    """
    for values in _remedies(recipe):
        changed = estimate(with_keys(recipe, values), shape, facts, available_gb=available_gb)
        if fits(changed, available_gb)[0]:
            return values, changed
    return None


def _remedies(recipe: Recipe) -> Iterator[dict[str, Any]]:
    learner, rollout = recipe.learner, recipe.rollout
    recompute = {} if _setting(recipe) is True else {"learner.gradient_checkpointing": True}
    if recompute:
        yield recompute
    smaller: list[dict[str, Any]] = []
    for factor in (2, 4, 8, 16, 32, 64):
        tokens = learner.microbatch_tokens // factor
        if tokens < rollout.max_total_sequence_length:
            break
        accumulation = learner.gradient_accumulation * factor
        smaller.append({"learner.microbatch_tokens": tokens, "learner.gradient_accumulation": accumulation})
    yield from smaller
    least = smaller[-1] if smaller else {}
    together = {**recompute, **least}
    fewer = {"rollout.slots": max(1, rollout.slots // 4)}
    yield from ({**recompute, **one} for one in smaller if recompute)
    yield fewer
    yield {**together, **fewer}
    if recipe.model.lora is None:
        adapters = {"model.lora.rank": 16}
        yield adapters
        yield {**adapters, **recompute}
        yield {**adapters, **together, **fewer}


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f} GiB" if size >= 0.95 * GIB else f"{size / GIB * 1024:.0f} MiB"


# --- the parts ---------------------------------------------------------------------------------------------

ACTIVATIONS = "activations of one microbatch"


def _estimate(
    recipe: Recipe,
    shape: ModelShape,
    facts: MachineFacts,
    *,
    dtype: str,
    checkpointing: bool | None = None,
    available_gb: float | None = None,
) -> MemoryEstimate:
    """As `estimate`, the arithmetic being settled; `checkpointing` overrides the recipe."""
    if checkpointing is None:
        asked = _setting(recipe)
        if asked is None:
            plain = _estimate(recipe, shape, facts, dtype=dtype, checkpointing=False)
            asked = available_gb is not None and not fits(plain, available_gb)[0]
        checkpointing = asked
    lora = recipe.model.lora
    trained = shape.parameters if lora is None else shape.adapter_parameters(lora.rank, lora.targets)
    half = dtype != "float32"
    parts = [
        *_weights(recipe, shape, facts, trained=trained, half=half),
        *_learning(recipe, shape, facts, trained=trained),
        *_generating(recipe, shape, facts, width=HALF if half else FLOAT),
        *_training(recipe, shape, facts, half=half, checkpointing=checkpointing),
        Part("torch, transformers and the driver", int(RUNTIME[facts.kind]), PHASES, "before there is a model"),
    ]
    return MemoryEstimate(
        parts=tuple(part for part in parts if part.bytes),
        dtype=dtype,
        checkpointing=checkpointing,
        parameters=shape.parameters,
        trained=trained,
        full=lora is None,
        moments=2 * FLOAT if recipe.learner.optimizer == "adamw" else 0,
    )


def _setting(recipe: Recipe) -> bool | None:
    """`learner.gradient_checkpointing`; None is auto."""
    value = recipe.learner.gradient_checkpointing
    return value if isinstance(value, bool) else None


def _weights(recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, trained: int, half: bool) -> Iterator[Part]:
    """What is trained is float32 (a bfloat16 weight swallows small updates), and cast where the arithmetic is narrower;
    a frozen base is stored in the arithmetic's type, or its linear layers in fewer bits."""
    all_of_them = shape.parameters
    narrow = HALF if half else FLOAT
    quantize = recipe.model.quantize
    if recipe.model.lora is None:
        yield Part("weights", FLOAT * all_of_them, PHASES, "4 bytes a parameter, float32")
        if half:
            # torch.autocast keeps what it cast while one rollout, or one forward and backward, lasts.
            yield Part(
                "weights, narrow", HALF * all_of_them, ("generate", "train"), "2 bytes a parameter, cast for use"
            )
    else:
        few, size = (0, 0) if quantize is None else quantized_weights(shape, quantize)
        yield Part("weights, frozen", narrow * (all_of_them - few), PHASES, f"{narrow} bytes a parameter")
        yield Part("weights, quantized", size, PHASES, f"{quantize} and scales, linear layers but the head")
        if few:
            widest = max(inputs * outputs for inputs, outputs in shape.matrices().values())
            how = "the largest linear layer, for its product"
            yield Part("a weight widened", narrow * widest, ("generate", "train"), how)
        yield Part("adapters", FLOAT * trained, AFTER_LOADING, "4 bytes a trained parameter, float32")
    if facts.unified:
        # On a CPU the kernel takes those pages back when memory is short; the accelerator's mapping holds them
        # (safetensors#728).
        stored = shape.stored_bytes
        yield Part("mapped file", stored * all_of_them, ("load",), f"{stored} bytes a parameter while it is read")


def quantized_weights(shape: ModelShape, quantize: str) -> tuple[int, int]:
    """How many weights `model.quantize` keeps in 8 or 4 bits, and the bytes of all of them with their scales."""
    matrices = shape.matrices().values()
    count = sum(inputs * outputs for inputs, outputs in matrices)
    if quantize == "8bit":
        size = count + FLOAT * sum(outputs for _, outputs in matrices)
    else:
        size = sum(ceil(a * b / 2) + FLOAT * ceil(a * b / QUANTIZED_BLOCK) for a, b in matrices)
    return shape.layers * count, shape.layers * size


def _sampling_weights(recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, half: bool) -> Part:
    """Copies of the linear layers (`agent.raft.sampling_weights`): with adapters merged in, and on a CPU laid out for
    the products. Where all weights are trained in a narrow type, they take the place of what autocast would keep. Of
    quantized layers there are none."""
    lora, on_cpu = recipe.model.lora, facts.kind == "cpu"
    all_layers = shape.layers * sum(inputs * outputs for inputs, outputs in shape.matrices().values())
    if recipe.model.quantize is not None:
        all_layers = 0
    if shape.fused or recipe.model.source.startswith("builtin:") or (lora is None and (half or not on_cpu)):
        copied = 0
    elif on_cpu:
        copied = all_layers + shape.vocabulary * shape.hidden
    else:
        copied = 0 if half else all_layers
    width = HALF if half else FLOAT
    return Part("copies of weights for sampling", width * copied, ("generate",), f"{width} bytes each, linear layers")


def _learning(recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, trained: int) -> Iterator[Part]:
    """Gradients, optimizer, and the best cycle's weights, of which there are two while one replaces the other."""
    each = FLOAT * trained
    yield Part("gradients", each, ("train", "update"), "4 bytes a trained parameter")
    if recipe.learner.optimizer == "adamw":
        yield Part("AdamW moments", 2 * each, AFTER_LOADING, "8 bytes a trained parameter")
    if recipe.learner.optimizer == "adafactor":
        yield Part("Adafactor factors", FLOAT * _factors(recipe, shape), AFTER_LOADING, "a row and a column a matrix")
    if recipe.learner.optimizer != "sgd":
        largest = FLOAT * _largest_trained(recipe, shape)
        yield Part("temporaries of the step", 2 * largest, ("update",), "twice the largest trained weight")
    yield Part("weights of the best cycle", each, AFTER_LOADING, "4 bytes a trained parameter")
    yield Part("while they are replaced", each, ("keep",), "4 bytes a trained parameter")
    if facts.unified:
        yield Part("checkpoint on its way to disk", each, ("keep",), "4 bytes a trained parameter, copied to the host")


def _largest_trained(recipe: Recipe, shape: ModelShape) -> int:
    lora = recipe.model.lora
    if lora is None:
        return shape.largest_matrix
    return lora.rank * max(max(sizes) for sizes in shape.matrices().values())


def _factors(recipe: Recipe, shape: ModelShape) -> int:
    """Numbers that Adafactor keeps: rows + columns of each matrix, all of a vector (arXiv 1804.04235)."""
    lora = recipe.model.lora
    if lora is not None:
        return shape.adapter_parameters(1, lora.targets) + 2 * lora.rank * shape.layers * len(shape.matrices())
    layer = sum(a + b for a, b in shape.matrices().values()) + shape.norms * shape.hidden
    return shape.layers * layer + (1 if shape.tied else 2) * (shape.vocabulary + shape.hidden)


def _generating(recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, width: int) -> Iterator[Part]:
    """The largest of the training's rollout, an evaluation, and one of the `select` split.

    The cache has a row for each slot and places for prompts, with room for the longest; the logits after each of those
    prompts wait for its samples.
    """
    rollout, evaluation = recipe.rollout, recipe.evaluation
    longest = rollout.max_total_sequence_length
    held_out = max(evaluation.search_prompts, evaluation.confirm_prompts, evaluation.holdout_prompts)
    calls = (
        (rollout.prompts_per_cycle, rollout.samples_per_prompt, rollout.max_new_tokens),
        (held_out, evaluation.samples_per_prompt, min(evaluation.max_new_tokens, longest - 1)),
        (evaluation.select_prompts, evaluation.select_samples, min(evaluation.max_new_tokens, longest - 1)),
    )
    token = 2 * shape.layers * shape.kv_size * width
    cached = vectors = rows_at_once = 0
    for prompts, samples, new in calls:
        rows = min(rollout.slots, prompts * samples)
        places = min(prompts, prompts_in_cache(rows, samples=samples))
        tokens = rows * longest if rollout.engine == "hf" else rows * new + places * (longest - new)
        cached, vectors, rows_at_once = (
            max(cached, token * tokens),
            max(vectors, rows + places),
            max(rows_at_once, rows),
        )
    yield Part("keys and values", cached, ("generate",), f"{token} bytes a token; prompts once for all their samples")
    copies = 0 if facts.kind == "cpu" else SAMPLING_COPIES * FLOAT
    size = (vectors * width + rows_at_once * copies) * shape.vocabulary
    tokens = min(PREFILL_TOKENS, max(prompts for prompts, _, _ in calls) * longest)
    if rollout.engine == "hf":  # no sharing: every row has its prompt, which are all read at once
        vectors, tokens = rows_at_once, rows_at_once * longest
        size = rows_at_once * (width + HF_LOGITS * FLOAT) * shape.vocabulary
    yield Part("logits of sampling", size, ("generate",), f"{vectors} rows and prompts x {shape.vocabulary}")
    working = tokens * width * (4 * shape.hidden + 2 * shape.intermediate + 3 * shape.query_size)
    yield Part("prefill of prompts", working, ("generate",), f"one layer of {tokens} tokens")


def prompts_in_cache(slots: int, *, samples: int) -> int:
    """Most prompts whose keys and values are kept at the same time, of at least `samples` each.

    Every slot may hold the last sample of another prompt, with one more prompt to come. Where prompts have one sample,
    as many again are computed ahead: one by one, as slots become free, they would each cost a pass over the weights.
    """
    return max(slots + 1, slots * prompts_a_slot(samples=samples))


def prompts_a_slot(*, samples: int) -> int:
    return 2 if samples == 1 else 1


def _training(
    recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, half: bool, checkpointing: bool
) -> Iterator[Part]:
    width = HALF if half else FLOAT
    tokens = microbatch_tokens(recipe)
    saved = tokens * _saved_by_layer(recipe, shape, facts, half=half)
    # The stream between layers is float32 under autocast unless its source, the frozen embedding, is narrow.
    stream = HALF if half and recipe.model.lora is not None else FLOAT
    ends = tokens * shape.hidden * (2 * FLOAT + width)
    backward = tokens * width * 4 * (shape.hidden + shape.intermediate)
    if checkpointing:
        kept = shape.layers * tokens * shape.hidden * stream + saved
        how = f"{tokens} tokens: the input of {shape.layers} layers, and one layer whole"
    else:
        kept = shape.layers * saved
        how = f"{tokens} tokens x {shape.layers} layers x {saved // tokens} bytes"
    yield Part(ACTIVATIONS, kept + ends + backward, ("train",), how)
    yield from _head(recipe, shape, facts, tokens=tokens, half=half)
    mask = tokens * recipe.rollout.max_total_sequence_length * MASK_BYTES
    yield Part("attention masks", mask, ("train",), "9 bytes a pair of query and key")


def _head(recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, tokens: int, half: bool) -> Iterator[Part]:
    """The loss. By chunks, its gradient with respect to the head's weight is summed apart from the others.

    Logits of a chunk become their gradient in place, in float32; a CPU goes through narrow ones a few rows at a time.
    Whole logits are needed where the loss is scaled (float16), the step is compiled, or the head does more than one
    matrix product (Gemma 2 bounds its logits).
    """
    whole = recipe.backend.compile or recipe.model.dtype == "float16"
    whole = whole or shape.architecture.startswith("gemma2")
    rows = tokens if whole else loss_rows(tokens, shape.vocabulary)
    if whole:
        each = 2 * FLOAT + (2 * HALF if half else 0)
    elif half:
        each = HALF if facts.kind == "cpu" else HALF + FLOAT
    else:
        each = FLOAT
    how = f"{rows} positions x {shape.vocabulary} x {each} bytes"
    yield Part("logits of the loss", rows * shape.vocabulary * each, ("train",), how)
    if recipe.model.lora is None and not whole:
        apart = shape.vocabulary * shape.hidden * (FLOAT + (2 * HALF + FLOAT if half else 0))
        how = "summed apart; a narrow product has the narrow weight beside it and is widened to be added"
        yield Part("gradient of the head", apart, ("train",), how)


def loss_rows(tokens: int, vocabulary: int) -> int:
    """Loss positions whose logits exist at the same time."""
    return min(tokens, max(1, LOSS_LOGITS // vocabulary))


def microbatch_tokens(recipe: Recipe) -> int:
    """Most tokens in one forward and backward: the limit or the longest sample, and no more than a cycle can keep."""
    rollout = recipe.rollout
    longest = rollout.max_total_sequence_length
    each = recipe.selection.max_per_prompt
    if recipe.learner.algorithm == "reinforce_rej":
        each = rollout.samples_per_prompt
    most = rollout.prompts_per_cycle * min(each, rollout.samples_per_prompt) * longest
    return min(most, max(recipe.learner.microbatch_tokens, longest))


def _saved_by_layer(recipe: Recipe, shape: ModelShape, facts: MachineFacts, *, half: bool) -> int:
    """Bytes that autograd saves for one token in one layer.

    In float32, with n norms over H: each saves its input, the normalized stream and its output (3H; the output is
    the next layers' input); query, and keys and values, on an accelerator once for each query head; the
    attention's output twice; in a gated feed-forward layer of width I both inputs, the activation and the product
    (4I; 5I for GPT-2's GELU). Under autocast norms work in float32 (4H saved twice) and each linear layer casts its
    own input (2H). Frozen weights need no normalized stream, adapters their own narrow output (rank).
    """
    lora = recipe.model.lora
    hidden, wide = shape.hidden, shape.intermediate * (4 if shape.gated else 5)
    keys = shape.kv_size if facts.kind == "cpu" and recipe.backend.attention != "eager" else shape.query_size
    attention = 3 * shape.query_size + 2 * KEYS_REPEATED * keys
    if shape.head_norms:
        attention += 2 * (shape.query_size + shape.kv_size)
    rank = 0 if lora is None else lora.rank * len(shape.matrices())
    if recipe.backend.attention == "eager":
        scores = shape.heads * recipe.rollout.max_total_sequence_length
        attention += 2 * scores
    small = FLOAT * (shape.heads + shape.norms)
    if not half:
        stream = (3 if lora is None else 2) * shape.norms * hidden
        return int(FLOAT * (stream + attention + wide + rank) + small)
    inputs = 5 * HALF * hidden
    stream = 2 * FLOAT * shape.norms * hidden if lora is None else (FLOAT + 1) * shape.norms * hidden
    return int(stream + inputs + HALF * (attention + wide + rank) + small)


def as_json(found: MemoryEstimate) -> Mapping[str, Any]:
    """Plain values: bytes by part and by phase."""
    return {
        "peak_bytes": found.peak,
        "peak_phase": found.peak_phase,
        "parameters": found.parameters,
        "trained_parameters": found.trained,
        "dtype": found.dtype,
        "gradient_checkpointing": found.checkpointing,
        "phases": {phase: found.of(phase) for phase in PHASES},
        "parts": [
            {"name": part.name, "bytes": part.bytes, "phases": list(part.phases), "how": part.how}
            for part in found.parts
        ],
    }
