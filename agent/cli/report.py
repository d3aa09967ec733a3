"""`report`: the morning's page, from what lies on the disk now."""

from __future__ import annotations

import dataclasses
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.shared import here, model_cache, print_json
from agent.cli.workspaces import campaign_name
from agent.collector import kept_to_the_end, no_collection
from agent.errors import InvalidFile, UsageError

if TYPE_CHECKING:
    from agent.campaign.report import Reporter
    from agent.campaign.session import Session
    from agent.campaign.workbench import Workbench
    from agent.ledger.workspace import Workspace
    from agent.report.night import Night


@app.command()
@no_collection()
def report(
    campaign: str | None = typer.Option(None, "--campaign", "-c", help="Campaign. Default: the last one."),
    out: Path | None = typer.Option(None, "--out", help="Folder to write it into. Default: .raft/report/CAMPAIGN."),
    open_it: bool = typer.Option(False, "--open", help="Open the page in a browser."),
    json_output: bool = typer.Option(False, "--json", help="Print the content of summary.json; write nothing."),
) -> None:
    """Write the report of a campaign: report.html, report.md, summary.json.

    Of one that runs, too; a campaign renews its own after every idea. The page loads nothing and can be sent as it is.
    """
    from agent.report.summary import summary_of

    workspace = here()
    name = campaign_name(workspace, campaign)
    night = night_now(workspace, name)
    if json_output:
        print_json(summary_of(night))
        return
    page, why_no_charts = _written(workspace, name, night, out)
    print(night.verdict)
    for words in night.warnings:
        print(f"  warning: {words}")
    if why_no_charts:
        print(f"  the page has no charts: {why_no_charts}")
    print(f"report: {page}")
    if open_it and not webbrowser.open(page.resolve().as_uri()):
        print("no browser could be opened: open the file yourself")


def night_now(workspace: Workspace, name: str) -> Night:
    """From the journal and the run folders as they are; nothing is written."""
    from agent.campaign.night import night_of
    from agent.campaign.night_runs import RunFolders
    from agent.ledger.journal import Journal
    from agent.ledger.lock import campaign_holder

    journal = Journal(workspace.journal_path(name))
    state, damages = kept_to_the_end(journal.state_and_damages())
    night = night_of(
        state,
        name=name,
        running=campaign_holder(workspace, name) is not None,
        folders=RunFolders(workspace.root),
        warnings=[f"{workspace.relative(journal.path)}: {damage}" for damage in damages],
    )
    return _with_ranking_of_before(workspace, name, night)


def _with_ranking_of_before(workspace: Workspace, name: str, night: Night) -> Night:
    """What the campaign itself would have tried next, as its last report says, where nothing was judged since."""
    from agent.campaign.report import SUMMARY
    from agent.report.summary import read_summary

    path = workspace.report_folder(name) / SUMMARY
    try:
        before = read_summary(path)
    except InvalidFile as error:
        if path.exists():
            print(
                f"the report before {error.message}; what the campaign would try next, as that one may say, is not in "
                "this one",
                file=sys.stderr,
            )
        return night
    judged = sum(one.outcome != "open" for one in night.steps)
    if before.campaign != name or before.next_after is None or before.next_after != judged:
        return night
    return dataclasses.replace(night, next=before.next, next_note=before.next_note, next_after=judged)


def _written(workspace: Workspace, name: str, night: Night, out: Path | None) -> tuple[Path, str]:
    from agent.campaign.report import Charts, write_report

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is no folder", hint="name a folder; it is made where there is none")
    if out is not None:
        _refuse_strangers(out)
    charts, why = Charts(model_cache()).get()
    folder = workspace.report_folder(name) if out is None else out.absolute()
    return write_report(night, folder, charts=charts, why_no_charts=why), why


def _refuse_strangers(out: Path) -> None:
    """A run has a summary.json too, which is its record."""
    from agent.campaign.report import SUMMARY
    from agent.report.summary import read_summary

    if (out / SUMMARY).exists():
        try:
            read_summary(out / SUMMARY)
        except InvalidFile as error:
            raise UsageError(f"--out {out}: {SUMMARY} in it {error.message}", hint="name another folder") from None


def reporter_of(workspace: Workspace, session: Session, bench: Workbench) -> Reporter:
    """Renews the report while the campaign runs; whoever has it closes it."""
    from agent.campaign.report import Charts, Reporter

    name = session.settings.campaign
    reporter = Reporter(
        session.journal.path,
        name=name,
        root=workspace.root,
        folder=workspace.report_folder(name),
        charts=Charts(session.cache),
        warn=session.observer.warn,
        ranking=lambda: bench.last_ranking,
    )
    session.renew = reporter.request
    return reporter
