"""A run beside the one that was recorded of the same recipe: the same, the same within run noise, or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.campaign.comparison import RunNoise, compare, quantile
from agent.campaign.decided import comparison_from
from agent.campaign.replay import Again, rows_are_as_left
from agent.campaign.scores import FEWEST_PROMPTS, scores_of
from agent.contract import EvalRow, Summary
from agent.ledger.journal import CampaignState
from agent.recipe.yardstick import differences
from agent.report.numbers import Numbers
from agent.run.telemetry import RunRecord, read_run

VERSIONS = ("python", "torch", "transformers", "device", "threads", "products", "data")
"""Of a summary's provenance, what two runs of one recipe are compared in."""


@dataclass(frozen=True)
class OnSplit:
    """The metric and the answers on one held-out split. What is not known is None."""

    split: str
    recorded: float | None
    replayed: float | None
    difference: float | None
    """Replayed minus recorded, in the metric's own direction."""
    allowed: float | None
    """Half of the 95% interval of a difference between two runs of one recipe."""
    prompts: int | None = None
    """That both answered, where the recorded rows are there."""
    same_answers: int | None = None
    """Prompts whose every sample is the same, token by token."""
    same_verdicts: int | None = None
    """Prompts of which as many samples pass."""


@dataclass(frozen=True)
class Result:
    splits: tuple[OnSplit, ...]
    numbers: tuple[tuple[str, Any, Any], ...]
    """Name, recorded, replayed: cycles, steps, seconds, throughput."""
    versions: tuple[tuple[str, str, str], ...]
    """What differs, then and now."""
    verdict: str
    """identical, within noise, beyond noise, unknown."""
    sentence: str
    notes: tuple[str, ...]


def result_of(again: Again, replayed: RunRecord, state: CampaignState) -> Result:
    """Of a replay that has ended with a summary."""
    assert replayed.summary is not None
    recorded = again.recorded
    notes: list[str] = []
    before: RunRecord | None = None
    if recorded is not None and recorded.out.is_dir():
        before = read_run(recorded.out)
    rows: Sequence[EvalRow] = before.evals if before else ()
    if recorded is not None and not rows:
        notes.append(f"no rows of {recorded.key} any more, so that single answers cannot be compared")
    elif recorded is not None and not rows_are_as_left(recorded):
        notes.append(f"the rows of {recorded.key} were changed after it had ended, and are not compared")
        rows = ()
    numbers = Numbers(again.recipe.evaluation.metric)
    noise, whence = noise_of(state, numbers)
    told = dict(recorded.summary) if recorded else {}
    splits = tuple(_on_split(again, split, told, replayed, rows, noise) for split in again.splits)
    verdict, sentence = _said(again, splits, whence, numbers)
    if recorded is not None and told.get("ended_by") not in (None, replayed.summary.ended_by):
        notes.append(f"{recorded.key} was ended by {told['ended_by']}, the replay by {replayed.summary.ended_by}")
    notes += _about_seconds(again, told, replayed.summary)
    return Result(
        splits=splits,
        numbers=tuple(_numbers(told, replayed.summary)),
        versions=tuple(_versions(again, told, before.summary if before else None, replayed.summary)),
        verdict=verdict,
        sentence=sentence,
        notes=tuple(notes),
    )


def noise_of(state: CampaignState, numbers: Numbers) -> tuple[RunNoise | None, str]:
    """The campaign's run noise as it was known last, and what to say of it."""
    for number in reversed(state.judged_order):
        judged = state.experiments[number].judged
        for name in ("basis", "search") if judged else ():
            found = comparison_from(judged.numbers.get(name)) if judged else None
            if found is not None and found.noise is not None:
                return found.noise, f"sigma_run {numbers.size(found.noise.sigma)}, {found.noise.df} degrees of freedom"
    sigma, seeds = state.calibration.get("sigma_run"), state.calibration.get("seeds") or 0
    if sigma is None or seeds < 2:
        return None, "run noise unknown"
    return RunNoise(sigma**2, 0.0, seeds - 1), f"sigma_run {numbers.size(sigma)} of the calibration"


def _on_split(
    again: Again,
    split: str,
    told: Mapping[str, Any],
    replayed: RunRecord,
    rows: Sequence[EvalRow],
    noise: RunNoise | None,
) -> OnSplit:
    assert replayed.summary is not None
    then, now = (told.get("metrics") or {}).get(split), replayed.summary.metrics.get(split)
    difference = now - then if then is not None and now is not None else None
    evaluation = again.recipe.evaluation
    ours = scores_of(replayed.evals, split=split, evaluation=evaluation)
    theirs = scores_of(rows, split=split, evaluation=evaluation)
    if ours is None or theirs is None or len(set(ours.ids) & set(theirs.ids)) < FEWEST_PROMPTS:
        return OnSplit(split, then, now, difference, _from_noise_alone(noise))
    low, high = compare([ours], [theirs], noise).interval
    prompts, answers, verdicts = _agreement(_by_prompt(rows, split), _by_prompt(replayed.evals, split))
    return OnSplit(split, then, now, difference, (high - low) / 2, prompts, answers, verdicts)


