"""The child side of `agent.tasks.sandbox`: the supervisor, and the worker that it forks.

Started by path in a fresh Python, with the job as JSON on its input; prints one JSON object and leaves. See
`agent.tasks.sandbox` for what this covers and what it does not.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import types
from typing import Any

# From linux/prctl.h.
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
# From linux/sched.h.
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
POLL_SECONDS = 0.005
READ_BYTES = 65536


def main() -> None:
    job = json.loads(sys.stdin.read())
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if job["namespace"]:
        _own_process_namespace(libc)
    # Keeps a user's other processes, the worker among them, out of /proc/<supervisor>/fd and mem (not root's).
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    said, say = os.pipe()
    printed, printing = os.pipe()
    started = time.monotonic()
    worker = os.fork()
    if worker == 0:
        _work(job, say=say, printing=printing, libc=libc)
    os.close(say)
    os.close(printing)
    reply = _watch(job, worker=worker, parent=parent, said=said, printed=printed, started=started)
    sys.stdout.write(json.dumps(reply))


def _own_process_namespace(libc: Any) -> None:
    """Let the next child be the first process of a PID namespace: with it, the kernel ends everything in there.

    That takes root, or a system that lets users have namespaces of their own. Without, `_end_descendants` has to do.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWPID) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0:
        return
    # Inside, the user keeps the own number, so that programs which ask for it go on working.
    with contextlib.suppress(OSError):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")


# The supervisor ---------------------------------------------------------------------------------------------


def _watch(job: dict[str, Any], *, worker: int, parent: int, said: int, printed: int, started: float) -> dict[str, Any]:
    """Read until the worker has ended or a limit is met, then leave nothing running."""
    verdict, output = b"", b""
    stopped: list[int] = []
    # Not before the fork: the worker keeps the usual answer to this signal.
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    limit: tuple[str, str] | None = None
    ended: int | None = None
    poll = select.poll()
    poll.register(said, select.POLLIN)
    poll.register(printed, select.POLLIN)
    open_pipes = {said, printed}
    while ended is None and limit is None:
        for descriptor, _ in poll.poll(POLL_SECONDS * 1000):
            received = os.read(descriptor, READ_BYTES)
            if not received:
                poll.unregister(descriptor)
                open_pipes.discard(descriptor)
            elif descriptor == said:
                verdict = (verdict + received)[:READ_BYTES]
            else:
                output = (output + received)[: job["output_bytes"]]
        if not open_pipes:
            time.sleep(POLL_SECONDS)
        ended = _reap(worker)
        limit = ("ended", "stopped") if stopped else _limit_met(job, started=started, parent=parent)
    if ended is None:
        # Not waited for yet, so the number is still the worker's. With a PID namespace, all in it end now.
        os.kill(worker, signal.SIGKILL)
    _end_descendants()
    verdict, output = _drain(said, verdict), _drain(printed, output)
    text = output[: job["output_bytes"]].decode(errors="replace")
    first, _, second = verdict.partition(b"\n")
    status, detail = _status(_said(job, first), ended=ended, limit=limit)
    return {"status": status, "detail": detail, "output": text, "share": _said(job, second).get("share", 0.0)}


def _said(job: dict[str, Any], line: bytes) -> dict[str, Any]:
    """What the worker said, if it said it with the secret word."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(line)
        if said["word"] == job["word"]:
            return dict(said)
    return {}


def _status(said: dict[str, Any], *, ended: int | None, limit: tuple[str, str] | None) -> tuple[str, str]:
    """The worker's own words, else the limit, or how it ended."""
    if "status" in said:
        return said["status"], said["detail"]
    if limit is not None:
        return limit
    code = os.waitstatus_to_exitcode(ended or 0)
    if code == -signal.SIGXCPU:
        return "timeout", "processor time"
    return "ended", signal.Signals(-code).name if code < 0 else f"exit code {code} before the last test"


def _limit_met(job: dict[str, Any], *, started: float, parent: int) -> tuple[str, str] | None:
    if time.monotonic() - started > job["wall_seconds"]:
        return "timeout", f"{job['wall_seconds']:g} s"
    if os.getppid() != parent:
        return "ended", "the program that started this one is gone"
    if len(_descendants(os.getpid(), at_most=job["processes"] + 1)) > job["processes"]:
        return "processes", f"more than {job['processes']} processes"
    return None


def _reap(worker: int) -> int | None:
    """Wait status of the worker if it has ended. Orphans that fell to us are collected on the way."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == worker:
                return status
    return None


def _descendants(pid: int, *, at_most: int) -> list[int]:
    """Processes below `pid`; about the first `at_most` of them."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < at_most:
        for child in _children(waiting.pop()):
            found.append(child)
            waiting.append(child)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children.extend(map(int, _read(f"{thread.path}/children").split()))
    return children


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, READ_BYTES)
    finally:
        os.close(descriptor)


