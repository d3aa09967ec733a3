"""What tells one process, and one boot of a machine, from another, where the system says so (Linux)."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def kernel_boot_id() -> str | None:
    """Differs after every boot of the machine (random(4)); None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22 of stat); None where there is none, also
    where only its zombie is left, and where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if len(fields) > 19 and fields[0] not in ("Z", "X") else None
