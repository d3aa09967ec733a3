"""What the samples of a run add up to: how busy, how idle and in which phase, how near the end of memory. Pure.

Samples of a long run are thinned, so each stands for the time since the one before it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from agent.contract import CardSample, RunLoad, Sample

STEPPING = ("generate", "verify", "train", "evaluate")
IDLE_BUSY = 10.0
"""A card is idle below this, percent: a display alone keeps one at a few."""
IDLE_CORES = 0.5
"""Without an accelerator: nobody computes while the run takes less of a core than this."""
FULLY_BUSY = 90.0
HOT_C = 90.0
"""From here on a fall of power is taken for throttling: Ryzen AI Max+ 395 may reach 100 (AMD's product page, Tjmax)."""
POWER_KEPT = 0.75
FEWEST_FOR_THROTTLING = 30
GROWN_GB = 0.25
"""A card whose memory grew by this much during the run is one that the run uses."""

Weighted = list[tuple[float, float]]
"""(value, seconds)."""


def summarize(samples: Sequence[Sample], *, device: str | None = None) -> RunLoad | None:
    """None without samples. `device` is what the trainer's plan says: `cpu`, `cuda`, `cuda:0`."""
    if not samples:
        return None
    spans = seconds_of(samples)
    stepping = [(one, span) for one, span in zip(samples, spans, strict=True) if one.phase in STEPPING]
    accelerated = is_accelerated(samples, device=device)
    busy = _weighted(stepping, busiest)
    cores = _weighted(stepping, lambda one: one.cores)
    swap = _known(one.swap_used_gb for one in samples)
    power = _weighted(stepping, power_of)
    return RunLoad(
        samples=len(samples),
        seconds=round(sum(spans), 3),
        accelerated=accelerated,
        cores_there=samples[-1].cores_there,
        cores_used=_mean(cores),
        cores_used_peak=_most(one.cores for one in samples),
        busy=_mean(busy),
        busy_median=_median(busy),
        busy_peak=_most(busiest(one) for one in samples),
        idle_share=_idle_share(stepping, accelerated=accelerated),
        memory_peak_share=_most(host_share(one) for one in samples),
        device_memory_peak_share=_most(device_share(one) for one in samples),
        resident_peak_gb=_most(one.resident_gb for one in samples),
        swap_growth_gb=max(swap) - swap[0] if swap else None,
        pressure_some_peak=_most(one.pressure_some for one in samples),
        pressure_full_peak=_most(one.pressure_full for one in samples),
        power_w=_mean(power),
        power_peak_w=_most(power_of(one) for one in samples),
        temperature_peak_c=_most(temperature_of(one) for one in samples),
        throttling=throttling(samples),
        notes=list(dict.fromkeys(_without_numbers(one.note) for one in samples if one.note)),
    )


def seconds_of(samples: Sequence[Sample]) -> list[float]:
    """For how long each sample stands: since the one before it in the same start."""
    spans = []
    for position, sample in enumerate(samples):
        before = samples[position - 1] if position else None
        same = before is not None and before.start == sample.start
        spans.append(max(0.0, sample.t - before.t) if before is not None and same else 0.0)
    return spans


def is_accelerated(samples: Sequence[Sample], *, device: str | None = None) -> bool | None:
    """Whether an accelerator does the work: the plan's word, the framework's figures, or a card that filled up."""
    if device is not None:
        return device != "cpu"
    if any(one.device_allocated_gb for one in samples):
        return True
    used = _known(card_used(card) for one in samples for card in one.cards)
    if not used:
        return None
    return max(used) - used[0] > GROWN_GB or None


# --- of one sample -----------------------------------------------------------------------------------------


def main_card(sample: Sample) -> CardSample | None:
    """The busiest card; the one with most memory in use where none tells how busy it is."""
    if not sample.cards:
        return None
    return max(sample.cards, key=lambda card: (card.busy_percent or 0.0, card_used(card) or 0.0))


def card_used(card: CardSample) -> float | None:
    known = _known((card.vram_used_gb, card.gtt_used_gb))
    return sum(known) if known else None


def busiest(sample: Sample) -> float | None:
    return _most(card.busy_percent for card in sample.cards)


def power_of(sample: Sample) -> float | None:
    card = main_card(sample)
    return card.power_w if card else None


def temperature_of(sample: Sample) -> float | None:
    return _most(card.temperature_c for card in sample.cards)


def host_share(sample: Sample) -> float | None:
    if sample.available_gb is None or not sample.total_gb:
        return None
    return 1 - sample.available_gb / sample.total_gb


def device_share(sample: Sample) -> float | None:
    """Of the fullest card. VRAM and GTT together: with a small BIOS VRAM a training lives in GTT."""
    shares = []
    for card in sample.cards:
        used, there = card_used(card), _known((card.vram_total_gb, card.gtt_total_gb))
        if used is not None and sum(there) > 0:
            shares.append(used / sum(there))
    return max(shares, default=None)


def is_idle(sample: Sample, *, accelerated: bool | None) -> bool | None:
    """Nothing computes: the card, or the processor where no accelerator works. None where neither tells."""
    if accelerated:
        busy = busiest(sample)
        return None if busy is None else busy < IDLE_BUSY
    return None if accelerated is None or sample.cores is None else sample.cores < IDLE_CORES


# --- of all ------------------------------------------------------------------------------------------------


def _idle_share(stepping: Sequence[tuple[Sample, float]], *, accelerated: bool | None) -> dict[str, float]:
    known = [(one, span, is_idle(one, accelerated=accelerated)) for one, span in stepping]
    total = sum(span for _, span, idle in known if idle is not None)
    if total <= 0:
        return {}
    phases = dict.fromkeys(one.phase for one, _, idle in known if idle is not None)
    return {
        str(phase): round(sum(span for one, span, idle in known if idle and one.phase == phase) / total, 4)
        for phase in phases
    }


def throttling(samples: Sequence[Sample]) -> str | None:
    """A hint, no proof: while the card was fully busy it took clearly less power late than early, and it was hot."""
    busy = [one for one in samples if (busiest(one) or 0.0) >= FULLY_BUSY and power_of(one) is not None]
    if len(busy) < FEWEST_FOR_THROTTLING:
        return None
    third = len(busy) // 3
    early, late = (statistics.median(_known(map(power_of, part))) for part in (busy[:third], busy[-third:]))
    hottest = _most(map(temperature_of, busy[-third:]))
    if hottest is None or hottest < HOT_C or late > POWER_KEPT * early:
        return None
    return f"fully busy, the card's power fell from {early:.0f} to {late:.0f} W at up to {hottest:.0f} degrees Celsius"


def _weighted(stepping: Sequence[tuple[Sample, float]], read: Callable[[Sample], float | None]) -> Weighted:
    return [(value, span) for one, span in stepping if span > 0 and (value := read(one)) is not None]


def _mean(values: Weighted) -> float | None:
    seconds = sum(span for _, span in values)
    return round(sum(value * span for value, span in values) / seconds, 4) if seconds > 0 else None


def _median(values: Weighted) -> float | None:
    half = sum(span for _, span in values) / 2
    for value, span in sorted(values):
        half -= span
        if half <= 0:
            return value
    return None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _most(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)


def _without_numbers(note: str) -> str:
    """The same complaint with another number of seconds is one note."""
    return " ".join("..." if word.isdigit() else word for word in note.split())
