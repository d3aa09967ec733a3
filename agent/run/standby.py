"""The next trainer process, started ahead: it imports while the current run trains, and waits to be told its own.

It is handed a run only if all that is fixed at a process's start is what that run needs; in any other case (another
environment, dead, not ready) it is ended and the caller starts a process of its own. That is never an error, it only
costs the seconds that it would have saved. Nothing here knows what is imported: `agent.raft.standby` is the other end.

What passes between them is a socket, the process's standard input: it says `ready`, it is told to `hurry` where it is
not ready by then, it gets one line of JSON (`arguments`, `log`), and it ends when the socket closes. What it prints
before goes to a file without a name, and from there into the log of the run that it gets.

What it saves is measured by `python tests/benchmarks/start_of_a_run.py RECIPE` (README, "Where things are"). The
waiting process holds 245 MB for tiny-addition, 162 of them its own, and with transformers 399 MB, 293 its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from agent.contract import Phase
from agent.hardware.sensors import GIB
from agent.run.ending import end_family
from agent.run.processes import ProcessIdentity, new_mark
from agent.run.start import TRAINER, Start, TrainerProcess
from agent.run.watchdog import STEPPING

AHEAD: tuple[str, ...] = (sys.executable, "-m", "agent.raft.standby")
READY = b"ready\n"
HURRY = b"hurry\n"
SIZE_GB = 0.4
"""What a waiting process adds to the memory in use, rounded up."""
SPARE_GB = 0.4
"""Memory that must be free beside it and the run, GiB; below that it is ended."""
PATIENCE_S = 10.0
"""A process that is still importing when it is wanted is told to hurry, and then ready no later than a fresh one would
be. Only where it cannot hurry, beside other programs that want all cores, it would take longer than this."""
MOST_IN_VAIN = 3
"""After so many in a row that died or were not ready in time, no more are started."""


@dataclass
class Ahead:
    """A process that waits for its run. It belongs to the `Standby` until it is handed one."""

    process: TrainerProcess
    identity: ProcessIdentity
    start: Start
    channel: socket.socket
    output: IO[bytes]
    """What it has printed so far."""
    handed: bool = False
    ready: bool = False

    def printed(self) -> bytes:
        """Read without moving the position, which the process shares."""
        return os.pread(self.output.fileno(), os.fstat(self.output.fileno()).st_size, 0)

    def wait_until_ready(self, *, most_s: float) -> bool:
        """False where it has died, or is not ready in time."""
        try:
            if not self.ready:
                self.channel.settimeout(most_s)
                self.channel.sendall(HURRY)
            self.ready = self.ready or self.channel.recv(len(READY)) == READY
        except OSError:
            return False
        return self.ready and self.process.poll() is None

    def hand_over(self, arguments: Sequence[str], *, log: Path) -> bool:
        """Tell it its run; from then on it is that run's trainer. False where it has gone."""
        self.handed = True
        told = json.dumps({"arguments": list(arguments), "log": str(log)})
        try:
            self.channel.sendall(told.encode() + b"\n")
        except OSError:
            return False
        finally:
            self._let_go()
        return True

    def end(self) -> None:
        """At once: it has nothing to lose."""
        end_family(self.identity, grace_s=0.0)
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.close()  # held by the kernel; it has been sent SIGKILL and will find its channel closed
        self._let_go()

    def _let_go(self) -> None:
        self.channel.close()
        self.output.close()


class Standby:
    """At most one trainer process ahead of its run. `close` it when no further run will come.

    Use it from one thread: on Linux a process that is on the leash is ended with the thread that started it.
    """

    def __init__(
        self,
        *,
        trainer: Sequence[str] = TRAINER,
        command: Sequence[str] = AHEAD,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`command`, with the path of a recipe added, is what a process of `trainer` ahead of its run is started by."""
        self.trainer = tuple(trainer)
        self._command = tuple(command)
        self._patience_s = patience_s
        self._ahead: Ahead | None = None
        self._began = False
        self._in_vain = 0
        self._largest_gb = 0.0
        self._last_words = b""

    @property
    def waiting(self) -> Ahead | None:
        return self._ahead if self._ahead is not None and not self._ahead.handed else None

    @property
    def private_gb(self) -> float:
        """Memory that it alone holds, GiB; 0 where there is none."""
        if self.waiting is None:
            return 0.0
        try:
            memory = psutil.Process(self.waiting.identity.pid).memory_info()
        except psutil.Error:
            return 0.0
        return (memory.rss - getattr(memory, "shared", 0)) / GIB

    def tend(
        self, start: Start, *, recipe: Path, phase: Phase | None, free_gb: float, floor_gb: float, resident_gb: float
    ) -> None:
        """To be called at every look at a running training; starts one process a run, or ends it for want of memory.

        `start` is how the running trainer was started, and most likely how the next one will be; `recipe` is the file
        of its recipe, by which the process knows what to import. `free_gb` is the memory free now, `floor_gb` what
        the launcher defends, `resident_gb` what the training holds: a training is expected to grow to what the
        largest one so far has held.
        """
        growth = max(0.0, self._largest_gb - resident_gb)
        self._largest_gb = max(self._largest_gb, resident_gb)
        if self.waiting is not None:
            if free_gb < floor_gb + SPARE_GB:
                self.close()
            return
        wanted = not self._began and phase in STEPPING and self._in_vain < MOST_IN_VAIN
        if wanted and free_gb - growth >= floor_gb + SPARE_GB + SIZE_GB:
            self._begin(start, recipe)

    def take(self, start: Start) -> Ahead | None:
        """The process for a run that starts like this, ready to be handed its arguments; None where there is none."""
        self._began = False
        ahead = self.waiting
        if ahead is None:
            return None
        fits = ahead.start == start
        if fits and ahead.wait_until_ready(most_s=self._patience_s):
            self._in_vain = 0
            return ahead
        if fits:
            self._in_vain += 1
            self._last_words = _last_words(ahead)
        self.close()
        return None

    def last_words(self) -> bytes:
        """What a process printed that was wanted and could not be had, for the log of the run that wanted it; once."""
        words, self._last_words = self._last_words, b""
        return words

    def close(self) -> None:
        """End the waiting process. One that has been handed a run is the run's."""
        ahead, self._ahead = self.waiting, None
        if ahead is not None:
            ahead.end()

    def _begin(self, start: Start, recipe: Path) -> None:
        self._began = True
        mark = new_mark()
        with contextlib.ExitStack() as ours:
            try:
                mine, its = socket.socketpair()
                ours.callback(mine.close)
                output = ours.enter_context(tempfile.TemporaryFile())
                with its:
                    process = start.process([*self._command, str(recipe)], mark=mark, stdin=its.fileno(), output=output)
                self._ahead = Ahead(process, process.identity, start, mine, output)
            except OSError:  # no files, no processes, no memory: the next run starts its own, and says so if it cannot
                self._in_vain += 1
                return
            ours.pop_all()


def _last_words(ahead: Ahead) -> bytes:
    try:
        became = f"ended with {ahead.process.wait(timeout=0.2)}"  # one that dies closes its channel a moment before
    except subprocess.TimeoutExpired:
        became = "was not ready in time"
    heading = f"\na trainer process that was started ahead of this run {became}; it printed:\n"
    return heading.encode() + ahead.printed()
