"""What the kernel says about memory kills and graphics faults: /dev/kmsg where it may be read, and /proc/vmstat.

A silent hang of a GPU leaves nothing here (ROCm legacy-rocm-build#6530), so an empty answer proves nothing.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from agent.hardware.root import HOST, Root

RELEVANT = re.compile(
    r"out of memory|oom-kill|oom_reaper|amdgpu|amdkfd|NVRM|nvidia|i915|segfault at|blocked for more than"
    r"|I/O error|EXT4-fs error|No space left|hung_task|Memory cgroup",
    re.IGNORECASE,
)
MOST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class KernelLog:
    text: str
    """One message a line, only those that concern memory, graphics, disks and hung tasks."""
    why_empty: str | None
    """Why there is no text, in words; None where there is some."""


def kernel_log(*, since: float | None = None, root: Root = HOST) -> KernelLog:
    """Messages from `since` on (seconds since boot, as `seconds_since_boot` gives them)."""
    try:
        records = _records(root.path("/dev/kmsg"))
    except OSError as error:
        return KernelLog("", f"the kernel log cannot be read ({error.strerror}); `dmesg` as root would show it")
    lines = [text for stamp, text in records if (since is None or stamp >= since) and RELEVANT.search(text)]
    return KernelLog("\n".join(lines), None if lines else "the kernel log says nothing about memory, graphics or disks")


def seconds_since_boot() -> float:
    """The clock that the kernel stamps its messages with, to within the time the machine slept."""
    clock = getattr(time, "CLOCK_MONOTONIC", None)
    return time.clock_gettime(clock) if clock is not None else 0.0


def oom_kills(*, root: Root = HOST) -> int | None:
    """Processes that the kernel has killed for memory on this machine since boot; None where it does not count."""
    found = re.search(r"^oom_kill (\d+)$", root.text("/proc/vmstat") or "", re.MULTILINE)
    return int(found.group(1)) if found else None


def _records(device: Path) -> list[tuple[float, str]]:
    """(seconds since boot, message) of every record now in the buffer. Each read of /dev/kmsg gives one record."""
    descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    records: list[tuple[float, str]] = []
    size = 0
    try:
        while size < MOST_BYTES:
            try:
                chunk = os.read(descriptor, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # the record was overwritten while we read; the next read goes on after it
            if not chunk:
                break
            size += len(chunk)
            records.extend(_parse(chunk.decode(errors="replace")))
    finally:
        os.close(descriptor)
    return records


def _parse(text: str) -> list[tuple[float, str]]:
    """`priority,sequence,microseconds,flags;message`, with continuation lines that begin with a blank."""
    found = []
    for line in text.splitlines():
        head, separator, message = line.partition(";")
        fields = head.split(",")
        if separator and len(fields) >= 3 and fields[2].isdigit():
            found.append((int(fields[2]) / 1e6, message))
    return found
