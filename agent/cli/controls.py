"""`pause`, `steer`, `notify`: what a person can do to a campaign that runs. docs/controls.md has all of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.shared import here, print_json
from agent.errors import AgentError, Unavailable, UsageError, WorkspaceError

if TYPE_CHECKING:
    from agent.campaign.done import Done
    from agent.campaign.evidence import Evidence
    from agent.campaign.session import Session
    from agent.ledger.journal import CampaignState
    from agent.ledger.workspace import Workspace
    from agent.plan.steer import Instruction, Steering
    from agent.run.notify import Channels

WEBHOOK_VARIABLE, NOTIFY_VARIABLE = "RAFT_AGENT_WEBHOOK", "RAFT_AGENT_NOTIFY"
WEBHOOK = typer.Option(
    None,
    "--webhook",
    envvar=WEBHOOK_VARIABLE,
    metavar="URL",
    help="Address that gets a message on a keep, on ideas that crash in a row, on a pause and on the end.",
)
NOTIFY = typer.Option(
    None, "--notify", envvar=NOTIFY_VARIABLE, metavar="COMMAND", help="Command that gets it: JSON on standard input."
)
LOOK_EVERY_S = 0.2


# --- pause -------------------------------------------------------------------------------------------------


@app.command()
def pause(
    name: str | None = typer.Argument(None, help="Campaign. Default: the one that runs."),
    now: bool = typer.Option(False, "--now", help="End the running training now; resume goes on with it."),
    wait: bool = typer.Option(False, "--wait", help="Return once it has paused."),
) -> None:
    """Pause a running campaign after the present idea.

    `raft-agent resume` goes on with it.
    """
    from agent.campaign.pausing import ask_to_pause

    workspace = here()
    chosen = _running(workspace, name)
    ask_to_pause(workspace.campaign_folder(chosen), now=now)
    print(f"asked campaign {chosen} to pause: {_what_will_happen(_state(workspace, chosen), now=now)}")
    if wait:
        print(f"waiting; Ctrl-C ends the waiting, and campaign {chosen} pauses all the same")
        print(_waited_for(workspace, chosen))
    else:
        print(f"  raft-agent status says when it has; raft-agent resume {chosen} goes on")


def _running(workspace: Workspace, name: str | None) -> str:
    """The campaign that is meant, which runs."""
    from agent.ledger.lock import running_campaign

    names = workspace.campaign_names()
    if not names:
        raise UsageError("no campaign to pause in this workspace", hint="raft-agent run --budget 8h starts one")
    if name is not None and name not in names:
        raise UsageError(f"there is no campaign {name}", hint=f"there are: {', '.join(names)}")
    running = running_campaign(workspace)
    if running is not None and name in (None, running):
        return running
    chosen = name or names[-1]
    state = _state(workspace, chosen)
    if state.status == "finished":
        from agent.campaign.more import hint_for

        raise UsageError(f"campaign {chosen} is finished: {state.stop_reason}", hint=hint_for(state, chosen))
    is_paused = f"is paused already: {state.stop_reason}" if state.status == "paused" else "is not running"
    raise UsageError(
        f"campaign {chosen} {is_paused}",
        hint=f"campaign {running} runs" if running else f"raft-agent resume {chosen} goes on with it",
    )


def _state(workspace: Workspace, name: str) -> CampaignState:
    from agent.ledger.journal import Journal

    return Journal(workspace.journal_path(name)).state()


def _what_will_happen(state: CampaignState, *, now: bool) -> str:
    runs = [run for run in state.open_runs if run.words]
    holdout = any(run.words and run.words.role == "holdout" for run in runs)
    if now and runs:
        return "the running training saves its state and leaves within 20s, and the campaign pauses"
    if now:
        return "nothing trains just now, so it pauses before its next training"
    if holdout:
        return "it evaluates the holdout, after which it is finished; --now pauses before that"
    baseline = state.experiments.get(0)
    if baseline is None or baseline.judged is None:
        return "it measures the baseline first, and pauses before the first idea; --now pauses at once"
    ideas = [one for number, one in sorted(state.experiments.items()) if number and one.planned and not one.judged]
    what = f"#{ideas[0].number} has its outcome" if ideas else "the present step is done"
    return f"it pauses once {what}; --now pauses at once"


def _waited_for(workspace: Workspace, name: str) -> str:
    """AgentError where somebody took the request back, so that the campaign goes on."""
    from agent.campaign.pausing import asked_to_pause
    from agent.ledger.lock import campaign_holder

    folder = workspace.campaign_folder(name)
    while campaign_holder(workspace, name) is not None:
        # a campaign that pauses says so in its journal before the request goes
        if asked_to_pause(folder) is None and _state(workspace, name).status == "running":
            again = f"raft-agent pause {name} --wait asks again"
            raise AgentError(f"the request was taken back: campaign {name} goes on", hint=again)
        time.sleep(LOOK_EVERY_S)
    state = _state(workspace, name)
    if state.status == "finished":
        return f"campaign {name} has finished meanwhile: {state.stop_reason}"
    if state.status == "paused":
        return f"campaign {name} is paused: {state.stop_reason}"
    return f"campaign {name} has ended without a word, as of a kill; raft-agent resume {name} goes on with it"


# --- steer -------------------------------------------------------------------------------------------------


@app.command()
def steer(
    example: bool = typer.Option(False, "--example", help="Print a steer.md to start from."),
    json_output: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """Show what steer.md asks for, and what is wrong with it.

    The file in the workspace is yours: it is read before every plan, and never written. What it asks to try is looked
    at as the campaign that is not finished would now, else as the next one would.
    """
    from agent.plan.steer import EXAMPLE, FILE

    if example:
        print(EXAMPLE, end="")
        return
    from agent.campaign.steering import read
    from agent.plan.playbook import load_playbook

    workspace = here()
    names = workspace.campaign_names()
    state = _state(workspace, names[-1]) if names else None
    started = state.started if state and state.status != "finished" else None
    only = started.options.get("only") if started else None
    steering = read(workspace.root, load_playbook(workspace.hypotheses), only=only)
    done = _done(state)
    refused, unknown = _refused_now(workspace, steering, done, only)
    if json_output:
        print_json(_json(steering, done, refused) | {"unknown": unknown or None})
        return
    for line in _lines(steering, done, refused):
        print(line)
    if unknown:
        print(f"unknown   whether what is asked to try can be tried: {unknown}")
    if not steering.instructions and not steering.problems:
        print(f"{FILE} asks for nothing; raft-agent steer --example shows what it could")


def steering_lines(session: Session, evidence: Evidence[Done] | None) -> list[str]:
    """For `plan` and `--dry-run`: what a file asks for, and what is wrong with it."""
    return _lines(*_told(session, evidence))


def steering_json(session: Session, evidence: Evidence[Done] | None) -> dict[str, object]:
    return _json(*_told(session, evidence))


def _told(session: Session, evidence: Evidence[Done] | None) -> tuple[Steering, set[str], dict[str, str]]:
    from agent.campaign.steering import in_force

    steering, done = in_force(session), _done(session.state)
    return steering, done, _refused(session, evidence, steering, done)


def _done(state: CampaignState | None) -> set[str]:
    """What is not done again: nothing, once the campaign is finished and another one begins."""
    from agent.campaign.steering import carried_out

    return carried_out(state) if state is not None and state.status != "finished" else set()


def _refused_now(
    workspace: Workspace, steering: Steering, done: set[str], only: str | None
) -> tuple[dict[str, str], str]:
    """As `_refused`; and why that cannot be known, where the recipe or the campaign cannot be read."""
    from agent.cli.ideas import session_of

    if not any(one.text not in done for one in steering.of_kind("try")):
        return {}, ""
    try:
        session, evidence = session_of(workspace, None, only, unfinished=True)
        return _refused(session, evidence, steering, done), ""
    except AgentError as error:
        return {}, f"{error.where}: {error.message}" if error.where else error.message


def _refused(session: Session, evidence: Evidence[Done] | None, steering: Steering, done: set[str]) -> dict[str, str]:
    """What would not be tried now, by its words, and why: by the campaign's own admission."""
    from agent.campaign.choose import asked_of

    asked = [(one, asked_of(session, evidence, one)) for one in steering.of_kind("try") if one.text not in done]
    return {one.text: why_not for one, (proposal, why_not) in asked if proposal is None}


