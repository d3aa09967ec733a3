"""Ideas that measured better and could not be shown to be better, and what it would take to settle each.

How many further seeds. A comparison's error has a part of the prompts and a part of the runs (`comparison.py`):

    SE(k)^2 = pair(k)^2 + (between - within) * arms(k),    arms(k) = 1/(s_c + k) + 1/(s_i + k)
    pair(k)^2 = max(pair^2 - within * arms(0), 0) + within * arms(k)

s_c and s_i are the seeds that stand on the confirm split already: none for an idea that the filter stopped, whose
search run was chosen and proves nothing. In pair(k), arms(0) is of the seeds that were measured, on whichever split.
`within`, the luck of sampling prompt by prompt, gets smaller with each seed and is never gone. What is left of `pair`,
how much the prompts differ in what the idea does to them, stays; it is an estimate, and taken for 0 where the measured
seeds happened to differ less than their sampling makes likely. k is the smallest number for which the confirmation
finds the measured difference with 80% power, at the level that the campaign would give it: the lower bound at that
level, and the 80% bound, both with the degrees of freedom that the run noise then has (`Comparison.lower`,
`Comparison.upper`).

`pair` and `within` are of the prompts that were measured, and shrink with their number: for an idea that only the
search split has seen they are taken for as many prompts as the confirm split has.

A schedule has to beat the same recipe at a constant rate as well: where both were measured, k is the larger of the two.

It supposes that the measured difference is the true one. An idea that was looked at because it measured well is more
likely worse than that, so k is a least number.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from agent.campaign.comparison import SMALLEST_ERROR, Comparison
from agent.campaign.decided import comparison_from, measured_by
from agent.campaign.headline import span
from agent.campaign.levels import Used, left, next_level
from agent.campaign.night_recipe import measuring_of
from agent.campaign.past import MEASURED_NOTHING
from agent.campaign.rules import Rules
from agent.ledger.state import CampaignState, Experiment
from agent.recipe.change import LR_SCHEDULE
from agent.report.night import Estimate, NearMiss
from agent.report.numbers import Numbers
from agent.report.words import duration

KINDS = ("inconclusive", "promising", "lead")
MOST_SEEDS = 20
"""Further seeds of each arm beyond which nobody would buy them."""
POWER = 0.8
MOST_SHOWN = 12


def near_misses_of(state: CampaignState, *, rules: Rules | None = None) -> tuple[NearMiss, ...]:
    """Those most likely to be better first. Of what was measured once more since, that measurement speaks. What seems
    too small for a confirmation, and would stay so with any number of seeds that somebody would buy, is ruled out
    instead; what is smaller than the recipe's `min_effect` would not be kept however sure it was."""
    rules = rules or Rules()
    level = level_of_another(state, rules)
    told_since = _in_what_was_kept(state) | _measured_again(state)
    unlikely = max(rules.together_p, default=0.0)
    too_small = state.calibration.get("smallest_detectable") or 0.0
    found: list[tuple[float, int, Comparison]] = []
    for number, experiment in state.experiments.items():
        if number == 0 or number in told_since or not _is_near(experiment) or not _may_be_better(experiment, unlikely):
            continue
        basis = _basis(experiment)
        if basis is None or basis.delta <= 0 or basis.delta < _least_gain(experiment):
            continue
        if (p_value := _p_value(experiment, basis)) < unlikely:
            found.append((p_value, number, basis))
    found.sort(key=lambda one: one[:2])
    measuring = measuring_of(state)
    prompts, numbers = measuring.prompts.get("confirm"), Numbers(measuring.metric)
    usual = _median([seconds for one in state.experiments.values() for seconds in _whole(one)])
    all_ = (_near_miss(state, number, basis, level, rules, usual, prompts, numbers) for _, number, basis in found)
    near = (one for one in all_ if one.seeds is not None or (one.delta.high or 0.0) > too_small)
    return tuple(itertools.islice(near, MOST_SHOWN))


def _may_be_better(experiment: Experiment, unlikely: float) -> bool:
    """What the journal's own words rule out costs no more: of thousands of ideas most are none."""
    numbers = experiment.judged.numbers if experiment.judged else {}
    delta, p_value = (numbers.get("basis") or {}).get("delta"), numbers.get("p_value")
    return not (isinstance(delta, int | float) and delta <= 0) and not (
        isinstance(p_value, int | float) and p_value >= unlikely
    )


def _p_value(experiment: Experiment, basis: Comparison) -> float:
    """As the verdict had it; worked out again only for journals that do not tell it."""
    told = experiment.judged.numbers.get("p_value") if experiment.judged else None
    return float(told) if isinstance(told, int | float) else basis.p_value


