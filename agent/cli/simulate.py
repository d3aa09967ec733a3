"""`simulate`: nights against a trainer whose truth is known, through the campaign's own loop, verdict and budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import here, print_json
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.simulate.mixes import Mix
    from agent.simulate.nights import Plan
    from agent.simulate.world import World

NULL_POLICIES = ("ours", "greedy")


@app.command()
def simulate(
    null: bool = typer.Option(False, "--null", help="No idea has any effect: how many nights keep one all the same."),
    mix: list[str] = typer.Option([], help="What the ideas do; repeatable. --mixes lists them. Default: all but null."),
    policy: list[str] = typer.Option([], help="ours, greedy, random, search, tpe; repeatable. Default: all."),
    nights: int = typer.Option(200, min=1, help="Nights of each mix, noise and policy."),
    ideas: int | None = typer.Option(None, min=2, help="Ideas that a night offers. Default: the mix's own."),
    run_noise: list[float] = typer.Option([], help="Run noise / evaluation noise; repeatable. Default: 1."),
    runs: float | None = typer.Option(None, min=8, help="Budget of a night, in runs. Default: the mix's own."),
    prompts: int = typer.Option(256, min=2, help="Held-out prompts of a split."),
    samples: int = typer.Option(4, min=1, help="Samples of each."),
    seeds: int = typer.Option(3, min=2, max=20, help="Calibration runs."),
    seed: int = typer.Option(0, min=0, help="Number of the first night."),
    fit: str | None = typer.Option(None, help="A campaign of this workspace whose noise, costs and effects to take."),
    out: Path | None = typer.Option(None, help="File for the results; a second call goes on after what is in it."),
    workers: int | None = typer.Option(None, min=1, help="Processes. Default: one a processor."),
    mixes: bool = typer.Option(False, "--mixes", help="List the mixes."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Replay nights against a simulated trainer.

    The same loop, verdicts and budget as `run`, thousands of times, where the true effect of every idea is known.
    """
    from agent.simulate.study import by_policy, run_cells

    if mixes:
        _print_mixes()
        return
    plans = _plans(
        null=null, names=mix, policies=policy, ideas=ideas, ratios=run_noise, runs=runs, prompts=prompts,
        samples=samples, seeds=seeds, fit=fit,
    )  # fmt: skip
    show = _say_nothing if json_output else _print_row
    if not json_output:
        print(HEADER)
    rows = run_cells(plans, nights=nights, seed=seed, out=out, workers=workers, on_result=show)
    if json_output:
        print_json(
            {"nights": nights, "nights_with_false_keep": by_policy(rows, "nights_with_false_keep"), "cells": rows}
        )
        return
    _print_what_it_means(rows)


def _plans(
    *,
    null: bool,
    names: list[str],
    policies: list[str],
    ideas: int | None,
    ratios: list[float],
    runs: float | None,
    prompts: int,
    samples: int,
    seeds: int,
    fit: str | None,
) -> list[Plan]:
    import dataclasses

    from agent.campaign.rules import Rules
    from agent.simulate.mixes import MIXES
    from agent.simulate.nights import cells
    from agent.simulate.policies import POLICIES
    from agent.simulate.world import World

    _known("policy", policies, POLICIES)
    _known("mix", names, MIXES)
    if any(ratio < 0 for ratio in ratios):
        raise UsageError("--run-noise must be at least 0", hint="for example --run-noise 0.3 --run-noise 1")
    chosen = policies or (list(NULL_POLICIES) if null else list(POLICIES))
    if fit is not None:
        world, fitted = _fitted(fit)
        worlds, picked = [world], [fitted]
    else:
        plain = World(prompts=prompts, samples=samples)
        worlds = [dataclasses.replace(plain, run_noise=ratio * plain.evaluation_noise) for ratio in ratios or [1.0]]
        wanted = ["null"] if null else names or [name for name in MIXES if name != "null"]
        picked = [MIXES[name] for name in wanted]
    picked = [_sized(one, ideas, runs) for one in picked]
    return list(cells(picked, worlds, chosen, Rules(), baseline_seeds=seeds))


def _sized(mix: Mix, ideas: int | None, runs: float | None) -> Mix:
    import dataclasses

    ideas = mix.ideas if ideas is None else ideas
    special = mix.planted + mix.followers + 2 * mix.pairs + round(mix.crashing * ideas)
    if special > ideas:
        raise UsageError(f"the mix {mix.name} has {special} ideas of its own, --ideas {ideas} is fewer")
    return dataclasses.replace(mix, ideas=ideas, runs=mix.runs if runs is None else runs)


def _fitted(campaign: str) -> tuple[World, Mix]:
    from agent.campaign.observer import Silent
    from agent.campaign.open import machine_of, prepare
    from agent.campaign.settings import Settings
    from agent.campaign.workbench import Workbench
    from agent.cli.shared import model_cache
    from agent.cli.workspaces import campaign_name
    from agent.ledger.journal import Journal
    from agent.simulate.fit import fit

    workspace = here()
    name = campaign_name(workspace, campaign)
    started = Journal(workspace.journal_path(name)).state().started
    if started is None:
        raise UsageError(f"the journal of {name} does not say how it was started")
    session = prepare(
        workspace,
        Settings(**started.options),
        observer=Silent(),
        machine=machine_of(workspace),
        model_cache=model_cache(),
    )
    return fit(Workbench(session))


def _known(what: str, names: list[str], known: Any) -> None:
    import difflib

    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise UsageError(f"--{what} {name}: there is none of that name", hint=hint)


def _print_mixes() -> None:
    from agent.simulate.mixes import MIXES

    for mix in MIXES.values():
        budget = f"{mix.runs:g} runs" if mix.runs else "as many runs as it takes"
        print(f"{mix.name:<12}{mix.says}; {budget}")


# --- what is printed ---------------------------------------------------------------------------------------

HEADER = """\
mix          noise policy   nights false keeps          gain +-      of   planted found   ideas  kept  runs  95%
                                   share (upper limit)  (noise of one run)                                   covers"""


def _say_nothing(row: dict[str, Any], known: bool) -> None: ...


def _print_row(row: dict[str, Any], known: bool) -> None:
    found = row["planted_found"]
    most = f"{row['most_gain']:7.2f}" if row["most_gain"] else "      -"
    planted = f"{row['planted_kept']:5d}/{row['planted_tried']:<5d} {found:4.0%}" if found is not None else " " * 16
    cover = f"{row['coverage']:.1%}" if row["coverage"] is not None else "-"
    print(
        f"{row['mix']:<12.12} {row['run_noise']:5g} {row['policy']:<7} {row['nights']:7d} "
        f"{row['false_share']:6.2%} ({row['false_upper']:6.2%})    {row['gain']:6.2f} {row['gain_error']:5.2f} {most} "
        f"{planted} {row['ideas']:6.1f} {row['kept']:5.2f} {row['runs']:5.0f}  {cover}",
        flush=True,
    )


def _print_what_it_means(rows: list[dict[str, Any]]) -> None:
    from agent.simulate.study import beside_the_best

    print(
        "\nfalse keeps: nights that keep an idea which does not help. gain: true value of what is delivered, over the"
    )
    print("baseline. planted found: of the tried ones. 95% covers: intervals of confirmed ideas that hold the truth.")
    for row, behind in beside_the_best(rows):
        if row["policy"] == "ours" and behind > 0.1:
            print(f"{row['mix']} at noise {row['run_noise']:g}: ours delivers {behind:.2f} less than the best policy")
