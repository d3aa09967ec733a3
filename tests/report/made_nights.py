"""Nights made by code, good and bad, for the tests of the page and for looking at it. Nothing here was measured."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

from agent.report.evidence import GuardLine, Paired, RunLine, Story
from agent.report.night import (
    Arm,
    Card,
    Crash,
    Curves,
    Estimate,
    Gain,
    NearMiss,
    Next,
    Night,
    Noise,
    RuledOut,
    Shown,
    Step,
    TimeSlice,
)

AT = 1_795_759_200.0
"""When the made nights began."""
IDEAS = (
    ("learning-rate", "lr-peak", "learning rate, 0.0001 -> 0.0002", "learner.learning_rate 0.0001 -> 0.0002"),
    ("batch", "more-samples", "more samples for each prompt, 8 -> 16", "rollout.samples_per_prompt 8 -> 16"),
    ("exploration", "temperature", "sampling temperature, 1.0 -> 1.2", "rollout.temperature 1.0 -> 1.2"),
    ("reward", "length-penalty", "penalty for long answers, 0 -> 0.1", "task.reward.length_penalty 0 -> 0.1"),
    ("prompt", "answer-schema", "answer schema, none -> boxed", "prompt.answer none -> boxed"),
    ("synchronous", "epochs", "epochs per cycle, 1 -> 2", "learner.epochs_per_cycle 1 -> 2"),
    ("backend", "attention", "attention, sdpa -> flex", "backend.attention sdpa -> flex"),
    ("batch", "micro", "microbatch, 4096 -> 16384 tokens", "learner.microbatch_tokens 4096 -> 16384"),
)
HOSTILE = (
    "<script>window.pwned=1;document.title='pwned'</script></script><script>window.pwned=2</script>"
    '<img src=x onerror="window.pwned=3"> <a href="javascript:window.pwned=4">x</a> " \' onmouseover=window.pwned=5 '
    "<!--<script> ]]> &lt; &#60; {{ 7*7 }} {% raw %} ${window.pwned=6} `</style><style>body{display:none}` "
    "\x1b[31mred\x1b]0;pwned\x07 \u202edesrever\u202c \x00 \u2028 \u2029 \ud800 \U0001f600"
)
LONG = "x" * 100_000


def good() -> Night:
    """Eight hours, 24 ideas, two confirmed, two crashes, two near-misses."""
    return _night("good", ideas=24, keeps=(6, 17), leads=(4,), crashes=(9, 20), near=(11, 15))


def no_keeps() -> Night:
    night = _night("nothing", ideas=18, keeps=(), crashes=(7,), near=(5,))
    verdict = (
        "No confirmed improvement: of 18 ideas none could be shown to gain; 12 effects above +1.5pp are ruled out."
    )
    return dataclasses.replace(night, verdict=verdict)


def only_crashes() -> Night:
    night = _night("broken", ideas=5, keeps=(), crashes=(1, 2, 3, 4, 5))
    verdict = (
        "No confirmed improvement: all 5 ideas crashed (4 oom, 1 backend), so the night proves nothing about them."
    )
    reason = "stopped: the same fault met every run since #1"
    return dataclasses.replace(night, verdict=verdict, ruled_out=(), stopped=reason, samples=(), samples_of="")


def interrupted() -> Night:
    """Cut short in the calibration: there is no baseline yet."""
    night = _night("cut-short", ideas=0, keeps=())
    return dataclasses.replace(
        night,
        state="killed",
        verdict="Nothing is measured yet: the campaign ended in the calibration, before there was a baseline.",
        consumed_s=412.0,
        stopped="its process is gone; `raft-agent resume` goes on",
        arms=night.arms[:1],
        gains=(),
        noise=Noise(None, None, None, "The run noise is not known yet: it takes the baseline's seeds."),
        counts={"ideas": 0},
        time=(TimeSlice("start-up", 31.0), TimeSlice("calibrate", 381.0)),
        steps=(),
        ruled_out=(),
        next=(),
        next_note="There is no ranking before there is a baseline.",
        samples=(),
        samples_of="",
        curves=(),
        warnings=("the last line of the journal was torn and is passed over",),
    )


def running() -> Night:
    night = _night("tonight", ideas=9, keeps=(6,), leads=(4,), open_=(9,))
    return dataclasses.replace(
        night,
        state="running",
        verdict="One improvement is confirmed so far (#6, +3.0pp on confirm); the holdout is still to come.",
        stopped="",
        arms=tuple(dataclasses.replace(arm, metrics={s: e for s, e in arm.metrics.items() if s != "holdout"}) for arm in night.arms),
        gains=tuple(gain for gain in night.gains if gain.split != "holdout"),
    )  # fmt: skip


def leading() -> Night:
    """As short nights are: leads all the way, one keep at the end."""
    return _night("ten-minutes", ideas=30, keeps=(30,), leads=(3, 8, 12, 19), near=(25,), hours=0.17)


def many(*, curves: bool = True) -> Night:
    """500 experiments, each with curves."""
    return _night("long", curves=curves, ideas=500, keeps=(12, 60, 170, 333), leads=(5, 41, 90, 250), crashes=tuple(range(25, 500, 50)), near=(77, 140, 290), hours=60.0)  # fmt: skip


def minimised() -> Night:
    """Smaller is better: everything falls."""
    night = _night("errors", ideas=20, keeps=(5, 13), crashes=(8,), near=(10,), minimize=True)
    return dataclasses.replace(night, metric="mean_reward", minimize=True)


def hostile(*, everywhere: bool = False) -> Night:
    """Text that would like to be more in every field; with `everywhere` also in words that the page goes by."""
    night = _night("x", ideas=12, keeps=(4, 9), leads=(2,), crashes=(6,), near=(7,))
    kept = set() if everywhere else {"outcome", "kind", "metric", "split", "state"}
    found: Night = _spoiled(night, kept, everywhere)
    return dataclasses.replace(found, state="finished", warnings=(HOSTILE, LONG, HOSTILE + LONG))


def _spoiled(value: Any, kept: set[str], keys: bool) -> Any:
    if isinstance(value, str):
        return f"{value} {HOSTILE}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value)(
            **{name: each if name in kept else _spoiled(each, kept, keys) for name, each in fields.items()}
        )
    if isinstance(value, dict):
        return {f"{key} {HOSTILE}" if keys else key: _spoiled(each, kept, keys) for key, each in value.items()}
    return tuple(_spoiled(each, kept, keys) for each in value) if isinstance(value, tuple) else value


NIGHTS = {
    "good": good,
    "no-keeps": no_keeps,
    "only-crashes": only_crashes,
    "interrupted": interrupted,
    "running": running,
    "leading": leading,
    "many": many,
    "minimised": minimised,
    "hostile": hostile,
    "hostile-everywhere": lambda: hostile(everywhere=True),
}


# --- how they are made -------------------------------------------------------------------------------------


def _night(
    name: str,
    *,
    ideas: int,
    keeps: tuple[int, ...],
    leads: tuple[int, ...] = (),
    crashes: tuple[int, ...] = (),
    near: tuple[int, ...] = (),
    open_: tuple[int, ...] = (),
    hours: float = 8.0,
    minimize: bool = False,
    curves: bool = True,
) -> Night:
    draw = random.Random(name)
    sign = -1.0 if minimize else 1.0
    steps = _steps(draw, ideas, keeps, leads, crashes, near, open_, hours * 3600 * 0.93, sign)
    by_number = {step.number: step for step in steps}
    winner = by_number[keeps[-1]] if keeps else None
    base = by_number[0].value or 0.0
    discarded = [step for step in steps if step.outcome == "discard"]
    kinds = {
        kind: sum(step.kind == kind for step in discarded) for kind in ("inconclusive", "regressed", "screened", "lead")
    }
    counts = {"ideas": ideas, "keep": len(keeps), "discard": len(discarded), "crash": len(crashes), "open": len(open_)}
    arms = [_arm("untrained", None, base - sign * 0.2), _arm("baseline", 0, base)]
    gains = [
        Gain("baseline", "untrained", split, Estimate(0.2, 0.171, 0.229), 512)
        for split in ("search", "confirm", "holdout")
    ]
    verdict = "No confirmed improvement."
    if winner is not None and winner.best is not None:
        gained = sign * (winner.best - base)
        arms.append(_arm("winner", winner.number, winner.best))
        gains += [
            Gain("winner", "baseline", split, Estimate(g, g - 0.021, g + 0.021), 512)
            for split, g in (("search", gained + 0.012), ("confirm", gained), ("holdout", gained - 0.006))
        ]
        verdict = f"#{winner.number} improves {100 * gained:+.1f}pp over the baseline on fresh prompts and seeds, and the holdout shows it again."
    shown = [*keeps, *crashes[:6], *near]
    return Night(
        campaign=name,
        state="finished",
        verdict=verdict,
        recipe="recipes/qwen2.5-0.5b-gsm8k.yaml",
        model="Qwen/Qwen2.5-0.5B-Instruct",
        task="gsm8k, 7473 questions",
        metric="pass_rate",
        minimize=minimize,
        machine="AMD Ryzen AI Max+ 395, 128 GB unified, gfx1151",
        started_at=AT,
        renewed_at=AT + hours * 3600 + 240,
        budget_s=hours * 3600,
        consumed_s=hours * 3600 * 0.985,
        stopped="the budget is spent",
        arms=tuple(arms),
        gains=tuple(gains),
        noise=Noise(0.0081, 11, 0.019, "Two runs of one recipe differ by 0.8pp (standard deviation, 11 df); a confirmation finds a gain of +1.9pp in four of five cases. More confirm prompts would see finer."),
        counts=counts | {kind: number for kind, number in kinds.items() if number},
        time=tuple(TimeSlice(what, hours * 3600 * 0.985 * share) for what, share in (("train", 0.46), ("evaluate", 0.09), ("start-up", 0.07), ("confirm", 0.21), ("calibrate", 0.08), ("holdout", 0.03), ("crashed", 0.04), ("idle", 0.02))),
        steps=tuple(steps),
        cards=tuple(Card(_story(draw, by_number[number], name, sign), _diff(by_number[number])) for number in shown),
        near_misses=tuple(
            NearMiss(n, by_number[n].title, Estimate(0.013, -0.004, 0.03), 6 if n % 2 else None, 5200.0 if n % 2 else None, "Six further seeds for each arm would probably settle it." if n % 2 else "No affordable number of seeds would settle it.") for n in near
        ),
        crashes=tuple(
            Crash(n, by_number[n].title, by_number[n].crash_class or "oom", "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 11.25 GiB. GPU 0 has a total capacity of 96.00 GiB of which 3.10 GiB is free.", ("learner.microbatch_tokens 16384 -> 8192, accumulation doubled", "rollout.slots 512 -> 256"), "keep learner.microbatch_tokens at or below 8192 on this machine") for n in crashes
        ),
        limits=("learner.microbatch_tokens below 16384: 16384 did not fit beside 512 slots (#9)",) if crashes else (),
        shared_layer=("backend.attention is sdpa for all later runs: flex faults the GPU (#20)",) if len(crashes) > 1 else (),
        ruled_out=tuple(RuledOut(step.number, step.title, step.delta.high or 0.0) for step in discarded if step.delta and step.kind != "lead")[:40],
        next=tuple(Next(f"{axis}: {title}", "the symptom learning_too_slow (loss falls to the last cycle) asks for it; two neighbours gained", round(0.62 - 0.09 * place, 2), 940.0) for place, (axis, _, title, _) in enumerate(IDEAS[:5])),
        next_note="Ranked by expected gain for each hour; scores of different nights do not compare.",
        samples=tuple(_samples()),
        samples_of="holdout, baseline seed 1 against winner seed 17100",
        curves=tuple(_curves(draw, steps)) if curves else (),
        curves_left_out=0,
        reproduce=(
            ("raft-agent finalize", "puts the kept ideas on one clean branch, a commit for each"),
            (f"raft-agent train --best --campaign {name} --budget 6h", "trains the winner for longer"),
            (f"git log --notes=raft raft/{name}/best", "tells the story commit by commit"),
        ),
        warnings=(),
    )  # fmt: skip


def _steps(
    draw: random.Random,
    ideas: int,
    keeps: tuple[int, ...],
    leads: tuple[int, ...],
    crashes: tuple[int, ...],
    near: tuple[int, ...],
    open_: tuple[int, ...],
    seconds: float,
    sign: float,
) -> list[Step]:
    best = 0.352 if sign > 0 else 0.71
    base = 0
    steps = [
        Step(
            0,
            "baseline",
            "keep",
            "baseline",
            "baseline: 3 seeds at 35.1%, 34.6%, 35.9%",
            "baseline",
            "baseline",
            seconds * 0.08,
            seconds * 0.07,
            best,
            best - 0.012,
            best + 0.012,
            0,
            None,
            best,
            None,
            None,
            "5f" * 20,
        )
    ]
    lead, led = best, 0
    for number in range(1, ideas + 1):
        axis, hypothesis, title, _ = IDEAS[number % len(IDEAS)]
        if number % 11 == 0:
            title += ", with a longer title that says which of the keys belong together and why they were moved at once"
        at, took = seconds * (0.08 + 0.92 * number / max(ideas, 1)), seconds / max(ideas, 1) * draw.uniform(0.7, 1.1)
        effect = draw.gauss(-0.011, 0.013)
        outcome, kind, crash = "discard", "regressed" if effect < -0.018 else "inconclusive", None
        if number in crashes:
            outcome, kind, crash = "crash", "crash", draw.choice(("oom", "oom", "backend", "numeric"))
        elif number in open_:
            outcome, kind = "open", ""
        elif number in keeps:
            outcome, kind, effect = "keep", "gain", max(0.03, sign * (lead - best) + 0.012)
        elif number in leads:
            kind, effect = "lead", max(0.0, sign * (lead - best)) + 0.021
            lead = best + sign * effect
        elif number in near:
            effect = 0.013
        elif number % 13 == 0:
            kind = "screened"
        below = base if outcome == "keep" and not leads else led
        if kind == "lead":
            led = number
        delta = None if crash or outcome == "open" else Estimate(effect, effect - 0.017, effect + 0.017)
        value = None if delta is None else best + sign * effect
        before = best
        if outcome == "keep" and value is not None:
            best, base, led, lead = value, number, number, value
        reason = f"{kind}: {100 * effect:+.1f}pp [{100 * effect - 1.7:+.1f}pp, {100 * effect + 1.7:+.1f}pp] on search, not worth a confirmation"
        if outcome == "keep":
            reason = f"gain {100 * effect:+.1f}pp, confirmed on 512 fresh prompts with 3+3 fresh seeds; level 0.004"
        if crash:
            reason = f"crash: {crash} in the first step, also after 2 fixes"
        if outcome == "open":
            reason = "its search run is under way"
        ends = (None, None) if value is None else (value - 0.017, value + 0.017)
        steps.append(
            Step(
                number,
                f"{axis}: {title}",
                outcome,
                kind,
                reason,
                axis,
                hypothesis,
                None if outcome == "open" else at,
                took,
                value,
                *ends,
                below,
                before,
                best,
                delta,
                crash,
                f"{number:04x}" * 10,
            )
        )
    return steps  # fmt: skip


def _arm(name: str, number: int | None, value: float) -> Arm:
    splits = (("search", 0.004), ("confirm", -0.003), ("holdout", 0.006))
    return Arm(name, number, {s: Estimate(value + d, value + d - 0.016, value + d + 0.016) for s, d in splits})


def _story(draw: random.Random, step: Step, campaign: str, sign: float) -> Story:
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
        why=(("change", "learner.learning_rate 0.0001 -> 0.0002"), ("symptom", "learning_too_slow: the select metric still rises in the last third of the cycles (+2.1pp, 0.9 of its spread)"), ("claim", "The peak rate is off by a factor; a run at another size shows on which side.")),
        runs=tuple(runs),
        paired=tuple(pairs),
        level=None if crashed else 0.004,
        level_left=None if crashed else 0.046,
        alpha=0.05,
        looks=() if crashed else ("2+2 seeds: +2.8pp, p 0.0130, needed 0.0008", "3+3 seeds: +3.0pp, p 0.0021, needed 0.0040"),
        guards=() if crashed else (GuardLine("truncated completions", 0.04, 0.05, "%", "above 50% and twice the incumbent's", ""), GuardLine("mean length", 182.0, 171.0, "tokens", "shrinks or grows fivefold", "")),
        flags=(),
        watches=("diversity: unique share 0.81, was 0.84",),
        fixes=("learner.microbatch_tokens 16384 -> 8192",) if crashed else (),
        crash=(("evidence", "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 11.25 GiB."), ("class", "oom, sure"), ("remedy", "halve the microbatch, double the accumulation")) if crashed else (),
        holdout="+2.4pp [+0.3pp, +4.5pp] on the holdout" if step.outcome == "keep" else "",
        commit=step.commit,
        branch=f"raft/{campaign}/exp/{step.number:03d}-{step.hypothesis}",
    )  # fmt: skip


def _diff(step: Step) -> str:
    return (
        "diff --git a/recipes/main.yaml b/recipes/main.yaml\n--- a/recipes/main.yaml\n+++ b/recipes/main.yaml\n@@ -18,7 +18,7 @@ learner:\n"
        "   algorithm: raft\n-  learning_rate: 1.0e-4  # the usual\n+  learning_rate: 2.0e-4  # the usual\n   epochs_per_cycle: 1\n"
    )  # fmt: skip


def _samples() -> list[Shown]:
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did Natalia sell altogether in April and May?"
    return [
        Shown(question, "Natalia sold 48 + 24 = 70 clips.\n#### 70", False, "In May she sold 48 / 2 = 24 clips.\nAltogether 48 + 24 = 72.\n#### 72", True),
        Shown("What is 17 * 23?", "17 * 23 = 391\n#### 391", True, "17 * 20 = 340, 17 * 3 = 51, so 391.\n#### 391", True),
        Shown("A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total?", "2 + 1 = 3\n#### 3", True, "2 + 0.5 = 2.5\n" + "Let me check this again. " * 30 + "\n#### 2.5", False),
        Shown("كم يساوي ٧ + ٥؟", "", None, "١٢\n#### 12", None),
    ]  # fmt: skip


def _curves(draw: random.Random, steps: list[Step]) -> list[Curves]:
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
