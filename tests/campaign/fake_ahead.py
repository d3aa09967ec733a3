"""The fake trainer of these tests, started ahead: it writes down that it was, and waits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fake_raft

from agent.raft.standby import stand_by


def imports() -> None:
    with Path("started-ahead").open("a") as file:
        file.write(f"{os.getpid()}\n")


if __name__ == "__main__":
    arguments = stand_by(imports)
    sys.exit(fake_raft.main(arguments))
