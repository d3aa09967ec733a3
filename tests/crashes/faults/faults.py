"""Faults inside a real trainer, as a machine or a library would make them; the trainer knows nothing of them.

RAFT_FAULT      what happens (a function below)
RAFT_FAULT_IN   part of the name of the run's folder in which it does
RAFT_FAULT_AT   phase of the heartbeat at which it does (default: train)
RAFT_FAULT_ONCE a file: it happens only while that is not there
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT: list[Any] = []


def sigkill() -> None:
    """Somebody, or something, kills it."""
    os.kill(os.getpid(), signal.SIGKILL)


def sigsegv() -> None:
    ctypes.string_at(0)


def hang() -> None:
    """A device that does not answer: no step comes to its end."""
    time.sleep(3600)


def crawl() -> None:
    """Every step takes fifty times as long as it should."""
    time.sleep(0.5)


def memory_limit() -> None:
    """A limit on address space, as a shell or a batch system sets it, met by what the training allocates."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    KEPT.append(bytearray(1 << 30))


def memory() -> None:
    """It takes memory until somebody stops it."""
    while True:
        block = bytearray(32 << 20)
        block[:: resource.getpagesize()] = b"x" * len(block[:: resource.getpagesize()])
        KEPT.append(block)


def open_files() -> None:
    """Descriptors leak until there are none left."""
    soft = min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    while True:
        KEPT.append(open(os.devnull))  # noqa: PTH123, SIM115  # leaks, that is what it is for


def nan() -> None:
    """A weight goes bad, as an overflow in a kernel would make it."""
    import gc

    import torch

    gc.unfreeze()
    for one in gc.get_objects():
        if isinstance(one, torch.nn.Module):
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.fill_(float("nan"))


def install() -> None:
    """Let the fault of RAFT_FAULT happen at the heartbeat of a phase."""
    from agent.raft import pulse

    fault: Callable[[], None] = globals()[os.environ["RAFT_FAULT"]]
    where, phase = os.environ.get("RAFT_FAULT_IN", ""), os.environ.get("RAFT_FAULT_AT", "train")
    once = Path(os.environ["RAFT_FAULT_ONCE"]) if "RAFT_FAULT_ONCE" in os.environ else None
    beat = pulse.Pulse.beat

    def faulty(self: pulse.Pulse, now: str, *, note: str | None = None) -> None:
        beat(self, now, note=note)  # type: ignore[arg-type]  # a phase
        if self.out is None or where not in self.out.name or now != phase or self.step < 1:
            return
        if once is not None:
            if once.exists():
                return
            once.touch()
        fault()

    pulse.Pulse.beat = faulty  # type: ignore[method-assign]
