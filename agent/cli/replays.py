"""`replay`: an experiment of a campaign once more, beside what was recorded of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.looking import NAME
from agent.cli.shared import here, print_json
from agent.cli.training import CODE, given, launch_alone, print_notes, raise_if_failed
from agent.cli.workspaces import campaign_name
from agent.errors import Busy, InvalidFile, WorkspaceError
from agent.text import clean

if TYPE_CHECKING:
    from agent.campaign.replay import Again
    from agent.campaign.replay_result import Result
    from agent.ledger.workspace import Workspace

OF = "replay.json"
"""In a replay's folder: what it is a replay of."""
GOES_ON = "stopped before its end; the same command goes on with it"


@app.command()
def replay(
    number: int = typer.Argument(..., min=0, help="Number of the idea; 0 is the baseline."),
    campaign: str | None = NAME,
    seed: int | None = typer.Option(None, help="Seed. Default: that of its run on the search split."),
    arm: str = typer.Option("candidate", help="candidate: the idea's recipe; incumbent: what it was compared with."),
    out: Path | None = typer.Option(None, "--out", help="Folder for the run. Default: one under .raft/replays."),
    anyway: bool = typer.Option(False, "--anyway", help="Also beside a campaign that runs, and with changed data."),
    allow_untrusted_code: bool = CODE,
    json_output: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Run an experiment again and compare.

    From its commit, with the seed, the split and the shared settings of the run that was recorded. Nothing is written
    into the campaign. A replay that was stopped goes on when the same command is given again.
    """
    from agent.campaign.replay import again
    from agent.campaign.replay_result import result_of
    from agent.ledger.journal import Journal
    from agent.run.telemetry import read_run

    workspace = here()
    name = campaign_name(workspace, campaign)
    journal = Journal(workspace.journal_path(name))
    wanted = again(workspace.root, journal, number, arm=arm, seed=seed)
    _refuse_changed(wanted, anyway=anyway)
    folder = _folder(workspace, wanted, out)
    print_notes(wanted)
    if _is_done(folder):
        print("this replay has ended before; it is only compared again (--out FOLDER: another one)", file=sys.stderr)
    else:
        _run(workspace, wanted, folder, anyway=anyway, allow_untrusted_code=allow_untrusted_code)
    record = read_run(folder)
    if record.summary is None or record.summary.stopped:
        print(GOES_ON, file=sys.stderr)
        raise typer.Exit(130)
    result = result_of(wanted, record, journal.state())
    if json_output:
        print_json(_as_json(wanted, folder, result))
    else:
        _print(wanted, folder, result)


def _refuse_changed(wanted: Again, *, anyway: bool) -> None:
    if not wanted.changed:
        return
    words = f"not what it was when the campaign ran: {', '.join(wanted.changed)}"
    if not anyway:
        raise InvalidFile(words, hint="put it back for a fair comparison; --anyway compares with what is there now")
    print(f"warning: {clean(words)}", file=sys.stderr)


def _folder(workspace: Workspace, wanted: Again, out: Path | None) -> Path:
    """The folder of the run, which says whose it is. WorkspaceError where it is somebody else's."""
    from agent.files import write_atomic

    workspace.prepare()
    folder = out.absolute() if out else workspace.private / "replays" / wanted.campaign / wanted.label
    told = {"campaign": wanted.campaign, "of": wanted.of, "commit": wanted.commit, "seed": wanted.seed}
    told["recipe_signature"] = wanted.recipe.signature()
    told["splits"] = list(wanted.splits)
    try:
        known = json.loads((folder / OF).read_text())
    except (OSError, ValueError):
        known = None
    if known is None and folder.is_symlink():
        raise WorkspaceError("is a link, not a folder for a run", where=str(folder), hint="name the folder itself")
    if known is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkspaceError(
            "is there already, and holds no replay", where=str(folder), hint="name a folder that is not there yet"
        )
    if known is not None and known != told:
        raise WorkspaceError(
            "holds a replay of something else, or of a recipe that is read otherwise by now",
            where=str(folder),
            hint="remove that folder, or name another one with --out",
        )
    if known is None:
        write_atomic(folder / OF, json.dumps(told) + "\n")
    return folder


def _is_done(folder: Path) -> bool:
    from agent.run.telemetry import read_summary

    summary = read_summary(folder)
    return summary is not None and not summary.stopped


def _run(workspace: Workspace, wanted: Again, folder: Path, *, anyway: bool, allow_untrusted_code: bool) -> None:
    with contextlib.ExitStack() as held:
        _hold(held, workspace, wanted, anyway=anyway)
        try:
            result = launch_alone(
                workspace,
                wanted.recipe,
                folder,
                seed=wanted.seed,
                splits=wanted.splits,
                allow_untrusted_code=allow_untrusted_code,
                **given(wanted, folder),
            )
        except KeyboardInterrupt:
            print(GOES_ON, file=sys.stderr)
            raise
    raise_if_failed(result)


def _hold(held: contextlib.ExitStack, workspace: Workspace, wanted: Again, *, anyway: bool) -> None:
    """No campaign starts meanwhile, and none runs: two trainings on one machine disturb each other's timings."""
    from agent.ledger.lock import hold

    try:
        held.enter_context(hold(workspace, what=f"replay of #{wanted.of} of {wanted.campaign}"))
    except Busy as error:
        if not anyway:
            raise Busy(
                error.message,
                hint="two trainings on one machine disturb each other's timings: wait for its end, or --anyway",
            ) from None
        print(f"warning: {clean(error.message)}; timings of both are disturbed", file=sys.stderr)


def _as_json(wanted: Again, folder: Path, result: Result) -> dict[str, Any]:
    recorded = wanted.recorded
    return {
        "campaign": wanted.campaign,
        "number": wanted.number,
        "arm": wanted.arm,
        "of": wanted.of,
        "commit": wanted.commit,
        "seed": wanted.seed,
        "recorded": {"run": recorded.key, "seed": recorded.seed} if recorded else None,
        "out": str(folder),
        **dataclasses.asdict(result),
        "notes": [*wanted.notes, *result.notes],
        "changed": list(wanted.changed),
    }


def _print(wanted: Again, folder: Path, result: Result) -> None:
    from agent.report.terminal import console_for

    what = f"#{wanted.of}" if wanted.of else "the baseline"
    beside = f", recorded as {wanted.recorded.key}" if wanted.recorded else ""
    print(f"replay of {what} of campaign {wanted.campaign} at {wanted.commit[:12]}, seed {wanted.seed}{beside}")
    console_for().print(_table(result, metric=wanted.recipe.evaluation.metric))
    for split in result.splits:
        if split.prompts is not None:
            print(
                f"{split.split}: {split.same_answers} of {split.prompts} prompts answered the same, "
                f"{split.same_verdicts} judged the same"
            )
    for name, then, now in result.versions:
        print(f"differs: {clean(name)} {clean(then)} -> {clean(now)}")
    for note in result.notes:
        print(clean(note))
    print(f"checkpoint: {folder / 'checkpoint'}")
    print(clean(result.sentence))


def _table(result: Result, *, metric: str) -> Any:
    from rich.table import Table

    from agent.report.numbers import Numbers

    numbers = Numbers(metric)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in ("recorded", "replayed", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in result.splits:
        values = [numbers.value(one.recorded), numbers.value(one.replayed), numbers.difference(one.difference)]
        table.add_row(f"{metric} on {one.split}", *values)
    for label, then, now in result.numbers:
        table.add_row(label, _number(then), _number(now), "")
    return table


def _number(value: Any) -> str:
    if value is None or isinstance(value, str):
        return clean(value or "")
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}"
