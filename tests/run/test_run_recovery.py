"""Whether memory came back after a run, and who holds what did not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agent.hardware.root import Root
from agent.hardware.sensors import Graphics, meminfo
from agent.run.recovery import (
    FreeMemory,
    Recovered,
    graphics_holders,
    graphics_used_gb,
    judge,
    unaccounted_gb,
    wait_for_idle,
)

BEFORE = FreeMemory(available=20.0, graphics=1.0, unaccounted=0.2, shared=0.1)


@pytest.mark.parametrize(
    ("after", "left", "back", "held", "words"),
    [
        (FreeMemory(19.8, 1.1, 0.2, 0.1), (), True, 0.0, ""),
        (FreeMemory(12.0, 1.0, 8.1, 0.1), (), None, 7.9, "a driver keeps it"),
        (FreeMemory(12.0, 9.0, 8.1, 0.1), (), False, 8.0, "graphics memory is still in use by process 7"),
        (FreeMemory(12.0, 1.0, 0.2, 8.1), (), None, 8.0, "shared memory"),
        (FreeMemory(12.0, 1.0, 0.2, 0.1), (), True, 0.0, "another program or the page cache has taken 8.0 GiB"),
        (FreeMemory(12.0, 1.0), (), None, 8.0, "not known"),
        (FreeMemory(20.0, None, 0.2, 0.1), (), None, 0.0, "do not answer any more"),
        (FreeMemory(16.0, 1.0, 0.2, 0.1), (123,), False, 4.0, "process 123 of the run does not die"),
    ],
)
def test_what_is_missing_is_told_apart(
    after: FreeMemory, left: tuple[int, ...], back: bool | None, held: float, words: str
) -> None:
    found = judge(BEFORE, after, left=left, holders=lambda: "process 7")
    assert (found.memory_back, found.held_gb) == (back, pytest.approx(held))
    assert words in found.words
    assert bool(found.words) or found == Recovered(0.0, True, 0.0, "")


@pytest.mark.parametrize(
    ("after", "left", "waited"),
    [
        (FreeMemory(12.0, 1.0, 0.2, 0.1), (), 0.0),  # another program has taken it: every run would wait for nothing
        (FreeMemory(12.0, 1.0, 0.2, 0.1), (7,), 2.0),
        (FreeMemory(12.0, 1.0, 8.1, 0.1), (), 2.0),  # a driver has it, and may give it back late
        (FreeMemory(12.0, 1.0), (), 2.0),
        (FreeMemory(19.9, 1.0), (7,), 0.0),
    ],
)
def test_only_memory_that_may_come_back_is_waited_for(after: FreeMemory, left: tuple[int, ...], waited: float) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    found = wait_for_idle(BEFORE, most_s=60.0, clock=lambda: now[0], sleep=sleep, read=lambda: after, left=left)
    assert found.waited_s == pytest.approx(waited, abs=0.15)


def test_cards_that_do_not_answer_are_not_waited_for() -> None:
    release = threading.Event()

    def blocks() -> list[Graphics]:
        release.wait(60)
        return []

    began = time.monotonic()
    try:
        assert graphics_used_gb(blocks, most_s=0.2) is None
        assert time.monotonic() - began < 2
    finally:
        release.set()
    cards = [Graphics("card0", None, 1.0, 2.0, None, None, None, None, None), *EMPTY]
    assert graphics_used_gb(lambda: cards) == 1.0
    assert graphics_used_gb(lambda: EMPTY) is None


EMPTY = [Graphics("card1", None, None, None, None, None, None, None, None)]


def test_memory_that_no_process_accounts_for_is_what_is_left_of_all_fields(tmp_path: Path) -> None:
    path = tmp_path / "proc/meminfo"
    path.parent.mkdir()
    fields = {"MemTotal": 24, "MemFree": 4, "Buffers": 1, "Cached": 6, "AnonPages": 3, "Slab": 1, "PageTables": 1}
    text = "".join(f"{name}: {gib * 2**20} kB\n" for name, gib in fields.items())
    path.write_text(text)
    assert unaccounted_gb(meminfo(Root(tmp_path))) == pytest.approx(8.0)
    path.write_text(f"{text}HugePages_Total:     512\nHugepagesize:       2048 kB\n")
    assert unaccounted_gb(meminfo(Root(tmp_path))) == pytest.approx(7.0)
    path.write_text("MemTotal: 1 kB\n")
    assert unaccounted_gb(meminfo(Root(tmp_path))) is None
    assert meminfo(Root(tmp_path / "none")) == {}


def test_this_machine_accounts_for_nearly_all_of_its_memory() -> None:
    told = meminfo()
    if not told:
        pytest.skip("no /proc/meminfo here")
    unaccounted = unaccounted_gb(told)
    assert unaccounted is not None
    assert abs(unaccounted) < 0.25 * told["MemTotal"] / 2**30


def test_holders_of_graphics_memory_are_found_by_fdinfo_and_counted_once(tmp_path: Path) -> None:
    """Lines as in Linux Documentation/gpu/drm-usage-stats.rst; synthetic sizes."""

    def process(pid: int, name: str, *clients: tuple[int, int]) -> None:
        folder = tmp_path / str(pid) / "fdinfo"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text(f"{name}\n")
        (folder / "0").write_text("pos:\t0\nflags:\t02\n")
        for number, (client, gib) in enumerate(clients, start=1):
            kib = gib * 2**20
            (folder / str(number)).write_text(
                f"drm-driver:\tamdgpu\ndrm-client-id:\t{client}\ndrm-memory-vram:\t0 KiB\ndrm-memory-gtt:\t{kib} KiB\n"
                f"drm-resident-vram:\t0 KiB\ndrm-resident-gtt:\t{kib} KiB\n"
            )

    process(12, "python", (5, 30), (5, 30), (6, 2))
    process(40, "gnome-shell", (9, 1))
    process(41, "bash")
    (tmp_path / "self").mkdir()
    assert graphics_holders(proc=tmp_path) == "process 12 (python, 32.0 GiB), process 40 (gnome-shell, 1.0 GiB)"
    assert graphics_holders(proc=tmp_path / "nothing") == ""
