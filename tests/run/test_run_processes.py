"""Identity of processes, ending what a killed agent left, detaching, and SIGHUP, with real processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import ResourceError, TrainingFailed, Unavailable
from agent.run.detach import detach
from agent.run.ending import end_process_group
from agent.run.processes import MARK, ProcessIdentity, boot_id, family, identify, is_alive

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_an_identity_is_of_one_process_only(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    assert is_alive(identity)
    assert not is_alive(dataclasses.replace(identity, started=identity.started + 0.01))
    assert not is_alive(dataclasses.replace(identity, boot_id="another boot"))
    sleeper.kill()
    wait_until(lambda: not is_alive(identity))  # a zombie from here on, as nobody has waited for it


def test_it_refuses_to_end_what_it_does_not_know(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    words = end_process_group(dataclasses.replace(identity, boot_id="another boot"), grace_s=0.1)
    assert "started again since" in words
    words = end_process_group(dataclasses.replace(identity, started=identity.started - 1), grace_s=0.1)
    assert "refused" in words
    assert sleeper.poll() is None
    gone = ProcessIdentity(2**22 - 1, 1.0, boot_id())
    assert "it has gone" in end_process_group(gone, grace_s=0.1)


def test_it_ends_the_group_of_a_training_whose_agent_was_killed(sleeper: subprocess.Popen[bytes]) -> None:
    words = end_process_group(identify(sleeper.pid), grace_s=5)
    assert "left" in words
    assert sleeper.wait(timeout=5) == -signal.SIGTERM


def test_what_is_left_of_a_training_that_has_gone_is_found_by_its_mark() -> None:
    mark = "test-mark-" + str(os.getpid())
    code = (
        f"import subprocess; print(subprocess.Popen({SLEEP!r}, start_new_session=True, stdout=subprocess.DEVNULL).pid)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, start_new_session=True
    )
    identity = identify(leader.pid, mark=mark)
    output, _ = leader.communicate(timeout=10)
    child = int(output)
    assert [one.pid for one in family(identity)] == [child]
    assert family(dataclasses.replace(identity, mark="")) == []  # the number may be anybody's now
    words = end_process_group(identity, grace_s=1)
    assert "1 more that it had started" in words
    assert family(identity) == []


def test_it_never_finds_itself() -> None:
    me = identify(os.getpid(), mark=os.environ.get(MARK, ""))
    group_leader = ProcessIdentity(os.getpgrp(), 0.0, boot_id())
    assert os.getpid() not in [one.pid for one in family(me)]
    assert os.getpid() not in [one.pid for one in family(group_leader)]


def test_a_detached_command_has_a_session_of_its_own_and_its_output_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "campaign.txt"
    code = "import os, time; print(os.getsid(0) == os.getpid(), os.environ['GREETING'], flush=True); time.sleep(60)"
    pid = detach(
        [sys.executable, "-c", code], log=log, cwd=tmp_path, env={**os.environ, "GREETING": "hello"}, settle_s=0.3
    )
    try:
        wait_until(lambda: "True hello" in log.read_text())
        assert os.getsid(pid) == pid != os.getsid(0)
        os.kill(pid, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_detached_command_that_fails_at_once_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="no such recipe"):
        detach([sys.executable, "-c", "raise SystemExit('no such recipe')"], log=tmp_path / "log", settle_s=10)
    with pytest.raises(Unavailable, match="no-such-program"):
        detach(["no-such-program"], log=tmp_path / "log")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        detach(SLEEP, log=tmp_path / "file" / "log")


SURVIVES = (
    "import sys, time; from pathlib import Path; from agent.run.detach import survive_hangup\n"
    "with survive_hangup(Path(sys.argv[1])):\n"
    "    print('before', flush=True); sys.stdin.readline()\n"
    "    print('after', flush=True); print('words', file=sys.stderr, flush=True)\n"
)


def test_a_hangup_leaves_what_goes_to_a_file_alone(tmp_path: Path) -> None:
    """`nohup raft-agent run --json > end.json`: the answer is waited for there."""
    answer, log = tmp_path / "end.json", tmp_path / "log.txt"
    with answer.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SURVIVES, str(log)], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    wait_until(lambda: answer.read_text() == "before\n")
    process.send_signal(signal.SIGHUP)
    wait_until(log.exists)
    process.communicate(b"\n", timeout=10)
    assert process.returncode == 0
    assert answer.read_text() == "before\nafter\n"
    assert log.read_text() == "words\n"


def test_a_hangup_sends_output_to_the_log_and_ends_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = subprocess.Popen(
        [sys.executable, "-c", SURVIVES, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"before\n"
    process.send_signal(signal.SIGHUP)
    wait_until(log.exists)
    output, _ = process.communicate(b"\n", timeout=10)
    assert process.returncode == 0
    assert output == b""
    assert log.read_text() == "after\nwords\n"
