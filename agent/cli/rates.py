"""`lr`: the learning-rate calculator. The same schedule functions as the trainer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.shared import print_json
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.recipe.schema import LrSchedule

DECAYS = (0.95, 0.85, 0.7)
BAR = 32


@app.command()
def lr(
    rate: float = typer.Option(5e-5, help="Peak learning rate."),
    cycles: int = typer.Option(8, min=1, max=1000, help="Cycles to show."),
    decay: float | None = typer.Option(None, help="One exponential decay a cycle, instead of all schedules."),
    compare: bool = typer.Option(False, "--compare", help="All schedules side by side."),
    visualize: bool = typer.Option(False, "--visualize", help="Draw them as bars."),
    recommendations: bool = typer.Option(False, "--recommendations", help="Which to try when."),
    json_output: bool = typer.Option(False, "--json", help="Print the rates as JSON."),
) -> None:
    """Learning-rate calculator.

    Rates across cycles: constant, decays of 0.95, 0.85 and 0.7 a cycle, step, wsd, linear, cosine.
    """
    if rate <= 0:
        raise UsageError(f"--rate {rate:g} must be above 0", hint="for example --rate 5e-5")
    if decay is not None and not 0 < decay <= 1:
        raise UsageError(f"--decay {decay:g} must be above 0 and at most 1", hint="for example --decay 0.85")
    table = _table(rate, cycles, decay)
    if json_output:
        print_json(table)
        return
    if recommendations and not compare and not visualize:
        _print_recommendations(table, rate)
        return
    _print_table(table, cycles)
    if visualize:
        _print_bars(table, rate)
    if recommendations:
        _print_recommendations(table, rate)


def _schedules(cycles: int, decay: float | None) -> dict[str, LrSchedule]:
    from agent.recipe.schema import LrSchedule

    def schedule(kind: str, **keys: object) -> LrSchedule:
        return LrSchedule.model_validate({"kind": kind, "by": "cycle", "horizon": cycles, **keys})

    if decay is not None:
        return {"constant": schedule("constant"), f"exp {decay:g}": schedule("exponential", decay=decay)}
    found = {"constant": schedule("constant")}
    found |= {f"exp {value:g}": schedule("exponential", decay=value) for value in DECAYS}
    found["step /2"] = schedule("step", decay=0.5, step_every=2)
    found |= {kind: schedule(kind) for kind in ("wsd", "linear", "cosine")}
    return found


def _table(rate: float, cycles: int, decay: float | None) -> dict[str, list[float]]:
    from agent.recipe.schedules import lr_factor

    return {
        name: [rate * lr_factor(schedule, cycle=cycle, spent=(cycle - 1) / cycles) for cycle in range(1, cycles + 1)]
        for name, schedule in _schedules(cycles, decay).items()
    }


def _print_table(table: dict[str, list[float]], cycles: int) -> None:
    print("cycle " + "".join(f"{name:>9}" for name in table))
    for cycle in range(cycles):
        print(f"{cycle + 1:>5} " + "".join(f"{rates[cycle]:>9.2e}" for rates in table.values()))
    print(" mean " + "".join(f"{sum(rates) / len(rates):>9.2e}" for rates in table.values()))


def _print_bars(table: dict[str, list[float]], rate: float) -> None:
    for name, rates in table.items():
        print(f"\n{name}")
        for cycle, value in enumerate(rates, start=1):
            print(f"{cycle:>5} {'#' * max(1, round(BAR * value / rate)):<{BAR}} {value:.2e}")


def _print_recommendations(table: dict[str, list[float]], rate: float) -> None:
    print("Known: on Strix Halo, eight cycles at 5e-5 gained up to cycle 6, then lost.")
    print("Not known: whether decay prevents that, and which. A schedule counts only")
    print("if it beats the constant rate: raft-agent run --only learning-rate --budget 8h")
    advice = [
        ("constant", "the comparator; right for up to 6 cycles"),
        ("exp 0.95", "when late cycles wobble but still gain"),
        ("exp 0.85", "when the last cycles lose what was won"),
        ("exp 0.7", "when the peak comes at cycle 3 or 4"),
        ("wsd", "when the number of cycles is open"),
    ]
    for name, words in advice:
        if name in table:
            print(f"  {name:<9} ends at {table[name][-1] / rate:4.0%} of the peak: {words}")
