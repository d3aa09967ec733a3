"""Untrained, baseline and winner on each held-out split, and what was gained between them, from the journal.

The interval of an arm is what the campaign told of it, over prompts and runs, where no run has come since. Else, of a
rate, p(1 - p) over the prompts (exact for one sample a prompt, too wide for several) and the noise between runs as it
was pooled last. Of another metric there is none then: how its prompts differ is not in the journal, and the runs alone,
all on the same prompts, would make it many times too narrow. A difference is that of the verdict, on the same prompts,
and so much better known than two such intervals side by side look.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.campaign.comparison import Comparison, RunNoise, quantile, wilson
from agent.campaign.decided import comparison_from
from agent.campaign.stairs import key_of, no_more, number_in
from agent.contract import HELD_OUT, UNTRAINED
from agent.ledger.state import CampaignState, Run
from agent.report.night import Arm, Estimate, Gain
from agent.report.numbers import finite

RATES = ("pass_rate", "pass_at_k")
MANY = 1000
"""Degrees of freedom at which Student's t is a normal distribution."""


@dataclass(frozen=True)
class Yardstick:
    """How the campaign measures, as far as the journal tells."""

    metric: str
    minimize: bool
    prompts: Mapping[str, int | None]
    """By split."""
    noise: RunNoise | None


def arms_of(state: CampaignState, winner: int, by: Yardstick) -> tuple[Arm, ...]:
    """Those that something is known of. Experiment 0 wins where nothing was kept: then there is no winner."""
    aside = {(note.model_extra or {}).get("set_aside") for note in state.notes}
    known = [run for run in state.runs.values() if _measured(run) and _may_be_of(run, {0, winner})]
    void = no_more(state)
    runs = [run for run in known if key_of(run) not in aside and run.id not in void]
    wanted: list[tuple[str, int | None]] = [(UNTRAINED, None), ("baseline", 0)]
    if winner:
        wanted.append(("winner", winner))
    holdout = holdout_of(state, winner).get("arms") or {}
    found = []
    for name, number in wanted:
        told = {**_told(state, number), **({"holdout": holdout[name]} if name in holdout else {})}
        found.append(Arm(name, number, _metrics(runs, name, number, by, told)))
    return tuple(arm for arm in found if arm.metrics)


def _told(state: CampaignState, number: int | None) -> dict[str, Mapping[str, float]]:
    """By split, what was told last of a recipe's runs."""
    for judged in reversed(state.judged_order):
        arms = _numbers(state, judged).get("arms") or {}
        if str(number) in arms:
            return dict(arms[str(number)])
    return {}


def _measured(run: Run) -> bool:
    return run.finished is not None and run.finished.summary is not None and run.words is not None


def _may_be_of(run: Run, numbers: Collection[int]) -> bool:
    """Not so of most runs: `_is_of` says no of those, whatever the arm."""
    words = run.words
    if words is None or words.arm == UNTRAINED or words.role not in ("experiment", "confirm"):
        return True
    return words.role == "confirm" and number_in(key_of(run)) in numbers


def _metrics(
    runs: Sequence[Run], name: str, number: int | None, by: Yardstick, told: Mapping[str, Mapping[str, float]]
) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for split in HELD_OUT:
        values = [value for run in runs if _is_of(run, name, number, split) for value in _values(run, split)]
        known = told.get(split)
        if known and known.get("runs") == len(values):
            found[split] = _told_estimate(known, by.prompts.get(split), by.metric)
        elif values:
            noisy = None if name == UNTRAINED else by.noise
            found[split] = _estimate(values, by.prompts.get(split), noisy, by.metric, trained=name != UNTRAINED)
    return found


def _told_estimate(known: Mapping[str, Any], prompts: int | None, metric: str) -> Estimate:
    """A rate's ends lie between 0 and 1; where all prompts came out alike, their number tells how far that goes."""
    value, low, high = known["value"], known["low"], known["high"]
    known_ends = finite(low) is not None and finite(high) is not None  # of a single prompt nothing tells the spread
    if metric not in RATES or not known_ends:
        return Estimate(value, low, high)
    if low == high and prompts and 0 <= value <= 1:
        low, high = wilson(value, prompts)
    return Estimate(value, max(0.0, low), min(1.0, high))


def _values(run: Run, split: str) -> Iterator[float]:
    summary = (run.finished.summary if run.finished else None) or {}
    value = (summary.get("metrics") or {}).get(split)
    if isinstance(value, int | float) and math.isfinite(value):
        yield float(value)


