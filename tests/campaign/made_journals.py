"""Journals made by code: campaigns of any length and in any state, with measured comparisons and no training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from agent.campaign.comparison import Comparison, RunNoise, compare, group_noise
from agent.campaign.scores import Scores
from agent.ledger.events import Event, read_event
from agent.ledger.state import CampaignState, fold

RECIPE = """\
model: {source: builtin:tiny}
task: {dataset: "builtin:addition"}
learner: {learning_rate: 5.0e-4}
evaluation: {search_prompts: 200, confirm_prompts: 200, holdout_prompts: 200, samples_per_prompt: 1%s}
budget: {train_seconds: 60}
"""
A_RUN = 100.0
"""Seconds of a run: 80 of training, 10 of evaluation, the rest is its start."""


class MadeJournal:
    """Events as a campaign writes them, on a clock that only runs and pauses cost."""

    def __init__(self, *, seed: int = 0, minimize: bool = False, prompts: int = 200, sigma: float = 0.01) -> None:
        self.random = np.random.default_rng(seed)
        self.minimize, self.prompts, self.sigma = minimize, prompts, sigma
        self.lines: list[dict[str, Any]] = []
        self.used = 0.0
        self.base = 0.5
        self.incumbent = 0
        self.noise: RunNoise | None = None
        self.chance = self.random.uniform(-0.3, 0.3, prompts)

    def tell(self, kind: str, **fields: Any) -> None:
        seq = len(self.lines) + 1
        self.lines.append({"kind": kind, "seq": seq, "time": 1e9 + self.used, "consumed_s": self.used, **fields})

    @property
    def events(self) -> list[Event]:
        found = [read_event(line) for line in self.lines]
        return [event for event in found if event is not None]

    def state(self, *, used: float | None = None) -> CampaignState:
        state = fold(self.events)
        state.consumed_s = max(state.consumed_s, used or self.used)
        return state

    # --- what happens ---------------------------------------------------------------------------------------

    def started(self, budget_s: float | None = 8 * 3600.0) -> MadeJournal:
        recipe = RECIPE % (", direction: minimize" if self.minimize else "")
        self.tell(
            "campaign_started", campaign="night", recipe_path="recipes/test.yaml", recipe=recipe, base_commit="b" * 40,
            budget_s=budget_s, machine={"name": "made", "cores": 2, "memory_gb": 8.0},
        )  # fmt: skip
        self.tell("campaign_branched", commit="c" * 40)
        self.planned(0, "baseline", "baseline")
        return self

    def baseline(self, seeds: int = 3) -> MadeJournal:
        self.run("untrained-search", None, "baseline", "calibrate", "untrained", {"search": 0.2}, seconds=20.0)
        runs = [self.scores(self.base) for _ in range(seeds)]
        for index, one in enumerate(runs):
            self.run(f"baseline-s{index + 1}", 0, "baseline", "calibrate", None, {"search": abs(one.mean)})
        self.noise = group_noise(runs)
        gain = compare(runs, [self.scores(0.2)], self.noise)
        self.tell(
            "calibrated",
            values={
                "metric": "pass_rate", "untrained": 0.2, "baseline": abs(float(np.mean([one.mean for one in runs]))),
                "sigma_run": self.noise.sigma if self.noise else None, "smallest_detectable": 0.03, "seeds": seeds,
            },
        )  # fmt: skip
        keys = [f"baseline-s{index + 1}" for index in range(seeds)]
        self.judged(0, "keep", "baseline", basis=gain, search=keys[:1], candidate=keys)
        return self

    def idea(
        self, kind: str = "inconclusive", *, effect: float = 0.0, axis: str = "learning-rate", confirmed: int = 0,
        title: str = "a change", over_constant: float | None = None, min_effect: float = 0.0, **known: Any,
    ) -> int:  # fmt: skip
        """`confirmed`: seeds of each arm on the confirm split; a `gain` has two at least. `over_constant`: what it
        gains over the same at a constant rate, where that ran too."""
        number = len({line["experiment"] for line in self.lines if line["kind"] == "experiment_planned"})
        self.planned(number, axis, title, **known)
        worth = self.base + (-effect if self.minimize else effect)
        ours, theirs = [self.scores(worth)], [self.scores(self.base) for _ in range(3)]
        key = f"{number:03d}-search-s{number}000"
        self.run(key, number, "experiment", "full", "candidate", {"search": abs(ours[0].mean)})
        on_search = basis = compare(ours, theirs, self.noise)
        confirming: list[str] = []
        constant = None
        if confirmed or kind == "gain":
            seeds = confirmed or 2
            ours, theirs = ([self.scores(value) for _ in range(seeds)] for value in (worth, self.base))
            for index in range(seeds):
                confirming.append(f"{number:03d}-confirm-s{number}10{index}")
                metrics = {"confirm": abs(ours[index].mean), "search": abs(ours[index].mean)}
                self.run(confirming[-1], number, "confirm", "confirm", "candidate", metrics)
                beside = f"{self.incumbent:03d}-incumbent-s{number}50{index}"
                self.run(beside, None, "confirm", "confirm", "incumbent", {"confirm": abs(theirs[index].mean)})
            basis = compare(ours, theirs, self.noise)
            if over_constant is not None:
                beside = [self.scores(worth - over_constant) for _ in range(seeds)]
                constant = compare(ours, beside, self.noise)
        outcome = "keep" if kind in ("gain", "simpler", "cheaper") else "discard"
        self.judged(
            number, outcome, kind, basis=basis, on_search=on_search, constant=constant, search=[key],
            candidate=confirming, min_effect=min_effect,
        )  # fmt: skip
        if kind == "gain":
            self.incumbent, self.base = number, worth
        return number

    def crash(self, crash_class: str = "oom", *, fixes: int = 1, evidence: str = "out of memory", **known: Any) -> int:
        number = len({line["experiment"] for line in self.lines if line["kind"] == "experiment_planned"})
        self.planned(number, known.pop("axis", "batch"), known.pop("title", "a larger batch"), **known)
        diagnosis = {
            "crash_class": crash_class, "reason": "it died", "evidence": evidence, "source": "log", "signature": "made",
            "line": 7, "confidence": 0.9, "remedy": "smaller pieces",
        }  # fmt: skip
        for fix in range(fixes + 1):
            label = f"-f{fix}" if fix else ""
            key = f"{number:03d}-search-s{number}000{label}"
            self.run(key, number, "experiment", "full", "candidate", None, seconds=30.0, diagnosis=diagnosis)
            if fix < fixes:
                told = {"subject": f"fix {crash_class}: half the microbatch", "why": "half the microbatch"}
                self.tell("experiment_fixed", experiment=number, fix=fix + 1, commit="f" * 40, **told)
        self.judged(number, "crash", "crash", crash_class=crash_class)
        return number

    def finished(
        self, *, holdout: dict[str, Any] | None = None, reason: str = "the budget is spent", **also: Any
    ) -> MadeJournal:
        """`also`: more of what the end told, its headline for example."""
        winner = self.incumbent
        told = {"untrained": 0.2, "baseline": 0.5, "prompts": 200} if holdout is None else holdout
        result = {"winner": winner, "holdout": told, "headline": "", **also}
        self.tell("campaign_finished", reason=reason, result=result)
        return self

    # --- lines ----------------------------------------------------------------------------------------------

    def scores(self, mean: float) -> Scores:
        """Of one run: prompts differ, and each answers by its own luck."""
        chance = np.clip(mean + self.chance + self.random.normal(0, self.sigma), 0.0, 1.0)
        values = (self.random.uniform(size=self.prompts) < chance).astype(float)
        return Scores(tuple(f"{place:05d}" for place in range(self.prompts)), values * (-1 if self.minimize else 1))

    def planned(self, number: int, axis: str, title: str, **known: Any) -> None:
        self.tell(
            "experiment_planned", experiment=number, hypothesis=axis, axis=axis, slug=f"idea-{number}", subject=title,
            files={} if not number else {"recipes/test.yaml": f"{RECIPE % ''}# {number}\n"},
            **{
                "changes": {}, "recipe_signature": f"{number:016x}", "incumbent": self.incumbent or None, **known,
            },
        )  # fmt: skip
        branch = f"raft/night/exp/{number:03d}"
        self.tell("experiment_committed", experiment=number, branch=branch, commit=f"{number:040x}")

    def run(
        self, key: str, number: int | None, role: str, rung: str, arm: str | None, metrics: dict[str, float] | None, *,
        seconds: float = A_RUN, ended_by: str = "itself", train_s: float | None = None, **also: Any,
    ) -> None:  # fmt: skip
        words = {
            "run": key, "experiment": number, "role": role, "rung": rung, "arm": arm, "seed": 1,
            "recipe_signature": "", "out": f".raft/runs/night/{key}",
        }  # fmt: skip
        self.tell("run_planned", **words)
        self.used += 1.0
        self.tell("run_started", **words, pid=1, process_started=0.0)
        self.used += seconds
        trained = arm != "untrained" and role != "holdout"
        train_s = 0.8 * seconds if train_s is None else train_s
        summary = {
            "metrics": metrics, "metric": "pass_rate", "train_s": train_s * trained,
            "evaluate_s": 0.1 * seconds, "ended_by": "budget" if trained else "evaluated", "cycles": 5 * trained,
            "tokens_per_s": 1000.0, "seed": 1,
        }  # fmt: skip
        self.tell(
            "run_finished", run=key, ended_by=ended_by, elapsed_s=seconds,
            summary=None if metrics is None else summary, **also,
        )  # fmt: skip
        self.used += 0.5

    def judged(
        self, number: int, outcome: str, kind: str, *, basis: Comparison | None = None,
        on_search: Comparison | None = None, constant: Comparison | None = None, search: list[str] | None = None,
        candidate: list[str] | None = None, min_effect: float = 0.0, **also: Any,
    ) -> None:  # fmt: skip
        plain = dataclasses.asdict(basis) if basis else None
        numbers = {
            "kind": kind, "delta": basis.delta if basis else None, "level": 0.01 if candidate and number else None,
            "basis": plain, "search": dataclasses.asdict(on_search) if on_search else None, "looks": [],
            "comparator": dataclasses.asdict(constant) if constant else None,
            "p_value": basis.p_value if basis else None,
            "runs": {"search": search or [], "candidate": candidate or [], "incumbent": []},
            "measured_by": {
                "metric": "pass_rate", "direction": "minimize" if self.minimize else "maximize",
                "min_effect": min_effect,
            },
        }  # fmt: skip
        row = {"campaign": "night", "index": number, "status": outcome, "metric_name": "pass_rate"}
        self.tell(
            "experiment_judged", experiment=number, outcome=outcome, reason=f"{kind}: made", numbers=numbers, row=row,
            **also,
        )  # fmt: skip
        self.tell("experiment_recorded", experiment=number, commit=f"{number:040x}")


def long_night(ideas: int, *, keeps: int = 10, crash_every: int = 9) -> MadeJournal:
    made = MadeJournal().started(budget_s=1e9).baseline()
    every = max(1, ideas // keeps)
    for place in range(1, ideas + 1):
        if place % crash_every == 0:
            made.crash()
        elif place % every == 0:
            made.idea("gain", effect=0.004, axis=f"axis-{place % 8}")
        else:
            made.idea("inconclusive" if place % 3 else "regressed", effect=0.01, axis=f"axis-{place % 8}")
    return made
