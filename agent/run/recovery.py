"""After a run has ended: did the memory that it held come back, and if not, who holds it.

A driver gives memory back some time after the process has gone, and after a GPU fault perhaps never. What is missing is
told apart: graphics memory, processes of the run that do not die, memory that no process accounts for (a driver keeps
it; seen in /proc/meminfo as what is neither free, cache, of processes nor of the kernel's tables), and what another
program has taken meanwhile, which is nobody's fault.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.hardware.sensors import GIB, Graphics, graphics, meminfo, memory
from agent.run.patient import Patient

SLACK_GB = 0.5
ANSWER_S = 2.0
_KIB = 2.0**20
"""KiB in a GiB."""


@dataclass(frozen=True)
class FreeMemory:
    """Free host memory and used graphics memory, GiB, as `wait_for_idle` compares them."""

    available: float
    graphics: float | None
    """None where no card tells."""
    unaccounted: float | None = None
    """Host memory that neither processes nor caches nor the kernel's tables explain: drivers hold it."""
    shared: float | None = None
    """Shared memory and files in memory: they stay when a process goes that did not remove them."""

    @classmethod
    def now(cls) -> FreeMemory:
        told = meminfo()
        return cls(
            memory().available,
            graphics_used_gb(),
            unaccounted=unaccounted_gb(told),
            shared=told["Shmem"] / GIB if "Shmem" in told else None,
        )


@dataclass(frozen=True)
class Recovered:
    waited_s: float
    memory_back: bool | None
    """Host and graphics memory are as before the run, but for what other programs take. None: it cannot be told whether
    what is missing is lost."""
    held_gb: float
    """What did not come back, GiB; 0 where all did."""
    words: str
    """Who holds it, as far as the system tells; empty where all is back."""


def wait_for_idle(
    before: FreeMemory,
    *,
    most_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    read: Callable[[], FreeMemory] = FreeMemory.now,
    slack_gb: float = SLACK_GB,
    settled_s: float = 2.0,
    left: Sequence[int] = (),
    holders: Callable[[], str] = lambda: graphics_holders(),
) -> Recovered:
    """Wait until memory is back to what it was before the run, or does not change any more; and say which.

    `left`: processes of the run that do not die. What another program has taken meanwhile will not come back, so a
    memory that is with other processes is not waited for, and where the system does not tell whose it is, a reading
    that stands still for `settled_s` ends the wait too. `holders` says in words who holds graphics memory.
    """
    began = clock()
    last, still_since = read(), began
    while clock() - began < most_s:
        seen = judge(before, last, slack_gb=slack_gb)
        if seen.memory_back and not (left and seen.words):
            break
        if clock() - still_since >= settled_s:
            break
        sleep(0.1)
        current = read()
        if abs(current.available - last.available) > 0.05 or abs(_more(last, current) or 0.0) > 0.05:
            still_since = clock()
        last = current
    return judge(before, last, waited_s=clock() - began, slack_gb=slack_gb, left=left, holders=holders)


