"""Which layers of isolation this system allows, in words, and how a process is started behind them.

What counts as enough to run a stranger's code without being told to: files closed (a root of our own, or Landlock),
the network closed (a namespace, or no sockets by seccomp), and processes closed (PID namespaces, or no new processes
and no signals by seccomp). So namespaces suffice, and so do Landlock and seccomp together; rlimits alone do not.

    python -m agent.tasks.layers     # says it as JSON, for other rooms
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.errors import AgentError, ResourceError, Unsupported, UsageError

WAYS = ("direct", "bwrap", "none")
"""Behind walls by namespaces of our own, by bubblewrap, or not at all; the first that works is taken."""

_START = Path(__file__).parent / "box" / "start.py"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Layers:
    way: str
    """One of WAYS."""
    walls: str
    """How the namespaces came about: `root`, `user namespace`, `bubblewrap`; empty for none."""
    processes: bool
    """Each process of each program is in a PID namespace of its own."""
    temporary: bool
    """There is a folder that a program may write to, in memory, and empty for each."""
    landlock: int
    """ABI of Landlock; 0 for none."""
    seccomp: bool
    refused: tuple[str, ...] = ()
    """Why other ways were not taken."""

    @property
    def enough(self) -> bool:
        """See the top of this file."""
        files = bool(self.walls) or self.landlock > 0
        network = bool(self.walls) or self.seccomp
        processes = self.processes or self.seccomp
        return files and network and processes

    def __str__(self) -> str:
        """`namespaces (by root), Landlock (ABI 7), seccomp, rlimits`, and what is missing with its reason."""
        parts = [f"namespaces (by {self.walls})"] if self.walls else []
        parts += [f"Landlock (ABI {self.landlock})"] if self.landlock else []
        parts += ["seccomp"] if self.seccomp else []
        text = ", ".join([*parts, "rlimits"])
        missing = [] if self.walls else [f"no namespaces ({'; '.join(self.refused)})"]
        missing += [] if self.landlock else ["no Landlock"]
        missing += [] if self.seccomp else ["no seccomp, so memory is limited for each process and not in sum"]
        missing += [] if self.temporary else ["no file can be written" if self.landlock else "files can be written"]
        return f"{text}; {', '.join(missing)}" if missing else text


def refuse_without_walls(layers: Layers, *, what: str, allowed: bool) -> None:
    """UsageError where `what` would run with less than enough around it, and nobody has said that it may."""
    if layers.enough or allowed:
        return
    raise UsageError(
        f"{what}, and this system has too little to keep it in: {layers}",
        hint="Allow unprivileged user namespaces, to you or to bubblewrap, or use a kernel with Landlock and seccomp "
        "(5.13 or newer); or say --allow-untrusted-code to let it run with your rights, best on a machine without "
        "secrets.",
    )


class Host:
    """A process of `box/start.py` that serves programs, and the socket that it is told what to do by."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, layers: Layers):
        self._process = process
        self._ending = threading.Lock()
        self.control = control
        self.layers = layers

    def kill(self) -> None:
        """End it and everything in it. From any thread, also while another one talks to it, and more than once."""
        with self._ending:
            # Not waited for yet, so the number is still its own.
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            # Not closed: its number could go to another one while a thread still reads from it.
            with contextlib.suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)
            self._process.wait()


def start_host(ways: Sequence[str] = WAYS) -> Host:
    """A host by the first of `ways` that this system allows.

    Raises Unsupported on systems other than Linux, ResourceError where no process can be started.
    """
    if sys.platform != "linux":
        raise Unsupported("the sandbox for untrusted code needs Linux", hint="Use a task that runs no code.")
    refused: list[str] = []
    for way in ways:
        process, control, said = _start(way)
        if "refused" not in said:
            return Host(process, control, Layers(way=way, refused=tuple(refused), **said))
        process.wait()
        control.close()
        refused.append(f"{way}: {said['refused']}")
    raise ResourceError("no process for model-written code could be started: " + "; ".join(refused))


def _start(way: str) -> tuple[subprocess.Popen[bytes], socket.socket, dict[str, Any]]:
    control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with end:
        spec = {"way": way, "readable": [], "serve": "programs"}
        process = start_behind_walls(spec, stdin=end.fileno(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    control.settimeout(_START_SECONDS)
    try:
        said = control.recv(1 << 16)
    except OSError:
        said = b""
    with process.stderr as words:
        if not said:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            last = words.read().decode(errors="replace").strip().rpartition("\n")[2]
            return process, control, {"refused": last or f"it ended with exit code {process.wait()} at its start"}
    return process, control, json.loads(said)


def start_behind_walls(spec: dict[str, Any], **pipes: Any) -> subprocess.Popen[bytes]:
    """A process of `box/start.py`, in a session of its own. ResourceError where none can be started."""
    words = json.dumps({**spec, "packages": [path for path in sys.path if path.endswith("-packages")]})
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", str(_START), words],
            env=_environment(),
            start_new_session=True,
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **pipes},
        )
    except OSError as error:
        raise ResourceError(
            f"no process could be started to test code in: {error.strerror}",
            hint="Close other programs, or raise the limits on processes and open files (ulimit -u, ulimit -n).",
        ) from None


def _environment() -> dict[str, str]:
    """Nothing of ours. One thread a process: numeric libraries reserve address space for each."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", **threads}


@functools.cache
def layers_here() -> Layers:
    """What is in force on this machine, found out by starting a host and ending it again."""
    host = start_host()
    host.kill()
    return host.layers


def main() -> None:
    try:
        found = layers_here()
        said = {**asdict(found), "enough": found.enough, "words": str(found)}
    except AgentError as error:
        said = {"enough": False, "words": f"nothing: {error.message}"}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
