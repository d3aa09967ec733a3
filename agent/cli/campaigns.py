"""`run` and `resume`: start a campaign, or go on with one."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.controls import NOTIFY, WEBHOOK, channels_here, hand_on, steering_lines
from agent.cli.interrupt import polite_interrupt
from agent.cli.shared import here, model_cache, print_json, recipe_path
from agent.errors import ResourceError, UsageError
from agent.report.words import duration

if TYPE_CHECKING:
    from agent.campaign.finish import Ending
    from agent.campaign.observer import Observer
    from agent.campaign.report import Reporter
    from agent.campaign.session import Session
    from agent.campaign.settings import Settings
    from agent.campaign.workbench import Workbench
    from agent.ledger.workspace import Workspace
    from agent.run.notify import Channels

RECIPE = typer.Argument(None, help="Recipe: a path, or a name in recipes/. Default: main, else tiny-addition.")


@app.command()
def run(
    recipe: str | None = RECIPE,
    budget: str | None = typer.Option(None, help="Wall-clock of the campaign: 8h, 90m, 1h30m."),
    deadline: str | None = typer.Option(None, help="Stop by this time: 07:30, or 2026-01-02T07:30."),
    name: str | None = typer.Option(None, help="Name of the campaign. Default: date and recipe."),
    only: str | None = typer.Option(None, help="Directed campaign: one axis or one hypothesis."),
    max_experiments: int | None = typer.Option(None, min=1, help="Most ideas to attempt."),
    per_experiment: str | None = typer.Option(None, help="Longest wall-clock of one run."),
    target: str | None = typer.Option(None, help="Stop at a confirmed metric: 'pass_rate>=0.9'."),
    seeds: int = typer.Option(3, min=2, max=20, help="Runs of the baseline before any idea."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be done, run nothing."),
    detach: bool = typer.Option(False, "--detach", help="Go on in the background; see raft-agent watch."),
    low_priority: bool = typer.Option(False, "--low-priority", help="Low CPU and IO priority for trainings."),
    allow_untrusted_code: bool = typer.Option(
        False, "--allow-untrusted-code", help="Run untrusted code where no sandbox can be made."
    ),
    new: bool = typer.Option(False, "--new", help="Start a new campaign even if the last one was cut short."),
    webhook: str | None = WEBHOOK,
    notify: str | None = NOTIFY,
    json_output: bool = typer.Option(False, "--json", help="Print the ending as JSON."),
) -> None:
    """Run a campaign under a budget.

    The baseline with several seeds, then ideas from the playbook one by one, each committed, trained, judged and
    recorded; what holds is confirmed with fresh seeds on fresh prompts; the holdout once, at the end.

    Where the last campaign had this recipe and was cut short by a kill, a shutdown, a power cut or a full disk, or the
    named one is not finished, that one is gone on with, as `resume` does; so a service may simply run this again.
    """
    from agent.campaign.budget import parse_deadline, parse_duration
    from agent.campaign.open import machine_of, start, unfinished
    from agent.campaign.open import resume as reopen
    from agent.campaign.settings import Settings
    from agent.ledger.workspace import check_campaign_name, default_campaign_name

    channels = channels_here(webhook, notify)
    workspace = here()
    path = recipe_path(workspace, recipe)
    if budget is None and deadline is None:
        raise UsageError("how long may it take?", hint="raft-agent run --budget 8h, or --deadline 07:30")
    now = datetime.datetime.now().astimezone()
    settings = Settings(
        recipe_path=path,
        campaign=name or default_campaign_name(Path(path).stem, today=now.date(), taken=_taken(workspace)),
        budget_s=parse_duration(budget) if budget else None,
        baseline_seeds=seeds,
        max_experiments=max_experiments,
        per_experiment_s=parse_duration(per_experiment, option="--per-experiment") if per_experiment else None,
        target=target,
        only=only,
        low_priority=low_priority,
        allow_untrusted_code=allow_untrusted_code,
    )
    interrupted = None if new else unfinished(workspace, settings, name=name)
    if interrupted:
        settings = dataclasses.replace(settings, campaign=interrupted)
    else:
        if name is not None:
            check_campaign_name(name, _taken(workspace))
        end = parse_deadline(deadline, now) if deadline else None  # one that has passed may still be gone on with
        settings = dataclasses.replace(settings, deadline=end.isoformat() if end else None)
    if dry_run:
        if interrupted:
            print(f"campaign {interrupted} is not finished: without --dry-run this would go on with it (or --new)")
            return
        _dry_run(workspace, settings, channels)
        return
    if detach:
        _detach(workspace, settings)
        return

    def opened(observer: Observer, stop: Callable[[], str | None]) -> Session:
        machine = machine_of(workspace)
        if interrupted:
            observer.say(
                f"campaign {interrupted} is not finished: going on with it, as it was started (--new: another)"
            )
            return reopen(
                workspace, interrupted, observer=observer, machine=machine, model_cache=model_cache(), stop_request=stop
            )
        return start(
            workspace, settings, observer=observer, machine=machine, model_cache=model_cache(), stop_request=stop
        )

    _campaign(workspace, settings.campaign, opened, channels=channels, json_output=json_output)


@app.command()
def resume(
    name: str | None = typer.Argument(None, help="Campaign to go on with. Default: the last one."),
    budget: str | None = typer.Option(None, help="Further time, on top of what the campaign had."),
    deadline: str | None = typer.Option(None, help="Another time to stop by: 07:30, or 2026-01-02T07:30."),
    max_experiments: int | None = typer.Option(None, min=1, help="Another number of ideas to attempt, in all."),
    target: str | None = typer.Option(None, help="Another confirmed metric to stop at: 'pass_rate>=0.9'."),
    webhook: str | None = WEBHOOK,
    notify: str | None = NOTIFY,
    json_output: bool = typer.Option(False, "--json", help="Print the ending as JSON."),
) -> None:
    """Go on with a stopped campaign.

    One that was paused or killed; the time in which it did not run is not charged. One that is finished needs more of
    what ended it: time (--budget; a deadline that has passed counts no more then), --max-experiments or --target.
    One that runs and was asked to pause is asked no more.
    """
    from agent.campaign.budget import parse_deadline, parse_duration
    from agent.campaign.open import machine_of
    from agent.campaign.open import resume as reopen

    channels = channels_here(webhook, notify)
    workspace = here()
    if not (budget or deadline or max_experiments or target) and _asked_no_more(workspace, name, json_output):
        return
    extra = parse_duration(budget) if budget else 0.0
    end = parse_deadline(deadline, datetime.datetime.now().astimezone()).isoformat() if deadline else None

    def opened(observer: Observer, stop: Callable[[], str | None]) -> Session:
        return reopen(
            workspace,
            name,
            observer=observer,
            machine=machine_of(workspace),
            model_cache=model_cache(),
            stop_request=stop,
            extra_budget_s=extra,
            deadline=end,
            max_experiments=max_experiments,
            target=target,
            take_back_pause=True,
        )

    chosen = name or next(iter(reversed(workspace.campaign_names())), "resumed")
    _campaign(workspace, chosen, opened, channels=channels, json_output=json_output)


def _asked_no_more(workspace: Workspace, name: str | None, json_output: bool) -> bool:
    """Whether that campaign runs and had been asked to pause: the request is taken back, and all goes on as it was."""
    from agent.campaign.pausing import REQUEST, asked_to_pause, take_back
    from agent.ledger.lock import running_campaign

    running = running_campaign(workspace)
    if running is None or name not in (None, running):
        return False
    folder = workspace.campaign_folder(running)
    asked = asked_to_pause(folder)
    if asked is None:
        return False
    take_back(folder)
    if asked_to_pause(folder) is not None:
        raise ResourceError(
            "cannot be removed, so the campaign is still asked to pause",
            where=str(folder / REQUEST),
            hint="check who owns the folder and its permissions",
        )
    if json_output:
        print_json({"campaign": running, "taken_back": asked})
    else:
        print(f"campaign {running} runs, and is asked no more to pause ({asked})")
        print(f"  one that it has begun to carry out comes all the same; raft-agent resume {running} goes on then")
    return True


def _taken(workspace: Workspace) -> list[str]:
    from agent.ledger.git import Repository

    return [*workspace.campaign_names(), *Repository(workspace.root).list_campaigns()]


def _campaign(
    workspace: Workspace,
    name: str,
    opened: Callable[[Observer, Callable[[], str | None]], Session],
    *,
    channels: Channels,
    json_output: bool,
) -> None:
    """Hold the workspace, keep the machine awake, run to the end, say what came of it."""
    from agent.campaign.loop import Paused
    from agent.campaign.notices import Notices, crashes_in_a_row
    from agent.campaign.observer import Several
    from agent.campaign.workbench import Workbench
    from agent.cli.doctor import complaints
    from agent.cli.report import reporter_of
    from agent.hardware.sleep import stay_awake
    from agent.ledger.disk import disk_errors
    from agent.ledger.lock import CAMPAIGN, hold
    from agent.report.terminal import TerminalObserver, console_for
    from agent.run.detach import survive_hangup
    from agent.run.ending import AtOnce
    from agent.run.notify import Notifier

    console = console_for(sys.stderr if json_output else sys.stdout)
    workspace.prepare()
    ending: Ending | None = None
    try:
        with (
            disk_errors(workspace.private),
            hold(workspace, what=f"{CAMPAIGN}{name}"),
            survive_hangup(workspace.private / "hangup.log") as to_log,
            polite_interrupt() as stop,
            stay_awake() as awake,
            TerminalObserver(console) as observer,
            Notifier(channels, folder=workspace.root, warn=observer.warn) as notifier,
        ):
            console.without_reader = to_log
            notices = Notices(name, notifier.send)
            session = opened(Several(observer, notices), stop)
            bench = Workbench(session)
            notices.crashes = crashes_in_a_row(bench.outcomes())
            _opening_words(session, observer)
            if channels.words():
                observer.say(f"messages go to {' and '.join(channels.words())}")
            if not awake.held:
                observer.warn(awake.words)
            for words in complaints():
                observer.warn(f"{words} (raft-agent doctor says what to do)")
            reporter = reporter_of(workspace, session, bench)
            ending = _to_the_end(bench, reporter, observer)
    except AtOnce as asked:
        if ending is None:  # else it has ended, and only its messages were on their way
            raise Paused(f"{asked.reason}, at once", hint="raft-agent resume goes on where it stopped") from None
    if json_output:
        print_json({**_ending_json(session, ending), "report": str(reporter.page) if reporter.page.exists() else None})
    else:
        _closing_words(session, ending)
        if reporter.page.exists():
            print(f"report: {reporter.page}")


def _to_the_end(bench: Workbench, reporter: Reporter, observer: Observer) -> Ending:
    """Run, with the report renewed to the last; where it is cut short, say where the report so far is."""
    from agent.campaign.loop import run_campaign
    from agent.campaign.report import IMPATIENCE_S, PATIENCE_S

    try:
        ending = run_campaign(bench)
    except BaseException as stopped:
        reporter.close(patience_s=IMPATIENCE_S if isinstance(stopped, KeyboardInterrupt) else PATIENCE_S)
        if reporter.page.exists():
            observer.say(f"report so far: {reporter.page}")
        raise
    reporter.close()
    return ending


def _opening_words(session: Session, observer: Observer) -> None:
    from agent.campaign.calibration import plan_first
    from agent.campaign.workbench import Workbench

    settings = session.settings
    asked_for = settings.budget_s if settings.deadline is None and session.state.sessions <= 1 else None
    time = duration(asked_for) if asked_for else f"{duration(session.clock.left_s)} left"
    observer.say(f"campaign {settings.campaign}: {session.recipe_path}, {time}, on {session.machine.summary}")
    if session.state.sessions <= 1 and session.settings.budget_s is not None:
        observer.say(f"plan (a guess until the first run): {plan_first(Workbench(session)).words()}")


def _closing_words(session: Session, ending: Ending) -> None:
    from agent.cli.looking import closing_words

    for line in closing_words(session, ending):
        print(line)


def _ending_json(session: Session, ending: Ending) -> dict[str, object]:
    return {"campaign": session.settings.campaign, **session.state.result, "reason": ending.reason}


# --- before anything runs ----------------------------------------------------------------------------------


def _dry_run(workspace: Workspace, settings: Settings, channels: Channels) -> None:
    """The night as it would be spent, and the ideas in the order they would come without any telemetry."""
    from agent.campaign import choose
    from agent.campaign.calibration import plan_first
    from agent.campaign.capacity import refuse_too_large
    from agent.campaign.open import look, machine_of, refuse_closed_doors
    from agent.campaign.workbench import Workbench
    from agent.recipe.editing import refuse_uneditable

    session = look(workspace, settings, machine=machine_of(workspace), model_cache=model_cache())
    recipe = session.recipe_of(0)
    refuse_uneditable(session.start_files()[settings.recipe_path], where=settings.recipe_path)
    refuse_closed_doors(recipe, base=workspace.root, name=settings.recipe_path)
    refuse_too_large(recipe, session.machine, cache=session.cache, base=workspace.root, where=settings.recipe_path)
    print(f"campaign {settings.campaign}: {settings.recipe_path} on {session.machine.summary}")
    if settings.budget_s is not None:
        print(f"plan (times are guesses until the first run): {plan_first(Workbench(session)).words()}")
    for line in steering_lines(session, None):
        print(line)
    if channels.words():
        print(f"messages would go to {' and '.join(channels.words())} (raft-agent notify sends one)")
    ranking = choose.rank(session, None)
    print(f"without telemetry yet, these would come first; {ranking.note}")
    print(choose.explain(ranking, most=8))
    print("nothing was run and nothing written")


def _detach(workspace: Workspace, settings: Settings) -> None:
    """Start the same command in a session of its own."""
    from agent.ledger.lock import refuse_if_held
    from agent.package import package_path
    from agent.run.detach import detach

    workspace.prepare()
    refuse_if_held(workspace)
    log = workspace.private / f"{settings.campaign}.log"
    arguments, environment = hand_on([argument for argument in sys.argv[1:] if argument != "--detach"])
    if "--name" not in " ".join(arguments):
        arguments += ["--name", settings.campaign]
    pid = detach(
        [sys.executable, "-P", "-m", "agent.cli", *arguments],
        log=log,
        cwd=Path.cwd(),
        env=environment | {"PYTHONPATH": package_path(environment.get("PYTHONPATH"))},
        settle_s=3.0,
    )
    print(f"campaign {settings.campaign} runs in the background (process {pid})")
    print(f"  raft-agent watch         where it stands, live\n  tail -f {log.relative_to(workspace.root)}")
    print("  raft-agent pause         ends it after the present idea (--now: at once); raft-agent resume goes on")