def _is_of(run: Run, name: str, number: int | None, split: str) -> bool:
    """Whether the run measured the arm on the split, and was not chosen for what it measured: of a winner, the run
    that let it through the filter is left out."""
    words = run.words
    assert words is not None
    if words.role == "holdout":
        of_it = name != "winner" or str(key_of(run)).startswith(f"holdout-winner-{number:03d}-")
        return words.arm == name and split == "holdout" and of_it
    if words.arm == UNTRAINED:
        return name == UNTRAINED
    if name == UNTRAINED or split == "holdout":
        return False
    if words.role == "baseline":
        return name == "baseline" and words.arm is None
    if words.role != "confirm":
        return False
    return number_in(key_of(run)) == (number or 0) and words.arm in ("candidate", "incumbent")


def _estimate(
    values: Sequence[float], prompts: int | None, noise: RunNoise | None, metric: str, *, trained: bool
) -> Estimate:
    mean = statistics.fmean(values)
    runs = len(values)
    within = mean * (1 - mean) / prompts if metric in RATES and prompts and 0 <= mean <= 1 else None
    if within is None or (trained and noise is None):
        return Estimate(mean)
    between = noise.sigma**2 / runs if noise else 0.0
    total = within + between
    if total == 0 and prompts:
        return Estimate(mean, *wilson(mean, prompts))
    df = float(MANY)
    if noise and between > 0:
        df = max(1.0, total**2 / (between**2 / noise.df + within**2 / max(1, (prompts or 2) - 1)))
    half = quantile(0.975, df) * math.sqrt(total)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


# --- differences -------------------------------------------------------------------------------------------


def gains_of(state: CampaignState, winner: int) -> tuple[Gain, ...]:
    """Larger is better: baseline over untrained, winner over baseline, each on the splits where both were measured."""
    holdout = holdout_of(state, winner)
    found = [_from_comparison("baseline", UNTRAINED, "search", comparison_from(_numbers(state, 0).get("basis")))]
    found.append(_from_holdout("baseline", UNTRAINED, holdout))
    if winner:
        found += [
            _from_comparison("winner", "baseline", split, comparison)
            for split, comparison in over_baseline(state, winner).items()
        ]
        found.append(_from_holdout("winner", "baseline", holdout))
    return tuple(gain for gain in found if gain is not None)


def holdout_of(state: CampaignState, winner: int) -> Mapping[str, Any]:
    """What the holdout said of this winner; nothing where a campaign that was given more time has another by now."""
    return (state.result.get("holdout") or {}) if state.result.get("winner") == winner else {}


def holdout_seen_for(state: CampaignState) -> int | None:
    """The winner that the holdout was evaluated for at the campaign's last end; None where it was not evaluated."""
    holdout = state.result.get("holdout") or {}
    return int(state.result.get("winner") or 0) if holdout and "skipped" not in holdout else None


def over_baseline(state: CampaignState, winner: int) -> dict[str, Comparison]:
    """Of the kept idea with the baseline: as told last, with the runs that it had beside later ideas, or its own
    verdict where it changed the baseline's recipe."""
    numbers = _numbers(state, winner)
    told = {split: comparison_from(one) for split, one in _last_over_baseline(state, winner).items()}
    experiment = state.experiments.get(winner)
    changed = (experiment.planned.incumbent if experiment and experiment.planned else None) or 0
    if not changed:
        told.setdefault("search", comparison_from(numbers.get("search")))
        told.setdefault("confirm", comparison_from(numbers.get("basis")))
    return {split: found for split in HELD_OUT if (found := told.get(split)) is not None}


def _last_over_baseline(state: CampaignState, winner: int) -> Mapping[str, Any]:
    for judged in reversed(state.judged_order):
        numbers = _numbers(state, judged)
        if numbers.get("over_baseline") and numbers.get("over_baseline_of", judged) == winner:
            return dict(numbers["over_baseline"])
    return {}


def _numbers(state: CampaignState, number: int) -> Mapping[str, Any]:
    experiment = state.experiments.get(number)
    return experiment.judged.numbers if experiment and experiment.judged else {}


def _from_comparison(of: str, over: str, split: str, found: Comparison | None) -> Gain | None:
    return Gain(of, over, split, Estimate(found.delta, *found.interval), found.prompts) if found else None


def _from_holdout(of: str, over: str, holdout: Mapping[str, Any]) -> Gain | None:
    told = holdout.get(f"{of} - {over}")
    if not told:
        return None
    return Gain(of, over, "holdout", Estimate(told["delta"], told["low"], told["high"]), holdout.get("prompts"))
