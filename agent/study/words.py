"""A study's numbers as tables and sentences that claim no more than was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.report.sheets import Sheet
from agent.report.words import percent
from agent.study.analysis import Analysis, ArmResult, Comparison
from agent.study.intervals import LEVEL, Estimate

FOOT = (
    "fall: points of held-out accuracy between the peak and the mean of the last {window} cycles; the peak is picked "
    "on one half of the prompts, the fall measured on the other, and the reverse. late fall: the peak of the mean "
    "course of the other seeds, so that going up and down is none. own fall: the peak of the same run. best: accuracy "
    "of the run's best cycle, so measured; at: the peak of the mean course; final: the last {window} cycles. Intervals "
    "are 95%, Student's t over seeds, for these {prompts} prompts."
)


def arms_sheet(analysis: Analysis) -> Sheet:
    columns: tuple[str, ...] = (
        "arm",
        "late fall [95%]",
        "own fall [95%]",
        "best",
        "at",
        "final [95%]",
        "entropy",
        "seeds",
        "failed",
    )
    rows = tuple(_arm_row(arm) for arm in analysis.arms)
    if not analysis.failed:
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return Sheet(columns, rows)


def _arm_row(arm: ArmResult) -> tuple[str, ...]:
    found = arm.measures
    entropy = found.get("entropy")
    return (
        arm.arm.label,
        _points(found.get("late_fall")),
        _points(found.get("own_fall")),
        percent(found["delivered"].mean) if "delivered" in found else "",
        "" if arm.peak is None else str(arm.peak),
        _share(found.get("final")),
        "" if entropy is None else f"{entropy.mean:.2f}",
        str(len(arm.seeds)),
        str(len(arm.failed)) if arm.failed else "",
    )


def comparisons_sheet(analysis: Analysis) -> Sheet | None:
    """None where nothing is compared yet."""
    if not analysis.comparisons:
        return None
    others = {_short(one, analysis) for one in analysis.comparisons}
    rows = tuple(_comparison_row(one, analysis, one_other=len(others) == 1) for one in analysis.comparisons)
    name = f"minus {others.pop()}" if len(others) == 1 else "difference"
    return Sheet((name, "late fall [95%]", "p", "final [95%]", "p", "best [95%]", "seeds"), rows)


def _comparison_row(one: Comparison, analysis: Analysis, *, one_other: bool) -> tuple[str, ...]:
    found = one.differences
    return (
        one.arm if one_other else f"{one.arm} - {_short(one, analysis)}",
        _points(found.get("late_fall")),
        _p(one.corrected.get("late_fall")),
        _points(found.get("final")),
        _p(one.corrected.get("final")),
        _points(found.get("delivered")),
        str(len(one.seeds)),
    )


def _short(one: Comparison, analysis: Analysis) -> str:
    """The other arm, by the level in which it differs."""
    other = next(arm.arm for arm in analysis.arms if arm.arm.label == one.against)
    return other.levels.get(analysis.study.compared or "", one.against)


def sentences(analysis: Analysis) -> list[str]:
    """What can be said, most important first."""
    study = analysis.study
    said = [_progress(analysis)]
    if not analysis.done:
        return said
    said += [*_falls(analysis), *_differences(analysis), *_rising(analysis)]
    if analysis.unknown:
        said.append(f"{analysis.unknown} runs in the file are of recipes that this study does not ask for (any more).")
    machines = {(one.get("machine"), one.get("torch")) for one in analysis.provenance}
    if len(machines) > 1:
        said.append(f"The runs are from {len(machines)} machines or versions of torch.")
    return [*said, FOOT.format(window=study.end_window, prompts=analysis.prompts)]


def _progress(analysis: Analysis) -> str:
    study = analysis.study
    if not analysis.done and not analysis.failed:
        return f"no run is finished yet, {study.size} are asked for"
    text = f"{analysis.done} of {study.size} runs of {study.cycles} cycles are there"
    if analysis.failed:
        classes = [name for arm in analysis.arms for name in arm.failed]
        counts = ", ".join(f"{classes.count(name)} {name}" for name in sorted(set(classes)))
        text += f"; {analysis.failed} failed ({counts}; --retry tries them again)"
    return f"{text}."


def _falls(analysis: Analysis) -> Iterator[str]:
    measured = [(arm, arm.measures["late_fall"]) for arm in analysis.arms if "late_fall" in arm.measures]
    fell = [(arm, found) for arm, found in measured if _is_found(arm.late_p) and found.mean > 0]
    rest = [found for arm, found in measured if not (_is_found(arm.late_p) and found.mean > 0)]
    if not measured:
        yield "No interval yet: a late fall needs two seeds of an arm."
        return
    if fell:
        told = "; ".join(f"{arm.arm.label} {_points(found)} points" for arm, found in fell)
        yield f"A late fall beyond noise (Holm over {len(measured)} arms, p below {LEVEL:g}): {told}."
        if rest:
            yield f"The other {len(rest)} arms did not fall beyond noise{_power(rest, 'a late fall')}."
    else:
        yield f"No arm fell beyond noise{_power(rest, 'a late fall')}."


def _differences(analysis: Analysis) -> Iterator[str]:
    for name, words in (("late_fall", "late fall"), ("final", "final accuracy")):
        known = [(one, one.differences[name]) for one in analysis.comparisons if name in one.differences]
        known = [(one, found) for one, found in known if found.n > 1]
        if not known:
            continue
        told = [
            f"{one.arm} against {_short(one, analysis)} {_points(found)} points"
            for one, found in known
            if _is_found(one.corrected.get(name))
        ]
        rest = [found for one, found in known if not _is_found(one.corrected.get(name))]
        if told:
            yield f"A difference of {words} beyond noise (Holm over all comparisons): {'; '.join(told)}."
        else:
            yield f"No difference of {words} beyond noise{_power(rest, 'a difference')}."


def _rising(analysis: Analysis) -> Iterator[str]:
    last = analysis.study.cycles - analysis.study.end_window
    rising = [arm.arm.label for arm in analysis.arms if arm.peak is not None and arm.peak > last]
    if rising:
        yield (
            f"Highest in the last {analysis.study.end_window} cycles, so that a fall may be yet to come: "
            f"{'; '.join(rising)}."
        )


def _power(estimates: Sequence[Estimate], what: str) -> str:
    """What would have been found, uncorrected: the range over the arms."""
    known = [found.findable for found in estimates if found.findable is not None]
    if not known:
        return ""
    low, high = (f"{100 * value:.1f}" for value in (min(known), max(known)))
    span = high if low == high else f"{low} to {high}"
    return f": with these seeds {what} above {span} points would have been found four times in five, each alone at 5%"


def _is_found(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _points(found: Estimate | None) -> str:
    """`+1.2 [-0.3,+2.7]` in percentage points."""
    if found is None:
        return ""
    if found.low is None or found.high is None or found.low == found.high:  # seeds that are alike tell of no spread
        return _signed(found.mean)
    return f"{_signed(found.mean)} [{_signed(found.low)},{_signed(found.high)}]"


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _share(found: Estimate | None) -> str:
    """`94.4% [88.5,100.0]`: what lies outside of 0 to 100% is cut off Student's interval, where no rate can be."""
    if found is None:
        return ""
    if found.low is None or found.high is None or found.low == found.high:
        return percent(found.mean)
    low, high = max(0.0, found.low), min(1.0, found.high)
    return f"{percent(found.mean)} [{100 * low:.1f},{100 * high:.1f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
