"""Everything that the verdict on one idea rests on, gathered for people from the journal.

The journal suffices: nothing here needs a run's folder but the single prompts. Journals of earlier versions tell less,
and then less is shown. What it looks like on a screen: `agent.report.evidence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.campaign.comparison import Comparison, RunNoise
from agent.campaign.levels import Used, left
from agent.campaign.rules import Rules
from agent.campaign.runs import HOPELESS, PAUSED
from agent.campaign.scores import Scores, scores_of, table
from agent.contract import EvalRow
from agent.ledger.journal import CampaignState, Experiment, Run
from agent.recipe.change import describe_moves
from agent.recipe.schema import Evaluation
from agent.report.evidence import GuardLine, Paired, PromptLine, RunLine, Story
from agent.report.words import points
from agent.run.telemetry import read_run

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


def tell(state: CampaignState, number: int) -> Story:
    """Of an idea that the journal knows."""
    experiment = state.experiments[number]
    planned, judged = experiment.planned, experiment.judged
    numbers = judged.numbers if judged else {}
    used, rest = _levels(state, number)
    branch = experiment.committed.branch if experiment.committed else None
    return Story(
        number=number,
        campaign=state.campaign or "",
        title=planned.subject if planned else "",
        outcome=judged.outcome if judged else "open",
        kind=str(numbers.get("kind") or ""),
        reason=judged.reason if judged else _where_it_stands(experiment),
        rule=_rule(experiment, numbers) if judged else "",
        metric=_metric(state, experiment),
        why=tuple(_why(state, experiment)),
        runs=tuple(_runs(state, experiment)),
        paired=tuple(_paired(numbers, _name_of(state, _base_of(experiment)))),
        level=used,
        level_left=rest,
        alpha=_measured_by(numbers).get("alpha") or Rules().alpha,
        looks=tuple(_look_words(look) for look in numbers.get("looks") or ()),
        guards=tuple(_guards(numbers)),
        flags=tuple(numbers.get("flags") or ()),
        watches=tuple(_watches(experiment)),
        fixes=tuple(_fixes(experiment)),
        holdout=str(state.result.get("headline") or "") if number and state.result.get("winner") == number else "",
        commit=experiment.commit,
        branch=branch,
        minimize=_direction(numbers) == "minimize",
    )


def _measured_by(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return dict(numbers.get("measured_by") or {})


def _metric(state: CampaignState, experiment: Experiment) -> str:
    row = experiment.judged.row if experiment.judged else {}
    return str(row.get("metric_name") or state.calibration.get("metric") or "metric")


def _direction(numbers: Mapping[str, Any]) -> str:
    """Metrics that are to fall are compared with their sign turned."""
    turned = ((numbers.get("basis") or {}).get("candidate") or 0.0) < 0
    return str(_measured_by(numbers).get("direction") or ("minimize" if turned else "maximize"))


def _where_it_stands(experiment: Experiment) -> str:
    interrupted = f"; interrupted before: {experiment.interruptions[-1].reason}" if experiment.interruptions else ""
    return f"{experiment.status}, without an outcome so far{interrupted}"


def _levels(state: CampaignState, number: int) -> tuple[float | None, float | None]:
    """The level of the idea's confirmation, and what the campaign had left after it."""
    used: list[Used] = []
    for one in state.judged_order:
        judged = state.experiments[one].judged
        level = judged.numbers.get("level") if judged else None
        if judged is not None and level is not None:
            used.append(Used(float(level), judged.outcome == "keep"))
        if one == number and judged is not None:
            alpha = _measured_by(judged.numbers).get("alpha") or Rules().alpha
            return level, left(Rules(alpha=alpha), used) if level is not None else None
    return None, None


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


