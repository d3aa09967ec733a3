"""What is printed and written: within 100 columns, no more than was measured, and only between the markers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from study_made import IDS, drawn, fill, made_line, small, workspace_with

from agent.errors import UsageError
from agent.report.terminal import PlainConsole
from agent.report.vega import to_png
from agent.study.analysis import Analysis, analyse, as_json
from agent.study.definition import load_study
from agent.study.page import chart, write_page
from agent.study.results import FailedLine, Results
from agent.study.words import arms_sheet, comparisons_sheet, cycles_sheets, sentences

ROOT = Path(__file__).parents[2]
LEVEL = np.zeros(13)
FALLING = np.array([-2, -1, 0, 1, 1.5, 1.5, 1.2, 0.9, 0.6, 0.3, 0, -0.3, -0.5])
RISING = np.linspace(-2, 1, 13)


@pytest.fixture
def study(tmp_path: Path):  # type: ignore[no-untyped-def]
    found = small(workspace_with(tmp_path))
    return load_study_with(found.path, cycles=12)


def load_study_with(path: Path, *, cycles: int):  # type: ignore[no-untyped-def]
    path.write_text(path.read_text().replace("cycles: 5", f"cycles: {cycles}").replace("seeds: 3", "seeds: 6"))
    return load_study(path, root=path.parents[1])


def falling(study, path: Path) -> Analysis:  # type: ignore[no-untyped-def]
    courses = {"low, constant": FALLING, "low, x0.5": LEVEL, "high, constant": LEVEL, "high, x0.5": RISING}
    return analyse(study, fill(study, path, courses))


def test_what_fell_is_said_and_what_did_not_with_what_would_have_been_found(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = "\n".join(sentences(falling(study, tmp_path / "r.jsonl")))
    assert "24 of 24 runs of 12 cycles are there." in text
    assert "A late fall beyond noise (Holm over 3 arms, p below 0.05): low, constant +" in text
    assert "The other 2 arms whose late fall was measured did not fall beyond noise: with these seeds a " in text
    assert "A difference of late fall beyond noise (Holm over 3 differences): low, x0.5 against constant -" in text
    assert "so that a fall may be yet to come): high, x0.5." in text


def test_nothing_found_is_no_claim_of_nothing(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    level = dict.fromkeys([arm.label for arm in study.arms], LEVEL)
    text = "\n".join(sentences(analyse(study, fill(study, tmp_path / "r.jsonl", level))))
    assert "No arm fell beyond noise: with these seeds a late fall above " in text
    assert "No difference of late fall beyond noise: with these seeds a difference above " in text
    assert "No difference of final accuracy beyond noise" in text


def test_few_runs_say_little(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    results = Results(tmp_path / "r.jsonl")
    assert sentences(analyse(study, results)) == ["no run is finished yet, 24 are asked for"]
    results.add(made_line(study, "low, constant", 1, drawn(FALLING, np.random.default_rng(0))), ids=IDS)
    failed = {"study": study.name, "arm": "low, x0.5", "seed": 1, "training": study.arms[1].digest}
    results.add(FailedLine(**failed, crash_class="oom", reason="killed", elapsed_s=1.0))
    analysis = analyse(study, results)
    text = "\n".join(sentences(analysis))
    assert "1 of 24 runs of 12 cycles are there; 1 failed (1 oom; --retry tries them again)." in text
    assert "No interval yet" in text
    assert arms_sheet(analysis).columns[-1] == "failed"
    assert comparisons_sheet(analysis) is None


def test_no_interval_of_an_accuracy_passes_100_percent(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    results = Results(tmp_path / "r.jsonl")
    for seed, right in ((1, 400), (2, 400), (3, 380)):
        counts = np.zeros((13, 400), np.int64)
        counts[:, :right] = 1
        results.add(made_line(study, "low, constant", seed, counts), ids=IDS)
    sheet = arms_sheet(analyse(study, results))
    assert dict(zip(sheet.columns, sheet.rows[0], strict=True))["final [95%]"] == "98.3% [91.2,100.0]"


def test_arms_are_compared_by_the_seeds_that_both_have(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rng, results = np.random.default_rng(0), Results(tmp_path / "r.jsonl")
    for label, seeds in (("low, constant", (1, 2, 4)), ("low, x0.5", (2, 3, 4))):
        for seed in seeds:
            results.add(made_line(study, label, seed, drawn(LEVEL, rng)), ids=IDS)
    one = analyse(study, results).comparisons[0]
    assert one.seeds == (2, 4)
    first, second = (analyse(study, results).arms[place].by_seed["final"] for place in (0, 1))
    assert one.differences["final"].values == pytest.approx([second[2] - first[2], second[4] - first[4]])


def test_tables_fit_100_columns(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shipped = load_study(ROOT / "studies" / "learning-rate-tiny.yaml", root=ROOT)
    results, rng = Results(tmp_path / "r.jsonl"), np.random.default_rng(0)
    for arm, seed in shipped.order():
        course = np.interp(np.arange(49), np.arange(13) * 4, FALLING) * (3 if "constant" in arm.label else 1)
        if seed < 3:
            results.add(made_line(shipped, arm.label, seed, drawn(course, rng)), ids=IDS)
    failed = {"study": shipped.name, "arm": "a", "seed": 3, "training": shipped.arms[1].digest}
    results.add(FailedLine(**failed, crash_class="oom", reason="killed", elapsed_s=1.0))
    analysis = analyse(shipped, results)
    comparisons = comparisons_sheet(analysis)
    assert comparisons is not None
    sheets = [arms_sheet(analysis), comparisons, *(sheet for _, sheet in cycles_sheets(analysis))]
    for width in (100, 60):
        for sheet in sheets:
            stream = io.StringIO()
            for part in sheet.parts(width):
                PlainConsole(file=stream, width=width).print(part.table(width=width))
            assert max(map(len, stream.getvalue().splitlines())) <= width
            assert all(cell in stream.getvalue() for row in sheet.rows for cell in row[1:])


def test_the_page_is_rewritten_between_its_markers_alone(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    analysis, page = falling(study, tmp_path / "r.jsonl"), tmp_path / "page.md"
    page.write_text("# Mine\n\nbefore\n<!-- study:small begin -->\nold\n<!-- study:small end -->\nafter\n")
    written = write_page(analysis, page, command="raft-agent study studies/small.yaml")
    assert written == [page, tmp_path / "small.svg"]
    assert "held-out accuracy" in (tmp_path / "small.svg").read_text()
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n<!-- study:small begin -->\n")
    assert text.endswith("<!-- study:small end -->\nafter\n")
    assert "old" not in text
    assert "| low, constant | +" in text
    assert "`raft-agent study studies/small.yaml`, 24 runs on a machine (torch 2)" in text
    other = tmp_path / "other.md"
    other.write_text("nothing here\n")
    with pytest.raises(UsageError, match="has no place for this study"):
        write_page(analysis, other, command="x")
    assert other.read_text() == "nothing here\n"
    new = tmp_path / "new.md"
    write_page(analysis, new, command="raft-agent study studies/small.yaml")
    block = new.read_text().split("begin -->")[1].split("<!--")[0]
    assert block == text.split("begin -->")[1].split("<!--")[0]


def test_the_chart_has_a_panel_for_each_rate_and_a_colour_for_each_schedule(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec = chart(falling(study, tmp_path / "r.jsonl"))
    assert spec["title"]["text"] == "a small study: mean of 6 seeds and 95% interval"  # type: ignore[index]
    told = json.dumps(spec)
    assert all(
        text in told for text in ("rate low", "rate high", "x0.5", "held-out accuracy", "entropy (nats a token)")
    )
    assert to_png(spec, scale=1.0).startswith(b"\x89PNG")


def test_the_numbers_are_json(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    told = json.loads(json.dumps(as_json(falling(study, tmp_path / "r.jsonl"))))
    assert told["runs"] == {"asked_for": 24, "done": 24, "failed": 0, "unknown": 0}
    first = told["arms"][0]
    assert first["measures"]["late_fall"]["n"] == 6
    low, high = first["measures"]["late_fall"]["bootstrap"]
    assert low < first["measures"]["late_fall"]["mean"] < high
    assert len(first["courses"]["accuracy"]) == 13
    assert {"late_fall", "own_fall", "final", "delivered"} <= set(told["comparisons"][0]["differences"])
