"""A real Chromium without a window, spoken to over a pair of pipes (the DevTools protocol), for tests and pictures."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
AS_THREE_AND_FOUR = """
import os, sys
for old, new in ((int(sys.argv[1]), 100), (int(sys.argv[2]), 101), (100, 3), (101, 4)):
    os.dup2(old, new)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts a program with the pipes where Chromium looks for them."""
DESKTOP = (1280, 800)
PHONE = (390, 844)


class Page:
    """One tab. `told` is what it said and what it tried to do: console, exceptions, dialogs, requests."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._from, self._number, self._rest = to, of, 0, b""
        self._session = ""
        self.told: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{room}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def look(
        self, size: tuple[int, int] = DESKTOP, *, dark: bool = False, scripts: bool = True, media: str = ""
    ) -> None:
        """As whom it is looked at: window, colours, with or without JavaScript, on paper."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, path: Path) -> None:
        """Load a file, to the end."""
        self.told.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.told):
            self._next(max(0.1, deadline - time.monotonic()))

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.ask(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.03)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """What is in the window, or the whole page down to 12,000 pixels."""
        more: dict[str, Any] = {}
        if whole:
            size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": min(12_000, size["height"]), "scale": 1}
            more = {"captureBeyondViewport": True, "clip": clip}
        shot = self.ask("Page.captureScreenshot", format="png", **more)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _next(self, seconds: float) -> dict[str, Any]:
        """The next message; events are kept in `told`."""
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], seconds)[0]:
                raise TimeoutError("chromium says nothing")
            found = os.read(self._from, 1 << 20)
            if not found:
                raise EOFError("chromium has ended")
            self._rest += found
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.told.append(message)
        if message.get("method") == "Page.javascriptDialogOpening":
            os.write(
                self._to,
                json.dumps(
                    {
                        "id": 0,
                        "method": "Page.handleJavaScriptDialog",
                        "params": {"accept": False},
                        "sessionId": self._session,
                    }
                ).encode()
                + b"\0",
            )
        return message


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """A tab of a browser of its own, which ends with it."""
    assert CHROMIUM is not None
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", AS_THREE_AND_FOUR, str(theirs_in), str(theirs_out), CHROMIUM, *flags]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(ours_out, ours_in)
            yield page
            with contextlib.suppress(Exception):
                page._session = ""
                page.ask("Browser.close")
        finally:
            os.close(ours_out)
            os.close(ours_in)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
