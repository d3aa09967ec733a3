"""The search: baseline, then ideas until a stop rule is met, each carried to its outcome. The same in every lab."""

from __future__ import annotations

from agent.campaign.calibration import Calibration, calibrate
from agent.campaign.direction import as_measured
from agent.campaign.endgame import confirm_lead, last_chance, last_experiment
from agent.campaign.evidence import Evidence
from agent.campaign.experiment import attempt
from agent.campaign.lab import CutShort, Lab
from agent.campaign.lead import to_advance
from agent.campaign.screening import (
    not_gone_on,
    rank_batch,
    screen_batch,
    second_chance,
    seconds_to_go_on,
    worth_screening,
)
from agent.campaign.settings import target_met
from agent.campaign.verdict import Judgement, Verdict
from agent.report.words import duration

CRASHES_IN_A_ROW = 4
"""After this many crashed ideas in a row something is wrong with the machine, not with the ideas."""
NEXT_NEEDS = "the next idea would need"
"""How the words begin for an end by lack of time."""
EXHAUSTED = "the playbook is exhausted"
"""How they begin for an end by lack of ideas."""


def spend_the_night(lab: Lab, evidence: Evidence) -> str:
    """Baseline, then ideas until a stop rule is met: the rule in words. Raises CutShort."""
    lab.conclude(0, baseline_judgement(calibrate(lab, evidence), lab))
    return search(lab, evidence)


def baseline_judgement(calibration: Calibration, lab: Lab) -> Judgement:
    """The baseline's row: number 0, kept by definition; its reference is the untrained model."""
    runs = list(calibration.runs)
    known = [scores.mean for run in runs if (scores := run.scores("search")) is not None]
    spread = ", ".join(lab.numbers.value(as_measured(mean, minimize=lab.evaluation.minimize)) for mean in known)
    words = f"baseline: {len(runs)} seeds at {spread}; beside it the untrained model"
    return Judgement(Verdict("keep", words, calibration.gain, "baseline"), runs[0], confirming=runs)


def search(lab: Lab, evidence: Evidence) -> str:
    """Try ideas until a stop rule is met; returns the rule in words."""
    for batch in lab.open_batches():
        rank_batch(lab, evidence, batch)
    while True:
        number = lab.open_experiment()
        if number is None or lab.paused(number):
            _pause_between_ideas(lab)
        reason = why_stop(lab)
        if number is not None and lab.paused(number) and (why := reason or _cannot_go_on(lab, number)):
            lab.conclude(number, not_gone_on(lab, evidence, number, why))
            continue
        if number is None:
            if reason is not None:
                # whatever broke what came after it, or was asked for since, the lead has run
                number = None if _target_reached(lab) else confirm_lead(lab)
                if number is None:
                    return reason
                continue
            size = 0 if lab.asked_for() or to_advance(lab) else worth_screening(lab, evidence)
            if size:
                screen_batch(lab, evidence, size)
                continue
            number, reason = _next(lab)
            if number is None:
                return reason
        if lab.planned_against(number) != (lab.incumbent if lab.is_last(number) else lab.lead):
            lab.conclude(number, _superseded(lab, evidence, number))
            continue
        lab.say(f"idea {lab.title(number)}")
        judgement = attempt(lab, evidence, number)
        lab.conclude(number, judgement)
        _report(lab, number, judgement)


def _pause_between_ideas(lab: Lab) -> None:
    """Raises CutShort where a person has asked for it."""
    asked = lab.wish_to_pause()
    if asked:
        raise CutShort(asked)


def _superseded(lab: Lab, evidence: Evidence, number: int) -> Judgement:
    """An idea that was screened beside one that has been kept since: it would be compared with a recipe that it does
    not contain. It is open again, on the new incumbent."""
    before, now = lab.planned_against(number), lab.lead
    words = f"superseded: planned as a change of #{before}, which #{now} has replaced; it is open again"
    return Judgement(Verdict("discard", words, None, "screened"), lab.screen(number))


def _cannot_go_on(lab: Lab, number: int) -> str | None:
    needed = seconds_to_go_on(lab, number)
    if last_chance(lab, needed):
        return "the time is kept for confirming together what was promising so far"
    return out_of_time(lab, needed)


def _next(lab: Lab) -> tuple[int | None, str]:
    """The next idea, or what was promising put together; where there is no idea, or no time for one, the experiments
    of the end."""
    ready = [] if lab.asked_for() else to_advance(lab)
    if ready:
        number = lab.plan_together(ready, advance=True)
        if number is not None:
            return number, ""
    needed = lab.cost(lab.lead).total_s
    reason = out_of_time(lab, needed)
    number = last_experiment(lab) if reason is None and last_chance(lab, needed) else None
    if number is None and reason is None:
        number, reason = lab.next_idea()
        if number is None and lab.max_experiments is None:
            number = confirm_lead(lab) or second_chance(lab)
    if number is None:
        number = last_experiment(lab)
    return number, reason or ""


def why_stop(lab: Lab) -> str | None:
    """The stop rule that is met, in words, or None."""
    asked = lab.stop_request()
    if asked:
        raise CutShort(asked)
    wish = lab.wish_to_stop()
    if wish:
        return wish
    judged = lab.outcomes()
    if lab.max_experiments is not None and len(judged) >= lab.max_experiments:
        return reached("max-experiments", lab.max_experiments)
    if _target_reached(lab):
        return reached("target", lab.target)
    if crashed_in_a_row(lab):
        return f"{CRASHES_IN_A_ROW} ideas in a row crashed: something is wrong with the machine or the recipe"
    return None


def reached(option: str, value: object) -> str:
    """In words: an end by a limit of the user's."""
    return f"--{option} {value} reached"


def crashed_in_a_row(lab: Lab) -> bool:
    last = [outcome for _, outcome in lab.outcomes()[-CRASHES_IN_A_ROW:]]
    return len(last) >= CRASHES_IN_A_ROW and set(last) == {"crash"}


def out_of_time(lab: Lab, needed: float) -> str | None:
    """Why no further idea that takes so many seconds may start, or None."""
    reserve = lab.reserve_s
    if not lab.clock.affords(needed, reserve_s=reserve):
        return (
            f"{NEXT_NEEDS} {duration(needed)} and {duration(reserve)} are held back, "
            f"{duration(lab.clock.left_s)} are left"
        )
    return None


def _target_reached(lab: Lab) -> bool:
    return lab.target is not None and target_met(lab.target, lab.best_metric(), metric=lab.evaluation.metric)


def _report(lab: Lab, number: int, judgement: Judgement) -> None:
    """After each idea: the outcome, and in words whether a stop rule is met and what remains."""
    lab.say(f"{judgement.verdict.outcome} #{number}: {judgement.verdict.reason}")
    try:
        reason = why_stop(lab) or out_of_time(lab, lab.cost(lab.lead).total_s)
    except CutShort as cut:
        reason = cut.reason
    rest = f"stop rule met: {reason}" if reason else f"no stop rule is met, {duration(lab.clock.left_s)} left"
    lab.say(f"  {rest}")
