"""What forbids a keep whatever the metric says, and what looks too good: flagged and measured again before it counts.

Guards compare the confirming runs of candidate and incumbent: held-out samples that are missing, cut completions,
lengths that collapse or explode, one completion for every prompt, a second metric of the recipe's. Suspicions are
about a candidate that would be kept: its checkpoint is evaluated again in a process of its own, and it is kept only
where that agrees.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.campaign.evidence import Evidence, arm_scores
from agent.campaign.lab import Health, Lab, Measured, Order
from agent.campaign.verdict import Verdict
from agent.report.words import points

TRUNCATION = 0.5
"""A candidate of which more than this share of held-out samples is cut, twice the incumbent's share, is not kept."""
LENGTH_FACTOR = 5.0
"""Mean completion length may not grow or shrink by more than this factor..."""
SHORT_ENOUGH = 4.0
"""...beyond this many tokens: an answer of three tokens may become one of one."""
DISTINCT = 0.5
"""Share of the incumbent's distinct held-out completions that has to be left."""
TOO_GOOD_SHARE = 0.8
"""A change that closes more than this share of the way to a perfect rate is looked at again..."""
TOO_GOOD_GAIN = 0.2
"""...where that is at least so much."""


def broken_guards(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> dict[str, str]:
    """Guard -> its evidence in words; empty where none is broken."""
    ours, theirs = evidence.candidate(number), evidence.standing(incumbent)
    mine, other = _health(ours), _health(theirs)
    broken: dict[str, str] = {}
    if mine and other:
        broken |= _samples(mine, other) | _truncation(mine, other) | _length(mine, other) | _distinct(mine, other)
    return broken | _second_metrics(lab, evidence, number, incumbent)


def _health(runs: Sequence[Measured]) -> list[Health]:
    found = [run.health("confirm") for run in runs]
    return [health for health in found if health is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _samples(mine: list[Health], other: list[Health]) -> dict[str, str]:
    expected = max(health.samples for health in other)
    odd = [health.samples for health in mine if health.samples != expected]
    return {"evaluation": f"{odd[0]} held-out samples instead of {expected}"} if odd else {}


def _truncation(mine: list[Health], other: list[Health]) -> dict[str, str]:
    cut, before = _mean([health.truncated for health in mine]), _mean([health.truncated for health in other])
    if cut > TRUNCATION and cut > 2 * before:
        return {"truncation": f"held-out completions that were cut: {before:.0%} -> {cut:.0%}"}
    return {}


def _length(mine: list[Health], other: list[Health]) -> dict[str, str]:
    now, before = _mean([health.tokens for health in mine]), _mean([health.tokens for health in other])
    small, large = sorted((now, before))
    if large > SHORT_ENOUGH and large > LENGTH_FACTOR * small:
        verb = "collapsed" if now < before else "exploded"
        return {"length": f"held-out completions {verb}: {before:.1f} -> {now:.1f} tokens"}
    return {}


def _distinct(mine: list[Health], other: list[Health]) -> dict[str, str]:
    known = [health.distinct for health in mine if health.distinct is not None]
    usual = [health.distinct for health in other if health.distinct is not None]
    if known and usual and _mean(known) < DISTINCT * _mean(usual):
        return {"unique": f"distinct held-out completions: {_mean(usual):.0%} -> {_mean(known):.0%}"}
    return {}


def _second_metrics(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> dict[str, str]:
    """The recipe's own guards: another metric that may not become worse by more than its margin, beyond noise."""
    broken: dict[str, str] = {}
    for guard in lab.evaluation.guards:
        found = evidence.on_confirm(number, incumbent, guard.metric)
        sign = 1 if guard.direction == "maximize" else -1
        worst = found.upper(lab.rules.filter_alpha) if sign > 0 else -found.lower(lab.rules.filter_alpha)
        if worst < -guard.margin:
            now, before = _plain(guard.metric, found.candidate), _plain(guard.metric, found.incumbent)
            broken[guard.metric] = f"{guard.metric} {before} -> {now}, worse by more than {guard.margin:g}"
    return broken


def _plain(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric == "mean_tokens" else f"{value:.1%}"


# --- too good to be kept unseen ----------------------------------------------------------------------------


def suspicions(
    lab: Lab, evidence: Evidence, number: int, incumbent: int, verdict: Verdict, *, flags: list[str]
) -> Verdict:
    """The verdict on a candidate that would be kept, after a second look where there is reason for one.

    Adds to `flags` what was looked at. The second look is an evaluation of the checkpoint that the first confirming
    run delivered: what it measures must agree with what was measured.
    """
    reasons = _odd(lab, evidence, number, incumbent)
    if not reasons:
        return verdict
    first = evidence.candidate(number)[0]
    again = lab.again(first, Order(number, "candidate", 0))
    before, after = first.scores("confirm"), again.scores("confirm") if again.ok else None
    if before is None or after is None:
        flags += [f"{reason}; it could not be evaluated again" for reason in reasons]
        return Verdict("discard", f"suspect: {flags[-1]}", verdict.basis, "suspect")
    agrees = abs(after.mean - before.mean) <= _tolerance(lab)
    words = f"evaluated again: {points(after.mean - before.mean)}"
    flags += [f"{reason}; {words}" for reason in reasons]
    if agrees and not again.faults():
        return verdict
    return Verdict("discard", f"suspect: {'; '.join(reasons)}; {words}", verdict.basis, "suspect")


def _tolerance(lab: Lab) -> float:
    """Two evaluations of the same weights meet the same prompts with the same random numbers; rounding is left."""
    return 2.0 / lab.evaluation.confirm_prompts


def _odd(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> list[str]:
    found = evidence.on_confirm(number, incumbent)
    reasons = []
    if lab.evaluation.metric != "mean_reward" and lab.evaluation.direction == "maximize":
        room = 1 - found.incumbent
        if found.delta > TOO_GOOD_GAIN and found.delta > TOO_GOOD_SHARE * room:
            reasons.append(f"a gain of {points(found.delta)} for one change is too good")
    reasons += _reward_alone(lab, evidence, number, incumbent)
    return reasons


def _reward_alone(lab: Lab, evidence: Evidence, number: int, incumbent: int) -> list[str]:
    """The metric is the reward, and it rose while no more answers pass."""
    if lab.evaluation.metric != "mean_reward":
        return []
    ours = arm_scores(evidence.candidate(number), "confirm", "pass_rate")
    theirs = arm_scores(evidence.standing(incumbent), "confirm", "pass_rate")
    passed, before = _mean([run.mean for run in ours]), _mean([run.mean for run in theirs])
    if passed > before:
        return []
    return [f"the reward rose and the share of right answers did not ({before:.1%} -> {passed:.1%})"]
