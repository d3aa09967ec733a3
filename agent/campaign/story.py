"""Everything that the verdict on one idea rests on, gathered for people from the journal.

The journal suffices: nothing here needs a run's folder. Journals of earlier versions tell less, and then less is shown.
The rule that decided: `decided.py`. What it looks like on a screen: `agent.report.evidence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from agent.campaign.comparison import Comparison
from agent.campaign.decided import comparison_from, direction_of, look_words, measured_by, metric_of, rule_that_decided
from agent.campaign.direction import as_measured
from agent.campaign.headline import holdout_words, kept_in
from agent.campaign.levels import Used, left
from agent.campaign.rules import Rules
from agent.campaign.stairs import key_of
from agent.campaign.stopping import HOPELESS, PAUSED
from agent.ledger.journal import CampaignState, Experiment, Run
from agent.recipe.change import describe_moves
from agent.report.numbers import Numbers
from agent.report.story import GuardLine, Paired, RunLine, Story

ARMS = {
    ("baseline", None): "baseline",
    ("baseline", "untrained"): "untrained",
    ("experiment", "candidate"): "search",
    ("experiment", "probe"): "probe",
    ("confirm", "candidate"): "confirm",
    ("confirm", "incumbent"): "incumbent",
    ("confirm", "comparator"): "comparator",
    ("confirm", "again"): "again",
}
"""Role and arm of a run in the journal -> what it is called on the screen."""


def tell(
    state: CampaignState,
    number: int,
    *,
    known: Mapping[str, Sequence[Run]] | None = None,
    levels: Mapping[int, tuple[float | None, float | None]] | None = None,
) -> Story:
    """Of an idea that the journal knows. `known`: `runs_by_key`, and `levels`: `levels_by_idea`, for whoever asks for
    many."""
    experiment = state.experiments[number]
    planned, judged = experiment.planned, experiment.judged
    numbers = judged.numbers if judged else {}
    used, rest = (levels_by_idea(state, {number}) if levels is None else levels).get(number, (None, None))
    branch = experiment.committed.branch if experiment.committed else None
    write = Numbers(metric_of(state, experiment))
    minimize = direction_of(numbers) == "minimize"
    return Story(
        number=number,
        campaign=state.campaign or "",
        title=planned.subject if planned else "",
        outcome=judged.outcome if judged else "open",
        kind=str(numbers.get("kind") or ""),
        reason=judged.reason if judged else _where_it_stands(experiment),
        rule=rule_that_decided(experiment, numbers, write=write) if judged else "",
        metric=write.metric,
        why=tuple(_why(state, experiment)),
        runs=tuple(_runs(state, experiment, known or runs_by_key(state))),
        paired=tuple(_paired(numbers, _name_of(state, _base_of(experiment)), minimize=minimize)),
        level=used,
        level_left=rest,
        alpha=measured_by(numbers).get("alpha") or Rules().alpha,
        looks=tuple(look_words(look, write=write) for look in numbers.get("looks") or ()),
        guards=tuple(_guards(numbers)),
        flags=tuple(numbers.get("flags") or ()),
        watches=tuple(_watches(experiment)),
        fixes=tuple(_fixes(experiment)),
        crash=tuple(_crash(experiment)),
        holdout=_in_the_end(state, experiment),
        commit=experiment.commit,
        branch=branch,
        minimize=minimize,
    )


def _in_the_end(state: CampaignState, experiment: Experiment) -> str:
    """What the holdout said of the winner."""
    number = experiment.number
    if not number or state.result.get("winner") != number:
        return ""
    numbers = Numbers(metric_of(state, experiment))
    return holdout_words(state.result.get("holdout") or {}, winner=number, kept=kept_in(state), numbers=numbers)


def _where_it_stands(experiment: Experiment) -> str:
    interrupted = f"; interrupted before: {experiment.interruptions[-1].reason}" if experiment.interruptions else ""
    return f"{experiment.status}, without an outcome so far{interrupted}"


def levels_by_idea(state: CampaignState, wanted: Collection[int]) -> dict[int, tuple[float, float]]:
    """The level of each confirmation of the wanted ones, and what the campaign had left after it."""
    used: list[Used] = []
    found: dict[int, tuple[float, float]] = {}
    for one in state.judged_order:
        judged = state.experiments[one].judged
        level = judged.numbers.get("level") if judged else None
        if judged is not None and level is not None:
            used.append(Used(float(level), judged.outcome == "keep"))
            if one in wanted:
                alpha = measured_by(judged.numbers).get("alpha") or Rules().alpha
                found[one] = level, left(Rules(alpha=alpha), used)
    return found


# --- why it was tried --------------------------------------------------------------------------------------


def _why(state: CampaignState, experiment: Experiment) -> Iterator[tuple[str, str]]:
    planned = experiment.planned
    if planned is None or not experiment.number:
        return
    known = planned.model_extra or {}
    if planned.changes:
        yield "change", describe_moves({key: (move[0], move[1]) for key, move in planned.changes.items()})
    incumbent = state.experiments.get(planned.incumbent or 0)
    if planned.incumbent and incumbent is not None and incumbent.planned is not None:
        yield "of", f"#{planned.incumbent} {incumbent.planned.subject}"
    if planned.symptom:
        yield "symptom", f"{planned.symptom}: {known.get('evidence') or 'no numbers recorded'}"
    claim = known.get("claim") or " ".join(planned.body.split())
    if claim:
        yield "claim", claim
    if known.get("why"):
        yield "ranked", "; ".join(reason.rstrip(".") for reason in known["why"])


# --- runs --------------------------------------------------------------------------------------------------


def runs_by_key(state: CampaignState) -> dict[str, list[Run]]:
    """The starts of each run, in the order of time."""
    by_key: dict[str, list[Run]] = {}
    for run in state.runs.values():
        by_key.setdefault(key_of(run), []).append(run)
    return by_key


def _runs(state: CampaignState, experiment: Experiment, by_key: Mapping[str, Sequence[Run]]) -> list[RunLine]:
    """The idea's own runs, and those that it was compared with."""

    aside = _set_aside(state)

    def line_of(run: Run, arm: str | None) -> RunLine:
        told, why = _run_line(state, run, arm), aside.get(run.id) or aside.get(key_of(run))
        return dataclasses.replace(told, state="set aside", reason=why) if why else told

    def beside(keys: Sequence[str], arm: str) -> list[RunLine]:
        return [line_of(by_key[key][-1], arm) for key in keys if key in by_key]

    judged = experiment.judged
    told = dict(judged.numbers.get("runs") or {}) if judged else {}
    if not experiment.number:
        first = beside(["untrained-search"], "untrained")
    else:
        base = _base_of(experiment)
        first = beside(search_runs(state, base), _name_of(state, base) if base else "baseline")
    own = [line_of(run, None) for run in experiment.runs]
    confirmed = beside(list(told.get("incumbent") or ()), "incumbent")
    known = {line.run for line in [*first, *own]}
    # a kept incumbent's confirming runs stand on the search split and on the confirm split
    both = {line.run: line for line in confirmed if line.run in known}
    lines = [*(both.get(line.run, line) for line in first), *own]
    return [*lines, *(line for line in confirmed if line.run not in known)]


