"""One idea from its commit to its outcome. Every step looks first whether it is done already.

planned -> committed -> trained (repaired where it broke) -> filtered on search -> confirmed -> judged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.campaign.budget import CONFIRM_SEEDS, holdout_seconds
from agent.campaign.evidence import Evidence, arm_scores
from agent.campaign.repair import commit_pending_fixes, train_with_repairs
from agent.campaign.runs import Done, Job, Runner
from agent.campaign.session import Session, run_key
from agent.campaign.verdict import (
    FILTER_ALPHA,
    Comparison,
    Verdict,
    compare,
    judge_confirmed,
    judge_filtered,
    passes_filter,
)
from agent.campaign.watches import Report, broken_guards, watch
from agent.contract import NO_STEP
from agent.ledger.journal import Experiment
from agent.recipe.files import recipe_from
from agent.recipe.schema import Recipe
from agent.report.words import points

MARGIN = 0.01
"""Non-inferiority margin of a simpler or cheaper recipe where min_effect names none, in units of the metric."""


@dataclass
class Judgement:
    """The verdict with everything the ledger wants to know."""

    verdict: Verdict
    search: Done
    confirming: list[Done] = field(default_factory=list)
    search_comparison: Comparison | None = None
    watches: list[Report] = field(default_factory=list)
    number: int | None = None
    """Which confirmation of the campaign this was."""


def attempt(session: Session, runner: Runner, evidence: Evidence, number: int) -> Judgement:
    """Carry an experiment to its verdict. Raises CutShort where the campaign ends first."""
    experiment = session.state.experiments[number]
    commit(session, experiment)
    search = train_with_repairs(
        session,
        runner,
        experiment=number,
        key=f"{number:03d}-search",
        what=title(experiment),
        seed=_search_seed(session, number),
        role="experiment",
        rung="full",
        arm="candidate",
    )
    if not search.ok:
        return Judgement(_crashed(session, search, number), search)
    evidence.add(search, experiment=number, arm="search")
    recipe = session.recipe_of(number)
    weak = underpowered(recipe, search)
    if weak:
        watches = watch(session, evidence, number, search)
        return Judgement(Verdict("discard", weak, None, "underpowered"), search, watches=watches)
    return _weigh(session, runner, evidence, number, search)


def commit(session: Session, experiment: Experiment) -> None:
    """The idea's commit on its branch, and those of its fixes."""
    assert session.branches is not None
    planned = experiment.planned
    if planned is None:
        return
    if experiment.committed is None:
        sha = session.branches.commit_experiment(
            experiment.number,
            planned.slug,
            planned.files,
            subject=planned.subject,
            body=planned.body,
            trailers=planned.trailers,
            parent=planned.parent_commit,
        )
        branch = session.branches.experiment_branches()[experiment.number]
        session.tell("experiment_committed", experiment=experiment.number, branch=branch, commit=sha)
    commit_pending_fixes(session, experiment.number)


def title(experiment: Experiment) -> str:
    planned = experiment.planned
    return f"#{experiment.number} {planned.subject if planned else ''}".strip()


def _search_seed(session: Session, number: int) -> int:
    return session.recipe_of(0).seed + 1000 * number


def _crashed(session: Session, run: Done, number: int) -> Verdict:
    diagnosis = run.diagnosis
    fixes = len(session.state.experiments[number].fixes)
    tried = f" after {fixes} fix{'es' if fixes != 1 else ''}" if fixes else ""
    reason = f"{diagnosis.crash_class}: {diagnosis.reason}{tried}" if diagnosis else "no summary"
    return Verdict("crash", reason, None, "crash")


def underpowered(recipe: Recipe, run: Done) -> str | None:
    """Why the run proves nothing for lack of training, or None."""
    summary, budget = run.summary, recipe.budget
    if summary is None:
        return None
    if summary.optimizer_steps < budget.min_optimizer_steps:
        ended = f"; ended after {summary.cycles} cycles that gave it none" if summary.ended_by == NO_STEP else ""
        return (
            f"underpowered: {summary.optimizer_steps} optimizer steps, "
            f"the recipe asks for {budget.min_optimizer_steps}{ended}"
        )
    if summary.kept < budget.min_kept_samples:
        return f"underpowered: {summary.kept} kept samples, the recipe asks for {budget.min_kept_samples}"
    return None


