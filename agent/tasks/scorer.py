"""Scoring functions in child processes that stay: a call costs a pipe round trip, not a start of Python.

Why a child, always: a verifier file is the user's, so it is trusted, but it may loop, exit, crash in C, import a
library that fights with the trainer's, or need to be cut off in the middle of a C call, as `sympy` does on
`9**9**9**9` and a regular expression that backtracks for ever. A thread or a signal handler stops none of these, and
a C call that holds the interpreter would stop generation too; killing a process does stop it. Measured on two busy
cores: 0.13 ms a call; once, 0.1 s to start, 0.5 s for math-verify.

Covered: a call that exceeds its time limit is killed with its process group, and the next call gets a fresh child;
a child whose parent was killed ends at end of input, or by its own alarm. Not covered: what the function does to
files, the network and memory, unless it runs behind the sandbox's layers (`kept_in`), as an untrusted function does and
a rule that runs what the model wrote. Those layers keep it in; what it says of a response is its word all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from agent.errors import ResourceError, VerifierError
from agent.tasks.layers import Layers, start_behind_walls
from agent.tasks.verdicts import Closed, spread
from agent.text import passed_on

START_SECONDS = 120.0
"""A user's file may import something large."""

MOST_REPLY_BYTES = 16 << 20
"""Of one line. An answer is a number, an exception's line, or a part of the response."""
_KINDS: dict[str, type | UnionType] = {
    "value": int | float | None,
    "answer": str | None,
    "understood": bool,
    "returned": str,
    "ready": bool,
    "files": dict,
    "error": str,
    "at": str | None,
}

_CHILD = Path(__file__).with_name("scorer_child.py")


@dataclass(frozen=True)
class Reply:
    """What came back for one request: exactly one of `values`, `error` and `ended` is set."""

    values: Mapping[str, Any] | None = None
    error: str | None = None
    """Exception line of the scoring function."""
    at: str | None = None
    """`file:line` of the exception."""
    ended: str | None = None
    """The process ended without an answer: `time limit of 5 s`, `signal 11`, `exit code 1`."""
    timed_out: bool = False


