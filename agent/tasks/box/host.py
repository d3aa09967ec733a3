"""The warm process of a sandbox: a Python with its modules loaded, of which every program is a fork.

It is told what to do over a socket of whole messages: `run` with four descriptors, and `stop`. It never reads what a
program says or what it is tested with, so that neither can be found in the memory that the next one starts with.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from agent.tasks.box import confine, kernel, walls
from agent.tasks.box.candidate import serve
from agent.tasks.box.names import names_of_candidate
from agent.tasks.box.tester import run_job
from agent.tasks.box.wire import Broken, Decoder, Encoder, Wire

DESCRIPTORS = 64
"""Most that a program may have open."""
_ASIDE = 40
"""Descriptors from here on are for moving others."""
_OTHERS = 256
"""Tasks that the user may come to have meanwhile, other programs of ours among them."""
_PATIENCE_SECONDS = 0.2
"""For a process that has closed its end to be dead."""
_EARLIER_MODULES = (
    "array ast bisect cmath collections.abc copy dataclasses datetime decimal enum fractions functools heapq itertools "
    "math operator random re statistics string struct time typing"
)
"""What programs and tests import most. More would make every fork slower."""


class Host:
    def __init__(self, *, readable: list[str], walls_by: str, temporary: str | None):
        self._layers = confine.probe(read_only_root=bool(walls_by), readable=readable)
        self._readable = readable
        self._temporary = temporary
        self._self = _own_pid_namespace()
        self._children: dict[str, int] = {}
        # Known before the fork where every program is the first of its namespace.
        self._program: bytes | None = None
        if self._self is not None:
            self._program = confine.seccomp_program(own_pid=1, read_only_root=bool(walls_by))
        self._rules = self._new_rules()
        self._before = self._state_of_temporary()
        # Threads and processes that RLIMIT_NPROC counts already: all of a user, on the whole machine, unless the
        # user is one of a namespace of ours.
        self._counted = 0 if walls_by == walls.USER_NAMESPACE else _tasks_of_user() + _OTHERS
        if not self._layers.seccomp and self._self is None:
            # What detaches itself falls to us.
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)

    def layers(self) -> dict[str, Any]:
        return {
            "processes": self._self is not None,
            "temporary": self._temporary is not None,
            "landlock": self._layers.landlock,
            "seccomp": self._layers.seccomp,
        }

    def serve(self, control: socket.socket) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 4)
            if not message:
                break
            order = json.loads(message)
            if order["do"] == "run":
                self._run(order["limits"], descriptors)
            else:
                control.send(json.dumps(self._stop(patient=order["patient"])).encode())
        self._stop(patient=False)

    def _run(self, limits: dict[str, int], descriptors: list[int]) -> None:
        report, testers_end, candidates_end, output = descriptors
        limits = limits | {"NPROC": limits["NPROC"] + self._counted, "NOFILE": DESCRIPTORS}
        self._children["tester"] = self._fork(_test, {report: 3, testers_end: 4}, limits, tester=True)
        self._children["candidate"] = self._fork(_answer, {output: 1, candidates_end: 3}, limits, tester=False)
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork(self, work: Callable[[], None], kept: dict[int, int], limits: dict[str, int], *, tester: bool) -> int:
        if self._self is not None:
            kernel.setns(self._self, kernel.CLONE_NEWPID)
            kernel.unshare(kernel.CLONE_NEWPID)
        child = os.fork()
        if child:
            return child
        try:
            user = confine.NOBODY - 1 if tester else confine.NOBODY
            rules = self._rules["tester" if tester else "candidate"]
            confine.confine(self._layers, limits=limits, rules=rules, program=self._program, user=user)
            _arrange(kept)
            os.chdir("/" if tester or self._temporary is None else self._temporary)
            gc.enable()
            with contextlib.suppress(Broken):
                work()
        finally:
            os._exit(0)

    def _new_rules(self) -> dict[str, int | None]:
        if not self._layers.landlock:
            return {"tester": None, "candidate": None}
        writable = {"tester": [], "candidate": [] if self._temporary is None else [self._temporary]}
        return {
            role: confine.landlock_rules(self._readable, writable=folders, abi=self._layers.landlock)
            for role, folders in writable.items()
        }

    def _stop(self, *, patient: bool) -> dict[str, Any]:
        """End both processes and what they have started. How the candidate ended by itself, and its processor time."""
        code, seconds = None, 0.0
        candidate = self._children.get("candidate")
        by_itself = candidate is not None and _has_ended(candidate, within=_PATIENCE_SECONDS if patient else 0.0)
        for child in self._children.values():
            # Not waited for yet, so the number is still its own.
            os.kill(child, signal.SIGKILL)
        for child in self._children.values():
            _, status, usage = os.wait4(child, 0)
            if child == candidate:
                code = os.waitstatus_to_exitcode(status) if by_itself else None
                seconds = usage.ru_utime + usage.ru_stime
        self._children.clear()
        if self._self is None and not self._layers.seccomp:
            _end_orphans()
        if self._temporary is not None and self._state_of_temporary() != self._before:
            walls.mount_temporary(self._temporary, again=True)
            # The rules speak of the folder that was there before.
            for rules in self._rules.values():
                if rules is not None:
                    os.close(rules)
            self._rules = self._new_rules()
            self._before = self._state_of_temporary()
        return {"code": code, "seconds": seconds}

    def _state_of_temporary(self) -> Any:
        return None if self._temporary is None else walls.state_of_temporary(self._temporary)


def _test() -> None:
    run_job(Wire(3), Wire(4))


def _answer() -> None:
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False, errors="replace"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "agent"]:
        del sys.modules[name]
    serve(Wire(3))


def _has_ended(child: int, *, within: float) -> bool:
    """It is looked at, not waited for."""
    deadline = time.monotonic() + within
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def _own_pid_namespace() -> int | None:
    """A descriptor to come back by from the PID namespace of each program; None where there can be no such."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            own = kernel.pidfd_of_self()
            for _ in range(2):
                kernel.setns(own, kernel.CLONE_NEWPID)
                kernel.unshare(kernel.CLONE_NEWPID)
            os._exit(0)
        os._exit(1)
    return kernel.pidfd_of_self() if os.waitpid(child, 0)[1] == 0 else None


