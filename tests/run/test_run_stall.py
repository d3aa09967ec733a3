"""Hang and slow told apart, a crawl, and what the watchdog makes of it; every second given."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_samples import card, flat, sample
from test_run_watchdog import LIMITS, beat, stepped

from agent.contract import Heartbeat, Sample
from agent.run.pace import Crawl, Pace
from agent.run.stall import Activity, activity, why_slow
from agent.run.watchdog import Stalled, Watchdog

WORKED = flat(60, cores=1.0, cards=card(busy=98.0, power=118.0))
"""What the same card took while the training worked."""


# --- what samples show -------------------------------------------------------------------------------------


def test_the_lost_queue_of_rocm_6530_is_a_hang_and_named() -> None:
    """GPU 100% busy at some 50 W, exactly one core at 100%, no disk traffic, memory flat."""
    seen = activity(flat(60, begin=60, cores=1.0, cards=card(busy=100.0, power=51.0)), before=WORKED)
    assert seen.kind == "hang"
    assert seen.words == (
        "its memory is flat, it uses 100% of one processor, no disk traffic, the GPU is 100% busy at 51 W (it took "
        "118 W when it worked) (so does a GPU queue look that was lost: ROCm legacy-rocm-build#6530)"
    )
    idle = activity(flat(60, begin=60, cores=1.0, cards=card(busy=0.0, power=22.0)), before=WORKED)
    assert idle.kind == "hang"
    assert "#6530" in idle.words
    assert "#6530" not in activity(flat(60, begin=60, cores=0.0, cards=card(busy=0.0, power=22.0))).words


def test_a_card_without_power_readings_that_is_100_percent_busy_proves_nothing() -> None:
    assert activity(flat(60, cards=card(busy=100.0))).kind == "hang"
    assert activity(flat(60, begin=60, cards=card(busy=100.0, power=110.0)), before=WORKED).kind == "slow"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cores": 6.0}, "it uses 6.0 cores"),
        ({"pressure_some": 45.0}, "the machine waits for memory 45% of the time"),
        ({"pressure_disk": 60.0}, "the machine waits for the disk 60% of the time"),
    ],
)
def test_something_that_works_is_slow(fields: dict[str, Any], words: str) -> None:
    seen = activity(flat(30, cards=card(), **fields))
    assert (seen.kind, seen.words) == ("slow", words)


def test_what_moves_is_slow_and_what_moves_by_accident_is_not() -> None:
    def moving(**per_second: float) -> Activity:
        steps = [{name: 4 + value * t for name, value in per_second.items()} for t in range(30)]
        return activity([sample(float(t), cards=card(), **step) for t, step in enumerate(steps)])

    assert moving(resident_gb=0.01).words == "its memory moves by 297 MiB"
    assert moving(resident_gb=0.0001).kind == "hang"
    assert moving(read_bytes=2e6).words == "it reads and writes 2.0 MB/s"
    assert moving(written_bytes=1000).kind == "hang"
    assert moving(swap_used_gb=0.1).words.startswith("swap moves by")
    on_the_card = [sample(float(t), cards=card(gtt_used_gb=30 + t)) for t in range(10)]
    assert activity(on_the_card).kind == "slow"


def test_only_the_last_minute_of_a_silence_counts_and_few_samples_tell_nothing() -> None:
    one_core = flat(70, begin=100, cores=1.0, cards=card())
    assert activity([*flat(100, cores=8.0), *one_core]).kind == "hang"
    assert activity(flat(2)).kind == "unknown"
    assert activity([]).kind == "unknown"
    assert activity([Sample(n=n, t=float(n)) for n in range(10)]).kind == "unknown"


ROWS = st.lists(
    st.tuples(st.floats(0, 32), st.floats(0, 10), st.integers(0, 10**9), st.floats(0, 100), st.floats(0, 100)),
    min_size=3,
    max_size=20,
)


def samples_of(rows: list[tuple[float, float, int, float, float]]) -> list[Sample]:
    return [
        sample(float(t), resident_gb=size, cores=cores, read_bytes=read, pressure_some=wait, cards=card(busy=busy))
        for t, (size, cores, read, wait, busy) in enumerate(rows)
    ]


@given(ROWS)
def test_more_traffic_never_turns_slow_into_a_hang(rows: list[tuple[float, float, int, float, float]]) -> None:
    before = activity(samples_of(rows))
    busier = [(size, cores, read + t * 10**7, wait, busy) for t, (size, cores, read, wait, busy) in enumerate(rows)]
    rising = all(left[2] <= right[2] for left, right in pairwise(rows))
    if rising:
        assert activity(samples_of(busier)).kind == "slow"
    if before.kind == "slow":
        assert before.words


@given(st.integers(3, 200), st.floats(0, 1.2), st.one_of(st.none(), st.floats(0, 100)))
def test_whatever_stands_still_is_a_hang(seconds: int, cores: float, busy: float | None) -> None:
    assert activity(flat(seconds, cores=cores, cards=card(busy=busy))).kind == "hang"


def test_without_a_card_one_core_is_work() -> None:
    """On a machine with one or two processors it is all there is: compiling, a loop in Python, a small model."""
    assert activity(flat(60, cores=0.99, cores_there=1)).words == "it uses 1.0 cores"
    assert activity(flat(60, cores=0.1)).kind == "hang"


# --- the watchdog ------------------------------------------------------------------------------------------


def slow(_: float) -> Activity:
    return Activity("slow", "it uses 6.0 cores")


def test_one_that_works_in_silence_gets_three_times_the_limit_and_ends_as_slow() -> None:
    watchdog = Watchdog(LIMITS)
    at = stepped(watchdog, "generate", steps=6, seconds=2.0)  # limit 60 s
    last = beat("generate", 6, time=12.0)
    assert watchdog.observe(last, now=at + 61.0, activity=slow) is None
    assert watchdog.observe(last, now=at + 180.0, activity=slow) is None
    stalled = watchdog.observe(last, now=at + 181.0, activity=slow)
    assert stalled == Stalled(
        "slow",
        "no heartbeat for 181 s in generate, step 6 of cycle 1 (limit 60 s: 30 times the median step of 2 s), though "
        "it seemed to work: it uses 6.0 cores; one that works gets 3 times its limit",
    )


def test_one_that_stops_working_in_the_extra_time_has_hung() -> None:
    watchdog = Watchdog(LIMITS)
    at = stepped(watchdog, "generate", steps=6, seconds=2.0)
    last = beat("generate", 6, time=12.0)
    assert watchdog.observe(last, now=at + 100.0, activity=slow) is None
    stalled = watchdog.observe(last, now=at + 101.0, activity=lambda silent: Activity("hang", "its memory is flat"))
    assert stalled is not None
    assert stalled.kind == "hang"
    assert stalled.reason.endswith("; its memory is flat")


@given(st.floats(0, 500), st.sampled_from(["hang", "slow", "unknown"]))
def test_nothing_ends_before_its_limit_nor_lives_beyond_three_of_them(silent: float, kind: Any) -> None:
    watchdog = Watchdog(LIMITS)
    at = stepped(watchdog, "generate", steps=6, seconds=2.0)
    asked: list[float] = []

    def look(seconds: float) -> Activity:
        asked.append(seconds)
        return Activity(kind, "words")

    stalled = watchdog.observe(beat("generate", 6, time=12.0), now=at + silent, activity=look)
    assert (stalled is not None) == (silent > (180.0 if kind == "slow" else 60.0))
    assert bool(asked) == (silent > 60.0)  # samples are only looked at beyond the limit


# --- a crawl -----------------------------------------------------------------------------------------------


def paced(pace: Pace, seconds: list[float], *, seen: Callable[[float], float] = lambda one: one) -> Crawl | None:
    """Feed one step for each of the times, `seen` by our own clock to take so long; the last answer."""
    told, time, now = None, 0.0, 0.0
    for step, one in enumerate(seconds, start=1):
        time, now = time + one, now + seen(one)
        told = pace.observe(Heartbeat(phase="train", step=step, cycle=1, pid=1, time=time), now=now)
    return told


def test_a_crawl_is_told_after_enough_steps_and_time() -> None:
    usual = [0.5] * 40
    assert paced(Pace(), [*usual, *[5.9] * 10]) is None  # less than a minute so far
    crawl = paced(Pace(), [*usual, *[8.0] * 10])
    assert crawl is not None
    assert crawl.words == "it crawls: a step of train takes 8 s, 16 times the 0.5 s of before, for 80 s now"
    assert paced(Pace(), [*usual, *[100.0] * 4]) is None  # fewer than five steps
    assert paced(Pace(), [*usual, *[8.0] * 10, 0.5]) is None  # it is over
    assert paced(Pace(), [*usual, *[4.0] * 50]) is None  # eight times: slow, no crawl
    assert paced(Pace(), [8.0] * 50) is None  # it always was like this
    assert paced(Pace(), [*[60.0] * 5, *usual]) is None  # kernels are built in the first steps


def test_a_heartbeat_that_has_not_changed_is_no_step_and_a_new_phase_ends_it() -> None:
    pace = Pace()
    crawl = paced(pace, [*[0.5] * 40, *[8.0] * 10])
    assert crawl is not None
    last = Heartbeat(phase="train", step=50, cycle=1, pid=1, time=100.0)
    assert pace.observe(last, now=100.0) == crawl
    assert pace.observe(None, now=100.5) == crawl
    assert pace.observe(Heartbeat(phase="verify", step=0, cycle=1, pid=1, time=101.0), now=101.0) is None
    assert pace.observe(None, now=101.5) is None


def test_time_in_which_the_machine_was_suspended_or_its_clock_was_set_is_no_crawl() -> None:
    """Five steps lie between two readings; the trainer's stamps are an hour apart, our own clock stood still."""
    fast = [0.1] * 400
    beats = iter([*fast, 3600.0])
    pace, time, now, told = Pace(), 0.0, 0.0, None
    for step, one in enumerate(beats, start=1):
        time, now = time + one, now + min(one, 0.2)
        told = pace.observe(Heartbeat(phase="train", step=5 * step, cycle=1, pid=1, time=time), now=now)
    assert told is None
    assert paced(Pace(), [*[0.5] * 40, *[8.0] * 10], seen=lambda one: min(one, 0.5)) is None


def test_the_likely_cause_of_a_crawl_comes_from_the_samples() -> None:
    before = flat(60, cards=card(busy=98.0, power=118.0, temperature_c=80.0))
    assert why_slow(flat(20), before=before) == "the samples show no cause"
    swapping = flat(20, pressure_some=55.0, swap_used_gb=3.0, available_gb=0.6)
    assert why_slow(swapping, before=before) == (
        "memory is short (waited for 55% of the time, 3.0 GiB into swap, memory 98% full)"
    )
    hot = flat(20, cards=card(busy=98.0, power=65.0, temperature_c=98.0))
    assert why_slow(hot, before=before) == ("the card is at 98 degrees Celsius and may be throttled, power 118 -> 65 W")
    assert why_slow(flat(20, cores=0.7, machine_cores=8.0), before=before) == "other programs take 7.3 of 8 cores"
