"""The ideas that were judged, as the journal tells them, in the words of the loop."""

from __future__ import annotations

from agent.campaign.decided import comparison_from
from agent.campaign.lab import Past
from agent.ledger.state import CampaignState


def past_of(state: CampaignState) -> list[Past]:
    """In the order in which they were judged; the baseline is not among them."""
    found = []
    for number in state.judged_order:
        experiment = state.experiments[number]
        if number == 0:
            continue
        numbers = experiment.judged.numbers if experiment.judged else {}
        planned = (experiment.planned.model_extra or {}) if experiment.planned else {}
        basis = comparison_from(numbers.get("basis"))
        found.append(
            Past(
                number,
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
                basis.p_as_if_known if basis and basis.noise else None,
            )
        )
    return found
