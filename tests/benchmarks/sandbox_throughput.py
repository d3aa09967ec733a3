"""Programs a second: the warm sandbox beside a plain `python -c` for each program, paired in one run.

    python tests/benchmarks/sandbox_throughput.py [--programs 200] [--rounds 5]

A program is a small function with three assertions, as in MBPP: here once as code and tests for the sandbox, there as
one text for `python -c`, which keeps nothing in and believes an exit code. The ways take turns, `--rounds` times each;
medians and ranges are printed, for one program at a time and for two. Beside them an empty `python -I -S -c pass`,
which is as little as a start of Python can cost.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from agent.tasks.sandbox import Sandbox

CODE = "def largest(xs, n):\n    return sorted(xs, reverse=True)[:n]\n"
TESTS = (
    "assert largest([3, 1, 2], 2) == [3, 2]\nassert largest([], 1) == []\nassert largest([5, 1, -{n}], 3)[-1] == -{n}\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    # Each is another text, as samples are.
    texts = [(f"{CODE}# {n}\n", TESTS.format(n=n)) for n in range(options.programs)]
    with Sandbox(slots=2) as sandbox:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {sandbox.layers()}")

        def in_sandbox(text: tuple[str, str]) -> bool:
            return sandbox.run(*text).status == "passed"

        ways = {"sandbox": in_sandbox, "python -c": plainly, "python -I -S -c pass": empty}
        for _ in both(in_sandbox, texts[:8], 2):
            pass
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for workers in (1, 2):
                for name, way in ways.items():
                    began = time.perf_counter()
                    assert all(both(way, texts, workers))
                    rate = len(texts) / (time.perf_counter() - began)
                    found.setdefault((name, workers), []).append(rate)
    for (name, workers), rates in found.items():
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        print(f"{name:22s} {workers} at a time: {statistics.median(rates):6.0f} programs a second ({spread})")


def both(way: Callable[[tuple[str, str]], bool], texts: list[tuple[str, str]], workers: int) -> Iterator[bool]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(way, texts)


def plainly(text: tuple[str, str]) -> bool:
    return subprocess.run([sys.executable, "-c", "\n".join(text)], capture_output=True).returncode == 0


def empty(text: tuple[str, str]) -> bool:
    return subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
