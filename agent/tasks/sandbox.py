"""Run Python that a model wrote against a row's tests, in a process tree that ends when we say so.

Three processes: we, a supervisor (`sandbox_child.py`, a fresh Python), and its child, the worker, which executes the
code and then the tests. The worker is the first process of a PID namespace where the system allows one (root, or
unprivileged user namespaces), so that the kernel ends everything with it. Everywhere, the supervisor is a
*subreaper*: what the code starts falls to it even if it detaches, and it reports only when all of that is dead.

Covered, each by a test:
- endless loops, sleeping, waiting for input: wall-clock limit; stdin is empty;
- memory: the address space of every process is limited (RLIMIT_AS), so that a hog gets a MemoryError;
- processor time of every process (RLIMIT_CPU), size of every written file (RLIMIT_FSIZE), no core dumps;
- number of processes: counted every few milliseconds, and all are ended above `processes`; RLIMIT_NPROC besides,
  which the kernel ignores for root;
- output: the first part is kept, the rest is thrown away, so that memory stays bounded;
- what is left running, detached or not; and the working folder, which is temporary;
- a fake pass by leaving early (`sys.exit(0)`, `os._exit(0)`) or by printing: a pass is a secret word, said over a
  pipe of its own after the last test;
- our environment variables (keys, tokens): the code gets an environment of its own.

Not covered, so this is no security boundary:
- the network, and any file that the user may read or write;
- code that searches its own interpreter for the secret word, and tests that are fooled from within, such as by an
  answer whose `__eq__` is always true;
- the sum of memory over all processes (each alone is limited);
- without a PID namespace: code that kills its supervisor; and, for root, a fork bomb whose every process detaches
  itself into a session of its own, because it forks faster than it can be killed one by one.
Model-written code therefore runs only with --allow-untrusted-code.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from agent.errors import ResourceError, Unsupported

Status = Literal["passed", "failed", "error", "syntax", "timeout", "processes", "ended"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
# The supervisor keeps the wall-clock limit itself; this is for a supervisor that was killed or stopped.
_SUPERVISOR_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    wall_seconds: float = 5.0
    """From the start of the worker to the end of the last test."""
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    file_bytes: int = 16 << 20
    """Largest file."""
    processes: int = 32
    """Processes of the tree, the supervisor not counted."""
    output_bytes: int = 64 << 10
    """Kept of stdout and stderr together."""


@dataclass(frozen=True)
class Outcome:
    """`passed`: all tests. `failed`: a test's assertion. `syntax`: the code does not compile. `error`: another
    exception. `timeout`, `processes`: a limit. `ended`: the process left without a word."""

    status: Status
    detail: str = ""
    """Exception line, signal or limit."""
    output: str = ""
    share: float = 0.0
    """Share of the tests' assertions that hold, where it was asked for and the code ran but did not pass."""


class Stop:
    """Ends the sandboxes that run with it, from another thread, and every one that is started with it later."""

    def __init__(self) -> None:
        self.requested = False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def request(self) -> None:
        with self._lock:
            self.requested = True
            for supervisor in self._running:
                supervisor.terminate()

    @contextlib.contextmanager
    def reaches(self, supervisor: subprocess.Popen[bytes]) -> Iterator[None]:
        """While this is open, a request ends the supervisor, which ends what it supervises first."""
        with self._lock:
            self._running.add(supervisor)
            if self.requested:
                supervisor.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(supervisor)


def run_tests(
    code: str,
    tests: str,
    *,
    calls: Sequence[str] = (),
    trim: bool = False,
    count: bool = False,
    limits: Limits | None = None,
    namespace: bool = True,
    stop: Stop | None = None,
) -> Outcome:
    """Execute `code`, then `tests` in the same namespace, then each expression of `calls` (`test_solution()`).

    With `trim`, lines at the end are left out until what remains compiles (code followed by prose, or cut).
    With `count`, tests that fail are run once more within the same limits, on past assertions that do not hold.
    `namespace=False` does without a PID namespace even where one could be had. Blocks until the whole process tree
    is gone. Raises Unsupported on systems other than Linux, ResourceError where no process can be started.
    """
    if sys.platform != "linux":
        raise Unsupported("the sandbox for model-written code needs Linux", hint="Use a task without python_tests.")
    limits = limits or Limits()
    job = {
        "code": code,
        "tests": tests,
        "calls": list(calls),
        "trim": trim,
        "count": count,
        "namespace": namespace,
        "word": secrets.token_hex(16),
        **asdict(limits),
    }
    folder = _new_folder()
    try:
        return _supervise(job, folder=folder, wall_seconds=limits.wall_seconds, stop=stop or Stop())
    finally:
        _remove(folder)


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="raft-sandbox-"))
    except OSError as error:
        raise ResourceError(
            f"no temporary folder could be made to test code in: {error.strerror}",
            where=tempfile.gettempdir(),
            hint="Free some space, or point TMPDIR at another disk.",
        ) from None


def _supervise(job: dict[str, object], *, folder: Path, wall_seconds: float, stop: Stop) -> Outcome:
    supervisor = _start(folder)
    words, limit = json.dumps(job).encode(), wall_seconds + _SUPERVISOR_GRACE_SECONDS
    try:
        with stop.reaches(supervisor):
            reply, _ = supervisor.communicate(words, timeout=limit)
    except subprocess.TimeoutExpired:
        return Outcome("timeout", f"the supervisor did not answer within {wall_seconds:g} s and its grace")
    finally:
        _end(supervisor)
    try:
        values = json.loads(reply)
        return Outcome(values["status"], values["detail"], values["output"], float(values["share"]))
    except (ValueError, KeyError, TypeError):
        return Outcome("ended", f"the supervisor was killed (exit code {supervisor.returncode})")


def _start(folder: Path) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
    except OSError as error:
        raise ResourceError(
            f"no process could be started to test code in: {error.strerror}",
            hint="Close other programs, or raise the limits on processes and open files (ulimit -u, ulimit -n).",
        ) from None


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of ours. One thread a process: numeric libraries reserve address space for each."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group. Unless it was waited for, the number cannot be another process's."""
    if supervisor.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.communicate()


def _remove(folder: Path) -> None:
    """Delete the working folder, also where the code took permissions away. Everything that ran in it is dead."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            # A link may lead to a folder of the user's, which is not ours to change.
            if not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
