"""What the page says first, and a night's parts in the order and the words in which it shows them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from agent.report.charts import group_of
from agent.report.night import DISCARDED, Arm, Card, Crash, Estimate, Night, RuledOut, Step
from agent.report.numbers import Numbers, finite, time_of
from agent.report.words import percent
from agent.text import clean

DIFF_LINES = 200
"""Of one diff that are shown; `raft-agent show N --diff` has all."""
DIFF_WIDTH = 400
MOST_CRASHES = 200
"""That are shown one by one, the last ones."""
MOST_RULED_OUT = 500
SPLITS = ("search", "confirm", "holdout")
STATES = {"running": "running", "paused": "paused", "finished": "finished", "killed": "cut short", "new": "not started"}
COLOURS = {
    "train": 0,
    "evaluate": 1,
    "start-up": 2,
    "confirm": 3,
    "calibrate": 4,
    "holdout": 5,
    "crashed": 6,
    "idle": 7,
}
"""Of what the time went to, the same on every page."""
Tone = Literal["good", "doubt", "none", "early"]


@dataclass(frozen=True)
class Headline:
    """How the night is to be read, before its verdict is."""

    tone: Tone
    label: str
    state: str

    def says(self, verdict: str) -> bool:
        """Whether the verdict begins with the same words."""
        return verdict.lower().startswith(self.label.lower())


@dataclass(frozen=True)
class ArmRow:
    """A line of the first table: an arm's metrics, or what one arm gained over another."""

    name: str
    note: str
    is_gain: bool
    cells: tuple[tuple[str, str], ...]
    """Value and interval, by split."""


@dataclass(frozen=True)
class Slice:
    name: str
    share: float
    percent: str
    time: str
    color: int


@dataclass(frozen=True)
class IdeaRow:
    step: Step
    group: str
    has_card: bool
    order: dict[str, float]
    """What each sortable column sorts by; unknown last."""


def headline(night: Night) -> Headline:
    state = STATES.get(night.state, "")
    ideas = [step for step in night.steps if step.number]
    kept = [step for step in ideas if step.outcome == "keep"]
    if kept and all(step.kind in ("simpler", "cheaper") for step in kept):
        return Headline("good", "Simpler or cheaper, not better", state)
    if kept:
        held = [
            gain.delta for gain in night.gains if (gain.of, gain.over, gain.split) == ("winner", "baseline", "holdout")
        ]
        if held and held[-1].value <= 0:
            return Headline("doubt", "Kept, but the holdout does not show the gain", state)
        over = night.state == "finished"
        return Headline("good", "Confirmed improvement" if over else "Confirmed improvement so far", state)
    if not has_baseline(night):
        return Headline("early", "No baseline yet", state)
    if night.state == "finished":
        crashed = bool(ideas) and all(step.outcome == "crash" for step in ideas)
        return Headline(
            "none", "No confirmed improvement: every idea crashed" if crashed else "No confirmed improvement", state
        )
    return Headline("early", "No confirmed improvement so far", state)


def has_baseline(night: Night) -> bool:
    """Whether it is measured. Its step is there from the start of the campaign on."""
    return any(step.number == 0 and step.outcome != "open" for step in night.steps)


def arms(night: Night) -> tuple[tuple[str, ...], list[ArmRow]]:
    """(splits, rows). Only splits that something was measured on."""
    measured = {split for arm in night.arms for split in arm.metrics} | {gain.split for gain in night.gains}
    splits = (*(split for split in SPLITS if split in measured), *sorted(measured - set(SPLITS)))
    numbers = Numbers(night.metric)
    rows = [
        ArmRow(arm.name, _whose(arm), False, tuple(_measured(arm.metrics.get(split), numbers) for split in splits))
        for arm in night.arms
    ]
    for pair in dict.fromkeys((gain.of, gain.over) for gain in reversed(night.gains)):
        found = {gain.split: gain for gain in night.gains if (gain.of, gain.over) == pair}
        cells = tuple(_gained(found[split].delta if split in found else None, numbers) for split in splits)
        rows.append(ArmRow(f"{pair[0]} over {pair[1]}", "", True, cells))
    return splits, rows


