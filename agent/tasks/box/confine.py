"""What every program gets on top of the walls, in the process that runs it: each layer bars what it can by itself.

rlimits always; then, as far as the kernel has them, no capabilities, Landlock (files, TCP, signals, abstract sockets;
https://docs.kernel.org/userspace-api/landlock.html says which ABI has which), and a seccomp filter that refuses what
code in a test has no use for: sockets, new processes and programs, signals to others, everything that reaches into
another process, mounts, namespaces, keys, and the large interfaces to the kernel in which most of its faults are found.
Threads, files and clocks go on working.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.tasks.box import kernel

NOBODY = 65534
"""Whom a program of root's runs as; the tester is the user before."""

# Landlock -------------------------------------------------------------------------------------------------------

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS_OF_ABI_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_MAKE_DEVICES = (1 << 6) | (1 << 11)  # MAKE_CHAR, MAKE_BLOCK
_TCP = 3  # bind and connect
_SCOPES = 3  # abstract unix sockets and signals
_VERSION = 1
_PATH_BENEATH = 1


def landlock_abi() -> int:
    """Version of Landlock's interface; 0 where the kernel has none, or has it switched off."""
    try:
        return kernel.syscall(
            kernel.LANDLOCK_CREATE_RULESET, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION)
        )
    except OSError:
        return 0


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scopes")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def landlock_rules(readable: Iterable[str], *, writable: Iterable[str], abi: int) -> int:
    """A descriptor of rules that leave reading below `readable` and everything but devices below `writable`."""
    handled = _FILE_RIGHTS_OF_ABI_1
    handled |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    wanted = _RulesetAttributes(handled, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = kernel.syscall(
        kernel.LANDLOCK_CREATE_RULESET, "landlock", ctypes.byref(wanted), ctypes.c_size_t(size), ctypes.c_uint(0)
    )
    for path in readable:
        _allow(rules, path, _READ_FILE | _READ_DIR)
    for path in writable:
        _allow(rules, path, handled & ~_MAKE_DEVICES & ~_EXECUTE & ~_IOCTL_DEV)
    _allow(rules, "/dev/null", _READ_FILE | _WRITE_FILE)
    for path in ("/dev/zero", "/dev/random", "/dev/urandom"):
        _allow(rules, path, _READ_FILE)
    return rules


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # What is not there needs no leave.
        return
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = _PathBeneath(rights, folder)
        arguments = (ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint(0))
        kernel.syscall(kernel.LANDLOCK_ADD_RULE, f"landlock {path}", *arguments)
    finally:
        os.close(folder)


def _restrict(rules: int) -> None:
    kernel.syscall(kernel.LANDLOCK_RESTRICT_SELF, "landlock", ctypes.c_int(rules), ctypes.c_uint(0))


# seccomp --------------------------------------------------------------------------------------------------------

_Table = dict[str, tuple[int, int | None]]
"""Numbers on x86_64 and arm64; None where there is no such call."""
_SOCKETS: _Table = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
}
_PROCESSES: _Table = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "personality": (135, 92),
}
_SYSTEM: _Table = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "seccomp": (317, 277),
    "fanotify_init": (300, 262),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # Which mounts there are, and what happens in a folder: Landlock watches neither.
    "statmount": (457, 457),
    "listmount": (458, 458),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    # Has everybody's writes wait for the disk.
    "sync": (162, 81),
    "syncfs": (306, 267),
}
# Memory that no rlimit counts, and objects that outlive a process.
_MEMORY: _Table = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
# Landlock does not watch what a path or a descriptor is *said to be*: owner, mode, times, attributes. Without a
# read-only root these would reach the user's files.
_ATTRIBUTES: _Table = {
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_KILL, _TGKILL = (62, 129), (234, 131)
_PRLIMIT64, _SOCKETPAIR = (302, 261), (53, 199)
_FCNTL, _IOCTL, _PRCTL = (72, 25), (16, 29), (157, 167)
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)
_FEW = 3
_NEWER = 470
"""Calls from here on are newer than this table, and are refused as if the kernel did not have them."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables, and AUDIT_ARCH from linux/audit.h."""
# linux/filter.h, linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_ALLOW, _KILL_PROCESS, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOTTY, _ENOSYS = 1, 25, 38
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
# fcntl that has a signal sent to another process, or has others wait for this one: F_SETOWN, F_SETSIG, F_SETOWN_EX,
# F_SETLEASE, F_NOTIFY.
_FCNTL_REFUSED = (8, 10, 15, 1024, 1026)
# The only ioctl that Python itself uses: TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Others type
# into a terminal, or change a file's flags for good by a descriptor that may neither read nor write (ioctl_iflags(2)).
_IOCTL_ALLOWED = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# prctl that takes off what `confine` has put on, or lets another process in: PR_SET_PDEATHSIG, PR_SET_DUMPABLE,
# PR_SET_SECCOMP, PR_SET_PTRACER.
_PRCTL_REFUSED = (1, 4, 22, 0x59616D61)
_AF_UNIX, _SOCK_STREAM, _KIND_OF_SOCKET = 1, 1, 0xF
# Access mode 3 opens a file for neither reading nor writing (open(2)), so that Landlock has nothing to refuse; and
# O_TRUNC without O_WRONLY or O_RDWR empties what it lets be read, before its ABI 3.
_ACCESS_MODE, _O_TRUNC = 3, 0x200


