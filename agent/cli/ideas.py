"""`plan` and `diagnose`: what the agent would try and why; what a run shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.controls import steering_json, steering_lines
from agent.cli.shared import here, model_cache, print_json, recipe_path
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.campaign.session import Session
    from agent.ledger.workspace import Workspace
    from agent.plan.planner import Ranking

NO_CAMPAIGN = "(none)"
"""A name that no campaign can have."""
JSON = typer.Option(False, "--json", help="Print as JSON.")


@app.command()
def plan(
    recipe: str | None = typer.Argument(None, help="Recipe. Default: that of the last campaign, else main."),
    only: str | None = typer.Option(None, help="One axis or one hypothesis."),
    most: int = typer.Option(10, "--most", min=1, help="How many ideas to show."),
    skipped: bool = typer.Option(False, "--skipped", help="Show every idea that was skipped, and why."),
    json_output: bool = JSON,
) -> None:
    """Rank the ideas for a recipe.

    With a campaign behind it, from what its runs showed."""
    workspace = here()
    session, evidence = session_of(workspace, recipe, only)
    from agent.campaign import choose

    ranking = choose.rank(session, evidence)
    if json_output:
        print_json(_ranking_json(ranking) | {"steering": steering_json(session, evidence)})
        return
    known = f"after campaign {session.settings.campaign}" if evidence else "without telemetry"
    print(f"{session.recipe_path}, {known}, on {session.machine.summary}")
    for line in steering_lines(session, evidence):
        print(line)
    _print_ranking(ranking, most=most, with_skipped=skipped)


def session_of(
    workspace: Workspace, recipe: str | None, only: str | None, *, unfinished: bool = False
) -> tuple[Session, Any]:
    """The last campaign with this recipe, or an empty one. `unfinished`: an empty one of the same recipe also where
    that campaign is finished."""
    from agent.campaign.open import look, machine_of
    from agent.campaign.settings import Settings
    from agent.campaign.workbench import Workbench
    from agent.ledger.journal import Journal

    path = recipe_path(workspace, recipe) if recipe is not None else None
    chosen = None
    for name in reversed(workspace.campaign_names()):
        state = Journal(workspace.journal_path(name)).state()
        if state.started is not None and path in (None, state.started.recipe_path):
            chosen = None if unfinished and state.status == "finished" else name
            path = state.started.recipe_path
            break
    settings = Settings(recipe_path=path or recipe_path(workspace, None), campaign=chosen or NO_CAMPAIGN, only=only)
    workspace.prepare()
    session = look(workspace, settings, machine=machine_of(workspace), model_cache=model_cache())
    if chosen is None:
        return session, None
    bench = Workbench(session)
    bench.gather()
    evidence = bench.evidence
    return session, evidence if evidence.last_run(session.incumbent) else None


def _print_ranking(ranking: Ranking, *, most: int, with_skipped: bool) -> None:
    import textwrap

    for reading in ranking.readings:
        print(f"reading   {reading.reading}: {reading.evidence}")
    for finding in ranking.findings:
        explained = f", explained by {finding.explained_by}" if finding.explained_by else ""
        print(f"symptom   {finding.symptom} ({finding.severity:.2f}{explained}): {finding.evidence}")
    for advice in ranking.actions:
        print(f"action    {advice.action}: {advice.does} ({advice.why})")
    print(ranking.note)
    told_rules: set[str] = set()
    for place, proposal in enumerate(ranking.proposals[:most], start=1):
        print(f"{place:3d}. {proposal.score:.3f}  {proposal.subject}")
        for line in textwrap.wrap("; ".join(_rules_once(proposal.why, told_rules)), width=72):
            print(f"       {line}")
    if with_skipped:
        for skip in ranking.skipped:
            print(f"skipped   {skip.hypothesis}: {skip.reason}")
    elif ranking.skipped:
        print(f"{len(ranking.skipped)} ideas skipped (--skipped says why), for example:")
        for skip in ranking.skipped[:3]:
            print(f"  {skip.hypothesis}: {skip.reason}")


def _rules_once(why: list[str], explained: set[str]) -> Iterator[str]:
    """The reasons; a resource rule is told in full by the first idea that it moves, and named by the others."""
    for reason in why:
        rule = re.fullmatch(r"(x[\d.]+) (.+) (\(rule \S+\))", reason)
        if rule is None:
            yield reason
            continue
        factor, says, name = rule.groups()
        yield f"{factor} {name}" if says in explained else reason
        explained.add(says)


def _ranking_json(ranking: Ranking) -> dict[str, Any]:
    import dataclasses

    return {
        "readings": [dataclasses.asdict(reading) for reading in ranking.readings],
        "symptoms": [dataclasses.asdict(finding) for finding in ranking.findings],
        "actions": [dataclasses.asdict(advice) for advice in ranking.actions],
        "proposals": [
            {
                "hypothesis": one.hypothesis,
                "variant": one.variant,
                "axis": one.axis,
                "subject": one.subject,
                "score": one.score,
                "why": one.why,
                "symptom": one.symptom,
                "evidence": one.evidence,
                "change": {key: list(move) for key, move in one.values.items()},
            }
            for one in ranking.proposals
        ],
        "skipped": [dataclasses.asdict(skip) for skip in ranking.skipped],
        "note": ranking.note,
    }


@app.command()
def diagnose(
    run: str | None = typer.Argument(None, help="Run id or folder; `raft-agent show N` lists them."),
    all_signals: bool = typer.Option(False, "--signals", help="Print every signal with its meaning."),
    json_output: bool = JSON,
) -> None:
    """Say what a run shows.

    Its symptoms with their numbers, or why it crashed.
    """
    from agent.plan.playbook import load_playbook
    from agent.plan.symptoms import Observation, read_bottleneck, signals
    from agent.plan.symptoms import diagnose as find
    from agent.recipe.files import load_recipe
    from agent.run.telemetry import read_run

    if run is None:
        if not all_signals:
            raise UsageError(
                "which run?", hint="raft-agent show N lists an idea's runs; --signals explains the signals"
            )
        _print_signals({})
        return
    workspace = here()
    out = _run_folder(workspace, run)
    record = read_run(out)
    playbook = load_playbook(workspace.hypotheses)
    recipe = load_recipe(out / "recipe.yaml")
    search = [row for row in record.evals if row.split == "search"]
    observation = Observation(
        recipe=recipe,
        cycles=record.cycles,
        summary=record.summary,
        failure=record.failure,
        evals=search,
        load=record.load,
    )
    known = signals(observation)
    findings, readings = find(observation, playbook), read_bottleneck(observation, playbook)
    crash = _crash(out) if record.summary is None else None
    rule = playbook.crash_rule(crash.crash_class) if crash else None
    fixes = playbook.fixes_after(crash.crash_class) if crash else 0
    if json_output:
        import dataclasses

        print_json(
            {
                "run": out.name,
                "crash": dataclasses.asdict(crash) | {"first": rule.first if rule else None, "fixes": fixes}
                if crash
                else None,
                "signals": known,
                "symptoms": [dataclasses.asdict(finding) for finding in findings],
                "readings": [dataclasses.asdict(reading) for reading in readings],
            }
        )
        return
    from agent.report.numbers import Numbers
    from agent.report.words import trained

    summary = record.summary
    if crash is not None:
        print(f"{out.name}: no summary. {crash.crash_class}: {crash.reason}\n  {crash.evidence} ({crash.source})")
        if rule is not None:
            print(f"  in a campaign: {rule.first} (At most {fixes} fixes and repeats of an idea.)")
    elif summary is not None:
        numbers = Numbers(summary.metric)
        metrics = ", ".join(f"{split} {numbers.value(value)}" for split, value in summary.metrics.items())
        print(f"{out.name}: {trained(summary.cycles, summary.optimizer_steps)}, {metrics}")
    for reading in readings:
        print(f"reading  {reading.reading}: {reading.means}\n         {reading.evidence}")
    for finding in findings:
        print(f"symptom  {finding.symptom} ({finding.severity:.2f}): {finding.means}\n         {finding.evidence}")
    if not findings and record.cycles:
        print("no symptom: this run looks healthy")
    if all_signals:
        _print_signals(known)
    elif known:
        print("--signals prints every number behind this")


def _crash(out: Path) -> Any:
    """Triage of what is left in the folder; the launcher's own observations are in the journal, not here."""
    from agent.run.diagnosis import evidence_of
    from agent.run.request import RunResult
    from agent.run.triage import triage

    result = RunResult(
        out=out,
        exit_code=None,
        signal=None,
        ended_by="itself",
        reason="",
        elapsed_s=0.0,
        summary=None,
        peak_rss_gb=None,
    )
    return triage(evidence_of(result))


def _run_folder(workspace: Workspace, run: str) -> Path:
    import difflib

    if Path(run).is_dir():
        return Path(run)
    folders = {path.name: path for path in workspace.private.glob("runs/*/*") if path.is_dir()}
    if run in folders:
        return folders[run]
    stem = run.rsplit(".", 1)[0]  # a second start of the same run has a number behind it
    if stem in folders:
        return folders[stem]
    near = difflib.get_close_matches(run, folders, n=3)
    raise UsageError(
        f"no run {run}", hint=f"did you mean {' or '.join(near)}?" if near else "raft-agent show N lists runs"
    )


def _print_signals(known: dict[str, float | None]) -> None:
    from agent.plan.signals import SIGNALS

    for name, signal in SIGNALS.items():
        value = known.get(name)
        shown = f"{value:.4g}" if value is not None else ("-" if known else "")
        print(f"{name:<28} {shown:<10} {signal.doc} ({signal.window})")
