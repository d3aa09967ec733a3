"""A late fall that could not be measured is named as such, and no sentence says anything of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from study_made import IDS, STUDY, fill, made_line, small, workspace_with

from agent.study.analysis import Analysis, analyse, as_json
from agent.study.definition import Study
from agent.study.falls import Courses, first_half, peaks_at_the_end
from agent.study.intervals import Estimate, findable_of_many
from agent.study.results import Results
from agent.study.words import _power, arms_sheet, comparisons_sheet, sentences

LEVEL = np.zeros(13)
RISING = np.linspace(-3, 3, 13)
FALLING = np.array([-2, -1, 0, 1, 1.5, 1.5, 1.2, 0.9, 0.6, 0.3, 0, -0.3, -0.5])
LABELS = ("low, constant", "low, x0.5", "high, constant", "high, x0.5")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    text = STUDY.replace("cycles: 5", "cycles: 12").replace("seeds: 3", "seeds: 6")
    return small(workspace_with(tmp_path, text))


def solved(study: Study, path: Path, label: str, *, from_cycle: int) -> None:
    """Runs that pass everything from a cycle on, and half of it before: the same in all seeds."""
    counts = np.zeros((13, 400), np.int64)
    counts[:, ::2] = 1
    counts[from_cycle:] = 1
    results = Results.read(path)
    for seed in study.seeds:
        results.add(made_line(study, label, seed, counts), ids=IDS)


def analysed(study: Study, path: Path, *courses: NDArray[np.float64]) -> Analysis:
    return analyse(study, fill(study, path, dict(zip(LABELS, courses, strict=False))))


def cells(analysis: Analysis, column: str) -> dict[str, str]:
    sheet = arms_sheet(analysis)
    return {row[0]: row[sheet.columns.index(column)] for row in sheet.rows}


def test_the_share_of_peaks_at_the_end_by_hand() -> None:
    first = np.array([[0.1, 0.9, 0.5, 0.3], [0.1, 0.2, 0.3, 0.8]])
    second = np.array([[0.2, 0.6, 0.7, 0.1], [0.0, 0.5, 0.6, 0.9]])
    # the peaks of the other seed: on the first half cycles 3 and 1, on the second 3 and 2
    assert peaks_at_the_end(Courses(first, second), 1) == 0.5
    assert peaks_at_the_end(Courses(first, second), 2) == 0.75
    assert peaks_at_the_end(Courses(first[:1], second[:1]), 1) is None


def test_an_arm_that_rises_to_the_end_is_not_among_those_that_did_not_fall(study: Study, tmp_path: Path) -> None:
    analysis = analysed(study, tmp_path / "r.jsonl", LEVEL, LEVEL, RISING, LEVEL)
    assert [arm.unmeasured for arm in analysis.arms] == [None, None, "peak at the end", None]
    text = "\n".join(sentences(analysis))
    assert "None of the 3 arms whose late fall was measured fell beyond noise: with these seeds" in text
    assert "(the peak is in the last 2 cycles, so that a fall may be yet to come): high, constant." in text
    assert cells(analysis, "late fall [95%]")["high, constant"] == "peak at the end"
    assert cells(analysis, "late fall [95%]")["low, constant"].endswith("]")


def test_what_would_have_been_found_is_told_of_the_measured_arms_alone(study: Study, tmp_path: Path) -> None:
    """A course that rises, with a seed that has its peak before: a spread, and yet next to nothing measured."""
    analysis = analysed(study, tmp_path / "r.jsonl", LEVEL, LEVEL, np.linspace(-0.6, 0.6, 13), LEVEL)
    rising = analysis.arms[2]
    assert rising.unmeasured == "peak at the end"
    assert rising.measures["late_fall"].findable is not None
    measured = [one.measures["late_fall"] for one in analysis.arms if one.unmeasured is None]
    told = [100 * findable for one in measured if (findable := findable_of_many(one, 3)) is not None]
    (line,) = [line for line in sentences(analysis) if "whose late fall was measured" in line]
    assert f"a late fall above {min(told):.1f} to {max(told):.1f} points" in line
    assert not min(told) <= 100 * rising.measures["late_fall"].findable <= max(told)


@pytest.mark.parametrize(
    ("findable", "words"),
    [
        ((0.02, 0.3), ": with these seeds a fall above 2.0 to 30.0 points would have been found four times in five"),
        (
            (0.02, 1.7, None),
            ": with these seeds a fall above 2.0 points would have been found four times in five "
            "(in 1 of 2 none would, however large)",
        ),
        ((1.0, 1.7), ": with these seeds none, however large, would have been found four times in five"),
        ((None,), ""),
    ],
)
def test_no_difference_above_a_hundred_points_would_have_been_found(
    findable: tuple[float | None, ...], words: str
) -> None:
    assert _power([Estimate(0.0, -0.1, 0.1, 5, 0.9, one, ()) for one in findable], "a fall", 1) == words


def test_a_fall_that_is_the_same_in_all_seeds_tells_of_no_spread(study: Study, tmp_path: Path) -> None:
    solved(study, tmp_path / "r.jsonl", "low, x0.5", from_cycle=4)
    results = Results.read(tmp_path / "r.jsonl")
    for other in LABELS:
        if other != "low, x0.5":
            results = fill_one(study, results, other)
    analysis = analyse(study, results)
    assert [arm.unmeasured for arm in analysis.arms] == [None, "no spread", None, None]
    assert cells(analysis, "late fall [95%]")["low, x0.5"] == "+0.0, no spread"
    text = "\n".join(sentences(analysis))
    assert "None of the 3 arms whose late fall was measured fell beyond noise" in text
    assert "(the same in all seeds, so that nothing tells what would have been found): low, x0.5." in text
    assert "yet to come" not in text
    (one,) = [one for one in analysis.comparisons if one.arm == "low, x0.5"]
    assert "late_fall" not in one.unmeasured, "its difference to an arm with a spread has one"


def fill_one(study: Study, results: Results, label: str) -> Results:
    rng = np.random.default_rng(100 + len(results.runs))
    for seed in study.seeds:
        chance = np.linspace(0.2, 0.8, 400)
        counts = (rng.random((13, 400)) < chance).astype(np.int64)
        results.add(made_line(study, label, seed, counts), ids=IDS)
    return results


def test_where_nothing_was_measured_nothing_is_said_to_have_been_found(study: Study, tmp_path: Path) -> None:
    text = "\n".join(sentences(analysed(study, tmp_path / "r.jsonl", RISING, RISING, RISING, RISING)))
    assert "No late fall was measured." in text
    assert "beyond noise" not in text.replace("difference of final accuracy beyond noise", "")
    assert "a late fall above" not in text


def test_an_arm_with_one_seed_is_named_where_others_have_more(study: Study, tmp_path: Path) -> None:
    results = fill_one(study, Results(tmp_path / "r.jsonl"), "low, constant")
    counts = np.ones((13, 400), np.int64)
    results.add(made_line(study, "low, x0.5", 1, counts), ids=IDS)
    text = "\n".join(sentences(analyse(study, results)))
    assert "The one arm whose late fall was measured did not fall beyond noise" in text
    assert "Late fall not measured (one seed): low, x0.5." in text


def test_a_difference_from_an_arm_that_rises_to_the_end_is_left_out(study: Study, tmp_path: Path) -> None:
    analysis = analysed(study, tmp_path / "r.jsonl", LEVEL, LEVEL, RISING, LEVEL)
    assert [one.unmeasured for one in analysis.comparisons] == [{}, {"late_fall": "peak at the end"}]
    sheet = comparisons_sheet(analysis)
    assert sheet is not None
    assert float(sheet.rows[0][2]) > 0.05
    assert sheet.rows[1][1:3] == ("peak at the end", "")
    text = "\n".join(sentences(analysis))
    found = re.search(
        r"No difference of late fall beyond noise in the 1 of 2 comparisons that it was.* above ([0-9.]+) p", text
    )
    assert found, text
    power = findable_of_many(analysis.comparisons[0].differences["late_fall"], 3)  # with the two of final accuracy
    assert power is not None
    assert found[1] == f"{100 * power:.1f}"


def test_what_may_be_yet_to_come_is_not_measured_by_being_large(study: Study, tmp_path: Path) -> None:
    """The difference from a course that rises is large, and is neither tested nor counted among the tests."""
    analysis = analysed(study, tmp_path / "r.jsonl", FALLING, RISING, LEVEL, LEVEL)
    assert [arm.unmeasured for arm in analysis.arms][:2] == [None, "peak at the end"]
    rising, level = analysis.comparisons
    assert rising.unmeasured == {"late_fall": "peak at the end"}
    assert rising.differences["late_fall"].p_value is not None
    assert rising.differences["late_fall"].p_value < 0.001
    assert set(rising.corrected) == {"final"}
    assert level.corrected["late_fall"] is not None
    text = "\n".join(sentences(analysis))
    assert "A late fall beyond noise (Holm over 3 arms, p below 0.05): low, constant +" in text
    assert "The other 2 arms whose late fall was measured did not fall beyond noise" in text
    assert "A difference of late fall beyond noise" not in text


def test_a_fall_of_an_arm_half_of_whose_peaks_are_at_the_end_is_not_tested(study: Study, tmp_path: Path) -> None:
    """Picked on the first half of the prompts the peak is early, and the other half falls; picked on that half it is a
    last leap."""
    first = first_half(IDS)
    results = Results(tmp_path / "r.jsonl")
    for seed in study.seeds:
        share = np.full((13, 400), 0.5)
        share[3, first] = 0.9
        share[:, ~first] = 0.8
        share[11, ~first], share[12, ~first] = 0.02 * seed, 0.95
        place = np.where(first, np.cumsum(first) - 1, np.cumsum(~first) - 1) / 200
        counts = (place < share).astype(np.int64)
        results.add(made_line(study, "low, constant", seed, counts), ids=IDS)
    (arm, *_) = analyse(study, results).arms
    # 0.8 less the mean of 0.95 and 0.02 to 0.12, and 0 the other way round
    assert arm.measures["late_fall"].mean == pytest.approx((0.8 - (0.95 + 0.07) / 2) / 2, abs=0.005)
    assert (arm.unmeasured, arm.at_the_end, arm.late_p) == ("peak at the end", 0.5, None)
    assert cells(analyse(study, results), "late fall [95%]")["low, constant"] == "peak at the end"


def test_programs_are_told_too(study: Study, tmp_path: Path) -> None:
    told = as_json(analysed(study, tmp_path / "r.jsonl", LEVEL, LEVEL, RISING, LEVEL))
    assert told["of_several_versions"] == []
    assert [arm["late_fall_unmeasured"] for arm in told["arms"]] == [None, None, "peak at the end", None]
    first, second = (one["differences"] for one in told["comparisons"])
    assert (first["late_fall"]["unmeasured"], second["late_fall"]["unmeasured"]) == (None, "peak at the end")
