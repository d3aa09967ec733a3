"""System calls that Python 3.11 has no function for, and the numbers they go by.

Numbers from linux/unistd.h of x86_64 and arm64 (asm-generic); those above 423 are the same on both.
"""

from __future__ import annotations

import ctypes
import os
import platform

LIBC = ctypes.CDLL(None, use_errno=True)

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_THREAD = 0x00010000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_MACHINE = platform.machine()
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_OPEN_TREE, _MOVE_MOUNT, _PIDFD_OPEN, _MOUNT_SETATTR = 428, 429, 434, 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446

# linux/mount.h, linux/fcntl.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH, _AT_FDCWD = 1, 0x8000, 0x1000, -100
_MOVE_MOUNT_F_EMPTY_PATH = 4


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, what: str, *arguments: object) -> int:
    """Result of a system call; OSError that names it where it fails."""
    LIBC.syscall.restype = ctypes.c_long
    return checked(LIBC.syscall(ctypes.c_long(number), *arguments), what)


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    checked(LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), "prctl")


def unshare(flags: int) -> None:
    checked(LIBC.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    checked(LIBC.setns(descriptor, flags), "setns")


def pidfd_of_self() -> int:
    return syscall(_PIDFD_OPEN, "pidfd_open", ctypes.c_int(os.getpid()), ctypes.c_uint(0))


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    checked(LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def unmount(target: str) -> None:
    checked(LIBC.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    syscall(_PIVOT_ROOT[_MACHINE], "pivot_root", new.encode(), old.encode())


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def detached_copy(path: str, attributes: int) -> int:
    """A mount of `path` and all below it that hangs nowhere yet, with MOUNT_ATTR_... set on all of it (Linux 5.12)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = syscall(_OPEN_TREE, f"open_tree {path}", ctypes.c_int(_AT_FDCWD), path.encode(), ctypes.c_uint(flags))
    _set_attributes(tree, "", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes)
    return tree


def attach(tree: int, target: str) -> None:
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    arguments = (ctypes.c_int(tree), b"", ctypes.c_int(_AT_FDCWD), target.encode(), flags)
    syscall(_MOVE_MOUNT, f"move_mount {target}", *arguments)


def make_read_only(target: str) -> None:
    _set_attributes(_AT_FDCWD, target, 0, MOUNT_ATTR_RDONLY)


def _set_attributes(folder: int, path: str, flags: int, attributes: int) -> None:
    wanted = _MountAttributes(attr_set=attributes)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    arguments = (ctypes.c_int(folder), path.encode(), ctypes.c_uint(flags), ctypes.byref(wanted), size)
    syscall(_MOUNT_SETATTR, "mount_setattr", *arguments)


def drop_capabilities() -> None:
    """None permitted, effective or inheritable. From linux/capability.h, version 3."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall(_CAPSET[_MACHINE], "capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp_filter(program: bytes) -> None:
    """Install a filter in classic BPF for this thread and all that it starts. no_new_privs must be set."""
    wanted = _Program(len(program) // 8, program)
    syscall(_SECCOMP[_MACHINE], "seccomp", ctypes.c_uint(1), ctypes.c_uint(0), ctypes.byref(wanted))
