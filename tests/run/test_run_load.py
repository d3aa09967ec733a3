"""What samples add up to, with numbers that can be done in the head."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_samples import card, flat, sample

from agent.contract import Sample
from agent.run.load import seconds_of, summarize, throttling


def test_nothing_sampled_is_nothing_known() -> None:
    assert summarize([]) is None
    load = summarize([Sample(n=0, t=0.0)])
    assert load is not None
    assert (load.busy, load.cores_used, load.memory_peak_share, load.accelerated) == (None, None, None, None)
    assert load.idle_share == {}


def test_a_thinned_sample_stands_for_the_time_since_the_one_before_and_a_new_start_for_none() -> None:
    samples = [sample(0.0), sample(1.0), sample(9.0), sample(0.5, n=10, start=2), sample(1.5, n=11, start=2)]
    assert seconds_of(samples) == [0.0, 1.0, 8.0, 0.0, 1.0]
    load = summarize([sample(0.0, cores=9.0), sample(1.0, cores=1.0), sample(5.0, cores=2.0)])
    assert load is not None
    assert load.cores_used == pytest.approx((1 * 1 + 2 * 4) / 5)
    assert load.seconds == 5.0


def test_idle_time_is_told_by_phase_and_by_what_does_the_work() -> None:
    busy = [
        *flat(10, phase="generate", cards=card(busy=80.0)),
        *flat(10, begin=10, phase="verify", cards=card(busy=2.0)),
    ]
    load = summarize(busy, device="cuda")
    assert load is not None
    assert load.accelerated is True
    assert load.idle_share == {"generate": 0.0, "verify": pytest.approx(10 / 19, abs=1e-4)}
    assert load.busy == pytest.approx((80 * 9 + 2 * 10) / 19, abs=1e-3)
    on_the_processor = summarize(busy, device="cpu")  # the card only drives a display
    assert on_the_processor is not None
    assert on_the_processor.accelerated is False
    assert on_the_processor.idle_share == {"generate": 0.0, "verify": 0.0}  # one core works all the time
    waiting = summarize(flat(10, phase="verify", cores=0.1), device="cpu")
    assert waiting is not None
    assert waiting.idle_share == {"verify": 1.0}


def test_what_does_the_work_is_told_by_the_plan_the_framework_or_the_memory_of_the_card() -> None:
    def accelerated(*samples: Sample) -> bool | None:
        load = summarize(samples)
        assert load is not None
        return load.accelerated

    assert accelerated(sample(0.0)) is None
    assert accelerated(sample(0.0, device_allocated_gb=2.0)) is True
    assert accelerated(sample(0.0, cards=card(gtt_used_gb=1.0)), sample(1.0, cards=card(gtt_used_gb=20.0))) is True
    assert accelerated(sample(0.0, cards=card(gtt_used_gb=1.0)), sample(1.0, cards=card(gtt_used_gb=1.1))) is None


def test_peaks_are_shares_of_what_there_is() -> None:
    load = summarize(
        [
            sample(0.0, swap_used_gb=1.0, cards=card(busy=50.0, power=60.0)),
            sample(1.0, available_gb=1.2, swap_used_gb=3.5, pressure_some=40.0, pressure_full=12.0, cores=7.0),
            sample(2.0, cards=card(busy=90.0, power=118.0, gtt_used_gb=108.0, vram_used_gb=0.45, temperature_c=88.0)),
        ]
    )
    assert load is not None
    assert load.memory_peak_share == pytest.approx(0.95)
    assert load.device_memory_peak_share == pytest.approx(108.45 / 120.5)
    assert (load.swap_growth_gb, load.pressure_some_peak, load.pressure_full_peak) == (2.5, 40.0, 12.0)
    assert (load.power_peak_w, load.temperature_peak_c, load.cores_used_peak, load.cores_there) == (118.0, 88.0, 7.0, 8)


def test_throttling_needs_a_busy_card_heat_and_a_clear_fall_of_power() -> None:
    def busy(power: float, heat: float, *, begin: int) -> list[Sample]:
        return flat(30, begin=begin, cards=card(busy=99.0, power=power, temperature_c=heat))

    fell = busy(118.0, 85.0, begin=0) + busy(70.0, 97.0, begin=30)
    assert throttling(fell) == ("fully busy, the card's power fell from 118 to 70 W at up to 97 degrees Celsius")
    assert throttling(busy(118.0, 85.0, begin=0) + busy(70.0, 80.0, begin=30)) is None  # cool: less work
    assert throttling(busy(118.0, 95.0, begin=0) + busy(110.0, 97.0, begin=30)) is None
    assert throttling(fell[:20]) is None


NUMBERS = st.one_of(st.none(), st.floats(0, 200))


@given(
    st.lists(
        st.builds(
            lambda t, phase, cores, busy, left: (t, phase, cores, busy, left),
            st.floats(0, 1e5), st.sampled_from(["load", "generate", "verify", "train"]), NUMBERS, NUMBERS, NUMBERS,
        ),
        max_size=30,
    ),
    st.sampled_from(["cpu", "cuda", None]),
)  # fmt: skip
def test_shares_are_shares_whatever_was_sampled(
    rows: list[tuple[float, str, float, float, float]], device: str
) -> None:
    samples = [
        Sample(n=n, t=t, phase=phase, cores=cores, available_gb=left, total_gb=200.0, cards=card(busy=busy))  # type: ignore[arg-type]  # a str
        for n, (t, phase, cores, busy, left) in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
    load = summarize(samples, device=device)
    if load is None:
        assert samples == []
        return
    assert sum(load.idle_share.values()) <= 1.001
    assert all(share >= 0 for share in load.idle_share.values())
    assert load.memory_peak_share is None or 0 <= load.memory_peak_share <= 1
    if load.busy is not None:
        assert load.busy <= (load.busy_peak or 0.0) + 1e-3