def counts(night: Night) -> list[tuple[str, int, str]]:
    """Outcome, number, and for the discarded why; what there is none of is left out, but kept is said always."""
    known = dict(night.counts)
    why = [f"{known[kind]} {kind}" for kind in DISCARDED if known.get(kind)]
    rows = [("keep", known.get("keep", 0), ""), ("discard", known.get("discard", 0), ", ".join(why))]
    rows += [("crash", known.get("crash", 0), ""), ("open", known.get("open", 0), "")]
    return [row for row in rows if row[1] or row[0] == "keep"]


def slices(night: Night) -> list[Slice]:
    known = [(one.name, max(0.0, finite(one.seconds) or 0.0)) for one in night.time]
    total = sum(seconds for _, seconds in known)
    if total <= 0:
        return []
    return [
        Slice(
            name,
            round(100 * seconds / total, 2),
            f"{100 * seconds / total:.0f}%",
            time_of(seconds),
            COLOURS.get(name, place % 8),
        )
        for place, (name, seconds) in enumerate(known)
        if seconds > 0
    ]


def cards(night: Night) -> dict[str, list[Card]]:
    """By what they are about: keep, crash, and near (everything else)."""
    found: dict[str, list[Card]] = {"keep": [], "crash": [], "near": []}
    for card in night.cards:
        found[card.story.outcome if card.story.outcome in ("keep", "crash") else "near"].append(card)
    return found


def crashes(night: Night) -> list[tuple[Crash | None, Card | None]]:
    """What is known of each of the last crashes: its evidence, its card, or both."""
    carded = {card.story.number: card for card in cards(night)["crash"]}
    known = [(crash, carded.pop(crash.number, None)) for crash in night.crashes[-MOST_CRASHES:]]
    return [*known, *((None, card) for card in carded.values())]


def ruled_out(night: Night) -> list[RuledOut]:
    """What is ruled out most clearly comes first."""
    return sorted((one for one in night.ruled_out if finite(one.above) is not None), key=lambda one: one.above)


def ideas(night: Night, shown: Collection[int]) -> list[IdeaRow]:
    """Of those that are to be shown (`agent.report.chosen`)."""
    carded = {card.story.number for card in night.cards}
    return [
        IdeaRow(step, group_of(step), step.number in carded, dict(_order(step)))
        for step in night.steps
        if step.number and step.number in shown
    ]


def stairs(night: Night, shown: Collection[int]) -> list[Step]:
    """The steps at which the best changed: the staircase as a table."""
    return [step for step in night.steps if step.number in shown and (step.number == 0 or step.outcome == "keep")]


def outcome_class(outcome: str) -> str:
    """The name of a style; never a text of the night."""
    return outcome if outcome in ("keep", "discard", "crash", "open", "lead", "baseline") else "other"


def diff_of(diff: str) -> tuple[list[tuple[str, str]], int]:
    """(style and line, lines left out)."""
    lines = clean(diff).splitlines()
    return [(_style(line), line[:DIFF_WIDTH]) for line in lines[:DIFF_LINES]], max(0, len(lines) - DIFF_LINES)


def _style(line: str) -> str:
    if line.startswith(("+++", "---", "diff ", "index ", "new file", "deleted file")):
        return "head"
    return {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "same")


def guard_value(value: float | None, unit: str) -> str:
    """A guard's reading in its unit."""
    known = finite(value)
    if known is None:
        return ""
    return percent(known) if unit == "%" else f"{known:.1f}" if unit == "tokens" else f"{known:g}"


def _whose(arm: Arm) -> str:
    return f"#{arm.number}" if arm.number else ""


def _measured(one: Estimate | None, numbers: Numbers) -> tuple[str, str]:
    return ("", "") if one is None else (numbers.value(one.value), numbers.interval(one))


def _gained(one: Estimate | None, numbers: Numbers) -> tuple[str, str]:
    return ("", "") if one is None else (numbers.difference(one.value), numbers.span(one))


def _order(step: Step) -> Iterator[tuple[str, float]]:
    values = {"value": step.value, "delta": step.delta.value if step.delta else None, "took": step.took_s}
    for name, value in values.items():
        known = finite(value)
        if known is not None:
            yield name, round(known, 6)
