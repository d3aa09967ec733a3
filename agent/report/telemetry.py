"""The curves of the runs as the page carries them: rounded, and as many runs as it has room for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.report.night import Curves
from agent.report.numbers import finite
from agent.text import one_line

CURVE_BYTES = 2_800_000
"""Of all curves together: with the 0.9 MB of Vega and the tables the page stays below 5 MB."""
NAMES = {
    "select": "select metric (held out)",
    "pass_rate": "samples that pass",
    "reward_mean": "mean reward",
    "loss": "loss",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "entropy": "entropy",
    "unique_share": "unique completions",
    "truncation_rate": "truncated completions",
    "tokens_per_s": "generated tokens/s",
    "peak_memory_gb": "peak memory, GB",
    "resident_gb": "resident memory, GB",
    "available_gb": "available memory, GB",
    "device_used_gb": "device memory in use, GB",
    "cores": "CPU cores in use",
    "busy_percent": "device busy, %",
    "power_w": "power, W",
    "temperature_c": "temperature, °C",
}
"""In the order in which they are shown; what has no name here comes after them."""


def curves_that_fit(curves: Sequence[Curves], *, most: int) -> tuple[list[dict[str, Any]], int]:
    """(runs, how many are left out). The first runs of every experiment come before further ones of the same."""
    seen: dict[int, int] = {}
    rank = []
    for place, one in enumerate(curves):
        seen[one.experiment] = seen.get(one.experiment, 0) + 1
        rank.append((one.experiment != 0, seen[one.experiment], place))
    room, taken = most, {}
    for _, _, place in sorted(rank):
        packed = _packed(curves[place])
        size = len(json.dumps(packed, separators=(",", ":")))
        if size > room:
            break
        room -= size
        taken[place] = packed
    return [taken[place] for place in sorted(taken)], len(curves) - len(taken)


def _packed(one: Curves) -> dict[str, Any]:
    seed = "" if one.seed is None else f", seed {one.seed}"
    name = f"{one.run} (baseline{seed})" if one.experiment == 0 else f"{one.run} (#{one.experiment} {one.arm}{seed})"
    return {
        "run": one_line(name)[:120],
        "experiment": one.experiment,
        "cycles": _series(one.cycles, "cycle"),
        "seconds": _series(one.seconds, "t"),
    }


def _series(columns: Mapping[str, Sequence[float | None]], over: str) -> dict[str, Any]:
    """x, and (title, values) in the order of `NAMES`; what was never measured is left out."""
    order = {name: place for place, name in enumerate(NAMES)}
    names = sorted((name for name in columns if name != over), key=lambda name: order.get(name, len(order)))
    series = [[NAMES.get(name) or one_line(name)[:60], [_rounded(value) for value in columns[name]]] for name in names]
    known = [pair for pair in series if any(value is not None for value in pair[1])]
    return {"x": [_rounded(value) for value in columns.get(over, ())], "series": known}


def _rounded(value: float | None) -> float | int | None:
    known = finite(value)
    if known is None:
        return None
    short = float(f"{known:.4g}") if abs(known) < 10_000 else round(known)
    return int(short) if short == int(short) else short
