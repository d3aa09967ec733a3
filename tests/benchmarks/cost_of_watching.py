"""What it costs to watch a run: processor time of the agent for each second, and bytes of telemetry.

    python tests/benchmarks/cost_of_watching.py [--seconds 30]

Runs a trainer that trains nothing and beats fifty times a second. `watching` is all that the agent does meanwhile
(heartbeat, free memory, stop requests, process table), `sampling` the part of it that writes a sample a second. It is
no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from agent.contract import TELEMETRY
from agent.recipe.files import recipe_from
from agent.run.launcher import launch
from agent.run.request import RunRequest
from agent.run.sampler import OfRun, Sampler

FAKE = Path(__file__).parents[1] / "run" / "fake_trainer.py"
RECIPE = {"model": {"source": "builtin:tiny"}, "task": {"dataset": "builtin:addition"}, "budget": {"cycles": 3}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        request = RunRequest(
            recipe_from(RECIPE, where="benchmark"), out, 1, Path(folder), seconds, env={"FAKE": "steady"}
        )
        before = time.process_time()
        result = launch(request, command=[sys.executable, str(FAKE)])
        watching = (time.process_time() - before) / result.elapsed_s
        lines = (out / TELEMETRY).read_text().splitlines()
        sampling = _sampling(Path(folder) / "alone", seconds)
    print(f"watching {watching:.2%} of a core, sampling {sampling:.2%} of one ({len(lines)} samples in {seconds:g} s)")
    print(f"{sum(map(len, lines)) / len(lines):.0f} bytes a sample")


def _sampling(out: Path, seconds: float) -> float:
    out.mkdir()
    sampler = Sampler(out, lambda: OfRun([], None))
    time.sleep(seconds)
    sampler.close()
    return sampler.cpu_s / seconds


if __name__ == "__main__":
    main()
