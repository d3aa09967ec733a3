"""`triage`: why a training died, from its log. Works on the log of any framework."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import print_json
from agent.errors import AgentError, UsageError

if TYPE_CHECKING:
    from agent.run.diagnosis import Diagnosis
    from agent.run.signatures import Rules

CONTEXT_LINES = 2


@app.command()
def triage(
    log: str | None = typer.Argument(
        None, help="A log of any framework, - for standard input, or the folder of a run."
    ),
    exit_code: int | None = typer.Option(None, "--exit-code", help="As the shell gives it; negative is a signal."),
    rules: bool = typer.Option(False, "--rules", help="List the rules, each with an example."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say why a training died: class, evidence, remedy.

    Classes: typo, oom, backend, numeric, data, timeout, resource, unknown. A workspace's own rules
    (hypotheses/crashes/) count before ours.
    """
    known = _rules()
    if rules:
        _print_rules(known, json_output=json_output)
        return
    if log is None:
        raise UsageError("which log?", hint="raft-agent triage train.log --exit-code 137; --rules lists what is known")
    found, notes = _judged(log, exit_code, known)
    if json_output:
        print_json(_told(found, notes))
        return
    _print(found, notes)


def _rules() -> Rules:
    from agent.ledger.workspace import find_workspace
    from agent.run.signatures import our_rules, rules_of

    try:
        playbook = find_workspace(Path.cwd()).hypotheses
    except AgentError:
        return our_rules()
    return rules_of(playbook)


def _judged(log: str, exit_code: int | None, rules: Rules) -> tuple[Diagnosis, tuple[str, ...]]:
    from agent.run.diagnosis import Evidence
    from agent.run.logfile import read_log, read_stream
    from agent.run.triage import triage as judge

    if log == "-":
        read = read_stream(sys.stdin.buffer)
    elif Path(log).is_dir():
        return judge(_folder(Path(log), exit_code), rules=rules), ()
    else:
        read = read_log(Path(log))
    evidence = Evidence(log=read.text, first_line=read.first_line, exit_code=exit_code)
    return judge(evidence, rules=rules), read.notes


def _folder(folder: Path, exit_code: int | None) -> Any:
    """What the folder of one of our runs tells: log, failure.json, heartbeat."""
    from agent.contract import LOG
    from agent.run.diagnosis import Evidence
    from agent.run.telemetry import latest_log, read_run

    if not (folder / LOG).exists():
        raise UsageError(f"no {LOG} in that folder", where=str(folder), hint="give the path of a log")
    run, log = read_run(folder), latest_log(folder)
    return Evidence(
        log=log.text,
        first_line=log.first_line,
        exit_code=exit_code,
        failure=run.failure,
        phase=run.heartbeat.phase if run.heartbeat else None,
        problems=run.problems,
    )


def _told(found: Diagnosis, notes: tuple[str, ...]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "label": found.crash_class,
        "subtype": found.signature,
        "evidence": found.evidence,
        "line": found.line,
        "confidence": round(found.confidence, 2),
        "remedy": found.remedy,
        "reason": found.reason,
        "source": found.source,
    }
    if notes:
        told["notes"] = list(notes)
    return told


def _print(found: Diagnosis, notes: tuple[str, ...]) -> None:
    import textwrap

    place = f"line {found.line}" if found.line is not None else found.source
    print(f"{found.crash_class} ({found.signature}), confidence {found.confidence:.0%}")
    for label, text in (("evidence", f"{place}: {found.evidence}"), ("why", found.reason), ("remedy", found.remedy)):
        if text:
            print(textwrap.fill(text, 100, initial_indent=f"  {label:<10}", subsequent_indent=" " * 12))
    for note in notes:
        print(f"  {'note':<10}{note}")


def _print_rules(rules: Rules, *, json_output: bool) -> None:
    from agent.run.signatures import OURS

    if json_output:
        print_json(
            [
                {
                    "name": one.name,
                    "class": one.crash_class,
                    "rank": one.rank.name.lower(),
                    "says": one.meaning,
                    "patterns": [pattern.pattern for pattern in one.patterns],
                    "seen_in": one.seen_in,
                    "example": one.example,
                    "remedy": one.remedy,
                    "source": one.source,
                }
                for one in rules
            ]
        )
        return
    for one in rules:
        print(f"{one.crash_class:<9} {one.name:<22} {one.meaning}")
        print(f"{'':<9} {'':<22} e.g. {one.example[:120]}")
    print(f"\n{len(list(rules))} rules; ours are in {OURS}, a workspace's own go to hypotheses/crashes/*.yaml")
