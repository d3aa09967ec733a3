"""What the command prints goes through here, so that nothing of it steers the terminal or tells a secret.

Rich writes escape sequences of its own, after its console has cleaned the text (`agent.report.terminal`): it is given
the stream beneath.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from agent.text import clean


class CleanStream:
    """A text stream that cleans what it is given (`agent.text.clean`), and is the one beneath in all else.

    What its encoding does not have is written as an escape: a model's text must not end a campaign in a locale that is
    not UTF-8.
    """

    def __init__(self, beneath: TextIO) -> None:
        self.beneath = beneath
        if isinstance(beneath, io.TextIOWrapper) and beneath.errors == "strict":
            beneath.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self.beneath.write(clean(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


@contextlib.contextmanager
def clean_output() -> Iterator[None]:
    """Standard output and error clean what is written to them."""
    before = sys.stdout, sys.stderr
    ours: Any = tuple(stream if isinstance(stream, CleanStream) else CleanStream(stream) for stream in before)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
