"""Limits and use of the control group that a process lives in, for cgroup v1 and v2: memory, its kills, processor time.

A container's limit is what kills a training there, long before the machine's own memory is spent. Facts:
Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current, memory.events, cpu.max) and cgroup-v1/memory.rst
(memory.limit_in_bytes, memory.usage_in_bytes, memory.oom_control with `oom_kill` since Linux 4.13).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from agent.hardware.root import HOST, Root

NO_LIMIT = 2**60
"""cgroup v1 writes a number near 2^63 for `no limit`."""
MARKS = {"memory": ("memory.current", "memory.usage_in_bytes"), "cpu": ("cpu.max", "cpu.cfs_quota_us")}
"""Files that a group with the controller has, in v2 and v1."""


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

    available: int | None = None
    """What the tightest group on that way has left: all that is in it shares its limit."""


def cgroup_memory(*, pid: int | str = "self", root: Root = HOST) -> CgroupMemory | None:
    """What the memory controller says about the process; None where there is none (macOS, no /proc)."""
    for version, folder, mounted in _groups("memory", pid=pid, root=root):
        return _v2(root, folder, mounted) if version == 2 else _v1(root, folder, mounted)
    return None


def cpu_quota(*, pid: int | str = "self", root: Root = HOST) -> float | None:
    """Processors' worth of time that the process may use, by the tightest group; None for no quota."""
    for version, folder, mounted in _groups("cpu", pid=pid, root=root):
        quotas = []
        for level in _upward(folder, mounted):
            if version == 2:
                quota, _, period = (root.text(f"{level}/cpu.max") or "").partition(" ")
            else:
                quota = root.text(f"{level}/cpu.cfs_quota_us") or ""
                period = root.text(f"{level}/cpu.cfs_period_us") or ""
            if quota.isdigit() and period.isdigit() and int(period):  # `max` and -1 are no quota
                quotas.append(int(quota) / int(period))
        return min(quotas, default=None)
    return None


def _groups(controller: str, *, pid: int | str, root: Root) -> Iterator[tuple[int, str, str]]:
    """(version, folder of the process's group, mount point), by the hierarchy that owns the controller first."""
    if root.is_host and not sys.platform.startswith("linux"):
        return
    mounts = _mounts(root.text("/proc/self/mountinfo") or "", controller)
    for version, relative in _memberships(root.text(f"/proc/{pid}/cgroup") or "", controller):
        for inside, mounted in mounts.get(version, ()):
            folder = _folder(root, relative, inside=inside, mounted=mounted, controller=controller)
            if folder is not None:
                yield version, folder, mounted


def _memberships(text: str, controller: str) -> Iterator[tuple[int, str]]:
    """(version, path) of the lines that carry the controller; v1 first, since it then owns it."""
    rows = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for _, controllers, path in rows:
        if controller in controllers.split(","):
            yield 1, path
    for number, controllers, path in rows:
        if number == "0" and not controllers:
            yield 2, path


def _mounts(text: str, controller: str) -> dict[int, list[tuple[str, str]]]:
    """version -> [(root inside the hierarchy, mount point)] of file systems that hold the controller's files."""
    found: dict[int, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            found.setdefault(2, []).append((fields[3], fields[4]))
        elif kinds[0] == "cgroup" and controller in kinds[2].split(","):
            found.setdefault(1, []).append((fields[3], fields[4]))
    return found


def _folder(root: Root, relative: str, *, inside: str, mounted: str, controller: str) -> str | None:
    """Where the group lies below the mount point; inside a container the path may be seen from outside of it."""
    path = relative.removeprefix(inside) if inside != "/" else relative
    for candidate in (f"{mounted}/{path.strip('/')}".rstrip("/"), mounted):
        if any(root.exists(f"{candidate}/{name}") for name in MARKS[controller]):
            return candidate
    return None


def _v2(root: Root, folder: str, mounted: str) -> CgroupMemory:
    def used(level: str) -> int | None:
        stat = root.text(f"{level}/memory.stat")
        cache = sum(_field(stat, name) or 0 for name in ("inactive_file", "active_file", "slab_reclaimable"))
        return _less(_number(root.text(f"{level}/memory.current")), cache)

    limits = {level: _number(root.text(f"{level}/memory.max")) for level in _upward(folder, mounted)}
    return _told(2, folder, limits, used, kills=_field(root.text(f"{folder}/memory.events"), "oom_kill"))


def _v1(root: Root, folder: str, mounted: str) -> CgroupMemory:
    def used(level: str) -> int | None:
        stat = root.text(f"{level}/memory.stat")
        cache = sum(_field(stat, f"total_{name}") or 0 for name in ("inactive_file", "active_file"))
        return _less(_number(root.text(f"{level}/memory.usage_in_bytes")), cache)

    limits = {level: _number(root.text(f"{level}/memory.limit_in_bytes")) for level in _upward(folder, mounted)}
    return _told(1, folder, limits, used, kills=_field(root.text(f"{folder}/memory.oom_control"), "oom_kill"))


def _told(
    version: int,
    folder: str,
    limits: Mapping[str, int | None],
    used: Callable[[str], int | None],
    *,
    kills: int | None,
) -> CgroupMemory:
    known = {level: limit for level, limit in limits.items() if limit is not None}
    ours = used(folder)
    left = [] if ours is None else [limit - (used(level) or ours) for level, limit in known.items()]
    return CgroupMemory(
        version=version,
        path=folder,
        limit=min(known.values(), default=None),
        used=ours,
        oom_kills=kills,
        available=max(0, min(left)) if left else None,
    )


def _less(current: int | None, cache: int) -> int | None:
    return None if current is None else max(0, current - cache)


def _upward(folder: str, mounted: str) -> Iterator[str]:
    yield folder
    while folder != mounted and folder.startswith(f"{mounted}/"):
        folder = folder.rpartition("/")[0]
        yield folder


def _number(text: str | None) -> int | None:
    if text is None or not text.isdigit() or int(text) >= NO_LIMIT:
        return None
    return int(text)


def _field(text: str | None, name: str) -> int | None:
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
