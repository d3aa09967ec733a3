"""`watch` in a terminal of its own, as a process: it draws, follows a resize, and leaves the terminal as it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import AGENT

from agent.ledger.journal import Journal
from agent.ledger.workspace import Workspace
from agent.report.screen import LEAVE


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("recipes", "hypotheses"):
        (tmp_path / name).mkdir()
    made = Workspace(tmp_path)
    made.prepare()
    return made


class Watching:
    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process, self.terminal = process, terminal
        self.written = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def read_until(self, pattern: str, *, most_s: float = 30.0) -> str:
        """What was written since the last call, once it holds the pattern."""
        end = time.monotonic() + most_s
        while not re.search(pattern.encode(), self.written):
            assert time.monotonic() < end, self.written
            if select.select([self.terminal], [], [], 0.2)[0]:
                try:
                    self.written += os.read(self.terminal, 65536)
                except OSError:  # EIO: the other side has gone
                    assert re.search(pattern.encode(), self.written), self.written
        text, self.written = self.written.decode(), b""
        return text


@contextlib.contextmanager
def watching(root: Path, *options: str, **env: str) -> Iterator[Watching]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*AGENT, "watch", *options], cwd=root, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **env},
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Watching(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_it_waits_draws_follows_a_resize_and_gives_the_terminal_back(workspace: Workspace) -> None:
    with watching(workspace.root, "--every", "0.2", PYTHONIOENCODING="") as seen:
        began = seen.read_until("waiting for one")
        assert began.startswith("\x1b[?1049h\x1b[?25l")
        Journal(workspace.journal_path("night")).append(
            "campaign_started", campaign="night", recipe_path="r", recipe="", base_commit="b", budget_s=60.0
        )
        assert "\n" not in seen.read_until("night.*killed.*raft-agent resume night")
        seen.resize(20, 5)
        small = seen.read_until(r"\x1b\[2J.*night.*killed")
        rows = [int(row) for row in re.findall(r"\x1b\[(\d+);1H", small)]
        assert max(rows) <= 5
        seen.process.send_signal(signal.SIGINT)
        assert seen.read_until(r"1049l").endswith(LEAVE)
        assert seen.process.wait(timeout=20) == 0


@pytest.mark.slow
def test_a_terminal_that_can_do_nothing_gets_lines(workspace: Workspace) -> None:
    with watching(workspace.root, "--every", "0.2", TERM="dumb", PYTHONIOENCODING="latin-1") as seen:
        said = seen.read_until("waiting for one")
        Journal(workspace.journal_path("night")).append(
            "campaign_started", campaign="night", recipe_path="r", recipe="", base_commit="b"
        )
        said += seen.read_until("campaign night: r")
        assert "\x1b" not in said
        seen.process.send_signal(signal.SIGTERM)
        assert seen.process.wait(timeout=20) == 128 + signal.SIGTERM


def test_once_prints_lines_that_fit_the_terminal(workspace: Workspace) -> None:
    Journal(workspace.journal_path("night")).append(
        "campaign_started", campaign="night", recipe_path="r", recipe="", base_commit="b", budget_s=60.0
    )
    with watching(workspace.root, "--once") as seen:
        lines = seen.read_until("ideas +none yet").splitlines()
    assert lines[0].startswith("night killed")
    assert max(map(len, lines)) == 80, "and its clock is at the right edge"
