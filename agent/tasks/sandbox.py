"""Run Python that a model wrote against a row's tests, behind walls, with a verdict that it cannot forge.

    we ── a slot (a host process, warm) ─┬─ tester     runs the tests; what the code defines is a stand-in there
                                         └─ candidate  runs the code; is called over a socket, with plain data

Both processes are forks of the slot's host, made for one program and killed after it. The candidate gets neither tests
nor expected values, and what it sends is compared in the tester, as built-in values; the tester alone says a verdict,
after the last test (`box/tester.py`). See `box/` for the parts, and `agent.tasks.layers` for which layers are in force.

Layers, from the outside in; each is used where the system has it, and `Sandbox.layers()` says which are:
- namespaces (mount, network, PID, IPC, UTS; by root, by a user where that is allowed, or by bubblewrap): a read-only
  root of bind mounts with nothing but what Python needs, no /proc, an empty /tmp in memory of at most 64 MiB and 1024
  files, no network, no way to see or signal anybody else; a PID namespace for each process of each program, so that the
  kernel ends everything in it. Without them, no file can be written at all;
- Landlock: no file but those, no TCP, no signals and no abstract sockets outside;
- seccomp: no sockets, no new process or program, nothing that reaches into another process, no mounts, namespaces,
  keys, shared memory, and none of the kernel's larger interfaces;
- rlimits, always: address space, processor time, size and number of open files, threads, no core dumps;
- an environment with nothing of ours, an empty input, a limit on the time and on the output that is kept.

The sum of memory is bounded where a new process cannot be started (seccomp): address space of candidate and tester, and
/tmp. Not covered: faults of the kernel itself, what can be told from the time that something takes, and the use of all
cores for as long as the limit lasts. Names and sizes of files that the user may see can be asked for where there are no
namespaces (Landlock does not hide them).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.errors import ResourceError
from agent.tasks.layers import WAYS, Host, Layers, start_host
from agent.tasks.verdicts import Closed

Status = Literal["passed", "failed", "error", "syntax", "timeout", "ended"]

_STATUSES: dict[str, Status] = {"passed": "passed", "failed": "failed", "error": "error", "syntax": "syntax"}
_STATUSES |= {"ended": "ended"}
_STOP_SECONDS = 10.0
"""For a host to end two processes; one that takes longer is replaced."""
_HEADER = struct.Struct("!I")
_MOST_REPORT_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    wall_seconds: float = 5.0
    """From the fork to the end of the last test."""
    memory_bytes: int = 1 << 30
    """Address space of the candidate, and of the tester."""
    file_bytes: int = 16 << 20
    """Largest file."""
    threads: int = 32
    output_bytes: int = 64 << 10
    """Kept of the candidate's stdout and stderr together."""

    def rlimits(self) -> dict[str, int]:
        seconds = int(self.wall_seconds) + 1
        # Host, tester and candidate are three.
        threads = self.threads + 3
        return {"AS": self.memory_bytes, "FSIZE": self.file_bytes, "CPU": seconds, "NPROC": threads}


@dataclass(frozen=True)
class Outcome:
    """`passed`: all tests. `failed`: a test's assertion. `syntax`: the code does not compile. `error`: another
    exception, in the code or in the tests. `timeout`: a limit on time. `ended`: the process left, or answered nonsense.
    """

    status: Status
    detail: str = ""
    """Exception line, signal or limit."""
    output: str = ""
    share: float = 0.0
    """Share of the tests' assertions that hold, where it was asked for and the code ran but did not pass."""


