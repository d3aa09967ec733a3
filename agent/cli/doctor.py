"""`doctor`: is this machine fit for a night of trainings?"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import model_cache, print_json

if TYPE_CHECKING:
    from agent.hardware.facts import Facts
    from agent.hardware.findings import Finding

WIDTH, INDENT = 80, 10
WORDS = {"error": "ERROR", "warning": "warning", "unknown": "unknown", "note": "note", "ok": "ok"}


@app.command()
def doctor(
    quick: bool = typer.Option(False, "--quick", help="Only read; measure nothing in processes of its own."),
    strict: bool = typer.Option(False, "--strict", help="Warnings count as errors for the exit code."),
    verbose: bool = typer.Option(False, "--verbose", help="Show what is in order with its evidence too."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON object."),
    root: Path | None = typer.Option(None, hidden=True, help="Read /sys, /proc and the rest below this folder."),
) -> None:
    """Check this machine.

    Kernel, firmware, memory limits, torch, variables, speed and attention, each with evidence, consequence and the
    exact fix. It changes nothing. What it measures of settings is kept, and runs on this machine follow it.

    error: trainings fail here or do not use the card. warning: they get slow, or die some night. unknown: could not
    be read, and how to. Exit code: 0 without an error, 11 with one; --strict takes a warning for an error.
    """
    from agent.hardware.doctor import examine, look
    from agent.hardware.findings import exit_code
    from agent.hardware.measured import measured_path
    from agent.hardware.root import HOST, Root

    began = time.monotonic()
    facts = look(
        measured=measured_path() if root is None else None,
        folders=_folders(),
        quick=quick,
        root=HOST if root is None else Root(root.absolute()),
        say=_say if sys.stderr.isatty() else lambda what: None,
    )
    findings = examine(facts)
    code = exit_code(findings, strict=strict)
    if json_output:
        print_json(_told(facts, findings, code=code, seconds=time.monotonic() - began))
    else:
        print("\n".join(lines(facts, findings, verbose=verbose)))
    raise typer.Exit(code)


def complaints() -> list[str]:
    """What is wrong with this machine, worst first, in a line each; read in a second or two, nothing is measured."""
    from agent.hardware.doctor import examine, look

    findings = examine(look(measured=None, folders=_folders(), quick=True))
    return [finding.title for finding in findings if finding.severity in ("error", "warning")]


def _folders() -> list[Path]:
    """Those that a campaign writes to, once where they share a file system."""
    found: dict[int, Path] = {}
    for folder in (Path.cwd(), model_cache()):
        existing = next(one for one in (folder, *folder.parents) if one.exists())
        found.setdefault(existing.stat().st_dev, folder)
    return list(found.values())


def _say(what: str) -> None:
    print(f"looking at {what}", file=sys.stderr)


def _told(facts: Facts, findings: Sequence[Finding], *, code: int, seconds: float) -> dict[str, Any]:
    return {
        "machine": facts.machine.summary,
        "torch": facts.machine.torch,
        "arch": facts.machine.arch,
        "accelerators": facts.machine.accelerators,
        "cards": list(facts.machine.listed),
        "worst": findings[0].severity if findings else "ok",
        "exit_code": code,
        "seconds": round(seconds, 1),
        "findings": [vars(finding) for finding in findings],
    }


# Text ------------------------------------------------------------------------------------------------------


def lines(facts: Facts, findings: Sequence[Finding], *, verbose: bool) -> list[str]:
    """Worst first; what is in order on one line each unless `verbose`."""
    out = [f"machine: {facts.machine.summary}", *(f"  {words}" for words in facts.machine.listed), ""]
    good = [finding for finding in findings if finding.severity == "ok"]
    for finding in findings:
        if finding.severity != "ok":
            out += [*_whole(finding), ""]
    if good and not verbose:
        out += ["in order:", *_table(good), ""]
    if verbose:
        out += [line for finding in good for line in [*_whole(finding), ""]]
    return [*out, _sum(findings)]


def _whole(finding: Finding) -> list[str]:
    head = textwrap.wrap(f"{WORDS[finding.severity]} ({finding.group}): {finding.title}", WIDTH, subsequent_indent="  ")
    rows = [
        ("seen", finding.evidence),
        ("means", finding.consequence),
        ("fix", finding.fix),
        ("source", finding.source),
    ]
    return head + [line for name, text in rows if text for line in _row(name, text)]


def _row(name: str, text: str) -> list[str]:
    """A label, and the text beside it; a command stands on lines of its own, ready to be copied."""
    out: list[str] = []
    for step in text.splitlines():
        width = WIDTH - INDENT
        wrapped = _command(step, width) if step.startswith("$ ") else textwrap.wrap(step, width, break_on_hyphens=False)
        out += wrapped
    return [f"{f'  {name}' if place == 0 else '':<{INDENT}}{line}" for place, line in enumerate(out)]


def _command(text: str, width: int) -> list[str]:
    """Long ones go on behind a backslash, which a shell takes out again, inside double quotes too."""
    lines = textwrap.wrap(text, width - 2, break_long_words=False, break_on_hyphens=False, subsequent_indent="    ")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _table(findings: Sequence[Finding]) -> list[str]:
    """One line each, under the name of their group."""
    out: list[str] = []
    before = ""
    for finding in findings:
        label = f"  {finding.group if finding.group != before else '':<13}"
        before = finding.group
        out += textwrap.wrap(
            finding.title, WIDTH, initial_indent=label, subsequent_indent=" " * 17, break_on_hyphens=False
        )
    return out


def _sum(findings: Sequence[Finding]) -> str:
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in WORDS}
    parts = [
        f"{count} {severity}{'s' if count > 1 and severity in ('error', 'warning', 'note') else ''}"
        for severity, count in counts.items()
        if count
    ]
    return ", ".join(parts)