def _runs(state: CampaignState, experiment: Experiment) -> list[RunLine]:
    """The idea's own runs, and those that it was compared with."""
    by_key: dict[str, list[Run]] = {}
    for run in state.runs.values():
        by_key.setdefault(_key(run), []).append(run)

    def beside(keys: Sequence[str], arm: str) -> list[RunLine]:
        return [_run_line(state, by_key[key][-1], arm) for key in keys if key in by_key]

    judged = experiment.judged
    told = dict(judged.numbers.get("runs") or {}) if judged else {}
    if not experiment.number:
        first = beside(["untrained-search"], "untrained")
    else:
        base = _base_of(experiment)
        first = beside(search_runs(state, base), _name_of(state, base) if base else "baseline")
    own = [_run_line(state, run, None) for run in experiment.runs]
    confirmed = beside(list(told.get("incumbent") or ()), "incumbent")
    known = {line.run for line in [*first, *own]}
    # a kept incumbent's confirming runs stand on the search split and on the confirm split
    both = {line.run: line for line in confirmed if line.run in known}
    lines = [*(both.get(line.run, line) for line in first), *own]
    return [*lines, *(line for line in confirmed if line.run not in known)]


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
    return keys or [_key(run) for run in experiment.runs if run.finished and run.finished.summary is not None]


def _key(run: Run) -> str:
    """The name of the run's folder; a run that was begun again has another id in the same folder."""
    return Path(run.words.out).name if run.words else run.id


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
        memory_gb=summary.get("peak_memory_gb") or known.get("peak_rss_gb"),
        seconds=ended.elapsed_s if ended else None,
        state=state_word,
        reason=reason,
    )


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


def comparison_from(told: Mapping[str, Any] | None) -> Comparison | None:
    """As the journal holds one; None where a number of it is not known."""
    if not told:
        return None
    fields = {field.name for field in dataclasses.fields(Comparison)} - {"noise"}
    known = {name: value for name, value in told.items() if name in fields}
    if any(value is None for value in known.values()):
        return None
    noise = told.get("noise")
    try:
        return Comparison(**known, noise=RunNoise(**noise) if noise else None)
    except TypeError:
        return None


def _paired(numbers: Mapping[str, Any], base: str) -> Iterator[Paired]:
    """`base`: what the search runs were compared with, in a word."""
    search, basis = comparison_from(numbers.get("search")), comparison_from(numbers.get("basis"))
    kind = numbers.get("kind")
    if kind == "baseline" and basis is not None:
        yield _paired_line(basis, "search", "untrained model")
        return
    if kind == "screened" and basis is not None:
        yield _paired_line(basis, "search", f"{base} so far")
        return
    if search is not None:
        yield _paired_line(search, "search", base)
    elif basis is not None:
        yield _paired_line(basis, "search, so far", base)
    if basis is not None and search is not None and basis != search:
        yield _paired_line(basis, "confirm", "incumbent")
    comparator = comparison_from(numbers.get("comparator"))
    if comparator is not None:
        yield _paired_line(comparator, "confirm", "constant rate")


def _paired_line(found: Comparison, split: str, against: str) -> Paired:
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
        candidate=abs(found.candidate),
        incumbent=abs(found.incumbent),
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


# --- what decided ------------------------------------------------------------------------------------------


def _rule(experiment: Experiment, numbers: Mapping[str, Any]) -> str:
    """The rule that decided, in a sentence; nothing where an old journal does not tell."""
    kind = str(numbers.get("kind") or "")
    looks = list(numbers.get("looks") or ())
    by_kind = {
        "baseline": "the baseline is kept by definition; every idea is compared with it",
        "crash": _crash_rule(experiment, looks),
        "underpowered": "too little training to prove anything, before any comparison; the idea stays open",
        "tainted": "a speed that was off twice, before any comparison: the machine had its part in what was measured",
        "promising": "it passed the filter on the search split, and waits: there was no time to confirm it alone",
        "lead": "together they measured better than what they were built on: the next ideas build on it, unconfirmed",
        "screened": _screening_rule(experiment.judged.reason if experiment.judged else ""),
    }
    if kind in by_kind:
        return by_kind[kind]
    if not looks and numbers.get("level") is not None:
        return "the time: its confirmation was begun, and no further look could be afforded"
    return _look_rule(kind, looks, numbers) if looks else _filter_rule(kind, experiment, numbers)


