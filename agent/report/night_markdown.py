"""`report.md`: a night in Markdown that reads well as it stands in a terminal, and as GitHub shows it.

What matters most is on the first screen. Titles, reasons and evidence come from playbooks, logs and models: they are
data. `prose` and `code` let none of it become a heading, a row of a table, a link or HTML.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from agent.report.markdown import code, fenced, prose, table
from agent.report.night import DISCARDED, Estimate, Night, Shown, Step
from agent.report.words import duration, percent, points
from agent.text import one_line

SHOWN_SAMPLES = 3
LONGEST_SAMPLE = 600
LONGEST_CELL = 160
MOST_STEPS = 400
RATES = ("pass_rate", "pass_at_k")


def markdown(night: Night) -> str:
    parts = (
        _head, _numbers, _facts, _warnings, _kept, _near_misses, _crashes, _ruled_out, _next, _samples, _ideas, _limits,
        _reproduce,
    )  # fmt: skip
    sections = [list(part(night)) for part in parts]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


# --- the first screen --------------------------------------------------------------------------------------


def _head(night: Night) -> Iterator[str]:
    yield f"# {prose(night.campaign)}"
    yield ""
    yield f"**{prose(night.verdict)}**"


def _numbers(night: Night) -> Iterator[str]:
    splits = [split for split in ("search", "confirm", "holdout") if any(split in arm.metrics for arm in night.arms)]
    if not splits:
        return
    rows = []
    for arm in night.arms:
        name = arm.name if not arm.number else f"{arm.name} #{arm.number}"
        rows.append([prose(name), *(_estimate(arm.metrics.get(split), night.metric) for split in splits)])
    for name, deltas in _pairs(night).items():
        rows.append([prose(name), *(_difference(deltas.get(split), night.metric) for split in splits)])
    yield from table([prose(night.metric), *splits], rows)
    yield ""
    better = "smaller is better; a difference is signed so that larger is better" if night.minimize else ""
    yield f"95% intervals.{f' Of {prose(night.metric)} {better}.' if better else ''}"


def _pairs(night: Night) -> dict[str, dict[str, Estimate]]:
    """A row for each pair of arms: its difference by split."""
    rows: dict[str, dict[str, Estimate]] = {}
    for gain in night.gains:
        rows.setdefault(f"{gain.of} - {gain.over}", {})[gain.split] = gain.delta
    return rows


def _facts(night: Night) -> Iterator[str]:
    counts = night.counts
    said = [f"{counts.get(name, 0)} {word}" for name, word in (("keep", "kept"), ("discard", "discarded"))]
    said.append(f"{counts.get('crash', 0)} crashed")
    if counts.get("open"):
        said.append(f"{counts['open']} open")
    kinds = [f"{counts[name]} {name}" for name in DISCARDED if counts.get(name)]
    detail = f" (discarded: {', '.join(kinds)})" if kinds else ""
    yield f"- ideas: {counts.get('ideas', 0)}: {', '.join(said)}{detail}"
    yield f"- noise: {prose(night.noise.words)}"
    total = sum(one.seconds for one in night.time)
    if total > 0:
        slices = ", ".join(f"{one.name} {one.seconds / total:.0%}" for one in night.time)
        of = f" of {duration(night.budget_s)}" if night.budget_s else ""
        yield f"- time: {duration(night.consumed_s)}{of}: {slices}"
    stopped = f" ({prose(night.stopped)})" if night.stopped else ""
    yield f"- {night.state}{stopped}; {_when(night)}"
    yield f"- {', '.join(prose(word) for word in (night.recipe, night.model, night.task, night.machine) if word)}"


def _when(night: Night) -> str:
    renewed = f"as of {_moment(night.renewed_at)}"
    return f"started {_moment(night.started_at)}, {renewed}" if night.started_at is not None else renewed


def _moment(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="minutes")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _warnings(night: Night) -> Iterator[str]:
    for words in night.warnings:
        yield f"> warning: {prose(words)}"


# --- ideas -------------------------------------------------------------------------------------------------


def _kept(night: Night) -> Iterator[str]:
    kept = [step for step in night.steps if step.outcome == "keep" and step.number]
    if not kept:
        return
    yield "## Kept"
    yield ""
    whole = {part: card.story.number for card in night.cards for part in card.parts}
    for step in kept:
        commit = f" Commit {code(step.commit[:12])}." if step.commit else ""
        inside = f" Part of #{whole[step.number]}." if step.number in whole else ""
        yield f"- #{step.number} {prose(step.title)}: {prose(step.reason)}.{commit}{inside}"


def _near_misses(night: Night) -> Iterator[str]:
    if night.near_misses:
        yield "## Near-misses"
        yield ""
        rows = [
            [
                f"#{one.number}",
                cell(one.title),
                _difference(one.delta, night.metric),
                _further(one.seeds, one.seconds),
            ]
            for one in night.near_misses
        ]
        yield from table(["", "idea", "difference", "would show it"], rows)
        yield ""
        yield (
            "Seeds that would show it four times in five, were it as large as measured; what is picked because it "
            "measured well is usually smaller."
        )


def _further(seeds: int | None, seconds: float | None) -> str:
    if seeds is None:
        return "out of reach"
    took = f" ({duration(seconds)})" if seconds is not None else ""
    return f"{seeds} further seed{'s' if seeds > 1 else ''} an arm{took}"


def _crashes(night: Night) -> Iterator[str]:
    if night.crashes:
        yield "## Crashes"
        yield ""
        rows = [
            [
                f"#{one.number}",
                cell(one.title),
                cell(one.crash_class),
                cell(one.evidence),
                cell("; ".join(one.fixes)),
                cell(one.remedy),
            ]
            for one in night.crashes[:MOST_STEPS]
        ]
        yield from table(["", "idea", "class", "the line that proves it", "fixes tried", "what helps"], rows)


def _ruled_out(night: Night) -> Iterator[str]:
    if night.ruled_out:
        yield "## Ruled out"
        yield ""
        rows = [
            [f"#{one.number}", cell(one.title), _bound(one.above, night.metric)] for one in night.ruled_out[:MOST_STEPS]
        ]
        yield from table(["", "idea", "at 95%"], rows)


def _bound(above: float, metric: str) -> str:
    least = _points(abs(above), metric).lstrip("+")
    if above < 0:
        return "worse" if least == _points(0.0, metric).lstrip("+") else f"worse by at least {least}"
    return f"gains above {_points(above, metric).lstrip('+')}"


def _next(night: Night) -> Iterator[str]:
    if not night.next and not night.next_note:
        return
    yield "## Next"
    yield ""
    for place, one in enumerate(night.next, start=1):
        took = f", about {duration(one.seconds)}" if one.seconds is not None else ""
        yield f"{place}. {prose(one.subject)} ({one.score:.2f}{took}): {prose(one.why)}"
    if night.next_note:
        yield f"{'' if not night.next else chr(10)}{prose(night.next_note)}"


def _ideas(night: Night) -> Iterator[str]:
    if len(night.steps) < 2:
        return
    yield "## All ideas"
    yield ""
    shown = night.steps[-MOST_STEPS:]
    rows = [_idea(step, night) for step in shown]
    yield from table(["", "outcome", "search", "difference", "idea"], rows)
    if len(night.steps) > len(shown):
        yield ""
        yield f"{len(night.steps) - len(shown)} earlier ones: `raft-agent log`, or summary.json."


def _idea(step: Step, night: Night) -> list[str]:
    outcome = step.outcome if step.kind in ("", step.outcome) else f"{step.outcome} ({step.kind})"
    value = _value(step.value, night.metric)
    return [f"#{step.number}", cell(outcome), value, _difference(step.delta, night.metric), cell(step.title)]


def _limits(night: Night) -> Iterator[str]:
    if night.limits or night.shared_layer:
        yield "## Learned from crashes"
        yield ""
        for words in night.limits:
            yield f"- {prose(words)}"
        for words in night.shared_layer:
            yield f"- for all runs: {prose(words)}"


# --- texts of the model ------------------------------------------------------------------------------------


def _samples(night: Night) -> Iterator[str]:
    if not night.samples:
        return
    yield "## Before and after"
    yield ""
    yield prose(night.samples_of)
    for shown in night.samples[:SHOWN_SAMPLES]:
        yield ""
        yield fenced(_sample(shown), "text")


def _sample(shown: Shown) -> str:
    passed = {True: "right", False: "wrong", None: "unjudged"}
    return "\n".join(
        [
            f"prompt: {_cut(shown.prompt)}",
            f"before ({passed[shown.before_passed]}): {_cut(shown.before)}",
            f"after ({passed[shown.after_passed]}): {_cut(shown.after)}",
        ]
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SAMPLE else f"{text[:LONGEST_SAMPLE]} ..."


def _reproduce(night: Night) -> Iterator[str]:
    if night.reproduce:
        yield "## Commands"
        yield ""
        width = max(len(one_line(command)) for command, _ in night.reproduce)
        lines = [f"{one_line(command):<{width}}  # {one_line(does)}" for command, does in night.reproduce]
        yield fenced("\n".join(lines), "text")


# --- numbers -----------------------------------------------------------------------------------------------


def _value(value: float | None, metric: str) -> str:
    if value is None:
        return ""
    return percent(value) if metric in RATES else f"{value:.4g}"


def _points(value: float, metric: str) -> str:
    return points(value) if metric in RATES else f"{value:+.4g}"


def _estimate(one: Estimate | None, metric: str) -> str:
    if one is None:
        return ""
    value = _value(one.value, metric)
    if one.low is None or one.high is None:
        return value
    return f"{value} ({_value(one.low, metric)} to {_value(one.high, metric)})"


def _difference(one: Estimate | None, metric: str) -> str:
    if one is None:
        return ""
    value = _points(one.value, metric)
    if one.low is None or one.high is None:
        return value
    return f"{value} ({_points(one.low, metric)} to {_points(one.high, metric)})"


def cell(text: str) -> str:
    """Text from outside in a table, cut where it is long."""
    line = one_line(text)
    return prose(line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 4]} ...")
