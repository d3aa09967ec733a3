"""Reading files that a trainer may have put there in bad faith, or made too large to be read.

A FIFO would hold up whoever opens it until somebody writes, a link may lead to a device that never ends, and a file of
10 GB is no heartbeat. Only a plain file of at most so many bytes is read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class NotPlain(OSError):
    """It is there, and no file that can be read as what it should be."""


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """The file, opened for reading. Raises NotPlain where it is a folder, a FIFO, a device or a socket, OSError as the
    system does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotPlain(f"{path.name} is no plain file")
        yield file


def read_plain(path: Path, *, most: int) -> bytes:
    """All of a file of at most `most` bytes. Raises NotPlain where it is larger or no file, OSError as the system
    does."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
        if size > most or len(data) > most:
            raise NotPlain(f"{path.name} has {max(size, len(data))} bytes, and {most} are the most that is read")
        return data


LONG = 64 * 1024 * 1024
HEAD = 1024 * 1024
TAIL = 16 * 1024 * 1024


def shorten(path: Path, *, long: int = LONG, head: int = HEAD, tail: int = TAIL) -> None:
    """Keep only the first and the last bytes of a log that is longer than anybody reads. What cannot be shortened stays
    as it is."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= long:
                return
            file.seek(size - tail)
            last = file.read(tail)
        cut = f"\n... {size - head - tail} bytes were taken out here ...\n".encode()
        with path.open("r+b") as file:  # in place: on a full disk there is no room for a copy
            file.truncate(head)
            file.seek(head)
            file.write(cut + last)
    except OSError:
        return


def clear_the_way(path: Path) -> None:
    """Remove what is no plain file where one is going to be written: a link would be followed, a FIFO would wait."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path, ignore_errors=True)
    elif not stat.S_ISREG(mode):
        path.unlink(missing_ok=True)
