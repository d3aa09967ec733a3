"""The ideas that were judged, as the loop remembers them: what led, what leads, what waits. Told by a journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.ledger.state import CampaignState, Experiment


@dataclass(frozen=True)
class Past:
    """An idea that was judged."""

    number: int
    outcome: str
    kind: str
    delta: float | None
    """Measured difference to the incumbent of its time, larger is better."""
    p_value: float | None = None
    """One-sided, of that difference."""
    together: tuple[int, ...] = ()
    """Ideas that it put together."""
    without: int | None = None
    """The kept idea that it left out."""
    advance: bool = False
    """It put them together for others to build on, not to be confirmed."""
    of_lead: bool = False
    """It is what led, put together for its confirmation."""
    again: int | None = None
    """The screened idea that it tried whole."""
    base: int = 0
    """The experiment whose recipe it changed."""
    p_as_if_known: float | None = None
    """`p_value` if the errors were known, and not estimated from a few runs."""


MEASURED_NOTHING = ("crash", "tainted", "underpowered")
"""Kinds of outcomes that say nothing about what was tried."""


def lead_of(past: Sequence[Past], incumbent: int) -> int:
    """The experiment whose recipe the next ideas change: the incumbent where nothing leads (`lead.py`)."""
    for one in reversed(past):
        if one.kind == "lead":
            return one.number
        if _ends_leads(one):
            break
    return incumbent


def standing_leads(past: Sequence[Past]) -> set[int]:
    """Experiments that led and were not given up: what was confirmed since, and what leads now."""
    standing: set[int] = set()
    now: set[int] = set()
    for one in past:
        if one.kind == "lead":
            now.add(one.number)
        elif _ends_leads(one):
            standing |= now if one.outcome == "keep" else set()
            now = set()
    return standing | now


def promising(past: Sequence[Past]) -> list[Past]:
    """Ideas that wait to be put together. Where that measured nothing, they wait once more."""
    waiting: list[Past] = []
    in_vain: set[int] = set()
    for one in past:
        parts = {other.number for other in waiting}.intersection(one.together)
        if one.kind == "promising":
            waiting.append(one)
        elif one.advance and one.kind in MEASURED_NOTHING and not in_vain & parts:
            in_vain |= parts
        elif one.advance:
            waiting = [other for other in waiting if other.number not in one.together]
        elif _ends_leads(one):
            waiting = []
    return waiting


def best_first(ideas: Sequence[Past]) -> list[Past]:
    return sorted(ideas, key=lambda one: one.p_value or 0.0)


def _ends_leads(one: Past) -> bool:
    """What is kept contains the lead of its time; what was put together for its confirmation has contained it too."""
    measured = one.kind not in MEASURED_NOTHING
    return one.outcome == "keep" or (bool(one.together) and not one.advance and measured)


def past_of(state: CampaignState) -> list[Past]:
    """In the order in which they were judged; the baseline is not among them."""
    return [_past(experiment, _known_errors(experiment)) for experiment in _judged(state)]


def lead_now(state: CampaignState) -> int:
    """As `lead_of` says of all that was judged, but it looks back only as far as it has to."""
    incumbent = (state.incumbent.experiment if state.incumbent else None) or 0
    for experiment in reversed(_judged(state)):
        one = _past(experiment, None)
        if one.kind == "lead" or _ends_leads(one):
            return lead_of([one], incumbent)
    return incumbent


def _judged(state: CampaignState) -> list[Experiment]:
    return [state.experiments[number] for number in state.judged_order if number != 0]


def _past(experiment: Experiment, p_as_if_known: float | None) -> Past:
    numbers = experiment.judged.numbers if experiment.judged else {}
    planned = (experiment.planned.model_extra or {}) if experiment.planned else {}
    return Past(
        experiment.number,
        experiment.outcome or "",
        str(numbers.get("kind", "")),
        (numbers.get("basis") or {}).get("delta"),
        numbers.get("p_value"),
        tuple(planned.get("together") or ()),
        planned.get("without"),
        bool(planned.get("advance")),
        bool(planned.get("of_lead")),
        planned.get("again"),
        (experiment.planned.incumbent if experiment.planned else None) or 0,
        p_as_if_known,
    )


def _known_errors(experiment: Experiment) -> float | None:
    from agent.campaign.decided import comparison_from  # scipy comes with it, and who only reads does not need it

    basis = comparison_from(experiment.judged.numbers.get("basis") if experiment.judged else None)
    return basis.p_as_if_known if basis and basis.noise else None