class Sandbox:
    """A pool of warm hosts. Programs may be run from several threads at a time; `close` ends all of them."""

    def __init__(self, *, slots: int | None = None, ways: Sequence[str] = WAYS):
        """`ways`: which ways behind walls are tried, in this order."""
        count = slots or min(4, os.cpu_count() or 1)
        self._known: list[Layers] = []
        self._slots = [_Slot(ways, self._known) for _ in range(count)]
        self._free: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for slot in reversed(self._slots):
            self._free.put(slot)

    def layers(self) -> Layers:
        """What is in force, found out by starting the first host.

        Raises Unsupported on systems other than Linux, ResourceError where no process can be started.
        """
        if not self._known:
            self._slots[0].start()
        return self._known[0]

    def run(
        self,
        code: str,
        tests: str,
        *,
        calls: Sequence[str] = (),
        entry_point: str | None = None,
        trim: bool = False,
        count: bool = False,
        limits: Limits | None = None,
    ) -> Outcome:
        """Execute `code`, then `tests`, then each expression of `calls` (`test_solution()`), until one raises.

        `entry_point` is the name of what is tested, where it is known: it may be that of a built-in. With `trim`, lines
        at the end are left out until what remains compiles (code followed by prose, or cut). With `count`, tests that
        fail are run once more within the same limits, on past assertions that do not hold. Blocks until everything that
        ran is gone. Raises ResourceError where no process can be started, Closed after `close`.
        """
        job: dict[str, Any] = {"code": code, "tests": tests, "calls": list(calls), "entry_point": entry_point}
        job |= {"trim": trim, "count": count}
        # Last in, first out: a single caller stays with the host that is warm.
        slot = self._free.get()
        try:
            return slot.run(job, limits or Limits())
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """End all hosts and what runs in them, from any thread: calls in progress and later ones raise Closed."""
        for slot in self._slots:
            slot.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Slot:
    """One host, started when it is needed, and again where it has failed."""

    def __init__(self, ways: Sequence[str], known: list[Layers]):
        """`known`: what the first host of the pool has found; the others go the same way."""
        self._ways = ways
        self._known = known
        self._host: Host | None = None
        self._life = threading.Lock()
        self._starting = threading.Lock()
        self._closed = False

    def close(self) -> None:
        with self._life:
            self._closed = True
            if self._host is not None:
                self._host.kill()

    def run(self, job: dict[str, Any], limits: Limits) -> Outcome:
        # A host that has ended, for want of memory or between two programs, says nothing about this one. Twice does.
        for _ in range(2):
            outcome = self._run_once(job, limits)
            if outcome is not None:
                return outcome
        return Outcome("ended", "the sandbox's own process has ended")

    def _run_once(self, job: dict[str, Any], limits: Limits) -> Outcome | None:
        """None where the host has ended or does not answer."""
        host = self.start()
        try:
            outcome = _run_in(host, job, limits)
        except BaseException:
            # Interrupted in between: what is left belongs to no later program.
            self._replace(host)
            if self._closed:
                raise Closed from None
            raise
        if outcome is None:
            self._replace(host)
            if self._closed:
                raise Closed
        return outcome

    def start(self) -> Host:
        """Its host, started where there is none."""
        with self._starting:
            if self._closed:
                raise Closed
            if self._host is None:
                host = start_host([self._known[0].way] if self._known else self._ways)
                if not self._known:
                    self._known.append(host.layers)
                with self._life:
                    self._host = host
                    if self._closed:
                        host.kill()
            host = self._host
            assert host is not None
            return host

    def _replace(self, host: Host) -> None:
        host.kill()
        with self._life:
            self._host = None


def _run_in(host: Host, job: dict[str, Any], limits: Limits) -> Outcome | None:
    """One program. None where the host has ended or does not answer."""
    started = time.monotonic()
    deadline = started + limits.wall_seconds
    with contextlib.ExitStack() as later:
        report, report_end, testers_end, candidates_end, output, output_end = _connections(later)
        try:
            ends = [report_end.fileno(), testers_end.fileno(), candidates_end.fileno(), output_end]
            order = json.dumps({"do": "run", "limits": limits.rlimits()}).encode()
            socket.send_fds(host.control, [order], ends)
        except OSError:
            return None
        finally:
            for end in (report_end, testers_end, candidates_end):
                end.close()
            os.close(output_end)
        watched = _Watched(report, output, limits)
        watched.send(job, deadline)
        watched.listen(deadline, frames=1)
        if job["count"] and watched.status in ("failed", "error"):
            watched.listen(deadline, frames=2)
        ended = _stop(host, patient=not watched.timed_out and watched.status in ("", "ended"))
        watched.drain()
    return None if ended is None else _outcome(watched, ended, limits)


