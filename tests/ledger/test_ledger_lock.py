"""Two agents in one repository exclude each other; a lock whose holder is dead holds nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import Busy
from agent.ledger import lock as lock_module
from agent.ledger.lock import Holder, hold, holder_of, refuse_if_held
from agent.ledger.workspace import Workspace
from agent.proc import kernel_boot_id, start_ticks, stat_of

PROGRAM = """
import sys, time
from pathlib import Path
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace
with hold(Workspace(Path(sys.argv[1])), what="campaign night"):
    print("held", flush=True)
    time.sleep(60)
"""

Git = Callable[..., str]


@contextlib.contextmanager
def another_agent(folder: Path) -> Iterator[subprocess.Popen[str]]:
    other = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


@pytest.fixture(params=["sub-folder", "linked worktree", "linked worktree the other way round"])
def two(request: pytest.FixtureRequest, workspace: Path, tmp_path: Path, run_git: Git) -> tuple[Workspace, Workspace]:
    """Two workspaces in one repository."""
    if request.param == "sub-folder":
        inner = workspace / "projects" / "inner"
        inner.mkdir(parents=True)
        return Workspace(workspace), Workspace(inner)
    linked = tmp_path / "linked"
    run_git(workspace, "worktree", "add", "--quiet", "--detach", str(linked))
    pair = (Workspace(workspace), Workspace(linked))
    return pair if request.param == "linked worktree" else pair[::-1]


def test_two_workspaces_of_one_repository_exclude_each_other(two: tuple[Workspace, Workspace]) -> None:
    first, second = two
    with another_agent(first.root) as other:
        with pytest.raises(Busy) as caught, hold(second, patience_s=0.0):
            pass
        words = str(caught.value)
        assert f"another run holds this repository: process {other.pid} on {socket.gethostname()} (campaign" in words
        assert f"0 min ago, in {first.root}" in words
        with pytest.raises(Busy, match="this repository"):
            refuse_if_held(second)
        assert holder_of(second) is None  # nobody works in that workspace
        with pytest.raises(Busy, match="this workspace"):
            refuse_if_held(first)
        other.send_signal(signal.SIGKILL)
        other.wait()
        refuse_if_held(second)
        with hold(second), pytest.raises(Busy, match="this repository"), hold(first, patience_s=0.0):
            pass
    with hold(first):
        pass


def test_two_repositories_do_not(workspace: Path, tmp_path: Path, run_git: Git) -> None:
    run_git(tmp_path, "clone", "--quiet", str(workspace), "clone")
    with hold(Workspace(workspace)), hold(Workspace(tmp_path / "clone"), patience_s=0.0):
        pass


def test_a_folder_without_a_repository_has_the_workspaces_lock_alone(tmp_path: Path) -> None:
    with hold(Workspace(tmp_path)), pytest.raises(Busy, match="this workspace"), hold(Workspace(tmp_path)):
        pass


def test_what_the_lock_leaves_in_the_repository_is_its_own_folder(workspace: Path, fingerprint) -> None:
    before = fingerprint(workspace)
    with hold(Workspace(workspace)):
        pass
    added = set(fingerprint(workspace)) - set(before)
    assert added == {".git/raft-agent/lock"}
    assert {name: text for name, text in fingerprint(workspace).items() if name in before} == before


# ---- a file system without locks


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def claim(workspace: Path) -> Path:
    return workspace / ".raft" / "lock.held"


@pytest.mark.usefixtures("without_flock")
def test_without_locks_a_file_holds_the_workspace(workspace: Path) -> None:
    found = Workspace(workspace)
    with hold(found, what="campaign night"):
        assert holder_of(found) is not None
        with pytest.raises(Busy) as caught, hold(found):
            pass
        assert f"process {os.getpid()} on " in str(caught.value)
        assert f"if you are sure that it has gone: rm {claim(workspace)}" in str(caught.value)
    assert holder_of(found) is None
    assert not list((workspace / ".raft").glob("lock.held*"))
    assert not list((workspace / ".git" / "raft-agent").glob("lock.held*"))


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize(
    ("who", "gone"),
    [
        ({}, False),
        ({"pid": 2**22 - 1}, True),
        ({"started": 17}, True),  # the number is another process's by now
        ({"boot": "another boot"}, True),
        ({"boot": "another boot", "pid": os.getpid()}, True),
        ({"host": "another-machine", "pid": 2**22 - 1}, False),
        ({"host": "another-machine", "boot": "another boot"}, False),
        ({"namespace": "pid:[1]", "pid": 2**22 - 1}, False),  # another container of this machine
        ({"started": None}, False),
        ({"started": None, "pid": 2**22 - 1}, True),
    ],
)
def test_without_locks_a_dead_ones_file_is_stale_and_another_machines_never(
    workspace: Path, who: dict[str, object], gone: bool
) -> None:
    found = Workspace(workspace)
    found.prepare()
    left = dataclasses.replace(Holder.here("campaign old", workspace, 1e9), **who)
    (workspace / ".raft" / "lock").touch()
    claim(workspace).write_text(json.dumps(dataclasses.asdict(left)))
    assert (holder_of(found) is None) == gone
    if gone:
        with hold(found) as holder:
            assert json.loads(claim(workspace).read_text())["pid"] == holder.pid == os.getpid()
        assert not claim(workspace).exists()
    else:
        with pytest.raises(Busy, match="campaign old"), hold(found):
            pass
        assert json.loads(claim(workspace).read_text()) == dataclasses.asdict(left)
    assert [path.name for path in (workspace / ".raft").glob("lock.held.*")] == []


@pytest.mark.usefixtures("without_flock")
def test_without_locks_what_cannot_be_read_is_held(workspace: Path) -> None:
    Workspace(workspace).prepare()
    claim(workspace).write_text("{half")
    with pytest.raises(Busy, match="has not left its name yet"), hold(Workspace(workspace)):
        pass
    assert claim(workspace).read_text() == "{half"


@pytest.mark.usefixtures("without_flock")
def test_without_locks_one_of_many_gets_it_over_a_stale_one(workspace: Path) -> None:
    found = Workspace(workspace)
    found.prepare()
    left = dataclasses.replace(Holder.here("old", workspace, 1e9), boot="another boot")
    claim(workspace).write_text(json.dumps(dataclasses.asdict(left)))
    inside, most, lock = [0], [0], threading.Lock()
    held, start = [0], threading.Barrier(8)

    def compete() -> None:
        start.wait()
        with contextlib.suppress(Busy), lock_module._claimed(claim(workspace).with_name("lock"), me(), "workspace"):
            with lock:
                inside[0] += 1
                held[0] += 1
                most[0] = max(most[0], inside[0])
            threading.Event().wait(0.05)
            with lock:
                inside[0] -= 1

    def me() -> Holder:
        return Holder.here(threading.current_thread().name, workspace, 1.0)

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held[0] >= 1
    assert most[0] == 1
    assert not claim(workspace).exists()


def test_what_tells_processes_apart() -> None:
    assert start_ticks(os.getpid()) is not None
    assert start_ticks(2**22 - 1) is None
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(child.pid) is None  # its zombie
    child.wait()
    assert kernel_boot_id() == kernel_boot_id() is not None


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="60 is another call there")
def test_a_process_whose_first_thread_has_left_has_not_ended() -> None:
    leaves = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
    child = subprocess.Popen([sys.executable, "-c", f"{leaves}; ctypes.CDLL(None).syscall(60, 0)"])
    try:
        deadline = time.monotonic() + 10
        while stat_of(child.pid)[0] != "Z" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stat_of(child.pid)[0] == "Z"  # as the system shows it
        assert start_ticks(child.pid) is not None
    finally:
        child.kill()
        child.wait()
