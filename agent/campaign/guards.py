"""What forbids a keep whatever the metric says, and what looks too good: flagged and measured again before it counts.

Guards compare the runs of candidate and incumbent, on search before anything is built on the candidate, and again when
it is confirmed: a metric that cannot tell them apart, held-out samples that are missing, cut completions, lengths that
collapse or explode, one completion for every prompt, a second metric of the recipe's. Suspicions are about a candidate
that would be kept: its checkpoint is evaluated again in a process of its own, and it is kept only where that agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.campaign.comparison import Comparison
from agent.campaign.direction import as_measured
from agent.campaign.evidence import Evidence, arm_scores
from agent.campaign.health import unmeasured
from agent.campaign.lab import Health, Lab, Measured, Order
from agent.campaign.verdict import Guard, Verdict
from agent.contract import Split
from agent.report.numbers import Numbers

TRUNCATION = 0.5
"""A candidate of which more than this share of held-out samples is cut, twice the incumbent's share, is not kept."""
LENGTH_FACTOR = 5.0
"""Mean completion length may not grow or shrink by more than this factor..."""
SHORT_ENOUGH = 4.0
"""...beyond this many tokens: an answer of three tokens may become one of one."""
DISTINCT = 0.5
"""Share of the incumbent's distinct held-out completions that has to be left."""
BEYOND_NOISE = 0.05
"""Level at which another metric is worse: chance that a guard without a margin stops what does not touch it."""
UNITS = {"mean_tokens": "tokens", "mean_reward": ""}
"""Of a second metric that is no share."""
TOO_GOOD_SHARE = 0.8
"""A change that closes more than this share of the way to a perfect rate is looked at again..."""
TOO_GOOD_GAIN = 0.2
"""...where that is at least so much."""