def _end_descendants() -> None:
    """Kill every descendant until there is none; where there is a PID namespace, the kernel has done it already.

    By process group, because the kernel does that at once for all members; one by one, a fork bomb is faster.
    """
    own_group = os.getpgrp()
    while True:
        for pid in _descendants(os.getpid(), at_most=64):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                group = os.getpgid(pid)
                if group != own_group:
                    os.killpg(group, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _drain(descriptor: int, already: bytes) -> bytes:
    """What is left in a pipe whose writers are all dead."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while len(already) < READ_BYTES * 4:
            received = os.read(descriptor, READ_BYTES)
            if not received:
                break
            already += received
    return already


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# The worker -------------------------------------------------------------------------------------------------


def _work(job: dict[str, Any], *, say: int, printing: int, libc: Any) -> None:
    """Execute code and tests, say what came of it, and leave. Never returns."""
    try:
        os.setpgid(0, 0)
        # The supervisor has one thread, so this means the death of the process.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        say = _only_pipes(say=say, printing=printing)
        _limit(job)
        status, detail = _execute(job)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        # The verdict first: what is counted after it may run into the limit.
        _say(say, {"word": job["word"], "status": status, "detail": detail})
        if job["count"] and status in ("failed", "error"):
            _say(say, {"word": job["word"], "share": _share_of_assertions(job)})
    finally:
        os._exit(0)


def _say(descriptor: int, words: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(words).encode() + b"\n")


def _only_pipes(*, say: int, printing: int) -> int:
    """stdin empty, stdout and stderr into `printing`, `say` at descriptor 3, everything else closed."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    # `say` may itself have one of the low numbers.
    say = os.dup(say)
    os.dup2(printing, 1)
    os.dup2(printing, 2)
    os.dup2(say, 3, inheritable=False)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return 3


def _limit(job: dict[str, Any]) -> None:
    seconds = int(job["wall_seconds"]) + 1
    limits = {
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: _tasks_of_user() + 4 * job["processes"],
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def _tasks_of_user() -> int:
    """Tasks that RLIMIT_NPROC counts already: all threads of this user, on the whole machine."""
    count = 0
    for process in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == os.getuid():
                count += sum(1 for _ in os.scandir(f"{process.path}/task"))
    return count


def _execute(job: dict[str, Any]) -> tuple[str, str]:
    """Status and exception line of code, tests and calls, run one after the other in a module of their own."""
    try:
        code = _compiled(job["code"], trim=job["trim"])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return "syntax", _exception_line(error, "code")
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    step = "code"
    try:
        exec(code, module.__dict__)
        step = "tests"
        for text in (job["tests"], *job["calls"]):
            exec(compile(text, "<tests>", "exec"), module.__dict__)
    except BaseException as error:
        failed = step == "tests" and isinstance(error, AssertionError)
        return "failed" if failed else "error", _exception_line(error, step)
    return "passed", ""


def _share_of_assertions(job: dict[str, Any]) -> float:
    """Share of the tests' assertions that hold each time they are met. Those that are never met do not hold."""
    counting = _Counting()
    tests = ast.fix_missing_locations(counting.visit(ast.parse(job["tests"])))
    if counting.count == 0:
        return 0.0
    held: set[int] = set()
    missed: set[int] = set()
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    with contextlib.suppress(BaseException):
        exec(_compiled(job["code"], trim=job["trim"]), module.__dict__)
        module.__dict__.update({_Counting.HELD: held.add, _Counting.MISSED: missed.add})
        exec(compile(tests, "<tests>", "exec"), module.__dict__)
    for text in job["calls"]:
        with contextlib.suppress(BaseException):
            exec(compile(text, "<tests>", "exec"), module.__dict__)
    return len(held - missed) / counting.count


class _Counting(ast.NodeTransformer):
    """Has every assertion note whether it holds, and go on where it does not."""

    HELD, MISSED = "_assertion_held", "_assertion_missed"

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.Try:
        number = self.count
        self.count += 1
        missed = ast.ExceptHandler(None, None, [self._note(self.MISSED, number)])
        return ast.Try(body=[node], handlers=[missed], orelse=[self._note(self.HELD, number)], finalbody=[])

    def _note(self, name: str, number: int) -> ast.Expr:
        return ast.Expr(ast.Call(ast.Name(name, ast.Load()), [ast.Constant(number)], []))


def _compiled(text: str, *, trim: bool) -> types.CodeType:
    """Code object of `text`; with `trim`, of the longest run of whole lines from its start that compiles."""
    lines = text.splitlines()
    for count in range(len(lines), 0, -1) if trim else ():
        with contextlib.suppress(SyntaxError):
            return compile("\n".join(lines[:count]), "<solution>", "exec")
    return compile(text, "<solution>", "exec")


def _exception_line(error: BaseException, step: str) -> str:
    """`AssertionError in the tests: message`; a message that cannot be made is left out."""
    try:
        message = str(error)[:200]
    except BaseException:
        message = ""
    return f"{type(error).__name__} in the {step}" + (f": {message}" if message else "")


if __name__ == "__main__":
    main()
