"""What a run says, as named numbers: one documented function per signal, from telemetry to a float or None.

None is "not known from this run" and never 0. Nothing here judges a number; thresholds are in
`hypotheses/symptoms.yaml`. Windows: `late` is the last third of the trained cycles (at least one), `early`
the first third, `start` is cycle 0, the untrained model. A run without a trained cycle is all start.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from agent.contract import DECLINE, CycleRow, EvalRow, Failure, RunLoad, Summary
from agent.recipe.schema import Recipe

if TYPE_CHECKING:
    from agent.hardware.probe import Machine

LATE, EARLY, START, WHOLE, EVAL, RECIPE = (
    "last third of cycles",
    "first third of cycles",
    "untrained, cycle 0",
    "all cycles",
    "held-out samples",
    "recipe",
)
SAMPLED = "sampled once a second"
MIN_TAG_ROWS = 40
"""Held-out samples of a tag below which its pass rate says little (standard error above 8 points)."""

PROMPT_CORRELATION = 0.3
"""Of the outcomes of two samples of one prompt, taken as usual: n samples in groups of k are worth
n / (1 + (k - 1) x this) independent ones (the design effect of cluster sampling, Kish 1965)."""
LARGEST = 1e100
"""A number beyond this is as broken as an infinite one (and its mean could not be formed)."""


@dataclass(frozen=True)
class Observation:
    """All that is known about one run when it is diagnosed."""

    recipe: Recipe
    cycles: Sequence[CycleRow] = ()
    summary: Summary | None = None
    failure: Failure | None = None
    """The trainer's own word on why it ended without a summary."""
    evals: Sequence[EvalRow] = ()
    """Rows of one split (search)."""
    untrained_metric: float | None = None
    """The metric of the untrained model on the same split."""
    noise: float | None = None
    """Run-to-run standard deviation of the metric."""
    reference_tokens_per_s: float | None = None
    """Throughput that calibration found usual for this machine and recipe."""
    machine: Machine | None = None
    load: RunLoad | None = None
    """How the run used the machine, as the agent sampled it."""
    facts: dict[str, str] = field(default_factory=dict)
    """Facts known from elsewhere; those of the run itself are added by `observed`."""

    @cached_property
    def start(self) -> CycleRow | None:
        return next((row for row in self.cycles if row.cycle == 0), None)

    @cached_property
    def trained(self) -> list[CycleRow]:
        return [row for row in self.cycles if row.cycle > 0]

    @cached_property
    def late(self) -> list[CycleRow]:
        if not self.trained:
            return [self.start] if self.start else []
        return self.trained[-max(1, len(self.trained) // 3) :]

    @cached_property
    def early(self) -> list[CycleRow]:
        return self.trained[: max(1, len(self.trained) // 3)]


@dataclass(frozen=True)
class Signal:
    name: str
    doc: str
    window: str
    compute: Callable[[Observation], float | None]


SIGNALS: dict[str, Signal] = {}


def signals(observation: Observation) -> dict[str, float | None]:
    """Every signal by name; None where this run does not tell."""
    return {name: signal.compute(observation) for name, signal in SIGNALS.items()}


def observed(observation: Observation) -> dict[str, str]:
    """Facts that a change may refer to (see `agent.plan.schema.OBSERVED`)."""
    rates = _pass_rate_by_tag(observation)
    facts = dict(observation.facts)
    if len(rates) >= 2:
        facts.setdefault("weakest_tag", min(rates, key=lambda tag: (rates[tag], tag)))
        facts.setdefault("strongest_tag", max(rates, key=lambda tag: (rates[tag], tag)))
    return facts


# --- building blocks ---------------------------------------------------------------------------------------


def _signal(
    name: str, window: str, doc: str
) -> Callable[[Callable[[Observation], float | None]], Callable[[Observation], float | None]]:
    def register(compute: Callable[[Observation], float | None]) -> Callable[[Observation], float | None]:
        SIGNALS[name] = Signal(name, doc, window, compute)
        return compute

    return register


def _values(rows: Iterable[CycleRow], key: str) -> list[float]:
    """The usable values of a column: known, finite and of a size that can be averaged."""
    found = (getattr(row, key, None) for row in rows)
    return [float(value) for value in found if value is not None and abs(value) < LARGEST]


def _mean(rows: Iterable[CycleRow], key: str) -> float | None:
    values = _values(rows, key)
    return statistics.fmean(values) if values else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _difference(left: float | None, right: float | None) -> float | None:
    return left - right if left is not None and right is not None else None


def _seconds_share(observation: Observation, part: str) -> float | None:
    """Share of one part in generate + verify + train + wait (evaluation is not of the training's making).

    Cycle 0 counts: the samples that cycle 1 trains on may have been drawn there.
    """
    rows = observation.cycles
    parts = {name: sum(getattr(row.seconds, name) for row in rows) for name in ("generate", "verify", "train", "wait")}
    total = sum(parts.values())
    return parts[part] / total if total > 0 else None


def _moving(values: Sequence[float], width: int) -> list[float]:
    """Means over windows of `width` neighbours."""
    return [statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1)]


def _fall(values: Sequence[float], rows_each: float) -> tuple[float, float] | None:
    """(fall from the highest to the last moving mean, its size in standard errors), for shares of `rows_each` rows.

    A series that was never higher than at its start has no peak to fall from: its fall is 0.
    """
    if len(values) < 4:
        return None
    width = max(2, len(values) // 6)
    means = _moving(values, width)
    peak, last = max(means), means[-1]
    spread = max(peak * (1 - peak), 0.01)
    error = math.sqrt(2 * spread / max(1.0, rows_each * width))
    if peak - means[0] < 2 * error:
        return 0.0, 0.0
    return peak - last, (peak - last) / error


def _worth(observation: Observation, row: CycleRow) -> float:
    """How many independent samples the cycle's samples are worth."""
    return row.samples / (1 + (observation.recipe.rollout.samples_per_prompt - 1) * PROMPT_CORRELATION)


def _over_usual(values: Sequence[float]) -> float | None:
    """Largest value / median (or the median of the first third, where that is larger: losses fall)."""
    if len(values) < 4:
        return None
    usual = max(statistics.median(values), statistics.median(values[: max(2, len(values) // 3)]))
    return max(values) / usual if usual > 0 else None


def _pass_rate_by_tag(observation: Observation) -> dict[str, float]:
    by_tag: dict[str, list[bool]] = defaultdict(list)
    for row in observation.evals:
        if row.tag is not None:
            by_tag[row.tag].append(row.passed)
    return {tag: statistics.fmean(rows) for tag, rows in by_tag.items() if len(rows) >= MIN_TAG_ROWS}


def _late(name: str, doc: str, column: str | None = None) -> None:
    @_signal(name, LATE, doc)
    def compute(observation: Observation) -> float | None:
        return _mean(observation.late, column or name)


def _start(name: str, column: str, doc: str) -> None:
    @_signal(name, START, doc)
    def compute(observation: Observation) -> float | None:
        return _mean([observation.start], column) if observation.start else None


def _change(name: str, column: str, doc: str) -> None:
    @_signal(name, "last third of cycles over cycle 0", doc)
    def compute(observation: Observation) -> float | None:
        base = _mean([observation.start], column) if observation.start else None
        return _ratio(_mean(observation.late, column), base) if observation.trained else None


def _share_of_seconds(name: str, part: str, doc: str) -> None:
    @_signal(name, WHOLE, doc)
    def compute(observation: Observation) -> float | None:
        return _seconds_share(observation, part)


# --- what was sampled --------------------------------------------------------------------------------------

_late("truncation_rate", "Samples cut at max_new_tokens.")
_start("truncation_start", "truncation_rate", "Samples of the untrained model cut at max_new_tokens.")
_late("format_rate", "Samples from which the verifier could extract an answer.")
_start("format_start", "format_rate", "The same for the untrained model.")
_late("near_rate", "Samples that contain the right answer but did not pass.")
_late("pass_rate", "Training samples that passed the verifier.")
_start("pass_start", "pass_rate", "Training samples of the untrained model that passed.")
_late("all_solved_share", "Prompts whose every sample passed.")
_late("all_failed_share", "Prompts of which no sample passed.")
_late("zero_variance_share", "Prompts whose samples all have the same reward.")
_start("zero_variance_start", "zero_variance_share", "The same for the untrained model.")
_late("unique_share", "Distinct completions among the samples of a prompt.")
_start("unique_start", "unique_share", "The same for the untrained model.")
_late("entropy", "Entropy of the sampling distribution at temperature 1, nats a token.")
_start("entropy_start", "entropy", "The same for the untrained model.")
_change("entropy_ratio", "entropy", "Entropy as a multiple of the untrained model's.")
_change("length_ratio", "completion_tokens_mean", "Completion length as a multiple of the untrained model's.")
_late("reward_mean", "Mean training reward.")
_late("reward_std", "Standard deviation of the training reward.")


@_signal("distinct_start", START, "Distinct completions of a prompt, of the untrained model.")
def _distinct_start(observation: Observation) -> float | None:
    share = _mean([observation.start], "unique_share") if observation.start else None
    return share * observation.recipe.rollout.samples_per_prompt if share is not None else None


@_signal("completion_tokens", LATE, "Mean completion length, tokens.")
def _completion_tokens(observation: Observation) -> float | None:
    return _mean(observation.late, "completion_tokens_mean")


@_signal("completion_share_of_limit", LATE, "Mean completion length / rollout.max_new_tokens.")
def _completion_share_of_limit(observation: Observation) -> float | None:
    return _ratio(_mean(observation.late, "completion_tokens_mean"), float(observation.recipe.rollout.max_new_tokens))


@_signal("prompt_share_of_tokens", LATE, "Prompt tokens / (prompt + completion tokens) of a sample.")
def _prompt_share_of_tokens(observation: Observation) -> float | None:
    prompt, completion = (_mean(observation.late, f"{part}_tokens_mean") for part in ("prompt", "completion"))
    return prompt / (prompt + completion) if prompt is not None and completion is not None and prompt else None


@_signal("dropped_prompt_share", WHOLE, "Prompts dropped because they are longer than max_total_sequence_length.")
def _dropped_prompt_share(observation: Observation) -> float | None:
    drawn = len(observation.cycles) * observation.recipe.rollout.prompts_per_cycle
    return sum(row.dropped_prompts for row in observation.cycles) / drawn if drawn else None


def _select_is(metric: str, observation: Observation) -> bool:
    return observation.recipe.evaluation.metric == metric


@_signal(
    "sampling_gap", LATE, "Pass rate of the `select` split at the evaluation's settings - that of training samples."
)
def _sampling_gap(observation: Observation) -> float | None:
    if not _select_is("pass_rate", observation):
        return None
    return _difference(_mean(observation.late, "select_metric"), _mean(observation.late, "pass_rate"))


@_signal("sampling_gap_start", START, "The same for the untrained model.")
def _sampling_gap_start(observation: Observation) -> float | None:
    start = observation.start
    if start is None or not _select_is("pass_rate", observation):
        return None
    return _difference(_mean([start], "select_metric"), _mean([start], "pass_rate"))


# --- what was kept and learned -----------------------------------------------------------------------------


@_signal("kept_share", WHOLE, "Samples kept / samples drawn in trained cycles.")
def _kept_share(observation: Observation) -> float | None:
    samples = sum(row.samples for row in observation.trained)
    return sum(row.kept for row in observation.trained) / samples if samples else None


@_signal("kept_of_passed", WHOLE, "Samples kept / samples that passed.")
def _kept_of_passed(observation: Observation) -> float | None:
    rows = [row for row in observation.trained if _values([row], "pass_rate")]
    passed = sum(row.samples * (row.pass_rate or 0.0) for row in rows)
    return sum(row.kept for row in rows) / passed if passed >= 1 else None


@_signal("unreachable_threshold", RECIPE, "Lowest reward threshold - the highest reward the shaping can give.")
def _unreachable_threshold(observation: Observation) -> float | None:
    reward = observation.recipe.task.reward
    highest = reward.scale + max(reward.format_bonus, 0.0)
    if reward.clip is not None:
        highest = min(highest, reward.clip[1])
    selection = observation.recipe.selection
    ends = [selection.reward_threshold]
    if selection.threshold_schedule is not None:
        ends.append(selection.threshold_schedule.end)
    return min(ends) - highest


@_signal("optimizer_steps", WHOLE, "Optimizer steps of the whole training.")
def _optimizer_steps(observation: Observation) -> float | None:
    if observation.summary is not None:
        return float(observation.summary.optimizer_steps)
    return float(sum(row.optimizer_steps for row in observation.trained)) if observation.trained else None


@_signal("kept_samples", WHOLE, "Samples kept in the whole training.")
def _kept_samples(observation: Observation) -> float | None:
    if observation.summary is not None:
        return float(observation.summary.kept)
    return float(sum(row.kept for row in observation.trained)) if observation.trained else None


@_signal("steps_over_minimum", WHOLE, "Optimizer steps / budget.min_optimizer_steps.")
def _steps_over_minimum(observation: Observation) -> float | None:
    return _ratio(_optimizer_steps(observation), float(observation.recipe.budget.min_optimizer_steps))


@_signal("kept_over_minimum", WHOLE, "Kept samples / budget.min_kept_samples.")
def _kept_over_minimum(observation: Observation) -> float | None:
    return _ratio(_kept_samples(observation), float(observation.recipe.budget.min_kept_samples))


@_signal("idle_cycle_share", WHOLE, "Trained cycles without an optimizer step.")
def _idle_cycle_share(observation: Observation) -> float | None:
    rows = observation.trained
    return sum(row.optimizer_steps == 0 for row in rows) / len(rows) if rows else None


@_signal("pass_gain", "last third of cycles - cycle 0", "Rise of the training pass rate.")
def _pass_gain(observation: Observation) -> float | None:
    if not observation.trained or observation.start is None:
        return None
    return _difference(_mean(observation.late, "pass_rate"), _mean([observation.start], "pass_rate"))


@_signal("pass_gain_errors", "last third of cycles - cycle 0", "The same in standard errors of its measurement.")
def _pass_gain_errors(observation: Observation) -> float | None:
    gain, start = _pass_gain(observation), observation.start
    if gain is None or start is None or start.pass_rate is None:
        return None
    before, after = _worth(observation, start), sum(_worth(observation, row) for row in observation.late)
    if not before or not after:
        return None
    spread = max(start.pass_rate * (1 - start.pass_rate), 0.01)
    return gain / math.sqrt(spread * (1 / before + 1 / after))


@_signal("select_gain", "last third of cycles - cycle 0", "Rise of the metric on the `select` split.")
def _select_gain(observation: Observation) -> float | None:
    if not observation.trained or observation.start is None:
        return None
    return _difference(_mean(observation.late, "select_metric"), _mean([observation.start], "select_metric"))


@_signal("select_gain_errors", "last third of cycles - cycle 0", "The same in standard errors of its measurement.")
def _select_gain_errors(observation: Observation) -> float | None:
    gain = _select_gain(observation)
    if gain is None or _select_is("mean_reward", observation):  # whose spread is not that of a share
        return None
    evaluation = observation.recipe.evaluation
    return gain / math.sqrt(2 * 0.25 / (evaluation.select_prompts * evaluation.select_samples))


_start("select_start", "select_metric", "Metric of the untrained model on the `select` split.")
_change("select_ratio", "select_metric", "Metric on the `select` split as a multiple of the untrained model's.")


@_signal("pass_trend", "last - first third of cycles", "Rise of the training pass rate within the training.")
def _pass_trend(observation: Observation) -> float | None:
    if len(observation.trained) < 3:
        return None
    return _difference(_mean(observation.late, "pass_rate"), _mean(observation.early, "pass_rate"))


@_signal("metric", EVAL, "The recipe's metric on the search split.")
def _metric(observation: Observation) -> float | None:
    summary = observation.summary
    return next(iter(summary.metrics.values()), None) if summary else None


@_signal("metric_gain", EVAL, "The metric - the untrained model's.")
def _metric_gain(observation: Observation) -> float | None:
    return _difference(_metric(observation), observation.untrained_metric)


@_signal("transfer_gap", "last third of cycles - cycle 0", "Rise on training samples - rise on the `select` split.")
def _transfer_gap(observation: Observation) -> float | None:
    if not _select_is("pass_rate", observation):
        return None
    return _difference(_pass_gain(observation), _select_gain(observation))


@_signal("transfer_gap_errors", "last third of cycles - cycle 0", "The same in standard errors of its measurement.")
def _transfer_gap_errors(observation: Observation) -> float | None:
    gap, start = _transfer_gap(observation), observation.start
    if gap is None or start is None:
        return None
    evaluation = observation.recipe.evaluation
    held_out = evaluation.select_prompts * evaluation.select_samples
    measured = max(1, len(_values(observation.late, "select_metric")))
    # A binomial at its widest: cycle 0 is one look at each side, the late window averages several. Looks at the
    # same held-out prompts are not independent, so averaging them is taken to halve their error at the most.
    error = math.sqrt(0.25 / held_out * (1 + max(1 / measured, 0.25)) + 0.25 / max(1, start.samples))
    return gap / error


@_signal("train_pass_rate_over_held_out", LATE, "Training pass rate - `select` metric, both after training.")
def _train_over_held_out(observation: Observation) -> float | None:
    gap = _sampling_gap(observation)
    return -gap if gap is not None else None


@_signal("fall_from_peak", WHOLE, "Highest smoothed `select` metric (or training pass rate) - the last one.")
def _fall_from_peak(observation: Observation) -> float | None:
    fall = _larger_fall(observation)
    return fall[0] if fall else None


@_signal("fall_errors", WHOLE, "The same in standard errors of its measurement.")
def _fall_errors(observation: Observation) -> float | None:
    fall = _larger_fall(observation)
    return fall[1] if fall else None


@_signal("declined", WHOLE, "1 where `learner.early_stop` ended the training as worse than before, else 0.")
def _declined(observation: Observation) -> float | None:
    return float(observation.summary.ended_by == DECLINE) if observation.summary else None


def _larger_fall(observation: Observation) -> tuple[float, float] | None:
    """Of the two series, the one whose fall stands out more."""
    rows = [row for row in observation.cycles if row.cycle > 0 or row.pass_rate is not None]
    evaluation = observation.recipe.evaluation
    held_out = evaluation.select_prompts * evaluation.select_samples
    drawn = statistics.fmean(_worth(observation, row) for row in rows) if rows else 0.0
    falls = [_fall(_values(rows, "pass_rate"), drawn)]
    if not _select_is("mean_reward", observation):  # which is no share of anything
        falls.append(_fall(_values(rows, "select_metric"), held_out))
    known = [fall for fall in falls if fall is not None]
    return max(known, key=lambda fall: fall[1]) if known else None


# --- how steadily ------------------------------------------------------------------------------------------


@_signal("nonfinite_share", WHOLE, "Trained cycles whose loss or gradient norm is not a finite number.")
def _nonfinite_share(observation: Observation) -> float | None:
    rows = [row for row in observation.trained if row.loss is not None or row.grad_norm is not None]
    bad = sum(any(value is not None and not abs(value) < LARGEST for value in (r.loss, r.grad_norm)) for r in rows)
    return bad / len(rows) if rows else None


@_signal("numeric_failure", WHOLE, "1 where the trainer gave up because numbers were not finite.")
def _numeric_failure(observation: Observation) -> float | None:
    if observation.failure is None:
        return 0.0 if observation.summary else None
    return float(observation.failure.crash_class == "numeric")


@_signal("skipped_step_share", WHOLE, "Optimizer steps that a float16 overflow cost / all steps.")
def _skipped_step_share(observation: Observation) -> float | None:
    skipped = sum(row.skipped_steps for row in observation.trained)
    steps = skipped + sum(row.optimizer_steps for row in observation.trained)
    return skipped / steps if steps else None


@_signal("loss_ratio", "last over first third of cycles", "Mean loss as a multiple of what it was.")
def _loss_ratio(observation: Observation) -> float | None:
    if len(observation.trained) < 3:
        return None
    return _ratio(_mean(observation.late, "loss"), _mean(observation.early, "loss"))


@_signal("loss_spread", WHOLE, "Largest loss / usual loss (the median, or that of the first third if larger).")
def _loss_spread(observation: Observation) -> float | None:
    return _over_usual(_values(observation.trained, "loss"))


@_signal("grad_spike", WHOLE, "Largest gradient norm / usual gradient norm (as for the loss).")
def _grad_spike(observation: Observation) -> float | None:
    return _over_usual(_values(observation.trained, "grad_norm"))


@_signal("grad_over_limit", WHOLE, "Median gradient norm / learner.max_grad_norm.")
def _grad_over_limit(observation: Observation) -> float | None:
    values = _values(observation.trained, "grad_norm")
    return statistics.median(values) / observation.recipe.learner.max_grad_norm if values else None


_late("clip_share", "Steps whose gradient was scaled down (raft), or tokens whose ratio was clipped.")
_late("logprob_gap", "Mean |sampler's - learner's log-probability| of fresh samples' tokens, nats.")
_late("trajectory_age", "Mean age of trained samples, in learner updates.")


@_signal(
    "staleness",
    LATE,
    "How much further from the sampler trained tokens are than fresh ones: mean |log ratio|, nats.",
)
def _staleness(observation: Observation) -> float | None:
    drift, gap = _mean(observation.late, "logprob_drift"), _mean(observation.late, "logprob_gap")
    return drift - (gap or 0.0) if drift is not None else None


# --- what was measured -------------------------------------------------------------------------------------


@_signal("cut_after_answer", EVAL, "Samples cut at the limit that had already given an answer the verifier takes.")
def _cut_after_answer(observation: Observation) -> float | None:
    rows = observation.evals
    late = sum(row.finish_reason == "length" and (row.passed or row.near) for row in rows)
    return late / len(rows) if rows else None


@_signal("stop_strings", RECIPE, "Number of stop strings.")
def _stop_strings(observation: Observation) -> float | None:
    return float(len(observation.recipe.prompt.stop))


@_signal("stop_conflicts", RECIPE, "Stop strings that end a completion before the verifier can find an answer.")
def _stop_conflicts(observation: Observation) -> float | None:
    return float(sum(_conflicts(text, observation.recipe) for text in observation.recipe.prompt.stop))


def _conflicts(stop: str, recipe: Recipe) -> bool:
    """Stop strings made of characters that a numeric answer may contain, or that end before the closing delimiter."""
    verifier = recipe.task.verifier
    if verifier.kind in ("delimited", "reasoning_gym"):
        return verifier.close not in stop
    return verifier.kind in ("exact", "last_number", "math") and bool(set(stop) & set("0123456789-."))


@_signal("held_out_error", EVAL, "Standard error of the metric from the held-out samples alone (prompts as clusters).")
def _held_out_error(observation: Observation) -> float | None:
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for row in observation.evals:
        by_prompt[row.id].append(row.passed)
    rates = [statistics.fmean(rows) for rows in by_prompt.values()]
    return statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) >= 2 else None


@_signal("run_noise", "repeated runs", "Run-to-run standard deviation of the metric.")
def _run_noise(observation: Observation) -> float | None:
    return observation.noise


@_signal("tag_gap", EVAL, "Pass rate of the best tag - that of the worst.")
def _tag_gap(observation: Observation) -> float | None:
    rates = _pass_rate_by_tag(observation)
    return max(rates.values()) - min(rates.values()) if len(rates) >= 2 else None


@_signal(
    "mix_ratio", RECIPE, "Largest / smallest sampling weight in task.mix (unnamed tags weigh 1; a zero counts 0.001)."
)
def _mix_ratio(observation: Observation) -> float | None:
    weights = [max(weight, 0.001) for weight in observation.recipe.task.mix.values()]
    return max([*weights, 1.0]) / min([*weights, 1.0]) if weights else 1.0


# --- what it cost ------------------------------------------------------------------------------------------

_share_of_seconds("generate_share", "generate", "Seconds of generation / seconds of training.")
_share_of_seconds("train_share", "train", "Seconds of optimizer steps / seconds of training.")
_share_of_seconds("verify_share", "verify", "Seconds of verification / seconds of training.")
_share_of_seconds("wait_share", "wait", "Seconds of waiting for the other side / seconds of training.")
_late("padding_share", "Padding among the tokens of the learner's forward passes.")


@_signal("evaluate_share", WHOLE, "Seconds on the `select` split / all seconds of the cycles.")
def _evaluate_share(observation: Observation) -> float | None:
    spent = [row.seconds for row in observation.cycles]
    total = sum(s.generate + s.verify + s.train + s.wait + s.evaluate for s in spent)
    return sum(s.evaluate for s in spent) / total if total > 0 else None


@_signal("tokens_per_s", WHOLE, "(generated + trained tokens) / training seconds.")
def _tokens_per_s(observation: Observation) -> float | None:
    return observation.summary.tokens_per_s if observation.summary else None


@_signal("throughput_ratio", WHOLE, "Tokens/s as a multiple of what calibration found.")
def _throughput_ratio(observation: Observation) -> float | None:
    return _ratio(_tokens_per_s(observation), observation.reference_tokens_per_s)


@_signal("peak_memory_gb", WHOLE, "Peak memory of the training, GB.")
def _peak_memory_gb(observation: Observation) -> float | None:
    if observation.summary and observation.summary.peak_memory_gb is not None:
        return observation.summary.peak_memory_gb
    values = _values(observation.cycles, "peak_memory_gb")
    return max(values) if values else None


@_signal("memory_share", WHOLE, "Peak memory / memory of the device.")
def _memory_share(observation: Observation) -> float | None:
    machine = observation.machine
    if machine is None:
        return None
    has_gb = (
        (machine.accelerator_memory_gb or machine.memory_gb) * 2**30 / 1e9
    )  # which are GiB, and the peak is 10^9 bytes
    return _ratio(_peak_memory_gb(observation), has_gb)


@_signal("device_busy", SAMPLED, "Mean share of the time in which the accelerator was busy; None where none worked.")
def _device_busy(observation: Observation) -> float | None:
    load = observation.load
    if load is None or not load.accelerated or load.busy is None:
        return None
    return load.busy / 100


@_signal("cores_share", SAMPLED, "Processor cores in use / cores there are; None where an accelerator did the work.")
def _cores_share(observation: Observation) -> float | None:
    load = observation.load
    if load is None or load.accelerated is not False or not load.cores_there:
        return None
    return _ratio(load.cores_used, float(load.cores_there))


def _idle_in(name: str, phase: str, doc: str) -> None:
    @_signal(name, SAMPLED, doc)
    def compute(observation: Observation) -> float | None:
        return observation.load.idle_share.get(phase) if observation.load else None


_idle_in("idle_generate_share", "generate", "Share of the time that is generation in which nothing computed.")
_idle_in("idle_verify_share", "verify", "Share of the time that is verification in which nothing computed.")
_idle_in("idle_train_share", "train", "Share of the time that is optimizer steps in which nothing computed.")


@_signal("host_memory_share", SAMPLED, "Host memory in use at its peak, by anyone / host memory.")
def _host_memory_share(observation: Observation) -> float | None:
    return observation.load.memory_peak_share if observation.load else None


@_signal("memory_pressure", SAMPLED, "Most of any 10 s in which some task waited for memory, as a share.")
def _memory_pressure(observation: Observation) -> float | None:
    load = observation.load
    return load.pressure_some_peak / 100 if load is not None and load.pressure_some_peak is not None else None


@_signal("accelerators", "machine", "Number of accelerators.")
def _accelerators(observation: Observation) -> float | None:
    return float(observation.machine.accelerators) if observation.machine else None


# --- what the recipe says ----------------------------------------------------------------------------------


@_signal("samples_per_prompt", RECIPE, "rollout.samples_per_prompt.")
def _samples_per_prompt(observation: Observation) -> float | None:
    return float(observation.recipe.rollout.samples_per_prompt)


@_signal("temperature", RECIPE, "rollout.temperature.")
def _temperature(observation: Observation) -> float | None:
    return observation.recipe.rollout.temperature


@_signal("train_prompts", RECIPE, "task.train_prompts where the recipe limits them.")
def _train_prompts(observation: Observation) -> float | None:
    limit = observation.recipe.task.train_prompts
    return float(limit) if limit is not None else None


@_signal("prompt_reuse", WHOLE, "Times each training prompt was drawn, where the recipe limits their number.")
def _prompt_reuse(observation: Observation) -> float | None:
    limit = observation.recipe.task.train_prompts
    drawn = len(observation.trained) * observation.recipe.rollout.prompts_per_cycle
    return drawn / limit if limit and drawn else None


@_signal("gradient_accumulation", RECIPE, "learner.gradient_accumulation.")
def _gradient_accumulation(observation: Observation) -> float | None:
    return float(observation.recipe.learner.gradient_accumulation)


@_signal("epochs_per_cycle", RECIPE, "learner.epochs_per_cycle.")
def _epochs_per_cycle(observation: Observation) -> float | None:
    return float(observation.recipe.learner.epochs_per_cycle)


@_signal("float16", RECIPE, "1 where the recipe computes in float16.")
def _float16(observation: Observation) -> float | None:
    return float(observation.recipe.model.dtype == "float16")


@_signal("trained_cycles", WHOLE, "Cycles that trained.")
def _trained_cycles(observation: Observation) -> float | None:
    return float(len(observation.trained)) if observation.cycles else None
