"""However a journal is read, fast or event by event as they are written, it says what its definition says."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ledger_journal import Told, fast, ideas, json_values, tell

from agent.errors import ResourceError
from agent.files import Growing
from agent.ledger.events import Event, UnknownEvent, read_event
from agent.ledger.follow import JournalTail
from agent.ledger.journal import CampaignState, Journal
from agent.ledger.state import _apply


def by_definition(path: Path) -> list[tuple[int, Event | None]]:
    """As `json` and a text file have it: what the fast reading has to agree with."""
    found = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip("\0 \t\r\n"):
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                fields = None
            found.append((number, read_event(fields) if isinstance(fields, dict) else None))
    return found


def folded_by_definition(path: Path) -> CampaignState:
    """An event that says what an earlier one of its number said is not a second one."""
    state, seen = CampaignState(), set()
    for _, event in by_definition(path):
        if event is not None and (event.seq, repr(event)) not in seen:
            seen.add((event.seq, repr(event)))
            _apply(state, event)
    return state


def damages_by_definition(lines: list[tuple[int, Event | None]]) -> list[str]:
    found, expected = [], 1
    for number, event in lines:
        if event is None:
            follows = next((one for at, one in lines if at > number and one is not None), None)
            if follows is not None and follows.seq != expected:
                found.append(f"line {number} is no event")
            continue
        if isinstance(event, UnknownEvent):
            found.append(f"line {number}: this is no {event.kind} that can be understood")
        if event.seq != expected:
            found.append(f"line {number} is number {event.seq}, expected {expected}")
        expected = event.seq + 1
    return found


def agree(path: Path) -> None:
    told = list(Journal(path)._lines())
    state, damages = Journal(path).state_and_damages()
    assert damages == Journal(path).damages() == damages_by_definition(by_definition(path))
    assert repr(state) == repr(Journal(path).state())
    content = path.read_bytes()
    if b"\r" not in content and content[-1:] in (b"", b"\n"):  # which ends a line elsewhere; a torn line has no end yet
        tail = JournalTail(path)
        tail.read()
        assert repr(tail.state) == repr(folded_by_definition(path))
    assert [(number, repr(event)) for number, event in told] == [
        (number, repr(event)) for number, event in by_definition(path)
    ]
    # repr, because what is not a number is not equal to itself
    assert repr(Journal(path).state()) == repr(folded_by_definition(path))


damage = st.sampled_from(
    [
        b"", b"\n", b"\r", b"\r\n", b"\0\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"}",
        b'{"kind": "dream", "seq": 3, "time": 1.0}\n', b'{"kind": "note", "seq": 1, "time": NaN, "text": "\\ud83d"}\n',
        b'{"kind": "note", "kind": "budget_tick", "seq": 2, "seq": 4, "time": 1, "consumed_s": 1e400}\n',
        b'{"kind": "note", "seq": 18446744073709551617, "time": 1, "text": "\\u0000 \x7f"}\n', b"[" * 5000, b"9" * 5000,
        b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0b", b"\x0c", b"\x1c",
    ]
)  # fmt: skip


@fast
@given(story=ideas, data=st.data())
def test_damaged_journals_say_the_same_however_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, story: Any, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    tell(path, story)
    agree(path)
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 6))):
        begin = data.draw(st.integers(0, len(content)))
        end = begin + data.draw(st.sampled_from([0, 0, 1, 7, 200]))
        new = data.draw(damage | st.binary(max_size=4))
        content = content[:begin] + new + content[end:]
        if data.draw(st.booleans()):  # a line once more, somewhere
            lines = content.splitlines(keepends=True) or [b""]
            content += data.draw(st.sampled_from(lines))
    path.write_bytes(content)
    agree(path)


@pytest.mark.slow
@fast
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(["kind", "seq", "time", "text", "experiment", "x"]), json_values)
        | st.fixed_dictionaries(
            {
                "kind": st.just("note"),
                "seq": st.integers(1, 3),
                "time": st.just(1.0),
                "text": st.text(),
                "x": json_values,
            }
        ),
        max_size=8,
    )
)
def test_any_values_are_read_alike(tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    texts = [json.dumps(line, ensure_ascii=line.get("seq") != 2) + "\n" for line in lines]
    path.write_bytes("".join(texts).encode("utf-8", "surrogatepass"))
    agree(path)


# ---- kept in memory


STEPS = {
    "note": lambda told, journal: journal.append("note", text="ü \udcff"),
    "tick": lambda told, journal: journal.append("budget_tick", consumed_s=float(len(list(journal.events())))),
    "plan": lambda told, journal: told.plan(1),
    "again": lambda told, journal: told.plan(2, "lr: 3\n"),
    "run": lambda told, journal: told.run("r1", 1, end=False),
    "confirm": lambda told, journal: told.run("c1", 1, role="confirm", rung="confirm"),
    "fix": lambda told, journal: journal.append("experiment_fixed", experiment=1, fix=1, files={"a": "b"}),
    "fixed": lambda told, journal: journal.append("experiment_fixed", experiment=1, fix=1, commit="f1"),
    "interrupt": lambda told, journal: told.judge(1, "interrupted"),
    "judge": lambda told, journal: told.judge(1, "keep"),
    "other": lambda told, journal: told.judge(1, "discard"),
    "record": lambda told, journal: told.record(1),
    "somebody": lambda told, journal: Journal(journal.path, clock=lambda: 5.0).append("note", text="somebody else"),
    "torn": lambda told, journal: journal.path.open("a").write('{"kind": "no'),
    "consumed": lambda told, journal: journal.path.with_name("consumed").write_text("77.5\n"),
}


@fast
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=25))
def test_what_is_kept_in_memory_is_what_the_file_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    told = Told(tmp_path_factory.mktemp("j") / "journal.jsonl")
    journal = told.journal
    told.begin()
    for step in steps:
        STEPS[step](told, journal)
        known = journal.current()
        if step == "consumed":
            assert known.consumed_s <= 77.5  # read with the next line
        else:
            assert known == Journal(journal.path).state()


def test_it_is_not_read_again_for_a_line_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(tmp_path / "journal.jsonl")
    told.begin()
    before = told.journal.current()
    monkeypatch.setattr(Journal, "_lines", lambda self: pytest.fail("the whole journal was read"))
    told.plan(1)
    told.judge(1, "keep")
    assert told.journal.current() is before
    assert told.journal.current().experiments[1].outcome == "keep"


def test_after_a_write_that_failed_the_file_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have reached the file all the same."""
    told = Told(tmp_path / "journal.jsonl")
    told.begin()
    told.journal.current()

    def full(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceError):
            told.judge(1, "keep")
    assert told.journal.current().experiments[1].outcome == "keep"
    assert told.journal.current() == Journal(told.journal.path).state()


