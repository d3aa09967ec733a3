"""Stories, diffs, samples and curves of the nights of `made_nights`."""

from __future__ import annotations

import dataclasses
import math
import random

from agent.report.night import (
    Curves,
    Shown,
    Step,
)
from agent.report.story import GuardLine, Paired, RunLine, Story


def story(draw: random.Random, step: Step, campaign: str, sign: float) -> Story:
    crashed = step.outcome == "crash"
    runs = [
        RunLine(
            f"{step.number:03d}-search-s{step.number}000",
            "search",
            step.number * 1000,
            {"search": step.value or 0.3},
            240,
            3912,
            1840.0,
            61.2,
            702.0,
            "done",
        )
    ]
    effect = step.delta.value if step.delta else 0.0
    if crashed:
        runs = [
            dataclasses.replace(
                runs[0], metrics={}, steps=None, kept=None, tokens_per_s=None, state="oom", reason="HIP out of memory"
            )
        ]
    else:
        runs += [
            RunLine(
                f"{step.number:03d}-{arm}-s{seed}",
                arm,
                seed,
                {"confirm": (step.value or 0.3) - (sign * effect if arm == "incumbent" else 0)},
                240,
                3900 + seed % 17,
                1835.0,
                61.0,
                698.0,
                "done",
            )
            for arm, seed in (("confirm", 4100), ("confirm", 4101), ("incumbent", 500), ("incumbent", 501))
        ]
    pairs = (
        []
        if crashed
        else [
            Paired(
                split,
                "#0 baseline",
                512,
                71,
                48,
                393,
                seeds,
                seeds,
                step.value or 0.3,
                (step.value or 0.3) - sign * effect,
                effect,
                effect - 0.019,
                effect + 0.019,
                0.0021,
                0.0096,
                0.0061,
                0.0074,
                14.2,
                0.0081,
                11,
            )
            for split, seeds in (("search", 1), ("confirm", 3))
        ]
    )
    return Story(
        number=step.number,
        campaign=campaign,
        title=step.title,
        outcome=step.outcome,
        kind=step.kind,
        reason=step.reason,
        rule="gain: p below the level of the look, the measured gain at least evaluation.min_effect, no guard broken",
        metric="pass_rate",
        why=(
            ("change", "learner.learning_rate 0.0001 -> 0.0002"),
            (
                "symptom",
                "learning_too_slow: the select metric still rises in the last third of the cycles (+2.1pp)",
            ),
            ("claim", "The peak rate is off by a factor; a run at another size shows on which side."),
        ),
        runs=tuple(runs),
        paired=tuple(pairs),
        level=None if crashed else 0.004,
        level_left=None if crashed else 0.046,
        alpha=0.05,
        looks=()
        if crashed
        else ("2+2 seeds: +2.8pp, p 0.0130, needed 0.0008", "3+3 seeds: +3.0pp, p 0.0021, needed 0.0040"),
        guards=()
        if crashed
        else (
            GuardLine("truncated completions", 0.04, 0.05, "%", "above 50% and twice the incumbent's", ""),
            GuardLine("mean length", 182.0, 171.0, "tokens", "shrinks or grows fivefold", ""),
        ),
        flags=(),
        watches=("diversity: unique share 0.81, was 0.84",),
        fixes=("learner.microbatch_tokens 16384 -> 8192",) if crashed else (),
        crash=(
            ("evidence", "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 11.25 GiB."),
            ("class", "oom, sure"),
            ("remedy", "halve the microbatch, double the accumulation"),
        )
        if crashed
        else (),
        holdout="+2.4pp [+0.3pp, +4.5pp] on the holdout" if step.outcome == "keep" else "",
        commit=step.commit,
        branch=f"raft/{campaign}/exp/{step.number:03d}-{step.hypothesis}",
    )


def diff(step: Step) -> str:
    return (
        "diff --git a/recipes/main.yaml b/recipes/main.yaml\n--- a/recipes/main.yaml\n+++ b/recipes/main.yaml\n"
        "@@ -18,7 +18,7 @@ learner:\n   algorithm: raft\n-  learning_rate: 1.0e-4  # the usual\n"
        "+  learning_rate: 2.0e-4  # the usual\n   epochs_per_cycle: 1\n"
    )


def samples() -> list[Shown]:
    question = (
        "A baker makes 48 rolls before noon and half as many after it. How many rolls does the baker make that day, "
        "and does it matter to the answer that this line is long enough to be broken on a phone?"
    )
    return [
        Shown(
            question,
            "48 + 24 = 70 rolls.\n#### 70",
            False,
            "After noon 48 / 2 = 24 rolls.\nTogether 48 + 24 = 72.\n#### 72",
            True,
        ),
        Shown(
            "What is 17 * 23?", "17 * 23 = 391\n#### 391", True, "17 * 20 = 340, 17 * 3 = 51, so 391.\n#### 391", True
        ),
        Shown(
            "A rope is 2 m long, another half as long. How long are both?",
            "2 + 1 = 3\n#### 3",
            True,
            "2 + 0.5 = 2.5\n" + "Let me check this again. " * 30 + "\n#### 2.5",
            False,
        ),
        Shown("كم يساوي ٧ + ٥؟", "", None, "١٢\n#### 12", None),
    ]


def curves(draw: random.Random, steps: list[Step]) -> list[Curves]:
    found = []
    for step in steps:
        if step.value is None:
            continue
        for arm, seed in (("search", step.number * 1000), ("confirm", step.number * 1000 + 100))[
            : 2 if step.outcome == "keep" else 1
        ]:
            n = 24
            end = step.value
            rise = [end - 0.2 * math.exp(-i / 7) + draw.gauss(0, 0.006) for i in range(n)]
            cycles: dict[str, list[float | None]] = {
                "cycle": [float(i) for i in range(n)],
                "select": [None if i % 4 else rise[i] for i in range(n)],
                "pass_rate": [value - 0.04 for value in rise],
                "entropy": [0.9 - 0.02 * i + draw.gauss(0, 0.01) for i in range(n)],
                "unique_share": [0.95 - 0.006 * i for i in range(n)],
                "truncation_rate": [0.2 * math.exp(-i / 5) for i in range(n)],
                "reward_mean": [value * 0.9 for value in rise],
                "learning_rate": [None if i == 0 else 2e-4 for i in range(n)],
                "tokens_per_s": [1840 + draw.gauss(0, 20) for _ in range(n)],
                "peak_memory_gb": [min(61.0, 48 + i) for i in range(n)],
                "loss": [None if i == 0 else 0.5 * math.exp(-i / 12) + draw.gauss(0, 0.01) for i in range(n)],
                "grad_norm": [None if i == 0 else 1.2 + draw.gauss(0, 0.1) for i in range(n)],
            }
            m = 60
            seconds: dict[str, list[float | None]] = {
                "t": [12.0 * i for i in range(m)],
                "resident_gb": [min(58.0, 6 + 4 * i) for i in range(m)],
                "power_w": [96 + draw.gauss(0, 7) for _ in range(m)],
                "temperature_c": [52 + 16 * (1 - math.exp(-i / 9)) for i in range(m)],
                "busy_percent": [100 * draw.betavariate(9, 1) for _ in range(m)],
            }
            found.append(Curves(f"{step.number:03d}-{arm}-s{seed}", step.number, arm, seed, cycles, seconds))
    return found
