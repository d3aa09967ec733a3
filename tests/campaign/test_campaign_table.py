"""results.tsv in other hands while a campaign runs: it goes on, and at the end the rows are there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from nights import NOTHING, RATE_UP, Night, forked_launch

from agent.errors import InvalidFile
from agent.ledger import table as table_module
from agent.ledger.journal import Journal
from agent.ledger.table import COLUMNS, HEADER, read_rows


def at_the_first_idea(do: Callable[[], object], *, then: Callable[[], object] | None = None) -> Callable[..., Any]:
    """A launcher that does this once, before the first run of idea 1 is started; `then` before that of idea 2."""
    waiting = {"001-search": do, "002-search": then or (lambda: None)}

    def launcher(request: Any, **keys: Any) -> Any:
        for name in [name for name in waiting if request.out.name.startswith(name)]:
            waiting.pop(name)()
        return forked_launch(request, **keys)

    return launcher


def spend(night: Night, do: Callable[[], object], *, then: Callable[[], object] | None = None) -> list[tuple[str, str]]:
    """Two ideas, and the table meets this in the first one; (index, status) of each row that the journal has."""
    night.playbook(RATE_UP, NOTHING)
    night.start(launcher=at_the_first_idea(do, then=then), max_experiments=2)
    assert night.session is not None
    assert night.session.state.status == "finished"
    return [(str(row["index"]), row["status"]) for row in night.session.state.rows()]


def in_file(path: Path) -> list[tuple[str, str]]:
    return sorted((row["index"], row["status"]) for row in read_rows(path) if row["campaign"] == "night")


def edited(path: Path, change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def edit() -> None:
        path.write_bytes(change(path.read_bytes()))

    return edit


def without_rows(data: bytes) -> bytes:
    return data.splitlines(keepends=True)[0]


def with_a_column(data: bytes) -> bytes:
    first, *rest = data.splitlines()
    return b"\n".join([first + b"\tmy verdict", *(line + b"\tgood" for line in rest)]) + b"\n"


def with_other_words(data: bytes) -> bytes:
    return data.replace(b"\tbaseline\t", b"\tmy words\t", 1)


def commented(data: bytes) -> bytes:
    first, *rest = data.splitlines(keepends=True)
    return b"# mine\n" + first + b"# looked at these\n\n" + b"".join(rest)


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "windows line ends": lambda data: data.replace(b"\n", b"\r\n"),
    "a byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "no last newline": lambda data: data.rstrip(b"\n"),
    "rows deleted": without_rows,
    "a column added": with_a_column,
    "words changed": with_other_words,
    "comments": commented,
    "a row torn": lambda data: data + b"7\traft/nig",
    "emptied": lambda data: b"",
}


def some(values: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Parameters of which only the quick ones are in the default suite."""
    return [value if value in list(quick) else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.slow
@pytest.mark.parametrize("how", some(EDITS, ["rows deleted"]))
def test_what_a_person_does_to_it_stays_and_all_rows_are_there(night: Night, how: str) -> None:
    path = night.workspace.results
    found: list[bytes] = []

    def edit() -> None:
        edited(path, EDITS[how])()
        found.append(path.read_bytes())

    rows = spend(night, edit)
    assert in_file(path) == rows
    assert len(rows) == 3
    data = path.read_bytes()
    if how not in ("emptied", "rows deleted"):
        assert data.startswith(found[0])
    if how == "windows line ends":
        assert data.count(b"\r\n") == data.count(b"\n") == 4
    lacked = [words for words in night.observer.warnings if "lacked 1 rows of this campaign" in words]
    assert len(lacked) == (how in ("emptied", "rows deleted"))


@pytest.mark.slow
def test_deleted_in_mid_run_it_is_made_again_with_all_rows(night: Night) -> None:
    rows = spend(night, night.workspace.results.unlink)
    assert in_file(night.workspace.results) == rows
    assert night.workspace.results.read_text().startswith(HEADER + "\n0\t")


@pytest.mark.slow
def test_read_only_its_mode_stays_and_the_rows_come_in(night: Night) -> None:
    path = night.workspace.results
    rows = spend(night, lambda: path.chmod(0o444))
    assert in_file(path) == rows
    assert path.stat().st_mode & 0o777 == 0o444


@pytest.mark.slow
def test_a_spreadsheet_beside_it_is_no_matter(night: Night) -> None:
    lock = night.root / ".~lock.results.tsv#"
    rows = spend(night, lambda: lock.write_text(",ada,desk,27.11.2026 07:30,file:///home/ada;"))
    assert in_file(night.workspace.results) == rows
    assert lock.exists()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def another_header(path: Path) -> None:
    path.write_text("commit\tval_bpb\n" + path.read_text())


SPOILED = [a_folder, a_pipe, a_device, a_circle, another_header]


@pytest.mark.slow
@pytest.mark.parametrize("spoil", some(SPOILED, [another_header]))
def test_where_it_cannot_be_written_the_campaign_goes_on_and_the_rows_are_beside_the_journal(
    night: Night, spoil: Callable[[Path], None]
) -> None:
    path = night.workspace.results
    states: list[tuple[int, bytes | None]] = []

    def meet() -> None:
        spoil(path)
        states.append(state_of(path))

    rows = spend(night, meet)
    assert states == [state_of(path)]  # left as it was found
    with pytest.raises(InvalidFile):
        read_rows(path)
    beside = night.root / ".raft" / "campaigns" / "night" / "results.tsv"
    assert in_file(beside) == rows
    told = [words for words in night.observer.warnings if "results.tsv" in words]
    assert len(told) == 2  # once when it happened, and where the rows are
    assert told[0].startswith("results.tsv cannot be written, the campaign goes on without it (")
    assert "mv results.tsv results-old.tsv" in told[0]
    assert told[1] == (
        "the rows of this campaign are in .raft/campaigns/night/results.tsv instead: add them to results.tsv by hand"
    )
    # out of the way, the rows come in as soon as the campaign goes on
    path.rename(path.with_name("results-old.tsv"))
    night.resume(extra_budget_s=1.0)
    assert in_file(path) == rows


def state_of(path: Path) -> tuple[int, bytes | None]:
    return path.lstat().st_mode, path.read_bytes() if path.is_file() else None


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", some([errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.EDQUOT], [errno.EROFS])
)
def test_what_could_not_be_written_for_a_while_comes_in_later(
    night: Night, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk refuses the table, and nothing else, from the first idea to the second."""
    write, refused = table_module.write_atomic, []

    def refuse(*_: object) -> None:
        refused.append(number)
        raise OSError(number, os.strerror(number))

    rows = spend(
        night,
        lambda: monkeypatch.setattr(table_module, "write_atomic", refuse),
        then=lambda: monkeypatch.setattr(table_module, "write_atomic", write),
    )
    assert refused == [number]
    assert in_file(night.workspace.results) == rows
    told = [words for words in night.observer.warnings if "results.tsv" in words]
    assert len(told) == 1
    assert os.strerror(number) in told[0]
    assert "results.tsv can be written again" in night.observer.said


def test_a_spoiled_table_is_refused_before_anything_is_written(night: Night) -> None:
    another_header(night.workspace.results)
    with pytest.raises(InvalidFile, match="not the header of results"):
        night.start()
    assert not Journal(night.workspace.journal_path("night")).exists()
    assert night.git("for-each-ref", "refs/heads/raft") == ""


@pytest.mark.slow
def test_rows_in_another_order_stay_in_it(night: Night) -> None:
    path = night.workspace.results
    night.playbook(RATE_UP, NOTHING)
    night.start(max_experiments=2)
    first, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(first + "".join(reversed(rows)))
    night.resume(extra_budget_s=1.0)
    assert path.read_text() == first + "".join(reversed(rows))
    assert len(COLUMNS) == len(first.split("\t"))
