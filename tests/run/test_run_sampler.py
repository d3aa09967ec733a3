"""Sampling: what is kept of a long run, sensors that vanish or block, a disk that is full, and what it all costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_samples import sample

from agent.contract import TELEMETRY, Heartbeat
from agent.hardware.sensors import Graphics, Memory, Pressure
from agent.run.history import MOST, History, TelemetryFile, line_of
from agent.run.patient import Patient
from agent.run.processes import Use, identify
from agent.run.sampler import Host, OfRun, Recorder, Sampler, Sources
from agent.run.telemetry import read_run, read_samples

HOST = Host(Memory(24.0, 16.0, 2.0, None), 0.5, Pressure(1.0, 2.0, 0.5, 0.6), 100.0, 8)
CARD = Graphics("card1", "0x1586", 0.5, 0.5, 30.0, 120.0, 97.0, 110.0, 71.0)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


# --- what is kept ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(count=st.integers(0, 2000), dense=st.integers(1, 20), more=st.integers(0, 60))
def test_a_history_is_bounded_keeps_the_end_dense_and_the_past_evenly(count: int, dense: int, more: int) -> None:
    history = History(most=4 * dense + more, dense=dense)
    for number in range(count):
        history.add(sample(float(number)))
    kept = [one.n for one in history.samples]
    assert len(kept) <= history.most
    assert kept[-dense:] == list(range(max(0, count - dense), count))
    assert kept == sorted(set(kept))
    gaps = [right - left for left, right in pairwise(kept)]
    assert all(gap <= history.stride for gap in gaps)
    assert history.next_number == count


def test_of_a_night_every_fourth_second_is_kept() -> None:
    history, one = History(), sample(0.0)
    for number in range(8 * 3600):
        history.add(one.model_copy(update={"n": number}))
    assert history.stride == 4
    assert 8 * 3600 / 4 < len(history.samples) <= MOST


def test_a_night_of_samples_stays_a_small_file(tmp_path: Path) -> None:
    history, file = History(most=400, dense=60), TelemetryFile(tmp_path / TELEMETRY)
    for second in range(12 * 3600 // 10):
        one = sample(float(second), phase="generate")
        if history.add(one):
            file.rewrite(history.samples)
        else:
            file.append(one)
    lines = (tmp_path / TELEMETRY).read_text().splitlines()
    assert len(lines) <= 400
    assert len(max(lines, key=len)) < 400  # bytes: 8192 such lines are 3 MB
    assert [one.n for one in read_samples(tmp_path)] == [one.n for one in history.samples]


def test_a_torn_line_is_named_and_what_is_unknown_is_absent(tmp_path: Path) -> None:
    whole = line_of(sample(0.0, resident_gb=None, pressure_full=None))
    assert "resident_gb" not in json.loads(whole)
    (tmp_path / TELEMETRY).write_text(whole + "\nnonsense\n" + line_of(sample(2.0)) + "\n" + whole[:20])
    record = read_run(tmp_path)
    assert [one.n for one in record.samples] == [0, 2]
    assert record.samples[0].resident_gb is None
    assert record.problems == ("telemetry.jsonl:2: not JSON (Expecting value)", "telemetry.jsonl:4: torn last line")
    assert record.load is not None
    assert read_run(tmp_path / "none").load is None


def test_a_second_start_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(sampling(tmp_path, every_s=0.02)) as sampler:
            wait_until(lambda: len(sampler.samples()) >= 3)
    kept = read_samples(tmp_path)
    assert [one.n for one in kept] == list(range(len(kept)))
    assert {one.start for one in kept} == {1, 2}
    assert all(one.t < 5 for one in kept)


# --- what is read ------------------------------------------------------------------------------------------


def test_rates_are_since_the_sample_before() -> None:
    recorder = Recorder(History())
    beat = Heartbeat(phase="train", step=3, pid=1, time=1.0, device_allocated_gb=3.0, device_free_gb=90.0)
    first = recorder.take(1.0, Use(2**30, 10.0, 100, 0), beat, HOST, [CARD])
    assert (first.cores, first.machine_cores) == (None, None)
    later = Host(HOST.memory, 0.5, HOST.pressure, 112.0, 8)
    second = recorder.take(3.0, Use(2**31, 13.0, 500, None), beat, later, [CARD])
    assert (second.cores, second.machine_cores) == (1.5, 6.0)
    assert (second.resident_gb, second.read_bytes, second.written_bytes) == (2.0, 500, None)
    assert (second.phase, second.available_gb, second.pressure_full) == ("train", 16.0, 0.5)
    assert (second.device_allocated_gb, second.device_reserved_gb, second.device_free_gb) == (3.0, None, 90.0)
    assert (second.cards[0].gtt_used_gb, second.cards[0].busy_percent, second.cards[0].power_w) == (30.0, 97.0, 110.0)


def test_the_run_itself_is_measured(tmp_path: Path) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "block = bytearray(50 << 20)\nwhile True: pass"])
    try:
        identity = identify(busy.pid)
        with closing(sampling(tmp_path, of_run=lambda: OfRun([identity], None), every_s=0.2)) as sampler:
            wait_until(lambda: len(sampler.samples()) >= 6)
            last = sampler.samples()[-1]
    finally:
        busy.kill()
        busy.wait()
    assert last.cores is not None
    assert 0.3 < last.cores < 1.5
    assert last.resident_gb is not None
    assert 50 / 1024 < last.resident_gb < 0.2
    assert last.machine_cores is not None
    assert last.machine_cores > 0.3


def sampling(
    out: Path,
    *,
    of_run: Callable[[], OfRun] = lambda: OfRun([], None),
    every_s: float = 0.02,
    host: Callable[[], Host] = Host.now,
    cards: Callable[[], list[Graphics]] = lambda: [CARD],
) -> Sampler:
    return Sampler(out, of_run, sources=Sources(host, cards), every_s=every_s)


def test_sensors_that_vanish_or_fail_are_unknown_from_then_on(tmp_path: Path) -> None:
    there = threading.Event()
    there.set()

    def cards() -> list[Graphics]:
        if there.is_set():
            return [CARD]
        raise OSError(19, "No such device")

    with closing(sampling(tmp_path, cards=cards)) as sampler:
        wait_until(lambda: any(one.cards for one in sampler.samples()))
        there.clear()
        wait_until(lambda: not sampler.samples()[-1].cards)
        count = len(sampler.samples())
        wait_until(lambda: len(sampler.samples()) > count + 2)
    assert sampler.samples()[-1].available_gb is not None


def test_a_reading_that_blocks_holds_up_nothing_and_is_named(tmp_path: Path) -> None:
    release = threading.Event()

    def cards() -> list[Graphics]:
        release.wait(60)
        return [CARD]

    clock = [0.0]
    patient = Patient(cards, patience_s=3.0, clock=lambda: clock[0])
    try:
        assert patient.latest() == (None, 0.0)
        clock[0] = 9.0
        assert patient.latest() == (None, 9.0)
        release.set()
        wait_until(lambda: patient.latest()[0] == [CARD])
    finally:
        release.set()
        patient.close()
    release.clear()
    began = time.monotonic()
    with closing(sampling(tmp_path, cards=cards)) as sampler:
        wait_until(lambda: len(sampler.samples()) >= 5)
    assert time.monotonic() - began < 5
    release.set()
    assert all(one.cards == [] and one.available_gb is not None for one in sampler.samples())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    with closing(sampling(tmp_path)) as sampler:
        wait_until((tmp_path / TELEMETRY).exists)
        (tmp_path / "full").symlink_to("/dev/full")
        (tmp_path / "full").replace(tmp_path / TELEMETRY)
        wait_until(lambda: sampler.samples()[-1].note is not None)
        count = len(sampler.samples())
        wait_until(lambda: len(sampler.samples()) > count + 2)
    samples = sampler.samples()
    assert samples[-1].note == "telemetry.jsonl cannot be written: No space left on device"
    file = TelemetryFile(tmp_path / "gone" / "nowhere" / TELEMETRY)
    file.path.parent.parent.write_text("a file where the folder was")
    file.append(samples[0])
    file.rewrite(samples)
    assert file.problem is not None


def test_a_driver_that_never_answers_costs_one_thread_however_many_runs_there_are(tmp_path: Path) -> None:
    release = threading.Event()

    def cards() -> list[Graphics]:
        release.wait(60)
        return [CARD]

    before = threading.active_count()
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        with closing(sampling(tmp_path / str(number), cards=cards)) as sampler:
            wait_until(lambda: len(sampler.samples()) >= 2)
        assert threading.active_count() == before + 1
    release.set()
    with closing(sampling(tmp_path, cards=cards)) as sampler:
        wait_until(lambda: bool(sampler.samples()) and sampler.samples()[-1].cards != [])
    wait_until(lambda: threading.active_count() == before)


def test_closing_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    def counts() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = counts()
    for _ in range(5):
        with closing(sampling(tmp_path)) as sampler:
            wait_until(lambda: len(sampler.samples()) >= 2)
    wait_until(lambda: counts() == before)


@pytest.mark.slow  # five seconds of sampling
@pytest.mark.alone
def test_a_second_of_sampling_costs_less_than_a_hundredth_of_a_core(tmp_path: Path) -> None:
    """Real sensors of this machine, a run of four processes; `pytest -s` prints the figure."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    members = [identify(pid) for pid in (os.getpid(), *(child.pid for child in children))]
    beat = Heartbeat(phase="train", step=1, pid=1, time=1.0)
    try:
        with closing(Sampler(tmp_path, lambda: OfRun(members, beat), every_s=0.02)) as sampler:
            wait_until(lambda: len(sampler.samples()) >= 100)
            taken, cost = len(sampler.samples()), sampler.cpu_s
    finally:
        for child in children:
            child.kill()
            child.wait()
    print(f"\n{cost / taken * 1e3:.2f} ms of a processor for a second of a run, {cost / taken:.3%} of a core")
    assert cost / taken < 0.01
