"""results.tsv: a row is there once, and what the user wrote is never touched."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import InvalidFile, ResourceError
from agent.ledger.table import COLUMNS, HEADER, append_row, cells, create_table, number, read_rows, rebuild


def row(index: int, **others: Any) -> dict[str, Any]:
    return {"campaign": "night", "index": index, "status": "discard", **others}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "results.tsv"
    create_table(path)
    return path


def test_the_columns_are_those_of_the_design() -> None:
    assert " ".join(COLUMNS) == (
        "index branch parent_commit commit recipe metric_name metric_value memory_gb elapsed_min launcher job_id "
        "command log_path status description campaign hypothesis symptom change incumbent_value delta ci_low ci_high "
        "seeds tokens_per_s crash_class fixes reason started_at"
    )


def test_unknown_is_an_empty_cell_and_zero_is_zero(table: Path) -> None:
    append_row(
        table, row(1, metric_value=None, delta=math.nan, ci_low=-0.0, ci_high=math.inf, fixes=0, memory_gb=1 / 3)
    )
    found = read_rows(table)[0]
    assert (found["metric_value"], found["delta"], found["ci_high"], found["tokens_per_s"]) == ("", "", "", "")
    assert (found["ci_low"], found["fixes"], found["memory_gb"]) == ("0", "0", "0.333333")
    assert number(found, "delta") is None
    assert number(found, "ci_low") == 0.0


def test_text_cannot_break_the_table(table: Path) -> None:
    append_row(
        table, row(1, reason='"quoted\tand\nbroken\r\nup\u2028', started_at=datetime(2026, 11, 21, 3, tzinfo=UTC))
    )
    found = read_rows(table)[0]
    assert found["reason"] == "'quoted and broken up"
    assert found["started_at"] == "2026-11-21T03:00:00+00:00"
    assert table.read_text().count("\n") == 2


def test_the_same_row_twice_is_one_and_another_one_takes_its_place(table: Path) -> None:
    assert append_row(table, row(1, reason="a"))
    assert append_row(table, row(2))
    assert append_row(table, row(1, campaign="other"))
    before = (table.read_bytes(), table.stat().st_mtime_ns)
    assert not append_row(table, row(1, reason="a"))
    assert (table.read_bytes(), table.stat().st_mtime_ns) == before
    assert append_row(table, row(1, reason="b"))
    found = [(r["campaign"], r["index"], r["reason"]) for r in read_rows(table)]
    assert found == [("night", "1", "b"), ("night", "2", ""), ("other", "1", "")]


def test_what_the_user_did_to_the_file_stays(table: Path) -> None:
    """CRLF, a byte-order mark, a column and a comment of the user's, cut rows, Latin-1 bytes, no last newline."""
    mine = (
        b"\xef\xbb\xbf" + HEADER.encode() + b"\tmy verdict\r\n"
        b"\r\n"
        b"# looked at these over breakfast\r\n"
        b"1\traft/night/exp/001-a\r\n"
        b"7\t" + b"\t" * 14 + b"night" + b"\t" * 14 + b"gr\xfc\xdfe\r\n"
        b"9\tno newline"
    )
    table.write_bytes(mine)
    assert [r["index"] for r in read_rows(table)] == ["1", "7", "9"]
    append_row(table, row(2, reason="new"))
    assert table.read_bytes().startswith(mine + b"\r\n2\t")
    assert table.read_bytes().endswith(b"\r\n")
    append_row(table, row(7, reason="mine too"))
    line = table.read_bytes().split(b"\r\n")[4]
    assert line.split(b"\t")[COLUMNS.index("reason")] == b"mine too"
    assert line.endswith(b"\tgr\xfc\xdfe")


def test_comments_may_stand_before_the_header(table: Path) -> None:
    append_row(table, row(1))
    table.write_bytes(b"# mine\n\n" + table.read_bytes())
    append_row(table, row(2))
    append_row(table, row(1, reason="b"))
    assert [(r["index"], r["reason"]) for r in read_rows(table)] == [("1", "b"), ("2", "")]
    assert table.read_text().startswith(f"# mine\n\n{HEADER}\n1\t")


@pytest.mark.parametrize("made", ["folder", "pipe", "device", "circle"])
def test_what_is_no_file_is_refused_at_once_and_left_alone(tmp_path: Path, made: str) -> None:
    path = tmp_path / "results.tsv"
    if made == "folder":
        path.mkdir()
    elif made == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null" if made == "device" else path)
    before = path.lstat()
    for attempt in (lambda: append_row(path, row(1)), lambda: read_rows(path), lambda: create_table(path)):
        with pytest.raises(InvalidFile, match=made) as caught:
            attempt()
        assert "mv results.tsv results-old.tsv" in str(caught.value)
    assert path.lstat() == before


