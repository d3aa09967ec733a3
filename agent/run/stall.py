"""What a training does while its heartbeat is silent: nothing (it hangs), or something (it is slow). Pure.

A lost GPU queue on gfx1151 was described so (ROCm legacy-rocm-build#6530): the GPU 100% busy at some 50 W, or 0% at
some 22 W, exactly one core at 100% in `torch.cuda.synchronize()`, no disk traffic, memory flat byte for byte, nothing
in the kernel log. Busy alone proves nothing; whatever moves beside it does.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.contract import Sample
from agent.run.load import busiest, card_used, host_share, main_card, power_of, temperature_of

WINDOW_S = 60.0
"""Of a silence, only the last part is looked at: a training that hangs may have worked before."""
FEWEST = 3
MIB = 1 / 1024
"""In GiB."""
MOVES_GB = 16 * MIB
"""Memory that changes by less moves by accident: a log line, a thread that ends."""
FLAT_GB = 1 * MIB
SEVERAL_CORES = 1.5
SOME_CORE = 0.5
"""Where no card could keep one processor spinning: whoever computes does so on these."""
NO_CORE = 0.05
DISK_MB_S = 0.5
PRESSURE = 10.0
"""Percent of the last 10 s in which some task waited for memory: the machine pages."""
FULL = 95.0
NOTHING = 5.0
LOW_POWER = 0.6
"""Of the power that the same card took while this training worked: #6530 tells of 50 W, where work takes over 100."""
LOST_QUEUE = "a GPU queue look that was lost"
HOT_C = 90.0
OTHERS_SHARE = 0.4
"""Of all cores, taken by other programs: enough to slow a training down."""


@dataclass(frozen=True)
class Activity:
    kind: Literal["hang", "slow", "unknown"]
    """`unknown`: too few samples to tell."""
    words: str
    """What was seen."""


@dataclass(frozen=True)
class _Seen:
    """One window, in numbers; None is unknown."""

    moved_gb: float | None
    cores: float | None
    disk_mb_s: float | None
    swap_moved_gb: float | None
    pressure: float | None
    disk_pressure: float | None
    has_card: bool
    busy: float | None
    power_w: float | None
    usual_power_w: float | None


def activity(samples: Sequence[Sample], *, before: Sequence[Sample] = ()) -> Activity:
    """What the samples of a silence show. `before`: those of the run until then, which say what work looks like."""
    if samples:
        samples = [one for one in samples if one.t >= samples[-1].t - WINDOW_S]
    if len(samples) < FEWEST:
        return Activity("unknown", "what it does is not known: it was hardly sampled")
    seen = _look(samples, before)
    signs = _signs_of_work(seen)
    if signs:
        return Activity("slow", ", ".join(signs))
    nothing = _signs_of_nothing(seen)
    if not nothing:
        return Activity("unknown", "what it does is not known: neither memory nor processors could be read")
    words = ", ".join(nothing)
    if _is_lost_queue(seen):
        words += f" (so does {LOST_QUEUE}: ROCm legacy-rocm-build#6530)"
    return Activity("hang", words)


def _look(samples: Sequence[Sample], before: Sequence[Sample]) -> _Seen:
    span = samples[-1].t - samples[0].t
    disk = _range([_sum(one.read_bytes, one.written_bytes) for one in samples])
    moved = [_range([one.resident_gb for one in samples]), _range([_device_gb(one) for one in samples])]
    worked = [power for one in before if (busiest(one) or 0.0) >= 50 and (power := power_of(one)) is not None]
    return _Seen(
        moved_gb=max((value for value in moved if value is not None), default=None),
        cores=_mean([one.cores for one in samples]),
        disk_mb_s=disk / span / 1e6 if disk is not None and span > 0 else None,
        swap_moved_gb=_range([one.swap_used_gb for one in samples]),
        pressure=max((one.pressure_some for one in samples if one.pressure_some is not None), default=None),
        disk_pressure=max((one.pressure_disk for one in samples if one.pressure_disk is not None), default=None),
        has_card=any(one.cards for one in samples),
        busy=_mean([busiest(one) for one in samples]),
        power_w=_mean([power_of(one) for one in samples]),
        usual_power_w=statistics.median(worked) if worked else None,
    )


