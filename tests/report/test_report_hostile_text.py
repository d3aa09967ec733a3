"""What a log, a sample or a playbook says is shown as text: no escape, no markup, no emoji code is interpreted."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from agent.campaign.observer import Activity, Board, Pulse
from agent.report.evidence import prompts_table
from agent.report.story import PromptLine
from agent.report.terminal import PlainConsole, TerminalObserver, console_for, rows_table

HOSTILE = "\x1b]52;c;cHdu\x07\x1b[2J[red]x[/red] [link=http://evil]y[/link] :skull: \u202ez\x9b31m\x07"
BOARD = Board(campaign="c", left_s=60.0, consumed_s=1.0, ideas=1, kept=0, metric="pass_rate")
MARKS = ("[red]", "[link=http://evil]", ":skull:", "\\u202e")


def shown(text: str) -> None:
    """Written as it is, and nothing that a terminal would act on."""
    assert all(character.isprintable() or character == "\n" for character in text), repr(text)
    for mark in MARKS:
        assert mark in text.replace("\n", " "), (mark, text)


def observer() -> tuple[TerminalObserver, io.StringIO]:
    stream = io.StringIO()
    return TerminalObserver(PlainConsole(file=stream, width=400)), stream


def test_what_a_campaign_tells_is_text() -> None:
    for tell in (
        lambda one: one.say(HOSTILE),
        lambda one: one.warn(HOSTILE),
        lambda one: one.ended(HOSTILE),
        lambda one: one.started(Activity(HOSTILE, "seed 1", 1.0)),
    ):
        told, stream = observer()
        tell(told)
        shown(stream.getvalue())


def test_the_live_lines_are_text() -> None:
    told, stream = observer()
    told.board(replace(BOARD, best_is=HOSTILE))
    told.started(Activity(HOSTILE, "seed 1", 1.0))
    told.pulse(Pulse("train", 1.0, budget_spent=0.5, note=HOSTILE))
    told.console.print(told._panel())
    assert stream.getvalue().count(":skull:") >= 3
    shown(stream.getvalue())


def test_tables_are_text() -> None:
    row = {"index": "1", "status": HOSTILE, "metric_value": "0.5", "description": HOSTILE, "reason": HOSTILE}
    line = PromptLine(HOSTILE, 0, 1, 1, 1, 1.0)
    for table in (rows_table([row], width=400), prompts_table([line])):
        stream = io.StringIO()
        PlainConsole(file=stream, width=400).print(table)
        shown(stream.getvalue())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@settings(deadline=None, max_examples=60)
@given(st.text(st.one_of(st.characters(), st.sampled_from("\x1b[]\x07\x9b;m8\u202e"))))
def test_whatever_is_given_to_a_terminal_only_our_own_escapes_come_out(text: str) -> None:
    stream = Terminal()
    console = console_for(stream)
    console.print(Text(text, style="bold"))
    console.print(text)
    written = stream.getvalue()
    for ours in ("\x1b[1m", "\x1b[0m"):
        written = written.replace(ours, "")
    assert all(character.isprintable() or character in "\n\t" for character in written), repr(written)


def test_colours_of_our_own_still_come_through() -> None:
    stream = Terminal()
    console_for(stream).print(Text("x", style="bold"))
    assert "\x1b[1m" in stream.getvalue()


@pytest.mark.parametrize("secret", ["ghp_" + "a1" * 18, "canary-in-the-mine"])
def test_a_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("NIGHT_PASSWORD", "canary-in-the-mine")
    told, stream = observer()
    told.say(f"died of {secret}")
    told.ended(f"died of {secret}")
    assert secret not in stream.getvalue()
    assert stream.getvalue().count("[redacted") == 2