def _set_aside(state: CampaignState) -> dict[str, str]:
    """Why what was measured counts for nothing: by the id of a run whose files were changed, by the key of one that was
    tainted or too weak."""
    found = {}
    for note in state.notes:
        known = note.model_extra or {}
        for name in ("void", "set_aside"):
            if name in known:
                found[str(known[name])] = str(known.get("why") or note.text)
    return found


def _base_of(experiment: Experiment) -> int:
    """The experiment whose recipe it changes."""
    return (experiment.planned.incumbent if experiment.planned else None) or 0


def _name_of(state: CampaignState, number: int) -> str:
    """`lead` for a recipe that was built on unconfirmed."""
    known = state.experiments.get(number)
    leads = known is not None and known.judged is not None and known.judged.numbers.get("kind") == "lead"
    return "lead" if leads else "incumbent"


def search_runs(state: CampaignState, incumbent: int) -> list[str]:
    """Keys of the runs that stood for a recipe on the search split."""
    experiment = state.experiments.get(incumbent)
    if experiment is None:
        return []
    told = dict(experiment.judged.numbers.get("runs") or {}) if experiment.judged else {}
    keys = list(told.get("candidate") or ())
    return keys or [key_of(run) for run in experiment.runs if run.finished and run.finished.summary is not None]


def _run_line(state: CampaignState, run: Run, arm: str | None) -> RunLine:
    words, ended = run.words, run.finished
    summary = (ended.summary if ended else None) or {}
    known = (ended.model_extra or {}) if ended else {}
    if arm is None and words is not None:
        arm = ARMS.get((words.role, words.arm), words.arm or words.role)
        if arm == "search" and words.rung == "screen":
            arm = "screen"
    state_word, reason = _how_it_ended(state, run)
    trained = summary.get("ended_by") != "evaluated"
    return RunLine(
        run=run.id,
        arm=arm or "",
        seed=words.seed if words else None,
        metrics=dict(summary.get("metrics") or {}),
        steps=summary.get("optimizer_steps") if trained else None,
        kept=summary.get("kept") if trained else None,
        tokens_per_s=summary.get("tokens_per_s"),
        memory_gb=summary.get("peak_memory_gb") or _in_gb(known.get("peak_rss_gb")),
        seconds=ended.elapsed_s if ended else None,
        state=state_word,
        reason=reason,
    )