def _arrange(kept: dict[int, int]) -> None:
    """Leave open what is `kept`, at the numbers that it says; input is empty, errors go where the output goes."""
    copies = {fcntl.fcntl(old, fcntl.F_DUPFD, _ASIDE): new for old, new in kept.items()}
    nothing = fcntl.fcntl(os.open(os.devnull, os.O_RDWR), fcntl.F_DUPFD, _ASIDE)
    os.closerange(0, _ASIDE)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for copy, new in copies.items():
        os.dup2(copy, new)
        if new == 1:
            os.dup2(copy, 2)
    os.closerange(_ASIDE, DESCRIPTORS)


def _tasks_of_user() -> int:
    count = 0
    with contextlib.suppress(OSError):
        for process in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                if process.name.isdigit() and process.stat().st_uid == os.getuid():
                    count += len(os.listdir(f"{process.path}/task"))
    return count


def _end_orphans() -> None:
    """Without a PID namespace and a filter: kill what was left to us until there is nothing.

    Not with `agent.proc`, which does not lie behind the walls (`_OWN_FILES` in start.py).
    """
    while True:
        with contextlib.suppress(OSError), open("/proc/thread-self/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def warm_up() -> None:
    """Load modules, and run once what every tester and candidate runs, so that a fork has less to do and to copy."""
    for name in _EARLIER_MODULES.split():
        with contextlib.suppress(ImportError):
            __import__(name)
    tests = "assert f([1, 2.5, 'x'], {1: (None, True)}) == {3}\n"
    for _ in range(20):
        names_of_candidate(tests, ["f()"], entry_point=None)
        written = Encoder(id, numbered=True).encode([[1, 2.5, "x", b"y"], {1: (None, True)}, {3}])
        Decoder(lambda tag, parts: None).decode(json.loads(json.dumps(written)))
        exec(compile(tests, "<tests>", "exec"), {"f": lambda *_: {3}})
