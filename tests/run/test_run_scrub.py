"""After a run no secret is in its files, and what was no secret is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.contract import CYCLES, FAILURE, LOG, SAMPLES, SUMMARY
from agent.run import scrub as scrubbing
from agent.run.scrub import scrub, scrub_log

TOKEN = "hf_" + "aB3" * 10


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHT_PASSWORD", 'canary "in" the mine')
    monkeypatch.setenv("NUMBER_KEY", "123456")


def test_every_file_of_the_contract(tmp_path: Path) -> None:
    said = f'canary "in" the mine and {TOKEN}'
    (tmp_path / LOG).write_bytes(f"one\n{said}\n".encode() + b"\xff\xfe no text\n")
    (tmp_path / FAILURE).write_text(json.dumps({"message": said, "n": 123456}))
    (tmp_path / SUMMARY).write_text(json.dumps({"seed": 123456, "provenance": {"x": [said]}}) + "\n")
    torn = '{"cycle": 2, "note": "' + TOKEN
    rows = [json.dumps({"cycle": 1, "samples": 123456}), json.dumps({"cycle": 2, "note": said}), torn]
    (tmp_path / CYCLES).write_text("\n".join(rows))
    (tmp_path / SAMPLES).write_text(json.dumps({"id": "a", "completion": said}) + "\n")
    assert scrub(tmp_path) == ()
    for path in tmp_path.iterdir():
        assert "canary" not in path.read_text(errors="replace"), path.name
        assert TOKEN not in path.read_text(errors="replace"), path.name
    assert (tmp_path / LOG).read_bytes().endswith(b"\xff\xfe no text\n")
    assert json.loads((tmp_path / SUMMARY).read_text())["seed"] == 123456, "a number stays a number"
    lines = (tmp_path / CYCLES).read_text().split("\n")
    assert lines[0] == rows[0], "a row without a secret keeps its bytes"
    assert json.loads(lines[1])["note"] == "[redacted NIGHT_PASSWORD] and [redacted token]"
    assert lines[2] == '{"cycle": 2, "note": "[redacted token]'


def test_files_without_secrets_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("all is well\n")
    (tmp_path / SUMMARY).write_text('{"seed":1}')
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    scrub(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("breaks", ["\n", " "])
def test_a_secret_is_found_across_the_pieces_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    monkeypatch.setattr(scrubbing, "CHUNK", 1000)
    monkeypatch.setattr(scrubbing, "OVERLAP", 200)
    path = tmp_path / LOG
    for before in range(900, 1100, 7):
        path.write_text("x" * before + breaks + TOKEN + breaks + "y" * 3000)
        assert scrub_log(path)
        assert path.read_text() == "x" * before + breaks + "[redacted token]" + breaks + "y" * 3000


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(TOKEN)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOG).symlink_to(outside)
    scrub(tmp_path / "run")
    assert outside.read_text() == TOKEN


def test_what_cannot_be_scrubbed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOG).write_text(TOKEN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scrubbing, "_replace", full)
    assert scrub(tmp_path) == (f"{LOG} could not be searched for secrets: No space left on device",)


@pytest.mark.slow
def test_what_floods_is_cut_before_anybody_reads_it(tmp_path: Path) -> None:
    """Files of 10 GB that take no room: reading one would take all of the memory."""
    for name in ("cycles.jsonl", "eval.jsonl", "plan.json"):
        with (tmp_path / name).open("wb") as file:
            file.write(b'{"cycle": 0}\n')
            file.truncate(10 << 30)
    assert scrub(tmp_path) == (
        "plan.json was larger than 16 MiB, and has been cut",
        "cycles.jsonl was larger than 16 MiB, and has been cut",
        "eval.jsonl was larger than 128 MiB, and has been cut",
    )
    assert {path.stat().st_size >> 20 for path in tmp_path.iterdir()} == {16, 128}