def _signs_of_work(seen: _Seen) -> list[str]:
    signs = []
    if seen.moved_gb is not None and seen.moved_gb >= MOVES_GB:
        signs.append(f"its memory moves by {seen.moved_gb / MIB:.0f} MiB")
    if seen.cores is not None and seen.cores >= (SEVERAL_CORES if seen.has_card else SOME_CORE):
        signs.append(f"it uses {seen.cores:.1f} cores")
    if seen.disk_mb_s is not None and seen.disk_mb_s >= DISK_MB_S:
        signs.append(f"it reads and writes {seen.disk_mb_s:.1f} MB/s")
    if seen.pressure is not None and seen.pressure >= PRESSURE:
        signs.append(f"the machine waits for memory {seen.pressure:.0f}% of the time")
    if seen.disk_pressure is not None and seen.disk_pressure >= PRESSURE:
        signs.append(f"the machine waits for the disk {seen.disk_pressure:.0f}% of the time")
    if seen.swap_moved_gb is not None and seen.swap_moved_gb >= MOVES_GB:
        signs.append(f"swap moves by {seen.swap_moved_gb / MIB:.0f} MiB")
    if _gpu_works(seen):
        signs.append(f"the GPU is busy at {seen.power_w:.0f} W, as much as when it worked")
    return signs


def _gpu_works(seen: _Seen) -> bool:
    """Busy is not enough; busy at the power that work took is."""
    if seen.busy is None or seen.power_w is None or seen.usual_power_w is None:
        return False
    return seen.busy >= 50 and seen.power_w > LOW_POWER * seen.usual_power_w


def _signs_of_nothing(seen: _Seen) -> list[str]:
    signs = []
    if seen.moved_gb is not None:
        flat = "its memory is flat" if seen.moved_gb < FLAT_GB else f"its memory moves by {seen.moved_gb / MIB:.0f} MiB"
        signs.append(flat)
    if seen.cores is not None:
        signs.append("it uses no processor" if seen.cores < NO_CORE else f"it uses {seen.cores:.0%} of one processor")
    if seen.disk_mb_s is not None:
        signs.append("no disk traffic" if seen.disk_mb_s < 0.01 else f"{seen.disk_mb_s:.2f} MB/s of disk traffic")
    if signs and seen.busy is not None:
        at = f" at {seen.power_w:.0f} W" if seen.power_w is not None else ""
        usual = f" (it took {seen.usual_power_w:.0f} W when it worked)" if seen.usual_power_w is not None else ""
        signs.append(f"the GPU is {seen.busy:.0f}% busy{at}{usual}")
    return signs


def _is_lost_queue(seen: _Seen) -> bool:
    """All of what #6530 tells, as far as it is known here; the GPU's part must be."""
    if seen.busy is None or seen.moved_gb is None or seen.moved_gb >= FLAT_GB:
        return False
    one_core = seen.cores is not None and 0.8 <= seen.cores <= 1.2
    return one_core and (seen.busy >= FULL or seen.busy <= NOTHING)


# --- why it has become slow --------------------------------------------------------------------------------


def why_slow(samples: Sequence[Sample], *, before: Sequence[Sample] = ()) -> str:
    """The likely cause of slow steps, by the samples from while they were slow and those from before; in words."""
    causes = []
    pressure = max((one.pressure_some for one in samples if one.pressure_some is not None), default=0.0)
    swap = (_mean([one.swap_used_gb for one in samples]) or 0.0) - (_mean([one.swap_used_gb for one in before]) or 0.0)
    if pressure >= PRESSURE or (swap >= 0.25 and before):
        full = max((share for one in samples if (share := host_share(one)) is not None), default=None)
        used = f", memory {full:.0%} full" if full is not None else ""
        causes.append(
            f"memory is short (waited for {pressure:.0f}% of the time, {max(0.0, swap):.1f} GiB into swap{used})"
        )
    hottest = max((heat for one in samples if (heat := temperature_of(one)) is not None), default=None)
    power, usual = _mean([power_of(one) for one in samples]), _mean([power_of(one) for one in before])
    if hottest is not None and hottest >= HOT_C:
        fell = f", power {usual:.0f} -> {power:.0f} W" if power is not None and usual is not None else ""
        causes.append(f"the card is at {hottest:.0f} degrees Celsius and may be throttled{fell}")
    others = _mean([_others(one) for one in samples])
    there = next((one.cores_there for one in samples if one.cores_there), None)
    if others is not None and there and others >= OTHERS_SHARE * there:
        causes.append(f"other programs take {others:.1f} of {there} cores")
    return "; ".join(causes) or "the samples show no cause"


def _others(sample: Sample) -> float | None:
    if sample.machine_cores is None or sample.cores is None:
        return None
    return max(0.0, sample.machine_cores - sample.cores)


def _device_gb(sample: Sample) -> float | None:
    card = main_card(sample)
    return card_used(card) if card else None


def _sum(left: int | None, right: int | None) -> float | None:
    return None if left is None or right is None else float(left + right)


def _range(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) >= 2 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
