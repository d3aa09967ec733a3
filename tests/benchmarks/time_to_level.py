"""Seconds of training until the `select` split is at a level, in one checkout or in several by turns.

    python tests/benchmarks/time_to_level.py recipes/tiny-addition.yaml 0.9 --seeds 0 1 2 3 --tree . --tree ../before

Trains the recipe with each seed in each tree by that tree's own code (`raft-agent train`, with the Python that runs
this), ends the training when a measurement on `select` reaches the level, and prints the seconds from the beginning of
the first rollout to the end of that cycle, evaluations included, loading not. A tree is a clone of this repository at
some commit; the recipe, which must not extend another, is copied there. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RAFT_AGENT = "from agent.cli.main import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("level", type=float, help="share of `select` to reach, in [0, 1]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tree", type=Path, action="append", help="a checkout; may be given several times")
    parser.add_argument("--most", default="600s", help="training time after which a run is given up")
    options = parser.parse_args()
    # In the background of a shell Ctrl-C is ignored, and programs that are started inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trees = [tree.resolve() for tree in options.tree or [Path()]]
    found: dict[Path, list[float]] = {tree: [] for tree in trees}
    for seed in options.seeds:
        for tree in trees:
            with tempfile.TemporaryDirectory() as folder:
                rows = train(tree, options.recipe.resolve(), seed, Path(folder) / "run", options)
            reached = next((row for row in rows if reaches(row, options.level)), None)
            each = (rows[-1]["elapsed_s"] - rows[0]["elapsed_s"]) / max(1, rows[-1]["cycle"])
            if reached is None:
                print(f"{tree.name} seed {seed}: not reached in {rows[-1]['cycle']} cycles of {each:.2f} s", flush=True)
                continue
            found[tree].append(reached["elapsed_s"])
            told = f"{reached['select_metric']:.3f} after {reached['elapsed_s']:.1f} s"
            print(f"{tree.name} seed {seed}: {told}, {reached['cycle']} cycles of {each:.2f} s", flush=True)
    for tree, seconds in found.items():
        mean = f", mean {statistics.fmean(seconds):.1f} s" if seconds else ""
        print(f"{tree.name}: {len(seconds)} of {len(options.seeds)} reached it{mean}")


def train(tree: Path, recipe: Path, seed: int, out: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of cycles of one training, up to the one that reaches the level."""
    # A recipe has to lie in the workspace, and .raft/ is ignored by git.
    copy = tree / ".raft" / "time_to_level" / recipe.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recipe, copy)
    arguments = ["train", str(copy), "--seed", str(seed), "--out", str(out), "--budget", options.most]
    process = subprocess.Popen(
        [sys.executable, "-c", RAFT_AGENT, *arguments, "--split", "none"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not any(reaches(row, options.level) for row in rows_of(out)):
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C: it ends when its trainer has
        code = process.wait()
    rows = rows_of(out)
    if not rows:
        raise SystemExit(f"no cycle was trained in {tree} (exit code {code})")
    return rows


def rows_of(out: Path) -> list[dict[str, Any]]:
    try:
        lines = (out / "cycles.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]
    except FileNotFoundError:
        return []


def reaches(row: dict[str, Any], level: float) -> bool:
    return (row["select_metric"] or 0.0) >= level


if __name__ == "__main__":
    main()
