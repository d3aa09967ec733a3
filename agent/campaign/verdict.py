"""What a comparison decides: search only filters, fresh runs confirm, everything else is discarded with its reason.

The rule is that of docs/verdicts.md. What this does not do: run anything, or look at training rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from agent.campaign.comparison import Comparison
from agent.campaign.levels import Used
from agent.report.numbers import Numbers

if TYPE_CHECKING:
    from agent.campaign.lab import Measured

Outcome = Literal["keep", "discard", "crash"]
Kind = Literal[
    "baseline", "gain", "simpler", "cheaper",
    "regressed", "inconclusive", "promising", "lead", "underpowered", "tainted", "guard", "suspect", "screened",
    "crash",
]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The outcome with its reason in words; `basis` is the comparison that the row reports."""

    outcome: Outcome
    reason: str
    basis: Comparison | None = None
    kind: Kind = "inconclusive"
    guards: dict[str, str] = field(default_factory=dict)
    """Broken guards with their evidence."""


@dataclass(frozen=True)
class Report:
    """One watch of the hypothesis, read."""

    watch: str
    text: str
    alarm: bool = False


@dataclass(frozen=True)
class Guard:
    """One guard, with what it saw, whether it held or not."""

    name: str
    incumbent: float
    candidate: float
    unit: str
    """`%` of a share, `tokens`, `samples`, or nothing."""
    limit: str
    """What breaks it, in words."""
    broken: str = ""
    """The evidence in words where it is broken."""


@dataclass(frozen=True)
class Look:
    """One step of a confirmation. Differences are larger-is-better, in units of the metric."""

    seeds_candidate: int
    seeds_incumbent: int
    delta: float
    low: float
    high: float
    p_value: float
    """One-sided, of a difference above `bar`."""
    said: str
    """What came of it, in a word or a few."""
    bar: float = 0.0
    """What the difference has to beat: 0, or minus the margin where being no worse is enough."""
    level: float | None = None
    """Where it was a test."""
    bound: float | None = None
    """Lower bound at that level."""
    against: str = "incumbent"


@dataclass
class Judgement:
    """The verdict with everything the ledger wants to know."""

    verdict: Verdict
    search: Measured
    confirming: list[Measured] = field(default_factory=list)
    """The candidate's confirming runs."""
    beside: list[Measured] = field(default_factory=list)
    """The incumbent's."""
    on_search: Comparison | None = None
    watches: list[Report] = field(default_factory=list)
    used: Used | None = None
    """The level that the confirmation was given; None where there was none."""
    looks: tuple[Look, ...] = ()
    """The confirmation step by step."""
    guards: tuple[Guard, ...] = ()
    """What the guards saw at the last look."""
    on_comparator: Comparison | None = None
    """Against the same recipe at a constant rate, where that had to be beaten too."""
    flags: tuple[str, ...] = ()
    """What looked too good or degenerate and was evaluated again."""


def passes_filter(comparison: Comparison, level: float, *, numbers: Numbers) -> tuple[bool, str]:
    """Search only filters, at a generous level: is this worth a confirmation?

    Errors are taken as if they were known: that the first nights' hours know them badly is no reason to miss an idea.
    """
    bound = comparison.lower_as_if_known(level)
    worth = bound > 0
    relation = "above" if worth else "not above"
    found, low = numbers.difference(comparison.delta), numbers.difference(bound)
    return worth, f"search {found}, lower bound at level {level:g} {low} {relation} 0"


def judge_filtered(comparison: Comparison, level: float, *, numbers: Numbers) -> Verdict:
    """An idea that the search split did not let through."""
    span = span_of(comparison, numbers)
    bound = comparison.upper(level / 2)
    if bound < 0:
        words = f"regressed: {span} on search, upper bound {numbers.difference(bound)} at level {level / 2:g}"
        return Verdict("discard", words, comparison, "regressed")
    return Verdict("discard", f"inconclusive: {span} on search, not worth a confirmation", comparison, "inconclusive")


def stopped_by(guards: Mapping[str, str], comparison: Comparison) -> Verdict:
    """By broken guards, each with its evidence."""
    return Verdict("discard", f"guard: {'; '.join(guards.values())}", comparison, "guard", dict(guards))


def span_of(comparison: Comparison, numbers: Numbers) -> str:
    """`+3.1pp [+0.9pp, +5.3pp]`, or `+0.031 [+0.009, +0.053]` of a reward."""
    delta, low, high = (numbers.difference(value) for value in (comparison.delta, *comparison.interval))
    return f"{delta} [{low}, {high}]"


def judge_confirmed(
    comparison: Comparison,
    *,
    level: float,
    min_effect: float,
    margin: float,
    numbers: Numbers,
    advantage: str | None = None,
    guards: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on confirming runs, which alone give the effect that is reported.

    `level` is what the campaign's rule gives this test. `advantage` says in words why the candidate is simpler or
    cheaper by more than that cost's noise; then non-inferiority by `margin` is enough, from the same level.
    `guards` maps a broken guard to its evidence.
    """
    lower = comparison.lower(level)
    span = (
        f"{span_of(comparison, numbers)}, confirmed on {comparison.prompts} fresh prompts "
        f"with {comparison.seeds_candidate}+{comparison.seeds_incumbent} fresh seeds"
    )
    if guards:
        return stopped_by(guards, comparison)
    if lower > 0 and comparison.delta >= min_effect:
        return Verdict("keep", f"gain {span}; level {level:.3f}", comparison, "gain")
    if advantage and lower > -margin:
        kind: Kind = "simpler" if advantage.startswith("simpler") else "cheaper"
        words = f"{advantage}, not worse by more than {numbers.size(margin)}: {span}; level {level:.3f}"
        return Verdict("keep", words, comparison, kind)
    if lower > 0:
        words = f"too small: {span}, less than min_effect {numbers.difference(min_effect)}"
        return Verdict("discard", words, comparison, "inconclusive")
    if comparison.upper(0.025) < 0:
        return Verdict("discard", f"regressed on confirmation: {span}", comparison, "regressed")
    short_of = f"lower bound {numbers.difference(lower)} at level {level:.3f} is not above 0"
    return Verdict("discard", f"inconclusive: {span}; {short_of}", comparison, "inconclusive")
