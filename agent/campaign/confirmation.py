"""Fresh seeds for both arms on prompts that the search never saw, more of them while the matter is open.

One seed of the candidate first: most ideas that the filter let through by luck go no further. From the second on,
each look is a test at its share of the level that the campaign's rule gives the confirmation (`levels.py`); what is
neither shown nor hopeless gets further seeds, as far as the time goes.

The incumbent's runs serve every candidate that challenges it, so its estimate becomes better as the night goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.campaign.budget import holdout_seconds
from agent.campaign.comparison import Comparison
from agent.campaign.endgame import seconds_of_the_end
from agent.campaign.evidence import Evidence
from agent.campaign.guards import broken, look_at_guards, suspicions
from agent.campaign.health import underpowered, unmeasured
from agent.campaign.lab import MEASURED_ON, Lab, Measured, Order
from agent.campaign.levels import Terms, Used, next_level
from agent.campaign.taint import at_another_speed, set_aside, tainted
from agent.campaign.verdict import Guard, Judgement, Kind, Look, Verdict, judge_confirmed, span_of
from agent.report.numbers import Numbers

MOST_LOST = 0.5
"""Share of the incumbent's metric that a simpler or cheaper recipe may lose, however large the margin is."""

SPARE_SEEDS = 2
"""Of the incumbent that may prove nothing."""
ONCE_MORE = 1
"""Seeds of a candidate whose speed may be off."""
TAINTED = "tainted: "


@dataclass(frozen=True)
class _Flaw:
    """Why a confirming run proves nothing."""

    kind: Kind
    words: str
    known: bool = False
    """It was found before, in another confirmation or session."""

    def of_incumbent(self, number: int) -> _Flaw:
        """What goes wrong in a run of the incumbent is not the candidate's doing."""
        whose = f"incumbent #{number}" if number else "the baseline"
        words = self.words.removeprefix(TAINTED)
        return replace(self, kind="tainted", words=f"{TAINTED}a run of {whose} beside it: {words}")

    def verdict(self, basis: Comparison) -> Verdict:
        if self.kind == "crash":
            return Verdict("crash", f"{self.words}, in confirmation", basis, "crash")
        return Verdict("discard", f"{self.words}, in confirmation", basis, self.kind)


def lacking_time(lab: Lab, evidence: Evidence, number: int, *, seeds: int) -> str | None:
    """Why `seeds` of each arm cannot be had any more. A confirmation may use the reserve, not the holdout's time."""
    ours, theirs = lab.cost(number), lab.cost(lab.incumbent)
    arms = [
        (Order(number, "candidate"), seeds, ours),
        (Order(lab.incumbent, "incumbent", beside=number), fresh_needed(lab, evidence, lab.incumbent, seeds), theirs),
    ]
    if lab.has_comparator(number):
        arms.append((Order(number, "comparator"), seeds, ours))
    missing = [(wanted - _had(lab, evidence, order, wanted), cost) for order, wanted, cost in arms]
    needed = sum(max(0, runs) * cost.total_s for runs, cost in missing) + holdout_seconds(ours)
    if needed <= lab.clock.left_s:
        return None
    return f"it would take {needed:.0f}s with the holdout, {max(0.0, lab.clock.left_s):.0f}s are left"


def _had(lab: Lab, evidence: Evidence, first: Order, wanted: int) -> int:
    """Runs of the arm that are there, or that an earlier session has begun: the verdict comes to these again."""
    there = len(evidence.runs(first.experiment, first.arm))
    if there >= wanted:
        return there
    # beside each that was set aside another one was begun
    indices = range(wanted + len(evidence.aside))
    return max(there, sum(lab.begun(replace(first, index=index)) for index in indices))


def affordable_seeds(lab: Lab, evidence: Evidence, number: int) -> int:
    """How many seeds of each arm the time allows, beside the holdout."""
    looks = [seeds for seeds, _ in lab.rules.looks]
    return max((seeds for seeds in looks if lacking_time(lab, evidence, number, seeds=seeds) is None), default=0)


def fresh_needed(lab: Lab, evidence: Evidence, incumbent: int, seeds: int) -> int:
    """Fresh runs of the incumbent beside `seeds` of a candidate: as many, less those that it has from its own
    confirmation, but never fewer than a confirmation asks for."""
    return max(seeds - len(evidence.candidate(incumbent)), min(seeds, lab.rules.confirm_seeds))


