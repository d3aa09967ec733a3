"""One verdict with everything that it rests on, on one screen: what was run, what was compared, which rule decided.

It lays out what it is given (`agent.campaign.story` gathers it) and decides nothing. A difference is signed so that
larger is better, as in the reasons of the verdicts; a metric is in its own direction.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.contract import HELD_OUT
from agent.report.numbers import Numbers
from agent.report.screen import STYLES
from agent.report.story import Paired, PromptLine, Story
from agent.report.words import duration, percent
from agent.text import clean, one_line

LABEL = 11
"""Columns of the label on the left."""
DIFF_LINES = 30
"""Of the diff that are shown without being asked for more."""
PROMPTS_SHOWN = 20
LONGEST = 4
"""Lines that a piece of prose gets at most; `--json` has all of it."""


def screen(story: Story, *, width: int) -> Group:
    """The evidence, `width` columns wide."""
    sections = (_head, _why, _runs, _paired, _confirmation, _guards, _rest)
    parts: list[RenderableType] = []
    for section in sections:
        lines = list(section(story, width))
        parts += [*([Text("")] if parts and lines else []), *lines]
    return Group(*parts)


# --- parts -------------------------------------------------------------------------------------------------


def _head(story: Story, width: int) -> Iterator[Text]:
    yield from _prose("", f"#{story.number} {story.title}", width, text_style="bold", label_width=0)
    outcome = f"{story.outcome}: {story.reason}"
    yield from _prose("outcome", outcome, width, text_style=STYLES.get(story.outcome, ""))
    if story.rule:
        yield from _prose("decided by", story.rule, width)
    if story.holdout:
        yield from _prose("in the end", story.holdout, width)


def _why(story: Story, width: int) -> Iterator[Text]:
    for label, text in story.why:
        yield from _prose(label, text, width)


def _runs(story: Story, width: int) -> Iterator[RenderableType]:
    shown = [run for run in story.runs if run.arm != "probe"]
    if not shown:
        return
    measured = {split for run in shown for split in run.metrics}
    splits = [*(split for split in HELD_OUT if split in measured), *sorted(measured - set(HELD_OUT))]
    numbers, table = Numbers(story.metric), _table(gap=1)
    table.add_column("runs", no_wrap=True, min_width=LABEL - 1)
    for name in ("seed", *splits, "steps", "kept", "tok/s", "GB", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for run in shown:
        metrics = [numbers.value(run.metrics.get(split)) for split in splits]
        others = [_whole(run.steps), _whole(run.kept), _number(run.tokens_per_s, ".0f"), _number(run.memory_gb, ".2f")]
        table.add_row(run.arm, _whole(run.seed), *metrics, *others, _time(run.seconds), run.state)
    yield table
    probes = len(story.runs) - len(shown)
    if probes:
        yield Text(f"{'':{LABEL}}and {probes} evaluations for its watches")


def _paired(story: Story, width: int) -> Iterator[RenderableType]:
    if not story.paired:
        return
    table = _table()
    table.add_column("paired", no_wrap=True, min_width=22)
    for one in story.paired:
        table.add_column(f"{one.split}", justify="right", no_wrap=True)
    for label, cells in _rows(story.paired, Numbers(story.metric)):
        table.add_row(label, *cells)
    yield table
    if story.minimize:
        yield from _prose("", f"smaller is better: a positive difference is a fall of {story.metric}", width)


def _confirmation(story: Story, width: int) -> Iterator[Text]:
    """Look by look, and what it cost of the campaign's level."""
    for place, look in enumerate(story.looks, start=1):
        yield from _prose(f"look {place}", look, width)
    if story.level is not None and story.level_left is not None:
        spent = "given back, being kept" if story.outcome == "keep" else "spent"
        left = f"{story.level_left:.4f} of the campaign's {story.alpha:g} left"
        yield from _prose("level", f"{story.level:.4f} {spent}; {left}", width)
    elif story.outcome in ("keep", "discard") and story.number:
        yield from _prose("level", "none used: there was no confirmation", width)


