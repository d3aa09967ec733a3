"""Logs of any size, encoding and kind become text with the right line numbers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.run.diagnosis import Evidence
from agent.run.logfile import read_log, read_stream
from agent.run.triage import triage

OOM = "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.00 GiB."


class Endless(io.RawIOBase):
    """A log of any size that takes no room: the same line again and again, then an end."""

    def __init__(self, line: bytes, size: int, end: bytes) -> None:
        self._block = line * (1 + (1 << 20) // len(line))
        self._left, self._end = size, end

    def read(self, most: int = -1) -> bytes:
        if self._left > 0:
            chunk = self._block[: min(most, len(self._block), self._left)]
            self._left -= len(chunk)
            return chunk
        end, self._end = self._end, b""
        return end


@pytest.mark.slow
def test_a_log_of_two_gigabytes_is_read_in_one_pass_with_its_line_numbers() -> None:
    line = b"2026-11-26 10:00:00 INFO step loss ok and so on and on and on\n"
    lines = (2 << 30) // len(line)
    log = Endless(line, lines * len(line), b"\n" + OOM.encode() + b"\nlast\n")
    read = read_stream(log)  # type: ignore[arg-type]  # a stream that only reads
    assert read.bytes == lines * len(line) + len(OOM) + 7
    assert len(read.text) < 20 << 20
    assert "MiB were read" in read.notes[0]
    diagnosis = triage(Evidence(log=read.text[-100_000:], exit_code=1))
    assert diagnosis.crash_class == "oom"
    number = read.text.split("\n").index(OOM) + read.first_line
    newlines_lost = 2048 // 1  # a chunk may end inside a line of the repeated block
    assert abs(number - (lines + 2)) <= newlines_lost


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet="ab ü", max_size=12), min_size=1, max_size=60), st.integers(8, 200))
def test_the_number_of_the_first_line_fits_whatever_is_cut_off(lines: list[str], most: int) -> None:
    data = "\n".join(lines).encode()
    read = read_stream(io.BytesIO(data), most=most)
    rest = lines[read.first_line - 1 :]
    kept = read.text.split("\n")
    assert kept[1:] == rest[1:]
    assert rest[0].endswith(kept[0].lstrip("�")) or len(data) > most


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(f"Schritt für Schritt\nmüßig\n{OOM}\n".encode(encoding))
    read = read_log(path)
    assert OOM in read.text
    assert "für" in read.text
    assert triage(Evidence(log=read.text)).line == 3


def test_garbage_is_said_to_be_no_text_and_control_characters_do_not_come_through(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(range(256)) * 4000)
    read = read_log(path)
    assert any("no text" in note for note in read.notes)
    assert not set(read.text) & {chr(n) for n in range(32)} - {"\t", "\n", "\r", "\x1b"}


def test_one_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc.def." * 2_000_000)
    read = read_log(path)
    assert triage(Evidence(log=read.text, exit_code=1)).crash_class == "unknown"
    path.write_bytes(b"x" * (9 << 20) + b"\r" + OOM.encode())
    assert triage(Evidence(log=read_log(path).text)).crash_class == "oom"


def test_no_log_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such log"):
        read_log(tmp_path / "absent")
    with pytest.raises(UsageError, match="directory"):
        read_log(tmp_path)
    (tmp_path / "empty").touch()
    assert read_log(tmp_path / "empty").text == ""