# --- search, then confirmation -----------------------------------------------------------------------------


def _weigh(session: Session, runner: Runner, evidence: Evidence, number: int, search: Done) -> Judgement:
    incumbent = session.incumbent
    evaluation = session.recipe_of(0).evaluation
    on_search = compare(
        arm_scores([search], split="search", evaluation=evaluation),
        arm_scores(evidence.search_runs(incumbent), split="search", evaluation=evaluation),
        evidence.noise,
    )
    worth, words = passes_filter(on_search)
    session.observer.say(f"  {words}")
    advantage = _advantage(session, number, search, evidence)
    promising = worth or (advantage is not None and on_search.lower(FILTER_ALPHA) > -(evaluation.min_effect or MARGIN))
    if not promising:
        watches = watch(session, evidence, number, search)
        return Judgement(judge_filtered(on_search), search, search_comparison=on_search, watches=watches)
    lacking = _no_time_to_confirm(session, evidence, number)
    if lacking:
        span = points(on_search.delta)
        verdict = Verdict(
            "discard", f"inconclusive: {span} on search, unconfirmed: {lacking}", on_search, "inconclusive"
        )
        return Judgement(verdict, search, search_comparison=on_search)
    return _confirm(session, runner, evidence, number, search, on_search, advantage)


def _no_time_to_confirm(session: Session, evidence: Evidence, number: int) -> str | None:
    """A confirmation may use the reserve, but not the time of the holdout."""
    cost = session.cost(session.recipe_of(number))
    missing = 2 * CONFIRM_SEEDS - len(evidence.fresh_incumbent(session.incumbent)) - len(evidence.candidate(number))
    needed = max(0, missing) * cost.total_s + holdout_seconds(cost)
    if needed <= session.clock.left_s:
        return None
    return f"it would take {needed:.0f}s with the holdout, {max(0.0, session.clock.left_s):.0f}s are left"


def _confirm(
    session: Session,
    runner: Runner,
    evidence: Evidence,
    number: int,
    search: Done,
    on_search: Comparison,
    advantage: str | None,
) -> Judgement:
    """Fresh seeds for both arms on prompts that the search never saw."""
    incumbent = session.incumbent
    evaluation = session.recipe_of(0).evaluation
    for index in range(CONFIRM_SEEDS):
        for arm in (number, incumbent):
            run = _confirming_run(session, runner, evidence, arm=arm, index=index, of=number)
            if run.ok:
                evidence.add(run, experiment=arm, arm="candidate" if arm == number else "incumbent")
            if not run.ok:
                reason = run.diagnosis.reason if run.diagnosis else "no summary"
                crash = run.diagnosis.crash_class if run.diagnosis else "unknown"
                verdict = Verdict("crash", f"{crash}: {reason}, in confirmation", on_search, "crash")
                return Judgement(verdict, search, search_comparison=on_search)
    place = session.state.confirm_order.index(number) + 1
    ours = arm_scores(evidence.candidate(number), split="confirm", evaluation=evaluation)
    theirs = arm_scores(evidence.fresh_incumbent(incumbent), split="confirm", evaluation=evaluation)
    result = compare(ours, theirs, evidence.noise)
    watches = watch(session, evidence, number, search, runner=runner)
    verdict = judge_confirmed(
        result,
        number=place,
        min_effect=evaluation.min_effect,
        margin=evaluation.min_effect or MARGIN,
        advantage=advantage,
        guards=broken_guards(evidence, number, incumbent),
    )
    if verdict.outcome == "keep":
        verdict = _against_comparator(session, runner, evidence, number, verdict)
    return Judgement(verdict, search, evidence.candidate(number), on_search, watches, place)


