"""Keep a process from writing anywhere but where its results go, where the kernel can (Landlock, Linux 5.13 on).

Needs no privileges, holds for everything that this process starts, and cannot be taken back
(https://docs.kernel.org/userspace-api/landlock.html; landlock(7)). What it does not do: forbid reading, the network or
signals, or changes of mode and owner, which Landlock does not know. A process under it can no longer mount anything,
so a sandbox that mounts cannot be started from it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from agent.errors import ResourceError

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on every architecture (include/uapi/asm-generic/unistd.h)."""
VERSION_FLAG = 1
RULE_PATH_BENEATH = 1
NO_NEW_PRIVILEGES = 38
WRITE_FILE = 1 << 1
MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
"""REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, _DIR, _REG, _SOCK, _FIFO, _BLOCK, _SYM (include/uapi/linux/landlock.h)."""
REFER, TRUNCATE = 1 << 13, 1 << 14
"""Since versions 2 and 3 of the interface."""
OF_A_FILE = WRITE_FILE | TRUNCATE
HINT = (
    "Landlock keeps it from writing elsewhere, whatever the rights of the file are (docs/security.md, The evaluation). "
    "Write to a temporary file (tempfile), or not at all."
)
_confined_to: list[Path] | None = None
"""Below what this process may write; None where it may everywhere. It cannot be taken back."""


def confine_writes(folders: Iterable[Path]) -> str:
    """From now on this thread, and what it starts, writes below `folders` only. What was done, or why not, in words.

    Folders that are not there are passed over.
    """
    global _confined_to
    folders = list(folders)
    if not sys.platform.startswith("linux"):
        return f"not confined: {sys.platform} has no Landlock"
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)
    if version < 1:
        return f"not confined: the kernel has no Landlock ({os.strerror(ctypes.get_errno())})"
    handled = WRITE_FILE | MAKE_AND_REMOVE | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    attribute = struct.pack("Q", handled)
    ruleset = libc.syscall(CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), 0)
    if ruleset < 0:
        return f"not confined: {os.strerror(ctypes.get_errno())}"
    try:
        for folder in folders:
            _allow(libc, ruleset, folder, handled)
        if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(RESTRICT_SELF, ruleset, 0):
            return f"not confined: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    _confined_to = [folder.resolve() for folder in folders]
    return f"Landlock {version}"


def confined() -> bool:
    return _confined_to is not None


def refusal(error: BaseException) -> ResourceError | None:
    """What to say of an exception that comes of a write that is not allowed here; None for any other.

    Libraries wrap it, and some take it for a login that is missing: it is looked for in the chain of causes.
    """
    path = _refused_path(error)
    if path is None:
        return None
    return ResourceError(
        f"cannot write {path}: the evaluation may write only in the run's folder and in caches", hint=HINT
    )


def _refused_path(error: BaseException) -> Path | None:
    seen: BaseException | None = error
    while seen is not None and _confined_to is not None:
        if isinstance(seen, OSError) and seen.errno == errno.EACCES:
            for name in (seen.filename, seen.filename2):
                if isinstance(name, str | bytes) and _is_outside(path := Path(os.fsdecode(name)), _confined_to):
                    return path.absolute()
        seen = seen.__cause__ or seen.__context__
    return None


def _is_outside(path: Path, folders: Iterable[Path]) -> bool:
    """A file that may not even be read is refused by its own rights: Landlock is not asked to forbid reading."""
    if path.exists() and not os.access(path, os.R_OK):
        return False
    real = path.resolve()
    return not any(real.is_relative_to(folder) for folder in folders)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, handled: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = handled if path.is_dir() else handled & OF_A_FILE
        rule = struct.pack("=Qi", rights, opened)
        if libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(opened)


CACHE_VARIABLES = (
    *("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "TORCH_HOME"),
    *("TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"),
    *("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"),
)


def caches_of_libraries() -> list[Path]:
    """Folders that torch, the hub's client and the drivers of accelerators write to, and the devices themselves."""
    home = Path.home()
    named = [os.environ[name] for name in CACHE_VARIABLES if os.environ.get(name)]
    usual = [home / name for name in (".cache", ".triton", ".nv", ".config/miopen", ".miopen")]
    return [*usual, *map(Path, named), Path("/dev"), Path("/proc")]