def judge(
    before: FreeMemory,
    after: FreeMemory,
    *,
    waited_s: float = 0.0,
    slack_gb: float = SLACK_GB,
    left: Sequence[int] = (),
    holders: Callable[[], str] = lambda: "",
) -> Recovered:
    """What two readings say. Pure, but for `holders`, which is asked only where graphics memory is missing."""
    on_card = _more(before, after) or 0.0
    missing = before.available - after.available
    if left:
        who = ", ".join(map(str, left))
        return Recovered(waited_s, False, max(0.0, on_card, missing), f"process {who} of the run does not die")
    if on_card > slack_gb:
        who = holders()
        return Recovered(waited_s, False, on_card, f"graphics memory is still in use{f' by {who}' if who else ''}")
    if before.graphics is not None and after.graphics is None:
        return Recovered(waited_s, None, max(0.0, missing), "the graphics card's files do not answer any more")
    if missing <= slack_gb:
        return Recovered(waited_s, True, 0.0, "")
    kept, shared = _grown(before.unaccounted, after.unaccounted), _grown(before.shared, after.shared)
    if kept is not None and kept > slack_gb:
        # No card says that it is in use. TTM keeps freed pages for later and gives them back under pressure
        # (drivers/gpu/drm/ttm/ttm_pool.c), but on some machines gtt_used stays near 0 whatever is allocated (#5444).
        words = "no process accounts for it and no card reports it in use: a driver keeps it, for later or for good"
        return Recovered(waited_s, None, kept, words)
    if shared is not None and shared > slack_gb:
        return Recovered(waited_s, None, shared, "shared memory or files in memory (/dev/shm) have grown")
    if kept is None:
        return Recovered(waited_s, None, missing, "who holds it is not known here")
    return Recovered(waited_s, True, 0.0, f"another program or the page cache has taken {missing:.1f} GiB meanwhile")


def _more(before: FreeMemory, after: FreeMemory) -> float | None:
    """Graphics memory that is used beyond what was."""
    return _grown(before.graphics, after.graphics)


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


# --- what the system tells ---------------------------------------------------------------------------------


def graphics_used_gb(read: Callable[[], list[Graphics]] = graphics, *, most_s: float = ANSWER_S) -> float | None:
    """Memory in use on all cards; None where none tells, or their files do not answer in time, as after a GPU hang."""
    with contextlib.closing(Patient.asking(read)) as patient:
        cards = patient.fresh(most_s)
    used = [card.used for card in cards or [] if card.used is not None]
    return sum(used) if used else None


def unaccounted_gb(told: Mapping[str, int]) -> float | None:
    """Memory that proc(5) explains by none of its fields, GiB. TTM's pages, where a GPU's GTT lies, are such."""
    explained = (
        "MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "Slab", "KernelStack", "PageTables", "Percpu",
        "VmallocUsed",
    )  # fmt: skip
    if any(name not in told for name in ("MemTotal", "MemFree", "Cached", "AnonPages", "Slab")):
        return None
    huge = told.get("HugePages_Total", 0) * told.get("Hugepagesize", 0)
    return (told["MemTotal"] - sum(told.get(name, 0) for name in explained) - huge) / GIB


def graphics_holders(*, proc: Path = Path("/proc"), most: int = 3) -> str:
    """Processes that hold graphics memory, the largest first, by fdinfo (Linux Documentation/gpu/drm-usage-stats.rst),
    as far as they are ours to look at; empty where there are none."""
    sizes: dict[int, float] = {}
    for folder in proc.glob("[0-9]*"):
        size = _graphics_kib(folder / "fdinfo")
        if size > 0:
            sizes[int(folder.name)] = size / _KIB
    largest = sorted(sizes.items(), key=lambda pair: -pair[1])[:most]
    return ", ".join(
        f"process {pid} ({_name(proc / str(pid))}, {size:.1f} GiB)" for pid, size in largest if size > 0.05
    )


def _graphics_kib(folder: Path) -> float:
    """Of all open files of one process; a client that it has open several times counts once."""
    clients: dict[str, float] = {}
    try:
        files = list(folder.iterdir())
    except OSError:
        return 0.0
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        client = re.search(r"^drm-client-id:\s*(\d+)", text, re.MULTILINE)
        if client is not None:
            # drm-memory-* is an older name of drm-resident-*; a driver may print both
            clients[client.group(1)] = max(_kib(text, "resident"), _kib(text, "memory"))
    return sum(clients.values())


def _kib(text: str, name: str) -> float:
    sizes = re.findall(rf"^drm-{name}-(?:vram|gtt)\d*:\s*(\d+)\s*KiB", text, re.MULTILINE)
    return sum(map(float, sizes))


def _name(folder: Path) -> str:
    try:
        return (folder / "comm").read_text().strip()
    except OSError:
        return "unknown"
