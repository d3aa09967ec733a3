"""How the constants of `agent/campaign/rules.py` were chosen: the present ones, each of them changed alone, and random
draws of all, and the share of the gains that are there to be had which nights under each deliver.

    python tests/benchmarks/tune_rules.py --draws 20 --nights 100 --out FILE

The mixes, the worlds and the numbers of the nights are others than those that docs/verdicts.md reports. Whatever is in
FILE is not simulated again. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
from pathlib import Path
from typing import Any

from agent.campaign.rules import Rules
from agent.simulate.mixes import Mix, detectable_of
from agent.simulate.nights import Plan, simulate, sum_up
from agent.simulate.world import World

POSITIVE_PART = 0.399
"""Mean of a standard normal variable where its negative values count 0."""
FIRST_NIGHT = 900_000
NOISE = (0.5, 2.0)
MIXES = (
    Mix("few", "", planted=4, harmful=1 / 3, runs=100.0),
    Mix("harmful", "", planted=4, harmful=0.5, runs=100.0),
    Mix("together", "", planted=2, followers=2, pairs=1, harmful=1 / 3, runs=100.0),
    Mix("stairs", "", planted=2, followers=4, harmful=1 / 3, runs=60.0),
    Mix("slopes", "", ideas=45, quantities=4, gain=2.0, harmful=0.3, runs=70.0),
    Mix("short", "", planted=4, harmful=1 / 3, runs=30.0),
    Mix("harmless", "", planted=4, runs=100.0),
    Mix("small", "", small=0.35, runs=100.0),
)
CHOICES: dict[str, list[Any]] = {
    "filter_alpha": [0.15, 0.2, 0.25, 0.3],
    "lead_alpha": [0.25, 0.4, 0.5],
    "looks": [
        ((2, 0.4), (3, 0.2), (5, 0.4)),
        ((2, 0.3), (3, 0.3), (4, 0.4)),
        ((2, 0.25), (4, 0.75)),
        ((2, 0.2), (3, 0.3), (5, 0.5)),
        ((2, 0.5), (4, 0.5)),
        ((2, 0.3), (4, 0.3), (6, 0.4)),
        ((2, 0.2), (3, 0.2), (5, 0.3), (8, 0.3)),
        ((2, 0.15), (3, 0.2), (5, 0.3), (8, 0.35)),
        ((2, 0.2), (4, 0.3), (8, 0.5)),
    ],
    "hold_p": [0.25, 0.35, 0.45],
    "go_on_p": [0.1, 0.15, 0.25, 0.35],
    "alone_runs": [40.0, 60.0, 120.0, 200.0],
    "clear_p": [0.0, 0.01, 0.02, 0.05, 0.1],
    "clear_left": [2.0, 4.0, 8.0],
    "round": [9, 14, 20, 30],
    "lead_left": [6.0, 10.0, 14.0],
    "together_p": [(0.2,), (0.2, 0.5), (0.35, 0.7), (0.2, 0.5, 0.8), (0.5,), (0.35,)],
    "batch": [9, 12, 16],
    "survivors": [0.12, 0.16, 0.2, 0.25, 1 / 3],
    "screen_way": [0.5, 0.6, 0.7],
    "scarce": [1.0, 1.5, 2.0],
    "least_share": [0.05, 0.08, 0.12, 0.2],
    "most_share": [0.4, 0.6],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    known = {}
    if options.out.exists():
        known = {row["rules"]: row for row in map(json.loads, options.out.read_text().splitlines())}
    rng = random.Random(options.seed)
    draws = [
        Rules(),
        *(dataclasses.replace(Rules(), **{key: one}) for key, some in CHOICES.items() for one in some),
        *(Rules(**{key: rng.choice(some) for key, some in CHOICES.items()}) for _ in range(options.draws)),
    ]
    for rules in draws:
        name = repr(rules)
        if name not in known:
            known[name] = {"rules": name, "nights": options.nights, **evaluate(rules, options.nights)}
            with options.out.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
            print(f"{known[name]['mean']:.3f} false {known[name]['false']:.3f} {name}", flush=True)
    for row in sorted(known.values(), key=lambda row: -row["mean"])[:10]:
        print(f"{row['mean']:.3f} false {row['false']:.3f} {row['rules']}")


def evaluate(rules: Rules, nights: int) -> dict[str, float]:
    """Mean share of the planted gains that is delivered, the share by mix and noise, and the worst share of nights with
    a false keep. Planted gains have the same size under all rules: that of the default ones."""
    shares: dict[str, float] = {}
    false = 0.0
    for noise in NOISE:
        plain = World(prompts=200, base=0.33, difficulty=1.7)
        world = dataclasses.replace(plain, run_noise=noise * plain.evaluation_noise)
        for mix in MIXES:
            size = mix.gain * detectable_of(world, Rules(), to_come=mix.to_come(Rules()))
            sized = dataclasses.replace(mix, gain=size / detectable_of(world, rules, to_come=mix.to_come(rules)))
            plan = Plan(sized, world, "ours", rules)
            result = sum_up(plan, simulate(plan, nights, seed=FIRST_NIGHT))
            planted = size / world.total_noise * (mix.planted + mix.followers + mix.pairs + mix.quantities)
            most = planted + mix.ideas * mix.small * POSITIVE_PART
            shares[f"{mix.name} {noise:g}"] = result.gain / most
            false = max(false, result.false_share)
    return {"mean": statistics.fmean(shares.values()), "false": false, **shares}


if __name__ == "__main__":
    main()
