"""A study's numbers as tables and sentences that claim no more than was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.report.sheets import Sheet
from agent.report.words import percent
from agent.study.analysis import Analysis, ArmResult, Comparison, Point, Unmeasured
from agent.study.intervals import LEVEL, Estimate, findable_of_many

FOOT = (
    "fall: points of held-out accuracy between the peak and the mean of the last {window} cycles; the peak is picked "
    "on one half of the prompts, the fall measured on the other, and the reverse. late fall: the peak of the mean "
    "course of the other seeds, so that going up and down is none. own fall: the peak of the same run. best: accuracy "
    "of the run's best cycle, so measured; at: the peak of the mean course; final, entropy and unique: the last "
    "{window} cycles, entropy in nats a token, unique the share of a prompt's samples that differ, both of the samples "
    "that the cycle trained on and so of the policy before it. peak at the end: "
    "half of these peaks or more are among the last {window} cycles. no spread: the same in all seeds. Intervals are "
    "95%, Student's t over seeds, for these {prompts} prompts."
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
        "unique",
        "seeds",
        "failed",
    )
    rows = tuple(_arm_row(arm) for arm in analysis.arms)
    if not analysis.failed:
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return Sheet(columns, rows)


def _arm_row(arm: ArmResult) -> tuple[str, ...]:
    found = arm.measures
    entropy, unique = found.get("entropy"), found.get("unique_share")
    return (
        arm.arm.label,
        _late_fall(found.get("late_fall"), arm.unmeasured),
        _points(found.get("own_fall")),
        percent(found["delivered"].mean) if "delivered" in found else "",
        "" if arm.peak is None else str(arm.peak),
        _share(found.get("final")),
        "" if entropy is None else f"{entropy.mean:.2f}",
        "" if unique is None else percent(unique.mean),
        str(len(arm.seeds)),
        str(len(arm.failed)) if arm.failed else "",
    )


def cycles_sheets(analysis: Analysis) -> list[tuple[str, Sheet]]:
    """Held-out accuracy after every cycle, a column an arm; a sheet, with its title, for each combination of the other
    factors, as in the picture. Arms without a run are left out."""
    groups: dict[str, list[tuple[str, ArmResult]]] = {}
    for arm in analysis.arms:
        if arm.seeds:
            title, label = analysis.study.place_of(arm.arm)
            groups.setdefault(title, []).append((label, arm))
    return [(title, _cycles_sheet(arms)) for title, arms in groups.items()]


def _cycles_sheet(arms: Sequence[tuple[str, ArmResult]]) -> Sheet:
    by_cycle: dict[int, dict[str, str]] = {}
    for label, arm in arms:
        for point in arm.courses["accuracy"]:
            by_cycle.setdefault(point.cycle, {})[label] = _share(point)
    labels = [label for label, _ in arms]
    rows = [(str(cycle), *(cells.get(label, "") for label in labels)) for cycle, cells in sorted(by_cycle.items())]
    return Sheet(("cycle", *labels), tuple(rows))


def comparisons_sheet(analysis: Analysis) -> Sheet | None:
    """None where nothing is compared yet."""
    if not analysis.comparisons:
        return None
    others = {_short(one, analysis) for one in analysis.comparisons}
    rows = tuple(_comparison_row(one, analysis, one_other=len(others) == 1) for one in analysis.comparisons)
    name = f"minus {others.pop()}" if len(others) == 1 else "difference"
    return Sheet((name, "late fall [95%]", "p", "final [95%]", "p", "best [95%]", "seeds"), rows)


def _comparison_row(one: Comparison, analysis: Analysis, *, one_other: bool) -> tuple[str, ...]:
    found, late = one.differences, one.unmeasured.get("late_fall")
    return (
        one.arm if one_other else f"{one.arm} - {_short(one, analysis)}",
        _late_fall(found.get("late_fall"), late),
        _p(one.corrected.get("late_fall")) if late is None else "",
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
    said += [*_falls(analysis), *_unmeasured(analysis), *_differences(analysis)]
    if analysis.unknown:
        said.append(f"{analysis.unknown} runs in the file are of recipes that this study does not ask for (any more).")
    machines = {tuple(map(str, map(one.get, ("machine", "torch", "threads")))) for one in analysis.provenance}
    if len(machines) > 1:
        said.append(f"The runs are from {len(machines)} machines, versions of torch or numbers of threads.")
    if analysis.of_several_versions:
        said.append(
            "Runs of versions of raft-agent whose recipes have other keys or defaults are taken together: "
            f"{'; '.join(analysis.of_several_versions)}."
        )
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
    with_runs = [arm for arm in analysis.arms if arm.seeds]
    measured = [(arm, arm.measures["late_fall"]) for arm in with_runs if arm.unmeasured is None]
    fell = [(arm, found) for arm, found in measured if _is_found(arm.late_p) and found.mean > 0]
    rest = [found for arm, found in measured if not (_is_found(arm.late_p) and found.mean > 0)]
    if all(arm.unmeasured == "one seed" for arm in with_runs):
        yield "No interval yet: a late fall needs two seeds of an arm."
        return
    tests = sum(arm.late_p is not None for arm in analysis.arms)
    partly = len(measured) < len(with_runs)
    whose = " whose late fall was measured" if partly else ""
    if fell:
        told = "; ".join(f"{arm.arm.label} {_points(found)} points" for arm, found in fell)
        yield f"A late fall beyond noise (Holm over {tests} arms, p below {LEVEL:g}): {told}."
        if rest:
            others = "The other arm" if len(rest) == 1 else f"The other {len(rest)} arms"
            yield f"{others}{whose} did not fall beyond noise{_power(rest, 'a late fall', tests)}."
    elif measured:
        none = f"None of the {len(measured)} arms" if len(measured) > 1 else "The one arm"
        fell_not = "fell" if len(measured) > 1 else "did not fall"
        subject = f"{none}{whose} {fell_not}" if partly else "No arm fell"
        yield f"{subject} beyond noise{_power(rest, 'a late fall', tests)}."
    else:
        yield "No late fall was measured."
    yield from _alone(
        [(arm.arm.label, found) for arm, found in measured if not _is_found(arm.late_p) and found.mean > 0]
    )


def _unmeasured(analysis: Analysis) -> Iterator[str]:
    """The arms of which the sentences before say nothing, and why."""
    window = analysis.study.end_window
    words: dict[Unmeasured, str] = {
        "peak at the end": f"the peak is in the last {window} cycles, so that a fall may be yet to come",
        "no spread": "the same in all seeds, so that nothing tells what would have been found",
        "one seed": "one seed",
    }
    by_reason = {why: [arm for arm in analysis.arms if arm.unmeasured == why] for why in words}
    if len(by_reason["one seed"]) == sum(bool(arm.seeds) for arm in analysis.arms):
        return
    for why, arms in by_reason.items():
        if arms:
            yield f"Late fall not measured ({words[why]}): {'; '.join(arm.arm.label for arm in arms)}."


def _alone(unfound: Sequence[tuple[str, Estimate]]) -> Iterator[str]:
    """What the correction leaves out: with many tests some of it is noise, and not all of it need be."""
    told = [f"{name} {_points(found)} (p {_p(found.p_value)})" for name, found in unfound if _is_found(found.p_value)]
    if told:
        yield f"Not beyond noise among so many, but each alone at 5%: {'; '.join(told)}."


def _differences(analysis: Analysis) -> Iterator[str]:
    tests = sum(p is not None for one in analysis.comparisons for p in one.corrected.values())
    for name, words in (("late_fall", "late fall"), ("final", "final accuracy")):
        known = [(one, one.differences[name]) for one in analysis.comparisons if name in one.differences]
        known = [(one, found) for one, found in known if found.n > 1]
        told = [
            f"{one.arm} against {_short(one, analysis)} {_points(found)} points"
            for one, found in known
            if _is_found(one.corrected.get(name))
        ]
        unfound = [
            (one, found) for one, found in known if one.was_measured(name) and not _is_found(one.corrected[name])
        ]
        rest = [found for _, found in unfound]
        if told:
            yield f"A difference of {words} beyond noise (Holm over {tests} differences): {'; '.join(told)}."
        elif rest:
            where = f" in the {len(rest)} of {len(known)} comparisons that it was measured in"
            yield (
                f"No difference of {words} beyond noise{where if len(rest) < len(known) else ''}"
                f"{_power(rest, 'a difference', tests)}."
            )
        yield from _alone([(f"{one.arm} against {_short(one, analysis)}", found) for one, found in unfound])


def _power(estimates: Sequence[Estimate], what: str, tests: int) -> str:
    """What would have been found among so many tests: the range over what was measured. No accuracy differs by more
    than 100 points."""
    known = [found for one in estimates if (found := findable_of_many(one, tests)) is not None]
    possible = [found for found in known if found < 1.0]
    among = f", corrected for {tests} tests" if tests > 1 else ""
    if not known:
        return ""
    if not possible:
        return f": with these seeds none, however large, would have been found four times in five{among}"
    low, high = (f"{100 * value:.1f}" for value in (min(possible), max(possible)))
    span = high if low == high else f"{low} to {high}"
    left = len(known) - len(possible)
    but = f" (in {left} of {len(known)} none would, however large)" if left else ""
    return f": with these seeds {what} above {span} points would have been found four times in five{among}{but}"


def _is_found(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _late_fall(found: Estimate | None, why_not: Unmeasured | None) -> str:
    return "peak at the end" if why_not == "peak at the end" else _points(found)


def _points(found: Estimate | None) -> str:
    """`+1.2 [-0.3,+2.7]` in percentage points."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return _signed(found.mean)
    if found.low == found.high:
        return f"{_signed(found.mean)}, no spread"
    return f"{_signed(found.mean)} [{_signed(found.low)},{_signed(found.high)}]"


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _share(found: Estimate | Point | None) -> str:
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
