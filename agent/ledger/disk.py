"""Turns what an operating system says about a disk into a message for a person."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import ResourceError

_HINTS = {
    errno.ENOSPC: "free some space, then `raft-agent resume`: nothing that was recorded is lost",
    errno.EDQUOT: "your disk quota is used up: free some space, then `raft-agent resume`",
    errno.EACCES: "check who owns the folder and its permissions",
    errno.EPERM: "check who owns the folder and its permissions",
    errno.EROFS: "the file system is mounted read-only: use a workspace elsewhere",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.ENFILE: "too many open files on this machine",
    errno.EIO: "the disk reports an error: check it before going on",
}


@contextmanager
def disk_errors(path: Path, what: str = "write") -> Iterator[None]:
    """Inside, an OSError that tells of the disk and not of a mistake of ours becomes a ResourceError naming its file,
    or `path` where it names none.

    `what` cannot be done: `write` or `read`.
    """
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        if hint is None:
            raise
        raise ResourceError(f"cannot {what}: {error.strerror}", where=str(error.filename or path), hint=hint) from error