def _screening_rule(reason: str) -> str:
    if reason.startswith("superseded"):
        return "the incumbent that it changes was replaced before its turn; no verdict on the idea"
    if "not gone on with" in reason:
        return "the time: it came through the screening of its batch, and the rest of it could not be afforded"
    return "the screening of its batch over the first part of the budget; no verdict on the idea"


def _crash_rule(experiment: Experiment, looks: Sequence[Any]) -> str:
    fixes = len(experiment.fixes)
    after = f" after {fixes} fix{'es' if fixes > 1 else ''}" if fixes else ""
    return f"no valid metric{' in a confirming run' if looks else ''}{after}"


def _filter_rule(kind: str, experiment: Experiment, numbers: Mapping[str, Any]) -> str:
    search = comparison_from(numbers.get("search"))
    if search is None:
        return "given up while it ran, because it could not win any more" if kind == "regressed" else ""
    level = _measured_by(numbers).get("filter_level")
    if level is None:
        return "the filter on the search split"
    bound = search.lower_as_if_known(level)
    lower, upper = points(bound), points(search.upper(level / 2))
    if kind == "regressed":
        return f"the filter on the search split: upper bound {upper} at level {level / 2:g} is below 0"
    reason = experiment.judged.reason if experiment.judged else ""
    if "unconfirmed" in reason or (bound > 0 and "not worth" not in reason):
        return f"it passed the filter (lower bound {lower} at level {level:g}), and there was no confirmation"
    return f"the filter on the search split: lower bound {lower} at level {level:g} is not above 0"


def _look_rule(kind: str, looks: Sequence[Any], numbers: Mapping[str, Any]) -> str:
    """What the last look of a confirmation decided."""
    last = looks[-1]
    name = f"look {len(looks)} of the confirmation"
    if not isinstance(last, dict):
        return f"{name}: {last}"
    name += f" ({last['seeds_candidate']}+{last['seeds_incumbent']} seeds)"
    if last.get("level") is None:
        allowed = _measured_by(numbers).get("hold_p")
        above = f"is above {allowed:g}" if allowed is not None and last["p_value"] > allowed else "promises too little"
        return f"{name}: p {last['p_value']:.2f} {above}, given up before any test"
    bound, level, bar = points(last["bound"]), f"level {last['level']:.4f}", points(last["bar"])
    against = f"{name}: lower bound {bound} at {level}"
    if kind == "guard":
        return f"a guard at {name}: {', '.join(numbers.get('guards') or {})}; no gain outweighs it"
    if kind == "suspect":
        return f"a second evaluation of what looked too good at {name}"
    if last.get("against") != "incumbent":
        return f"{name}, against the same recipe at a constant rate: lower bound {bound} at {level}"
    if kind in ("simpler", "cheaper"):
        return f"{against} is above the margin {bar}: not worse, and {kind}"
    if kind == "gain":
        return f"{against} is above 0"
    if kind == "regressed":
        return f"{name}: upper bound below 0"
    if last["said"] in ("gain", "simpler", "cheaper"):
        return "the same recipe at a constant rate, which has to be beaten too, did not run"
    least = _measured_by(numbers).get("min_effect") or 0.0
    if last["bound"] > 0 and last["delta"] < least:
        return f"{against} is above 0, the difference {points(last['delta'])} below min_effect {points(least)}"
    return f"{against} is not above {bar if last['bar'] else '0'}"


