"""`report`: the morning's page, from what lies on the disk now."""

from __future__ import annotations

import dataclasses
import json
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
    from agent.campaign.night_runs import RunFolders
    from agent.campaign.report import Reporter
    from agent.campaign.report_folder import Said
    from agent.campaign.session import Session
    from agent.campaign.workbench import Workbench
    from agent.ledger.workspace import Workspace
    from agent.report.night import Night
    from agent.report.vega import Charts


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
    Where nothing has changed since the last report, that one stays. One that a newer raft-agent wrote is not written
    over.
    """
    from agent.campaign.report_folder import PAGE
    from agent.report.numbers import moment
    from agent.report.vega import Charts
    from agent.text import redact

    workspace = here()
    name = campaign_name(workspace, campaign)
    if json_output:
        _print_summary(workspace, name)
        return
    folder, charts = _folder(workspace, name, out), Charts(model_cache())
    before = _still_said(workspace, name) if out is None else None
    stays = before is not None and (not before.why_no_charts or before.why_no_charts == redact(charts.get()[1]))
    said = before if before and stays else _written(workspace, name, folder, charts)
    page = folder / PAGE
    print(said.verdict)
    for words in said.warnings:
        print(f"  warning: {words}")
    if said.why_no_charts:
        print(f"  the page has no charts: {said.why_no_charts}")
    if stays:
        print(f"  nothing has changed since it was made, {moment(said.made_at)}")
    print(f"report: {page}")
    if open_it and not webbrowser.open(page.resolve().as_uri()):
        print("no browser could be opened: open the file yourself")


def _print_summary(workspace: Workspace, name: str) -> None:
    from agent.campaign.report_folder import SUMMARY
    from agent.report.summary import summary_of

    if _still_said(workspace, name) is not None:
        print_json(json.loads((workspace.report_folder(name) / SUMMARY).read_text(encoding="utf-8")))
    else:
        print_json(summary_of(night_now(workspace, name)))


def _still_said(workspace: Workspace, name: str) -> Said | None:
    """What the campaign's last report says, where it holds but for its charts."""
    from agent.campaign.report_folder import said_by
    from agent.ledger.lock import campaign_holder

    if campaign_holder(workspace, name) is not None:
        return None
    return said_by(workspace.report_folder(name), workspace.journal_path(name), workspace.root)


def night_now(workspace: Workspace, name: str) -> Night:
    """From the journal and the run folders as they are; nothing is written."""
    from agent.campaign.night_runs import RunFolders
    from agent.ledger.lock import campaign_holder

    return _gathered(workspace, name, RunFolders(workspace.root), running=campaign_holder(workspace, name) is not None)


def _gathered(workspace: Workspace, name: str, folders: RunFolders, *, running: bool) -> Night:
    from agent.campaign.night import night_of
    from agent.campaign.report import damage_words
    from agent.ledger.journal import Journal

    journal = Journal(workspace.journal_path(name))
    state, damages = kept_to_the_end(journal.state_and_damages())
    night = night_of(
        state,
        name=name,
        running=running,
        folders=folders,
        warnings=damage_words(journal.path, workspace.root, damages),
    )
    return _with_ranking_of_before(workspace, name, night)


def _with_ranking_of_before(workspace: Workspace, name: str, night: Night) -> Night:
    """What the campaign itself would have tried next, as its last report says, where nothing was judged since."""
    from agent.campaign.report_folder import SUMMARY
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


def _folder(workspace: Workspace, name: str, out: Path | None) -> Path:
    """Where the report is written. UsageError where it cannot be."""
    from agent.campaign.report_folder import refuse_newer

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is no folder", hint="name a folder; it is made where there is none")
    folder = workspace.report_folder(name) if out is None else out.absolute()
    refuse_newer(folder)
    if out is not None:
        _refuse_strangers(out)
    return folder


def _written(workspace: Workspace, name: str, folder: Path, charts: Charts) -> Said:
    from agent.campaign.night_runs import RunFolders
    from agent.campaign.report import write_lasting
    from agent.campaign.report_folder import Sources
    from agent.ledger.lock import campaign_holder

    sources, folders = Sources(workspace.journal_path(name), workspace.root), RunFolders(workspace.root)
    running = campaign_holder(workspace, name) is not None
    night = _gathered(workspace, name, folders, running=running)
    lasts = folder == workspace.report_folder(name) and not running
    return write_lasting(night, folder, charts=charts, folders=folders, sources=sources if lasts else None)


def _refuse_strangers(out: Path) -> None:
    """A run has a summary.json too, which is its record."""
    from agent.campaign.report_folder import SUMMARY
    from agent.report.summary import read_summary

    if (out / SUMMARY).exists():
        try:
            read_summary(out / SUMMARY)
        except InvalidFile as error:
            raise UsageError(f"--out {out}: {SUMMARY} in it {error.message}", hint="name another folder") from None


def reporter_of(workspace: Workspace, session: Session, bench: Workbench) -> Reporter:
    """Renews the report while the campaign runs; whoever has it closes it."""
    from agent.campaign.report import Reporter
    from agent.report.vega import Charts

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
