"""What passes between the agent and a trainer: a command line, a folder of files, exit codes.

The trainer is a process, because on unified memory an out-of-memory arrives as SIGKILL and a backend fault
as a hang, and the agent must outlive both. Any program that keeps this contract can be driven:

    python -m agent.raft.worker --recipe RESOLVED.yaml --out DIR --seed N
        [--split search]            held-out split to evaluate at the end; repeatable, or `none`
        [--evaluate CHECKPOINT]     no training: evaluate this checkpoint folder, or `untrained`
        [--rung SHARE]              measure `search` once this share of the training budget is spent, and go on
        [--time-limit SECONDS]      whole process; training stops early enough for the evaluation
        [--cache DIR] [--allow-untrusted-code]
        [--commit COMMIT]           of a model of the hub, as an earlier run found it, whatever is newer
        [--trust-remote-code DIGEST]  where the recipe asks for the model's own code: which code the user has confirmed

Files in DIR, whose rows are the models below: `plan.json`, `cycles.jsonl`, `select.jsonl`, `rung.jsonl`, `eval.jsonl`,
`samples.jsonl`, `heartbeat`, `checkpoint/`, and last and atomically `summary.json`. A failure that the trainer can name
leaves `failure.json`. Rows are appended as they happen, so that whoever watches can judge a training before its end;
the last line may be torn, and a trainer that writes no `select.jsonl` or `rung.jsonl` can only be judged later.
`samples.jsonl` is for people alone: a trainer may do without it, and nothing is judged by it.
Started again on the same DIR it goes on where it stopped: rows of cycles that it repeats are taken out first, so that
no cycle is there twice. SIGTERM: finish the step, write the summary with `stopped: true`, leave within 20 s. Exit 0
only with a summary.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

PLAN = "plan.json"
CYCLES = "cycles.jsonl"
SELECT = "select.jsonl"
RUNG = "rung.jsonl"
EVAL = "eval.jsonl"
SAMPLES = "samples.jsonl"
HEARTBEAT = "heartbeat"
CHECKPOINT = "checkpoint"
SUMMARY = "summary.json"
FAILURE = "failure.json"
FILES_VARIABLE = "RAFT_AGENT_FILES"
"""Environment variable: a folder whose files stand for those of the same path in the workspace (a verifier file that
was mended for a campaign)."""
TELEMETRY = "telemetry.jsonl"
"""Written by the agent, not by the trainer: one `Sample` a second."""
LOG = "log.txt"
RECIPE = "recipe.yaml"

UNTRAINED = "untrained"
STOP_GRACE_SECONDS = 20.0
NO_STEP = "no_step"
"""A training ended by this took no optimizer step in the first third of its budget, or never had a prompt that fits,
and was ended for it."""
DECLINE = "decline"
"""A training ended by this had passed its peak: `learner.early_stop`."""
TIME_LIMIT = "time_limit"
"""A training ended by this had no time for another cycle, whatever was left of its budget."""

Phase = Literal["start", "load", "compile", "generate", "verify", "train", "evaluate", "save"]
Split = Literal["train", "select", "search", "confirm", "holdout"]
HELD_OUT: tuple[Split, ...] = ("search", "confirm", "holdout")
SampledSplit = Literal["select", "search"]
SAMPLED_SPLITS: tuple[SampledSplit, ...] = get_args(SampledSplit)
"""Splits whose prompts people may read; those of the others are to stay unknown."""
SAMPLED_PROMPTS = 12
CrashClass = Literal["typo", "oom", "backend", "numeric", "data", "timeout", "resource", "unknown"]
CRASH_CLASSES: tuple[CrashClass, ...] = get_args(CrashClass)
FIXES = 3
"""Fixes and repeats of an idea that crashes, where nobody says another number."""
FinishReason = Literal["stop", "length"]

TIMING_FIELDS = frozenset(
    {"generate_tokens_per_s", "train_tokens_per_s", "seconds", "peak_memory_gb", "elapsed_s", "budget_spent"}
)
"""Fields of a cycle or select row that two runs of the same recipe and seed may differ in. `budget_spent` is one only
under `budget.train_seconds`."""


class Row(BaseModel):
    model_config = ConfigDict(extra="allow")


class Seconds(Row):
    """Wall-clock seconds of one cycle by what they went to."""

    generate: float = 0.0
    verify: float = 0.0
    train: float = 0.0
    evaluate: float = 0.0
    wait: float = 0.0
    """Idle for lack of the other side (asynchronous execution), or of the verifier."""

    @property
    def total(self) -> float:
        return self.generate + self.verify + self.train + self.evaluate + self.wait


class CycleRow(Row):
    """One generate-verify-select-train round. Cycle 0 is the untrained model: sampled and measured, not trained.

    A share is of this cycle's samples or prompts, in [0, 1]. Unknown is None, never 0.0.
    """

    cycle: int
    learning_rate: float | None = None
    """At the last optimizer step of the cycle."""
    temperature: float | None = None
    loss: float | None = None
    """Mean over the trained completion tokens, nats."""
    grad_norm: float | None = None
    """Largest norm before clipping."""
    clip_share: float | None = None
    """Tokens whose importance ratio was clipped (raft++, reinforce_rej); under raft, steps whose gradient was."""
    pass_rate: float | None = None
    """Samples that the verifier passed."""
    samples: int = 0
    kept: int = 0
    optimizer_steps: int = 0
    skipped_steps: int = 0
    """Optimizer steps not taken because float16 gradients overflowed."""
    all_solved_share: float | None = None
    """Prompts whose every sample passed."""
    all_failed_share: float | None = None
    """Prompts of which no sample passed."""
    zero_variance_share: float | None = None
    """Prompts whose samples all have the same reward."""
    truncation_rate: float | None = None
    format_rate: float | None = None
    """Samples from which the verifier could extract an answer."""
    near_rate: float | None = None
    """Samples that contain the right answer but did not pass."""
    verify_fault_rate: float | None = None
    """Samples of which not the answer but the verification failed: it raised, ran out of time, gave no number."""
    entropy: float | None = None
    """Mean over sampled tokens of the entropy of the sampling distribution at temperature 1, nats."""
    unique_share: float | None = None
    """Distinct completions / samples, by prompt, averaged over prompts."""
    reward_mean: float | None = None
    reward_std: float | None = None
    completion_tokens_mean: float | None = None
    prompt_tokens_mean: float | None = None
    dropped_prompts: int = 0
    """Prompts longer than max_total_sequence_length allows."""
    padding_share: float | None = None
    """Of the tokens that the learner's forward passes ran over."""
    logprob_gap: float | None = None
    """Mean |sampler's - learner's log-probability| of kept tokens at the first step of the cycle, nats.

    Of samples that the current weights drew, so that it shows disagreement and not age; None where all are older.
    """
    logprob_drift: float | None = None
    """The same over all trained tokens, each as it was trained: it grows with the steps since sampling."""
    trajectory_age: float | None = None
    """Mean age of trained samples, in learner updates."""
    select_metric: float | None = None
    """Metric on the `select` split after this cycle; None where it was not measured."""
    generated_tokens: int = 0
    trained_tokens: int = 0
    generate_tokens_per_s: float | None = None
    train_tokens_per_s: float | None = None
    seconds: Seconds = Seconds()
    peak_memory_gb: float | None = None
    elapsed_s: float | None = None
    budget_spent: float | None = None
    """Share of the training budget spent at the end of the cycle, in [0, 1]."""


