"""The page of a long campaign shows what says most and the newest, says so, and leads to no idea that it lacks."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from agent.report import chosen, look
from agent.report.charts import group_of
from agent.report.night import Night
from agent.report.page import render_page
from agent.report.staircase import staircase
from agent.report.summary import night_from, summary_of
from tests.report.made_nights import good, many

FAKE = "window.vegaEmbed = null;"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "MOST_NEWEST", 6)
    monkeypatch.setattr(chosen, "MOST_TELLING", 4)
    monkeypatch.setattr(look, "MOST_CRASHES", 1)
    monkeypatch.setattr(look, "MOST_RULED_OUT", 14)


def numbers(night: Night, *groups: str) -> set[int]:
    return {step.number for step in night.steps if group_of(step) in groups}


def test_a_night_is_shown_whole() -> None:
    for night in (good(), many(curves=False)):
        assert chosen.shown(night) == {step.number for step in night.steps}
        assert "results.tsv and summary.json" not in render_page(night, charts=FAKE)


def test_what_says_most_and_the_newest_are_shown(short: None) -> None:
    night = replace(good(), cards=())
    shown = chosen.shown(night)
    near = {one.number for one in night.near_misses}
    assert {0, *range(19, 25)} <= shown
    assert numbers(night, "keep") | near <= shown
    assert 7 <= len(shown) <= 1 + 6 + 4 + len(near)
    assert len(shown) < len(night.steps)


def test_crashes_come_last_where_there_is_no_room(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    night = replace(good(), cards=(), near_misses=())
    assert 9 in chosen.shown(night), "an early crash"
    monkeypatch.setattr(chosen, "MOST_TELLING", 3)
    assert 9 not in chosen.shown(night)
    assert numbers(night, "keep", "lead") <= chosen.shown(night)


def test_the_page_says_what_is_left_out_and_links_to_what_it_has(short: None) -> None:
    night = good()
    page = render_page(night, charts=FAKE)
    shown = chosen.shown(night) - {0}
    rows = {int(number) for number in re.findall(r'<tr id="idea-(\d+)"', page)}
    assert rows == shown
    assert f"{len(shown)} of 24: the newest" in page
    assert f"Marks: {len(shown)} of 24 ideas" in page
    links = set(re.findall(r'href="#(idea-\d+|card-\d+)"', page)) | set(re.findall(r'"go":"((?:idea|card)-\d+)"', page))
    assert links <= set(re.findall(r' id="((?:idea|card)-\d+)"', page))
    assert "Crashes: 2" in page
    assert f"What {len(night.ruled_out)} discarded ideas" in page
    assert len(summary_of(night)["steps"]) == 25
    assert night_from(summary_of(night)).steps == night.steps


def test_the_line_of_the_best_is_of_all_ideas(short: None) -> None:
    night = good()
    whole, cut = staircase(night), staircase(night, marks=[])
    assert whole["datasets"]["line"] == cut["datasets"]["line"]
    bests = [step.best for step in night.steps if step.best is not None]
    changes = 1 + sum(one != other for one, other in itertools.pairwise(bests))
    assert len(whole["datasets"]["line"]) == changes + 1, "a point for each change, and the end"
