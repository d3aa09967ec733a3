"""Many cells of nights, each once: results go to a file as they come, and a second call goes on after the last one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.files import append_line, read_jsonl
from agent.simulate.mixes import detectable_of
from agent.simulate.nights import Plan, Result, simulate, sum_up


def run_cells(
    plans: Sequence[Plan],
    *,
    nights: int,
    seed: int,
    out: Path | None = None,
    workers: int | None = None,
    on_result: Callable[[dict[str, Any], bool], None] = lambda result, known: None,
) -> list[dict[str, Any]]:
    """The result of each cell, with its settings, in the order of `plans`.

    `out`: JSON lines. A cell that is in it already, with the same settings and constants, is not simulated again.
    `on_result` is told each result, and whether it was known.
    """
    known = {row["cell"]: row for row in read_jsonl(out)} if out is not None and out.exists() else {}
    found = []
    for plan in plans:
        cell = cell_name(plan, nights=nights, seed=seed)
        row = known.get(cell)
        on_file = row is not None
        if row is None:
            row = {
                "cell": cell,
                **_settings(plan, seed),
                **_plain(sum_up(plan, _simulated(plan, nights, seed, workers))),
            }
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                append_line(out, json.dumps(row))
        on_result(row, on_file)
        found.append(row)
    return found


def _simulated(plan: Plan, nights: int, seed: int, workers: int | None) -> list[Any]:
    detectable_of(plan.world, plan.rules, to_come=plan.mix.to_come(plan.rules))  # once, before the processes are forked
    return simulate(plan, nights, seed=seed, workers=workers)


def cell_name(plan: Plan, *, nights: int, seed: int) -> str:
    """Of everything that the result depends on but the code."""
    content = json.dumps([dataclasses.asdict(plan), nights, seed], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _settings(plan: Plan, seed: int) -> dict[str, Any]:
    world = plan.world
    detectable = detectable_of(world, plan.rules, to_come=plan.mix.to_come(plan.rules))
    return {
        "run_noise": round(world.run_noise / world.evaluation_noise, 3),
        "prompts": world.prompts,
        "samples": world.samples,
        "budget_runs": plan.mix.runs,
        "ideas_offered": plan.mix.ideas,
        "seed": seed,
        "noise_of_a_run": world.total_noise,
        "detectable": detectable,
        "most_gain": _most_gain(plan, detectable),
    }


def _most_gain(plan: Plan, detectable: float) -> float | None:
    """All planted effects together, in units of the noise of one run; None where every idea has an effect."""
    mix = plan.mix
    if mix.small:
        return None
    return (mix.planted + mix.followers + mix.pairs + mix.quantities) * mix.gain * detectable / plan.world.total_noise


def _plain(result: Result) -> dict[str, Any]:
    return result.plain()


def by_policy(rows: Sequence[dict[str, Any]], count: str) -> dict[str, int]:
    """A count, summed over cells, by policy."""
    totals: dict[str, int] = {}
    for row in rows:
        totals[row["policy"]] = totals.get(row["policy"], 0) + int(row[count])
    return totals


def beside_the_best(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Each row with how far its gain lies below the best policy's in the same mix and world, in noise of a run."""
    for row in rows:
        beside = [one["gain"] for one in rows if (one["mix"], one["run_noise"]) == (row["mix"], row["run_noise"])]
        yield row, max(beside) - row["gain"]
