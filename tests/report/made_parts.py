"""How the nights of `made_nights` are made: numbers drawn from a seed, in words like those of a campaign."""

from __future__ import annotations

import random

from agent.report.night import (
    Arm,
    Card,
    Crash,
    Estimate,
    Gain,
    NearMiss,
    Next,
    Night,
    Noise,
    RuledOut,
    Step,
    TimeSlice,
)
from tests.report.made_evidence import curves as curves_of
from tests.report.made_evidence import diff, samples, story

AT = 1_795_759_200.0
"""When the made nights began."""
NOISE = (
    "Two runs of one recipe differ by 0.8pp (standard deviation, 11 df); a confirmation finds a gain of +1.9pp in four "
    "of five cases. More confirm prompts would see finer."
)
OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 11.25 GiB. GPU 0 has a total capacity of 96.00 GiB "
    "of which 3.10 GiB is free."
)
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


def made_night(
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
        verdict = f"#{winner.number} improves {100 * gained:+.1f}pp over the baseline on fresh prompts and seeds"
        verdict += ", and the holdout shows it again."
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
        noise=Noise(
            0.0081,
            11,
            0.019,
            NOISE,
        ),
        counts=counts | {kind: number for kind, number in kinds.items() if number},
        time=tuple(
            TimeSlice(what, hours * 3600 * 0.985 * share)
            for what, share in (
                ("train", 0.46),
                ("evaluate", 0.09),
                ("start-up", 0.07),
                ("confirm", 0.21),
                ("calibrate", 0.08),
                ("holdout", 0.03),
                ("crashed", 0.04),
                ("idle", 0.02),
            )
        ),
        steps=tuple(steps),
        cards=tuple(Card(story(draw, by_number[number], name, sign), diff(by_number[number])) for number in shown),
        near_misses=tuple(
            NearMiss(
                n,
                by_number[n].title,
                Estimate(0.013, -0.004, 0.03),
                6 if n % 2 else None,
                5200.0 if n % 2 else None,
                "Six further seeds for each arm would probably settle it."
                if n % 2
                else "No affordable number of seeds would settle it.",
            )
            for n in near
        ),
        crashes=tuple(
            Crash(
                n,
                by_number[n].title,
                by_number[n].crash_class or "oom",
                OUT_OF_MEMORY,
                ("learner.microbatch_tokens 16384 -> 8192, accumulation doubled", "rollout.slots 512 -> 256"),
                "keep learner.microbatch_tokens at or below 8192 on this machine",
            )
            for n in crashes
        ),
        limits=("learner.microbatch_tokens below 16384: 16384 did not fit beside 512 slots (#9)",) if crashes else (),
        shared_layer=("backend.attention is sdpa for all later runs: flex faults the GPU (#20)",)
        if len(crashes) > 1
        else (),
        ruled_out=tuple(
            RuledOut(step.number, step.title, step.delta.high or 0.0)
            for step in discarded
            if step.delta and step.kind != "lead"
        )[:40],
        next=tuple(
            Next(
                f"{axis}: {title}",
                "the symptom learning_too_slow (loss falls to the last cycle) asks for it; two neighbours gained",
                round(0.62 - 0.09 * place, 2),
                940.0,
            )
            for place, (axis, _, title, _) in enumerate(IDEAS[:5])
        ),
        next_note="Ranked by expected gain for each hour; scores of different nights do not compare.",
        samples=tuple(samples()),
        samples_of="holdout, baseline seed 1 against winner seed 17100",
        curves=tuple(curves_of(draw, steps)) if curves else (),
        curves_left_out=0,
        reproduce=(
            ("raft-agent finalize", "puts the kept ideas on one clean branch, a commit for each"),
            (f"raft-agent train --best --campaign {name} --budget 6h", "trains the winner for longer"),
            (f"git log --notes=raft raft/{name}/best", "tells the story commit by commit"),
        ),
        warnings=(),
    )


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
        low, high = 100 * effect - 1.7, 100 * effect + 1.7
        reason = f"{kind}: {100 * effect:+.1f}pp [{low:+.1f}pp, {high:+.1f}pp] on search, not worth a confirmation"
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
    return steps


def _arm(name: str, number: int | None, value: float) -> Arm:
    splits = (("search", 0.004), ("confirm", -0.003), ("holdout", 0.006))
    return Arm(name, number, {s: Estimate(value + d, value + d - 0.016, value + d + 0.016) for s, d in splits})
