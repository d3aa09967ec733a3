"""What to watch besides the metric. Which watches there are: `plan/watches.py`; what forbids a keep: `guards.py`.

A probe evaluates a finished checkpoint with other prompt keys: reward on paraphrases, a prompt's gain at another
prompt length. It is measured on the search split, costs no training, and is left out where time is short.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from agent.campaign.budget import holdout_seconds
from agent.campaign.choose import observe
from agent.campaign.done import Done
from agent.campaign.evidence import Evidence
from agent.campaign.jobs import Job
from agent.campaign.runs import Runner
from agent.campaign.session import Session, run_key
from agent.campaign.verdict import Report
from agent.contract import CHECKPOINT
from agent.plan.symptoms import signals
from agent.plan.watches import Probe, ProbeResult, WatchReading, probes, read_probes, report_watches
from agent.recipe.schema import Recipe


def watch(
    session: Session, evidence: Evidence[Done], experiment: int, run: Done, *, runner: Runner | None = None
) -> list[Report]:
    """Read every watch of the hypothesis. Probes only with a runner, and where their time is there."""
    planned = session.state.experiments[experiment].planned
    names = [name for name in (planned.model_extra or {}).get("watch") or [] if planned] if planned else []
    names = [name for name in names if name in session.playbook.watches]
    base = session.incumbent if evidence.candidate(experiment) else session.base_of(experiment)
    last = evidence.last_run(base)
    readings = report_watches(
        session.playbook,
        names,
        candidate=_signals(session, evidence, experiment, run),
        incumbent=_signals(session, evidence, base, last) if last else {},
    )
    reports = [_report(reading) for reading in readings]
    if runner is not None and last is not None:
        reports += _probed(session, runner, evidence, experiment, run, last, names)
    return reports


def _report(reading: WatchReading) -> Report:
    alarm = f" (!) {'; '.join(reading.alarms)}" if reading.alarms else ""
    return Report(reading.watch, reading.text + alarm, bool(reading.alarms))


def _signals(session: Session, evidence: Evidence[Done], experiment: int, run: Done) -> dict[str, float | None]:
    return signals(observe(session, evidence, run, experiment=experiment))


# --- probes ------------------------------------------------------------------------------------------------


def _probed(
    session: Session,
    runner: Runner,
    evidence: Evidence[Done],
    experiment: int,
    run: Done,
    last: Done,
    names: Sequence[str],
) -> list[Report]:
    """Candidate and incumbent under each probe, by watch."""
    ours = probes(session.playbook, names, _recipe(session, experiment))
    theirs = {
        (probe.watch, probe.name): probe
        for probe in probes(session.playbook, names, _recipe(session, session.incumbent))
    }
    if not ours:
        return []
    if not _affordable(session, 2 * len(ours)):
        return [Report(name, "not probed, no time for it") for name in dict.fromkeys(probe.watch for probe in ours)]
    results: dict[str, list[ProbeResult]] = defaultdict(list)
    failed: dict[str, str] = {}
    for probe in ours:
        beside = theirs.get((probe.watch, probe.name))
        if beside is None:
            continue
        mine = _evaluate(session, runner, experiment, run, probe)
        other = _evaluate(session, runner, session.incumbent, last, beside)
        if mine.ok and other.ok:
            results[probe.watch].append(ProbeResult(probe.name, _metric(mine), _metric(other)))
        else:
            # a checkpoint that is gone, for one
            failed[probe.watch] = f"not probed: {(other if mine.ok else mine).crash_words}"
    gain = _metric(run) - _metric(last)
    reports = [_report(read_probes(session.playbook.watches[name], gain, found)) for name, found in results.items()]
    return reports + [Report(name, why) for name, why in failed.items() if name not in results]


def _recipe(session: Session, experiment: int) -> Recipe:
    return session.with_shared_layer(session.recipe_of(experiment))


def _affordable(session: Session, evaluations: int) -> bool:
    """Beside the holdout, which comes first."""
    cost = session.cost(session.recipe_of(session.incumbent))
    return session.clock.left_s > (evaluations + 1) * cost.evaluation_s + holdout_seconds(cost)


def _metric(run: Done) -> float:
    scores = run.scores("search")
    return scores.mean if scores is not None else float("nan")


def _evaluate(session: Session, runner: Runner, experiment: int, run: Done, probe: Probe) -> Done:
    return runner.run(
        Job(
            key=run_key([f"{experiment:03d}-probe", probe.watch, probe.name, run.key]),
            what=f"probe {probe.watch}, {probe.name}, of #{experiment}",
            recipe=probe.probed,
            seed=probe.probed.seed,
            role="experiment",
            rung="full",
            arm="probe",
            evaluate=str(session.runs_folder / run.key / CHECKPOINT),
        )
    )
