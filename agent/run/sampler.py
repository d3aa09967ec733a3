"""Looks at a run and at the machine under it once a second, from a thread of its own, and writes down what it sees.

Nothing that is read here can hold up the watching, or end it: a sensor that vanishes is unknown from then on, and one
that blocks (a driver that hangs answers no read of its files) is asked by a thread that may be left behind. Whoever
watches gives the few facts about the run itself (`OfRun`), which cost one look into /proc.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agent.contract import TELEMETRY, CardSample, Heartbeat, Sample
from agent.hardware.probe import usable_cores
from agent.hardware.sensors import GIB, Graphics, Memory, Pressure, graphics, memory, pressure
from agent.run.history import History, TelemetryFile
from agent.run.patient import PATIENCE_S, Patient, quietly, start
from agent.run.processes import Meter, ProcessIdentity, Use
from agent.run.telemetry import read_samples

EVERY_S = 1.0
FEWEST_S = 0.05


@dataclass(frozen=True)
class OfRun:
    """What only the one who watches the run knows."""

    members: Sequence[ProcessIdentity]
    """Its processes."""
    heartbeat: Heartbeat | None


@dataclass(frozen=True)
class Host:
    """Readings of the machine, all of them quick."""

    memory: Memory | None = None
    swap_used_gb: float | None = None
    pressure: Pressure | None = None
    cpu_s: float | None = None
    """Processor seconds of everything since boot."""
    cores: int | None = None
    """That this process may use."""
    disk_pressure: Pressure | None = None

    @classmethod
    def now(cls) -> Host:
        """Never raises: what cannot be read is None."""
        swap = quietly(psutil.swap_memory)
        return cls(
            memory=quietly(memory),
            swap_used_gb=swap.used / GIB if swap is not None else None,
            pressure=quietly(lambda: pressure("memory")),
            disk_pressure=quietly(lambda: pressure("io")),
            cpu_s=quietly(_busy_seconds),
            cores=quietly(usable_cores),
        )


@dataclass(frozen=True)
class Sources:
    """Where the readings come from."""

    host: Callable[[], Host] = Host.now
    cards: Callable[[], list[Graphics]] = graphics
    """May block."""


@dataclass
class Recorder:
    """Makes samples out of readings; no thread and no clock of its own."""

    history: History
    start: int = field(init=False)
    _before: tuple[float, Use | None, float | None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.start = self.history.starts + 1

    def take(
        self,
        t: float,
        use: Use | None,
        beat: Heartbeat | None,
        host: Host,
        cards: Sequence[Graphics] = (),
        note: str | None = None,
    ) -> Sample:
        """The sample of this moment, `t` seconds after the start. Rates are since the one before."""
        before = self._before
        self._before = (t, use, host.cpu_s)
        span = t - before[0] if before else 0.0
        return Sample(
            n=self.history.next_number,
            start=self.start,
            t=round(t, 3),
            phase=beat.phase if beat else None,
            resident_gb=_short(use.resident_bytes / GIB, 6) if use else None,
            cores=_rate(before[1].cpu_s if before and before[1] else None, use.cpu_s if use else None, span),
            machine_cores=_rate(before[2] if before else None, host.cpu_s, span),
            cores_there=host.cores,
            read_bytes=use.read_bytes if use else None,
            written_bytes=use.written_bytes if use else None,
            available_gb=_short(host.memory.available) if host.memory else None,
            total_gb=_short(host.memory.total) if host.memory else None,
            swap_used_gb=_short(host.swap_used_gb),
            pressure_some=host.pressure.some_10 if host.pressure else None,
            pressure_full=host.pressure.full_10 if host.pressure else None,
            pressure_disk=host.disk_pressure.some_10 if host.disk_pressure else None,
            cards=[card_sample(card) for card in cards],
            device_allocated_gb=_short(beat.device_allocated_gb) if beat else None,
            device_reserved_gb=_short(beat.device_reserved_gb) if beat else None,
            device_free_gb=_short(beat.device_free_gb) if beat else None,
            note=note,
        )


class Sampler:
    """Samples a run until it is closed. `of_run` is asked from another thread and must not block."""

    def __init__(
        self,
        out: Path,
        of_run: Callable[[], OfRun],
        *,
        sources: Sources | None = None,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sources = sources or Sources()
        self._of_run, self._host, self._every_s, self._clock = of_run, sources.host, every_s, clock
        self._history = History(read_samples(out))
        self._recorder = Recorder(self._history)
        self._meter = Meter()
        self._file = TelemetryFile(out / TELEMETRY)
        self._cards: Patient[list[Graphics]] = Patient.asking(sources.cards)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._began = clock()
        self.cpu_s = 0.0
        """Processor seconds that the sampling has taken, the reading of cards not counted."""
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        start(self._thread)

    @property
    def elapsed_s(self) -> float:
        """On the clock of the samples' `t`."""
        return self._clock() - self._began

    def since(self, t: float) -> list[Sample]:
        """Samples of this start from `t` seconds on."""
        with self._lock:
            return self._history.since(t, start=self._recorder.start)

    def samples(self) -> list[Sample]:
        """All that are kept of this start."""
        return self.since(float("-inf"))

    def latest(self, *, most_age_s: float = PATIENCE_S) -> Sample | None:
        """None where there is none that is recent."""
        recent = self.since(self.elapsed_s - most_age_s)
        return recent[-1] if recent else None

    def close(self) -> None:
        """Take no further sample. Waits for neither a disk nor a driver longer than a moment."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        self._cards.close()

    def _run(self) -> None:
        due = self._clock()
        while not self._closing.is_set():
            began = time.thread_time()
            self._sample()
            self.cpu_s += time.thread_time() - began
            due = max(due + self._every_s, self._clock())
            self._closing.wait(max(FEWEST_S, due - self._clock()))

    def _sample(self) -> None:
        cards, age = self._cards.latest()
        notes = []
        if cards is None and age > PATIENCE_S:
            notes.append(f"the graphics cards' files have not answered for {age:.0f} s")
        if self._file.problem:
            notes.append(self._file.problem)
        of_run = self._of_run()
        use = quietly(lambda: self._meter.read(of_run.members))
        told = "; ".join(notes) or None
        sample = self._recorder.take(self.elapsed_s, use, of_run.heartbeat, self._host(), cards or [], told)
        with self._lock:
            thinned = self._history.add(sample)
            kept = list(self._history.samples) if thinned else []
        if kept:
            self._file.rewrite(kept)
        else:
            self._file.append(sample)


def card_sample(card: Graphics) -> CardSample:
    return CardSample(
        card=card.card,
        vram_used_gb=_short(card.vram_used),
        vram_total_gb=_short(card.vram_total),
        gtt_used_gb=_short(card.gtt_used),
        gtt_total_gb=_short(card.gtt_total),
        busy_percent=_short(card.busy_percent, 1),
        power_w=_short(card.power_w, 1),
        temperature_c=_short(card.temperature_c, 1),
    )


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # proc(5): they are in user and nice too
    return float(sum(times) - waiting - twice)


def _rate(before: float | None, now: float | None, span: float) -> float | None:
    if before is None or now is None or span <= 0:
        return None
    return round(max(0.0, now - before) / span, 3)


def _short(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