def test_a_link_to_nowhere_gets_its_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "results.tsv"
    path.symlink_to("elsewhere/table.tsv")
    append_row(path, row(1))
    assert path.is_symlink()
    assert len(read_rows(tmp_path / "elsewhere" / "table.tsv")) == 1


def test_a_link_stays_a_link_and_a_mode_a_mode(tmp_path: Path, table: Path) -> None:
    link = tmp_path / "link.tsv"
    link.symlink_to(table)
    table.chmod(0o660)
    append_row(link, row(1))
    assert link.is_symlink()
    assert len(read_rows(table)) == 1
    assert table.stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("content", ["", "\ufeff", "\n \n"])
def test_an_empty_file_gets_the_header(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(content)
    append_row(path, row(1))
    assert path.read_text().splitlines()[0] == HEADER
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("commit\tval_bpb\tstatus", "column 1 should be `index`, got 'commit'"),
        ("\t".join(COLUMNS[:15]), "NeMo-RL experiment log"),
        ("\t".join(COLUMNS[:20]), "column 21 should be `delta`, got nothing"),
        (HEADER.replace("\t", ","), "column 1 should be `index`"),
    ],
)
def test_a_file_with_another_header_is_refused_and_left_alone(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(header + "\n1\t2\n")
    for attempt in (lambda: append_row(path, row(1)), lambda: read_rows(path), lambda: create_table(path)):
        with pytest.raises(InvalidFile) as caught:
            attempt()
        assert message in str(caught.value)
        assert "mv results.tsv results-old.tsv" in str(caught.value)
    assert path.read_text() == header + "\n1\t2\n"


def test_rebuild_brings_back_what_was_lost_and_keeps_the_rest(table: Path) -> None:
    append_row(table, row(1, campaign="other", reason="older"))
    append_row(table, row(2, reason="spoiled"))
    wanted = [row(index, reason=f"r{index}") for index in (1, 2, 3)]
    assert rebuild(table, wanted) == 3
    assert rebuild(table, wanted) == 0
    found = [(r["campaign"], r["index"], r["reason"]) for r in read_rows(table)]
    assert found == [("other", "1", "older"), ("night", "2", "r2"), ("night", "1", "r1"), ("night", "3", "r3")]
    table.unlink()
    assert rebuild(table, wanted) == 3
    assert [r["index"] for r in read_rows(table)] == ["1", "2", "3"]


def test_a_save_of_the_users_between_reading_and_writing_is_not_lost(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's editor saves after the table was read: the row goes into what the user saved."""
    from agent.ledger import table as module

    put = module._Table.put
    saves = iter(["# saved meanwhile\n", ""])

    def put_while_the_user_saves(self: Any, new: Any) -> bool:
        with table.open("a") as file:
            file.write(next(saves))
        return put(self, new)

    monkeypatch.setattr(module._Table, "put", put_while_the_user_saves)
    append_row(table, row(1))
    lines = table.read_text().splitlines()
    assert lines[1] == "# saved meanwhile"
    assert lines[2].startswith("1\t")


def test_mistakes_of_the_caller(table: Path) -> None:
    with pytest.raises(ValueError, match="not columns"):
        append_row(table, row(1, metric=0.5))
    with pytest.raises(ValueError, match="needs campaign and index"):
        append_row(table, {"campaign": "night"})
    assert read_rows(table) == []


def test_a_full_disk_is_a_resource_error_and_the_file_is_whole(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_row(table, row(1))
    before = table.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        append_row(table, row(2))
    assert table.read_bytes() == before
    assert [path.name for path in table.parent.iterdir()] == ["results.tsv"]


texts = st.text(st.characters(codec="utf-8") | st.sampled_from("\t\n\r\"'"), max_size=20)
values = st.none() | st.integers() | st.floats() | texts
keys = st.fixed_dictionaries({"campaign": st.sampled_from(["a", "b"]), "index": st.integers(0, 5)})
others = st.dictionaries(st.sampled_from([c for c in COLUMNS if c not in ("campaign", "index")]), values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(lambda key, rest: rest | key, keys, others), max_size=8))
def test_what_is_appended_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("t") / "results.tsv"
    latest: dict[tuple[str, int], dict[str, str]] = {}
    for item in rows:
        append_row(path, item)
        assert not append_row(path, item)
        latest[item["campaign"], item["index"]] = cells(item)
    assert read_rows(path) == list(latest.values())  # a dict keeps the place of a key that is set again
    assert all(cells(found) == found for found in read_rows(path))
