"""NVIDIA cards by NVML, through the optional package nvidia-ml-py (`pip install 'raft-agent[nvidia]'`).

Function names and units: NVML API reference, and pynvml.py of nvidia-ml-py 13.615. Each question is asked by itself,
since every card leaves some unanswered (GB10 and Orin have no memory of their own to tell of), and with a time limit,
since a driver that has lost its card does not return.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from agent.hardware.root import NoAnswer, within

MIB, GIB = 1024.0**2, 1024.0**3
LIMIT_S = 5.0
"""The first call of a process starts the driver, which takes a second or two without persistence mode."""
T = TypeVar("T")


@dataclass(frozen=True)
class NvidiaCard:
    """GiB, watts, degrees Celsius, percent, MHz; None where the card does not tell."""

    index: int
    name: str | None
    pci: str | None
    memory_used: float | None
    memory_total: float | None
    busy_percent: float | None
    power_w: float | None
    temperature_c: float | None
    clock_mhz: float | None
    memory_clock_mhz: float | None


@dataclass(frozen=True)
class NvidiaDetails:
    """What does not change while a training runs."""

    index: int
    capability: str | None
    """`sm_90`"""
    mig: bool | None
    ecc: bool | None
    persistence: bool | None
    holders: tuple[tuple[int, float | None], ...]
    """(process, GiB that it holds) of every process that computes there, this one excepted."""


class _Ask(Protocol):
    def __call__(self, what: str, question: Callable[[], T]) -> T | None: ...


class Nvml:
    """A module like pynvml, initialized. Nothing here raises for what a driver does."""

    def __init__(self, module: Any, *, limit_s: float = LIMIT_S, name: str = "NVML"):
        self._module, self._limit_s, self._name = module, limit_s, name

    def driver(self) -> str | None:
        return _text(self._ask("driver", lambda: self._module.nvmlSystemGetDriverVersion()))

    def cards(self) -> list[NvidiaCard]:
        return [self._card(index, handle) for index, handle in self._handles()]

    def details(self) -> list[NvidiaDetails]:
        return [self._details(index, handle) for index, handle in self._handles()]

    def _handles(self) -> list[tuple[int, Any]]:
        count = self._ask("count", lambda: int(self._module.nvmlDeviceGetCount())) or 0
        found = [
            (index, self._ask("handle", lambda index=index: self._module.nvmlDeviceGetHandleByIndex(index)))  # type: ignore[misc]
            for index in range(count)
        ]
        return [(index, handle) for index, handle in found if handle is not None]

    def _card(self, index: int, handle: Any) -> NvidiaCard:
        nv, ask = self._module, self._asking(index)
        memory = ask("memory", lambda: nv.nvmlDeviceGetMemoryInfo(handle))
        busy = ask("utilization", lambda: nv.nvmlDeviceGetUtilizationRates(handle))
        pci = ask("pci", lambda: nv.nvmlDeviceGetPciInfo(handle))
        milliwatts = ask("power", lambda: float(nv.nvmlDeviceGetPowerUsage(handle)))
        return NvidiaCard(
            index=index,
            name=_text(ask("name", lambda: nv.nvmlDeviceGetName(handle))),
            pci=_text(getattr(pci, "busId", None)),
            memory_used=None if memory is None else memory.used / GIB,
            memory_total=None if memory is None else memory.total / GIB,
            busy_percent=None if busy is None else float(busy.gpu),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=ask(
                "temperature", lambda: float(nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU))
            ),
            clock_mhz=ask("clock", lambda: float(nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM))),
            memory_clock_mhz=ask("clock", lambda: float(nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_MEM))),
        )

    def _details(self, index: int, handle: Any) -> NvidiaDetails:
        nv, ask = self._module, self._asking(index)
        capability = ask("capability", lambda: nv.nvmlDeviceGetCudaComputeCapability(handle))
        mig = ask("mig", lambda: nv.nvmlDeviceGetMigMode(handle))
        ecc = ask("ecc", lambda: nv.nvmlDeviceGetEccMode(handle))
        persistence = ask("persistence", lambda: int(nv.nvmlDeviceGetPersistenceMode(handle)))
        running = ask("processes", lambda: list(nv.nvmlDeviceGetComputeRunningProcesses(handle))) or []
        return NvidiaDetails(
            index=index,
            capability=None if capability is None else f"sm_{capability[0]}{capability[1]}",
            mig=None if mig is None else bool(mig[0]),
            ecc=None if ecc is None else bool(ecc[0]),
            persistence=None if persistence is None else bool(persistence),
            holders=tuple(
                (int(one.pid), None if one.usedGpuMemory is None else one.usedGpuMemory / GIB)
                for one in running
                if int(one.pid) != os.getpid()
            ),
        )

    def _asking(self, index: int) -> _Ask:
        """Of one card: another one may go on answering."""

        def ask(what: str, question: Callable[[], T]) -> T | None:
            return self._ask(f"{what} of card {index}", question)

        return ask

    def _ask(self, what: str, question: Callable[[], T]) -> T | None:
        """The answer; None where the card has none, or the driver does not return."""
        try:
            return within(self._limit_s, f"{self._name} {what}", question)
        except NoAnswer:
            return None
        except self._module.NVMLError:
            return None
        except (AttributeError, TypeError, ValueError):
            return None  # an older or newer binding without that function


@lru_cache(maxsize=1)
def nvml() -> tuple[Nvml | None, str]:
    """(NVML, "") or (None, why there is none). Loaded once in a process: a driver does not come while it runs."""
    try:
        module = importlib.import_module("pynvml")
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    try:
        within(LIMIT_S, "NVML start", module.nvmlInit)
    except NoAnswer as error:
        return None, str(error)
    except Exception as error:  # NVMLError, whose class is the module's own: no library, no driver, no permission
        return None, f"NVML does not start: {error}"
    return Nvml(module), ""


def _text(value: Any) -> str | None:
    """Older bindings give bytes."""
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
