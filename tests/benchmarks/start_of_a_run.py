"""Seconds from the start of a run to its heartbeats, with and without a process that was started ahead.

    python tests/benchmarks/start_of_a_run.py recipes/tiny-addition.yaml [--repeat 3] [--cache DIR]

Runs the recipe as often as asked for in each way, alternating, each until its first step, and prints medians: to the
first heartbeat of `load`, to the first step (loaded, everything imported), and what the waiting process holds. The
model must be in the cache already. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from agent.hardware.probe import MACHINE, probe_machine
from agent.raft.sources import default_cache
from agent.recipe.files import load_recipe
from agent.recipe.schema import Recipe
from agent.run.launcher import launch
from agent.run.request import RunRequest
from agent.run.standby import Standby
from agent.run.watchdog import STEPPING
from agent.run.watching import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        one_run(recipe, out / "first", options.cache, None)  # reads every file once
        for number in range(options.repeat):
            times[False].append(one_run(recipe, out / f"fresh-{number}", options.cache, None))
            with contextlib.closing(Standby()) as standby:
                one_run(recipe, out / f"before-{number}", options.cache, standby)
                waiting = standby.waiting
                assert waiting is not None
                assert waiting.wait_until_ready(most_s=120.0)
                memory = psutil.Process(waiting.identity.pid).memory_full_info()
                print(f"waiting: {memory.rss / 1e6:.0f} MB resident, {memory.uss / 1e6:.0f} MB of it its own")
                times[True].append(one_run(recipe, out / f"ahead-{number}", options.cache, standby))
                assert waiting.handed, "the run did not get the process that waited"
    for used, found in times.items():
        load, step = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{'started ahead' if used else 'fresh':14} load {load:5.2f} s   first step {step:5.2f} s   {found}")


def one_run(recipe: Recipe, out: Path, cache: Path, standby: Standby | None) -> tuple[float, float]:
    """(seconds to the first heartbeat of `load`, to the first step)."""
    seen: dict[str, float] = {}

    def on_progress(progress: Progress) -> None:
        seen.setdefault("step" if progress.phase in STEPPING else progress.phase, time.monotonic() - began)

    def enough() -> str | None:
        """At the second look, so that the next process has been started."""
        looks.append("step" in seen)
        return "measured" if sum(looks) > 1 else None

    looks: list[bool] = []
    machine = probe_machine(cache=cache / MACHINE)
    began = time.monotonic()
    result = launch(
        RunRequest(recipe=recipe, out=out, seed=1, workspace=Path.cwd(), time_limit_s=600.0, cache=cache),
        on_progress=on_progress,
        stop=enough,
        standby=standby,
        machine=machine,
        poll_s=0.02,
        grace_s=0.5,
        idle_wait_s=0.0,
    )
    assert "step" in seen, result.reason
    return seen.get("load", seen["step"]), seen["step"]


if __name__ == "__main__":
    main()
