"""`results.tsv`: one line per idea, tab-separated, header first, appended while the campaign runs.

The first fifteen columns are those of NeMo-RL's experiment log (same names and order), so that tools for it
work. An unknown value is an empty cell, never 0.0. The file is the user's to look at and to edit: every line
that is not the one being written keeps its bytes and its place. It is no source of truth; the journal is, and
`rebuild` makes the rows again.
"""

from __future__ import annotations

import codecs
import functools
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.errors import InvalidFile, ResourceError
from agent.files import Stamp, stamp_of, write_atomic
from agent.ledger.disk import disk_errors
from agent.text import one_line, visible

NEMO_RL_COLUMNS = (
    "index",
    "branch",
    "parent_commit",
    "commit",
    "recipe",
    "metric_name",
    "metric_value",
    "memory_gb",
    "elapsed_min",
    "launcher",
    "job_id",
    "command",
    "log_path",
    "status",
    "description",
)
COLUMNS = (
    *NEMO_RL_COLUMNS,
    "campaign",
    "hypothesis",
    "symptom",
    "change",
    "incumbent_value",
    "delta",
    "ci_low",
    "ci_high",
    "seeds",
    "tokens_per_s",
    "crash_class",
    "fixes",
    "reason",
    "started_at",
)
HEADER = "\t".join(COLUMNS)
KEY_COLUMNS = ("campaign", "index")
_KEY_PLACES = tuple(COLUMNS.index(column) for column in KEY_COLUMNS)

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet computes instead of showing (OWASP, "CSV Injection", with the full-width
forms)."""


def cell(value: Any, *, redacted: bool = True, environment: Mapping[str, str] | None = None) -> str:
    """`value` as a cell: unknown (None, not finite) is empty, floats have six significant digits, text is one line.

    A cell never begins with a double quote, because common readers then look for its partner in later lines. Text that
    a spreadsheet would take for a formula gets an apostrophe in front; control characters and secrets are not in it.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    text = one_line(str(value), environment) if redacted else " ".join(visible(str(value)).split())
    if text.startswith(_FORMULA) and _NUMBER.fullmatch(text) is None:
        return "'" + text
    return "'" + text[1:] if text.startswith('"') else text


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    if abs(value) >= 1e6:
        return f"{value:.0f}"
    return f"{value + 0.0:.6g}"  # + 0.0 turns -0.0 into 0.0


