"""`raft-agent` as a process of its own, the way a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

AGENT = [sys.executable, "-m", "agent.cli"]


def agent(
    folder: Path, *arguments: str, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=check,
        timeout=900,
        env={**os.environ, **(env or {})},
    )
