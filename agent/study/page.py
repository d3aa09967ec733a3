"""A study in a Markdown file: the block between its markers is generated, all else is the author's.

    <!-- study:NAME begin -->
    <!-- study:NAME end -->

The picture is written beside the file, as NAME.svg.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.errors import UsageError
from agent.files import write_atomic
from agent.report.curves import Curve, Measure, curves_spec
from agent.report.markdown import code, prose
from agent.report.vega import to_svg
from agent.report.words import counted
from agent.study.analysis import Analysis, ArmResult
from agent.study.definition import Study
from agent.study.words import arms_sheet, comparisons_sheet, cycles_sheets, sentences

MEASURES = (
    ("accuracy", "held-out accuracy", True),
    ("entropy", "entropy (nats a token)", False),
    ("unique_share", "unique share", True),
)


def write_page(analysis: Analysis, path: Path, *, command: str) -> list[Path]:
    """Rewrite the study's block in the file, or make the file; (what was written). Raises UsageError, OSError."""
    if path.suffix != ".md":
        raise UsageError(f"--write {path}: not a Markdown file", hint="for example --write docs/study.md")
    begin, end = (f"<!-- study:{analysis.study.name} {word} -->" for word in ("begin", "end"))
    picture = path.with_name(f"{analysis.study.name}.svg")
    block = "\n".join([begin, "", *_block(analysis, picture.name, command), end])
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {analysis.study.name}\n\n{begin}\n{end}\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UsageError(
            f"{path} has no place for this study",
            hint=f"put these two lines where its tables shall be, once:\n  {begin}\n  {end}",
        )
    before, after = text.split(begin)[0], text.split(end)[1]
    written = [path]
    if analysis.done:
        write_atomic(picture, to_svg(chart(analysis)) + "\n")
        written.append(picture)
    write_atomic(path, before + block + after)
    return written


def _block(analysis: Analysis, picture: str, command: str) -> Iterator[str]:
    study = analysis.study
    if analysis.done:
        yield f"![{prose(study.description or study.name)}]({picture})\n"
    yield arms_sheet(analysis).markdown() + "\n"
    comparisons = comparisons_sheet(analysis)
    if comparisons is not None:
        yield comparisons.markdown() + "\n"
    for sentence in sentences(analysis):
        yield f"- {prose(sentence)}"
    if analysis.done:
        yield from ("\n<details>", "<summary>Held-out accuracy by cycle, with 95% intervals</summary>\n")
        for title, sheet in cycles_sheets(analysis):
            yield from ([f"**{prose(title)}**\n"] if title else [])
            yield sheet.markdown() + "\n"
        yield "</details>"
    yield f"\n{code(command)}, {counted(analysis.done, 'run')}{_machines(analysis)}.\n"


def _machines(analysis: Analysis) -> str:
    told = []
    for one in analysis.provenance:
        versions = " ".join(f"{name} {one[name]}" for name in ("raft_agent", "torch", "transformers") if name in one)
        told.append(f"{one.get('machine', 'a machine that is not known')} ({versions})")
    return f" on {prose('; '.join(dict.fromkeys(told)))}" if told else ""


def chart(analysis: Analysis) -> dict[str, object]:
    """Accuracy, entropy and unique share by cycle: a panel of each for every combination of the other factors, a colour
    for each level of the compared one."""
    measures = [Measure(title, _curves(analysis, name), percent) for name, title, percent in MEASURES]
    known = [measure for measure in measures if any(curve.points for curve in measure.curves)]
    study = analysis.study
    seeds = {len(arm.seeds) for arm in analysis.arms if arm.seeds}
    count = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    title = f"{study.description or study.name}: mean of {count} seeds and 95% interval"
    return curves_spec(known, title=title, legend=study.compared or "arm")


def _curves(analysis: Analysis, name: str) -> Sequence[Curve]:
    return [_curve(arm, name, analysis.study) for arm in analysis.arms if arm.seeds]


def _curve(arm: ArmResult, name: str, study: Study) -> Curve:
    column, label = study.place_of(arm.arm)
    return Curve(column, label, [(point.cycle, point.mean, point.low, point.high) for point in arm.courses[name]])
