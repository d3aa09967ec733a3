"""What a run's held-out rows show besides the metric, and what makes its numbers invalid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agent.campaign.direction import as_measured
from agent.campaign.lab import Health, Measured
from agent.campaign.scores import FEWEST_PROMPTS, scores_of
from agent.contract import NO_STEP, TIME_LIMIT, EvalRow, Summary
from agent.recipe.schema import Budget, Evaluation
from agent.report.words import counted
from agent.run.telemetry import RunRecord

ROUNDING = 1e-6
WHOLE = 0.9
"""Share of the budget that others spend from which on a training has not been cut short."""


def health_of(rows: Sequence[EvalRow]) -> Health | None:
    """None where there are no rows."""
    if not rows:
        return None
    digests = [row.digest for row in rows if row.digest is not None]
    formatted = [row.formatted for row in rows if row.formatted is not None]
    return Health(
        samples=len(rows),
        truncated=sum(row.finish_reason == "length" for row in rows) / len(rows),
        tokens=sum(row.tokens for row in rows) / len(rows),
        distinct=len(set(digests)) / len(digests) if len(digests) == len(rows) else None,
        formatted=sum(formatted) / len(formatted) if formatted else None,
    )


def unmeasured(run: Measured, split: str) -> str | None:
    """Why the run has no valid metric on the split, in words; None where it has one."""
    if not run.ok:
        return run.crash_words or "no summary"
    faults = run.faults()
    scores = run.scores(split)
    answered = len(scores.ids) if scores is not None else 0
    if not faults and answered < FEWEST_PROMPTS:
        number = "one prompt" if answered else "no prompt"
        faults = [f"its evaluation has {number} of the {split} split, and a comparison needs {FEWEST_PROMPTS}"]
    return f"invalid: {'; '.join(faults)}" if faults else None


def underpowered(budget: Budget, run: Measured) -> str | None:
    """Why the run proves nothing for lack of training, or None."""
    summary = run.summary
    if summary is None:
        return None
    if summary.optimizer_steps < budget.min_optimizer_steps:
        ended = (
            f"; ended after {counted(summary.cycles, 'cycle')} that gave it none" if summary.ended_by == NO_STEP else ""
        )
        return (
            f"underpowered: {counted(summary.optimizer_steps, 'optimizer step')}, "
            f"the recipe asks for {budget.min_optimizer_steps}{ended}"
        )
    if summary.kept < budget.min_kept_samples:
        return f"underpowered: {summary.kept} kept samples, the recipe asks for {budget.min_kept_samples}"
    return None


def share_spent(budget: Budget, summary: Summary) -> float:
    """Of the training's budget, as far as the summary tells."""
    if budget.cycles is not None:
        return summary.cycles / budget.cycles
    if budget.tokens is not None:
        return (summary.generated_tokens + summary.trained_tokens) / budget.tokens
    return summary.train_s / budget.train_seconds if budget.train_seconds else 1.0


def cut_short(budget: Budget, run: Measured, others: Sequence[Measured]) -> str | None:
    """Where the time limit ended a training that others could go on with: in words, how far it came. None else, and
    where the limit ends all of them (`--per-experiment`)."""
    summary = run.summary
    if summary is None or summary.ended_by != TIME_LIMIT:
        return None
    share = share_spent(budget, summary)
    usual = max((share_spent(budget, other.summary) for other in others if other.summary is not None), default=1.0)
    if share >= WHOLE * min(1.0, usual):
        return None
    return f"its time limit ended it at {share:.0%} of its budget"


def faults_of(
    record: RunRecord,
    evaluation: Evaluation,
    *,
    rewards: tuple[float, float],
    prompts: Mapping[str, frozenset[str]] | None = None,
) -> list[str]:
    """Why the numbers of a finished run cannot be right: a trainer of another make, or a broken evaluation, gave them.

    The metric must be finite, a rate within 0 and 1, a reward within the lowest and highest of `rewards`, the summary
    must say what the rows add up to, and no pass@1 may lie above its pass@k. Every prompt of a split must have been
    asked, as often as the others: those of `prompts`, by split, where another run has shown which they are.
    """
    low, high = rewards if evaluation.metric == "mean_reward" else (0.0, 1.0)
    summary = record.summary
    if summary is None:
        return []
    faults = []
    for split, value in summary.metrics.items():
        if not math.isfinite(value):
            faults.append(f"{evaluation.metric} on {split} is {value}")
        elif not low - ROUNDING <= value <= high + ROUNDING:
            faults.append(f"{evaluation.metric} on {split} is {value:g}, outside {low:g} to {high:g}")
        else:
            faults += _against_the_rows(record, evaluation, split, value, (prompts or {}).get(split))
    extra = {name: value for name, value in (summary.model_extra or {}).items() if isinstance(value, int | float)}
    at_1, at_k = extra.get("pass_at_1"), extra.get("pass_at_k")
    if at_1 is not None and at_k is not None and at_1 > at_k + ROUNDING:
        faults.append(f"pass@1 {at_1:g} is above pass@k {at_k:g}")
    return faults


def _against_the_rows(
    record: RunRecord, evaluation: Evaluation, split: str, told: float, prompts: frozenset[str] | None
) -> list[str]:
    rows = [row for row in record.evals if row.split == split]
    if any(not math.isfinite(row.reward) for row in rows):
        return [f"a reward on {split} is not finite"]
    scores = scores_of(rows, split=split, evaluation=evaluation)
    if scores is None:
        return [f"{evaluation.metric} on {split} is {told:g}, and eval.jsonl has no row of it"]
    # of a single prompt `unmeasured` says what is wrong with it
    incomplete = _incomplete(rows, evaluation, split, prompts) if len(scores.ids) >= FEWEST_PROMPTS else None
    if incomplete:
        return [incomplete]
    mean = as_measured(scores.mean, minimize=evaluation.minimize)
    # every prompt has as many samples as the others, so the mean over prompts is the mean over samples
    if abs(mean - told) > 1e-3:
        return [f"{evaluation.metric} on {split} is {told:.4f} in the summary, its rows say {mean:.4f}"]
    return []


def _incomplete(
    rows: Sequence[EvalRow], evaluation: Evaluation, split: str, prompts: frozenset[str] | None
) -> str | None:
    """What is missing or too much in the rows of one split, in words."""
    asked: dict[str, list[int]] = {}
    for row in rows:
        asked.setdefault(row.id, []).append(row.sample)
    expected, samples = int(getattr(evaluation, f"{split}_prompts")), evaluation.samples_per_prompt
    if len(asked) != expected:
        return f"its evaluation has {len(asked)} of the {expected} prompts of {split}"
    others = len(asked.keys() - prompts) if prompts is not None else 0
    if others:
        return f"its evaluation has {others} prompts that are not those of {split} in the runs before"
    odd = next((prompt for prompt, numbers in asked.items() if sorted(numbers) != list(range(samples))), None)
    if odd is not None:
        return f"prompt {odd} of {split} has {len(asked[odd])} samples, and evaluation.samples_per_prompt is {samples}"
    return None
