"""The charts' JavaScript is built once, in a process of its own, and what goes wrong there is said."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from agent.errors import Unavailable
from agent.report import charts, vega
from agent.report.staircase import staircase
from tests.report.made_nights import leading

KEPT = f"vega-bundle-{importlib.metadata.version(vega.PACKAGE)}.js"


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """A Python that does something else."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_what_is_kept_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path, "exit 9")
    text = "window.vegaEmbed" + " " * vega.LEAST
    (tmp_path / KEPT).write_text(text)
    assert vega.bundle(tmp_path) == text


def test_a_torn_file_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / KEPT).write_text("window.vegaEm")
    stand_in(monkeypatch, tmp_path, f'{{ printf vegaEmbed; head -c {vega.LEAST} /dev/zero | tr "\\0" x; }} > "$3"')
    assert vega.bundle(tmp_path).startswith("vegaEmbedxxx")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo one >&2; echo 'panicked at v8.rs' >&2; exit 101", "exit code 101: panicked at v8.rs"),
        ("kill -SEGV $$", "exit code -11: no message"),
        ("exit 0", "."),
        ("exec sleep 60", "took more than 0s"),
    ],
)
def test_a_failure_is_said(script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path, script)
    with pytest.raises(Unavailable, match=words):
        vega.bundle(tmp_path / "cache", limit_s=0.3 if "sleep" in script else 20)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be kept"):
        vega.bundle(tmp_path / "file" / "cache")


def test_the_staircase_can_be_drawn_without_a_browser() -> None:
    drawn = vega.to_svg(charts.drawn(staircase(leading())))
    assert drawn.startswith("<svg")
    assert "#30" in drawn
    assert "var(--" not in drawn


@pytest.mark.slow
def test_the_real_bundle_is_built_once_and_drawings_are_pictures(tmp_path: Path) -> None:
    text = vega.bundle(tmp_path)
    assert "vegaEmbed" in text
    assert vega.bundle(tmp_path) == text
    assert [path.name for path in tmp_path.iterdir()] == [KEPT]
    effects = charts.effects(leading())
    assert effects is not None
    assert vega.to_png(charts.drawn(effects, dark=True)).startswith(b"\x89PNG")
