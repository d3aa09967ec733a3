"""One idea from its commit to its outcome. Every step looks first whether it is done already.

planned -> committed -> trained (repaired where it broke) -> filtered on search -> confirmed -> judged
"""

from __future__ import annotations

from dataclasses import replace

from agent.campaign.budget import holdout_seconds
from agent.campaign.comparison import Comparison
from agent.campaign.confirmation import ONCE_MORE, confirm, lacking_time
from agent.campaign.endgame import crowds_out, fits, near_misses_wait
from agent.campaign.evidence import Evidence
from agent.campaign.guards import broken, look_at_guards_on_search
from agent.campaign.health import underpowered, unmeasured
from agent.campaign.lab import Lab, Measured, Order
from agent.campaign.lead import judge_advance
from agent.campaign.levels import Used
from agent.campaign.scores import FEWEST_PROMPTS
from agent.campaign.taint import tainted
from agent.campaign.verdict import Judgement, Kind, Verdict, judge_filtered, passes_filter, stopped_by

COSTS = {"peak_memory_gb": "GB peak memory", "train_s": "s of training"}
"""Fields of a summary by which a recipe may be cheaper -> their unit, in words."""
FEW_IDEAS = 3
"""With fewer waiting, a promising idea has no company to wait for."""


def attempt(lab: Lab, evidence: Evidence, number: int) -> Judgement:
    """Carry an experiment to its verdict. Raises CutShort where the campaign ends first."""
    lab.commit(number)
    order = Order(number, "search")
    search = lab.run(order)
    taint = tainted(lab, evidence, number, search)
    if taint:
        lab.say(f"  {taint}: once more")
        search = lab.run(Order(number, "search", 1))
        taint = tainted(lab, evidence, number, search)
    if search.gave_up and taint:
        return Judgement(Verdict("discard", f"tainted: {taint}", None, "tainted"), search)
    if search.gave_up:
        verdict = Verdict(
            "discard",
            f"regressed: {search.gave_up}",
            _so_far(evidence, lab.planned_against(number), search),
            "regressed",
        )
        return Judgement(verdict, search)
    nothing = unmeasured(search, "search")
    if nothing:
        return Judgement(Verdict("crash", nothing, None, "crash"), search)
    evidence.add(search, experiment=number, arm="search")
    weak = underpowered(lab.budget, search)
    if taint or weak:
        verdict = Verdict("discard", weak or f"tainted: {taint}", None, "underpowered" if weak else "tainted")
        return Judgement(verdict, search, watches=lab.watch(number, search, probe=False))
    return _with_what_it_used(lab, number, _weigh(lab, evidence, number, search))


def _with_what_it_used(lab: Lab, number: int, judgement: Judgement) -> Judgement:
    """A confirmation that an earlier session has begun has used its level, also where this one ends without it: with
    more time the next one would have the same level again."""
    begun = lab.fixed(number) if judgement.used is None else None
    return replace(judgement, used=Used(begun.level, kept=False)) if begun else judgement


def _so_far(evidence: Evidence, base: int, run: Measured) -> Comparison | None:
    """What was measured on the search split before the run was given up."""
    scores = run.scores("search")
    return evidence.on_search(run, base) if scores is not None and len(scores.ids) >= FEWEST_PROMPTS else None


# --- search, then confirmation -----------------------------------------------------------------------------


def _weigh(lab: Lab, evidence: Evidence, number: int, search: Measured) -> Judgement:
    rules = lab.rules
    base = lab.planned_against(number)
    on_search = evidence.on_search(search, base)
    guards = look_at_guards_on_search(lab, evidence, search, lab.incumbent)
    if lab.is_advance(number):
        verdict = judge_advance(on_search, broken(guards), numbers=lab.numbers)
        return Judgement(verdict, search, on_search=on_search, guards=guards)
    # One that an earlier session has begun was found worth its time then, and goes on as far as the time goes.
    begun = any(lab.begun(Order(number, "candidate", index)) for index in range(1 + ONCE_MORE))
    together = None if begun else _better_together(lab, number)
    level = rules.lead_alpha if together else rules.filter_alpha
    worth, words = passes_filter(on_search, level, numbers=lab.numbers)
    lab.say(f"  {words}")
    advantage = _advantage(lab, evidence, number, search) if base == lab.incumbent else None
    if not worth and not (advantage and on_search.lower(rules.filter_alpha) > -lab.margin(number)):
        verdict = judge_filtered(on_search, rules.filter_alpha, numbers=lab.numbers)
        watches = lab.watch(number, search, probe=False)
        return Judgement(verdict, search, on_search=on_search, watches=watches)
    if broken(guards):
        verdict, watches = stopped_by(broken(guards), on_search), lab.watch(number, search, probe=False)
        return Judgement(verdict, search, on_search=on_search, watches=watches, guards=guards)
    lacking = lacking_time(lab, evidence, number, seeds=rules.confirm_seeds)
    if not lacking and not together and not begun and crowds_out(lab, number):
        lacking = "what waits for the end would have no time left"
    together = together if worth and not lacking else None
    if lacking or together:
        delta = lab.numbers.difference(on_search.delta)
        kind: Kind = "promising" if together else "inconclusive"
        verdict = Verdict("discard", f"{kind}: {delta} on search, unconfirmed: {lacking or together}", on_search, kind)
        return Judgement(verdict, search, on_search=on_search)
    return confirm(lab, evidence, number, search=search, on_search=on_search, advantage=advantage)


def _better_together(lab: Lab, number: int) -> str | None:
    """Late in a night, or in a short one, what is promising is confirmed as one recipe (`endgame.py`), and built on
    until then (`lead.py`)."""
    cost = lab.cost(number)
    runs = (lab.clock.left_s - holdout_seconds(cost)) / cost.total_s
    if lab.is_last(number) or runs >= lab.rules.alone_runs:
        return None
    company = lab.waiting() >= FEW_IDEAS or near_misses_wait(lab) or lab.lead != lab.incumbent
    if lab.max_experiments is not None or not company:
        return None
    if not fits(lab, number):
        return None  # now or never
    return f"time for {max(0.0, runs):.0f} more runs is left, too little to confirm ideas one by one"


def _advantage(lab: Lab, evidence: Evidence, number: int, search: Measured) -> str | None:
    """Why the candidate would be preferred at equal quality: simpler, or cheaper beyond the cost's own noise."""
    fewer = lab.simpler(number)
    if fewer:
        return f"simpler: {fewer}"
    return _cheaper(search, evidence.search_runs(lab.incumbent))


def _cheaper(search: Measured, incumbent_runs: list[Measured]) -> str | None:
    """Less memory, or (where the budget does not fix it) less time, beyond 10% and the spread of the runs."""
    for name, unit in COSTS.items():
        ours = getattr(search.summary, name, None)
        # One that was killed and went on has warmed up twice: it took longer than its recipe takes.
        whole = [run for run in incumbent_runs if name != "train_s" or getattr(run.summary, "starts", 1) == 1]
        known = [value for run in whole if (value := getattr(run.summary, name, None)) is not None]
        if ours is None or not known:
            continue
        low, mean = min(known), sum(known) / len(known)
        spread = max(known) - low
        if ours < 0.9 * mean and ours < low - spread:
            return f"cheaper: {mean:.2f} -> {ours:.2f} {unit}"
    return None
