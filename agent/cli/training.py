"""`train` and `eval`: one recipe alone, without a campaign."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.interrupt import like_ctrl_c
from agent.cli.shared import here, kind_of_path, model_cache, print_json, recipe_path
from agent.errors import TrainingFailed, UsageError, error_named
from agent.report.words import counted, duration, trained
from agent.text import clean, one_line

if TYPE_CHECKING:
    from agent.campaign.replay import Beside
    from agent.contract import Split
    from agent.hardware.probe import Machine
    from agent.ledger.workspace import Workspace
    from agent.recipe.schema import Recipe
    from agent.report.numbers import Numbers
    from agent.run.request import RunResult
    from agent.run.watching import Progress

LONGEST_LABEL = 50
"""Characters of a recipe's name in that of a folder, which may have 255 bytes."""
FILES = "files"
"""In a run's folder: files that the campaign has mended."""
OUT = typer.Option(None, "--out", help="Folder for the run. Default: a new one under .raft/runs/alone.")
SEED = typer.Option(None, help="Seed. Default: the recipe's.")
CODE = typer.Option(False, "--allow-untrusted-code", help="Run untrusted code where no sandbox can be made.")
JSON = typer.Option(False, "--json", help="Print the summary as JSON.")


@app.command()
def train(
    recipe: str | None = typer.Argument(None, help="Recipe: a path, or a name in recipes/."),
    best: bool = typer.Option(False, "--best", help="The winner of the last campaign instead of a recipe file."),
    budget: str | None = typer.Option(None, help="Training time instead of the recipe's budget: 6h."),
    seed: int | None = SEED,
    out: Path | None = OUT,
    split: str = typer.Option("search", help="Held-out split to evaluate: search, confirm, holdout or none."),
    low_priority: bool = typer.Option(False, "--low-priority", help="Low CPU and IO priority."),
    allow_untrusted_code: bool = CODE,
    json_output: bool = JSON,
) -> None:
    """Train one recipe, or the winner.

    A run folder that was stopped goes on where it stopped.
    """
    from agent.campaign.budget import parse_duration
    from agent.recipe.files import with_keys

    workspace = here()
    chosen, label, won_at_s, beside = _chosen(workspace, recipe, best=best)
    if budget is not None:
        seconds = parse_duration(budget)
        if won_at_s is not None:
            _warn_about_transfer(won_at_s, seconds)
        cleared = {f"budget.{kind}": None for kind in ("cycles", "tokens")}
        chosen = with_keys(chosen, {**cleared, "budget.train_seconds": seconds})
    folder = out or _new_folder(workspace, label)
    result = launch_alone(
        workspace,
        chosen,
        folder,
        seed=chosen.seed if seed is None else seed,
        splits=_splits(split),
        low_priority=low_priority,
        allow_untrusted_code=allow_untrusted_code,
        **given(beside, folder),
    )
    _print_result(result, json_output=json_output)


@app.command("eval")
def evaluate(
    what: str = typer.Argument(..., help="A recipe (its untrained model) or a checkpoint folder."),
    recipe: str | None = typer.Option(None, help="Recipe for a checkpoint. Default: that of its run."),
    split: str = typer.Option("search", help="Held-out split: search, confirm or holdout."),
    allow_untrusted_code: bool = CODE,
    json_output: bool = JSON,
) -> None:
    """Evaluate a recipe or checkpoint."""
    from agent.contract import RECIPE, UNTRAINED
    from agent.recipe.files import load_recipe

    workspace = here()
    folder = Path(what)
    if what and kind_of_path(folder) == "folder":
        beside = folder.absolute().parent / RECIPE
        if recipe is None and not beside.is_file():
            raise UsageError(f"{what} has no {RECIPE} beside it", hint=_recipe_of_an_export(workspace, folder))
        file = workspace.root / recipe_path(workspace, recipe) if recipe else beside
        target, label = str(folder.absolute()), f"eval-{folder.absolute().parent.name}"
    else:
        path = recipe_path(workspace, what)
        file, target, label = workspace.root / path, UNTRAINED, f"eval-{Path(path).stem}"
    chosen, out = load_recipe(file), _new_folder(workspace, label)
    result = launch_alone(
        workspace,
        chosen,
        out,
        seed=chosen.seed,
        splits=_splits(split),
        evaluate=target,
        allow_untrusted_code=allow_untrusted_code,
        **given(_beside_run(workspace, file.parent, chosen), out),
    )
    _print_result(result, json_output=json_output)