def test_a_line_that_somebody_took_out_is_gone(tmp_path: Path) -> None:
    told = Told(tmp_path / "journal.jsonl")
    told.begin()
    told.plan(1)
    told.judge(1, "keep")
    assert told.journal.current().experiments[1].outcome == "keep"
    lines = told.journal.path.read_text().splitlines(keepends=True)
    told.journal.path.write_text("".join(lines[:-1]))
    assert told.journal.current().experiments[1].outcome is None


@pytest.mark.parametrize("refused", [0, 1, 3, 9])
def test_a_disk_that_refuses_on_the_way_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """A look at a journal that fails after some lines misses none of the others afterwards, and has none twice."""
    journal, real = Journal(tmp_path / "journal.jsonl"), Path.open
    for number in range(10):
        journal.append("note", text=f"word {number}")

    class Failing:
        def __init__(self, *given: Any) -> None:
            self.file = real(*given)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __iter__(self) -> Any:
            for number, line in enumerate(self.file):
                if number == refused:
                    raise OSError(errno.EIO, "I/O error")
                yield line

    tail = JournalTail(journal.path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *given: Failing(path, *given))
        assert len(tail.read()) == refused
    assert tail.trouble == "the journal cannot be read: I/O error"
    assert [event.seq for event in tail.read()] == [*range(refused + 1, 11)]
    assert (tail.trouble, tail.read()) == (None, [])
    assert [note.text for note in tail.state.notes] == [f"word {number}" for number in range(10)]


def test_whoever_stops_on_the_way_gets_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("one\ntwo\nthree\n")
    rows = Growing(path)
    looking = rows.each()
    assert next(looking) == b"one"
    looking.close()
    assert list(rows.each()) == [b"two", b"three"]
    assert list(rows.each()) == []


def test_rows_that_a_disk_refuses_are_read_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("one\ntwo\n")

    @contextlib.contextmanager
    def refused(path: Path) -> Iterator[IO[bytes]]:
        with path.open("rb") as file:
            unreadable = mock.Mock(wraps=file)
            unreadable.read.side_effect = OSError(errno.EIO, "I/O error")
            yield unreadable

    rows = Growing(path, opened=refused)
    with pytest.raises(OSError, match="I/O error"):
        rows.lines()
    rows._open = lambda path: path.open("rb")
    assert rows.lines() == [b"one", b"two"]
    assert rows.lines() == []