def level_of_another(state: CampaignState, rules: Rules) -> float:
    """Of a confirmation, were the campaign given time for one more."""
    used = []
    for number in state.judged_order:
        judged = state.experiments[number].judged
        level = judged.numbers.get("level") if judged else None
        if judged is not None and level is not None:
            used.append(Used(float(level), judged.outcome == "keep"))
    if left(rules, used) <= 0:
        return rules.alpha * rules.least_share
    return next_level(rules, used, to_come=float(len(rules.together_p)))


def further_seeds(
    found: Comparison,
    *,
    level: float,
    standing: tuple[int, int] = (0, 0),
    prompts: int | None = None,
    least: int = 1,
    most: int = MOST_SEEDS,
) -> int | None:
    """Further seeds of each arm after which the measured difference would probably be shown; None where more than
    `most` would be needed, or the run noise is not known. `standing`: seeds of candidate and incumbent that count
    already. `prompts`: how many the further seeds answer, where not as many as were measured."""
    if found.noise is None or found.delta <= 0:
        return None
    if prompts is not None:
        found = _with_prompts(found, prompts)
    more = bisect.bisect_left(
        range(least, most + 1), True, key=lambda more: _is_enough(found, level, standing[0] + more, standing[1] + more)
    )
    return least + more if least + more <= most else None


def _is_enough(found: Comparison, level: float, ours: int, theirs: int) -> bool:
    """Whether a confirmation with so many seeds finds the measured difference."""
    then = _with_seeds(found, ours, theirs)
    reach = then.delta - then.lower(level)
    # without any error no difference is known, however many the seeds
    return reach > 0 and reach + (then.upper(1 - POWER) - then.delta) <= found.delta


def _with_prompts(found: Comparison, prompts: int) -> Comparison:
    """The same difference on another number of prompts of the same kind; the runs themselves differ as before."""
    assert found.noise is not None
    share, noise = found.prompts / prompts, found.noise
    within = noise.within * share
    return dataclasses.replace(
        found,
        prompts=prompts,
        pair_error=found.pair_error * math.sqrt(share),
        noise=dataclasses.replace(noise, between=noise.between - noise.within + within, within=within),
    )


def _with_seeds(found: Comparison, ours: int, theirs: int) -> Comparison:
    """The same difference, as known as it would be with so many seeds."""
    assert found.noise is not None
    noise = found.noise
    arms, measured = 1 / ours + 1 / theirs, 1 / found.seeds_candidate + 1 / found.seeds_incumbent
    of_prompts = max(found.pair_error**2 - noise.within * measured, 0.0)
    pair = math.sqrt(of_prompts + noise.within * arms)
    run = math.sqrt(max(0.0, noise.between - noise.within) * arms)
    more = max(0, ours + theirs - found.seeds_candidate - found.seeds_incumbent)
    return dataclasses.replace(
        found,
        seeds_candidate=ours,
        seeds_incumbent=theirs,
        pair_error=pair,
        run_error=run,
        standard_error=max(math.hypot(pair, run), SMALLEST_ERROR),
        noise=dataclasses.replace(noise, df=noise.df + more),
    )


# --- which, and in words -----------------------------------------------------------------------------------


def _is_near(experiment: Experiment) -> bool:
    judged = experiment.judged
    planned = (experiment.planned.model_extra or {}) if experiment.planned else {}
    if judged is None or judged.outcome != "discard" or planned.get("without") is not None:
        return False
    return str(judged.numbers.get("kind")) in KINDS


def _basis(experiment: Experiment) -> Comparison | None:
    return comparison_from(experiment.judged.numbers.get("basis")) if experiment.judged else None


def _least_gain(experiment: Experiment) -> float:
    return float(measured_by(experiment.judged.numbers).get("min_effect") or 0.0) if experiment.judged else 0.0


def _in_what_was_kept(state: CampaignState) -> set[int]:
    """Ideas that are in a kept recipe, because it put them together or was built on them."""
    return _inside(state, (number for number, one in state.experiments.items() if one.outcome == "keep"))


def _inside(state: CampaignState, numbers: Iterable[int], *, bases: bool = True, kept: bool = True) -> set[int]:
    """These ideas and what they put together, with all that is in that. `bases`: also what each was built on. `kept`:
    also what was kept."""
    found: set[int] = set()
    waiting = list(numbers)
    while waiting:
        number = waiting.pop()
        experiment = state.experiments.get(number)
        if experiment is None or number in found or (not kept and experiment.outcome == "keep"):
            continue
        found.add(number)
        if planned := experiment.planned:
            waiting += (planned.model_extra or {}).get("together") or ()
            waiting += [planned.incumbent] if bases and planned.incumbent else []
    return found