def seccomp_program(*, own_pid: int, read_only_root: bool) -> bytes | None:
    """The filter for a process that will know itself as `own_pid`; None on machines whose numbers are not known."""
    if platform.machine() not in _ARCHITECTURES or sys.maxsize < 1 << 32:
        return None
    column, architecture = _ARCHITECTURES[platform.machine()]
    tables = [_SOCKETS, _PROCESSES, _SYSTEM, _MEMORY, *([] if read_only_root else [_ATTRIBUTES])]
    refused = sorted(
        {number for table in tables for numbers in table.values() if (number := numbers[column]) is not None}
    )

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    def answer(value: int) -> bytes:
        return step(_RETURN, value)

    def one_of(number: int, argument: int, values: Iterable[int], *, then: int, otherwise: int) -> bytes:
        """A whole treatment of a call, by an argument's lower half."""
        tests = b"".join(step(_EQUAL, value, 0, 1) + answer(then) for value in values)
        body = step(_LOAD, _ARGUMENTS_AT + 8 * argument) + tests + answer(otherwise)
        return step(_EQUAL, number, 0, len(body) // 8) + body

    no = _REFUSE | _EPERM

    def none_of(numbers: list[int]) -> bytes:
        """A search by halves: where a filter is put on, the kernel goes through it once for every call there is."""
        if len(numbers) <= _FEW:
            return b"".join(step(_EQUAL, number, 0, 1) + answer(no) for number in numbers) + answer(_ALLOW)
        half = len(numbers) // 2
        lower, upper = none_of(numbers[:half]), none_of(numbers[half:])
        return step(_AT_LEAST, numbers[half], len(lower) // 8, 0) + lower + upper

    program = step(_LOAD, _ARCH_AT) + step(_EQUAL, architecture, 1, 0) + answer(_KILL_PROCESS)
    program += step(_LOAD, _NUMBER_AT) + step(_AT_LEAST, _NEWER, 0, 1) + answer(_REFUSE | _ENOSYS)
    # glibc falls back to clone and openat, whose flags a filter can read.
    for number in (_CLONE3[column], _OPENAT2[column]):
        program += step(_EQUAL, number, 0, 1) + answer(_REFUSE | _ENOSYS)
    threads = step(_LOAD, _ARGUMENTS_AT) + step(_ANY_BIT, kernel.CLONE_THREAD, 0, 1) + answer(_ALLOW) + answer(no)
    program += step(_EQUAL, _CLONE[column], 0, len(threads) // 8) + threads
    for number in (_KILL[column], _TGKILL[column]):
        program += one_of(number, 0, [own_pid], then=_ALLOW, otherwise=no)
    program += one_of(_PRLIMIT64[column], 0, [0, own_pid], then=_ALLOW, otherwise=no)
    program += one_of(_FCNTL[column], 1, _FCNTL_REFUSED, then=no, otherwise=_ALLOW)
    program += one_of(_IOCTL[column], 1, _IOCTL_ALLOWED, then=_ALLOW, otherwise=_REFUSE | _ENOTTY)
    program += one_of(_PRCTL[column], 0, _PRCTL_REFUSED, then=no, otherwise=_ALLOW)
    # Of the other kinds, one that is connected still sends to any socket by its name (unix(7)).
    pair = step(_LOAD, _ARGUMENTS_AT) + step(_EQUAL, _AF_UNIX, 1, 0) + answer(no)
    pair += step(_LOAD, _ARGUMENTS_AT + 8) + step(_AND, _KIND_OF_SOCKET)
    pair += step(_EQUAL, _SOCK_STREAM, 1, 0) + answer(no) + answer(_ALLOW)
    program += step(_EQUAL, _SOCKETPAIR[column], 0, len(pair) // 8) + pair
    for opening, argument in ((_OPEN[column], 1), (_OPENAT[column], 2)):
        if opening is not None:
            flags = step(_LOAD, _ARGUMENTS_AT + 8 * argument) + step(_AND, _ACCESS_MODE | _O_TRUNC)
            for bits in (_O_TRUNC, _ACCESS_MODE, _ACCESS_MODE | _O_TRUNC):
                flags += step(_EQUAL, bits, 0, 1) + answer(no)
            flags += answer(_ALLOW)
            program += step(_EQUAL, opening, 0, len(flags) // 8) + flags
    return program + none_of(refused)


# All of it ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confinement:
    """What this process can put on, found out once by the host."""

    landlock: int
    """ABI; 0 for none."""
    seccomp: bool
    read_only_root: bool
    """There are walls around the host (`walls`)."""
    leave_root: bool
    """Root becomes somebody else."""


def probe(*, read_only_root: bool, readable: Iterable[str]) -> Confinement:
    """What works here, found out by doing it in a child."""
    leave_root = os.geteuid() == 0 and _others_may_read(readable)
    return Confinement(
        landlock=landlock_abi() if _works(_try_landlock) else 0,
        seccomp=_works(_try_seccomp),
        read_only_root=read_only_root,
        leave_root=leave_root,
    )


def _try_landlock() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    _restrict(landlock_rules([], writable=[], abi=landlock_abi()))


def _try_seccomp() -> None:
    program = seccomp_program(own_pid=os.getpid(), read_only_root=False)
    if program is None:
        raise OSError("no numbers")
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.seccomp_filter(program)


def _works(attempt: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            attempt()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _others_may_read(paths: Iterable[str]) -> bool:
    """Whether Python still finds its library as a user without rights: not below a root's home without walls."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            become(NOBODY)
            needs = {path: os.R_OK | (os.X_OK if os.path.isdir(path) else 0) for path in paths}
            os._exit(0 if all(os.access(path, need) for path, need in needs.items()) else 1)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def become(user: int) -> None:
    """For good: another user and group, and no others."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def confine(
    layers: Confinement,
    *,
    limits: Mapping[str, int],
    rules: int | None,
    program: bytes | None = None,
    user: int = NOBODY,
) -> None:
    """Put on all layers, for good. To be called in the process that will run the program, before it does.

    `rules` are those of `landlock_rules`, `program` that of `seccomp_program`, where it is known before.
    """
    os.setsid()
    if layers.leave_root:
        become(user)
    with contextlib.suppress(OSError):
        kernel.drop_capabilities()
    # A change of user takes it off again, so not before.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    # Keeps another process of the same user out of /proc/<this>/mem, where there is a /proc.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    limit(limits)
    if rules is not None:
        _restrict(rules)
    if layers.seccomp:
        program = program or seccomp_program(own_pid=os.getpid(), read_only_root=layers.read_only_root)
        assert program is not None
        kernel.seccomp_filter(program)


def limit(limits: Mapping[str, int]) -> None:
    """rlimits, soft and hard, by the second half of their names (`AS`, `CPU`)."""
    for name, value in {"CORE": 0, **limits}.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
