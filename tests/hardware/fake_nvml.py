"""A module like pynvml with two made-up cards: one tells everything, one next to nothing (as GB10 of its memory)."""

from __future__ import annotations

from types import SimpleNamespace

GIB = 2**30
NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2


class NVMLError(Exception):
    pass


class Driver:
    """Stands in for the module: functions by the names of nvidia-ml-py 13.615."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = NVML_TEMPERATURE_GPU
    NVML_CLOCK_SM = NVML_CLOCK_SM
    NVML_CLOCK_MEM = NVML_CLOCK_MEM

    def __init__(self, cards: int = 2):
        self.cards = cards
        self.lost = False
        """Whether every question fails, as after `GPU is lost`."""

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.95.05"  # older bindings give bytes

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return ("NVIDIA H100", "NVIDIA GB10")[handle]

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:0{handle + 1}:00.0")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._tells(handle)
        return SimpleNamespace(used=30 * GIB, total=80 * GIB, free=50 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._tells(handle)
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._tells(handle)
        return 412_500  # milliwatts

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._tells(handle)
        return 61

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        self._tells(handle)
        return {NVML_CLOCK_SM: 1980, NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return ((9, 0), (12, 1))[handle]

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        self._tells(handle)
        return [1, 1]

    def nvmlDeviceGetEccMode(self, handle: int) -> list[int]:  # noqa: N802
        self._tells(handle)
        return [0, 0]

    def nvmlDeviceGetPersistenceMode(self, handle: int) -> int:  # noqa: N802
        self._tells(handle)
        return 0

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        self._tells(handle)
        return [SimpleNamespace(pid=4_000_000, usedGpuMemory=29 * GIB)]

    def _tells(self, handle: int) -> None:
        if handle != 0:
            raise NVMLError("Not Supported")