class Scorer:
    """One child process, started at the first call and again after a time limit."""

    def __init__(self, setup: Mapping[str, Any], *, timeout: float, kept_in: Layers | None = None):
        """`kept_in`: the layers that it runs behind, where what it does is not trusted."""
        self._setup = dict(setup)
        self._kept_in = kept_in
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._asked = 0
        self._over = False
        self.files: dict[str, str] = {}
        """Digest by path of what the scoring function is made of, as far as the children have told."""
        self._life = threading.Lock()
        """Held while the child is started, killed and collected: a child that is just being started must not escape
        `end`, and a number must not be used once it is another's."""

    def start(self) -> Reply:
        """Start the child if there is none. A reply with `error` where what it loads fails to load.

        Raises Closed after `end`.
        """
        if self._process is not None:
            return Reply(values={})
        self._pending = b""
        with self._life:
            if self._over:
                raise Closed
            self._process = _started_child(self._setup, self._kept_in)
        reply = self._exchange(self._setup | {"timeout": START_SECONDS}, timeout=START_SECONDS)
        if reply.values is None:
            self.close()
        else:
            self._note(reply.values.get("files") or {})
        return reply

    def _note(self, files: Mapping[str, str]) -> None:
        """A file that was another one before is told with both digests."""
        for path, digest in files.items():
            before = self.files.get(path, digest)
            self.files[path] = digest if before == digest else f"{before}, then {digest}"

    def ask_files(self) -> None:
        """Have a living child tell what it has loaded meanwhile."""
        if self._process is not None:
            reply = self._exchange({"files": True}, timeout=self._timeout)
            self._note((reply.values or {}).get("files") or {})

    def score(self, request: Mapping[str, Any]) -> Reply:
        started = self.start()
        if started.values is None:
            return started
        return self._exchange({**request, "timeout": self._timeout}, timeout=self._timeout)

    def end(self) -> None:
        """Kill the child and what it started, from any thread, and never start another.

        A call in progress returns, as from a dead child, or raises Closed.
        """
        with self._life:
            self._over = True
            self._kill()

    def close(self) -> None:
        """Kill the child and what it started, and collect it. For the thread that uses this scorer."""
        with self._life:
            self._kill()
            process, self._process = self._process, None
            if process is None:
                return
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _kill(self) -> None:
        if self._process is not None:
            # Not yet waited for, so the number is still its own and cannot be another process's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _exchange(self, message: Mapping[str, Any], *, timeout: float) -> Reply:
        """Send one message and read its reply; the child is gone unless the reply has `values` or `error`."""
        try:
            values = self._ask(message, deadline=time.monotonic() + timeout)
        except BaseException:
            # Interrupted between question and answer: the next question must not get this one's answer.
            self.close()
            raise
        if values is None:
            self.close()
            return Reply(ended=f"time limit of {timeout:g} s", timed_out=True)
        if not values:
            return self._ended()
        return Reply(error=values["error"], at=values["at"]) if "error" in values else Reply(values=values)

    def _ask(self, message: Mapping[str, Any], *, deadline: float) -> dict[str, Any] | None:
        """Nothing where the child closed its end, None at the deadline."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._asked += 1
        try:
            self._process.stdin.write(json.dumps({**message, "number": self._asked}, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {}
        while line := self._read_line(deadline=deadline):
            # Code that the child runs may have written to its pipe, before this question or after it.
            if (values := _said(line, number=self._asked)) is not None:
                return values
        return None if line is None else {}

    def _read_line(self, *, deadline: float) -> bytes | None:
        """One line with its end; b"" where the child closed its own, None at the deadline."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        readable = select.poll()
        readable.register(descriptor, select.POLLIN)
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not readable.poll(left * 1000):
                return None
            received = os.read(descriptor, 65536)
            if not received:
                return b""
            self._pending += received
            if len(self._pending) > MOST_REPLY_BYTES:
                break
        line, end, self._pending = self._pending.partition(b"\n")
        return line + end

    def _ended(self) -> Reply:
        """How a child that closed its output ended; it is given a moment to do so."""
        assert self._process is not None
        deadline = time.monotonic() + 5.0
        # WNOWAIT: looked at, not collected, so that `close` can still name the group safely.
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (state := os.waitid(os.P_PID, self._process.pid, how)) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        self.close()
        if state is None:
            return Reply(ended="closing its output")
        what = "exit code" if state.si_code == os.CLD_EXITED else "signal"
        return Reply(ended=f"{what} {state.si_status}")


