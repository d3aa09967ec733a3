"""The kernel's files, read below a folder that a test can replace, with a time limit where a driver may never answer.

A read of /sys runs code of a driver, and a driver that hangs never returns (no signal ends that wait). Such a read is
done by a thread that can be left behind; a file that did not answer once is not read again by this process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

READ_LIMIT_S = 2.0
"""A reading takes microseconds; a machine that swaps may hold one up for longer, and is not to lose its sensors."""
MOST_BYTES = 16 * 1024 * 1024
KERNELS_OWN = "/sys/fs/cgroup/"
"""Below it no driver is asked, and whoever guards memory must not wait for one."""
T = TypeVar("T")


class NoAnswer(OSError):
    """A driver did not come back in time, now or earlier in this process."""


@dataclass(frozen=True)
class Reading:
    text: str | None
    why: str | None
    """Why there is no text; None where there is some."""


@dataclass(frozen=True)
class Root:
    """Where /sys, /proc, /dev and the rest are looked for. Names are absolute, as they are on the machine itself."""

    folder: Path = Path("/")
    limit_s: float = READ_LIMIT_S

    @property
    def is_host(self) -> bool:
        """Whether it is this machine; only then do psutil and the process's own affinity count."""
        return self.folder == Path("/")

    def path(self, name: str) -> Path:
        return self.folder / name.lstrip("/")

    def read(self, name: str) -> Reading:
        """Text without blanks at its ends, or why there is none. Never raises for what the file does."""
        path = self.path(name)
        try:
            if name.startswith("/sys/") and not name.startswith(KERNELS_OWN):
                text = within(self.limit_s, str(path), lambda: _content(path))
            else:
                text = _content(path)
        except NoAnswer as error:
            return Reading(None, str(error))
        except OSError as error:
            return Reading(None, f"{name}: {error.strerror or error}")
        return Reading(text, None)

    def text(self, name: str) -> str | None:
        return self.read(name).text

    def number(self, name: str) -> float | None:
        text = self.text(name)
        try:
            return float(text) if text else None
        except ValueError:
            return None

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, in order (card2 before card10); empty where it is none or may not be listed."""
        try:
            return sorted((entry.name for entry in os.scandir(self.path(folder))), key=_numbered)
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        try:
            return self.path(name).exists()
        except OSError:
            return False


HOST = Root()


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MOST_BYTES).decode(errors="replace").strip()


def _numbered(name: str) -> tuple[str, int, str]:
    letters = name.rstrip("0123456789")
    digits = name[len(letters) :]
    return letters, int(digits) if digits else -1, name


# --- reads that may never come back ------------------------------------------------------------------------


class _Worker:
    """A thread that does one piece of work after the other; it is left behind when one does not end."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[tuple[bool, Any]]]]
        self._asked = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="sysfs reader", daemon=True).start()

    def _serve(self) -> None:
        while True:
            work, answer = self._asked.get()
            try:
                answer.put((True, work()))
            except Exception as error:
                answer.put((False, error))

    def do(self, work: Callable[[], T], *, limit_s: float) -> T:
        """What `work` returns or raises; queue.Empty where it takes longer."""
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._asked.put((work, answer))
        good, value = answer.get(timeout=limit_s)
        if good:
            result: T = value
            return result
        raise value


class _Readers:
    """The process's worker, and what did not answer it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.worker: _Worker | None = None
        self.stuck: dict[str, str] = {}


_readers = _Readers()


def _after_fork() -> None:
    """A child has no thread of its parent; what did not answer the parent will not answer it."""
    global _readers
    stuck = _readers.stuck
    _readers = _Readers()
    _readers.stuck.update(stuck)


with contextlib.suppress(AttributeError):  # where processes cannot fork
    os.register_at_fork(after_in_child=_after_fork)


def within(limit_s: float, key: str, work: Callable[[], T]) -> T:
    """What `work` returns. Raises NoAnswer where it takes longer than `limit_s`, and from then on for this `key`."""
    readers = _readers
    with readers.lock:
        if key in readers.stuck:
            raise NoAnswer(readers.stuck[key])
        if readers.worker is None:
            readers.worker = _Worker()
        try:
            return readers.worker.do(work, limit_s=limit_s)
        except queue.Empty:
            readers.worker = None
            readers.stuck[key] = (
                f"{key} did not answer in {limit_s:g} s (a driver that hangs does that); not asked again"
            )
            raise NoAnswer(readers.stuck[key]) from None


def unanswered(root: Root = HOST) -> list[str]:
    """In words: what has not answered below the root since this process began."""
    below = str(root.folder)
    return sorted(words for key, words in _readers.stuck.items() if key.startswith(below) or not key.startswith("/"))
