"""Memory limit, use and out-of-memory kills of the control group that a process lives in, for cgroup v1 and v2.

A container's limit is what kills a training there, long before the machine's own memory is spent. Facts:
Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current, memory.events) and cgroup-v1/memory.rst
(memory.limit_in_bytes, memory.usage_in_bytes, memory.oom_control with `oom_kill` since Linux 4.13).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 2**60
"""cgroup v1 writes a number near 2^63 for `no limit`."""


@dataclass(frozen=True)
class CgroupMemory:
    """Bytes; None where the kernel does not say. The limit is the tightest one on the way to the root."""

    version: int
    path: str
    limit: int | None
    used: int | None
    """Without page cache that the kernel would drop under pressure."""
    oom_kills: int | None
    """Processes of this group that the kernel has killed for memory, since the group was made."""

    @property
    def available(self) -> int | None:
        if self.limit is None or self.used is None:
            return None
        return max(0, self.limit - self.used)


def cgroup_memory(*, pid: int | str = "self", proc: Path = Path("/proc")) -> CgroupMemory | None:
    """What the memory controller says about the process; None where there is none (macOS, no /proc)."""
    if not sys.platform.startswith("linux"):
        return None
    mounts = _mounts(_read(proc / "self" / "mountinfo"))
    for version, relative in _memberships(_read(proc / str(pid) / "cgroup")):
        for root, mounted in mounts.get(version, ()):
            folder = _folder(relative, root=root, mounted=mounted)
            if folder is not None:
                return _v2(folder, mounted) if version == 2 else _v1(folder, mounted)
    return None


def _memberships(text: str) -> Iterator[tuple[int, str]]:
    """(version, path) of the lines that carry the memory controller; v1 first, since it then owns memory."""
    rows = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for _, controllers, path in rows:
        if "memory" in controllers.split(","):
            yield 1, path
    for number, controllers, path in rows:
        if number == "0" and not controllers:
            yield 2, path


def _mounts(text: str) -> dict[int, list[tuple[str, Path]]]:
    """version -> [(root inside the hierarchy, mount point)] of file systems that hold memory files."""
    found: dict[int, list[tuple[str, Path]]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            found.setdefault(2, []).append((fields[3], Path(fields[4])))
        elif kinds[0] == "cgroup" and "memory" in kinds[2].split(","):
            found.setdefault(1, []).append((fields[3], Path(fields[4])))
    return found


def _folder(relative: str, *, root: str, mounted: Path) -> Path | None:
    """Where the group lies below the mount point; inside a container the path may be seen from outside of it."""
    inside = relative.removeprefix(root) if root != "/" else relative
    for candidate in (mounted / inside.lstrip("/"), mounted):
        if any((candidate / name).exists() for name in ("memory.current", "memory.usage_in_bytes")):
            return candidate
    return None


def _v2(folder: Path, mounted: Path) -> CgroupMemory:
    limits = [_number(_read(level / "memory.max")) for level in _upward(folder, mounted)]
    current = _number(_read(folder / "memory.current"))
    cache = _field(_read(folder / "memory.stat"), "inactive_file") or 0
    return CgroupMemory(
        version=2,
        path=str(folder),
        limit=min((limit for limit in limits if limit is not None), default=None),
        used=None if current is None else max(0, current - cache),
        oom_kills=_field(_read(folder / "memory.events"), "oom_kill"),
    )


def _v1(folder: Path, mounted: Path) -> CgroupMemory:
    limits = [_number(_read(level / "memory.limit_in_bytes")) for level in _upward(folder, mounted)]
    usage = _number(_read(folder / "memory.usage_in_bytes"))
    cache = _field(_read(folder / "memory.stat"), "total_inactive_file") or 0
    return CgroupMemory(
        version=1,
        path=str(folder),
        limit=min((limit for limit in limits if limit is not None), default=None),
        used=None if usage is None else max(0, usage - cache),
        oom_kills=_field(_read(folder / "memory.oom_control"), "oom_kill"),
    )


def _upward(folder: Path, mounted: Path) -> Iterator[Path]:
    yield folder
    while folder != mounted and mounted in folder.parents:
        folder = folder.parent
        yield folder


def _number(text: str) -> int | None:
    text = text.strip()
    if not text.isdigit() or int(text) >= NO_LIMIT:
        return None
    return int(text)


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
