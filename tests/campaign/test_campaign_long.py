"""What is worked out in another way for thousands of ideas says the same as what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_journals import long_night

from agent.campaign.admission import _number_in
from agent.campaign.decided import bounds_from, comparison_from
from agent.campaign.night_runs import RunFolders, number_of
from agent.campaign.stairs import key_of, number_in
from agent.campaign.story import _in_gb, levels_by_idea, tell
from agent.ledger.events import RunPlanned
from agent.ledger.state import Run

numbers = st.floats(-1.0, 1.0)
noises = st.none() | st.just({}) | st.just({"between": 1e-4}) | st.just({"between": 1e-4, "within": 1e-5, "df": 3})
comparisons = st.fixed_dictionaries(
    dict.fromkeys(("delta", "standard_error", "pair_error", "run_error", "candidate", "incumbent"), numbers)
    | {
        "df": st.floats(1.0, 100.0),
        "prompts": st.just(64),
        "seeds_candidate": st.just(1),
        "seeds_incumbent": st.just(2),
    },
    optional={"better": st.none() | st.just(3), "worse": st.just(1), "noise": noises, "later": st.just("words")},
)


@settings(deadline=None)
@given(told=comparisons, change=st.sampled_from(["nothing", "lacks", "unknown"]), data=st.data())
def test_bounds_are_those_of_the_comparison(told: dict[str, Any], change: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(told)))
    if change == "lacks":
        del told[name]
    elif change == "unknown":
        told[name] = None
    whole = comparison_from(told)
    assert bounds_from(told) == ((whole.delta, *whole.interval) if whole else None)


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("001-incumbent-s1501", 1), ("1000-incumbent-s1500500", 1000), ("holdout-winner-1234-confirm-s1", 1234),
        ("holdout-winner-012-incumbent-s6500", 12), ("holdout-baseline-000-incumbent-s500", 0),
        ("holdout-baseline-baseline-s1", 0), ("holdout-untrained-untrained", 0),
    ],
)  # fmt: skip
def test_a_run_that_belongs_to_no_idea_has_the_recipe_of_the_one_in_its_name(key: str, number: int) -> None:
    assert _number_in(key) == number


def test_memory_of_a_run_that_crashed_is_in_the_unit_of_one_that_did_not() -> None:
    assert _in_gb(2.0) == 2 * 2**30 / 1e9
    assert _in_gb(None) is None


def test_nothing_has_no_bounds() -> None:
    assert bounds_from(None) is None
    assert bounds_from({}) is None


@pytest.mark.parametrize("out", ["a/b/run-1", "run-1", "/x/run-1", "a/run-1/", "a/./run-1/.", "a/..", "", ".", "/"])
def test_a_run_is_named_by_its_folder(out: str) -> None:
    words = RunPlanned(
        kind="run_planned",
        seq=1,
        time=0.0,
        run="id",
        role="baseline",
        rung="full",
        seed=1,
        recipe_signature="s",
        out=out,
    )
    assert key_of(Run("id", planned=words)) == Path(out).name
    assert key_of(Run("id")) == "id"


def test_folders_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/two").write_text("a file")
    (tmp_path / "runs/three").symlink_to(tmp_path / "runs/one")
    (tmp_path / "runs/four").symlink_to(tmp_path / "nowhere")
    (tmp_path / "runs/six").symlink_to(tmp_path / "runs/six")
    (tmp_path / "alone").mkdir()
    absolute = str(tmp_path / "runs/one")
    asked = ["runs/one", "runs/two", "runs/three", "runs/four", "runs/five", "runs/six", "alone", "gone/one",
             "runs/one/", absolute, "runs/two/x", "/", "runs/../alone"]  # fmt: skip
    folders = RunFolders(tmp_path)
    assert folders.there(asked) == {out for out in asked if (tmp_path / out).is_dir()}
    assert folders.has_read_all


def test_folders_in_one_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)

    def refused(folder: object) -> object:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refused)
    folders = RunFolders(tmp_path)
    assert folders.there(["runs/one", "runs/two"]) == {"runs/one"}
    assert not folders.has_read_all


def test_levels_of_many_are_those_of_each() -> None:
    state = long_night(60).state()
    levels = levels_by_idea(state, state.experiments)
    assert levels, "something was confirmed"
    for number in state.experiments:
        told = tell(state, number)
        assert (told.level, told.level_left) == levels.get(number, (None, None))


@pytest.mark.parametrize(
    ("key", "number"),
    [("100-candidate-s3", 100), ("1000-candidate-s3", 1000), ("003-search-s3.2", 3), ("holdout-winner-003-s1", 0)],
)
def test_the_name_of_a_run_begins_with_the_number_of_its_idea(key: str, number: int) -> None:
    assert number_in(key) == number
    words = {"seq": 1, "time": 0.0, "role": "confirm", "rung": "confirm", "seed": 1, "recipe_signature": ""}
    assert number_of(Run("id", planned=RunPlanned(kind="run_planned", run="id", out=f"night/{key}", **words))) == number
