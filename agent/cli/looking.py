"""`status`, `log`, `show`: what happened and what happens now. They only read."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import here, print_json
from agent.cli.workspaces import campaign_name
from agent.collector import kept_to_the_end, no_collection
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.campaign.finish import Ending
    from agent.campaign.session import Session
    from agent.ledger.journal import CampaignState, Experiment
    from agent.ledger.workspace import Workspace
    from agent.report.story import PromptLine

SHOWN = 100
"""Ideas that `log` prints on a terminal."""
NAME = typer.Option(None, "--campaign", "-c", help="Campaign. Default: the last one.")
JSON = typer.Option(False, "--json", help="Print as JSON.")


def state_of(workspace: Workspace, name: str) -> CampaignState:
    """What the campaign's journal adds up to."""
    from agent.ledger.journal import Journal

    return kept_to_the_end(Journal(workspace.journal_path(name)).state())


@app.command()
@no_collection()
def status(campaign: str | None = NAME, json_output: bool = JSON) -> None:
    """Show where the campaign stands."""
    from agent.campaign.onlooker import Onlooker
    from agent.report.status import status_fields, status_lines

    workspace = here()
    snapshot = kept_to_the_end(Onlooker(workspace, campaign_name(workspace, campaign))).look()
    if json_output:
        print_json(status_fields(snapshot))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in status_lines(snapshot, width=width):
        print(line)


@app.command()
@no_collection()
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
@no_collection()
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
    state = state_of(workspace, name)
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
    for line in _diff(workspace, state, number, whole=diff):
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


def _diff(workspace: Workspace, state: CampaignState, number: int, *, whole: bool) -> list[str]:
    from agent.campaign.diffs import own_diff
    from agent.report.evidence import diff_lines

    if not number or not state.experiments[number].commit:
        return []
    text, trouble = own_diff(workspace.root, state, number)
    return ["", *([trouble] if trouble else []), *diff_lines(text, number=number, whole=whole)]


def closing_words(session: Session, ending: Ending) -> list[str]:
    """The end of `run`: baseline and winner on one split, what was kept, the checkpoint, the diff, the next command."""
    from agent.report.arms import path_words
    from agent.report.numbers import Numbers

    lines = ["", *ending.lines, ""]
    told = session.snapshot()
    path = path_words(told.arms, Numbers(told.metric), number=told.best_number)
    if path and told.arms.split != "holdout":  # whose numbers are in the headline
        lines.append(path)
    if ending.checkpoint:
        lines.append(f"checkpoint: {ending.checkpoint}")
    if ending.kept and session.branches is not None:
        diff = session.repository.diff(session.branches.start.commit, session.branches.best)
        lines += ["", *diff.splitlines(), ""]
        lines.append(f"take it over: raft-agent finalize {session.settings.campaign}")
        lines.append("train it for longer: raft-agent train --best --budget 6h")
    lines.append("what was tried: raft-agent log; git log --notes=raft " + f"raft/{session.settings.campaign}/best")
    return lines
