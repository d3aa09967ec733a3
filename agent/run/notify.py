"""Delivers messages to a web address and to a command of the user's, from a thread of its own: whoever sends does not
wait, and nothing that goes wrong with a delivery comes back but one warning.

Web requests are made in a child process (`post_child.py`), as a command is: a process can be ended whatever it hangs in
(a name look-up, a handshake, a server that sends one byte a minute), and a thread cannot. The address is a secret. It
goes to that child by its standard input, where no list of processes shows it, and into no text; `place_of` is what may
be told.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import UsageError
from agent.text import PROXIES, passed_on

POST = (sys.executable, "-I", "-S", str(Path(__file__).with_name("post_child.py")))
"""By its file: a folder `agent` in the workspace must not stand in for ours."""
POST_S = 10.0
"""Of one request, from the look-up of the name to the answer."""
BACK_OFF_S = (1.0, 4.0)
"""Before the second and the third try."""
COMMAND_S = 30.0
MOST_WAITING = 32
GOODBYE_S = 15.0
"""At the end of a campaign, for what is still waiting."""
NO_USE = 3
"""Exit code of the child where another try would give the same answer."""
STEP_S = 0.05


@dataclass(frozen=True)
class Channels:
    """Where messages go."""

    webhook: str | None = None
    command: tuple[str, ...] = ()

    def words(self) -> list[str]:
        told = [f"the webhook at {place_of(self.webhook)}"] if self.webhook else []
        return [*told, *([f"the command {self.command[0]}"] if self.command else [])]


def channels_of(webhook: str | None, command: str | None) -> Channels:
    """UsageError for an address that is none, or a command that cannot be split into words. Neither is shown. A program
    that is named by its path is the one that is there from where the user stands: it runs in another folder."""
    if webhook:
        parts = _split(webhook)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("the webhook is no address", hint="it begins with https:// or http:// and names a host")
    try:
        words = tuple(shlex.split(command or ""))
    except ValueError as error:
        raise UsageError(f"--notify cannot be read: {error}", hint="quote it as for a shell") from None
    if words and shutil.which(words[0]) is None:
        raise UsageError(f"--notify: there is no program {words[0]}", hint="name one on the PATH, or give its path")
    if words and "/" in words[0]:
        words = (str(Path(words[0]).absolute()), *words[1:])
    return Channels(webhook or None, words)


def place_of(url: str | None) -> str:
    """Scheme and host of an address; the rest of it is the secret."""
    parts = _split(url or "")
    return f"{parts.scheme}://{parts.hostname}" if parts and parts.hostname else "(no address)"


def _split(url: str) -> urllib.parse.SplitResult | None:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if url.isprintable() and " " not in url else None


class Notifier:
    """`close` it, or leave its `with` block: what waits then gets GOODBYE_S, and no process of ours is left."""

    def __init__(
        self,
        channels: Channels,
        *,
        folder: Path,
        warn: Callable[[str], None] = lambda text: None,
        post_s: float = POST_S,
        back_off_s: Sequence[float] = BACK_OFF_S,
        command_s: float = COMMAND_S,
    ) -> None:
        """`folder`: where the command runs. `warn` is called once for each channel, from the sending thread."""
        self.channels, self.folder, self.warn = channels, folder, warn
        self.post_s, self.back_off_s, self.command_s = post_s, tuple(back_off_s), command_s
        self.delivered = 0
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._warned: set[str] = set()
        self._give_up = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Returns at once. Where too many wait already, this one is lost."""
        if not (self.channels.webhook or self.channels.command):
            return
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="notify", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, for now
                self._complain("thread", f"a message is lost: {error}")
                return
            self._thread = thread
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._complain("queue", f"more than {MOST_WAITING} messages wait to be sent; further ones are lost")

    def close(self, patience_s: float = GOODBYE_S) -> None:
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        thread, self._thread = self._thread, None
        try:
            thread.join(patience_s)
        finally:  # also where Ctrl-C ends the waiting
            self._give_up.set()
            if thread.is_alive():
                thread.join(2.0)
                self._complain("end", f"messages were still waiting {patience_s:.0f}s after the end, and are lost")

    def _work(self) -> None:
        while not self._give_up.is_set():
            message = self._waiting.get()
            if message is None:
                return
            for channel, trouble in self.deliver(message).items():
                if trouble:
                    self._complain(channel, trouble)
                else:
                    self.delivered += 1

    def _complain(self, channel: str, trouble: str) -> None:
        if channel not in self._warned:
            self._warned.add(channel)
            with contextlib.suppress(Exception):  # the one who is warned may have left
                self.warn(f"notification: {trouble}; the campaign goes on, and this is said once")

    def deliver(self, message: Mapping[str, Any]) -> dict[str, str | None]:
        """By channel, what is wrong, or None where it was delivered. Takes as long as it takes."""
        ways = {"webhook": self._post if self.channels.webhook else None}
        ways["command"] = self._run if self.channels.command else None
        told: dict[str, str | None] = {}
        for channel, way in ways.items():
            if way is None:
                continue
            try:
                told[channel] = way(message)
            except Exception as error:  # no processes or descriptors left, for now: the next message is another try
                # what it says may have the address in it
                told[channel] = (
                    f"the {channel} cannot be reached: {getattr(error, 'strerror', '') or type(error).__name__}"
                )
        return told

    # --- the web ------------------------------------------------------------------------------------------

    def _post(self, message: Mapping[str, Any]) -> str | None:
        place = f"the webhook at {place_of(self.channels.webhook)}"
        said = ""
        for pause in (0.0, *self.back_off_s):
            if self._give_up.wait(pause):
                return f"{place} was given up"
            code, said = self._post_once(message)
            if code == 0:
                return None
            if code == NO_USE:
                break
        return f"{place} {said}"

    def _post_once(self, message: Mapping[str, Any]) -> tuple[int, str]:
        given = {"url": self.channels.webhook, "body": dict(message), "timeout_s": self.post_s}
        named = [name for name in os.environ if name.lower() in (*PROXIES, "no_proxy")]
        code, output = self._child(
            POST, json.dumps(given), env=passed_on(os.environ, named=named), seconds=self.post_s, keep_output=True
        )
        if code is None:
            return 1, f"did not answer within {self.post_s:g}s"
        return code, output.strip()[:200] or f"could not be asked (exit code {code})"

    # --- the command --------------------------------------------------------------------------------------

    def _run(self, message: Mapping[str, Any]) -> str | None:
        """Nothing of the message is part of the command line."""
        variables = {"RAFT_EVENT": str(message["event"]), "RAFT_TEXT": str(message["text"])}
        # as bytes: not every locale has every character, and what cannot be encoded would not start
        given = {name: value.replace("\0", "").encode(errors="replace") for name, value in variables.items()}
        program = f"the command {self.channels.command[0]}"
        try:
            code, _ = self._child(
                self.channels.command, json.dumps(message), env={**os.environ, **given}, seconds=self.command_s
            )
        except OSError as error:
            return f"{program} cannot be started: {error.strerror}"
        if code is None:
            return f"{program} did not end within {self.command_s:g}s and was killed"
        return None if code == 0 else f"{program} ended with {code}"

    def _child(
        self,
        command: Sequence[str],
        stdin: str,
        *,
        env: Mapping[str, str | bytes],
        seconds: float,
        keep_output: bool = False,
    ) -> tuple[int | None, str]:
        """(exit code, output); None where it had to be killed, with its group."""
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if keep_output else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(env),
            cwd=None if keep_output else self.folder,
            start_new_session=True,  # Ctrl-C is for the agent
            text=True,
            errors="replace",
        )
        deadline = time.monotonic() + seconds
        given: str | None = stdin
        try:
            while True:
                try:
                    output, _ = child.communicate(given, timeout=STEP_S)
                    return child.returncode, output or ""
                except subprocess.TimeoutExpired:
                    given = None  # communicate goes on with what it was given first
                if child.poll() is not None and not keep_output:
                    return child.returncode, ""  # what it left behind may hold its standard input
                if time.monotonic() >= deadline or self._give_up.is_set():
                    return None, ""
        finally:
            if child.poll() is None:
                _kill(child)
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError, ValueError):
                        pipe.close()


def _kill(child: subprocess.Popen[str]) -> None:
    """It leads its group, and has that number until it is waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=5.0)
