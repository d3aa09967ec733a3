"""`export`: a campaign's winner as a folder that anybody can load."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.looking import NAME, state_of
from agent.cli.shared import here, model_cache, print_json
from agent.cli.workspaces import campaign_name, campaign_run
from agent.errors import UsageError
from agent.report.words import duration
from agent.text import clean

if TYPE_CHECKING:
    from agent.campaign.delivered import Delivered
    from agent.ledger.workspace import Workspace


@app.command()
def export(
    out: Path = typer.Option(..., "--out", help="Folder to make."),
    campaign: str | None = NAME,
    number: int | None = typer.Option(
        None, "--number", "-n", min=0, help="An idea instead of the winner; 0: baseline."
    ),
    run: str | None = typer.Option(None, "--run", help="One run: its name or folder, or that of a replay."),
    force: bool = typer.Option(False, "--force", help="Replace a folder that an export has made."),
    json_output: bool = typer.Option(False, "--json", help="Print what was written as JSON."),
) -> None:
    """Export the winner as a model folder.

    Its best checkpoint, as transformers loads it: adapters merged into their base, tokenizer, and a model card that
    says what was measured and how sure it is. What was written is loaded again and compared with the checkpoint.
    """
    from agent.campaign.delivered import delivered
    from agent.campaign.export import card_of, measuring_command
    from agent.campaign.export_folder import MANIFEST, building, close, refuse_target
    from agent.contract import RECIPE
    from agent.ledger.journal import CampaignState
    from agent.report.card import card_text
    from agent.text import redact

    if number is not None and run is not None:
        raise UsageError("--number and --run both say what to export", hint="leave out one of them")
    workspace = here()
    folder = Path(run) if run is not None and (Path(run) / RECIPE).is_file() else None
    known = campaign_run(workspace, folder) if folder is not None else None
    if known is not None:  # the path of one of its runs is as good as its name, and is judged and checked as that
        if campaign not in (None, known[0]):
            raise UsageError(f"--run {run} is a run of campaign {known[0]}, and --campaign names {campaign}")
        campaign, run, folder = known[0], known[1], None
    name = None if folder is not None and campaign is None else campaign_name(workspace, campaign)
    state = state_of(workspace, name) if name is not None else CampaignState()
    target = out.absolute()
    refuse_target(target, force=force)
    what = delivered(workspace.root, state, number=number, run=run, folder=folder)
    print(f"exporting the checkpoint of {what.key}", file=sys.stderr)
    with building(target, force=force) as made:
        told = _made(workspace, what, made, env=state.shared_env)
        card = card_of(workspace.root, state, what, told, name=target.name)
        readme = _without_paths(redact(card_text(card)), workspace)
        origin = {"campaign": name, "number": what.number, "run": what.key}
        close(made, readme, origin)
        paths = [path for path in sorted(made.rglob("*")) if path.is_file()]
        files = {path.relative_to(made).as_posix(): path.stat().st_size for path in paths}
    checks = dict(told["checks"])
    if json_output:
        print_json({"out": str(target), **origin, "files": files, "checks": checks, "provisional": card.provisional})
        return
    size = sum(files.values()) / 2**20
    print(f"{target}: {told['parameters'] / 1e6:.1f}M parameters in {told['dtype']}, {size:.1f} MiB")
    print(f"  {len([name for name in files if name != MANIFEST])} files: {', '.join(files)}")
    print(
        f"  loaded again: {checks['same_samples']} of {checks['prompts']} greedy samples are the checkpoint's, logits "
        f"within {checks['difference']:.1e} of theirs (in standard deviations, {checks['allowed']:g} allowed)"
    )
    if card.provisional:
        print(f"  provisional: {clean(card.provisional)}")
    if what.number is not None:
        print(f"  measure it: {measuring_command(workspace.root, what, str(out))}")


def _made(workspace: Workspace, what: Delivered, folder: Path, *, env: Mapping[str, str]) -> dict[str, Any]:
    """The model's files, by a process that may import torch. `env`: what the campaign gives its runs."""
    from rich.text import Text

    from agent.campaign.open import machine_of, refuse_closed_doors
    from agent.contract import RECIPE
    from agent.report.terminal import console_for
    from agent.run.child import answer_of

    refuse_closed_doors(what.recipe, base=workspace.root, name="RECIPE")
    commit = ((what.summary.get("provenance") or {}).get("model") or {}).get("commit") or _commit_of(what)
    arguments = ["--recipe", str(what.out / RECIPE), "--checkpoint", str(what.checkpoint), "--out", str(folder)]
    arguments += ["--cache", str(model_cache().absolute()), *(["--commit", commit] if commit else [])]
    with console_for(sys.stderr).status("loading") as spinner:
        return answer_of(
            "agent.raft.export",
            arguments,
            recipe=what.recipe,
            workspace=workspace.root,
            cache=model_cache(),
            machine=machine_of(workspace),
            env=env,
            on_wait=lambda seconds: spinner.update(Text(f"merging and comparing, {duration(seconds)}")),
        )


def _commit_of(what: Delivered) -> str | None:
    """Of a hub's model, by the run's own summary."""
    from agent.run.telemetry import read_summary

    summary = read_summary(what.out)
    found = ((summary.provenance if summary else {}).get("model") or {}).get("commit")
    return str(found) if found else None


def _without_paths(text: str, workspace: Workspace) -> str:
    """Where things lie on this machine is nobody's business."""
    places = [(workspace.root, "WORKSPACE"), (workspace.root.resolve(), "WORKSPACE"), (model_cache(), "CACHE")]
    for place, word in [*places, (Path.home(), "~")]:
        if len(place.parts) > 1:
            text = text.replace(str(place), word)
    return text
