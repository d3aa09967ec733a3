"""What a model card says of a checkpoint, gathered from the journal and from the run's folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from agent import __version__
from agent.campaign.comparison import quantile, wilson
from agent.campaign.decided import comparison_from
from agent.campaign.delivered import Delivered
from agent.campaign.headline import holdout_says, kept_in, span
from agent.campaign.night_arms import holdout_of, holdout_seen_for
from agent.campaign.recipes import version_of
from agent.campaign.scores import scores_of, table
from agent.campaign.stairs import key_of, no_more
from agent.campaign.story import tell
from agent.contract import HELD_OUT, RECIPE, UNTRAINED
from agent.ledger.journal import CampaignState, Experiment, Run
from agent.recipe.change import describe_moves
from agent.recipe.files import resolved_text
from agent.recipe.places import kind_of
from agent.recipe.schema import Recipe
from agent.report.card import HOLDOUT, Card, Example, Kept, Measured
from agent.report.numbers import Numbers
from agent.report.words import counted
from agent.run.telemetry import read_plan, read_run
from agent.text import redacted_values

FINISHED = "finished"


def card_of(workspace: Path, state: CampaignState, what: Delivered, told: Mapping[str, Any], *, name: str) -> Card:
    """`told`: the answer of `agent.raft.export`."""
    recipe, number = what.recipe, what.number
    base = base_name(recipe, workspace)
    score, score_on = _own_score(state, what)
    example = dict(told["example"])
    return Card(
        name=name,
        headline=_headline(state, what),
        provisional=_provisional(state, what),
        base=base,
        base_revision=_revision(what),
        license=told.get("license"),
        how=_how(recipe, told),
        metric=recipe.evaluation.metric,
        score=score,
        score_on=score_on,
        dataset=recipe.task.dataset.removeprefix("jsonl:"),
        measured=tuple(_measured(workspace, state, what)),
        gains=tuple(_gains(state, what)),
        kept=tuple(_kept(state, number, _numbers(what))),
        unchanged="Nothing: this is the recipe as the campaign found it."
        if number is not None
        else "That is not known: the run belongs to no campaign.",
        judged=tuple(_judged(state, number, _numbers(what))),
        limits=tuple(_limits(state, what)),
        data=tuple(_data(what)),
        recipe=_without_places(resolved_text(_shown(recipe)), recipe, base),
        origin=tuple(_origin(state, what)),
        versions=tuple(_versions(state, what, told)),
        machine=_machine(state, what),
        checks=tuple(_checks(told)),
        example=Example(example["text"], example["ids"], example["max_new_tokens"], example["answer"]),
        commands=tuple(_commands(workspace, state, what)),
    )


def measuring_command(workspace: Path, what: Delivered, folder: str) -> str:
    """With the run's own recipe: an idea may have changed the prompt, and an evaluation writes it as told there."""
    recipe = (what.out / RECIPE).relative_to(workspace)
    return f"raft-agent eval {folder} --recipe {recipe} --split holdout"


# --- the model ---------------------------------------------------------------------------------------------


def base_name(recipe: Recipe, workspace: Path) -> str:
    """Of a model that lies on this machine only its folder's or file's name."""
    source = recipe.model.source
    return PurePath(source).name if kind_of(source, base=workspace) in ("folder", "gguf") else source


def _revision(what: Delivered) -> str | None:
    model = _provenance(what).get("model") or {}
    return model.get("commit") or what.recipe.model.revision


def _provenance(what: Delivered) -> dict[str, Any]:
    """Of the run's own summary, which has more than the journal; else the journal's."""
    summary = read_run(what.out).summary
    return dict(summary.provenance) if summary else dict(what.summary.get("provenance") or {})


def _how(recipe: Recipe, told: Mapping[str, Any]) -> str:
    lora = recipe.model.lora
    size = f"{told['parameters'] / 1e6:.1f}M parameters in {told['dtype']}"
    if not told["merged"] or lora is None:
        return f"all weights trained; {size}"
    quantized = f", trained on a base of {recipe.model.quantize} that was dequantized" if recipe.model.quantize else ""
    return f"adapters of rank {lora.rank} (alpha {lora.alpha:g}) merged into the base{quantized}; {size}"


def _shown(recipe: Recipe) -> Recipe:
    """Without the values of variables that are secrets."""
    backend = recipe.backend.model_copy(update={"env": redacted_values(recipe.backend.env)})
    return recipe.model_copy(update={"backend": backend})


