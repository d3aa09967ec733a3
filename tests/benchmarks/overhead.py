"""Where a campaign's seconds went: training, evaluation, start of the trainer, and the agent itself.

    python tests/benchmarks/overhead.py WORKSPACE CAMPAIGN

From the journal alone. `start` is until the trainer's process is there and has loaded its model, and its end;
`select` is what else the trainer does beside training and evaluation, most of it the select split; `agent` is from the
end of one run to the start of the next: memory that comes back, judging, planning, git, the table, writing to the disk.
Time in which no session ran is left out. The aim is at most 3% for `agent` where a training takes 30 seconds. On a
machine that others load, all of it grows. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from agent.ledger.events import (
    CampaignFinished,
    CampaignPaused,
    CampaignResumed,
    CampaignStarted,
    Event,
    RunFinished,
    RunPlanned,
    RunStarted,
)
from agent.ledger.journal import Journal
from agent.ledger.workspace import Workspace

PARTS = ("train", "evaluate", "select", "start", "agent")
AIM = 0.03


@dataclass
class Spent:
    """Seconds of one experiment, or of all."""

    runs: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())

    def line(self, name: str) -> str:
        shares = "".join(f"{self.seconds[part] / max(self.whole, 1e-9):>10.1%}" for part in PARTS)
        return f"{name:<12}{self.runs:>5}{self.whole:>10.1f}{shares}"


def spent(events: list[Event]) -> tuple[dict[str, Spent], Spent, dict[str, float]]:
    """(by experiment, over all, seconds of `agent` by the kind of line that they ended with)."""
    by_idea: dict[str, Spent] = defaultdict(Spent)
    whole, steps = Spent(), defaultdict[str, float](float)
    planned: dict[str, RunPlanned] = {}
    started: dict[str, float] = {}
    before: Event | None = None
    running: str | None = None
    for event in events:
        gap = max(0.0, event.time - before.time) if before is not None else 0.0
        idea = name_of(planned.get(running)) if running else name_of(planned.get(getattr(event, "run", "")))
        match event:
            case RunPlanned():
                planned[event.run] = event
                idea = name_of(event)
            case RunStarted():
                started[event.run] = event.time
        if isinstance(event, CampaignStarted | CampaignResumed) or isinstance(
            before, CampaignPaused | CampaignFinished
        ):
            gap = 0.0  # nobody ran
        if isinstance(event, RunStarted):
            add("start", gap, by_idea[idea], whole)
            running = event.run
        elif isinstance(event, RunFinished):
            for part, seconds in inside(event, gap).items():
                add(part, seconds, by_idea[idea], whole)
            steps["run_finished (the run had ended)"] += inside(event, gap)["agent"]
            by_idea[idea].runs += 1
            whole.runs += 1
            running = None
        else:
            steps[event.kind] += gap
            add("agent", gap, by_idea[idea], whole)
        before = event
    return by_idea, whole, dict(steps)


def add(part: str, seconds: float, *totals: Spent) -> None:
    for one in totals:
        one.seconds[part] += seconds


def inside(event: RunFinished, gap: float) -> dict[str, float]:
    """The seconds of a run from its process to its last line, by what the trainer says of them. What comes after the
    trainer's end (memory that comes back, reading what it wrote) is between."""
    summary = event.summary or {}
    train, evaluate = float(summary.get("train_s") or 0.0), float(summary.get("evaluate_s") or 0.0)
    evaluate += float(summary.get("rung_s") or 0.0)
    trainer = min(gap, float(summary.get("elapsed_s") or event.elapsed_s or gap))
    alive = min(gap, max(trainer, event.elapsed_s or 0.0))
    start = min(float(summary.get("load_s") or 0.0) + alive - trainer, max(0.0, alive - train - evaluate))
    rest = max(0.0, alive - train - evaluate - start)
    return {"train": train, "evaluate": evaluate, "start": start, "select": rest, "agent": max(0.0, gap - alive)}


def name_of(planned: RunPlanned | None) -> str:
    if planned is None:
        return "no run"
    return f"#{planned.experiment}" if planned.experiment else planned.role


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("campaign")
    given = parser.parse_args()
    events = list(Journal(Workspace(given.workspace.resolve()).journal_path(given.campaign)).events())
    by_idea, whole, steps = spent(events)
    print(f"{'':<12}{'runs':>5}{'seconds':>10}" + "".join(f"{part:>10}" for part in PARTS))
    for name, one in by_idea.items():
        print(one.line(name))
    print(whole.line("all"))
    agent = whole.seconds["agent"]
    print(f"the agent itself: {agent / max(whole.whole, 1e-9):.1%} of the time (aim: {AIM:.0%}), {agent:.1f} s:")
    for kind, seconds in sorted(steps.items(), key=lambda pair: -pair[1])[:8]:
        print(f"  {seconds:>7.2f} s before {kind}")


if __name__ == "__main__":
    main()