class SelectRow(Row):
    """One measurement of a training that goes on: of the `select` split in `select.jsonl`, cycle 0 included; of the
    `search` split, at most once a training, in `rung.jsonl`. Different runs ask the same prompts with the same luck, so
    that two trainings can be compared prompt by prompt while they run."""

    cycle: int
    budget_spent: float | None = None
    """Share of the training budget spent, in [0, 1]: the same as in the cycle's row."""
    elapsed_s: float | None = None
    """Since this start of the training."""
    scores: dict[str, list[float]]
    """By prompt id, of each sample what the metric is made of: its reward under `mean_reward`, else 1.0 where it passed
    and 0.0 where not. Not signed by `evaluation.direction`."""


class EvalRow(Row):
    """One sample of one held-out prompt. Rows of different runs with the same split and id are the same prompt."""

    split: Split
    id: str
    sample: int
    reward: float
    passed: bool
    formatted: bool | None = None
    """An answer could be extracted; None where the verifier cannot tell."""
    near: bool = False
    tokens: int
    finish_reason: FinishReason
    tag: str | None = None
    digest: str | None = None
    """Eight hexadecimal digits that name the completion's token ids: samples with the same one say the same, whatever
    their prompts. None where there was no room for an answer, or where a trainer does not tell."""


class SampleText(Row):
    """The first sample of one of the first SAMPLED_PROMPTS prompts of a split that was evaluated, in the split's order.

    Without secrets, and cut where it is long, which the text then says. Control characters are in it as the model gave
    them: whoever shows it cleans it (`agent.text.clean`).
    """

    split: SampledSplit
    id: str
    """As in `eval.jsonl`."""
    prompt: str
    """As the model was asked, special tokens and the response's prefix included."""
    completion: str
    reward: float
    passed: bool
    finish_reason: FinishReason
    tokens: int
    """Of the whole completion."""


