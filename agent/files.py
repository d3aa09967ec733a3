"""Durable small files: atomic replacement, and JSON lines of which a torn last one is tolerated.

All that is kept goes through `write_all`, `sync` and `put_in_place`, so that a test can have each of them fail, or end
the process, at any call.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, BinaryIO

Stamp = tuple[int, int, int, int]
"""Size, inode, times of the last change of content and of status (st_ctime_ns), nanoseconds. A process without special
rights can set the former time and not the latter (inode(7)), so equal stamps mean that nobody has written."""


def stamp_of(path: Path) -> Stamp:
    """Of the file that the name leads to. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def stamp_or_none(path: Path) -> Stamp | None:
    """None where there is no file, or none that can be looked at."""
    try:
        return stamp_of(path)
    except OSError:
        return None


def write_atomic(path: Path, text: str | bytes) -> None:
    """Replace `path` with `text` (bytes: as they are) so that a reader sees the old file or the new one, never a part.

    The bytes are on disk before the name points at them. Raises OSError as the file system does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        try:
            write_all(handle, text.encode() if isinstance(text, str) else text)
            os.fchmod(handle, 0o644)
            sync(handle)
        finally:
            os.close(handle)
        put_in_place(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what a `write_atomic` of `path` left beside it when it was killed. Only for the one writer of `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        leftover.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """All of `data`, in as few writes as the system takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def sync(descriptor: int) -> None:
    """Return once it is on the disk."""
    os.fsync(descriptor)


def put_in_place(temporary: str | Path, path: Path) -> None:
    """Rename over what is there."""
    Path(temporary).replace(path)


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` durable."""
    sync_files([folder])


def sync_files(paths: Iterable[Path]) -> None:
    """Make files and folders durable that were written without; one that is not there is passed over."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def append_line(path: Path, text: str, *, durable: bool = True) -> None:
    """Append one line in a single write; after return with `durable` it survives a power cut.

    Where the file's last line was torn by a kill, a newline is put first, so that the new line is whole.
    """
    if "\n" in text:
        raise ValueError("a line has no newline in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        write_all(descriptor, f"{chr(10) if torn else ''}{text}\n".encode())
        if durable:
            sync(descriptor)
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; lines that a kill tore are passed over. A missing file is empty."""
    if path.exists():
        with path.open("rb") as file:
            yield from json_lines(file)


def json_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The same of what is left of an open file."""
    lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace")
    try:
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
    finally:
        lines.detach()  # it is its opener's to close


CHECKED_BYTES = 4096
"""Before the place where a `Growing` goes on: the file is the one that was read before if they are still the same."""


def _open_file(path: Path) -> AbstractContextManager[IO[bytes]]:
    return path.open("rb")


Opened = Callable[[Path], AbstractContextManager[IO[bytes]]]


class Growing:
    """The lines of a file that another process appends to. Each `lines` reads what is new, and next to nothing where
    nothing is.

    A line that is not whole yet is kept back. Where the file was replaced, cut or removed, it is read from its
    beginning, and `times` has gone up.
    """

    def __init__(self, path: Path, *, most: int = -1, opened: Opened = _open_file) -> None:
        self.path, self.most, self._open = path, most, opened
        self.times = 0
        """How often it was begun anew: what was made of earlier lines is void then."""
        self._seen: tuple[int, int, int] | None = None
        self._offset = 0
        self._before = b""

    def lines(self) -> list[bytes]:
        """Without their newlines; empty where there is no file. Raises OSError where it cannot be read."""
        try:
            with self._open(self.path) as file:
                data = self._new_bytes(file)
        except FileNotFoundError:
            self._begin_anew()
            return []
        *lines, torn = data.split(b"\n")
        whole = len(data) - len(torn)
        if whole:
            self._offset += whole
            self._before = data[max(0, whole - CHECKED_BYTES) : whole]
        return lines

    def each(self) -> Iterator[bytes]:
        """The same one by one, all that there are: of a long file no more than a line is held in memory. Whoever stops
        on the way, or is stopped by the disk, gets the rest the next time."""
        try:
            opened = self._open(self.path)
        except FileNotFoundError:
            self._begin_anew()
            return
        with opened as file, self._looking_again_unless_done():
            if not self._is_new(file):
                return
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._before = line[-CHECKED_BYTES:]
                yield line[:-1]

    def _new_bytes(self, file: IO[bytes]) -> bytes:
        with self._looking_again_unless_done():
            return file.read(self.most) if self._is_new(file) else b""

    @contextlib.contextmanager
    def _looking_again_unless_done(self) -> Iterator[None]:
        """What has been seen of a file is that it is as it was; what could not be read has not been seen."""
        try:
            yield
        except BaseException:
            if self._seen is not None:
                self._seen = self._seen[0], -1, -1
            raise

    def _is_new(self, file: IO[bytes]) -> bool:
        """Whether there is anything to read, from where the file now stands."""
        status = os.fstat(file.fileno())
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen == self._seen:
            return False
        if not self._is_the_same(file, status):
            self._begin_anew()
        self._seen = seen
        file.seek(self._offset)
        return True

    def _is_the_same(self, file: IO[bytes], status: os.stat_result) -> bool:
        """A file's number is given to another one as soon as it is gone, so what was read last is compared too."""
        if self._seen is None or status.st_ino != self._seen[0] or status.st_size < self._offset:
            return False
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _begin_anew(self) -> None:
        self.times += self._seen is not None
        self._seen, self._offset, self._before = None, 0, b""