def _said(line: bytes, *, number: int) -> dict[str, Any] | None:
    """The answer to the question of that number, an error where it is none; None for what answers no such question."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.pop("number", None) != number:
        return None
    known = all(isinstance(value, _KINDS.get(name, ())) for name, value in values.items())
    whole = ("error" in values) == ("at" in values)
    return (
        values if values and known and whole else {"error": "it answered with something that is no score", "at": None}
    )


def _started_child(setup: Mapping[str, Any], kept_in: Layers | None) -> subprocess.Popen[bytes]:
    if kept_in is not None:
        # What it prints goes nowhere: the log is a file that it could empty.
        spec = {"way": kept_in.way, "serve": setup["kind"], "readable": setup.get("readable", [])}
        return start_behind_walls(spec, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=passed_on(os.environ, named=setup.get("environment", ())),
            start_new_session=True,
        )
    except OSError as error:
        raise ResourceError(
            f"no process could be started to check answers in: {error.strerror}",
            hint="Close other programs, or raise the limits on processes and open files (ulimit -u, ulimit -n).",
        ) from None


class Scorers:
    """Several children for one function, so that a batch uses the machine's cores."""

    def __init__(
        self,
        setup: Mapping[str, Any],
        *,
        timeout: float,
        workers: int | None = None,
        kept_in: Layers | None = None,
    ):
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._closed = False
        self._all = [Scorer(setup, timeout=timeout, kept_in=kept_in) for _ in range(self._workers)]
        self._free: queue.LifoQueue[Scorer] = queue.LifoQueue()
        for scorer in reversed(self._all):
            self._free.put(scorer)

    def start(self) -> Reply:
        """Start the first child, to learn early whether the function loads."""
        return self._all[0].start()

    def score(self, request: Mapping[str, Any]) -> Reply:
        # Last in, first out: a single caller stays with the child that is already running.
        scorer = self._free.get()
        try:
            if self._closed:
                raise Closed
            reply = scorer.score(request)
            if self._closed:
                raise Closed
            return reply
        finally:
            if self._closed:
                scorer.close()
            self._free.put(scorer)

    def replies(self, requests: Sequence[Mapping[str, Any]]) -> Generator[Reply]:
        """Replies in the order of `requests`, as they come; close the iterator to drop the rest."""
        if len(requests) < 2 * self._workers:
            yield from map(self.score, requests)
        else:
            yield from spread(self.score, requests, workers=self._workers, name="scorer")

    def files(self) -> dict[str, str]:
        """Digest by path of the files that the function is made of in all children. Not while others call it."""
        found: dict[str, str] = {}
        for scorer in self._all:
            scorer.ask_files()
            for path, digest in scorer.files.items():
                before = found.get(path, digest)
                found[path] = digest if before == digest else f"{before}, then {digest}"
        return found

    def close(self) -> None:
        """End the children for good. Calls in progress in other threads raise Closed, and so do later ones."""
        self._closed = True
        for scorer in self._all:
            scorer.end()
        # Those in use are collected by the threads that use them.
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for scorer in idle:
            scorer.close()
            self._free.put(scorer)


def function_scorers(
    path: Path,
    function: str,
    *,
    timeout: float,
    beside: Path | None = None,
    kept_in: Layers | None = None,
    environment: Sequence[str] = (),
) -> Scorers:
    """Children that call `function(response, row)` of the user's file, which may import what lies `beside` it, with
    these variables of ours that they would else not get.

    With `kept_in` they run behind these layers, and read that folder and the file and nothing else of the user's.
    Raises VerifierError where the file fails to import, with the user's exception line.
    """
    folder = (beside or path.parent).resolve()
    setup: dict[str, Any] = {"kind": "python", "path": str(path.resolve()), "function": function, "beside": str(folder)}
    setup |= {"readable": [str(folder), str(path.resolve())], "environment": list(environment)}
    scorers = Scorers(setup, timeout=timeout, kept_in=kept_in)
    reply = scorers.start()
    if reply.values is None:
        scorers.close()
        what = reply.error or f"the import ended with {reply.ended}"
        raise VerifierError(
            f"the verifier file cannot be imported: {what}" + (f" ({reply.at})" if reply.at else ""),
            where=reply.at or str(path),
            hint="Mend the file, or name another one: task.verifier.kind is python:FILE.py:FUNCTION.",
        )
    return scorers


def pattern_scorers(pattern: str, *, timeout: float) -> Scorers:
    """Children that look for the last match of a regular expression."""
    return Scorers({"kind": "regex", "pattern": pattern}, timeout=timeout)


def math_scorers(*, timeout: float) -> Scorers:
    """Children that run math-verify."""
    return Scorers({"kind": "math"}, timeout=timeout)


def gym_scorers(name: str, parameters: Mapping[str, Any], *, timeout: float, kept_in: Layers | None = None) -> Scorers:
    """Children that apply the scoring rule of a reasoning_gym data set; with `kept_in`, in a fork for each answer."""
    setup = {"kind": "reasoning_gym", "dataset": name, "parameters": dict(parameters)}
    return Scorers(setup, timeout=timeout, kept_in=kept_in)