def _rows(paired: Sequence[Paired], numbers: Numbers) -> Iterator[tuple[str, list[str]]]:
    """Line by line, so that an interval has room."""
    yield "against", [one.against for one in paired]
    yield "seeds, prompts", [f"{one.seeds_candidate}+{one.seeds_incumbent}, {one.prompts}" for one in paired]
    yield "better, worse, equal", [f"{one.better}, {one.worse}, {one.equal}" for one in paired]
    yield "candidate, incumbent", [f"{numbers.value(one.candidate)}, {numbers.value(one.incumbent)}" for one in paired]
    yield "difference", [numbers.difference(one.delta) for one in paired]
    yield "95% interval", [f"[{numbers.difference(one.low)}, {numbers.difference(one.high)}]" for one in paired]
    yield "one-sided p", [_p(one.p_value) for one in paired]
    yield "error", [f"{numbers.size(one.error)}, {one.df:.1f} df" for one in paired]
    yield "  from prompts, runs", [f"{numbers.size(one.pair_error)}, {numbers.size(one.run_error)}" for one in paired]
    yield "run noise sigma", [_noise(one, numbers) for one in paired]


def _guards(story: Story, width: int) -> Iterator[RenderableType]:
    if not story.guards:
        return
    table = _table()
    table.add_column("guards", no_wrap=True, min_width=LABEL - 1)
    for name in ("incumbent", "candidate"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("breaks where", overflow="fold")
    for guard in story.guards:
        known = [_in_unit(value, guard.unit) for value in (guard.incumbent, guard.candidate)]
        table.add_row(guard.name, *known, "BROKEN" if guard.broken else "held", guard.limit or guard.broken)
    yield table


def _rest(story: Story, width: int) -> Iterator[Text]:
    for label, text in story.crash:
        yield from _prose(label, text, width)
    for label, texts in (("flag", story.flags), ("watch", story.watches), ("fix", story.fixes)):
        for text in texts:
            yield from _prose(label, text, width)
    if story.commit:
        yield from _prose("commit", f"{story.commit[:12]} on {story.branch}" if story.branch else story.commit, width)
    yield from (line for command in _commands(story) for line in _prose("more", command, width))


def _commands(story: Story) -> Iterator[str]:
    for arm in ("search", "screen", "baseline"):
        trained = [run.run for run in story.runs if run.arm == arm]
        if trained:
            yield f"raft-agent diagnose {trained[-1].split('.')[0]}"
            break
    if story.commit:
        yield f"git log --notes=raft {story.commit[:12]}"
    pairs = " or --prompts (where they differ)" if story.paired else ""
    yield f"raft-agent show {story.number} with --json{pairs}"


# --- single prompts, and the diff --------------------------------------------------------------------------


def prompts_table(lines: Sequence[PromptLine], *, most: int = PROMPTS_SHOWN) -> Table:
    """The prompts that differ most, the greatest difference first."""
    table = _table()
    table.add_column("prompt", overflow="fold")
    for name in ("incumbent passes", "candidate passes", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines[:most]:
        theirs = f"{line.incumbent_passed} of {line.incumbent_samples}"
        ours = f"{line.candidate_passed} of {line.candidate_samples}"
        table.add_row(one_line(line.id), theirs, ours, f"{line.difference:+.2f}")
    return table


def diff_lines(diff: str, *, number: int, whole: bool) -> list[str]:
    """The diff, cut where it is long and not all of it was asked for."""
    lines = diff.splitlines()
    if whole or len(lines) <= DIFF_LINES:
        return lines
    return [*lines[:DIFF_LINES], f"... {len(lines) - DIFF_LINES} more lines: raft-agent show {number} --diff"]


# --- words and numbers -------------------------------------------------------------------------------------


def _table(*, gap: int = 2) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")


def _prose(label: str, text: str, width: int, *, text_style: str = "", label_width: int = LABEL) -> Iterator[Text]:
    """Wrapped beside its label; what is too long is cut."""
    lines = textwrap.wrap(
        clean(text),
        max(20, width - label_width),
        max_lines=LONGEST,
        placeholder=" ...",
        break_on_hyphens=False,
    ) or [""]
    for place, line in enumerate(lines):
        yield Text.assemble((f"{label if not place else '':{label_width}}", "bold"), (line, text_style))


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def _p(value: float) -> str:
    return "below 0.0001" if value < 0.0001 else f"{value:.4f}"


def _noise(one: Paired, numbers: Numbers) -> str:
    if one.sigma_run is None or one.noise_df is None:
        return "unknown"
    return f"{numbers.size(one.sigma_run)}, {one.noise_df} df"


def _in_unit(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "%":
        return percent(value)
    return f"{value:.1f}" if unit == "tokens" else f"{value:g}"