def _without_places(text: str, recipe: Recipe, base: str) -> str:
    source = recipe.model.source
    return text.replace(source, base) if source.startswith(("/", "~")) else text


# --- what was measured -------------------------------------------------------------------------------------


def _headline(state: CampaignState, what: Delivered) -> str:
    if what.is_winner and state.ending.get("headline"):
        return str(state.ending["headline"])
    if what.number is None:
        return f"One run, {what.key}, that no campaign has judged."
    title = _title(state, what.number)
    experiment = state.experiments[what.number]
    judged = experiment.judged
    return f"{title}: {judged.outcome}: {judged.reason}" if judged else f"{title}: without an outcome so far"


def _title(state: CampaignState, number: int) -> str:
    planned = state.experiments[number].planned
    return f"#{number} {planned.subject if planned else ''}".strip() if number else "The baseline"


def _provisional(state: CampaignState, what: Delivered) -> str:
    if what.number is None:
        return "it is a run by itself; no comparison and no holdout stands behind it"
    if state.status != FINISHED:
        return f"campaign {state.campaign} is not finished ({state.status}){_unseen(state)}"
    if not what.is_winner:
        return f"campaign {state.campaign} did not choose this recipe; its winner is another"
    return ""


def _unseen(state: CampaignState) -> str:
    seen_for = holdout_seen_for(state)
    if seen_for is None:
        return "; its holdout was not looked at"
    if seen_for == _winner(state):
        return ""
    before = f"#{seen_for}" if seen_for else "the baseline"
    return f"; its holdout was looked at for {before}, and not for the recipe that leads now"


def _own_score(state: CampaignState, what: Delivered) -> tuple[float | None, str]:
    """Of this very checkpoint: on the holdout, else on the split that the run was evaluated on last."""
    void = no_more(state)
    for run in state.runs.values():
        words, summary = run.words, run.finished.summary if run.finished else None
        if run.id in void or words is None or summary is None or words.role != HOLDOUT or what.number is None:
            continue
        if key_of(run) in (f"{HOLDOUT}-winner-{what.key}", f"{HOLDOUT}-baseline-{what.key}"):
            value = (summary.get("metrics") or {}).get(HOLDOUT)
            if value is not None:
                return float(value), HOLDOUT
    metrics = what.summary.get("metrics") or {}
    split = next((split for split in (HOLDOUT, "confirm", "search") if split in metrics), "search")
    return metrics.get(split), split


def _measured(workspace: Path, state: CampaignState, what: Delivered) -> Iterator[Measured]:
    """Untrained, baseline and winner on the holdout, then this checkpoint on whatever it was measured on."""
    if what.number is not None:
        void = no_more(state)
        counted = [run for name, run in state.runs.items() if name not in void]
        for arm in (UNTRAINED, "baseline", "winner"):
            runs = [run for run in counted if _is_holdout(run, arm, _winner(state))]
            if runs:
                yield _arm(workspace, runs, arm, what.recipe)
    own, split = _own_score(state, what)
    if own is not None and split == HOLDOUT:
        yield Measured("this checkpoint", HOLDOUT, _numbers(what).value(own), "", None)
    for name in HELD_OUT:
        value = (what.summary.get("metrics") or {}).get(name)
        if value is not None:
            yield _of_rows([what.out], name, "this checkpoint", what.recipe, value)


def _winner(state: CampaignState) -> int:
    return (state.incumbent.experiment if state.incumbent else None) or 0


def _is_holdout(run: Run, arm: str, winner: int) -> bool:
    """Of this winner: a campaign that was given more time has looked at the holdout for another one before."""
    summary = run.finished.summary if run.finished else None
    if not summary or run.words is None or run.words.role != HOLDOUT or run.words.arm != arm:
        return False
    return arm != "winner" or key_of(run).startswith(f"{HOLDOUT}-winner-{winner:03d}-")


def _arm(workspace: Path, runs: Sequence[Run], arm: str, recipe: Recipe) -> Measured:
    by_folder = {workspace / run.words.out: run.finished.summary for run in runs if run.words and run.finished}
    values = [float((summary or {}).get("metrics", {})[HOLDOUT]) for summary in by_folder.values()]
    seeds = f", mean of {len(values)} runs" if len(values) > 1 else ""
    return _of_rows(list(by_folder), HOLDOUT, f"{arm}{seeds}", recipe, sum(values) / len(values))


