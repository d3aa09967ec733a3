"""When a training is ended for memory: floor, fall, paging; every reading given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.run.memory_guard import LOW_POLLS, Breach, MemoryGuard, floor_gb

POLL_S = 0.2


def fed(guard: MemoryGuard, readings: list[float], **more: object) -> tuple[int, Breach] | None:
    """(how many readings it took, why), or None."""
    for number, available in enumerate(readings):
        breach = guard.observe(number * POLL_S, available, **more)  # type: ignore[arg-type]
        if breach is not None:
            return number + 1, breach
    return None


@pytest.mark.parametrize(
    ("total", "floor"), [(2.0, 0.25), (4.0, 0.5), (24.0, 0.75), (64.0, 1.28), (128.0, 2.56), (512.0, 3.0)]
)
def test_the_floor_makes_sense_on_small_and_large_machines(total: float, floor: float) -> None:
    assert floor_gb(total) == pytest.approx(floor)


@given(st.floats(0.5, 4096))
def test_the_floor_grows_with_the_machine_and_leaves_most_of_it(total: float) -> None:
    assert 0 < floor_gb(total) <= 0.125 * total
    assert floor_gb(total) <= floor_gb(total * 1.1)


def test_little_memory_counts_once_it_stays_and_at_once_where_it_is_nearly_gone() -> None:
    assert fed(MemoryGuard(0.75), [0.7, 0.7, 5.0, 0.7, 0.7]) is None
    count, breach = fed(MemoryGuard(0.75), [2.0, 0.7, 0.7, 0.7]) or (0, Breach("", 0))
    assert count == 1 + LOW_POLLS
    assert breach == Breach("only 0.70 GiB of memory left (floor 0.75)", grace_s=2.0)
    assert fed(MemoryGuard(0.75), [2.0, 0.3]) is not None


def test_memory_that_is_gone_in_a_second_ends_it_before_the_floor() -> None:
    """Five GiB a second from 20: the floor alone would be seen three polls, and 3 GiB, too late."""
    falling = [20.0 - 5.0 * POLL_S * step for step in range(21)]
    count, breach = fed(MemoryGuard(0.75), falling) or (0, Breach("", 0))
    assert falling[count - 1] > 3.0
    assert breach.grace_s == 0.0
    assert breach.reason == f"only {falling[count - 1]:.2f} GiB of memory left, and 5.0 GiB more are taken every second"


def test_a_model_that_is_loaded_fast_and_fits_is_left_alone() -> None:
    loading = [100.0 - 8.0 * POLL_S * step for step in range(50)]  # to 20 GiB, of 128
    assert fed(MemoryGuard(floor_gb(128.0)), [*loading, *[loading[-1]] * 50]) is None
    small = [20.0 - 2.0 * POLL_S * step for step in range(40)]  # to 4 GiB, of 24
    assert fed(MemoryGuard(floor_gb(24.0)), [*small, *[small[-1]] * 50]) is None


def test_paging_ends_it_where_swap_fills_up_and_memory_is_short() -> None:
    usual = {"pressure_full": 60.0, "swap_free_gb": 4.0, "swapping": True}
    found = fed(MemoryGuard(0.75), [3.0], **usual)
    assert found is not None
    assert found[1].reason == (
        "the machine only pages: nothing could go on for 60% of the last 10 s, 3.00 GiB of memory left"
    )
    assert fed(MemoryGuard(0.75), [3.0], **{**usual, "pressure_full": 10.0}) is None
    assert fed(MemoryGuard(0.75), [3.0], **{**usual, "swapping": False}) is None
    assert fed(MemoryGuard(0.75), [3.0], **{**usual, "swapping": False, "swap_free_gb": 0.0}) is not None
    # The pressure is the machine's; in a container with memory left it is another one's.
    assert fed(MemoryGuard(0.75), [16.0], **usual) is None
    assert fed(MemoryGuard(0.75), [3.0], **{**usual, "pressure_full": None}) is None


@given(st.lists(st.floats(0, 128), min_size=1, max_size=60), st.floats(0.1, 3.0))
def test_it_never_acts_while_plenty_is_left(readings: list[float], floor: float) -> None:
    found = fed(MemoryGuard(floor), readings)
    if found is not None:
        assert readings[found[0] - 1] < 8 * floor
    if len(readings) >= LOW_POLLS and all(value < floor for value in readings[:LOW_POLLS]):
        assert found is not None
