"""Accuracy, entropy and unique share cycle by cycle: as a table, in the page, and as panels of the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_made import IDS, STUDY, drawn, fill, made_line, small, workspace_with

from agent.cli.main import register, run
from agent.ledger.workspace import Workspace
from agent.report.sheets import Sheet
from agent.study.analysis import Analysis, analyse
from agent.study.definition import Study
from agent.study.intervals import estimate
from agent.study.page import chart, write_page
from agent.study.results import Results
from agent.study.words import arms_sheet, cycles_sheets

LABELS = ("low, constant", "low, x0.5", "high, constant", "high, x0.5")
FALLING = np.array([-1.0, 0.0, 1.0, 1.5, 0.5, 0.0])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with(tmp_path)


@pytest.fixture
def study(workspace: Workspace) -> Study:
    return small(workspace)


def filled(study: Study, path: Path, *labels: str) -> Analysis:
    return analyse(study, fill(study, path, {label: FALLING * (1 + place / 4) for place, label in enumerate(labels)}))


def test_every_cycle_has_its_accuracy_and_interval(study: Study, tmp_path: Path) -> None:
    """Of 40 prompts 8, 12 and 10 pass after cycle 2, and all of them after cycle 5."""
    results = Results(tmp_path / "r.jsonl")
    for seed, passed in ((1, 8), (2, 12), (3, 10)):
        counts = np.zeros((6, 40), np.int64)
        counts[2, :passed] = 1
        counts[5] = 1
        results.add(made_line(study, "high, x0.5", seed, counts), ids=IDS[:40])
    ((title, sheet),) = cycles_sheets(analyse(study, results))
    assert (title, sheet.columns) == ("rate high", ("cycle", "x0.5"))
    reach = estimate(np.array([8, 12, 10]) / 40)
    assert reach.low is not None
    assert reach.high is not None
    assert sheet.rows == (
        ("0", "0.0%"),
        ("1", "0.0%"),
        ("2", f"25.0% [{100 * reach.low:.1f},{100 * reach.high:.1f}]"),
        ("3", "0.0%"),
        ("4", "0.0%"),
        ("5", "100.0%"),
    )


def test_arms_that_differ_in_the_compared_factor_stand_beside_each_other(study: Study, tmp_path: Path) -> None:
    sheets = cycles_sheets(filled(study, tmp_path / "r.jsonl", *LABELS))
    assert [(title, sheet.columns) for title, sheet in sheets] == [
        ("rate low", ("cycle", "constant", "x0.5")),
        ("rate high", ("cycle", "constant", "x0.5")),
    ]
    analysis = filled(study, tmp_path / "few.jsonl", "high, x0.5")
    assert [sheet.columns for _, sheet in cycles_sheets(analysis)] == [("cycle", "x0.5")], "only arms with runs"


def test_arms_that_are_listed_stand_in_one_table(tmp_path: Path) -> None:
    before, _, after = STUDY.partition("factors:\n")
    arms = "arms:\n  - {label: a}\n  - {label: b, set: {learner.learning_rate: 1.0e-3}, against: a}\n"
    listed = small(workspace_with(tmp_path, before + arms + after[after.index("seeds:") :]))
    analysis = filled(listed, tmp_path / "r.jsonl", "a", "b")
    assert [(title, sheet.columns) for title, sheet in cycles_sheets(analysis)] == [("", ("cycle", "a", "b"))]


def test_the_table_has_the_unique_share_of_the_last_cycles(study: Study, tmp_path: Path) -> None:
    results, rng = Results(tmp_path / "r.jsonl"), np.random.default_rng(0)
    for seed, last in ((1, 0.2), (2, 0.4), (3, 0.6)):
        series = {"entropy": [0.9, 0.9, 0.9, 0.9, 0.3, 0.1], "unique_share": [1.0, 1.0, 1.0, 1.0, last, last + 0.1]}
        results.add(made_line(study, "low, constant", seed, drawn(FALLING, rng), series=series), ids=IDS)
    sheet = arms_sheet(analyse(study, results))
    row = dict(zip(sheet.columns, sheet.rows[0], strict=True))
    assert (row["entropy"], row["unique"]) == ("0.20", "45.0%")
    nothing = dict(zip(sheet.columns, sheet.rows[1], strict=True))
    assert (nothing["entropy"], nothing["unique"]) == ("", "")


@pytest.mark.slow
def test_the_page_has_every_cycle_where_it_takes_no_room(study: Study, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    analysis = filled(study, tmp_path / "r.jsonl", *LABELS)
    write_page(analysis, page, command="x")
    text = page.read_text()
    inside = text.split("<details>\n<summary>Held-out accuracy by cycle, with 95% intervals</summary>\n\n")[1]
    inside = inside.split("\n</details>")[0]
    for title, sheet in cycles_sheets(analysis):
        assert f"**{title}**\n\n{sheet.markdown()}\n" in inside
    assert inside.count("\n| 5 | ") == 2
    assert text.index("| low, constant |") < text.index("<details>") < text.index("`x`, 12 runs")


def test_the_terminal_has_it_where_it_is_asked_for(
    workspace: Workspace,
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register()
    results = tmp_path / "r.jsonl"
    sheets = cycles_sheets(filled(study, results, *LABELS))
    monkeypatch.chdir(workspace.root)
    assert run(["study", "small", "--table", "--results", str(results)]) == 0
    plain = capsys.readouterr().out
    assert run(["study", "small", "--table", "--cycles", "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for title, sheet in sheets:
        start = lines.index(f"held-out accuracy, {title}")
        assert lines[start + 1].split() == list(sheet.columns)
        assert [line.split("  ")[0].strip() for line in lines[start + 2 : start + 8]] == list("012345")
        assert all(cell in line for row, line in zip(sheet.rows, lines[start + 2 :], strict=False) for cell in row)
        assert title not in plain
    assert max(map(len, lines)) <= 100


def test_a_sheet_that_is_too_wide_comes_in_parts() -> None:
    sheet = Sheet(("a long name", "one", "two", "three"), (("long names fold", "1" * 10, "2" * 10, "3" * 30),))
    assert sheet.parts(100) == [sheet]
    parts = sheet.parts(30)
    assert [part.columns for part in parts] == [("a long name", "one", "two"), ("a long name", "three")]
    assert [part.rows for part in parts] == [
        (("long names fold", "1" * 10, "2" * 10),),
        (("long names fold", "3" * 30),),
    ]


def panels(spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [row["hconcat"] for row in spec["vconcat"]]


def test_the_picture_has_a_row_of_panels_for_each_of_the_three(study: Study, tmp_path: Path) -> None:
    results, rng = Results(tmp_path / "r.jsonl"), np.random.default_rng(0)
    series = {"entropy": [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], "unique_share": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}
    for label in LABELS:
        for seed in (1, 2):
            results.add(made_line(study, label, seed, drawn(FALLING, rng), series=series), ids=IDS)
    rows = panels(chart(analyse(study, results)))
    titles = [row[0]["layer"][1]["encoding"]["y"]["axis"]["title"] for row in rows]
    assert titles == ["held-out accuracy", "entropy (nats a token)", "unique share"]
    for row, name in zip(rows[1:], ("entropy", "unique_share"), strict=True):
        for panel in row:
            drawn_ones = [one["mean"] for one in panel["data"]["values"] if one["curve"] == "x0.5"]
            assert drawn_ones == pytest.approx(series[name])
    assert [panel["title"]["text"] for panel in rows[0]] == ["rate low", "rate high"]


def test_panels_of_a_column_stand_below_each_other(study: Study, tmp_path: Path) -> None:
    """Labels of different length would move them apart."""
    rows = panels(chart(filled(study, tmp_path / "r.jsonl", *LABELS)))
    room = {panel["layer"][1]["encoding"]["y"]["axis"]["minExtent"] for row in rows for panel in row}
    assert len(room) == 1
    assert room.pop() >= 40, "as wide as 100%"
    assert len({panel["width"] for row in rows for panel in row}) == 1
