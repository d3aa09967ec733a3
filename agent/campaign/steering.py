"""What a person wrote into `steer.md`, as this campaign has to take it: what is in force, what is still to be done, and
that it is said and written down when it changes.

The file is the user's and is never written. What was carried out is known by its words from the journal, so that a
campaign that was killed and goes on does nothing twice. A reading of the file without these words is written down too:
from then on they count again. It has to be sure: a file that is missing or was written a moment ago may be on its way
(an editor that saves, a checkout). The journal also has, with every idea, what was in force when it was planned:
reading it again gives the same night.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from agent.campaign.session import Session
from agent.files import stamp_or_none
from agent.ledger.events import CampaignFinished, Note
from agent.ledger.state import CampaignState
from agent.plan.schema import Playbook
from agent.plan.steer import FILE, FREE, Instruction, Problem, Steering, read_steering
from agent.text import redact

MOST_BYTES = 64 << 10
MOST_READINGS = 3
"""Of a file that is written while it is read."""
SETTLED_S = 2.0
"""After so long nobody is in the middle of writing the file."""
STOPS = "steer_stop"
DONE = "steer_done"
GONE = "steer_gone"
IN_FORCE = "steering"
PROBLEMS = "steer_problems"
"""Fields of the journal's notes."""


def in_force(session: Session) -> Steering:
    """What the file asks for now. Read again only where somebody has written it."""
    path = session.workspace / FILE
    for _ in range(MOST_READINGS):
        stamp = stamp_or_none(path)
        if session.steering is not None and session.steering[0] == stamp:
            break
        session.steering = stamp, read(session.workspace, session.playbook, only=session.settings.only)
    assert session.steering is not None
    return session.steering[1]


def read(workspace: Path, playbook: Playbook, *, only: str | None) -> Steering:
    """What the workspace's file asks for, whatever a campaign has done of it."""
    text = text_of(workspace / FILE)
    if text is None:
        return FREE
    if isinstance(text, Problem):
        return Steering(problems=(text,))
    return read_steering(text, playbook, only=only)


def text_of(path: Path) -> str | Problem | None:
    """None where there is no file. Nothing that is there is waited for: a pipe is not opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _unread(f"cannot be read ({(error.strerror or str(error)).lower()})")
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "no plain file"
            return _unread(f"is {what}")
        content = os.pread(descriptor, MOST_BYTES + 1, 0)
    except OSError as error:
        return _unread(f"cannot be read ({error.strerror})")
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        return _unread(f"is larger than {MOST_BYTES >> 10} KiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return Problem(line, "is not UTF-8; nothing of the file is in force", hides=True)


def _unread(why: str) -> Problem:
    return Problem(0, f"{why}; nothing of it is in force", hides=True)


# --- said and written down ---------------------------------------------------------------------------------


def tell_changes(session: Session) -> Steering:
    """What is in force, said and journaled where it is not what the journal knows; each problem is shown once. What was
    carried out and has left the file is journaled too: written again, it counts again."""
    steering = in_force(session)
    done = carried_out(session.state)
    holds = [one.text for one in steering.instructions if not (one.is_once and one.text in done)]
    wrong = [redact(problem.text) for problem in steering.problems]  # as the journal has it
    gone = sorted(text for text in done if steering.is_without(text)) if done and _is_settled(session) else []
    before, told = _told_last(session, done)
    if holds == before and wrong == told and not gone:
        return steering
    words = _words(steering, holds)
    if holds != before:
        session.observer.say(words)
    for problem in steering.problems:
        if redact(problem.text) not in told:
            session.observer.warn(problem.words)
    session.tell("note", text=words, **{IN_FORCE: holds, PROBLEMS: wrong}, **({GONE: gone} if gone else {}))
    return steering


def _is_settled(session: Session) -> bool:
    """What was read is there, and was not written just now."""
    stamp = session.steering[0] if session.steering else None
    return stamp is not None and not 0 <= session.journal.clock() - stamp[2] / 1e9 < SETTLED_S


def _words(steering: Steering, holds: list[str]) -> str:
    shown = [f"{one.text} (line {one.line})" for one in steering.instructions if one.text in holds]
    return f"{FILE}: {'; '.join(shown)}" if shown else f"{FILE}: nothing is in force"


def _told_last(session: Session, done: set[str]) -> tuple[list[str], list[str]]:
    """Instructions, less those that are done since, and problems, as they were told last."""
    for note in reversed(session.state.notes):
        told = note.model_extra or {}
        if IN_FORCE in told:
            return [text for text in told[IN_FORCE] if text not in done], list(told[PROBLEMS])
    return [], []


def planned_under(session: Session) -> dict[str, Any]:
    """For the journal, beside an idea: the pins and bans under which it was planned."""
    texts = [one.text for one in in_force(session).of_kind("pin", "ban")]
    return {IN_FORCE: texts} if texts else {}


# --- done once ---------------------------------------------------------------------------------------------


def carried_out(state: CampaignState) -> set[str]:
    """Words of the instructions that were tried, refused or obeyed in this campaign, and stand in the file since."""
    events = [*(one.planned for one in state.experiments.values() if one.planned), *state.notes]
    done: set[str] = set()
    for event in sorted(events, key=lambda event: event.seq):
        told = event.model_extra or {}
        done -= set(told.get(GONE, ()))
        if DONE in told:
            done.add(told[DONE])
    return done


def to_do(session: Session, kind: str) -> list[Instruction]:
    """Instructions to try, to stop or to pause that were not carried out yet, in the order of the file."""
    done = carried_out(session.state)
    return [one for one in in_force(session).instructions if one.kind == kind and one.text not in done]


def is_done(session: Session, instruction: Instruction, words: str, **more: Any) -> None:
    session.tell("note", text=words, **{DONE: instruction.text}, **more)


def stop(session: Session) -> str | None:
    """Why the search ends by the user's wish, or None. It stands until the campaign has ended: given more time after
    that, it goes on searching."""
    asked = next((note for note in reversed(session.state.notes) if STOPS in (note.model_extra or {})), None)
    if asked is not None and not _finished_since(session, asked):
        for instruction in to_do(session, "stop"):  # written again for the end that is under way
            is_done(session, instruction, instruction.words)
        return str((asked.model_extra or {})[STOPS])
    for instruction in to_do(session, "stop"):
        words = f"{instruction.words}"
        is_done(session, instruction, words, **{STOPS: words})
        return words
    return None


def _finished_since(session: Session, note: Note) -> bool:
    return any(isinstance(event, CampaignFinished) and event.seq > note.seq for event in session.journal.events())


def pause(session: Session) -> str | None:
    """Why the campaign pauses now, between two ideas, or None. Asked once: the answer counts as obeyed."""
    for instruction in to_do(session, "pause"):
        is_done(session, instruction, instruction.words)
        return instruction.words
    return None