def look_at_guards(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> tuple[Guard, ...]:
    """Every guard with what it sees of the confirming runs, broken or not. Both arms need a run."""
    ours, theirs = evidence.candidate(number), evidence.standing(incumbent)
    second = {guard.metric: evidence.on_confirm(number, incumbent, guard.metric) for guard in lab.evaluation.guards}
    return (
        *_blindness(lab, evidence, number, incumbent),
        *_of_health(_health(ours, "confirm"), _health(theirs, "confirm")),
        *_second_metrics(lab, second),
    )


def look_at_guards_on_search(lab: Lab, evidence: Evidence, run: Measured, incumbent: int) -> tuple[Guard, ...]:
    """The same of a search run: what breaks one is neither confirmed nor built on. Beside the incumbent also where
    something else leads: with that it will be confirmed."""
    second = {guard.metric: evidence.on_search(run, incumbent, guard.metric) for guard in lab.evaluation.guards}
    theirs = _health(evidence.search_runs(incumbent), "search")
    return (*_of_health(_health([run], "search"), theirs), *_second_metrics(lab, second))


def broken(guards: Sequence[Guard]) -> dict[str, str]:
    """Guard -> its evidence in words; empty where none is broken."""
    return {guard.name: guard.broken for guard in guards if guard.broken}


def _health(runs: Sequence[Measured], split: Split) -> list[Health]:
    found = [run.health(split) for run in runs]
    return [health for health in found if health is not None]


def _of_health(mine: list[Health], other: list[Health]) -> list[Guard]:
    if not mine or not other:
        return []
    return [_samples(mine, other), _truncation(mine, other), _length(mine, other), *_distinct(mine, other)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _blindness(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> list[Guard]:
    """The metric has one and the same value everywhere: being no worse is no merit then. Named only where broken."""
    found = evidence.on_confirm(number, incumbent)
    if found.pair_error > 0 or found.delta:
        return []
    runs = arm_scores([*evidence.candidate(number), *evidence.standing(incumbent)], "confirm")
    if any(run.values.min() < run.values.max() for run in runs):
        return []
    metric, value = lab.evaluation.metric, as_measured(found.candidate, minimize=lab.evaluation.minimize)
    words = f"{metric} is {value:g} for every prompt of candidate and incumbent, which tells nothing of either"
    return [Guard("metric", value, value, "", "one value for every prompt of both", words)]


def _samples(mine: list[Health], other: list[Health]) -> Guard:
    expected = max(health.samples for health in other)
    odd = next((health.samples for health in mine if health.samples != expected), expected)
    words = f"{odd} held-out samples instead of {expected}" if odd != expected else ""
    return Guard("evaluation", expected, odd, "samples", "not as many as the incumbent", words)


def _truncation(mine: list[Health], other: list[Health]) -> Guard:
    cut, before = _mean([health.truncated for health in mine]), _mean([health.truncated for health in other])
    bad = cut > TRUNCATION and cut > 2 * before
    words = f"held-out completions that were cut: {before:.0%} -> {cut:.0%}" if bad else ""
    return Guard("truncation", before, cut, "%", f"above {TRUNCATION:.0%} and twice the incumbent's", words)


def _length(mine: list[Health], other: list[Health]) -> Guard:
    now, before = _mean([health.tokens for health in mine]), _mean([health.tokens for health in other])
    small, large = sorted((now, before))
    bad = large > SHORT_ENOUGH and large > LENGTH_FACTOR * small
    verb = "collapsed" if now < before else "exploded"
    words = f"held-out completions {verb}: {before:.1f} -> {now:.1f} tokens" if bad else ""
    return Guard("length", before, now, "tokens", f"{LENGTH_FACTOR:g} times longer or shorter", words)


def _distinct(mine: list[Health], other: list[Health]) -> list[Guard]:
    """None where a trainer does not tell."""
    known = [health.distinct for health in mine if health.distinct is not None]
    usual = [health.distinct for health in other if health.distinct is not None]
    if not known or not usual:
        return []
    now, before = _mean(known), _mean(usual)
    words = f"distinct held-out completions: {before:.0%} -> {now:.0%}" if now < DISTINCT * before else ""
    return [Guard("unique", before, now, "%", f"below {DISTINCT:.0%} of the incumbent's", words)]


def _second_metrics(lab: Lab, comparisons: Mapping[Any, Comparison]) -> list[Guard]:
    """The recipe's own guards: another metric that may not become worse by more than its margin, beyond noise."""
    guards = []
    for guard in lab.evaluation.guards:
        found = comparisons[guard.metric]
        sign = 1 if guard.direction == "maximize" else -1
        worst = found.upper(BEYOND_NOISE) if sign > 0 else -found.lower(BEYOND_NOISE)
        before, now = found.incumbent, found.candidate
        values = f"{_plain(guard.metric, before)} -> {_plain(guard.metric, now)}"
        bad = f"{guard.metric} {values}, worse by more than {guard.margin:g} (it is to be {guard.direction}d)"
        words = bad if worst < -guard.margin else ""
        unit = UNITS.get(guard.metric, "%")
        way = "below" if sign > 0 else "above"
        limit = f"{way} the incumbent's" + (f" by more than {guard.margin:g}" if guard.margin else "")
        guards.append(Guard(guard.metric, before, now, unit, f"{limit}, beyond noise", words))
    return guards


def _plain(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric == "mean_tokens" else Numbers(metric).value(value)


# --- too good to be kept unseen ----------------------------------------------------------------------------


def suspicions(
    lab: Lab, evidence: Evidence, number: int, incumbent: int, verdict: Verdict, *, flags: list[str]
) -> Verdict:
    """The verdict on a candidate that would be kept, after a second look where there is reason for one.

    Adds to `flags` what was looked at. The second look is an evaluation of the checkpoint that a confirming run
    delivered, the first one where it is still there: what it measures must agree with what was measured.
    """
    reasons = _odd(lab, evidence, number, incumbent)
    if not reasons:
        return verdict
    moved, why = _once_more(lab, evidence, number)
    words = f"it could not be evaluated again: {why}"
    if moved is not None:
        words = f"evaluated again: {lab.numbers.difference(moved)}"
    flags += [f"{reason}; {words}" for reason in reasons]
    if moved is not None and abs(moved) <= _tolerance(lab):
        return verdict
    return Verdict("discard", f"suspect: {'; '.join(reasons)}; {words}", verdict.basis, "suspect")


def _once_more(lab: Lab, evidence: Evidence, number: int) -> tuple[float | None, str]:
    """By how much a confirming run's metric moves when its checkpoint is evaluated again; else why none could be.

    A checkpoint that cannot be evaluated, as one that was deleted, leaves the next run's.
    """
    why = "there is no confirming run"
    for index, run in enumerate(evidence.candidate(number)):
        again = lab.again(run, Order(number, "candidate", index))
        wrong = unmeasured(again, "confirm")
        before, after = run.scores("confirm"), again.scores("confirm")
        if wrong is None and before is not None and after is not None:
            return after.mean - before.mean, ""
        why = f"{run.key}: {wrong}"
        if again.ok:
            break
    return None, why


def _tolerance(lab: Lab) -> float:
    """Two evaluations of the same weights meet the same prompts with the same random numbers; rounding is left."""
    return 2.0 / lab.evaluation.confirm_prompts


def _odd(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> list[str]:
    found = evidence.on_confirm(number, incumbent)
    reasons = []
    if lab.evaluation.metric != "mean_reward" and not lab.evaluation.minimize:
        room = 1 - found.incumbent
        if found.delta > TOO_GOOD_GAIN and found.delta > TOO_GOOD_SHARE * room:
            reasons.append(f"a gain of {lab.numbers.difference(found.delta)} for one change is too good")
    reasons += _reward_alone(lab, evidence, number, incumbent)
    return reasons


def _reward_alone(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> list[str]:
    """The metric is the reward, and it rose while no more answers pass."""
    if lab.evaluation.metric != "mean_reward" or lab.evaluation.direction != "maximize":
        return []
    ours = arm_scores(evidence.candidate(number), "confirm", "pass_rate")
    theirs = arm_scores(evidence.standing(incumbent), "confirm", "pass_rate")
    passed, before = _mean([run.mean for run in ours]), _mean([run.mean for run in theirs])
    if passed > before:
        return []
    return [f"the reward rose and the share of right answers did not ({before:.1%} -> {passed:.1%})"]
