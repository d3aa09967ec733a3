"""The fake trainer started ahead: the real waiting end, with other imports. FAKE_IMPORTS says how they go."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import fake_trainer

from agent.raft.standby import stand_by


def imports() -> None:
    with Path(os.environ["FAKE_STARTS"]).open("a") as file:
        file.write(f"{os.getpid()} {sys.argv[1]}\n")
    print("a warning of an import", flush=True)
    match os.environ.get("FAKE_IMPORTS", "good"):
        case "crash":
            raise ImportError("libtorch.so: no such symbol")
        case "slow":
            time.sleep(60)


if __name__ == "__main__":
    sys.argv[1:] = stand_by(imports)
    sys.exit(fake_trainer.main())