def _confirming_run(session: Session, runner: Runner, evidence: Evidence, *, arm: int, index: int, of: int) -> Done:
    """Run `index` of an arm. An incumbent's runs serve for every candidate that challenges it.

    A recipe that was kept was kept for its own confirming runs: as the incumbent it needs fresh ones.
    """
    is_candidate = arm == of
    seed = session.recipe_of(0).seed + 1000 * arm + (100 if is_candidate else 500) + index
    what = (
        f"confirming {title(session.state.experiments[of])}"
        if is_candidate
        else f"{_incumbent_words(arm)} beside #{of}"
    )
    job = Job(
        key=run_key([f"{arm:03d}-{'confirm' if is_candidate else 'incumbent'}", f"s{seed}"]),
        what=what,
        recipe=session.with_shared_layer(session.recipe_of(arm)),
        seed=seed,
        role="confirm",
        rung="confirm",
        experiment=of if is_candidate else None,
        arm="candidate" if is_candidate else "incumbent",
        splits=("confirm", "search"),
    )
    return runner.run(job)


def _incumbent_words(arm: int) -> str:
    return f"incumbent #{arm}" if arm else "baseline"


def _against_comparator(session: Session, runner: Runner, evidence: Evidence, number: int, verdict: Verdict) -> Verdict:
    """A schedule is kept only if it also beats the same recipe at a constant rate."""
    planned = session.state.experiments[number].planned
    comparator = (planned.model_extra or {}).get("comparator") if planned else None
    if not comparator:
        return verdict
    recipe = recipe_from(comparator, where=f"comparator of #{number}")
    evaluation = session.recipe_of(0).evaluation
    runs = []
    for index in range(CONFIRM_SEEDS):
        seed = session.recipe_of(0).seed + 1000 * number + 700 + index
        run = runner.run(
            Job(
                key=run_key([f"{number:03d}-comparator", f"s{seed}"]),
                what=f"constant-rate comparator of #{number}",
                recipe=session.with_shared_layer(recipe),
                seed=seed,
                role="confirm",
                rung="confirm",
                experiment=number,
                arm="comparator",
                splits=("confirm",),
            )
        )
        if not run.ok:
            return Verdict(
                "discard", "inconclusive: its constant-rate comparator did not run", verdict.basis, "inconclusive"
            )
        runs.append(run)
    ours = arm_scores(evidence.candidate(number), split="confirm", evaluation=evaluation)
    beside = compare(ours, arm_scores(runs, split="confirm", evaluation=evaluation), evidence.noise)
    place = session.state.confirm_order.index(number) + 1
    second = judge_confirmed(beside, number=place, min_effect=evaluation.min_effect, margin=MARGIN)
    if second.outcome == "keep":
        return verdict
    return Verdict(
        "discard",
        f"inconclusive: not shown better than a constant rate ({second.reason})",
        verdict.basis,
        "inconclusive",
    )


def _advantage(session: Session, number: int, search: Done, evidence: Evidence) -> str | None:
    """Why the candidate would be preferred at equal quality: simpler, or cheaper beyond the cost's own noise."""
    candidate, incumbent = session.recipe_of(number), session.recipe_of(session.incumbent)
    fewer = overrides(incumbent) - overrides(candidate)
    if fewer > 0:
        return f"simpler: {fewer} setting{'s' if fewer > 1 else ''} fewer that differ from the defaults"
    return _cheaper(search, evidence.search_runs(session.incumbent))


def overrides(recipe: Recipe) -> int:
    """Number of tunable settings that differ from the schema's defaults."""
    return _count(
        recipe.model_dump(mode="json", exclude_defaults=True, exclude={"evaluation", "budget", "description"})
    )


def _count(value: Any) -> int:
    return sum(_count(inner) for inner in value.values()) if isinstance(value, dict) else 1


def _cheaper(search: Done, incumbent_runs: Sequence[Done]) -> str | None:
    """Less memory, or (where the budget does not fix it) less time, beyond 10% and the spread of the runs."""
    for name, unit in (("peak_memory_gb", "GB peak memory"), ("train_s", "s of training")):
        ours = getattr(search.summary, name, None)
        theirs = [getattr(run.summary, name, None) for run in incumbent_runs]
        known = [value for value in theirs if value is not None]
        if ours is None or not known:
            continue
        low, mean = min(known), sum(known) / len(known)
        spread = max(known) - low
        if ours < 0.9 * mean and ours < low - spread:
            return f"cheaper: {mean:.2f} -> {ours:.2f} {unit}"
    return None


def fixes_of(experiment: Experiment) -> str:
    """The fixes in words, for the table."""
    return "; ".join(fix.subject for _, fix in sorted(experiment.fixes.items()) if fix.subject)
