"""A trainer with a family: a child that ignores SIGTERM, a grandchild, one in a session of its own, and one that was
forked twice, so that nobody's child it is. Writes their ids to `pids` and stays, or leaves them behind.

Forks only, so that a hundred of them take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

LIFETIME_S = 120


def born(write: int, *, deaf: bool = True, session: bool = False) -> None:
    """Tells its id and lives on for a while."""
    if session:
        os.setsid()
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(write, f"{os.getpid()}\n".encode())
    time.sleep(LIFETIME_S)
    os._exit(0)


def main() -> None:
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    read, write = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            born(write, deaf=False)  # a grandchild
        born(write)
    if os.fork() == 0:
        born(write, session=True)
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            born(write, session=True)  # its parent is gone in a moment
        os._exit(0)
    os.waitpid(middle, 0)
    told = b""
    while told.count(b"\n") < 4:
        told += os.read(read, 100)
    temporary = out / ".pids"
    temporary.write_text(f"{os.getpid()} {told.decode()}")
    temporary.replace(out / "pids")
    if sys.argv[1] == "stays":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(LIFETIME_S)


if __name__ == "__main__":
    main()
