"""A second process for the evaluation: a copy of the worker from before anything was computed, which waits.

What a training leaves in its process (patched modules, a verifier that keeps state, weights that differ from those on
disk) so has no part in how its result is measured: the copy reads recipe, rows, verifier and checkpoint from their
files when it is told to, and what it found comes back as one line of JSON.

The copy is made by fork(2) once everything is imported and before anything is computed: no OpenMP pool has been started
(libgomp's does not survive a fork) and no accelerator touched (CUDA's context neither), OpenBLAS stops its threads
around a fork itself, and pages are shared until one side writes. So it costs milliseconds where another start of Python
costs the imports once more, 3 s and more. It ends with its parent (PR_SET_PDEATHSIG, prctl(2)).

Where a library has opened the accelerator while it was imported, or the system has no such fork, another start of
Python it is: a driver's context does not survive a fork (CUDA C++ Programming Guide, "Interprocess Communication"; for
ROCm a device file that is open, /dev/kfd, is bound to the process that opened it).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.contract import Failure

PR_SET_PDEATHSIG = 1
ACCELERATOR = re.compile(
    r"/dev/(?:kfd|nvidia(?:\d+|ctl|-uvm|-modeset|-caps/\S+)|nvmap|nvhost\S*|dri/(?:render|card)\w*|dxg|accel/\w+)"
)
"""Device files of accelerators: AMD, NVIDIA, Jetson, any one by the kernel's graphics drivers, WSL, the kernel's
`accel`."""
OWN_DESCRIPTORS = Path("/proc/self/fd")
PREPARE = {"prepare": True}
"""The first order to a process that is no copy."""
Serve = Callable[[dict[str, Any]], dict[str, Any]]
Explain = Callable[[Exception], Failure]


class Failed(Exception):
    """The evaluation failed, as `failure` says; the traceback is in the log."""

    def __init__(self, failure: Failure, exit_code: int):
        super().__init__(failure.message)
        self.failure = failure
        self.exit_code = exit_code


class Stopped(Exception):
    """It was asked to end."""


def opened_accelerators(descriptors: Path = OWN_DESCRIPTORS) -> list[str]:
    """Device files of accelerators that this process has open; empty where that cannot be told."""
    found = set()
    with contextlib.suppress(OSError):
        for link in descriptors.iterdir():
            with contextlib.suppress(OSError):
                found.add(str(link.readlink()))
    return sorted(path for path in found if ACCELERATOR.fullmatch(path))


def can_copy_itself() -> bool:
    """Whether a fork of this process may compute."""
    return sys.platform.startswith("linux") and not opened_accelerators()


class Apart:
    """The copy, as its parent sees it. Close it before the parent ends."""

    def __init__(self, pid: int, orders: int, answers: int):
        self.pid = pid
        self._orders, self._answers = orders, answers
        self._over = False
        self._is_ready = True

    @classmethod
    def forked(cls, serve: Serve, *, explain: Explain) -> Apart:
        """`serve` is called in the copy, with what `ask` is given; `explain` tells what an exception of it means."""
        parent = os.getpid()
        (from_parent, orders), (answers, to_parent) = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            os.close(from_parent)
            os.close(to_parent)
            return cls(pid, orders, answers)
        code = 1
        try:
            os.close(orders)
            os.close(answers)
            _end_with(parent)
            # Until it has something to do, the signals that end the training end the copy too.
            _end_by_signals()
            _answer(from_parent, to_parent, serve, explain)
            code = 0
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    @classmethod
    def started(cls, command: Sequence[str]) -> Apart:
        """Another start of Python instead: `command` with `ORDERS ANSWERS`, the descriptors that `serve_on` is given.
        It prepares itself at once; whether it could, `wait_until_ready` knows. Raises OSError."""
        (from_parent, orders), (answers, to_parent) = os.pipe(), os.pipe()
        theirs = (from_parent, to_parent)
        try:
            process = subprocess.Popen([*command, *map(str, theirs)], pass_fds=theirs)
        except BaseException:
            os.close(orders)
            os.close(answers)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        process.returncode = 0  # collected here, by its number, as the copy is
        apart = cls(process.pid, orders, answers)
        apart._is_ready = False
        apart._order(PREPARE)
        return apart

    def wait_until_ready(self) -> None:
        """Before hours are spent on what it is to evaluate. Raises as `ask` does."""
        if not self._is_ready:
            self._answer()
            self._is_ready = True

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """What `serve` returns. Raises Stopped and Failed.

        Where a signal has ended the copy, this process ends by the same one, so that who watches it sees what it was
        (the kernel's out-of-memory killer, a fault in a driver).
        """
        self.wait_until_ready()
        self._order(order)
        return self._answer()

    def _order(self, order: dict[str, Any]) -> None:
        try:
            with os.fdopen(os.dup(self._orders), "wb") as file:
                file.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            pass  # it has died, and how is told where its answer is missed

    def _answer(self) -> dict[str, Any]:
        with os.fdopen(os.dup(self._answers), "rb") as file:
            line = file.readline()
        if not line.endswith(b"\n"):
            self._end_alike()
        told = json.loads(line)
        if "failure" in told:
            raise Failed(Failure(**told["failure"]), told["exit_code"])
        if told.get("stopped"):
            raise Stopped
        result: dict[str, Any] = told["result"]
        return result

    def terminate(self, *, at_once: bool = False) -> None:
        """Ask it to end after its step, or kill it; from a signal handler or another thread too."""
        if not self._over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if at_once else signal.SIGTERM)

    def close(self) -> None:
        """End it at once and collect it."""
        if self._over:
            return
        self._over = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._answers)

    def _end_alike(self) -> None:
        self._over = True
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number in (signal.SIGTERM, signal.SIGINT):
                raise Stopped
            print(f"the evaluation's process was ended by signal {number}", file=sys.stderr, flush=True)
            if number != signal.SIGKILL:
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Failed(Failure(crash_class="unknown", message="the evaluation's process ended", exception="Apart"), 1)


def serve_on(orders: int, answers: int, serve: Serve, *, explain: Explain, prepare: Callable[[], None]) -> None:
    """In a process that `Apart.started` has made, as the first thing that it does: what it starts in turn must hold
    neither descriptor."""
    for descriptor in (orders, answers):
        os.set_inheritable(descriptor, False)
    _end_by_signals()
    _end_with(os.getppid())

    def prepared(order: dict[str, Any]) -> dict[str, Any]:
        if order != PREPARE:
            return serve(order)
        prepare()
        return {}

    _answer(orders, answers, prepared, explain)


def _end_by_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _end_with(parent: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _answer(orders: int, answers: int, serve: Serve, explain: Explain) -> None:
    """Order after order, until nobody will give another one."""
    with os.fdopen(orders, "rb") as given, os.fdopen(answers, "wb") as told:
        while (line := given.readline()).endswith(b"\n"):
            told.write(json.dumps(_answer_to(json.loads(line), serve, explain)).encode() + b"\n")
            told.flush()


def _answer_to(order: dict[str, Any], serve: Serve, explain: Explain) -> dict[str, Any]:
    try:
        return {"result": serve(order)}
    except Stopped:
        return {"stopped": True}
    except Exception as error:
        traceback.print_exc()
        return {"failure": explain(error).model_dump(mode="json"), "exit_code": getattr(error, "exit_code", 1)}