@dataclass
class _Way:
    """A confirmation under way."""

    number: int
    incumbent: int
    search: Measured
    on_search: Comparison
    advantage: str | None
    level: float
    """Of the whole confirmation."""
    shares: Mapping[int, float]
    """Seeds at which it looks -> share of the level."""
    looks: list[Look] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    guards: tuple[Guard, ...] = ()
    on_comparator: Comparison | None = None


def confirm(
    lab: Lab, evidence: Evidence, number: int, *, search: Measured, on_search: Comparison, advantage: str | None
) -> Judgement:
    """Carry a candidate from the filter to its verdict. Raises CutShort where the campaign ends first."""
    last = _is_last_chance(lab, number)
    level = next_level(lab.rules, lab.used_levels(), to_come=lab.confirmations_to_come(), last=last)
    terms = lab.fix(number, Terms(level, lab.rules.shares(affordable_seeds(lab, evidence, number))))
    way = _Way(number, lab.incumbent, search, on_search, advantage, terms.level, terms.shares)
    verdict = _step_by_step(lab, evidence, way)
    if verdict.outcome == "keep" and lab.has_comparator(number):
        verdict = _against_comparator(lab, evidence, way, verdict)
    return Judgement(
        verdict,
        search,
        confirming=evidence.candidate(number),
        beside=evidence.standing(way.incumbent),
        on_search=on_search,
        watches=lab.watch(number, search, probe=verdict.outcome != "crash"),
        used=Used(terms.level, kept=verdict.outcome == "keep"),
        looks=tuple(way.looks),
        flags=tuple(way.flags),
        guards=way.guards or _guards(lab, evidence, way),
        on_comparator=way.on_comparator,
    )


def _is_last_chance(lab: Lab, number: int) -> bool:
    """Whether there will be no time for a confirmation after this one: of the end, or of what has in it all that the
    end would confirm."""
    least = lab.seconds_to_confirm([number], seeds=lab.rules.confirm_seeds)
    has_all = lab.is_last(number) or (lab.planned_against(number) == lab.lead != lab.incumbent)
    return has_all and lab.clock.left_s - least < seconds_of_the_end(lab)


def _step_by_step(lab: Lab, evidence: Evidence, way: _Way) -> Verdict:
    """One seed after the other. A campaign that was killed in between goes through the same seeds again, whose runs it
    reads back, so that it comes to the same looks."""
    rules = lab.rules
    verdict: Verdict | None = None
    for seeds in range(1, max(way.shares) + 1):
        next_look = min(look for look in way.shares if look >= seeds)
        gone_on = lab.begun(Order(way.number, "candidate", seeds - 1))
        lacking = lacking_time(lab, evidence, way.number, seeds=next_look) if verdict and not gone_on else None
        if lacking and verdict:
            return Verdict("discard", f"{verdict.reason}; {lacking}", verdict.basis, "inconclusive")
        flaw = _bring(lab, evidence, way, seeds)
        if flaw:
            return flaw.verdict(way.on_search)
        found = evidence.on_confirm(way.number, way.incumbent)
        if seeds not in way.shares:
            if seeds < rules.confirm_seeds and found.p_above(_bar(lab, way, found)) > rules.hold_p:
                return _did_not_hold(lab, way, found)
            way.looks.append(_look(found, "worth another", bar=_bar(lab, way, found)))
            continue
        verdict = _test(lab, evidence, way, found)
        no_gain = found.upper(0.2) < lab.evaluation.min_effect and not way.advantage  # which need not be one
        hopeless = no_gain or found.p_above(_bar(lab, way, found)) > rules.go_on_p
        if verdict.outcome == "keep" or verdict.kind in ("guard", "suspect", "regressed") or hopeless:
            return verdict
    assert verdict is not None  # the last of these seeds is one at which it looks
    return verdict


def _bar(lab: Lab, way: _Way, found: Comparison) -> float:
    """The difference that has to be beaten: 0, or minus the margin where being no worse is enough."""
    return -_margin(lab, way, found) if way.advantage else 0.0


