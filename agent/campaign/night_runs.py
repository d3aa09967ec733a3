"""What the report takes from run folders: curves over cycles and seconds, and samples of what the model said.

Folders are read once: what was read is kept by the stamp of the file, for a campaign that renews its report after every
experiment. A folder that is gone, a line that is torn or no row of that kind, is left out.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.campaign.stairs import key_of, number_in
from agent.campaign.story import ARMS
from agent.contract import CYCLES, SAMPLES, TELEMETRY, SampleText
from agent.files import Stamp, stamp_or_none
from agent.ledger.state import CampaignState, Run
from agent.report.night import Curves, NearMiss, Shown
from agent.run.plain import NotPlain, read_plain
from agent.run.telemetry import texts_in

MOST_CYCLES = 60
MOST_SECONDS = 120
MOST_BYTES = 2_400_000
"""Of all curves as JSON: with the rest the page stays below 5 MB."""
MOST_READ = 64 * 1024 * 1024
MOST_SHOWN = 12
LONGEST_TEXT = 4000
CYCLE_NAMES = {
    "select": "select_metric",
    "pass_rate": "pass_rate",
    "entropy": "entropy",
    "unique_share": "unique_share",
    "truncation_rate": "truncation_rate",
    "reward_mean": "reward_mean",
    "learning_rate": "learning_rate",
    "tokens_per_s": "generate_tokens_per_s",
    "peak_memory_gb": "peak_memory_gb",
    "loss": "loss",
    "grad_norm": "grad_norm",
}
"""Name in the report -> field of a cycle's row."""
Series = dict[str, list[float | None]]


@dataclass
class RunFolders:
    """Reads the folders of one workspace. Keep it where the report is renewed again and again."""

    root: Path
    _known: dict[Path, tuple[Stamp | None, Any]] = field(default_factory=dict)
    seen: dict[Path, Stamp | None] = field(default_factory=dict)
    """What was looked at for this report: files, and the folders that runs lie in, each as it was before."""
    has_read_all: bool = True
    """Of what is there. What the disk refused once it may give the next time."""

    def look_anew(self) -> None:
        """For another report."""
        self.seen, self.has_read_all = {}, True

    def cycles(self, out: Path) -> Series:
        found: Series = self._once(out / CYCLES, lambda data: _cycles(list(_rows(data))))
        return found

    def seconds(self, out: Path) -> Series:
        found: Series = self._once(out / TELEMETRY, lambda data: _seconds(list(_rows(data))))
        return found

    def samples(self, out: Path) -> list[SampleText]:
        """Of the search split, the first few."""
        found: list[SampleText] = self._once(out / SAMPLES, lambda data: _on_search(texts_in(data)))
        return found

    def _once(self, path: Path, made_of: Callable[[bytes], Any]) -> Any:
        stamp = self._stamp(path)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                known = stamp, made_of(_content(path))
            except OSError:
                self.has_read_all = False
                return made_of(b"")
            self._known[path] = known
        return known[1]

    def there(self, outs: Collection[str]) -> set[str]:
        """Those that exist. What is above them is listed once: to ask for each of thousands takes longer than all else,
        and so does a Path of each."""
        known: dict[str, set[str] | None] = {}
        found = set()
        for out in outs:
            above, slash, name = out.rpartition("/")
            if slash + above not in known:
                known[slash + above] = self._list(self.root / (above or slash))
            names = known[slash + above]
            if (self.root / out).is_dir() if names is None or name in ("", ".", "..") else name in names:
                found.add(out)
        return found

    def _list(self, folder: Path) -> set[str] | None:
        """Folders in it; None where it cannot be listed, and what is in it may be there nevertheless."""
        self._stamp(folder)
        try:
            with os.scandir(folder) as entries:
                found = set()
                for entry in entries:
                    if entry.is_symlink():
                        self._stamp(folder / entry.name)  # of what it leads to, which the folder does not tell
                    if _is_folder(entry):
                        found.add(entry.name)
                return found
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError:
            self.has_read_all = False
            return None

    def _stamp(self, path: Path) -> Stamp | None:
        stamp = stamp_or_none(path)
        self.seen.setdefault(path, stamp)
        return stamp