class Summary(Row):
    """Written last. Its presence means that every other file is whole."""

    stopped: bool = False
    """SIGTERM ended the training early."""
    ended_by: str | None = None
    """`budget`, `time_limit`, `sigterm`, `evaluated` (nothing was trained), `no_step`,
    or `decline` (the early stop)."""
    seed: int
    recipe_signature: str
    cycles: int = 0
    starts: int = 1
    """Of the trainer that trained in it: one that was killed or paused goes on in another, which warms up anew."""
    optimizer_steps: int = 0
    kept: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    delivered_cycle: int = 0
    """Cycle whose weights are in `checkpoint/`; 0 is the untrained model."""
    metric: str
    metrics: dict[str, float] = {}
    """Metric by held-out split that was evaluated."""
    select_metric: float | None = None
    load_s: float | None = None
    train_s: float = 0.0
    """Seconds in the training cycles (what budget.train_seconds limits)."""
    select_s: float | None = None
    """Seconds on the `select` split, by which the delivered cycle is chosen."""
    evaluate_s: float | None = None
    """Seconds of the final evaluation; of its first time, where its completions were known already."""
    rung_s: float | None = None
    """Seconds of the measurement on the way that `--rung` asks for; None where this start made none."""
    elapsed_s: float = 0.0
    tokens_per_s: float | None = None
    """(generated + trained tokens) / train_s."""
    peak_memory_gb: float | None = None
    """The most that any of its starts took."""
    device: str | None = None
    checkpoint: str | None = CHECKPOINT
    provenance: dict[str, Any] = {}
    """Versions of python, torch, transformers; device name; data-set hash."""


class Heartbeat(Row):
    """Renewed at every decode or optimizer step, replaced atomically."""

    phase: Phase
    step: int
    cycle: int | None = None
    pid: int
    time: float
    """Unix seconds."""
    budget_spent: float | None = None
    """Share of the training budget, by all starts in this folder."""
    budget_before: float | None = None
    """What of it earlier starts have spent; None where a trainer does not tell."""
    note: str | None = None
    """For people: `bootstrapping the built-in model, 40%`."""
    select_metric: float | None = None
    device_allocated_gb: float | None = None
    device_reserved_gb: float | None = None
    device_free_gb: float | None = None
    """The framework's own figures of the accelerator, GiB: in tensors, held by its allocator, and what the driver calls
    free. On unified memory neither these nor the driver's files tell everything, so both are kept."""


