"""`watch`: the live view of a campaign, from any terminal, at any time. It only reads."""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.shared import here
from agent.cli.workspaces import campaign_name
from agent.collector import kept_to_the_end, no_collection

if TYPE_CHECKING:
    from agent.campaign.onlooker import Onlooker
    from agent.report.screen import Screen
    from agent.report.snapshot import Snapshot

PLAIN_WIDTH = 100
PLAIN_LINES = 60
SHORTEST_S, LONGEST_S = 0.2, 3600.0
TERMINATED = 128 + signal.SIGTERM


@app.command()
def watch(
    campaign: str | None = typer.Option(
        None, "--campaign", "-c", help="Campaign. Default: the last one, and the next."
    ),
    every: float = typer.Option(1.0, min=SHORTEST_S, max=LONGEST_S, help="Seconds between two looks."),
    once: bool = typer.Option(False, "--once", help="Print what is now and exit."),
) -> None:
    """Watch a campaign live.

    From another terminal, before, during and after it; nothing is written, and any number may watch. Without --campaign
    it goes on to the next campaign; with it, it ends when that one is finished. Ctrl-C leaves, with exit code 0. Where
    the output is no terminal: what is now, then a line for each event.
    """
    from agent.campaign.onlooker import Onlooker
    from agent.report.screen import Screen, is_screen
    from agent.report.terminal import console_for

    workspace = here()
    if campaign is not None or once:
        campaign = campaign_name(workspace, campaign)
    onlooker = Onlooker(workspace, campaign)
    if once:
        with no_collection():
            _print_snapshot(kept_to_the_end(onlooker).look())
        return
    console = console_for()
    with _interruptible() as pause:
        try:
            if is_screen(console):
                last = _on_screen(onlooker, Screen(console), lambda: pause(every))
            else:
                last = _in_lines(onlooker, lambda: pause(every))
        except KeyboardInterrupt:
            return
    if last is not None:
        _print_snapshot(last)


def _has_ended(onlooker: Onlooker, snapshot: Snapshot) -> bool:
    return onlooker.fixed is not None and snapshot.state == "finished"


def _on_screen(onlooker: Onlooker, screen: Screen, pause: Callable[[], None]) -> Snapshot | None:
    """Until the campaign that was named is finished."""
    from agent.report.glyphs import glyphs_for
    from agent.report.live import View, live_lines

    glyphs = glyphs_for(sys.stdout.encoding)
    with _drawn(screen):
        while True:
            snapshot = onlooker.look()
            if _has_ended(onlooker, snapshot):
                return snapshot
            width, height = screen.size
            screen.show(live_lines(snapshot, View(width, height, glyphs)))
            pause()


def _in_lines(onlooker: Onlooker, pause: Callable[[], None]) -> Snapshot | None:
    """What is now, then a line for each event; None where nothing is left to be said at the end."""
    from agent.campaign.news import news

    snapshot = onlooker.look()
    _print_snapshot(snapshot)
    name, state, trouble = snapshot.campaign, snapshot.state, snapshot.trouble
    while not _has_ended(onlooker, snapshot):
        pause()
        snapshot = onlooker.look()
        for event in onlooker.news:
            words = news(event, onlooker.state) if onlooker.state is not None else None
            if words:
                _say(event.time, words)
        if snapshot.state != state and snapshot.state == "killed" and snapshot.campaign == name:
            _say(snapshot.at, f"killed: its process is gone; {snapshot.next} goes on with it")
        if snapshot.trouble != trouble and snapshot.trouble:
            _say(snapshot.at, snapshot.trouble)
        name, state, trouble = snapshot.campaign, snapshot.state, snapshot.trouble
    return None


def _print_snapshot(snapshot: Snapshot) -> None:
    from agent.report.glyphs import glyphs_for
    from agent.report.live import View, live_lines
    from agent.report.screen import plain
    from agent.report.terminal import console_for

    view = View(min(PLAIN_WIDTH, console_for().width), PLAIN_LINES, glyphs_for(sys.stdout.encoding))
    for line in live_lines(snapshot, view):
        print(plain(line))
    sys.stdout.flush()


def _say(at: float, words: str) -> None:
    print(f"{datetime.datetime.fromtimestamp(at).strftime('%H:%M:%S')} {words}", flush=True)


# --- the terminal ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _drawn(screen: Screen) -> Iterator[None]:
    """The screen is ours, and is given back at the end, and for as long as Ctrl-Z has stopped us."""

    def stop(number: int, frame: FrameType | None) -> None:
        screen.leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, stop)  # here after `fg`
        screen.enter()

    before = signal.signal(signal.SIGTSTP, stop)
    screen.enter()
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        screen.leave()


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[float], None]]:
    """A pause of so many seconds that a resized terminal cuts short. SIGTERM ends the command in good order."""

    def terminated(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(TERMINATED)

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminated),
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda number, frame: None),
    }
    waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def pause(seconds: float) -> None:
        if select.select([read], [], [], seconds)[0]:
            os.read(read, 4096)

    try:
        yield pause
    finally:
        signal.set_wakeup_fd(waker)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