def _chosen(workspace: Workspace, recipe: str | None, *, best: bool) -> tuple[Recipe, str, float | None, Beside]:
    """(recipe, label of the run folder, for a winner the seconds of training at which it won, what its campaign gives
    its runs)."""
    from agent.campaign.replay import NOTHING_BESIDE
    from agent.recipe.files import load_recipe

    if not best:
        path = recipe_path(workspace, recipe)
        return load_recipe(workspace.root / path), Path(path).stem, None, NOTHING_BESIDE
    if recipe is not None:
        raise UsageError("--best takes the recipe from the last campaign", hint="leave out the recipe, or --best")
    return _winner(workspace)


def _winner(workspace: Workspace) -> tuple[Recipe, str, float, Beside]:
    from agent.campaign.open import look, machine_of
    from agent.campaign.replay import beside_of
    from agent.campaign.settings import Settings
    from agent.cli.workspaces import campaign_name
    from agent.ledger.journal import Journal

    name = campaign_name(workspace, None)
    journal = Journal(workspace.journal_path(name))
    started = journal.state().started
    if started is None:
        raise UsageError(f"campaign {name} never began", hint="raft-agent run --budget 8h starts one")
    settings = Settings(recipe_path=started.recipe_path, campaign=name)
    session = look(workspace, settings, machine=machine_of(workspace), model_cache=model_cache())
    incumbent = session.incumbent
    who = f"#{incumbent}" if incumbent else "the baseline, since nothing was kept"
    print(f"winner of campaign {name}: {who}", file=sys.stderr)
    recipe = session.recipe_of(incumbent)
    beside = beside_of(journal, incumbent, recipe)
    print_notes(beside)
    return session.with_shared_layer(recipe), f"best-{name}", session.cost(recipe).train_s, beside


def _recipe_of_an_export(workspace: Workspace, folder: Path) -> str:
    """A hint: the recipe of the run that an exported folder came from, where that is there."""
    from agent.campaign.export_folder import MANIFEST
    from agent.contract import RECIPE

    told: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        told = dict(json.loads((folder / MANIFEST).read_bytes()).items())
    campaign, run = told.get("campaign"), told.get("run")
    if isinstance(campaign, str) and isinstance(run, str) and campaign in workspace.campaign_names():
        recipe = workspace.runs_folder(campaign) / run / RECIPE
        if recipe.is_file():
            return f"it was exported from {run}: --recipe {workspace.relative(recipe)}"
    return "name the recipe: --recipe tiny-addition"


def _beside_run(workspace: Workspace, folder: Path, recipe: Recipe) -> Beside:
    """What its campaign gives the run that has this folder; nothing where it is of no campaign."""
    from agent.campaign.replay import NOTHING_BESIDE, beside_of
    from agent.campaign.stairs import number_in
    from agent.cli.workspaces import campaign_run
    from agent.ledger.journal import Journal

    known = campaign_run(workspace, folder)
    if known is None:
        return NOTHING_BESIDE
    campaign, key = known
    journal = Journal(workspace.journal_path(campaign))
    beside = beside_of(journal, number_in(key), recipe, with_keys_of_the_layer=False)
    print_notes(beside)
    return beside


def print_notes(beside: Beside) -> None:
    for note in beside.notes:
        print(clean(note), file=sys.stderr)


def given(beside: Beside, folder: Path) -> dict[str, Any]:
    """For `launch_alone`: what a campaign gives its runs. Files that it has mended are put into the run's folder."""
    from agent.contract import FILES_VARIABLE
    from agent.files import write_atomic
    from agent.recipe.places import inside

    env, files = dict(beside.env), folder.absolute() / FILES
    for path, text in beside.mended.items():
        write_atomic(inside(files, path, key="path"), text)
        env[FILES_VARIABLE] = str(files)
    return {"env": env, "commit": beside.model_commit}


def _warn_about_transfer(short: float, seconds: float) -> None:
    """`short`: seconds of training in the campaign's runs."""
    if seconds > 2 * short:
        print(
            f"warning: this recipe won at {duration(short)} of training; what wins a short run may not win one of "
            f"{duration(seconds)}. A schedule by budget stretches with it, one by cycle does not. Compare it with the "
            "baseline at the same length before you rely on it.",
            file=sys.stderr,
        )


def _splits(text: str) -> tuple[Split, ...]:
    from agent.contract import HELD_OUT

    if text == "none":
        return ()
    if text not in HELD_OUT:
        raise UsageError(f"--split {text}: no such split", hint=f"one of {', '.join(HELD_OUT)}, none")
    return (text,)