def _margin(lab: Lab, way: _Way, found: Comparison) -> float:
    return min(lab.margin(way.number), MOST_LOST * abs(found.incumbent))


def _look(
    found: Comparison, said: str, *, bar: float = 0.0, level: float | None = None, against: str = "incumbent"
) -> Look:
    low, high = found.interval
    return Look(
        found.seeds_candidate,
        found.seeds_incumbent,
        found.delta,
        low,
        high,
        found.p_above(bar),
        said,
        bar,
        level,
        found.lower(level) if level is not None else None,
        against,
    )


def _guards(lab: Lab, evidence: Evidence, way: _Way) -> tuple[Guard, ...]:
    """What the guards see; nothing where an arm has no run that measured anything."""
    if not evidence.candidate(way.number) or not evidence.standing(way.incumbent):
        return ()
    return look_at_guards(lab, evidence, way.number, way.incumbent)


def _did_not_hold(lab: Lab, way: _Way, found: Comparison) -> Verdict:
    way.looks.append(_look(found, "given up", bar=_bar(lab, way, found)))
    reason = f"inconclusive: did not hold on fresh prompts with a fresh seed, {span_of(found, lab.numbers)}"
    return Verdict("discard", reason, found, "inconclusive")


def _test(lab: Lab, evidence: Evidence, way: _Way, found: Comparison) -> Verdict:
    """One look, at its share of the confirmation's level."""
    level = way.shares[found.seeds_candidate] * way.level
    margin = _margin(lab, way, found)
    too_few = _alike_on_too_few(found, margin, lab.numbers) if way.advantage else None
    way.guards = _guards(lab, evidence, way)
    verdict = judge_confirmed(
        found,
        level=level,
        min_effect=lab.evaluation.min_effect,
        margin=margin,
        numbers=lab.numbers,
        advantage=None if too_few else way.advantage,
        guards=broken(way.guards),
    )
    if too_few and verdict.kind == "inconclusive":
        verdict = replace(verdict, reason=f"inconclusive: {too_few}")
    if verdict.outcome == "keep":
        verdict = suspicions(lab, evidence, way.number, way.incumbent, verdict, flags=way.flags)
    way.looks.append(_look(found, verdict.kind, bar=_bar(lab, way, found), level=level))
    return verdict


def _alike_on_too_few(found: Comparison, margin: float, numbers: Numbers) -> str | None:
    """Where no prompt differs there is no spread to go by; one prompt more might differ. In words, where that one
    would be more than the margin."""
    if found.delta or found.pair_error or 1 / found.prompts <= margin:
        return None
    allowed = numbers.size(margin)
    return f"alike on all {found.prompts} prompts, too few to show that it is not worse by more than {allowed}"


# --- runs --------------------------------------------------------------------------------------------------


def _bring(lab: Lab, evidence: Evidence, way: _Way, seeds: int) -> _Flaw | None:
    """Both arms to so many fresh seeds, by turns. Why it cannot be had, or None."""
    fresh = fresh_needed(lab, evidence, way.incumbent, seeds)
    for wanted in range(1, seeds + 1):
        flaw = _candidate(lab, evidence, way.number, wanted=wanted)
        flaw = flaw or _incumbent(lab, evidence, way, wanted=min(wanted, fresh))
        if flaw:
            return flaw
    if seeds == 1:
        _refresh(lab, evidence, way)
    return None


def _candidate(
    lab: Lab, evidence: Evidence, number: int, *, arm: Literal["candidate", "comparator"] = "candidate", wanted: int
) -> _Flaw | None:
    """So many runs of the candidate, or of its comparator. The next seed stands in for one whose speed was off, once;
    what crashes or trains too little will do so again."""
    spare = ONCE_MORE
    for index in itertools.count():
        if len(evidence.runs(number, arm)) >= wanted:
            return None
        flaw = _one(lab, evidence, Order(number, arm, index))
        spare -= flaw is not None
        if flaw and (flaw.kind != "tainted" or spare < 0 or _too_late(lab, evidence, number)):
            return flaw
    return None