def _measured_again(state: CampaignState) -> set[int]:
    """Ideas that a later experiment measured once more, which says more than the run that they were looked at for: the
    same recipe, or one that has the idea alone in it beside what it changes. That one is a near-miss itself, or the
    idea is none. What ran again with others only where all of them together were no better."""
    again: set[int] = set()
    by_recipe: dict[str, list[int]] = {}
    for number in state.judged_order:
        experiment = state.experiments[number]
        known = (experiment.planned.model_extra or {}) if experiment.planned else {}
        numbers = experiment.judged.numbers if experiment.judged else {}
        kind, delta = numbers.get("kind"), (numbers.get("basis") or {}).get("delta")
        same = by_recipe.setdefault(experiment.recipe_signature or f"#{number}", [])
        # what was left out of a winner is compared with the winner
        if kind not in (*MEASURED_NOTHING, "screened") and known.get("without") is None:
            base = experiment.planned.incumbent if experiment.planned else None
            parts = {part for part in known.get("together") or () if part != base}
            again.update(same)
            if kind == "regressed" or (delta is not None and delta <= 0):
                again |= _inside(state, parts, bases=False)
            elif len(parts) == 1:
                again |= parts
        same.append(number)
    return again


def _near_miss(
    state: CampaignState,
    number: int,
    basis: Comparison,
    level: float,
    rules: Rules,
    usual_s: float | None,
    prompts: int | None,
    numbers: Numbers,
) -> NearMiss:
    """`usual_s`: seconds of a run, for an idea without a whole one of its own. `prompts`: of the confirm split."""
    experiment = state.experiments[number]
    judged, planned = experiment.judged, experiment.planned
    assert judged is not None
    confirmed = bool((judged.numbers.get("runs") or {}).get("candidate"))
    standing = (basis.seeds_candidate, basis.seeds_incumbent) if confirmed else (0, 0)
    seeds = further_seeds(
        basis,
        level=level,
        standing=standing,
        prompts=None if confirmed else prompts,
        least=1 if confirmed else rules.confirm_seeds,
    )
    constant = comparison_from(judged.numbers.get("comparator"))
    if constant is not None:
        beside = further_seeds(constant, level=level, standing=(constant.seeds_candidate, constant.seeds_incumbent))
        seeds = max(seeds, beside) if seeds and beside else None
    a_run = _median(_whole(experiment)) or usual_s
    arms = 3 if _has_a_third_arm(state, number) else 2
    seconds = arms * seeds * a_run if seeds and a_run is not None else None
    return NearMiss(
        number=number,
        title=planned.subject if planned else "",
        delta=Estimate(basis.delta, *basis.interval),
        seeds=seeds,
        seconds=seconds,
        words=_words(basis, constant, seeds, seconds, numbers, confirmed=confirmed),
    )


def _has_a_third_arm(state: CampaignState, number: int) -> bool:
    """Whether a confirmation would run it at a constant rate too (`announce.py`). What leads, or is built on a lead, is
    confirmed with all that the lead has."""
    planned = state.experiments[number].planned
    if planned is not None and (planned.model_extra or {}).get("comparator"):
        return True
    inside = _inside(state, [number], kept=False)
    if len(inside) == 1:
        return False
    keys = {key for part in inside if (one := state.experiments[part].planned) for key in one.changes}
    scheduled = {key for key in keys if key.startswith(LR_SCHEDULE)}
    # a schedule alone runs beside the incumbent, which is the same recipe at a constant rate
    return bool(scheduled) and scheduled != keys


def _words(
    basis: Comparison,
    constant: Comparison | None,
    seeds: int | None,
    seconds: float | None,
    numbers: Numbers,
    *,
    confirmed: bool,
) -> str:
    where = "confirm" if confirmed else "search"
    known = f"{_span(basis, numbers)} on {where}, unconfirmed"
    if constant is not None:
        known += f"; over the same at a constant rate {_span(constant, numbers)}"
        if constant.delta <= 0:
            return f"{known}: no number of seeds would keep the schedule"
    if basis.noise is None:
        return f"{known}; the run noise is not known, so neither is what would settle it"
    if seeds is None:
        return f"{known}; more than {MOST_SEEDS} further seeds of each arm would be needed: more held-out prompts help"
    took = f", about {duration(seconds)}" if seconds is not None else ""
    return (
        f"{known}; if it is as large as measured, about {seeds} further seed{'s' if seeds > 1 else ''} of each arm "
        f"would show it four times in five{took}"
    )


def _span(found: Comparison, numbers: Numbers) -> str:
    low, high = found.interval
    return span({"delta": found.delta, "low": low, "high": high}, numbers)


def _whole(experiment: Experiment) -> list[float]:
    return [
        run.finished.elapsed_s
        for run in experiment.runs
        if run.finished and run.finished.summary and run.finished.elapsed_s
        and run.words and run.words.arm not in ("probe", "untrained", "again")
        and not run.finished.summary.get("stopped") and run.finished.summary.get("ended_by") != "evaluated"
    ]  # fmt: skip


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
