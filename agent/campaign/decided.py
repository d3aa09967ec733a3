"""What the journal's words on an outcome say about how it was judged, and the rule that decided, in a sentence.

Journals of earlier versions tell less; then nothing is made up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agent.campaign.comparison import Comparison, RunNoise, quantile
from agent.ledger.journal import CampaignState, Experiment
from agent.report.numbers import Numbers

NUMBERS = frozenset(field.name for field in dataclasses.fields(Comparison)) - {"noise"}
NEEDED = frozenset(one.name for one in dataclasses.fields(Comparison) if one.default is dataclasses.MISSING)
NOISE = {field.name for field in dataclasses.fields(RunNoise)}


def measured_by(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return dict(numbers.get("measured_by") or {})


def metric_of(state: CampaignState, experiment: Experiment) -> str:
    row = experiment.judged.row if experiment.judged else {}
    return str(row.get("metric_name") or state.calibration.get("metric") or "metric")


def direction_of(numbers: Mapping[str, Any]) -> str:
    """Metrics that are to fall are compared with their sign turned."""
    turned = ((numbers.get("basis") or {}).get("candidate") or 0.0) < 0
    return str(measured_by(numbers).get("direction") or ("minimize" if turned else "maximize"))


def comparison_from(told: Mapping[str, Any] | None) -> Comparison | None:
    """As the journal holds one; None where a number of it is not known."""
    if not told:
        return None
    known = {name: value for name, value in told.items() if name in NUMBERS}
    if any(value is None for value in known.values()):
        return None
    noise = told.get("noise")
    try:
        return Comparison(**known, noise=RunNoise(**noise) if noise else None)
    except TypeError:
        return None


def bounds_from(told: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """The difference and its interval, of what `comparison_from` takes for one. A table of thousands of ideas wants no
    more, and to make a Comparison takes longer than all else of a line of it."""
    if not told or not told.keys() >= NEEDED or any(told.get(name, 0) is None for name in NUMBERS):
        return None
    noise = told.get("noise")
    if noise and (not isinstance(noise, dict) or noise.keys() != NOISE):
        return None
    delta: float = told["delta"]
    half = quantile(0.975, told["df"]) * told["standard_error"]
    return delta, delta - half, delta + half


# --- what decided ------------------------------------------------------------------------------------------


def rule_that_decided(experiment: Experiment, numbers: Mapping[str, Any], *, write: Numbers) -> str:
    """The rule that decided, in a sentence; nothing where an old journal does not tell. `write`: how the numbers of
    the campaign's metric are written."""
    kind = str(numbers.get("kind") or "")
    looks = list(numbers.get("looks") or ())
    by_kind = {
        "baseline": "the baseline is kept by definition; every idea is compared with it",
        "crash": _crash_rule(experiment, looks),
        "underpowered": "too little training to prove anything; the idea stays open",
        "tainted": "twice a speed that was off, a time limit that cut it, or runs of the incumbent beside it that "
        "failed: the machine had its part in what was measured; the idea stays open",
        "promising": "it passed the filter on the search split, and waits: there was no time to confirm it alone",
        "lead": "run once more, it measured better than what it was built on: the next ideas build on it, unconfirmed",
        "screened": _screening_rule(experiment.judged.reason if experiment.judged else ""),
    }
    if kind in by_kind:
        return by_kind[kind]
    if not looks and numbers.get("level") is not None:
        return "the time: its confirmation was begun, and no further look could be afforded"
    return _look_rule(kind, looks, numbers, write) if looks else _filter_rule(kind, experiment, numbers, write)


def _screening_rule(reason: str) -> str:
    if reason.startswith("superseded"):
        return "the incumbent that it changes was replaced before its turn; no verdict on the idea"
    if "not gone on with" in reason:
        return "the time: it came through the screening of its batch, and the rest of it could not be afforded"
    return "the screening of its batch over the first part of the budget; no verdict on the idea"


def _crash_rule(experiment: Experiment, looks: Sequence[Any]) -> str:
    fixes = len(experiment.fixes)
    after = f" after {fixes} fix{'es' if fixes > 1 else ''}" if fixes else ""
    return f"no valid metric{' in a confirming run' if looks else ''}{after}"


