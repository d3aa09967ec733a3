"""A command that ends with what it has read still in memory ends as any other, only sooner."""

from __future__ import annotations

import subprocess
import sys

KEEPS = "import gc, sys\nfrom agent.collector import kept_to_the_end, no_collection\n"
BIG = "class Big:\n    def __del__(self): print('freed')\n"


def ended(program: str) -> tuple[int, str]:
    process = subprocess.run([sys.executable, "-c", KEEPS + program], capture_output=True, text=True, timeout=60)
    return process.returncode, process.stdout


def test_what_is_kept_is_not_taken_apart() -> None:
    assert ended(f"{BIG}one = kept_to_the_end(Big())\nsys.exit(5)\n") == (5, "")
    assert ended(f"{BIG}one = Big()\nsys.exit(5)\n") == (5, "freed\n")


def test_nor_by_a_collection() -> None:
    program = f"{BIG}one = kept_to_the_end(Big())\ndel one\ngc.collect()\nprint('collected')\n"
    assert ended(program) == (0, "collected\n")


def test_other_things_are_freed_as_ever() -> None:
    program = f"{BIG}kept_to_the_end([])\nwith no_collection():\n    one = Big()\n    one.itself = one\n"
    assert ended(program + "    del one\ntwo = Big()\ntwo.itself = two\ndel two\ngc.collect()\n") == (0, "freed\n"), (
        "one was there when all was frozen, two was not"
    )


def test_the_collector_is_as_it_was() -> None:
    program = "kept_to_the_end([])\nwith no_collection():\n    assert not gc.isenabled()\nassert gc.isenabled()\n"
    assert ended(program) == (0, "")
    assert ended("gc.disable()\nwith no_collection():\n    pass\nassert not gc.isenabled()\n") == (0, "")
