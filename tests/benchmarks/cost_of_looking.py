"""What it costs to watch a campaign with a long journal: processor time of a looker for each second.

    python tests/benchmarks/cost_of_looking.py [--lines 10000] [--seconds 30] [--every 1]

Writes a journal of so many lines and a run that goes on, then looks and draws as `raft-agent watch` does on a terminal
of 120x40, while another process renews heartbeat, samples and cycles as a trainer does, and appends the
lines of another idea to the journal every ten seconds. The aim is less than 1% of a core. It is no test: pytest does
not collect it.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.campaign.onlooker import Onlooker
from agent.contract import CYCLES, HEARTBEAT, TELEMETRY
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace
from agent.report.glyphs import UNICODE
from agent.report.live import View, live_lines
from agent.report.screen import Screen
from agent.report.terminal import PlainConsole

AN_IDEA = 7
"""Lines of the journal."""
RECIPE = "# a recipe of the usual length\n" * 60


def journal_lines(number: int) -> list[dict[str, Any]]:
    """Of one idea that is discarded."""
    run = {
        "run": f"{number}-search", "experiment": number, "role": "experiment", "rung": "full", "seed": number,
        "recipe_signature": f"sig{number}", "out": f".raft/runs/night/{number}",
    }  # fmt: skip
    summary = {"train_s": 30.0, "evaluate_s": 3.0, "metrics": {"search": 0.4 + number % 7 / 100}}
    return [
        {"kind": "experiment_planned", "experiment": number, "hypothesis": "h", "axis": "batch", "slug": "s",
         "subject": f"batch: idea {number}", "files": {"recipes/main.yaml": RECIPE}},
        {"kind": "experiment_committed", "experiment": number, "branch": "b", "commit": "c" * 40},
        {"kind": "run_planned", **run},
        {"kind": "run_started", **run, "pid": 1, "process_started": 0.0},
        {"kind": "run_finished", "run": run["run"], "ended_by": "itself", "elapsed_s": 36.0, "summary": summary},
        {"kind": "experiment_judged", "experiment": number, "outcome": "discard", "reason": "inconclusive: +0.1pp",
         "numbers": {"kind": "inconclusive", "runs": {"search": [run["run"]]}}, "row": {"metric_value": 0.4}},
        {"kind": "experiment_recorded", "experiment": number, "best": 0.4},
    ]  # fmt: skip


def write_journal(path: Path, lines: int) -> int:
    """Returns the number of lines that were written."""
    path.parent.mkdir(parents=True)
    started = {"kind": "campaign_started", "campaign": "night", "recipe_path": "recipes/main.yaml", "recipe": RECIPE,
               "base_commit": "b" * 40, "budget_s": 1e6}  # fmt: skip
    values = {"metric": "pass_rate", "untrained": 0.2, "baseline": 0.4, "sigma_run": 0.01, "smallest_detectable": 0.03}
    events = [started, {"kind": "calibrated", "values": values}]
    number = 1
    while len(events) < lines - AN_IDEA:
        events += journal_lines(number)
        number += 1
    events += journal_lines(number)[:4]
    stamped = [{"seq": seq, "time": 1e9 + seq, **event} for seq, event in enumerate(events, start=1)]
    path.write_text("".join(json.dumps(event) + "\n" for event in stamped))
    return len(stamped)


def trainer(root: Path, journal: Path, seq: int, number: int) -> None:
    """Beats until it is ended."""
    out = root / f".raft/runs/night/{number}"
    out.mkdir(parents=True)
    for beat in range(10**9):
        told = {"phase": "train", "step": beat, "cycle": beat // 10, "pid": 1, "time": time.time(), "budget_spent": 0.4}
        (out / "beat").write_text(json.dumps(told))
        (out / "beat").replace(out / HEARTBEAT)
        if beat % 10 == 0:
            for name, row in (
                (TELEMETRY, {"n": beat, "t": beat / 10, "resident_gb": 2.0, "available_gb": 9.0, "total_gb": 24.0}),
                (CYCLES, {"cycle": beat // 10, "select_metric": 0.4, "pass_rate": 0.3}),
            ):
                with (out / name).open("a") as file:
                    file.write(json.dumps(row) + "\n")
            journal.with_name("consumed").write_text(f"{beat / 10:.3f}\n")
        if beat % 100 == 50:
            idea = 10_000 + beat
            for event in journal_lines(idea):
                seq += 1
                with journal.open("a") as file:
                    file.write(json.dumps({"seq": seq, "time": 2e9, **event}) + "\n")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.prepare()
        journal = workspace.journal_path("night")
        lines = write_journal(journal, given.lines)
        number = (lines - 2) // AN_IDEA + 1
        child = multiprocessing.Process(target=trainer, args=(workspace.root, journal, lines, number), daemon=True)
        child.start()
        with hold(workspace):
            measure(workspace, lines, given.seconds, given.every)
        child.kill()
        child.join()


def measure(workspace: Workspace, lines: int, seconds: float, every: float) -> None:
    onlooker = Onlooker(workspace)
    screen = Screen(PlainConsole(file=io.StringIO(), force_terminal=True), size=lambda: (120, 40))
    before = time.process_time()
    onlooker.look()
    first = time.process_time() - before
    began, before, looks = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < seconds:
        snapshot = onlooker.look()
        screen.show(live_lines(snapshot, View(120, 40, UNICODE)))
        looks += 1
        time.sleep(every)
    spent = time.process_time() - before
    assert snapshot.running is not None
    assert snapshot.running.phase == "train"
    print(f"{lines} lines: {first:.2f} s of processor time at first, then {1000 * spent / looks:.1f} ms a look")
    print(f"a look every {every:g} s: {spent / (time.monotonic() - began):.2%} of a core (aim: below 1%)")


if __name__ == "__main__":
    main()
