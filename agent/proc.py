"""Which processes there are, and what tells one process, and one boot of a machine, from another, where the system says
so (Linux). The one reader of /proc/PID/stat and of who descends from whom. And how nice a session is to the others.

Only the standard library, and of that only what starts fast: the leash (`agent/run/leash.py`) loads this beside a
training, in a Python without anything else of ours.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time

AUTOGROUP = "/proc/self/autogroup"
MOST_NICE = 19


@functools.cache
def kernel_boot_id() -> str | None:
    """Differs after every boot of the machine (random(4)); None where the system does not tell."""
    try:
        return _read("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        return None


def stat_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may hold blanks and brackets. Empty where there is
    no such process."""
    try:
        text = _read(f"/proc/{pid}/stat").decode(errors="replace")
    except OSError:  # also one that has gone between opening and reading
        return []
    return text.rpartition(")")[2].split()


def has_ended(fields: list[str]) -> bool:
    """By the fields of `stat_of`. One whose first thread has left while others run on is shown as a zombie too."""
    return fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22 of stat); None where there is none, also
    where only its zombie is left, and where the system does not tell."""
    fields = stat_of(pid)
    return int(fields[19]) if fields and not has_ended(fields) else None


def descendant_pids(pid: int) -> list[int]:
    """Children, their children and so on, parents first.

    By the kernel's own list of each thread's children where it keeps one (proc(5), /proc/PID/task/TID/children): a
    walk through the whole process table takes some 10 ms on a desktop, and this is asked every second.
    """
    if not os.access(f"/proc/{os.getpid()}/task/{os.getpid()}/children", os.R_OK):
        return _descendants_by_table(pid)
    found: dict[int, None] = {}
    waiting = [pid]
    while waiting:
        children = [child for child in _children(waiting.pop()) if child not in found and child != pid]
        found.update(dict.fromkeys(children))
        waiting += children
    return list(found)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = [entry.name for entry in os.scandir(f"/proc/{pid}/task")]
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError, ValueError):
            found += [int(word) for word in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def _descendants_by_table(pid: int) -> list[int]:
    below: dict[int, list[int]] = {}
    for name in [entry.name for entry in os.scandir("/proc")]:
        if name.isdigit() and (fields := stat_of(int(name))):
            below.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = [child for child in below.get(waiting.pop(), []) if child not in found]
        found += children
        waiting += children
    return found


def group_nice() -> int | None:
    """The nice value of the group of the session that this process leads; None where the kernel groups no sessions.

    Where it does (sched(7), "The autogroup feature"; most distributions have it on), the nice value of a process counts
    within its own session only. None for a process that leads none: the group is that of a terminal, for example, and
    all that runs there would be slower, for as long as the terminal is open.
    """
    if os.getsid(0) != os.getpid():
        return None
    try:
        return int(_read(AUTOGROUP).split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def set_group_nice(value: int, *, most_s: float) -> bool:
    """False where it cannot be set.

    The kernel lets unprivileged processes do so ten times a second, all of them together, and refuses otherwise.
    """
    deadline = time.monotonic() + most_s
    while group_nice() != value:
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):
            file = os.open(AUTOGROUP, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(file, str(value).encode())
            finally:
                os.close(file)
        time.sleep(0.03)
    return True


def _read(path: str) -> bytes:
    """Without Python's file objects: of the readers of the table, one asks twenty times a second. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while piece := os.read(file, 65536):
            text += piece
        return text
    finally:
        os.close(file)