def _in_gb(gib: float | None) -> float | None:
    """As a trainer tells its peak: 10^9 bytes."""
    return gib * 2**30 / 1e9 if gib is not None else None


def _how_it_ended(state: CampaignState, run: Run) -> tuple[str, str]:
    """In a word, and in the journal's own."""
    ended = run.finished
    if ended is None:
        return run.status, ""
    diagnosis = (ended.model_extra or {}).get("diagnosis")
    if diagnosis:
        return str(diagnosis.get("crash_class")), str(diagnosis.get("reason"))
    if ended.ended_by == "stop":
        for begins, word in ((PAUSED, "paused"), (HOPELESS, "given up")):
            if ended.reason.startswith(begins):
                return word, ended.reason
        return "stopped", ended.reason
    return ("done" if ended.summary is not None else ended.ended_by), ended.reason


# --- comparisons -------------------------------------------------------------------------------------------


def _paired(numbers: Mapping[str, Any], base: str, *, minimize: bool) -> Iterator[Paired]:
    """`base`: what the search runs were compared with, in a word."""
    search, basis = comparison_from(numbers.get("search")), comparison_from(numbers.get("basis"))
    kind = numbers.get("kind")
    if kind == "baseline" and basis is not None:
        yield _paired_line(basis, "search", "untrained model", minimize=minimize)
        return
    if kind == "screened" and basis is not None:
        yield _paired_line(basis, "search", f"{base} so far", minimize=minimize)
        return
    if search is not None:
        yield _paired_line(search, "search", base, minimize=minimize)
    elif basis is not None:
        yield _paired_line(basis, "search, so far", base, minimize=minimize)
    if basis is not None and search is not None and basis != search:
        yield _paired_line(basis, "confirm", "incumbent", minimize=minimize)
    comparator = comparison_from(numbers.get("comparator"))
    if comparator is not None:
        yield _paired_line(comparator, "confirm", "constant rate", minimize=minimize)


def _paired_line(found: Comparison, split: str, against: str, *, minimize: bool) -> Paired:
    low, high = found.interval
    return Paired(
        split=split,
        against=against,
        prompts=found.prompts,
        better=found.better,
        worse=found.worse,
        equal=found.prompts - found.better - found.worse,
        seeds_candidate=found.seeds_candidate,
        seeds_incumbent=found.seeds_incumbent,
        candidate=as_measured(found.candidate, minimize=minimize),
        incumbent=as_measured(found.incumbent, minimize=minimize),
        delta=found.delta,
        low=low,
        high=high,
        p_value=found.p_value,
        error=found.standard_error,
        pair_error=found.pair_error,
        run_error=found.run_error,
        df=found.df,
        sigma_run=found.noise.sigma if found.noise else None,
        noise_df=found.noise.df if found.noise else None,
    )


# --- what else was looked at -------------------------------------------------------------------------------


def _guards(numbers: Mapping[str, Any]) -> Iterator[GuardLine]:
    """With numbers; of an old journal only those that were broken, in words."""
    readings = numbers.get("guard_readings")
    if readings is None:
        for name, words in (numbers.get("guards") or {}).items():
            yield GuardLine(name, None, None, "", "", words)
        return
    names = {field.name for field in dataclasses.fields(GuardLine)}
    for reading in readings:
        yield GuardLine(**{name: reading.get(name) for name in names})


def _watches(experiment: Experiment) -> Iterator[str]:
    judged = experiment.judged
    if judged is None:
        return
    told = judged.numbers.get("watches")
    if told is not None:
        yield from (f"{one['watch']}: {one['text']}" for one in told)
        return
    lines = (judged.note or "").splitlines()
    yield from (line.removeprefix("watch ") for line in lines if line.startswith("watch "))


def _fixes(experiment: Experiment) -> Iterator[str]:
    for _, fix in sorted(experiment.fixes.items()):
        commit = f" ({fix.commit[:12]})" if fix.commit else ""
        yield f"{(fix.subject or fix.why).removeprefix('fix ')}{commit}"


def _crash(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Of the last run that died, by what triage wrote into the journal; older journals tell less."""
    own = [run for run in experiment.runs if run.words is None or run.words.arm != "probe"]
    ended = [run.finished.model_extra or {} for run in own if run.finished]
    told = next((one["diagnosis"] for one in reversed(ended) if one.get("diagnosis")), None)
    if told is None:
        return
    place = f"line {told['line']} of its log" if told.get("line") else told.get("source", "")
    yield "died of", f"{told['evidence']} ({place})" if place else str(told["evidence"])
    sure = f", confidence {told['confidence']:.0%}" if told.get("confidence") is not None else ""
    yield "class", f"{told['crash_class']} ({told.get('signature') or 'unnamed'}){sure}"
    if told.get("suspects"):
        yield "suspect", ", ".join(told["suspects"])
    if told.get("remedy"):
        yield "to do", told["remedy"]
