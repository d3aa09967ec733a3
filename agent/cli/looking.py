"""`status`, `log`, `show`: what happened and what happens now. They only read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import here, print_json
from agent.cli.workspaces import campaign_name
from agent.errors import AgentError, UsageError
from agent.report.words import duration, percent

if TYPE_CHECKING:
    from agent.campaign.finish import Ending
    from agent.campaign.session import Session
    from agent.ledger.journal import CampaignState, Experiment, Run
    from agent.ledger.workspace import Workspace
    from agent.report.evidence import PromptLine

SHOWN = 100
"""Ideas that `log` prints on a terminal."""
NAME = typer.Option(None, "--campaign", "-c", help="Campaign. Default: the last one.")
JSON = typer.Option(False, "--json", help="Print as JSON.")


def _state(workspace: Workspace, name: str) -> CampaignState:
    import gc

    from agent.ledger.journal import Journal

    gc.disable()  # a process that reads, prints and ends needs all that it makes, and looking through it takes long
    return Journal(workspace.journal_path(name)).state()


@app.command()
def status(campaign: str | None = NAME, json_output: bool = JSON) -> None:
    """Show where the campaign stands."""
    from agent.ledger.lock import holder_of

    workspace = here()
    name = campaign_name(workspace, campaign)
    state = _state(workspace, name)
    holder = holder_of(workspace)
    told = _status(workspace, name, state, running=holder is not None)
    told["process"] = holder.pid if holder else None
    if json_output:
        print_json(told)
        return
    print(f"campaign {name}: {told['state']}")
    for label in (
        "recipe",
        "budget",
        "untrained",
        "baseline",
        "best",
        "leads",
        "noise",
        "ideas",
        "now",
        "stopped",
        "next",
    ):
        if told.get(label):
            print(f"  {label:<10}{told[label]}")


def _status(workspace: Workspace, name: str, state: CampaignState, *, running: bool) -> dict[str, Any]:
    started = state.started
    numbers = state.calibration
    ideas = [one for number, one in state.experiments.items() if number > 0]
    outcomes = {what: sum(one.outcome == what for one in ideas) for what in ("keep", "discard", "crash")}
    budget = started.budget_s if started else None
    standing: str = "running" if running and state.status == "running" else state.status
    if standing == "running" and not running:
        standing = "killed"
    told: dict[str, Any] = {
        "campaign": name,
        "state": standing,
        "recipe": started.recipe_path if started else None,
        "budget": f"{duration(state.consumed_s)} used" + (f" of {duration(budget)}" if budget else ""),
        "consumed_s": state.consumed_s,
        "budget_s": budget,
        "untrained": percent(numbers.get("untrained")) or None,
        "baseline": percent(numbers.get("baseline")) or None,
        "best": _best(state),
        "leads": _leads(state),
        "ideas": f"{len(ideas)}: {outcomes['keep']} kept, {outcomes['discard']} discarded, {outcomes['crash']} crashed",
        "outcomes": outcomes,
        "stopped": state.stop_reason,
    }
    if numbers.get("sigma_run") is not None:
        detectable = numbers.get("smallest_detectable")
        told["noise"] = f"{100 * numbers['sigma_run']:.1f}pp between seeds" + (
            f", gains from about {100 * detectable:.1f}pp can be confirmed" if detectable else ""
        )
    open_run = next(iter(state.open_runs), None)
    if running and open_run is not None:
        told["now"] = _now(workspace, state, open_run)
    if standing in ("paused", "killed"):
        told["next"] = f"raft-agent resume {name}"
    return told


def _best(state: CampaignState) -> str | None:
    known = state.incumbent
    if known is None or not state.calibration:
        return None
    if not known.experiment:
        return "the baseline"
    last = state.experiments[state.judged_order[-1]].recorded
    return _with_metric(state, known.experiment, last.best if last else None)


def _leads(state: CampaignState) -> str | None:
    """What the next ideas build on without a verdict."""
    from agent.campaign.past import lead_now

    incumbent = (state.incumbent.experiment if state.incumbent else None) or 0
    lead = lead_now(state)
    return f"{_with_metric(state, lead)}; unconfirmed, the next ideas build on it" if lead != incumbent else None


def _with_metric(state: CampaignState, number: int, value: float | None = None) -> str:
    """The metric of its verdict, unless more is known by now."""
    experiment = state.experiments[number]
    if value is None and experiment.judged:
        value = experiment.judged.row.get("metric_value")
    subject = experiment.planned.subject if experiment.planned else ""
    return f"{percent(value)} #{number} {subject}".strip()


def _now(workspace: Workspace, state: CampaignState, run: Run) -> str:
    from agent.run.telemetry import read_heartbeat

    heartbeat = read_heartbeat(workspace.root / run.words.out) if run.words else None
    phase = ""
    if heartbeat is not None:
        spent = f" {heartbeat.budget_spent:.0%}" if heartbeat.budget_spent is not None else ""
        phase = f", {heartbeat.phase}{spent}" + (f" ({heartbeat.note})" if heartbeat.note else "")
    experiment = state.experiments.get(run.experiment) if run.experiment else None
    what = f" of #{experiment.number} {experiment.planned.subject}" if experiment and experiment.planned else ""
    return f"run {run.id}{what}{phase}"


@app.command()
def log(
    campaign: str | None = NAME,
    every: bool = typer.Option(False, "--all", help=f"All ideas; a terminal gets the last {SHOWN}, a pipe gets all."),
    json_output: bool = JSON,
) -> None:
    """List ideas and outcomes."""
    from agent.ledger.table import read_rows
    from agent.report.terminal import console_for, rows_lines, rows_table

    workspace = here()
    rows = read_rows(workspace.results) if workspace.results.exists() else []
    if campaign is not None:
        chosen = campaign_name(workspace, campaign)
        rows = [row for row in rows if row.get("campaign") == chosen]
    elif rows:
        rows = [row for row in rows if row.get("campaign") == rows[-1].get("campaign")]
    if json_output:
        print_json(rows)
        return
    if not rows:
        print("no idea has an outcome yet")
        return
    console = console_for()
    print(f"campaign {rows[-1].get('campaign')}, {rows[-1].get('recipe')}, {rows[-1].get('metric_name')}")
    if console.is_terminal:
        shown = rows if every else rows[-SHOWN:]
        console.print(rows_table(shown, width=console.width))
        if len(shown) < len(rows):
            print(f"the last {len(shown)} of {len(rows)} ideas; raft-agent log --all lists the others too")
    else:
        print("\n".join(rows_lines(rows)))
    print(f"git log --notes=raft raft/{rows[-1].get('campaign')}/best tells the same with the evidence")


@app.command()
def show(
    number: int = typer.Argument(..., min=0, help="Number of the idea; 0 is the baseline."),
    campaign: str | None = NAME,
    diff: bool = typer.Option(False, "--diff", help="The whole diff, however long."),
    prompts: bool = typer.Option(False, "--prompts", help="The held-out prompts that differ most."),
    json_output: bool = JSON,
) -> None:
    """Show one idea in full.

    Why it was tried, its runs, what was compared and how sure it is, which rule decided, the diff.
    """
    workspace = here()
    name = campaign_name(workspace, campaign)
    state = _state(workspace, name)
    experiment = state.experiments.get(number)
    if experiment is None:
        numbers = ", ".join(str(known) for known in sorted(state.experiments)) or "none"
        raise UsageError(f"campaign {name} has no idea {number}", hint=f"there are: {numbers}")
    if json_output:
        print_json(_experiment_json(workspace, state, experiment, prompts=prompts))
        return
    _print_evidence(state, number)
    if prompts:
        _print_prompts(workspace, state, number)
    for line in _diff(workspace, experiment, whole=diff):
        print(line)


def _experiment_json(
    workspace: Workspace, state: CampaignState, experiment: Experiment, *, prompts: bool
) -> dict[str, Any]:
    import dataclasses

    from agent.campaign.story import tell

    told: dict[str, Any] = {
        "number": experiment.number,
        "status": experiment.status,
        "planned": experiment.planned.model_dump(exclude={"files"}) if experiment.planned else None,
        "commit": experiment.commit,
        "fixes": [fix.model_dump(exclude={"files"}) for fix in experiment.fixes.values()],
        "runs": [
            {"run": run.id, "out": run.words.out if run.words else None, "status": run.status}
            for run in experiment.runs
        ],
        "judged": experiment.judged.model_dump() if experiment.judged else None,
        "evidence": dataclasses.asdict(tell(state, experiment.number)),
    }
    if prompts:
        split, lines, gone = _prompts(workspace, state, experiment.number)
        told["prompts"] = {"split": split, "differ": [dataclasses.asdict(line) for line in lines], "gone": gone}
    return told


def _print_evidence(state: CampaignState, number: int) -> None:
    from agent.campaign.story import tell
    from agent.report.evidence import screen
    from agent.report.terminal import console_for

    console = console_for()
    width = min(console.width, 100) if console.is_terminal else 80
    console.print(screen(tell(state, number), width=width), width=width)


def _prompts(workspace: Workspace, state: CampaignState, number: int) -> tuple[str, list[PromptLine], list[str]]:
    from agent.campaign.differing import differing_prompts

    return differing_prompts(workspace.root, state, number)


def _print_prompts(workspace: Workspace, state: CampaignState, number: int) -> None:
    from agent.report.evidence import prompts_table
    from agent.report.terminal import console_for

    split, lines, gone = _prompts(workspace, state, number)
    print()
    if gone:
        print(f"no rows of {', '.join(gone)} any more: the folders are gone, or have no evaluation of {split}")
    if lines:
        print(f"{len(lines)} prompts of {split} differ; over all runs of each arm:")
        console_for().print(prompts_table(lines), width=80)
    elif not gone:
        print(f"no prompt of {split} differs")


def _diff(workspace: Workspace, experiment: Experiment, *, whole: bool) -> list[str]:
    from agent.ledger.git import Repository
    from agent.report.evidence import diff_lines

    parent = experiment.planned.parent_commit if experiment.planned else None
    if not experiment.commit or not parent:
        return []
    try:
        diff = Repository(workspace.root).diff(parent, experiment.commit)
    except AgentError as error:
        return ["", f"the diff cannot be shown: {error.message}"]
    return ["", *diff_lines(diff, number=experiment.number, whole=whole)]


def closing_words(session: Session, ending: Ending) -> list[str]:
    """The end of `run`: untrained -> baseline -> winner, what was kept, the checkpoint, the diff, the next command."""
    lines = ["", *ending.lines, ""]
    numbers = session.state.calibration
    path = [("untrained", numbers.get("untrained")), ("baseline", numbers.get("baseline"))]
    if ending.winner:
        judged = session.state.experiments[ending.winner].judged
        path.append((f"winner #{ending.winner}", judged.row.get("metric_value") if judged else None))
    lines.append(" -> ".join(f"{name} {percent(value)}" for name, value in path if value is not None))
    if ending.checkpoint:
        lines.append(f"checkpoint: {ending.checkpoint}")
    if ending.kept and session.branches is not None:
        diff = session.repository.diff(session.branches.start.commit, session.branches.best)
        lines += ["", *diff.splitlines(), ""]
        lines.append(f"take it over: raft-agent finalize {session.settings.campaign}")
        lines.append("train it for longer: raft-agent train --best --budget 6h")
    lines.append("what was tried: raft-agent log; git log --notes=raft " + f"raft/{session.settings.campaign}/best")
    return lines
