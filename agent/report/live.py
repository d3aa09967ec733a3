"""The live view of a campaign: a snapshot as lines that fit a width and a height, whatever these are.

Each part of it has a rank. Where there is little room the parts that matter less are left out, and where there is
plenty the staircase and the last outcomes get it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from agent.report.arms import gain_words
from agent.report.glyphs import Glyphs, Line, bar, cut, flow, sparkline, width_of, wrap
from agent.report.numbers import Numbers
from agent.report.snapshot import MachineNow, Running, Snapshot
from agent.report.stairs import stairs
from agent.report.words import duration, percent

LABEL = 9
"""Columns of the words on the left, where the view is wide enough for them."""
LABELS_FROM = 56
LONGEST_BAR = 40
TALLEST_STAIRS = 14
LOWEST_STAIRS = 4
STATES = {"running": "keep", "paused": "warning", "killed": "crash", "finished": "bold", "new": "bold"}


@dataclass(frozen=True)
class View:
    """What a view is drawn for."""

    width: int
    height: int
    glyphs: Glyphs
    outcomes: bool = True
    """Show the last outcomes; not where they scroll by above."""

    @property
    def label(self) -> int:
        return LABEL if self.width >= LABELS_FROM else 0

    @property
    def room(self) -> int:
        return self.width - self.label


@dataclass(frozen=True)
class Part:
    label: str
    rank: int
    """The lower, the later it is left out."""
    lines: list[Line]
    """All that it would show."""
    label_shown: bool = True


def live_lines(snapshot: Snapshot, view: View) -> list[Line]:
    """At most `view.height` lines of at most `view.width` columns."""
    if view.width < 1 or view.height < 1:
        return []
    if not snapshot.campaign:
        return _waiting(snapshot, view)
    parts = [part for part in _parts(snapshot, view) if part.lines]
    sizes = _shares(parts, view.height)
    found: list[Line] = []
    for part in parts:
        for index, line in enumerate(part.lines[: sizes[part.label]]):
            name = part.label if index == 0 and part.label_shown else ""
            label: Line = [(f"{name:<{view.label}}"[: view.label], "dim")] if view.label else []
            found.append(cut(line if part.label == "head" else [*label, *line], view.width, view.glyphs))
    return found


def _shares(parts: list[Part], height: int) -> dict[str, int]:
    """Lines of each part: one each by rank as long as they last, then more by rank."""
    sizes = {part.label: 0 for part in parts}
    left = height
    by_rank = sorted(parts, key=lambda part: part.rank)
    for part in by_rank:
        if left > 0:
            sizes[part.label], left = 1, left - 1
    for part in by_rank:
        more = min(left, len(part.lines) - 1) if sizes[part.label] else 0
        sizes[part.label] += more
        left -= more
    return sizes


def _parts(snapshot: Snapshot, view: View) -> list[Part]:
    """From top to bottom. What the others leave is for the staircase and the last outcomes."""
    running, trouble = snapshot.running, [(snapshot.trouble, "warning")] if snapshot.trouble else []
    above = [
        Part("head", 0, [_head(snapshot, view)]),
        Part("trouble", 2, flow([trouble], view.room, view.glyphs)),
        Part("time", 1, _time(snapshot, view)),
        Part("verdict", 2, _verdict(snapshot, view)),
        Part("noise", 8, _noise(snapshot, view)),
        Part("now", 3, _now(running, view) if running else _standing_still(snapshot, view)),
        Part("progress", 4, _progress(running, view) if running else [], label_shown=False),
        Part("select", 7, _select(running, Numbers(snapshot.metric), view) if running else []),
        Part("machine", 9, _machine(snapshot.machine, view) if snapshot.machine else []),
        Part("ideas", 5, _counts(snapshot, view)),
    ]
    below = [Part("then", 10, _then(snapshot, view))]
    spare = view.height - sum(len(part.lines) for part in (*above, *below))
    outcomes = _outcomes(snapshot, view) if view.outcomes else []
    tall = min(TALLEST_STAIRS, spare if not outcomes else max(LOWEST_STAIRS, spare // 2))
    chart = stairs(
        snapshot.marks,
        snapshot.base,
        view.room,
        tall if LOWEST_STAIRS <= tall <= spare else 1,
        view.glyphs,
        numbers=Numbers(snapshot.metric),
        minimize=snapshot.minimize,
    )
    return [*above, Part("search", 6, chart), *below, Part("last", 11, outcomes)]


# --- parts -------------------------------------------------------------------------------------------------


def _waiting(snapshot: Snapshot, view: View) -> list[Line]:
    words = f"no campaign in this workspace yet; waiting for one ({snapshot.next} starts it)"
    words = snapshot.trouble.strip() or words
    lines: list[Line] = [[(line, "")] for line in wrap(words, view.width, view.glyphs, most=view.height)]
    return lines[: view.height]


def _head(snapshot: Snapshot, view: View) -> Line:
    clock = datetime.datetime.fromtimestamp(snapshot.at).strftime("%H:%M:%S")
    state: Line = [(snapshot.state, STATES.get(snapshot.state, ""))]
    room = view.width - len(snapshot.state) - 1
    name = cut([(snapshot.campaign, "bold")], max(1, room), view.glyphs)
    used = sum(len(text) for text, _ in name) + 1 + len(snapshot.state)
    gap = view.width - used - len(clock)
    return [*name, (" ", ""), *state, *([(" " * gap, ""), (clock, "dim")] if gap > 0 else [])]


def _time(snapshot: Snapshot, view: View) -> list[Line]:
    used = f"{duration(snapshot.used_s)} used"
    if snapshot.left_s is None:
        of = f" of {duration(snapshot.budget_s)}" if snapshot.budget_s else ""
        return flow([[(used + of, "")]], view.room, view.glyphs)
    whole = snapshot.used_s + snapshot.left_s
    left: Line = [(f"{duration(snapshot.left_s)} left", "bold")]
    total: Line = [(f"{used} of {duration(snapshot.budget_s or whole)}", "")]
    share = snapshot.used_s / whole if whole > 0 else 1.0
    return _with_bar(share, [left, total], view)


def _with_bar(share: float | None, parts: list[Line], view: View) -> list[Line]:
    """A bar before the words, where they leave room for one."""
    lines = flow(parts, view.room, view.glyphs)
    size = min(LONGEST_BAR, view.room - width_of(lines[0]) - 3)
    return [[*bar(share, size, view.glyphs), (" ", ""), *lines[0]]] if len(lines) == 1 and size >= 6 else lines


def _verdict(snapshot: Snapshot, view: View) -> list[Line]:
    numbers, arms = Numbers(snapshot.metric), snapshot.arms
    lead: Line = []
    if snapshot.lead_number is not None:
        value = numbers.value(snapshot.lead) or "?"
        lead = [(f"#{snapshot.lead_number} leads with {value} on search, unconfirmed", "lead")]
    title: Line = [(f"#{snapshot.best_number} {snapshot.best_title}", "dim")] if snapshot.best_number else []
    if snapshot.headline and snapshot.state == "finished":
        words = wrap(snapshot.headline, view.room, view.glyphs, most=3)
        headline: list[Line] = [[(text, "bold")] for text in words]
        if arms.split == "holdout":  # whose numbers are in the headline
            return [*headline, *flow([lead, title], view.room, view.glyphs)]
    else:
        headline = []
    measured, gain = _measured(snapshot, numbers), gain_words(arms, numbers)
    path = _path(measured, arms.split, view)
    if width_of(path) > view.room:  # one arm a line rather than cut in the middle
        broken = _broken(measured, arms.split, gain, view)
        return [*headline, *broken, *flow([lead, title], view.room, view.glyphs)]
    over: Line = [(gain, "")] if gain else []
    return [*headline, *flow([path, over, lead], view.room, view.glyphs), *flow([title], view.room, view.glyphs)]


def _measured(snapshot: Snapshot, numbers: Numbers) -> list[Line]:
    """The arms of which something is known, the oldest first."""
    arms = snapshot.arms
    found: list[Line] = []
    for name, known in (("untrained", arms.untrained), ("baseline", arms.baseline)):
        if known is not None:
            found.append([(f"{name} ", "dim"), (numbers.value(known), "")])
    if snapshot.best_number and arms.best is not None:
        found.append([("best ", "dim"), (numbers.value(arms.best), "keep"), (f" (#{snapshot.best_number})", "")])
    return found


def _path(measured: list[Line], split: str, view: View) -> Line:
    if not measured:
        return [("the baseline is not measured yet", "dim")]
    path: Line = [(f"on {split}: ", "dim")]
    for place, arm in enumerate(measured):
        path += [*([(f" {view.glyphs.arrow} ", "dim")] if place else []), *arm]
    return path


def _broken(measured: list[Line], split: str, gain: str, view: View) -> list[Line]:
    """Newest first, since the first line may be the only one."""
    if not measured:
        return [cut(_path(measured, split, view), view.room, view.glyphs)]
    lines: list[Line] = [[*arm[:2], (f" {split}", "dim"), *arm[2:]] for arm in reversed(measured)]
    if gain:
        lines.insert(1, [(gain, "")])
    return [cut(line, view.room, view.glyphs) for line in lines]


def _noise(snapshot: Snapshot, view: View) -> list[Line]:
    if snapshot.sigma_run is None:
        return []
    numbers = Numbers(snapshot.metric)
    parts: list[Line] = [[(f"{numbers.size(snapshot.sigma_run)} between baseline seeds", "")]]
    if snapshot.detectable:
        parts.append([(f"gains from about {numbers.size(snapshot.detectable)} can be confirmed", "")])
    return flow(parts, view.room, view.glyphs)


def _now(running: Running, view: View) -> list[Line]:
    seed = f", seed {running.seed}" if running.seed is not None else ""
    words = f"{running.what}{seed}"
    return [[(text, "")] for text in wrap(words, view.room, view.glyphs, most=2)]


def _standing_still(snapshot: Snapshot, view: View) -> list[Line]:
    if snapshot.state == "running":
        return [[("between two runs", "dim")]]
    words = snapshot.stopped or {"killed": "its process is gone", "new": "not started yet"}.get(snapshot.state, "")
    next_: Line = [(f"{snapshot.next}", "bold")] if snapshot.next else []
    busy: Line = [(f"held by {snapshot.busy}", "warning")] if snapshot.busy else []
    lines: list[Line] = [[(text, "")] for text in wrap(words, view.room, view.glyphs, most=2)]
    return [*lines, *flow([busy, next_], view.room, view.glyphs)]


def _progress(running: Running, view: View) -> list[Line]:
    phase = running.phase + (f" {running.share:.0%}" if running.share is not None else "")
    parts: list[Line] = [[(phase, "bold")]]
    left = running.left_s
    if left is not None and left > 0:
        parts.append([(f"about {duration(left)} left", "")])
    if running.elapsed_s is not None:
        of = f" of about {duration(running.predicted_s)}" if running.predicted_s is not None else ""
        late: Line = [(f" ({duration(-left)} late)", "warning")] if left is not None and left <= -1 else []
        parts.append([(f"{duration(running.elapsed_s)}{of}", ""), *late])
    if running.cycle is not None:
        parts.append([(f"cycle {running.cycle}", "")])
    if running.note:
        parts.append([(running.note, "")])
    return _with_bar(_share_of(running), parts, view)


def _share_of(running: Running) -> float | None:
    """Of this start of the run, where its length is predicted."""
    left, elapsed = running.left_s, running.elapsed_s
    if left is None or elapsed is None:
        return running.share
    return elapsed / max(elapsed + max(0.0, left), 1.0)


def _select(running: Running, numbers: Numbers, view: View) -> list[Line]:
    if running.metric is None:
        return []
    value = numbers.value(running.metric)
    room = view.room - len(value) - 2 - (0 if view.label else len("select "))
    rate = f"samples passed {percent(running.pass_rate)}" if running.pass_rate is not None else ""
    size = min(LONGEST_BAR, room - (len(rate) + 3 if room > len(rate) + 12 else 0))
    curve = sparkline(running.curve, size, view.glyphs) if len(running.curve) > 1 else ""
    name: Line = [] if view.label else [("select ", "dim")]
    parts: list[Line] = [[*name, (value, "bold"), *([(f" {curve}", "bar")] if curve else [])]]
    if rate:
        parts.append([(rate, "dim")])
    return flow(parts, view.room, view.glyphs)


def _machine(machine: MachineNow, view: View) -> list[Line]:
    parts: list[Line] = []
    if machine.available_gb is not None:
        of = f" of {machine.total_gb:.0f}" if machine.total_gb is not None else ""
        low = machine.total_gb is not None and machine.available_gb < 0.1 * machine.total_gb
        parts.append([(f"{machine.available_gb:.1f}{of} GiB free", "warning" if low else "")])
    if machine.trainer_gb is not None:
        parts.append([(f"trainer {machine.trainer_gb:.1f} GiB", "")])
    if machine.cores is not None:
        of = f" of {machine.cores_there}" if machine.cores_there is not None else ""
        parts.append([(f"{machine.cores:.1f}{of} cores", "")])
    for card in machine.cards:
        told = [card.name]
        told += [f"{card.busy_percent:.0f}% busy"] if card.busy_percent is not None else []
        told += [f"{card.used_gb:.1f} GiB"] if card.used_gb is not None else []
        told += [f"{card.power_w:.0f} W"] if card.power_w is not None else []
        told += [f"{card.temperature_c:.0f} C"] if card.temperature_c is not None else []
        parts.append([(" ".join(told), "")])
    if machine.temperature_c is not None:
        parts.append([(f"{machine.temperature_c:.0f} C", "")])
    return flow(parts, view.room, view.glyphs)


def _counts(snapshot: Snapshot, view: View) -> list[Line]:
    """How the ideas came out, and the characters that stand for it in the staircase."""
    counts, glyphs = snapshot.counts, view.glyphs
    ideas = counts.get("ideas", 0)
    parts: list[Line] = [
        [(f"{ideas} idea{'s' if ideas != 1 else ''}" if ideas else "none yet", "bold" if ideas else "dim")]
    ]
    for what, words in (("keep", "kept"), ("discard", "discarded"), ("crash", "crashed"), ("open", "open")):
        if counts.get(what):
            parts.append([(f"{glyphs.of(what)} ", what), (f"{counts[what]} {words}", "")])
    return flow(parts, view.room, glyphs)


def _then(snapshot: Snapshot, view: View) -> list[Line]:
    if snapshot.state != "running":
        report: Line = [(f"report: {snapshot.report}", "")] if snapshot.report else []
        return flow([report], view.room, view.glyphs)
    parts: list[Line] = []
    if snapshot.idea_s is not None and snapshot.reserve_s is not None:
        if snapshot.left_s is not None:
            fit = int(max(0.0, snapshot.left_s - snapshot.reserve_s) // max(snapshot.idea_s, 1.0))
            more = f"about {fit} more idea{'s' if fit != 1 else ''}" if fit else "no time for a further idea"
            parts.append([(f"{more} of {duration(snapshot.idea_s)}", "")])
        parts.append([(f"{duration(snapshot.reserve_s)} kept for the last confirmation and the holdout", "")])
    parts += [[(f"ends {words}", "")] for words in snapshot.stops]
    return flow(parts, view.room, view.glyphs)


def _outcomes(snapshot: Snapshot, view: View) -> list[Line]:
    """Newest first, each with its reason."""
    by_number = {mark.number: mark for mark in snapshot.marks}
    lines: list[Line] = []
    for number in reversed(snapshot.judged[-view.height :]):
        mark = by_number.get(number)
        if mark is None:
            continue
        head = f"#{number} {mark.outcome}"
        texts = wrap(f"{head} {mark.title}: {mark.reason}", view.room, view.glyphs, most=2)
        if texts and texts[0].startswith(head):
            lines.append([(head, "lead" if mark.kind == "lead" else mark.outcome), (texts[0][len(head) :], "")])
            texts = texts[1:]
        lines += [[(text, "dim")] for text in texts]
    return lines