def _from_noise_alone(noise: RunNoise | None) -> float | None:
    return None if noise is None else quantile(0.975, noise.df) * math.sqrt(2 * noise.between)


def _by_prompt(rows: Sequence[EvalRow], split: str) -> dict[str, dict[int, EvalRow]]:
    found: dict[str, dict[int, EvalRow]] = {}
    for row in rows:
        if row.split == split:
            found.setdefault(row.id, {})[row.sample] = row
    return found


def _agreement(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[int, int, int]:
    """(prompts of both, those with the same answers, those with as many that pass). Where a trainer tells no digests,
    answers count as the same that agree in all else."""
    shared = sorted(set(before) & set(after))
    same = sum(before[one].keys() == after[one].keys() and all(
        _is_same(before[one][sample], after[one][sample]) for sample in before[one]) for one in shared)  # fmt: skip
    passed = sum(_passes(before[one]) == _passes(after[one]) for one in shared)
    return len(shared), same, passed


def _is_same(one: EvalRow, other: EvalRow) -> bool:
    names = ("digest", "passed", "reward", "tokens", "finish_reason")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _passes(samples: Mapping[int, EvalRow]) -> int:
    return sum(row.passed for row in samples.values())


# --- in words ----------------------------------------------------------------------------------------------


def _said(again: Again, splits: Sequence[OnSplit], whence: str, numbers: Numbers) -> tuple[str, str]:
    recorded = again.recorded
    known = [one for one in splits if one.difference is not None]
    if recorded is None or not known:
        why = "no run of it was recorded" if recorded is None else f"{recorded.key} left no metric ({recorded.ending})"
        return "unknown", f"nothing to compare with: {why}"
    if all(one.prompts and one.same_answers == one.prompts and not one.difference for one in known):
        answers = ", ".join(f"{one.prompts} of {one.split}" for one in known)
        return "identical", f"identical: the answers to all prompts ({answers}) are the same, sample by sample"
    moved = ", ".join(f"{numbers.difference(float(one.difference or 0.0))} on {one.split}" for one in known)
    if any(one.allowed is None for one in known):
        return "unknown", f"{moved}: whether that is more than noise cannot be told, the campaign measured no run noise"
    beyond = [one for one in known if abs(one.difference or 0.0) > (one.allowed or 0.0)]
    widest = max(known, key=lambda one: one.allowed or 0.0)
    span = f"two runs of one recipe differ by up to {numbers.size(widest.allowed or 0.0)} (95%; {whence})"
    if beyond:
        return "beyond noise", f"differs beyond noise: {moved}, where {span}"
    return "within noise", f"the same within run noise: {moved}, and {span}"


def _about_seconds(again: Again, told: Mapping[str, Any], now: Summary) -> list[str]:
    """A budget in seconds buys other steps on another day."""
    if again.recipe.budget.train_seconds is None or not told.get("optimizer_steps"):
        return []
    then, speed = told["optimizer_steps"], told.get("tokens_per_s")
    if then == now.optimizer_steps:
        return []
    faster = f", at {now.tokens_per_s / speed:.0%} of the speed" if speed and now.tokens_per_s else ""
    return [
        f"the budget is {again.recipe.budget.train_seconds:g} seconds of training, which made {then} optimizer steps "
        f"then and {now.optimizer_steps} now{faster}: a budget of cycles or tokens makes the same steps on any day"
    ]


def _numbers(told: Mapping[str, Any], now: Summary) -> list[tuple[str, Any, Any]]:
    names = {
        "ended by": "ended_by",
        "cycles": "cycles",
        "optimizer steps": "optimizer_steps",
        "samples kept": "kept",
        "delivered cycle": "delivered_cycle",
        "training, s": "train_s",
        "tokens/s": "tokens_per_s",
        "peak memory, GB": "peak_memory_gb",
    }
    pairs = [(label, told.get(name), getattr(now, name)) for label, name in names.items()]
    return [pair for pair in pairs if pair[1:] != (None, None)]


def _versions(
    again: Again, told: Mapping[str, Any], before: Summary | None, now: Summary
) -> list[tuple[str, str, str]]:
    then = dict(told.get("provenance") or (before.provenance if before else {}))
    found = [
        (name, str(then[name]), str(now.provenance[name]))
        for name in VERSIONS
        if then.get(name) is not None and now.provenance.get(name) is not None and then[name] != now.provenance[name]
    ]
    evaluation = now.provenance.get("evaluation")
    used = dict(evaluation.get("used") or {}) if isinstance(evaluation, dict) else {}
    told_already = {f"library {name}" for name, _, _ in found}
    for name in differences(again.known, used):
        if name not in told_already:
            found.append((name.removeprefix("library "), _short(again.known[name]), _short(used[name])))
    model = (now.provenance.get("model") or {}).get("commit")
    if again.model_commit and model and again.model_commit != model:
        found.append(("commit of the model", again.model_commit, str(model)))
    return found


def _short(digest: str) -> str:
    return digest if len(digest) < 24 or " " in digest else digest[:12]
