"""`status`: a snapshot as a few lines for people, and as fields for other programs (docs/status.md)."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from agent.report.arms import arms_fields, gain_words
from agent.report.numbers import Numbers
from agent.report.snapshot import Mark, Running, Snapshot
from agent.report.words import duration

FORMAT = 2
"""Of the fields for programs. It goes up where one changes its meaning or goes; new ones do not count."""
WITH_TITLES = ("best", "leads", "now")
"""The others are short, or hold a path or a command that somebody copies."""
NARROWEST = 30
LABELS = (
    "recipe",
    "budget",
    "untrained",
    "baseline",
    "best",
    "gain",
    "leads",
    "noise",
    "ideas",
    "now",
    "stopped",
    "next",
    "busy",
)


def status_lines(snapshot: Snapshot, *, width: int | None = None) -> list[str]:
    """`width`: columns of a terminal, for which the lines that name ideas are broken between words; whole ones
    without."""
    words = {**_words(snapshot), "trouble": snapshot.trouble}
    lines = [f"campaign {snapshot.campaign}: {snapshot.state}"]
    for label in (*LABELS, "trouble"):
        if words.get(label):
            line = f"  {label:<10}{words[label]}"
            lines += _broken(line, width) if width is not None and label in WITH_TITLES else [line]
    return lines


def _broken(line: str, width: int) -> list[str]:
    """What goes on stands below its beginning."""
    room, below = max(width, NARROWEST), " " * 12
    return textwrap.wrap(line, room, subsequent_indent=below, break_on_hyphens=False, break_long_words=False)


def status_fields(snapshot: Snapshot) -> dict[str, Any]:
    """Numbers are numbers, times Unix seconds, shares in [0, 1]; null is not known."""
    running = snapshot.running
    return {
        "format": FORMAT,
        "at": snapshot.at,
        "campaign": snapshot.campaign,
        "state": snapshot.state,
        "process": snapshot.process,
        "phase": running.phase if running else None,
        "progress": running.share if running else None,
        "run": _run(running) if running else None,
        "used_s": snapshot.used_s,
        "left_s": snapshot.left_s,
        "metric": snapshot.metric or None,
        "direction": "minimize" if snapshot.minimize else "maximize",
        "metrics": arms_fields(snapshot.arms),
        "sigma_run": snapshot.sigma_run,
        "detectable_gain": snapshot.detectable,
        "counts": dict(snapshot.counts),
        "incumbent": {
            "number": snapshot.best_number,
            "title": snapshot.best_title or "baseline",
            "metric": snapshot.arms.best,
            "split": snapshot.arms.split,
            "commit": snapshot.best_commit,
        },
        "lead": _lead(snapshot),
        "last": _mark(snapshot.last),
        "idea_s": snapshot.idea_s,
        "reserve_s": snapshot.reserve_s,
        "headline": snapshot.headline or None,
        "report": snapshot.report,
        "trouble": snapshot.trouble or None,
        # in words, as people read them; older than the fields above
        "consumed_s": snapshot.used_s,
        "budget_s": snapshot.budget_s,
        "outcomes": {what: snapshot.counts.get(what, 0) for what in ("keep", "discard", "crash")},
        **_words(snapshot),
    }


def _until_deadline(snapshot: Snapshot) -> str:
    """Where the deadline comes before the end of the budget."""
    if snapshot.left_s is None or (snapshot.budget_s or math.inf) - snapshot.used_s - snapshot.left_s < 1:
        return ""
    return f", {duration(snapshot.left_s)} left until the deadline"


def _lead(snapshot: Snapshot) -> dict[str, Any] | None:
    if snapshot.lead_number is None:
        return None
    return {
        "number": snapshot.lead_number,
        "title": snapshot.lead_title,
        "metric": snapshot.lead,
        "split": "search",
    }


def _run(running: Running) -> dict[str, Any]:
    return {
        "id": running.run,
        "what": running.what,
        "number": running.number,
        "seed": running.seed,
        "phase": running.phase,
        "progress": running.share,
        "cycle": running.cycle,
        "elapsed_s": running.elapsed_s,
        "predicted_s": running.predicted_s,
        "left_s": running.left_s,
        "select_metric": running.metric,
        "note": running.note or None,
    }


def _mark(mark: Mark | None) -> dict[str, Any] | None:
    if mark is None:
        return None
    return {
        "number": mark.number,
        "title": mark.title,
        "outcome": mark.outcome,
        "kind": mark.kind or None,
        "reason": mark.reason,
        "metric": mark.value,
        "split": "search",
    }


# --- in words ----------------------------------------------------------------------------------------------


def _words(snapshot: Snapshot) -> dict[str, Any]:
    counts, arms, numbers = snapshot.counts, snapshot.arms, Numbers(snapshot.metric)
    gain = gain_words(arms, numbers)
    of = f" of {duration(snapshot.budget_s)}" if snapshot.budget_s else ""
    words: dict[str, Any] = {
        "recipe": snapshot.recipe or None,
        "budget": f"{duration(snapshot.used_s)} used{of}{_until_deadline(snapshot)}",
        "untrained": _on_split(arms.untrained, arms.split, numbers) or None,
        "baseline": _on_split(arms.baseline, arms.split, numbers) or None,
        "best": _best(snapshot, numbers),
        "gain": f"{gain} over the baseline, on {arms.split}" if gain else None,
        "leads": _leads(snapshot, numbers),
        "ideas": f"{counts.get('ideas', 0)}: {counts.get('keep', 0)} kept, {counts.get('discard', 0)} discarded, "
        f"{counts.get('crash', 0)} crashed",
        "stopped": snapshot.stopped or None,
        "next": snapshot.next or None,
        "busy": f"the workspace is held by {snapshot.busy}" if snapshot.busy else None,
    }
    if snapshot.sigma_run is not None:
        least = numbers.size(snapshot.detectable)
        found = f", gains from about {least} can be confirmed" if snapshot.detectable else ""
        words["noise"] = f"{numbers.size(snapshot.sigma_run)} (baseline seeds){found}"
    if snapshot.running is not None:
        words["now"] = _now(snapshot.running)
    return words


def _on_split(value: float | None, split: str, numbers: Numbers) -> str:
    return f"{numbers.value(value)} on {split}" if value is not None else ""


def _best(snapshot: Snapshot, numbers: Numbers) -> str | None:
    arms = snapshot.arms
    if not snapshot.best_number:
        return "the baseline" if arms.baseline is not None else None
    known = _on_split(arms.best, arms.split, numbers)
    return f"{known}{', ' if known else ''}#{snapshot.best_number} {snapshot.best_title}".strip()


def _leads(snapshot: Snapshot, numbers: Numbers) -> str | None:
    """What the next ideas build on without a verdict."""
    if snapshot.lead_number is None:
        return None
    known = _on_split(snapshot.lead, "search", numbers)
    name = f"{known}{', ' if known else ''}#{snapshot.lead_number} {snapshot.lead_title}".strip()
    return f"{name}; unconfirmed, the next ideas build on it"


def _now(running: Running) -> str:
    what = f" of {running.what}" if running.number else ""
    spent = f" {running.share:.0%}" if running.share is not None else ""
    note = f" ({running.note})" if running.note else ""
    return f"run {running.run}{what}, {running.phase}{spent}{note}"
