"""`simulate`: nights against a trainer whose truth is known, through the campaign's own loop, verdict and budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    prompts: int | None = typer.Option(None, min=2, help="Held-out prompts of a split. Default: 256, or as fitted."),
    samples: int | None = typer.Option(None, min=1, help="Samples of each. Default: 4, or as fitted."),
    seeds: int = typer.Option(3, min=2, max=20, help="Calibration runs."),
    seed: int = typer.Option(0, min=0, help="Number of the first night."),
    fit: str | None = typer.Option(None, help="A campaign of this workspace whose noise, costs and effects to take."),
    settings: list[str] = typer.Option(
        [], "--set", help="KEY=VALUE of the world or the mix; repeatable. --keys lists them."
    ),
    out: Path | None = typer.Option(None, help="File for the results; a second call goes on after what is in it."),
    workers: int | None = typer.Option(None, min=1, help="Processes. Default: one a processor."),
    mixes: bool = typer.Option(False, "--mixes", help="List the mixes."),
    keys: bool = typer.Option(False, "--keys", help="List what --set can set, with its default."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Replay nights against a simulated trainer.

    The same loop, verdicts and budget as `run`, thousands of times, where the true effect of every idea is known.
    """
    from agent.simulate.study import by_policy, run_cells

    if mixes or keys:
        _print_mixes() if mixes else _print_keys()
        return
    sizes = {"ideas": ideas, "runs": runs, "prompts": prompts, "samples": samples}
    settings_given = {name: value for name, value in sizes.items() if value is not None} | _parsed(settings)
    plans = _plans(
        null=null, names=mix, policies=policy, ratios=run_noise, settings=settings_given, seeds=seeds, fit=fit
    )
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
    ratios: list[float],
    settings: Mapping[str, Any],
    seeds: int,
    fit: str | None,
) -> list[Plan]:
    from agent.campaign.rules import Rules
    from agent.simulate.mixes import MIXES
    from agent.simulate.nights import cells
    from agent.simulate.policies import POLICIES

    _known("policy", policies, POLICIES)
    _known("mix", names, MIXES)
    if null and names:
        raise UsageError("--null is a mix of its own", hint=f"leave out --mix {names[0]}, or --null")
    if any(ratio < 0 for ratio in ratios):
        raise UsageError("--run-noise must be at least 0", hint="for example --run-noise 0.3 --run-noise 1")
    if ratios and "run_noise" in settings:
        raise UsageError("--run-noise and --set run_noise say the same thing", hint="leave out one of them")
    chosen = policies or (list(NULL_POLICIES) if null else list(POLICIES))
    world, fitted = _fitted(fit) if fit is not None else (None, None)
    if null:
        picked = [_without_effects(fitted) if fitted else MIXES["null"]]
    elif names or fitted is None:
        picked = [MIXES[name] for name in names or [name for name in MIXES if name != "null"]]
    else:
        picked = [fitted]
    sized = [_sized(mix, settings) for mix in picked]
    if null and any(getattr(mix, key) for mix in sized for key in EFFECTS):
        raise UsageError(f"--null has no effects, and --set gives it some ({', '.join(EFFECTS)})")
    return list(cells(sized, _worlds(world, settings, ratios), chosen, Rules(), baseline_seeds=seeds))


def _without_effects(mix: Mix) -> Mix:
    import dataclasses

    return dataclasses.replace(mix, name=f"null {mix.name}", small=0.0)


def _worlds(fitted: World | None, settings: Mapping[str, Any], ratios: list[float]) -> list[World]:
    import dataclasses

    from agent.simulate.world import World

    ours = {field.name for field in dataclasses.fields(World)}
    world = dataclasses.replace(fitted or World(), **{key: settings[key] for key in settings if key in ours})
    if not ratios and (fitted is not None or "run_noise" in settings):
        return [world]
    return [dataclasses.replace(world, run_noise=ratio * world.evaluation_noise) for ratio in ratios or [1.0]]


def _sized(mix: Mix, settings: Mapping[str, Any]) -> Mix:
    import dataclasses

    theirs = {field.name for field in dataclasses.fields(mix)}
    mix = dataclasses.replace(mix, **{key: settings[key] for key in settings if key in theirs})
    special = mix.planted + mix.followers + 2 * mix.pairs + round(mix.crashing * mix.ideas)
    if special > mix.ideas:
        raise UsageError(f"the mix {mix.name} has {special} ideas of its own, --ideas {mix.ideas} is fewer")
    return mix


def _settable() -> dict[str, Any]:
    """Numbers of the world and of the mix, with what they are where nothing is said."""
    import dataclasses

    from agent.simulate.mixes import Mix
    from agent.simulate.world import World

    fields = [*dataclasses.fields(World), *dataclasses.fields(Mix)]
    return {field.name: field.default for field in fields if field.name not in ("name", "says")}


SHARES = ("base", "untrained", "harmful", "crashing", "skill")
EFFECTS = ("planted", "followers", "pairs", "quantities", "harmful", "small")
LEAST = {"prompts": 2, "samples": 1, "ideas": 2, "runs": 8, "tails": 2.1, "time_to_level": 0.01}


def _parsed(settings: list[str]) -> dict[str, Any]:
    """`key=value` as numbers. UsageError names what is wrong with one."""
    known = _settable()
    found: dict[str, Any] = {}
    for text in settings:
        key, _, value = text.partition("=")
        _known("set", [key], known)
        try:
            number = float(value)
        except ValueError:
            raise UsageError(
                f"--set {text}: {value!r} is no number", hint=f"for example --set {key}={known[key]}"
            ) from None
        least = LEAST.get(key, 0)
        if not math.isfinite(number) or number < least or (key in SHARES and number > 1):
            raise UsageError(
                f"--set {text}: it must be {'between 0 and 1' if key in SHARES else f'at least {least:g}'}"
            )
        whole = isinstance(known[key], int)
        if whole and number != int(number):
            raise UsageError(f"--set {text}: it must be a whole number")
        found[key] = int(number) if whole else number
    return found


def _fitted(campaign: str) -> tuple[World, Mix]:
    from agent.campaign.open import look, machine_of
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
    session = look(workspace, Settings(**started.options), machine=machine_of(workspace), model_cache=model_cache())
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


def _print_keys() -> None:
    for key, default in _settable().items():
        print(f"{key:<16}{'' if default is None else default}")


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
