"""A command that ends with what it has read still in memory ends as any other."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEEPS = "from agent.collector import kept_to_the_end, leave, no_collection\n"


def ended(program: str) -> tuple[int, str]:
    process = subprocess.run([sys.executable, "-c", KEEPS + program], capture_output=True, text=True, timeout=60)
    return process.returncode, process.stdout


@pytest.mark.parametrize("keep", ["kept_to_the_end([])", "pass"])
def test_what_is_to_be_done_at_the_end_is_done(keep: str) -> None:
    program = f"import atexit\natexit.register(print, 'at the end')\n{keep}\nprint('said')\nleave(5)\n"
    assert ended(program) == (5, "said\nat the end\n")


def test_what_is_kept_is_not_taken_apart() -> None:
    program = "class Big:\n    def __del__(self): print('freed')\n"
    assert ended(f"{program}one = kept_to_the_end(Big())\nleave(0)\n") == (0, "")
    assert ended(f"{program}one = Big()\nleave(0)\n") == (0, "freed\n")


def test_a_thread_that_still_works_is_waited_for() -> None:
    program = "import threading, time\nkept_to_the_end([])\n"
    program += "threading.Thread(target=lambda: (time.sleep(0.2), print('worked'))).start()\nleave(3)\n"
    assert ended(program) == (3, "worked\n")


def test_the_collector_is_as_it_was() -> None:
    program = (
        "import gc\nkept_to_the_end([])\nwith no_collection():\n    assert not gc.isenabled()\nassert gc.isenabled()\n"
    )
    assert ended(program + "leave(0)\n") == (0, "")