def _filter_rule(kind: str, experiment: Experiment, numbers: Mapping[str, Any], write: Numbers) -> str:
    if kind == "guard":
        return f"a guard on the search split: {', '.join(numbers.get('guards') or {})}; not confirmed, not built on"
    planned = (experiment.planned.model_extra or {}) if experiment.planned else {}
    if planned.get("advance"):
        return "run once more, it measured no better than what it was built on"
    search = comparison_from(numbers.get("search"))
    if search is None:
        return "given up while it ran, because it could not win any more" if kind == "regressed" else ""
    level = measured_by(numbers).get("filter_level")
    if level is None:
        return "the filter on the search split"
    bound = search.lower_as_if_known(level)
    lower, upper = write.difference(bound), write.difference(search.upper(level / 2))
    if kind == "regressed":
        return f"the filter on the search split: upper bound {upper} at level {level / 2:g} is below 0"
    reason = experiment.judged.reason if experiment.judged else ""
    if "unconfirmed" in reason or (bound > 0 and "not worth" not in reason):
        return f"it passed the filter (lower bound {lower} at level {level:g}), and there was no confirmation"
    return f"the filter on the search split: lower bound {lower} at level {level:g} is not above 0"


def _look_rule(kind: str, looks: Sequence[Any], numbers: Mapping[str, Any], write: Numbers) -> str:
    """What the last look of a confirmation decided."""
    last = looks[-1]
    name = f"look {len(looks)} of the confirmation"
    if not isinstance(last, dict):
        return f"{name}: {last}"
    name += f" ({last['seeds_candidate']}+{last['seeds_incumbent']} seeds)"
    if last.get("level") is None:
        allowed = measured_by(numbers).get("hold_p")
        above = f"is above {allowed:g}" if allowed is not None and last["p_value"] > allowed else "promises too little"
        return f"{name}: p {last['p_value']:.2f} {above}, given up before any test"
    bound, bar = write.difference(last["bound"]), write.difference(last["bar"])
    level = f"level {last['level']:.4f}"
    against = f"{name}: lower bound {bound} at {level}"
    if kind == "guard":
        return f"a guard at {name}: {', '.join(numbers.get('guards') or {})}; no gain outweighs it"
    if kind == "suspect":
        return f"a second evaluation of what looked too good at {name}"
    if last.get("against") != "incumbent":
        return f"{name}, against the same recipe at a constant rate: lower bound {bound} at {level}"
    if kind in ("simpler", "cheaper"):
        return f"{against} is above the margin {bar}: not worse, and {kind}"
    if kind == "gain":
        return f"{against} is above 0"
    if kind == "regressed":
        return f"{name}: upper bound below 0"
    if last["said"] in ("gain", "simpler", "cheaper"):
        return "the same recipe at a constant rate, which has to be beaten too, did not run"
    least = measured_by(numbers).get("min_effect") or 0.0
    if last["bound"] > 0 and last["delta"] < least:
        delta = write.difference(last["delta"])
        return f"{against} is above 0, the difference {delta} below min_effect {write.difference(least)}"
    return f"{against} is not above {bar if last['bar'] else '0'}"


def look_words(look: Any, *, write: Numbers) -> str:
    if not isinstance(look, dict):
        return str(look)
    delta, low, high = (write.difference(look[name]) for name in ("delta", "low", "high"))
    span = f"{delta} [{low}, {high}]"
    seeds = f"{look['seeds_candidate']}+{look['seeds_incumbent']} seeds"
    beside = "" if look.get("against", "incumbent") == "incumbent" else f" against a {look['against']}"
    if look.get("level") is None:
        return f"{seeds}{beside}: {span}, p {look['p_value']:.3f}, {look['said']}"
    bound, bar = write.difference(look["bound"]), write.difference(look["bar"]) if look["bar"] else "0"
    return f"{seeds}{beside}: {span}, lower bound {bound} at level {look['level']:.4f} against {bar}: {look['said']}"
