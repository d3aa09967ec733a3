"""Processor time and size of one renewal of the report, by the number of ideas.

    python tests/benchmarks/cost_of_reporting.py [IDEAS ...]

The journals are made (tests/campaign/made_journals.py), and so are the run folders: a row for each of 40 cycles, and a
sample for each of 1200 seconds, of every run. First is what a process takes that has read nothing yet (`raft-agent
report`, without starting Python); next what the thread of a running campaign takes after one more idea.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "campaign"))

from made_journals import MadeJournal, long_night

from agent.campaign.report import PAGE, SUMMARY, Reporter
from agent.report.vega import Charts

CYCLES = "".join(
    json.dumps({"cycle": n, "select_metric": n / 41, "pass_rate": n / 43, "loss": 1 / (n + 1), "entropy": 0.3}) + "\n"
    for n in range(40)
)
SECONDS = "".join(
    json.dumps({"n": n, "t": float(n), "resident_gb": n / 999, "cores": 1.9, "available_gb": 9 - n / 999}) + "\n"
    for n in range(1200)
)


class SomeCharts(Charts):
    def get(self) -> tuple[str | None, str]:
        return "x" * 900_000, ""


def written(made: MadeJournal, root: Path) -> None:
    journal = root / ".raft/campaigns/night/journal.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("".join(json.dumps(line) + "\n" for line in made.lines))
    for out in {line["out"] for line in made.lines if line["kind"] == "run_started"}:
        if not (root / out).exists():
            (root / out).mkdir(parents=True)
            (root / out / "cycles.jsonl").write_text(CYCLES)
            (root / out / "telemetry.jsonl").write_text(SECONDS)


def measure(ideas: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = long_night(ideas)
        written(made, root)
        journal = root / ".raft/campaigns/night/journal.jsonl"
        reporter = Reporter(
            journal, name="night", root=root, folder=root / "report", charts=SomeCharts(root), warn=print
        )
        spent = []
        for _ in range(4):
            began = time.process_time()
            reporter._renew(last=False)
            spent.append(time.process_time() - began)
            made.idea()
            written(made, root)
        sizes = [(root / "report" / name).stat().st_size / 1e6 for name in (PAGE, SUMMARY)]
        print(f"{ideas} ideas, {len(made.lines)} lines: first {spent[0]:.2f} s, next {min(spent[1:]):.2f} s; "
              f"page {sizes[0]:.1f} MB, summary {sizes[1]:.1f} MB")  # fmt: skip


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    for number in [int(word) for word in sys.argv[1:]] or [10, 100, 500]:
        measure(number)
