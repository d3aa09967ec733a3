"""Walls around the whole host: namespaces, and a root folder in which there is nothing but what Python needs.

After `raise_walls` this process has, in a mount namespace of its own, a read-only root made of bind mounts, no /proc,
no /sys, a /dev of four harmless files, and an empty /tmp in memory; no network but a loopback that is down; and it is
the first process of a PID namespace, so that with its end everything in there ends. Root does this with its own
capabilities, and what it runs then gives them up (`confine`); anybody else in a user namespace, where the system lets
them: Ubuntu 24.04 does not (kernel.apparmor_restrict_unprivileged_userns), which only trying tells.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sysconfig
from collections.abc import Iterable
from typing import Any

from agent.tasks.box import kernel

USER_NAMESPACE = "user namespace"
TEMPORARY_BYTES = 64 << 20
TEMPORARY_FILES = 1024
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_WITHIN = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
_LOOK_SECONDS = 0.5


def temporary_beside(readable: list[str]) -> str:
    """Where the temporary folder is: /tmp, unless something readable lies below, which it would hide."""
    return "/tmp" if not any(path.startswith("/tmp/") for path in readable) else "/temporary"


def raise_walls(readable: list[str]) -> str:
    """Move into new namespaces with only `readable` in them. Returns how: `root` or `user namespace`.

    Returns in a child, the first process of the PID namespace; its parent stays behind and ends with it. Raises
    OSError where the system refuses, in a state that is good for nothing but leaving.
    """
    how = _unshare(_WITHIN)
    trees = [(path, *_copied(path)) for path in readable if os.path.lexists(path)]
    devices = [(path, kernel.detached_copy(path, kernel.MOUNT_ATTR_NOSUID)) for path in DEVICES]
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # What the new root covers is not lost: the copies above hang nowhere.
    base = next(folder for folder in ("/tmp", "/usr", "/var") if os.path.isdir(folder))
    kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
    os.umask(0o022)
    for path, link, tree in trees:
        _put(base, path, link, tree)
    for path, tree in devices:
        _put(base, path, None, tree)
    temporary = temporary_beside(readable)
    os.makedirs(base + temporary, exist_ok=True)
    os.chdir(base)
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/")
    kernel.make_read_only("/")
    become_first_process()
    mount_temporary(temporary)
    return how


def raise_inner_walls(temporary: str) -> None:
    """Inside bubblewrap: namespaces to have a fresh /tmp and PID namespaces in, where it may. OSError where not."""
    _unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    become_first_process()
    mount_temporary(temporary)


def _unshare(flags: int) -> str:
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(flags)
        return "root"
    except OSError:
        kernel.unshare(flags | kernel.CLONE_NEWUSER)
    # Inside, the user keeps the own number.
    with contextlib.suppress(FileNotFoundError):
        _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    return USER_NAMESPACE


def _copied(path: str) -> tuple[str | None, int]:
    """Where a link leads, or a detached read-only mount of a folder or file."""
    if os.path.islink(path):
        return os.readlink(path), -1
    attributes = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    return None, kernel.detached_copy(path, attributes)


def _put(base: str, path: str, link: str | None, tree: int) -> None:
    target = base + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if link is not None:
        os.symlink(link, target)
        return
    if os.path.isdir(f"/proc/self/fd/{tree}"):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.attach(tree, target)
    os.close(tree)


def mount_temporary(folder: str, *, again: bool = False) -> None:
    """An empty folder in memory; with `again`, in the place of the one that a program has written to."""
    if again:
        kernel.unmount(folder)
    # Its mode is for the user that a program of root's becomes.
    options = f"mode=1777,size={TEMPORARY_BYTES},nr_inodes={TEMPORARY_FILES}"
    kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def state_of_temporary(folder: str) -> Any:
    """Changes with whatever a program does to it."""
    found = os.stat(folder)
    return found.st_ctime_ns, found.st_mode, found.st_uid, found.st_dev, bool(os.listdir(folder))


def become_first_process() -> None:
    """Go on in a child. This process waits for it, and ends it where the one that started this one is gone."""
    parent = os.getppid()
    # Keeps a program of the same user out of our memory, where there is a /proc and no Landlock.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        # The parent has one thread, so this means the death of the process.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    # What they lead to ends when the child's end is closed.
    os.closerange(0, 3)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            os._exit(128 - code if (code := os.waitstatus_to_exitcode(status)) < 0 else code)
        if os.getppid() != parent:
            os.kill(child, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, _LOOK_SECONDS)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def what_python_needs() -> list[str]:
    """Folders and files that a Python like this one reads while it runs: its library, and the system's shared ones."""
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if "/" in line}
    libraries = {os.path.dirname(name) for name in mapped if ".so" in os.path.basename(name)}
    named = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR")]
    paths = {*SYSTEM, *libraries, *(path for path in named if path)}
    return outermost(path for path in paths | set(map(os.path.realpath, paths)) if os.path.lexists(path))


def outermost(paths: Iterable[str]) -> list[str]:
    """Without those that lie below another one of them. Links count as what they are, not as where they lead."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(above.rstrip("/") + "/") and not os.path.islink(above) for above in kept):
            kept.append(path)
    return kept