def _incumbent(lab: Lab, evidence: Evidence, way: _Way, *, wanted: int) -> _Flaw | None:
    """So many fresh runs of the incumbent. A seed that proves nothing is left out, and the next stands in for it: it
    would end the confirmation of every idea that comes after."""
    spare = SPARE_SEEDS
    for index in itertools.count():
        if len(evidence.fresh_incumbent(way.incumbent)) >= wanted:
            return None
        flaw = _one(lab, evidence, Order(way.incumbent, "incumbent", index, beside=way.number))
        spare -= flaw is not None and not flaw.known
        if flaw and not flaw.known and (spare < 0 or _too_late(lab, evidence, way.number)):
            return flaw.of_incumbent(way.incumbent)
    return None


def _too_late(lab: Lab, evidence: Evidence, number: int) -> bool:
    """For a run that stands in for one that proves nothing."""
    return lacking_time(lab, evidence, number, seeds=lab.rules.confirm_seeds) is not None


def _refresh(lab: Lab, evidence: Evidence, way: _Way) -> None:
    """One more incumbent run beside ones that are old, or of a time when the machine had another speed: machines drift
    over a night. Where it proves nothing, those that there are have to do."""
    runs = evidence.fresh_incumbent(way.incumbent)
    why = _why_refresh(lab, evidence, way, runs)
    if lab.once(way.number, "a fresh run of the incumbent beside it", why is not None):
        lab.say(f"  {why or 'the incumbent was old when it began'}: a fresh run beside it")
        _incumbent(lab, evidence, way, wanted=len(runs) + 1)


def _why_refresh(lab: Lab, evidence: Evidence, way: _Way, runs: Sequence[Measured]) -> str | None:
    age = min((age for run in runs if (age := lab.age_s(run)) is not None), default=None)
    if age is not None and age > lab.rules.stale_s:
        return f"the incumbent ran last {age / 3600:.1f}h ago"
    if at_another_speed(lab, evidence, way.number, way.incumbent):
        return "the machine has another speed than when the incumbent ran"
    return None


def _one(lab: Lab, evidence: Evidence, order: Order) -> _Flaw | None:
    """A run more for the evidence, unless it proves nothing."""
    run = lab.run(order)
    if evidence.has(run, experiment=order.experiment, arm=order.arm):
        return None
    known = run.key in evidence.aside
    nothing = unmeasured(run, MEASURED_ON[order.arm][0])
    if nothing:
        set_aside(lab, evidence, run, nothing)
        return _Flaw("crash", nothing, known=known)
    weak = underpowered(lab.budget, run)
    if weak and order.arm != "incumbent":  # which is what it is, and there to be beaten
        set_aside(lab, evidence, run, weak)
        return _Flaw("underpowered", weak, known=known)
    if known:
        return _Flaw("tainted", f"{TAINTED}{evidence.aside[run.key]}", known=True)
    off = tainted(lab, evidence, order.experiment, run)
    if off:
        set_aside(lab, evidence, run, off)
        return _Flaw("tainted", f"{TAINTED}{off}")
    evidence.add(run, experiment=order.experiment, arm=order.arm)
    return None


# --- a schedule against a constant rate --------------------------------------------------------------------


def _against_comparator(lab: Lab, evidence: Evidence, way: _Way, verdict: Verdict) -> Verdict:
    """A schedule is kept only if it also beats the same recipe at a constant rate."""
    for wanted in range(1, len(evidence.candidate(way.number)) + 1):
        flaw = _candidate(lab, evidence, way.number, arm="comparator", wanted=wanted)
        if flaw:
            reason = f"inconclusive: its constant-rate comparator proves nothing ({flaw.words})"
            return Verdict("discard", reason, verdict.basis, "inconclusive")
    beside = evidence.on_comparator(way.number)
    # The pair of conditions holds the level of the weaker one: both have to be met (an intersection-union test).
    level = way.shares[beside.seeds_candidate] * way.level
    least, margin = lab.evaluation.min_effect, lab.margin(way.number)
    second = judge_confirmed(beside, level=level, min_effect=least, margin=margin, numbers=lab.numbers)
    way.looks.append(_look(beside, second.kind, level=level, against="constant rate"))
    way.on_comparator = beside
    if second.outcome == "keep":
        return verdict
    reason = f"inconclusive: not shown better than a constant rate ({second.reason})"
    return Verdict("discard", reason, verdict.basis, "inconclusive")
