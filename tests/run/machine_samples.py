"""Samples that can be read: a run, second by second, as the tests want it."""

from __future__ import annotations

from typing import Any

from agent.contract import CardSample, Phase, Sample


def sample(t: float, *, n: int | None = None, phase: Phase = "train", **fields: Any) -> Sample:
    """A quiet second on a machine of 8 cores and 24 GiB."""
    usual = {"cores": 1.0, "cores_there": 8, "machine_cores": 1.2, "resident_gb": 4.0, "read_bytes": 0,
             "written_bytes": 0, "available_gb": 16.0, "total_gb": 24.0, "swap_used_gb": 0.0,
             "pressure_some": 0.0, "pressure_full": 0.0}  # fmt: skip
    return Sample(n=int(t) if n is None else n, t=t, phase=phase, **(usual | fields))


def card(busy: float | None = None, power: float | None = None, **fields: Any) -> list[CardSample]:
    usual = {"vram_used_gb": 0.5, "vram_total_gb": 0.5, "gtt_used_gb": 30.0, "gtt_total_gb": 120.0}
    return [CardSample(card="card1", busy_percent=busy, power_w=power, **(usual | fields))]


def flat(seconds: int, *, begin: int = 0, **fields: Any) -> list[Sample]:
    """The same second again and again."""
    return [sample(float(begin + t), **fields) for t in range(seconds)]
