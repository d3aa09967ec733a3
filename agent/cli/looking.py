"""`status`, `log`, `show`: what happened and what happens now. They only read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import here, print_json
from agent.cli.workspaces import campaign_name
from agent.errors import UsageError
from agent.report.words import duration, percent

if TYPE_CHECKING:
    from agent.campaign.finish import Ending
    from agent.campaign.session import Session
    from agent.ledger.journal import CampaignState, Experiment, Run
    from agent.ledger.workspace import Workspace

NAME = typer.Option(None, "--campaign", "-c", help="Campaign. Default: the last one.")
JSON = typer.Option(False, "--json", help="Print as JSON.")


def _state(workspace: Workspace, name: str) -> CampaignState:
    from agent.ledger.journal import Journal

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
    for label in ("recipe", "budget", "untrained", "baseline", "best", "noise", "ideas", "now", "stopped", "next"):
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
    experiment = state.experiments[known.experiment]
    value = experiment.judged.row.get("metric_value") if experiment.judged else None
    subject = experiment.planned.subject if experiment.planned else ""
    return f"{percent(value)} #{known.experiment} {subject}".strip()


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
def log(campaign: str | None = NAME, json_output: bool = JSON) -> None:
    """List ideas and outcomes."""
    from agent.ledger.table import read_rows
    from agent.report.terminal import console_for, rows_table

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
    console.print(f"campaign {rows[-1].get('campaign')}, {rows[-1].get('recipe')}, {rows[-1].get('metric_name')}")
    console.print(rows_table(rows, width=console.width))
    console.print(f"git log --notes=raft raft/{rows[-1].get('campaign')}/best tells the same with the evidence")


@app.command()
def show(
    number: int = typer.Argument(..., min=0, help="Number of the idea; 0 is the baseline."),
    campaign: str | None = NAME,
    json_output: bool = JSON,
) -> None:
    """Show one idea in full.

    Why it was tried, its runs, the verdict, the diff.
    """
    workspace = here()
    name = campaign_name(workspace, campaign)
    state = _state(workspace, name)
    experiment = state.experiments.get(number)
    if experiment is None:
        numbers = ", ".join(str(known) for known in sorted(state.experiments)) or "none"
        raise UsageError(f"campaign {name} has no idea {number}", hint=f"there are: {numbers}")
    if json_output:
        print_json(_experiment_json(experiment))
        return
    for line in _story(workspace, name, experiment):
        print(line)


def _experiment_json(experiment: Experiment) -> dict[str, Any]:
    return {
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
    }


def _story(workspace: Workspace, name: str, experiment: Experiment) -> list[str]:
    from agent.ledger.git import Repository

    planned, judged = experiment.planned, experiment.judged
    lines = [f"#{experiment.number} {planned.subject if planned else ''}"]
    if planned and planned.body:
        lines += ["", *planned.body.splitlines(), ""]
    for reason in (planned.model_extra or {}).get("why", []) if planned else []:
        lines.append(f"  ranked: {reason}")
    for _, fix in sorted(experiment.fixes.items()):
        lines += ["", f"{fix.subject}: {fix.why}"]
    lines.append("")
    for run in experiment.runs:
        ended = run.finished
        summary = ended.summary if ended else None
        metrics = ", ".join(f"{split} {value:.1%}" for split, value in (summary or {}).get("metrics", {}).items())
        took = f"{ended.elapsed_s:.0f}s" if ended and ended.elapsed_s else run.status
        lines.append(f"run {run.id}: {metrics or (ended.reason if ended else 'under way')}, {took}")
    if judged:
        lines += ["", f"{judged.outcome}: {judged.reason}"]
        if judged.note:
            lines += [f"  {line}" for line in judged.note.splitlines()[2:]]
    if experiment.commit and planned and planned.parent_commit:
        diff = Repository(workspace.root).diff(planned.parent_commit, experiment.commit)
        lines += ["", *diff.splitlines()]
    return lines


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