class CardSample(Row):
    """One graphics card as its driver describes it. GiB, percent, watts, degrees Celsius; None where it does not."""

    card: str
    vram_used_gb: float | None = None
    vram_total_gb: float | None = None
    gtt_used_gb: float | None = None
    gtt_total_gb: float | None = None
    busy_percent: float | None = None
    """Also 100 during a hang: it does not prove work."""
    power_w: float | None = None
    temperature_c: float | None = None


class Sample(Row):
    """One second of a run and of the machine under it, in `telemetry.jsonl`. What is not known is absent, never 0.

    Older lines of a long run are thinned to one in N, so `n` and `t` have gaps there.
    """

    n: int
    """Counts from 0 through all starts in this folder."""
    start: int = 1
    """Which start of the trainer in this folder."""
    t: float
    """Seconds since that start."""
    phase: Phase | None = None
    """Of the last heartbeat."""
    resident_gb: float | None = None
    """Of the trainer and what it started, GiB."""
    cores: float | None = None
    """Processor time of the same in the last second, in cores."""
    machine_cores: float | None = None
    """Processor time of everything on the machine, in cores."""
    cores_there: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    """By the run from and to disks, since this start."""
    available_gb: float | None = None
    total_gb: float | None = None
    """Host memory, or a container's limit."""
    swap_used_gb: float | None = None
    pressure_some: float | None = None
    pressure_full: float | None = None
    """Percent of the last ten seconds in which some (all) tasks of the machine waited for memory."""
    pressure_disk: float | None = None
    """Percent of the last ten seconds in which some task of the machine waited for a disk."""
    cards: list[CardSample] = []
    device_allocated_gb: float | None = None
    device_reserved_gb: float | None = None
    device_free_gb: float | None = None
    """As the trainer told them last."""
    note: str | None = None
    """What could not be read, in words."""


class RunLoad(Row):
    """What a run's samples say about how it used the machine. Means and shares are of time in the phases that step
    (generate, verify, train, evaluate); None is not known."""

    samples: int
    seconds: float
    """Between the first and the last sample of each start."""
    accelerated: bool | None = None
    """An accelerator did the work. None: neither the samples nor the plan say."""
    cores_there: int | None = None
    cores_used: float | None = None
    """Mean, in cores."""
    cores_used_peak: float | None = None
    busy: float | None = None
    """Mean of the busiest card, percent."""
    busy_median: float | None = None
    busy_peak: float | None = None
    idle_share: dict[str, float] = {}
    """By phase: seconds in it in which nothing was computed / seconds of all phases that step."""
    memory_peak_share: float | None = None
    """Host memory in use, by anyone, at its peak."""
    device_memory_peak_share: float | None = None
    resident_peak_gb: float | None = None
    swap_growth_gb: float | None = None
    pressure_some_peak: float | None = None
    pressure_full_peak: float | None = None
    power_w: float | None = None
    power_peak_w: float | None = None
    temperature_peak_c: float | None = None
    throttling: str | None = None
    """Why the card looks throttled, in words."""
    notes: list[str] = []
    """What could not be sampled."""


class Failure(Row):
    """The trainer's own word on why it failed: the first thing that triage believes."""

    crash_class: CrashClass
    message: str
    where: str | None = None
    hint: str | None = None
    exception: str
    """Type name."""
    phase: Phase | None = None
    key: str | None = None
    """Recipe key at fault, where one can be named."""
    suggestion: Any = None


class RunPlan(Row):
    """`plan.json`: how this recipe will be executed on this machine, settled before the first step."""

    device: str
    dtype: str
    attention: str
    engine: str
    compile: bool = False
    trainer: str = "native"
    environment: dict[str, str] = {}
    """Environment variables that the preset and the recipe set."""
    parameters: int | None = None
    trainable_parameters: int | None = None
    rows: dict[str, int] = {}
    """Data-set rows by split."""
    refused_rows: int = 0
    """Rows that are not trained on because they are near-duplicates of held-out ones."""
    settings: dict[str, Any] = {}
    """The remaining settings that shape execution but need not change a number (slots, microbatch, parallel sizes)."""