def _new_folder(workspace: Workspace, label: str) -> Path:
    from agent.ledger.workspace import ALONE

    workspace.prepare()
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return workspace.runs_folder(ALONE) / f"{label[:LONGEST_LABEL]}-{stamp}"


def launch_alone(workspace: Workspace, recipe: Recipe, out: Path, **keys: Any) -> RunResult:
    """Run it without a campaign, with a spinner on standard error; `keys` are further ones of the request."""
    from rich.text import Text

    from agent.campaign.open import machine_of
    from agent.report.numbers import Numbers
    from agent.report.terminal import console_for
    from agent.run.alone import request_alone
    from agent.run.launcher import launch

    machine = machine_of(workspace)
    refuse_unfit(workspace, recipe, machine, name="RECIPE", trains="evaluate" not in keys)
    request = request_alone(recipe, out, workspace=workspace.root, cache=model_cache(), **keys)
    console, numbers = console_for(sys.stderr), Numbers(recipe.evaluation.metric)
    print(f"run folder {out}", file=sys.stderr)
    with like_ctrl_c(), console.status("starting") as spinner:

        def on_progress(progress: Progress) -> None:
            spinner.update(Text(one_line(progress_words(progress, numbers))))  # a plain string would be read for markup

        try:
            return launch(request, on_progress=on_progress, machine=machine)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise


def refuse_unfit(workspace: Workspace, recipe: Recipe, machine: Machine, *, name: str, trains: bool = True) -> None:
    """Before a recipe is run alone. Raises what `refuse_closed_doors` does, and Unsupported where it would not fit into
    memory; an evaluation needs neither gradients nor moments. `name` is the recipe's."""
    from agent.campaign.capacity import check_memory, too_large
    from agent.campaign.open import refuse_closed_doors

    refuse_closed_doors(recipe, base=workspace.root, name=name)
    if trains:
        checked = check_memory(recipe, machine, cache=model_cache(), base=workspace.root)
        if checked.fits is False:
            raise too_large(checked)


def progress_words(progress: Progress, numbers: Numbers) -> str:
    spent = f" {progress.budget_spent:.0%} of the budget" if progress.budget_spent is not None else ""
    metric = f", select {numbers.value(progress.select_metric)}" if progress.select_metric is not None else ""
    cycle = f" cycle {progress.cycle}," if progress.cycle is not None else ""
    return f"{progress.phase}{cycle}{spent}{metric} {progress.note or ''}"


def raise_if_failed(result: RunResult) -> None:
    """Raises the trainer's own error where it named one, else what triage finds; nothing for a run with a summary."""
    from agent.run.diagnosis import evidence_of
    from agent.run.telemetry import read_run
    from agent.run.triage import triage

    if result.ok and result.summary is not None:
        return
    failure = read_run(result.out).failure
    if failure is not None:
        named = error_named(failure.exception, failure.message, where=failure.where, hint=failure.hint)
        if named is not None:
            raise named
    diagnosis = triage(evidence_of(result))
    raise TrainingFailed(
        f"{diagnosis.crash_class}: {diagnosis.reason}",
        where=str(result.out),
        hint=diagnosis.evidence or result.reason,
    )


def _print_result(result: RunResult, *, json_output: bool) -> None:
    from agent.contract import DECLINE, NO_STEP
    from agent.report.cycles import cycles_table
    from agent.report.numbers import Numbers
    from agent.report.terminal import console_for
    from agent.run.telemetry import read_run

    raise_if_failed(result)
    assert result.summary is not None
    summary, numbers = result.summary, Numbers(result.summary.metric)
    if json_output:
        print_json({"out": str(result.out), **summary.model_dump(mode="json")})
        return
    if summary.cycles:
        cycles = read_run(result.out).cycles
        console_for(sys.stdout).print(cycles_table(cycles, delivered=summary.delivered_cycle, numbers=numbers))
    for split, value in summary.metrics.items():
        print(f"{summary.metric} on {split}: {numbers.value(value)}")
    if summary.cycles:
        print(
            f"{trained(summary.cycles, summary.optimizer_steps)}, {counted(summary.kept, 'sample')} kept in "
            f"{summary.train_s:.0f}s; delivered cycle {summary.delivered_cycle}"
        )
    if summary.ended_by == NO_STEP:
        print(f"ended early, for want of a sample to learn from: raft-agent diagnose {result.out.name} says why")
    if summary.ended_by == DECLINE:
        print(f"early stop after cycle {summary.cycles}: worse on select than before (learner.early_stop)")
    if summary.checkpoint and summary.optimizer_steps:
        print(f"checkpoint: {result.out / summary.checkpoint}")
