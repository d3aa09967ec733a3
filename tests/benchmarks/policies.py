"""Real nights: campaigns of no-ops, and ours against greedy against random from the same start.

    python tests/benchmarks/policies.py FOLDER placebo --ideas 20
    python tests/benchmarks/policies.py FOLDER placebo --ideas 20 --budget 10m
    python tests/benchmarks/policies.py FOLDER compare --budget 10m --repeats 3 --fresh-seeds 10
    python tests/benchmarks/policies.py FOLDER show

`placebo`: a playbook in which every idea sets `execution.placebo`, which nothing reads, and a campaign over it: every
keep is a false one. With a budget it ends with the time, and what is promising is put together; without one it ends
with the ideas, which are confirmed one by one. `compare`: each repeat has a recipe of another seed; under each policy a
campaign of the same wall-clock, in a workspace of its own, so that none learns from another's table. ours is
`raft-agent run`; greedy takes the planner's ideas in its order, one run each, and keeps what measured better than the
best so far; random does so with ideas drawn from all that the playbook has for the recipe. Then the recipe that each
delivered is trained with fresh seeds and measured on the holdout, beside the recipe that all began with.

Whatever is finished is read from FOLDER/results.jsonl, so that a call after an interruption goes on; a campaign that
was interrupted begins anew. Nothing else should run meanwhile. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from agent.campaign import announce, choose
from agent.campaign.budget import parse_duration
from agent.campaign.done import Done
from agent.campaign.lab import CutShort, Order
from agent.campaign.loop import run_campaign
from agent.campaign.observer import Silent
from agent.campaign.open import machine_of, start
from agent.campaign.session import Session, title
from agent.campaign.settings import Settings
from agent.campaign.workbench import Workbench
from agent.cli.shared import model_cache
from agent.errors import AgentError
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.workspace import Workspace
from agent.simulate.policies import greedy

CAMPAIGN = "night"
FIRST_FRESH_SEED = 90_000
RAFT_AGENT = "from agent.cli.main import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=["placebo", "compare", "show"])
    parser.add_argument("--recipe", default="tiny-addition", help="a shipped recipe")
    parser.add_argument("--budget", help="of a campaign; of compare 10m where not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fresh-seeds", type=int, default=10)
    parser.add_argument("--ideas", type=int, default=20)
    options = parser.parse_args()
    options.folder = options.folder.resolve()  # trainings run in workspaces of their own
    options.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(options.folder / "results.jsonl")
    if options.what == "placebo":
        within = f" in {options.budget}" if options.budget else ""
        ledger.once(f"placebo {options.ideas}{within}", lambda: placebo(options))
    if options.what == "compare":
        options.budget = options.budget or "10m"
        for repeat in range(options.repeats):
            for policy in POLICIES:
                ledger.once(f"{policy} {repeat}", lambda p=policy, r=repeat: campaign(options, p, r))
        for name, recipe in delivered(ledger, options).items():
            for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + options.fresh_seeds):
                ledger.once(f"fresh {name} {seed}", lambda n=name, r=recipe, s=seed: fresh(options, n, r, s))
    show(ledger)


class Ledger:
    """One JSON line for each thing that was done, by its name."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["name"]: row for row in map(json.loads, lines)}

    def once(self, name: str, do: Callable[[], dict[str, Any]]) -> None:
        if name in self.rows:
            return
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        row = {"name": name, **do()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[name] = row
        print(f"  {row}"[:300], flush=True)


# --- campaigns ---------------------------------------------------------------------------------------------


def workspace_of(folder: Path, recipe: str, *, seed: int) -> Workspace:
    """A fresh workspace with the shipped playbook and recipes, and `recipes/night.yaml` to begin with."""
    shutil.rmtree(folder, ignore_errors=True)
    text = f"extends: {recipe}.yaml\nseed: {seed}\n"
    return create_workspace(folder, shipped=shipped_folder(), extra={"recipes/night.yaml": text}).workspace


def open_campaign(workspace: Workspace, *, budget: str, most: int | None = None) -> Session:
    settings = Settings(
        recipe_path="recipes/night.yaml", campaign=CAMPAIGN, budget_s=parse_duration(budget), max_experiments=most
    )
    return start(
        workspace,
        settings,
        observer=Silent(),
        machine=machine_of(workspace),
        model_cache=model_cache(),
        stop_request=lambda: None,
    )


def placebo(options: argparse.Namespace) -> dict[str, Any]:
    workspace = workspace_of(options.folder / "placebo", options.recipe, seed=1)
    for path in workspace.hypotheses.glob("*.yaml"):
        path.unlink()
    # powers of two, because the planner takes numbers within a tenth of each other for the same idea
    ideas = [
        {
            "id": f"no-op-{number}",
            "claim": "Nothing reads this key, so that nothing can change.",
            "what": "placebo",
            "variants": [{"name": "set", "set": {"execution.placebo": 2**number}}],
        }
        for number in range(options.ideas)
    ]
    axis = {"axis": "placebo", "title": "no-ops", "hypotheses": ideas}
    (workspace.hypotheses / "placebo.yaml").write_text(yaml.safe_dump(axis))
    began = time.monotonic()
    most = None if options.budget else options.ideas
    ending = run_campaign(Workbench(open_campaign(workspace, budget=options.budget or "4h", most=most)))
    return {
        "ideas": ending.ideas,
        "keeps": len(ending.kept),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "headline": ending.headline,
    }


def campaign(options: argparse.Namespace, policy: str, repeat: int) -> dict[str, Any]:
    workspace = workspace_of(options.folder / f"{policy}-{repeat}", options.recipe, seed=100 * (repeat + 1))
    session = open_campaign(workspace, budget=options.budget)
    POLICIES[policy](session, repeat)
    state = session.state
    outcomes = [one.outcome for number, one in state.experiments.items() if number and one.judged]
    recipe = session.recipe_of(session.incumbent).model_dump(mode="json")
    return {
        "recipe": recipe,
        "ideas": len(outcomes),
        "kept": outcomes.count("keep"),
        "crashed": outcomes.count("crash"),
        "minutes": round(session.clock.consumed_s / 60, 1),
        "change": [
            title(state.experiments[number])
            for number in state.judged_order
            if number and state.experiments[number].outcome == "keep"
        ],
    }


def by_ours(session: Session, repeat: int) -> None:
    run_campaign(Workbench(session))


def by_greedy(session: Session, repeat: int) -> None:
    _greedily(Remembering(session))


def by_random(session: Session, repeat: int) -> None:
    _greedily(Drawn(session, random.Random(repeat)))


def _greedily(bench: Workbench) -> None:
    try:
        bench.plan_baseline()
        greedy(bench)
    except (CutShort, AgentError) as ended:
        print(f"  ended: {ended}")
    finally:
        bench.close()


class Remembering(Workbench):
    """Lets the planner see the telemetry of what `greedy` ran, which keeps no evidence of its own."""

    def run(self, order: Order) -> Done:
        done = super().run(order)
        if done.ok:
            self.evidence.add(done, experiment=order.experiment, arm=order.arm)
        return done


class Drawn(Remembering):
    """Its ideas come in no order."""

    def __init__(self, session: Session, rng: random.Random):
        super().__init__(session)
        self.rng = rng

    def next_idea(self, *, batch: int | None = None) -> tuple[int | None, str]:
        ranking = choose.rank(self.session, self.evidence)
        if not ranking.proposals:
            return None, ranking.note
        return announce.announce(self.session, self.rng.choice(ranking.proposals), base=self.lead), ""


POLICIES: dict[str, Callable[[Session, int], None]] = {"ours": by_ours, "greedy": by_greedy, "random": by_random}


# --- what they delivered, measured again -------------------------------------------------------------------


def delivered(ledger: Ledger, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = {
        f"{policy}-{repeat}": ledger.rows[f"{policy} {repeat}"]["recipe"]
        for repeat in range(options.repeats)
        for policy in POLICIES
    }
    folder = workspace_of(options.folder / "baseline", options.recipe, seed=100)
    from agent.recipe.files import load_recipe

    return {"baseline": load_recipe(folder.root / "recipes/night.yaml").model_dump(mode="json"), **found}


def fresh(options: argparse.Namespace, name: str, recipe: dict[str, Any], seed: int) -> dict[str, Any]:
    """The recipe trained with a seed that no campaign used, measured on prompts that none has seen."""
    workspace = options.folder / "baseline"
    path = workspace / "recipes" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    out = workspace / ".raft" / "fresh" / f"{name}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["train", str(path), "--seed", str(seed), "--out", str(out), "--split", "holdout"]
    subprocess.run([sys.executable, "-c", RAFT_AGENT, *arguments], cwd=workspace, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((out / "summary.json").read_text())
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    return {"of": name, "holdout": summary["metrics"]["holdout"]}


def show(ledger: Ledger) -> None:
    for name, row in ledger.rows.items():
        if name.startswith("placebo"):
            print(f"{row['ideas']} no-ops in {row['minutes']} minutes: {row['keeps']} kept; {row['headline']}")
    measured: dict[str, list[float]] = {}
    for row in ledger.rows.values():
        if "of" in row:
            measured.setdefault(row["of"], []).append(row["holdout"])
    if not measured:
        return
    print("| recipe of | ideas | kept | holdout, mean of fresh seeds [95%] | kept changes |")
    print("|---|---|---|---|---|")
    for name, values in measured.items():
        row = ledger.rows.get(name.replace("-", " "), {})
        changes = "; ".join(row.get("change", []))
        print(f"| {name} | {row.get('ideas', '')} | {row.get('kept', '')} | {_interval(values)} | {changes} |")
    for policy in POLICIES:
        means = [statistics.fmean(values) for name, values in measured.items() if name.startswith(policy)]
        if means:
            each = ", ".join(f"{mean:.1%}" for mean in means)
            print(f"{policy}: mean over repeats {statistics.fmean(means):.1%} ({each})")


def _interval(values: list[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1%} [{mean - half:.1%}, {mean + half:.1%}]"


if __name__ == "__main__":
    main()
