"""Vega-Lite: specifications as pictures (SVG for pages, PNG to look at), and its JavaScript for a page that draws
itself. No network.

    python -m agent.report.vega OUT

writes the JavaScript to OUT. `bundle` runs that as a process of its own: what it calls is compiled code, and a campaign
must outlive whatever that does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.errors import AgentError, Unavailable
from agent.files import write_atomic
from agent.package import of_ours
from agent.text import one_line, passed_on

VERSION = "5.21"
"""Of Vega-Lite in pictures, so that another vl-convert draws the same."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito: told apart with any colour vision, yellow last because it is faint on white."""
FONT = "Helvetica, Arial, DejaVu Sans, sans-serif"
CONFIG: dict[str, Any] = {
    "background": "white",
    "font": FONT,
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "gridColor": "#e6e6e6"},
    "title": {"fontSize": 14, "anchor": "start", "fontWeight": "bold"},
    "legend": {"labelFontSize": 13, "titleFontSize": 13, "symbolStrokeWidth": 3, "symbolSize": 200},
    "view": {"stroke": "#cccccc"},
}
LIMIT_S = 120.0
"""For building the JavaScript: some 2 s where nothing else runs."""
LEAST = 100_000
"""Characters of JavaScript below which a file is no bundle (it has 0.9 million)."""
PACKAGE = "vl-convert-python"
NO_ADDRESS: list[str] = []
"""That a chart may load data or images from."""


def bundle(cache: Path, *, limit_s: float = LIMIT_S) -> str:
    """Vega, Vega-Lite and vega-embed as one script; built once for each version and kept in `cache`.

    Raises `Unavailable` with the reason where it cannot be had.
    """
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{PACKAGE} is not installed", hint=f"pip install '{PACKAGE}>=1.8,<2'") from None
    kept = cache / f"vega-bundle-{version}.js"
    with contextlib.suppress(OSError, ValueError):
        text = kept.read_text(encoding="utf-8")
        if _is_bundle(text):
            return text
    return _build(kept, limit_s)


class Charts:
    """The JavaScript of the charts, got once; a page without it has tables and words, and says why."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._got: tuple[str | None, str] | None = None

    def get(self) -> tuple[str | None, str]:
        """(JavaScript or None, why there is none)."""
        if self._got is None:
            try:
                self._got = bundle(self.cache), ""
            except (AgentError, OSError) as error:
                self._got = None, str(error)
        return self._got


def to_svg(spec: dict[str, Any]) -> str:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_whole(spec), vl_version=VERSION, allowed_base_urls=NO_ADDRESS))


def to_png(spec: dict[str, Any], scale: float = 2.0) -> bytes:
    """`scale` pixels for each pixel of the specification."""
    import vl_convert

    return bytes(
        vl_convert.vegalite_to_png(_whole(spec), vl_version=VERSION, scale=scale, allowed_base_urls=NO_ADDRESS)
    )


def _whole(spec: dict[str, Any]) -> dict[str, Any]:
    """One that brings no configuration of its own gets ours."""
    return {"config": CONFIG, **spec}


def _build(kept: Path, limit_s: float) -> str:
    """In a child process, into `kept`."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "agent.report.vega", str(kept)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            env=of_ours(passed_on(os.environ)),
            check=False,
        )
        text = kept.read_text(encoding="utf-8") if done.returncode == 0 else ""
    except subprocess.TimeoutExpired:
        raise Unavailable(f"building the JavaScript of the charts took more than {limit_s:.0f}s") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"the JavaScript of the charts cannot be kept: {error}", where=str(kept)) from None
    if not _is_bundle(text):
        last = one_line(done.stderr.strip().rpartition("\n")[2]) or "no message"
        raise Unavailable(f"building the JavaScript of the charts failed with exit code {done.returncode}: {last}")
    return text


def _is_bundle(text: str) -> bool:
    return len(text) >= LEAST and "vegaEmbed" in text


def main() -> None:
    import vl_convert

    # The Vega-Lite that fits the Vega of the bundle: of another version, the browser warns at each chart.
    write_atomic(Path(sys.argv[1]), vl_convert.javascript_bundle())  # type: ignore[call-arg]  # the stub is wrong


if __name__ == "__main__":
    main()