def cells(row: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """All COLUMNS of a row, as they stand in the file. Raises ValueError for a key that is no column."""
    strange = set(row) - set(COLUMNS)
    if strange:
        raise ValueError(f"not columns of results.tsv: {sorted(strange)}")
    return {
        column: cell(row.get(column), redacted=column not in KEY_COLUMNS, environment=environment) for column in COLUMNS
    }


def number(row: Mapping[str, str], column: str) -> float | None:
    """A cell as a number; None where it is empty or no finite number."""
    try:
        value = float(row.get(column, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def create_table(path: Path) -> None:
    """Make the file with its header. One that exists is left alone, unless it is empty.

    Raises InvalidFile where the first line is not our header.
    """
    table = _Table.read(path)
    if table.fresh:
        table.save()


def append_row(path: Path, row: Mapping[str, Any]) -> bool:
    """Add one row; on return it is on the disk. False where the file already had exactly this row.

    A row with the same campaign and index is replaced in its place. Raises InvalidFile where the file has another
    header, ValueError where the row has no campaign or index, ResourceError where it cannot be written.
    """
    return rebuild(path, [row]) > 0


def rebuild(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Bring all `rows` into the file in one step, as `append_row` does; how many were new or different.

    Rows of other campaigns, and whatever the user wrote, stay.
    """
    environment = dict(os.environ)  # whose items are looked at for every cell, and which itself is slow to read
    wanted = [cells(row, environment) for row in rows]
    for row in wanted:
        if not all(row[column] for column in KEY_COLUMNS):
            raise ValueError(f"a row needs campaign and index, got {row['campaign']!r} and {row['index']!r}")
    for _ in range(20):
        table = _Table.read(path)
        changed = sum([table.put(row) for row in wanted])
        if changed == 0 and not table.fresh:
            return 0
        if table.save():
            return changed
    raise ResourceError("the file changes faster than it can be written", where=str(path))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Every row as column -> cell, in file order; missing trailing cells are empty, extra ones are left out.

    Blank lines, lines that begin with `#`, CRLF, a byte-order mark and a missing last newline are no matter. A missing
    or empty file has no rows. Raises InvalidFile where the first other line is not our header, or it is no file.
    """
    table = _Table.read(path)
    lines = table.lines[table.header + 1 :]
    return [dict(zip(COLUMNS, _split(line), strict=False)) for line in lines if not _says_nothing(line)]


class _Table:
    """The lines of the file as bytes, so that what is not ours to touch goes back as it came."""

    def __init__(self, path: Path, lines: list[bytes], *, ending: bytes, stamp: Stamp | None, header: int = 0):
        self.path = path
        self.lines = lines
        self.header = header
        """Its place: the user may have put comments before it."""
        self.ending = ending
        self.stamp = stamp
        self.fresh = stamp is None or stamp[0] == 0

    @classmethod
    def read(cls, path: Path) -> _Table:
        path = _target(path)
        with disk_errors(path):
            stamp = _stamp(path)
            data = path.read_bytes() if stamp else b""
        if not data.removeprefix(codecs.BOM_UTF8).strip():
            return cls(path, [HEADER.encode() + b"\n"], ending=b"\n", stamp=(0, *stamp[1:]) if stamp else None)
        lines = re.findall(rb"[^\n]*\n|[^\n]+", data)
        at = next((place for place, line in enumerate(lines) if not _says_nothing(line)), 0)
        _check_header(path, lines[at], number=at + 1)
        ending = b"\r\n" if lines[at].endswith(b"\r\n") else b"\n"
        return cls(path, lines, ending=ending, stamp=stamp, header=at)

    def put(self, row: Mapping[str, str]) -> bool:
        """Replace or append; False where the row is there already."""
        new = [row[column] for column in COLUMNS]
        place = self._places.get(_key(new))
        if place is None:
            if not self.lines[-1].endswith(b"\n"):
                self.lines[-1] += self.ending
            self.lines.append("\t".join(new).encode() + self.ending)
            self._places[_key(new)] = len(self.lines) - 1
            return True
        old = _split(self.lines[place])
        if old[: len(COLUMNS)] == new:
            return False
        text = "\t".join([*new, *old[len(COLUMNS) :]])
        self.lines[place] = text.encode("utf-8", "surrogateescape") + self.ending
        return True

    @functools.cached_property
    def _places(self) -> dict[tuple[str, ...], int]:
        """Of rows by what names them; the first of several."""
        found: dict[tuple[str, ...], int] = {}
        for place, line in enumerate(self.lines[self.header + 1 :], start=self.header + 1):
            found.setdefault(_key(_split(line)), place)
        return found

    def save(self) -> bool:
        """Write all lines; False, and nothing written, where somebody else wrote the file since it was read."""
        if self.stamp is not None and not self.fresh and _stamp(self.path) != self.stamp:
            return False
        if self.stamp is None and self.path.exists():
            return False
        with disk_errors(self.path):
            mode = self.path.stat().st_mode & 0o777 if self.stamp else None
            write_atomic(self.path, b"".join(self.lines))
            if mode is not None:
                self.path.chmod(mode)
        return True


def _split(line: bytes) -> list[str]:
    """The cells of a line, at least one per column. Bytes that are no UTF-8 come back as they are."""
    text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
    found: list[str] = text.split("\t")
    return found + [""] * (len(COLUMNS) - len(found))


def _key(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(cells[place].strip() for place in _KEY_PLACES)


def _says_nothing(line: bytes) -> bool:
    """A blank line, or a comment."""
    line = line.removeprefix(codecs.BOM_UTF8).strip()
    return not line or line.startswith(b"#")


def _target(path: Path) -> Path:
    """Where the bytes are: a link stays a link. Raises InvalidFile where that is a folder, a pipe, a device, or where
    the link leads in a circle."""
    hint = f"move it out of the way (mv {path.name} {path.stem}-old{path.suffix}); a new one is made with the next row"
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        raise InvalidFile("is a link that leads in a circle", where=str(path), hint=hint) from None
    with disk_errors(path):
        try:
            mode = target.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return target
    if not stat.S_ISREG(mode):
        what = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or a socket"
        raise InvalidFile(f"is a {what}, not a file for results", where=str(path), hint=hint)
    return target


def _stamp(path: Path) -> Stamp | None:
    """None where there is no file. One that cannot be looked at is an error here, and no reason to write a new one."""
    try:
        return stamp_of(path)
    except FileNotFoundError:
        return None


def _check_header(path: Path, line: bytes, *, number: int) -> None:
    """Ours, possibly with columns of the user's after it."""
    names: Sequence[str] = line.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n").split("\t")
    names = [name.strip() for name in names]
    if tuple(names[: len(COLUMNS)]) == COLUMNS:
        return
    if tuple(names) == NEMO_RL_COLUMNS:
        what = "this is a NeMo-RL experiment log; our columns begin the same but go on"
    else:
        wrong = next((at for at, name in enumerate(COLUMNS) if at >= len(names) or names[at] != name), 0)
        got = repr(names[wrong]) if wrong < len(names) else "nothing"
        what = f"not the header of results.tsv: column {wrong + 1} should be `{COLUMNS[wrong]}`, got {got}"
    raise InvalidFile(
        what,
        where=f"{path}:{number}",
        hint=f"rename the file (mv {path.name} {path.stem}-old{path.suffix}); a new one is made with the next row",
    )