def _look_words(look: Any) -> str:
    if not isinstance(look, dict):
        return str(look)
    span = f"{points(look['delta'])} [{points(look['low'])}, {points(look['high'])}]"
    seeds = f"{look['seeds_candidate']}+{look['seeds_incumbent']} seeds"
    beside = "" if look.get("against", "incumbent") == "incumbent" else f" against a {look['against']}"
    if look.get("level") is None:
        return f"{seeds}{beside}: {span}, p {look['p_value']:.3f}, {look['said']}"
    bar = points(look["bar"]) if look["bar"] else "0"
    return (
        f"{seeds}{beside}: {span}, lower bound {points(look['bound'])} at level {look['level']:.4f} against {bar}: "
        f"{look['said']}"
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


# --- single prompts ----------------------------------------------------------------------------------------


def differing_prompts(workspace: Path, state: CampaignState, number: int) -> tuple[str, list[PromptLine], list[str]]:
    """The split, its prompts with the greatest difference first, and the runs whose rows are gone.

    Of the confirm split where the idea was confirmed, else of search. From the rows in the runs' folders.
    """
    experiment = state.experiments[number]
    numbers = experiment.judged.numbers if experiment.judged else {}
    split, ours, theirs = _arms(state, number)
    if not ours or not theirs:
        return split, [], []
    evaluation = Evaluation.model_validate({"metric": _metric(state, experiment), "direction": _direction(numbers)})
    mine, other = (_rows_of(workspace, state, keys, split) for keys in (ours, theirs))
    gone = [key for rows in (mine, other) for key, found in rows.items() if not found]
    scores = [[_scores(found, split, evaluation) for found in rows.values() if found] for rows in (mine, other)]
    if not scores[0] or not scores[1]:
        return split, [], gone
    values = table([*scores[0], *scores[1]])
    differences = values[: len(scores[0])].mean(axis=0) - values[len(scores[0]) :].mean(axis=0)
    shared = sorted(set.intersection(*(set(one.ids) for arm in scores for one in arm)))
    passed, before = _tally(mine), _tally(other)
    sign = 1.0 if evaluation.direction == "maximize" else -1.0
    lines = [
        PromptLine(prompt, *before[prompt], *passed[prompt], sign * float(difference))
        for prompt, difference in zip(shared, differences, strict=True)
        if difference
    ]
    return split, sorted(lines, key=lambda line: (-abs(line.difference), line.id)), gone


def _arms(state: CampaignState, number: int) -> tuple[str, list[str], list[str]]:
    """Split, keys of the candidate's runs, keys of the incumbent's."""
    experiment = state.experiments[number]
    told = dict(experiment.judged.numbers.get("runs") or {}) if experiment.judged else {}
    candidate = list(told.get("candidate") or ())
    if not number:
        return "search", candidate, ["untrained-search"]
    if candidate:
        return "confirm", candidate, list(told.get("incumbent") or ())
    planned = experiment.planned
    return "search", list(told.get("search") or ()), search_runs(state, (planned.incumbent if planned else None) or 0)


def _rows_of(workspace: Path, state: CampaignState, keys: Sequence[str], split: str) -> dict[str, list[EvalRow]]:
    """By key of the run; none where its folder is gone."""
    folders = {_key(run): workspace / run.words.out for run in state.runs.values() if run.words}
    return {
        key: [row for row in read_run(folders[key]).evals if row.split == split] if key in folders else []
        for key in keys
    }


def _scores(rows: Sequence[EvalRow], split: str, evaluation: Evaluation) -> Scores:
    found = scores_of(rows, split=split, evaluation=evaluation)
    assert found is not None  # there are rows
    return found


def _tally(runs: Mapping[str, Sequence[EvalRow]]) -> dict[str, tuple[int, int]]:
    """Prompt -> samples that passed and samples, over all runs."""
    found: dict[str, tuple[int, int]] = {}
    for row in (row for rows in runs.values() for row in rows):
        passed, samples = found.get(row.id, (0, 0))
        found[row.id] = passed + row.passed, samples + 1
    return found
