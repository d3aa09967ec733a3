"""Keep the machine awake while a campaign runs, where the system offers a way; else say what a person must do.

The inhibitor is a child that reads from a pipe which only we hold open. If the agent dies in any way, SIGKILL
included, the pipe closes, the child ends and the machine may sleep again.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOLD = ("sh", "-c", "echo held; exec cat >/dev/null")
ADVICE = {
    "linux": "switch off automatic suspend in the desktop's power settings, or run: sudo systemctl mask sleep.target",
    "darwin": "start the command under `caffeinate -i`, or switch off automatic sleep in the system settings",
}


@dataclass(frozen=True)
class Wakefulness:
    held: bool
    words: str
    """What holds the machine awake, or why nothing does and what to do."""


@contextlib.contextmanager
def stay_awake(
    why: str = "a training campaign is running",
    *,
    command: Sequence[str] | None = None,
    wait_s: float = 3.0,
    which: Callable[[str], str | None] = shutil.which,
) -> Iterator[Wakefulness]:
    """Hold off idle and lid sleep for the length of the block. Never raises for want of a way to do it."""
    inhibitor = list(command) if command is not None else _inhibitor(why, which=which)
    if inhibitor is None:
        yield Wakefulness(False, f"nothing here can keep the machine awake; {_advice()}")
        return
    child, problem = _start([*inhibitor, *HOLD], wait_s=wait_s)
    if child is None:
        yield Wakefulness(False, f"{Path(inhibitor[0]).name} does not work here ({problem}); {_advice()}")
        return
    try:
        yield Wakefulness(True, f"sleep is held off by {Path(inhibitor[0]).name} (process {child.pid})")
    finally:
        _release(child)


def _inhibitor(why: str, *, which: Callable[[str], str | None]) -> list[str] | None:
    systemd, caffeinate = which("systemd-inhibit"), which("caffeinate")
    if systemd:
        return [systemd, "--what=sleep:idle:handle-lid-switch", "--who=raft-agent", f"--why={why}", "--mode=block"]
    if caffeinate:
        return [caffeinate, "-i", "-s"]
    return None


def _start(command: list[str], *, wait_s: float) -> tuple[subprocess.Popen[bytes] | None, str]:
    """The child once it has said that it holds, or None and why not."""
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the agent, which then lets go in good order
        )
    except OSError as error:
        return None, error.strerror or str(error)
    assert child.stdout is not None
    assert child.stderr is not None
    ready, _, _ = select.select([child.stdout], [], [], wait_s)
    if ready and os.read(child.stdout.fileno(), 16).startswith(b"held"):
        return child, ""
    said = _said(child, within_s=0.2)
    _release(child)
    return None, said or f"no answer in {wait_s:g} s"


def _said(child: subprocess.Popen[bytes], *, within_s: float) -> str:
    assert child.stderr is not None
    deadline = time.monotonic() + within_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    ready, _, _ = select.select([child.stderr], [], [], 0)
    text = os.read(child.stderr.fileno(), 4096).decode(errors="replace") if ready else ""
    return " ".join(text.split())


def _release(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.close()
    try:
        child.wait(timeout=2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def _advice() -> str:
    return ADVICE.get(sys.platform, "switch off automatic sleep in the system's power settings")