def _content(path: Path) -> bytes:
    """Nothing where there is no file that may be read. Raises OSError where there is one, and the disk refuses it."""
    try:
        return read_plain(path, most=MOST_READ)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotPlain):
        return b""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            row = json.loads(line.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


# --- curves ------------------------------------------------------------------------------------------------


def curves_of(
    state: CampaignState, folders: RunFolders, *, winner: int, near: Sequence[NearMiss], most: int = MOST_BYTES
) -> tuple[tuple[Curves, ...], int]:
    """(curves, how many runs are left out), of runs whose folders are there. The winner's and baseline's first, then
    those of what was kept, of near-misses, of crashes, then the newest; as many as `most` bytes hold."""
    found: list[Curves] = []
    room = most
    trained = _in_order(state, folders, winner, near)
    for place, run in enumerate(trained):
        if room <= 0:
            return tuple(found), len(trained) - place
        one = _curves(folders, run)
        if one is not None:
            found.append(one)
            room -= _size(one)
    return tuple(found), 0


def _in_order(state: CampaignState, folders: RunFolders, winner: int, near: Sequence[NearMiss]) -> list[Run]:
    """Each folder once, by its last start."""
    by_folder = {run.words.out: run for run in state.runs.values() if run.words and _trains(run)}
    there = folders.there(by_folder)
    by_folder = {out: run for out, run in by_folder.items() if out in there}
    close = {one.number for one in near}

    def rank(place: int, run: Run) -> tuple[int, int]:
        number = number_of(run)
        experiment = state.experiments.get(number)
        outcome = experiment.outcome if experiment else None
        if winner and number == winner:
            return 0, place
        if number == 0:
            return 1, place
        if outcome == "keep":
            return 2, place
        if number in close:
            return 3, place
        return (4 if outcome == "crash" else 5), -place

    placed = list(enumerate(by_folder.values()))
    return [run for place, run in sorted(placed, key=lambda pair: rank(*pair))]


def _trains(run: Run) -> bool:
    words = run.words
    return words is not None and words.role != "holdout" and words.arm not in ("untrained", "again", "probe")


def number_of(run: Run) -> int:
    """The experiment whose recipe it ran; an incumbent's run is of no experiment in the journal."""
    return run.experiment or number_in(key_of(run))


def _curves(folders: RunFolders, run: Run) -> Curves | None:
    assert run.words is not None
    out = folders.root / run.words.out
    cycles, seconds = folders.cycles(out), folders.seconds(out)
    if not cycles and not seconds:
        return None
    arm = ARMS.get((run.words.role, run.words.arm), run.words.arm or run.words.role)
    return Curves(key_of(run), number_of(run), arm, run.words.seed, cycles, seconds)


def _size(one: Curves) -> int:
    return sum(len(json.dumps(series, separators=(",", ":"))) for series in (one.cycles, one.seconds)) + 200


def _cycles(rows: Sequence[Mapping[str, Any]]) -> Series:
    by_cycle = {row["cycle"]: row for row in rows if isinstance(row.get("cycle"), int)}
    chosen = _spread([by_cycle[cycle] for cycle in sorted(by_cycle)], MOST_CYCLES)
    series: Series = {name: [_number(row.get(key)) for row in chosen] for name, key in CYCLE_NAMES.items()}
    return _told({"cycle": [float(row["cycle"]) for row in chosen]}, series)


def _seconds(rows: Sequence[Mapping[str, Any]]) -> Series:
    """By bins of equal numbers of samples: the most memory, temperature and power in it, the mean of what is used."""
    told = _in_time(rows)
    bins = _bins(told, MOST_SECONDS)
    series: Series = {
        "resident_gb": [_most(one, "resident_gb") for one in bins],
        "cores": [_mean(one, "cores") for one in bins],
        "available_gb": [_least(one, "available_gb") for one in bins],
        "power_w": [_mean(one, "power_w") for one in bins],
        "temperature_c": [_most(one, "temperature_c") for one in bins],
        "busy_percent": [_mean(one, "busy_percent") for one in bins],
        "device_used_gb": [_most(one, "device_used_gb") for one in bins],
    }
    return _told({"t": [rounded(one[-1]["t"]) for one in bins]}, series)


def _in_time(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Samples with the cards' numbers among them, and seconds that count on through all starts."""
    told: list[dict[str, Any]] = []
    before, start, last = 0.0, None, 0.0
    for row in rows:
        at = _number(row.get("t"))
        if at is None:
            continue
        if row.get("start") != start:
            before, start = last, row.get("start")
        last = max(last, before + at)
        cards = [card for card in row.get("cards") or () if isinstance(card, Mapping)]
        told.append({**row, **_of_cards(cards), "t": before + at})
    return told


def _of_cards(cards: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    def known(*names: str) -> list[float]:
        return [value for card in cards for name in names if (value := _number(card.get(name))) is not None]

    memory, power = known("vram_used_gb", "gtt_used_gb"), known("power_w")
    busy, temperature = known("busy_percent"), known("temperature_c")
    return {
        "device_used_gb": math.fsum(memory) if memory else None,
        "power_w": math.fsum(power) if power else None,
        "busy_percent": max(busy, default=None),
        "temperature_c": max(temperature, default=None),
    }


def _told(first: Series, series: Series) -> Series:
    """Without what is not known at any point; nothing where nothing is."""
    known = {name: values for name, values in series.items() if any(value is not None for value in values)}
    return {**first, **known} if known else {}


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def _bins(rows: Sequence[Any], most: int) -> list[Sequence[Any]]:
    if len(rows) <= most:
        return [[row] for row in rows]
    edges = [round(place * len(rows) / most) for place in range(most + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(edges)]


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value for row in rows if (value := _number(row.get(name))) is not None]


def _most(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _values(rows, name)
    return rounded(max(values)) if values else None


def _least(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _values(rows, name)
    return rounded(min(values)) if values else None


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _values(rows, name)
    return rounded(math.fsum(values) / len(values)) if values else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return rounded(float(value))


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


# --- samples -----------------------------------------------------------------------------------------------


def samples_of(state: CampaignState, folders: RunFolders, *, winner: int) -> tuple[tuple[Shown, ...], str]:
    """The same prompts before any training and after the best, in the order of the file, and which runs they are of."""
    before, after = _run_with_samples(state, folders, None), _run_with_samples(state, folders, winner)
    if before is None or after is None:
        return (), ""
    first, last = ({row.id: row for row in rows} for _, rows in (before, after))
    found = [
        Shown(_cut(row.prompt), _cut(row.completion), row.passed, _cut(last[key].completion), last[key].passed)
        for key, row in first.items()
        if key in last
    ]
    whose = f"the winner #{winner}" if winner else "the baseline"
    return tuple(found), f"before: the untrained model ({before[0]}); after: {whose} ({after[0]})" if found else ""


def _run_with_samples(
    state: CampaignState, folders: RunFolders, number: int | None
) -> tuple[str, list[SampleText]] | None:
    """The last run of the recipe that has samples of the search split; None stands for the untrained model. Of a winner
    that is a confirming run, where there is one: it was not chosen."""
    for run in sorted(state.runs.values(), key=lambda run: run.words is not None and run.words.role == "confirm")[::-1]:
        if run.words is None or run.finished is None or run.words.role == "holdout":
            continue
        if (run.words.arm == "untrained") != (number is None) or (number is not None and number_of(run) != number):
            continue
        rows = folders.samples(folders.root / run.words.out)
        if rows:
            return key_of(run), rows
    return None


def _on_search(rows: Sequence[SampleText]) -> list[SampleText]:
    return [row for row in rows if row.split == "search"][:MOST_SHOWN]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."


def gone(state: CampaignState, folders: RunFolders) -> int:
    """Folders of finished runs that are not there any more."""
    outs = {run.words.out for run in state.runs.values() if run.words and run.finished and run.finished.summary}
    return len(outs) - len(folders.there(outs))