def _connections(
    later: contextlib.ExitStack,
) -> tuple[socket.socket, socket.socket, socket.socket, socket.socket, int, int]:
    """Both ends for the report, between tester and candidate, and for the output; ours are closed `later`."""
    try:
        report, report_end = socket.socketpair()
        later.enter_context(report)
        testers_end, candidates_end = socket.socketpair()
        output, output_end = os.pipe()
    except OSError as error:
        raise ResourceError(
            f"model-written code could not be run: {error.strerror}",
            hint="Close other programs, or raise the limit on open files (ulimit -n).",
        ) from None
    later.callback(os.close, output)
    return report, report_end, testers_end, candidates_end, output, output_end


def _stop(host: Host, *, patient: bool) -> dict[str, Any] | None:
    try:
        host.control.send(json.dumps({"do": "stop", "patient": patient}).encode())
        host.control.settimeout(_STOP_SECONDS)
        answer = host.control.recv(1 << 16)
    except OSError:
        return None
    return dict(json.loads(answer)) if answer else None


def _outcome(watched: _Watched, ended: dict[str, Any], limits: Limits) -> Outcome:
    output = bytes(watched.output).decode(errors="replace")
    status = _STATUSES.get(watched.status)
    detail = str(watched.frames[0].get("detail", "")) if watched.frames else ""
    if status is None or (status == "ended" and not detail):
        # The kernel kills by a count of its own, which is a little ahead of the one that it reports.
        if ended["code"] == -signal.SIGKILL and ended["seconds"] >= 0.8 * limits.rlimits()["CPU"]:
            return Outcome("timeout", "processor time", output)
        if watched.timed_out:
            return Outcome("timeout", f"{limits.wall_seconds:g} s", output)
        return Outcome("ended", _ending(ended["code"], by_tests=status is None), output)
    share = watched.frames[1].get("share", 0.0) if len(watched.frames) > 1 else 0.0
    return Outcome(status, detail, output, float(share))


def _ending(code: int | None, *, by_tests: bool) -> str:
    if by_tests:
        return "the tests' own process ended before the last test"
    if code is None:
        return "it closed its connection before the last test"
    return signal.Signals(-code).name if code < 0 else f"exit code {code} before the last test"


class _Watched:
    """The tester's report and the candidate's output, read until enough is said or time is up."""

    def __init__(self, report: socket.socket, output: int, limits: Limits):
        self.frames: list[dict[str, Any]] = []
        self.output = bytearray()
        self.timed_out = False
        self._report, self._output, self._limits = report, output, limits
        self._pending = bytearray()
        self._poll = select.poll()
        self._poll.register(report, select.POLLIN)
        self._poll.register(output, select.POLLIN)

    @property
    def status(self) -> str:
        """What the tester has said; empty where it has not."""
        return str(self.frames[0].get("status", "")) if self.frames else ""

    def send(self, job: dict[str, Any], deadline: float) -> None:
        text = json.dumps(job).encode()
        self._report.settimeout(max(0.01, deadline - time.monotonic()))
        with contextlib.suppress(OSError):
            self._report.sendall(_HEADER.pack(len(text)) + text)

    def listen(self, deadline: float, *, frames: int) -> None:
        while len(self.frames) < frames:
            left = deadline - time.monotonic()
            ready = self._poll.poll(max(0.0, left) * 1000) if left > 0 else []
            if not ready:
                self.timed_out = True
                return
            for descriptor, _ in ready:
                if descriptor == self._output:
                    self._read_output()
                elif not self._read_report():
                    return

    def drain(self) -> None:
        """What is left in the pipe, whose writers are all dead."""
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            while len(self.output) < self._limits.output_bytes and self._read_output():
                pass

    def _read_output(self) -> bool:
        received = os.read(self._output, 1 << 16)
        if not received:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._output)
        room = self._limits.output_bytes - len(self.output)
        self.output += received[:room]
        return bool(received)

    def _read_report(self) -> bool:
        """False at its end."""
        try:
            received = self._report.recv(1 << 16)
        except OSError:
            # It has ended before it had read its job.
            return False
        self._pending += received
        while len(self._pending) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._pending)
            if length > _MOST_REPORT_BYTES:
                return False
            if len(self._pending) < _HEADER.size + length:
                break
            frame = json.loads(self._pending[_HEADER.size : _HEADER.size + length])
            del self._pending[: _HEADER.size + length]
            self.frames.append(frame)
        return bool(received)