def _lines(steering: Steering, done: set[str], refused: dict[str, str]) -> list[str]:
    asked = [one for one in steering.instructions if one.text not in refused]
    return [f"steered   {one.words}{_is_done(one, done)}" for one in asked] + [
        f"problem   {words}" for words in _problems(steering, refused)
    ]


def _problems(steering: Steering, refused: dict[str, str]) -> list[str]:
    told = [(one.line, one.words) for one in steering.problems]
    told += [
        (one.line, f"{one.words} would not be tried: {refused[one.text]}")
        for one in steering.instructions
        if one.text in refused
    ]
    return [words for _, words in sorted(told, key=lambda problem: problem[0])]


def _is_done(one: Instruction, done: set[str]) -> str:
    if not one.is_once or one.text not in done:
        return ""
    return ": done; it counts again once the campaign has read the file without it"


def _json(steering: Steering, done: set[str], refused: dict[str, str]) -> dict[str, object]:
    told = [
        {
            "line": one.line,
            "instruction": one.text,
            "done": one.is_once and one.text in done,
            "refused": refused.get(one.text),
        }
        for one in steering.instructions
    ]
    return {"instructions": told, "problems": _problems(steering, refused)}


# --- notify ------------------------------------------------------------------------------------------------


@app.command()
def notify(webhook: str | None = WEBHOOK, notify: str | None = NOTIFY) -> None:
    """Send a test message to your webhook and command.

    Once each and with every retry, as a campaign would in the night."""
    from agent.campaign.notices import message
    from agent.run.notify import Notifier

    channels = channels_here(webhook, notify)
    if not channels.words():
        raise UsageError(
            "where to?", hint=f"--webhook URL, --notify COMMAND, or the variables {WEBHOOK_VARIABLE}, {NOTIFY_VARIABLE}"
        )
    test = message("test", "test", "this is how a message of the night looks", {"metric_value": 0.5})
    told = Notifier(channels, folder=_where_a_campaign_runs()).deliver(test)
    for words, trouble in zip(channels.words(), told.values(), strict=True):
        print(f"{words}: {'failed' if trouble else 'took the message'}")
    troubles = [trouble for trouble in told.values() if trouble]
    if troubles:
        raise Unavailable("; ".join(troubles), hint="a campaign would go on all the same, and you would hear nothing")


def _where_a_campaign_runs() -> Path:
    """The workspace; the current folder where that is in none, as channels may be tried before there is one."""
    try:
        return here().root
    except WorkspaceError:
        return Path.cwd()


def channels_here(webhook: str | None, notify: str | None) -> Channels:
    """UsageError where they are none. From here on the address is a secret to everything that is written or printed:
    it is the value of a variable with a telling name."""
    from agent.run.notify import channels_of

    for variable, value in ((WEBHOOK_VARIABLE, webhook), (NOTIFY_VARIABLE, notify)):
        os.environ.pop(variable, None)
        if value:
            os.environ[variable] = value
    return channels_of(webhook, notify)


def hand_on(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the command line without them, environment with them), for a campaign in the background: a command line is
    there for everybody to see."""
    left: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith(("--webhook=", "--notify=")):
            skip = False
        elif argument in ("--webhook", "--notify"):
            skip = True
        else:
            left.append(argument)
    return left, dict(os.environ)
