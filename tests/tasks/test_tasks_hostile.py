"""Every program of `hostile/`: contained, and scored 0; and the pool goes on as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from hostile_programs import CANARY, EXPECTED, Hostile, programs

from agent.tasks.layers import Layers
from agent.tasks.sandbox import Limits, Outcome, Sandbox

LIMITS = Limits(wall_seconds=3.0, memory_bytes=512 << 20, output_bytes=16 << 10)
SHORT = replace(LIMITS, wall_seconds=0.4)
"""For programs that are meant to meet it."""
PROGRAMS = programs()
RIGHT = f"import json\ndef f(x): return json.loads('\"{EXPECTED}\"')\n"
RIGHTS_TESTS = f"import math\nassert f(1) == '{EXPECTED}'\nassert math.sqrt(4) == 2\n"


@dataclass
class World:
    """What a program might get at: a user's home, listeners, a process, the test suite."""

    home: Path
    listeners: list[socket.socket]
    victim: subprocess.Popen[bytes]
    words: dict[str, str]
    signals: list[int]

    def code_of(self, program: Hostile) -> str:
        code = program.code
        for name, value in self.words.items():
            code = code.replace(name, value)
        return code

    def unharmed(self) -> None:
        assert self.victim.poll() is None
        assert psutil.Process(self.victim.pid).status() != psutil.STATUS_STOPPED
        assert self.signals == []
        assert sorted(path.name for path in self.home.iterdir()) == ["secret", "socket"]
        assert (self.home / "secret").read_text() == CANARY
        assert (self.home / "secret").stat().st_mode & 0o777 == 0o644
        for listener in self.listeners:
            # Nobody has knocked.
            with pytest.raises(BlockingIOError):
                listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    (home / "secret").write_text(CANARY)
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    # A path of a socket may have 107 bytes.
    short = f"/tmp/raft-{os.getpid()}"
    unix.bind(short)
    datagrams.bind(f"{short}-datagrams")
    abstract.bind(f"\0raft-{os.getpid()}")
    (home / "socket").symlink_to(short)
    listeners = [tcp, udp, unix, abstract, datagrams]
    for listener in listeners:
        listener.setblocking(False)
        if listener.type == socket.SOCK_STREAM:
            listener.listen()
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    words = {
        "HOME": str(home),
        "ABSTRACT": f"raft-{os.getpid()}",
        "UNIX": short,
        "DATAGRAM": f"{short}-datagrams",
        "TCP": str(tcp.getsockname()[1]),
        "UDP": str(udp.getsockname()[1]),
        "VICTIM": str(victim.pid),
        "SUITE": str(os.getpid()),
    }
    signals: list[int] = []
    caught = (signal.SIGTERM, signal.SIGIO, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in caught}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_API_TOKEN", CANARY)
        yield World(home, listeners, victim, words, signals)
    for number, handler in before.items():
        signal.signal(number, handler)
    victim.kill()
    victim.wait()
    for listener in listeners:
        listener.close()
    for path in (short, f"{short}-datagrams"):
        Path(path).unlink()


class Pool:
    """One host, which has to outlive all of them, and the processes that there are when nothing runs in it."""

    def __init__(self, sandbox: Sandbox):
        self.layers = sandbox.layers()
        self.run = sandbox.run
        self.processes = processes_below()


@pytest.fixture(scope="module")
def pool(world: World, walls: Layers) -> Iterator[Pool]:
    with Sandbox(slots=1) as sandbox:
        yield Pool(sandbox)


def processes_below() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def attacked(pool: Pool, world: World, program: Hostile) -> Outcome:
    """Run one; whatever it does, nothing that must not happen has happened."""
    limits = SHORT if "timeout" in program.status else LIMITS
    outcome = pool.run(world.code_of(program), program.tests, limits=limits, count=True)
    assert outcome.status != "passed"
    assert outcome.share == 0.0
    assert "ESCAPED" not in outcome.output
    assert CANARY not in outcome.output + outcome.detail
    assert EXPECTED not in outcome.output
    assert len(outcome.output) <= LIMITS.output_bytes
    assert processes_below() == pool.processes
    world.unharmed()
    assert pool.run(RIGHT, RIGHTS_TESTS, limits=LIMITS) == Outcome("passed")
    return outcome


def test_the_list_is_as_long_as_it_is_said_to_be() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS) >= 150
    assert sum(program.group == "forged" for program in PROGRAMS) >= 70


@pytest.mark.one_in(4)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_hostile_program_is_contained_and_scores_nothing(pool: Pool, world: World, program: Hostile) -> None:
    outcome = attacked(pool, world, program)
    layers = pool.layers
    if layers.walls and layers.landlock and layers.seccomp:
        assert outcome.status in program.status.split(), outcome


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bwrap", "none"])
def test_all_of_them_are_contained_by_other_ways_too(world: World, walls: Layers, way: str) -> None:
    """What each says may differ (there is no file to write to), what it does not get may not."""
    if way == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    with Sandbox(slots=1, ways=[way]) as sandbox:
        pool = Pool(sandbox)
        assert pool.layers.way == way
        if not pool.layers.enough:
            pytest.skip(f"this system has too little of it: {pool.layers}")
        for program in PROGRAMS:
            print(program.name)
            attacked(pool, world, program)