def _of_rows(folders: Sequence[Path], split: str, arm: str, recipe: Recipe, value: float) -> Measured:
    """The interval is over prompts: what other prompts of the same kind would give these very weights."""
    scored = [scores_of(read_run(out).evals, split=split, evaluation=recipe.evaluation) for out in folders]
    known = [scores for scores in scored if scores is not None]
    numbers = Numbers(recipe.evaluation.metric)
    shown = numbers.value(value)
    if not known or any(scores.ids != known[0].ids for scores in known) or len(known[0].ids) < 2:
        return Measured(arm, split, shown, "unknown", len(known[0].ids) if known else None)
    values = table(known).mean(axis=0)
    n = len(values)
    half = quantile(0.975, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    low, high = value - half, value + half
    if numbers.rate:
        low, high = (max(0.0, low), min(1.0, high)) if half else wilson(value, n)
    return Measured(arm, split, shown, f"{numbers.value(low)} to {numbers.value(high)}", n)


def _numbers(what: Delivered) -> Numbers:
    return Numbers(what.recipe.evaluation.metric)


def _gains(state: CampaignState, what: Delivered) -> Iterator[str]:
    """Paired differences of the holdout, run noise included."""
    holdout = holdout_of(state, _winner(state)) if what.is_winner else {}
    for pair in (f"baseline - {UNTRAINED}", "winner - baseline"):
        gain = holdout.get(pair)
        if gain:
            better, worse = pair.split(" - ")
            yield f"{better} against {worse} on the holdout: {span(gain, _numbers(what))}, paired by prompt"


# --- what was changed, and how it was judged ---------------------------------------------------------------


def lineage(state: CampaignState, number: int | None) -> list[int]:
    """The experiments whose changes are in a recipe, oldest first: it, what it changes, and so on."""
    found: list[int] = []
    while number and number not in found and number in state.experiments:
        found.append(number)
        planned = state.experiments[number].planned
        number = planned.incumbent if planned else None
    return found[::-1]


def _kept(state: CampaignState, number: int | None, numbers: Numbers) -> Iterator[Kept]:
    for one in lineage(state, number):
        experiment = state.experiments[one]
        planned, judged = experiment.planned, experiment.judged
        moves = {key: (move[0], move[1]) for key, move in planned.changes.items()} if planned else {}
        yield Kept(
            one,
            planned.subject if planned else "",
            f"{planned.hypothesis}: {describe_moves(moves)}" if planned else "",
            _gain(experiment, numbers),
            f"{judged.outcome}, {judged.numbers.get('kind') or ''}".rstrip(", ") if judged else "open",
            (version_of(state, one).commit or "")[:12],
        )


def _gain(experiment: Experiment, numbers: Numbers) -> str:
    basis = comparison_from(experiment.judged.numbers.get("basis")) if experiment.judged else None
    if basis is None:
        return "not measured"
    low, high = basis.interval
    return span({"delta": basis.delta, "low": low, "high": high}, numbers)


def _judged(state: CampaignState, number: int | None, numbers: Numbers) -> Iterator[str]:
    if number is None:
        yield "It was not judged."
        return
    if not number:
        yield "The baseline is what ideas are compared with; it had to beat nothing."
        return
    story = tell(state, number)
    yield f"#{number} was decided by {story.rule}" if story.rule else f"#{number}: {story.reason}"
    for look in story.looks:
        yield f"confirmation, {look}"
    for paired in story.paired:
        told = span({"delta": paired.delta, "low": paired.low, "high": paired.high}, numbers)
        yield (
            f"on {paired.split} against the {paired.against}: {paired.seeds_candidate}+{paired.seeds_incumbent} seeds, "
            f"{paired.prompts} prompts, {told}"
        )
    for guard in story.guards:
        yield f"guard {guard.name}: {'broken' if guard.broken else 'held'}"
    yield (
        "A difference is paired by prompt; its interval has the prompts' part and the run-to-run noise. What is kept "
        f"was confirmed with fresh seeds on fresh prompts at a level spent from a campaign-wide {story.alpha:g}."
    )


def _limits(state: CampaignState, what: Delivered) -> Iterator[str]:
    provisional = _provisional(state, what)
    if provisional:
        yield f"Provisional: {provisional}."
    experiment = state.experiments.get(what.number) if what.number is not None else None
    judged = experiment.judged if experiment else None
    if what.number and (judged is None or judged.outcome != "keep"):
        yield f"Not confirmed: {judged.reason if judged else 'there is no verdict on it yet'}."
    holdout = holdout_of(state, _winner(state))
    if what.is_winner and what.number and kept_in(state).gains:
        said = holdout_says(holdout)
        if said == "contradicts":
            yield "The gain did not reproduce on the holdout."
        elif said == "agrees":
            yield "The holdout agrees with the confirmed gain, and alone would not prove it."
    if "skipped" in holdout and state.status == FINISHED:
        yield f"{holdout['skipped']}."
    for arm, why in (holdout.get("not evaluated") or {}).items():
        yield f"Not on the holdout: {arm}, {why}."
    evaluation = what.recipe.evaluation
    yield (
        f"Measured as {evaluation.metric} at temperature {evaluation.temperature:g} with at most "
        f"{evaluation.max_new_tokens} new tokens, on rows of {what.recipe.task.dataset.removeprefix('jsonl:')} alone; "
        "nothing is known of other tasks, or of what the training has cost there."
    )
    yield "An interval of one arm is over prompts; another training of the recipe differs by the run noise besides."


# --- data, origin, versions --------------------------------------------------------------------------------


def _data(what: Delivered) -> Iterator[tuple[str, str]]:
    task, plan = what.recipe.task, read_plan(what.out)
    yield "data set", task.dataset
    if task.parameters:
        yield "parameters", ", ".join(f"{key}: {value}" for key, value in task.parameters.items())
    digest = _provenance(what).get("data")
    if digest:
        yield "digest of the rows", str(digest)
    if plan is not None:
        yield "rows by split", ", ".join(f"{split} {count}" for split, count in plan.rows.items())
    yield "seed of the splits", str(task.split_seed)
    yield "verifier", task.verifier.kind


def _origin(state: CampaignState, what: Delivered) -> Iterator[tuple[str, str]]:
    if what.number is not None:
        version = version_of(state, what.number)
        yield "campaign", state.campaign or ""
        yield "experiment", version.name
        if version.commit:
            yield "commit", version.commit
    yield "run", what.key
    if what.summary.get("seed") is not None:
        yield "seed", str(what.summary["seed"])
    if what.summary.get("optimizer_steps"):
        taken, cycles = what.summary["optimizer_steps"], counted(what.summary.get("cycles"), "cycle")
        steps = f"{cycles}, {counted(taken, 'optimizer step')}"
        yield "training", f"{steps}; the weights of cycle {what.summary.get('delivered_cycle')}"
    yield "signature of the recipe", what.recipe.signature()


def _commands(workspace: Path, state: CampaignState, what: Delivered) -> Iterator[str]:
    if what.number is None or state.started is None:
        yield "raft-agent train RECIPE  # the recipe below, as a file in recipes/"
        return
    yield "# in the workspace of the campaign"
    seed = f" --seed {what.summary['seed']}" if what.summary.get("seed") is not None else ""
    yield f"raft-agent replay {what.number} --campaign {state.campaign}{seed}"
    yield "# the metric of this folder"
    yield measuring_command(workspace, what, "FOLDER")


def _versions(state: CampaignState, what: Delivered, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    options = (state.started.model_extra or {}).get("lockbox") or {} if state.started else {}
    if what.number is not None and options.get("version"):
        yield "raft-agent", f"{options['version']} (training), {__version__} (export)"
    else:
        yield "raft-agent", __version__
    then = _provenance(what)
    for name, now in told["versions"].items():
        before = then.get(name)
        yield name, f"{before} (training), {now} (export)" if before and before != now else str(now)


def _machine(state: CampaignState, what: Delivered) -> str:
    """Processor, memory and accelerator; no name of it."""
    machine = state.started.machine if state.started and what.number is not None else {}
    device = _provenance(what).get("device")
    words = [str(machine["name"])] if machine.get("name") else []
    if machine.get("cores"):
        words.append(f"{machine['cores']} cores")
    if machine.get("memory_gb"):
        words.append(f"{machine['memory_gb']:.0f} GiB")
    return f"trained on {', '.join(words) or 'an unknown machine'}" + (f" ({device})" if device else "")


def _checks(told: Mapping[str, Any]) -> Iterator[str]:
    checks = told["checks"]
    made = "merged" if told["merged"] else "copied"
    yield (
        f"the {made} folder was loaded again: its logits differ from the checkpoint's by {checks['difference']:.1e} "
        f"standard deviations at most ({checks['positions']} positions, {checks['allowed']:g} allowed), and "
        f"{checks['same_samples']} of {checks['prompts']} greedy samples are the same"
        + (f", the others part at {checks['ties']} near-ties" if checks["same_samples"] < checks["prompts"] else "")
    )
