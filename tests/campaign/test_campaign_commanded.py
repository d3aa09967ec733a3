"""Ctrl-C, `raft-agent pause` and messages: campaigns that are processes, on terminals of their own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nights import NOTHING, Dies, Night, forked_launch, new_night

from agent.ledger.journal import Journal
from agent.run.request import RunRequest

COMMAND = (sys.executable, str(Path(__file__).with_name("commanded.py")))


@pytest.mark.slow
def test_a_campaign_goes_on_when_nobody_reads_what_it_prints(night: Night) -> None:
    """`raft-agent run | tee log`, and tee is gone."""
    night.playbook(NOTHING)
    arguments = ("run", "test", "--budget", "10m", "--seeds", "2", "--max-experiments", "1", "--name", "night")
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=night.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline()
        run.stdout.close()
        run.wait(timeout=60)
    assert Journal(night.workspace.journal_path("night")).state().status == "finished"
    assert "discard #1" in (night.workspace.private / "hangup.log").read_text()


class Terminal:
    """A campaign in the foreground of a terminal: Ctrl-C reaches all of its process group, as it does there."""

    def __init__(self, root: Path, *arguments: str, **variables: str) -> None:
        self.root, self.shown = root, b""
        self.main, sub = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=root, stdin=sub, stdout=sub, stderr=sub, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), env={**os.environ, "TERM": "xterm", **variables},
        )  # fmt: skip
        os.close(sub)

    def ctrl_c(self) -> None:
        os.write(self.main, b"\x03")

    def until(self, what: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.text
            self._read(0.02)
            if self.process.poll() is not None:
                self._read(0.0)
                assert what(), self.text

    def ended(self) -> int:
        self.until(lambda: self.process.poll() is not None)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.main], [], [], seconds)
        try:
            more = os.read(self.main, 65536) if ready else b""
        except OSError:  # the other end has gone
            return False
        self.shown += more
        return bool(more)

    @property
    def text(self) -> str:
        return self.shown.decode(errors="replace")

    @property
    def cursor_is_shown(self) -> bool:
        return self.shown.rfind(b"\x1b[?25h") >= self.shown.rfind(b"\x1b[?25l")

    def trainer_of(self, run: str, sign: str = "cycles.jsonl") -> int:
        """The number of a run's process, once it has given a sign that it is at work."""
        pattern = f".raft/runs/night/{run}-*/{sign}"
        self.until(lambda: list(self.root.glob(pattern)))
        folder = next(self.root.glob(pattern)).parent
        return int(json.loads((folder / "heartbeat").read_text())["pid"])


@pytest.fixture
def night(tmp_path: Path) -> Night:
    night = new_night(tmp_path)
    night.playbook(NOTHING)
    return night


Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(night: Night) -> Iterator[Open]:
    opened: list[Terminal] = []

    def start(*arguments: str, **variables: str) -> Terminal:
        opened.append(Terminal(night.root, *arguments, **variables))
        return opened[-1]

    yield start
    for terminal in opened:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.main)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def journal(night: Night) -> Journal:
    return Journal(night.workspace.journal_path("night"))


def agent(night: Night, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=night.root, capture_output=True, text=True, timeout=60,
        env={**os.environ, **variables}, check=False,
    )  # fmt: skip


def until(night: Night, run: str) -> None:
    """A campaign that was killed as this run began; none of ours is slow before that."""

    def launcher(request: RunRequest, **keys: object) -> object:
        if request.out.name.startswith(run):
            raise Dies
        return forked_launch(request, **keys)

    with pytest.raises(Dies):
        night.start(launcher=launcher, max_experiments=1)


@pytest.mark.slow
def test_ctrl_c_once_ends_in_good_order_and_resume_goes_on(night: Night, open_terminal: Open) -> None:
    until(night, "001-search")
    terminal = open_terminal("resume", FAKE_PACE="0.3")
    trainer = terminal.trainer_of("001-search")
    terminal.ctrl_c()
    assert terminal.ended() == 130
    assert "stopping in good order (again to stop at once)" in terminal.text
    assert "paused: stopped by Ctrl-C" in terminal.text
    assert "raft-agent resume" in terminal.text
    assert not {"Traceback", "error:"} & set(terminal.text.split())
    assert terminal.cursor_is_shown
    assert not is_running(trainer)
    assert journal(night).state().stop_reason == "stopped by Ctrl-C"
    assert summary_of(night, "001-search")["stopped"]
    night.resume()
    assert [row["hypothesis"] for row in night.rows] == ["baseline", "placebo"]
    assert journal(night).damages() == []


@pytest.mark.slow
@pytest.mark.parametrize("run", ["holdout", "baseline", "001"])
def test_ctrl_c_twice_ends_at_once_whatever_runs(night: Night, open_terminal: Open, run: str) -> None:
    """The trainer is deaf to SIGTERM, so that good order would take the whole 20 s that it gets to leave."""
    until(night, run)
    terminal = open_terminal("resume", FAKE_DEAF=run)
    trainer = terminal.trainer_of(run, "deaf")
    terminal.ctrl_c()
    terminal.until(lambda: "stopping in good order" in terminal.text)
    began = time.monotonic()
    terminal.ctrl_c()
    terminal.ctrl_c()  # a third changes nothing
    assert terminal.ended() == 130
    assert time.monotonic() - began < 8.0
    assert "stopped by Ctrl-C, at once" in terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.cursor_is_shown
    assert not is_running(trainer)
    assert journal(night).state().status == "paused"
    assert night.resume().holdout["baseline"]


@pytest.mark.slow
def test_pause_now_reaches_a_campaign_in_another_process_and_messages_come(
    night: Night, open_terminal: Open, tmp_path: Path
) -> None:
    until(night, "001-search")
    code = 'import os; open(os.environ["OUT"], "a").write(os.environ["RAFT_TEXT"])'
    command = shlex.join([sys.executable, "-I", "-S", "-c", code])
    terminal = open_terminal("resume", FAKE_PACE="0.3", RAFT_AGENT_NOTIFY=command, OUT=str(tmp_path / "told"))
    terminal.trainer_of("001-search")
    asked = agent(night, "pause", "--now", "--wait")
    assert asked.returncode == 0, asked.stderr
    assert "asked campaign night to pause: the running training saves its state" in asked.stdout
    assert asked.stdout.endswith("campaign night is paused: raft-agent pause --now\n")
    assert terminal.ended() == 130
    assert (tmp_path / "told").read_text() == "raft-agent night: paused: raft-agent pause --now"
    assert not list(night.root.glob(".raft/campaigns/night/pause.json"))


def summary_of(night: Night, run: str) -> dict[str, object]:
    path = next(night.root.glob(f".raft/runs/night/{run}-*/summary.json"))
    told: dict[str, object] = json.loads(path.read_text())
    return told
