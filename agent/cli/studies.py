"""`study`: the same recipes with several seeds for a fixed number of cycles, and what that shows. No verdicts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.interrupt import polite_interrupt
from agent.cli.shared import here, model_cache, print_json, study_path
from agent.errors import INTERRUPTED_EXIT_CODE, UsageError
from agent.report.words import duration, percent
from agent.text import one_line

if TYPE_CHECKING:
    from rich.status import Status

    from agent.ledger.workspace import Workspace
    from agent.run.watching import Progress
    from agent.study.analysis import Analysis
    from agent.study.definition import Arm, Study
    from agent.study.results import FailedLine, Results, RunLine


@app.command()
def study(
    file: str = typer.Argument(..., metavar="STUDY", help="Study file: a path, or a name in studies/."),
    results: Path | None = typer.Option(None, help="Results file. Default: studies/results/STUDY.jsonl."),
    budget: str | None = typer.Option(None, help="Time for this call: 2h. The next call goes on."),
    max_runs: int | None = typer.Option(None, min=0, help="Most runs of this call."),
    retry: bool = typer.Option(False, "--retry", help="Try again what failed."),
    table: bool = typer.Option(False, "--table", help="Run nothing; show what is there."),
    cycles: bool = typer.Option(False, "--cycles", help="Show held-out accuracy after every cycle, too."),
    write: Path | None = typer.Option(None, metavar="FILE.md", help="Put tables and a chart into this Markdown file."),
    low_priority: bool = typer.Option(False, "--low-priority", help="Low CPU and IO priority."),
    allow_untrusted_code: bool = typer.Option(
        False, "--allow-untrusted-code", help="Run untrusted code where no sandbox can be made."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the numbers as JSON."),
) -> None:
    """Compare recipes cycle by cycle.

    Every combination of a study file's factors, with every seed, for a fixed number of cycles; then how far each fell
    after its peak, and where it ended, with intervals over the seeds. It judges and keeps nothing. Ctrl-C ends it in
    good order and the same command goes on; runs whose line is in the results file are never repeated.
    """
    from agent.campaign.budget import parse_duration
    from agent.ledger.disk import disk_errors
    from agent.study.analysis import analyse
    from agent.study.definition import load_study
    from agent.study.results import Results

    workspace = here()
    path = study_path(workspace, file)
    chosen = load_study(workspace.root / path, root=workspace.root)
    place = _results_path(workspace, chosen, results)
    budget_s = parse_duration(budget) if budget is not None else None
    with disk_errors(place):
        found = Results.read(place)
        _refuse_strangers(found)
        analyse(chosen, found)  # a damaged file is told before hours are spent
        stopped = None
        if not table:
            found, stopped = _run(
                workspace,
                chosen,
                place,
                budget_s=budget_s,
                max_runs=max_runs,
                retry=retry,
                low_priority=low_priority,
                allow_untrusted_code=allow_untrusted_code,
            )
    analysis = analyse(chosen, found)
    if write is not None:
        _write(analysis, write, command=f"raft-agent study {path}")
    _print(analysis, cycles=cycles, json_output=json_output)
    if stopped is not None and stopped.startswith("stopped by"):
        raise typer.Exit(INTERRUPTED_EXIT_CODE)


def _results_path(workspace: Workspace, chosen: Study, given: Path | None) -> Path:
    if given is not None and given.is_dir():
        raise UsageError(f"--results {given} is a folder", hint=f"for example --results {given}/{chosen.name}.jsonl")
    return given.absolute() if given is not None else workspace.studies / "results" / f"{chosen.name}.jsonl"


def _refuse_strangers(found: Results) -> None:
    """Lines would be appended to whatever file it is."""
    known = found.prompts or found.runs or found.failed
    if not known and found.path.is_file() and b"\n" in found.path.read_bytes():
        raise UsageError(
            f"{found.path} holds no results of a study", hint="name another file, or one that is not there"
        )
    if found.unread:
        print(
            f"warning: {found.path}: {found.unread} line{'s are' if found.unread > 1 else ' is'} damaged or of a newer "
            "raft-agent, and not counted",
            file=sys.stderr,
        )


def _run(
    workspace: Workspace,
    chosen: Study,
    path: Path,
    *,
    budget_s: float | None,
    max_runs: int | None,
    retry: bool,
    **keys: Any,
) -> tuple[Results, str | None]:
    """Hold the workspace, keep the machine awake, make the missing runs; (all there are, why it stopped before)."""
    from agent.campaign.open import machine_of
    from agent.cli.training import refuse_unfit
    from agent.hardware.sleep import stay_awake
    from agent.ledger.lock import hold
    from agent.report.terminal import console_for
    from agent.run.detach import survive_hangup
    from agent.study.results import Results
    from agent.study.runs import Place, missing, run_study

    workspace.prepare()
    console = console_for(sys.stderr)
    with (
        hold(workspace, what=f"study {chosen.name}"),
        survive_hangup(workspace.private / "hangup.log") as to_log,
        polite_interrupt() as stop,
        stay_awake(),
        console.status("") as spinner,
    ):
        console.without_reader = to_log
        machine = machine_of(workspace)
        for arm in chosen.arms:
            refuse_unfit(workspace, arm.recipe, machine, name=f"{chosen.name}: {arm.label}")
        found = Results.read(path)  # as it is now that nobody else writes
        if not missing(chosen, found, retry=retry):
            print(f"study {chosen.name}: nothing is left to run", file=sys.stderr)
        observer = _Teller(spinner, size=chosen.size)
        place = Place(workspace.root, workspace.study_folder(chosen.name), model_cache(), machine)
        ran = run_study(
            chosen, found, place, observer, stop=stop, budget_s=budget_s, max_runs=max_runs, retry=retry, **keys
        )
    if ran.stopped:
        print(f"study {chosen.name}: {one_line(ran.stopped)}; the same command goes on", file=sys.stderr)
    return found, ran.stopped


class _Teller:
    """Says on standard error which run is under way, what came of it, and how long the rest may take."""

    def __init__(self, spinner: Status, *, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.spinner, self.size, self.clock = spinner, size, clock
        self.began = clock()
        self.ended = 0
        self.now = ""

    def started(self, arm: Arm, seed: int, *, number: int, goes_on: bool) -> None:
        self.now = f"{number}/{self.size} {arm.label}, seed {seed}{', going on' if goes_on else ''}"
        self._spin("starting")

    def progress(self, progress: Progress) -> None:
        from agent.cli.training import progress_words
        from agent.report.numbers import Numbers

        self._spin(progress_words(progress, Numbers("pass_rate")))  # a study's metric is a rate

    def finished(self, line: RunLine | FailedLine, *, left: int) -> None:
        from rich.text import Text

        from agent.study.results import FailedLine

        self.ended += 1
        rest = left * (self.clock() - self.began) / self.ended
        if isinstance(line, FailedLine):
            what = f"FAILED, {line.crash_class}: {line.reason}"
        else:
            last = line.series["pass_rate"][-1]
            what = f"{duration(line.elapsed_s)}, last cycle's samples passed {percent(last)}"
        more = f"; {left} left, about {duration(rest)}" if left else ""
        self.spinner.console.print(Text(f"{one_line(f'{self.now}: {what}')}{more}"))  # above the spinner

    def _spin(self, words: str) -> None:
        from rich.text import Text

        self.spinner.update(Text(one_line(f"{self.now}: {words}")))  # a plain string would be read for markup


def _write(analysis: Analysis, path: Path, *, command: str) -> None:
    from agent.study.page import write_page

    for written in write_page(analysis, path, command=command):
        print(f"written: {written}", file=sys.stderr)


def _print(analysis: Analysis, *, cycles: bool, json_output: bool) -> None:
    import textwrap

    from agent.report.terminal import console_for
    from agent.study.analysis import as_json
    from agent.study.words import arms_sheet, comparisons_sheet, cycles_sheets, sentences

    if json_output:
        print_json(as_json(analysis))
        return
    console = console_for(sys.stdout)
    width = min(console.width, 100)
    comparisons = comparisons_sheet(analysis)
    sheets = [("", arms_sheet(analysis)), *([("", comparisons)] if comparisons else [])]
    if cycles:
        sheets += [
            (", ".join(filter(None, ("held-out accuracy", title))), one) for title, one in cycles_sheets(analysis)
        ]
    for title, sheet in sheets:
        if title:
            print(one_line(title))
        for part in sheet.parts(width):
            console.print(part.table(width=width))
            console.print()
    for sentence in sentences(analysis):
        print(textwrap.fill(sentence, width))
