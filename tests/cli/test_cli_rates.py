"""The learning-rate calculator: what it prints is what the trainer would set."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.main import register, run
from agent.ledger.create import shipped_folder
from agent.ledger.workspace import Workspace
from agent.recipe.files import load_recipe, recipe_from
from agent.recipe.rates import course, yaml_block
from agent.recipe.reading import read_yaml
from agent.recipe.schedules import learning_rate
from agent.recipe.schema import Learner, LrSchedule

register()
Said = pytest.CaptureFixture[str]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The files alone: nothing here asks the machine or git."""
    for name in ("recipes", "hypotheses"):
        shutil.copytree(shipped_folder() / name, tmp_path / "ws" / name)
    monkeypatch.chdir(tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def said(capsys: Said, *arguments: str) -> str:
    assert run(["lr", *arguments]) == 0
    return capsys.readouterr().out


def told(capsys: Said, *arguments: str) -> dict:
    return json.loads(said(capsys, *arguments, "--json"))


def test_the_usual_schedules_stand_side_by_side(capsys: Said) -> None:
    text = said(capsys, "--compare")
    assert "3.61e-05" in text  # 5e-5 * 0.85^2, cycle 3
    assert "4.12e-06" in text  # 5e-5 * 0.7^7, cycle 8
    assert text == said(capsys)


def test_a_schedule_of_ones_own_has_all_its_parameters(capsys: Said) -> None:
    found = told(
        capsys, "--schedule", "exponential", "--decay", "0.5", "--floor", "0.2", "--cycles", "4", "--rate", "1"
    )
    assert found["schedules"]["yours"]["mean"] == [1.0, 0.5, 0.25, 0.2]
    assert found["schedules"]["yours"]["lr_schedule"] == {
        "kind": "exponential", "by": "cycle", "decay": 0.5, "floor": 0.2,
    }  # fmt: skip
    listed = told(capsys, "--values", "1,0.5,0.25", "--rate", "1", "--cycles", "4")
    assert listed["schedules"]["yours"]["mean"] == [1.0, 0.5, 0.25, 0.25]
    steps = told(capsys, "--schedule", "step", "--decay", "0.1", "--step-every", "1", "--rate", "1", "--horizon", "3")
    assert steps["schedules"]["yours"]["start"] == pytest.approx([1.0, 0.1, 0.01])


def test_by_budget_the_shape_spans_the_training(capsys: Said) -> None:
    found = told(capsys, "--schedule", "linear", "--by", "budget", "--horizon", "8", "--cycles", "2", "--rate", "1")
    assert found["schedules"]["yours"]["start"] == [1.0, 0.5]
    assert found["schedules"]["yours"]["mean"] == [0.75, 0.25]


def test_warm_up_rises_over_its_share_and_holds_then(capsys: Said) -> None:
    found = told(capsys, "--schedule", "constant", "--warmup", "0.25", "--cycles", "4", "--rate", "1")["schedules"]
    assert found["yours"]["start"] == [0.01, 1.0, 1.0, 1.0]
    assert found["yours"]["mean"] == pytest.approx([0.5, 1.0, 1.0, 1.0], abs=0.001)


schedules = st.builds(
    lambda kind, values, **keys: LrSchedule(kind=kind, values=values if kind == "list" else None, **keys),
    kind=st.sampled_from(["constant", "exponential", "step", "wsd", "linear", "cosine", "list"]),
    values=st.lists(st.floats(0, 100), min_size=1, max_size=5),
    by=st.sampled_from(["cycle", "budget"]),
    horizon=st.integers(1, 20),
    decay=st.floats(0.01, 1),
    step_every=st.integers(1, 5),
    decay_share=st.floats(0.01, 1),
    floor=st.floats(0, 1),
)


@given(schedule=schedules, warmup=st.floats(0, 0.5), rate=st.floats(1e-9, 1), cycles=st.integers(1, 12))
def test_what_is_printed_pastes_into_a_recipe_and_gives_the_trainers_rates(
    schedule: LrSchedule, warmup: float, rate: float, cycles: int
) -> None:
    learner = Learner(learning_rate=rate, lr_schedule=schedule, warmup=warmup)
    pasted = {
        "model": {"source": "builtin:tiny"},
        "task": {"dataset": "builtin:addition"},
        "budget": {"cycles": cycles},
    }
    recipe = recipe_from({**pasted, **read_yaml(yaml_block(learner), where="pasted")}, where="pasted")
    assert course("", recipe.learner, cycles).start == [
        learning_rate(recipe, cycle=cycle, spent=(cycle - 1) / cycles) for cycle in range(1, cycles + 1)
    ]
    assert course("", recipe.learner, cycles).steps == course("", learner, cycles).steps


def test_the_block_pastes_into_a_real_recipe(workspace: Workspace, capsys: Said) -> None:
    block = said(capsys, "--schedule", "exponential", "--decay", "0.7", "--rate", "3e-5", "--warmup", "0.1", "--yaml")
    text = (workspace.recipes / "raft-constant-lr.yaml").read_text()
    before, _, after = text.partition("learner:\n")
    rest = "evaluation:" + after.partition("evaluation:")[2]
    path = workspace.recipes / "mine.yaml"
    path.write_text(before + block + rest)
    learner = load_recipe(path).learner
    assert (learner.learning_rate, learner.warmup, learner.lr_schedule.decay) == (3e-5, 0.1, 0.7)
    assert isinstance(yaml.safe_load(block)["learner"]["learning_rate"], float), "also for readers of YAML 1.1"
    assert told(capsys, "--recipe", "mine")["cycles"] == 8


def test_the_block_pastes_over_a_list_that_is_extended(workspace: Workspace, capsys: Said) -> None:
    listed = "extends: raft-decay-lr.yaml\nlearner:\n  lr_schedule: {kind: list, by: cycle, values: [1, 0.5]}\n"
    (workspace.recipes / "listed.yaml").write_text(listed)
    block = said(capsys, "--schedule", "exponential", "--decay", "0.7", "--yaml")
    (workspace.recipes / "mine.yaml").write_text(f"extends: listed.yaml\n{block}")
    assert load_recipe(workspace.recipes / "mine.yaml").learner.lr_schedule.kind == "exponential"


def test_a_block_to_paste_has_nothing_else_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    for also in ("--compare", "--recommendations"):
        assert run(["lr", "--decay", "0.5", "--yaml", also]) == 2
        assert "--yaml prints a block to paste and nothing else" in capsys.readouterr().err


def test_a_recipe_is_shown_with_its_own_schedule_and_cycles(workspace: Workspace, capsys: Said) -> None:
    found = told(capsys, "--recipe", "raft-decay-lr")
    assert found["cycles"] == 8
    assert found["schedules"]["recipe"]["mean"][2] == pytest.approx(5e-5 * 0.85**2)
    assert "its budget is no number of cycles" in told(capsys, "--recipe", "tiny-addition")["note"]
    beside = told(capsys, "--recipe", "raft-decay-lr", "--compare")["schedules"]
    assert beside["exp 0.85"]["mean"] == found["schedules"]["recipe"]["mean"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("width", [20, 80])
def test_nothing_is_wider_than_the_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)  # outside of any workspace: the playbook that is shipped
    for rate, arguments in {
        "3.61e-05": ["--compare", "--visualize", "--recommendations"],
        "3.65e-05": ["--decay", "0.9", "--warmup", "0.1"],
    }.items():
        lines = said(capsys, *arguments).splitlines()
        assert max(map(len, lines)) <= width
        assert any(rate in line for line in lines)


def test_every_recommendation_has_its_kind_and_source(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    before = {one["name"]: one for one in told(capsys, "--recommendations")["recommendations"]}
    assert {one["kind"] for one in before.values()} == {"measured", "hypothesis"}
    assert all(one["source"] for one in before.values())
    assert before["fact:falls-after-cycle-6"]["kind"] == "measured"
    assert before["fact:decay-prevents-the-fall"]["kind"] == "hypothesis"
    assert before["lr-exponential/standard"]["kind"] == "hypothesis"
    rules = workspace.hypotheses / "rules.yaml"  # what a study found is written in one place
    old = "says: Decaying the rate across cycles prevents the late fall.\n    status: unknown"
    assert old in rules.read_text()
    rules.write_text(rules.read_text().replace(old, "says: It does, by 3 points.\n    status: validated"))
    after = {one["name"]: one for one in told(capsys, "--recommendations")["recommendations"]}
    assert after["fact:decay-prevents-the-fall"]["kind"] == "measured"
    assert "measured    It does, by 3 points." in said(capsys, "--recommendations")


def is_picture(path: Path) -> bool:
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    return data[:8] == b"\x89PNG\r\n\x1a\n" and width > 1000 and height > 500


def test_a_picture_is_drawn(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "rates.png"
    assert told(capsys, "--compare", "--png", str(path))["png"] == str(path)
    assert is_picture(path)


def test_to_visualize_is_to_draw_here_and_into_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    text = said(capsys, "--decay", "0.5", "--cycles", "3", "--visualize")
    assert re.search(r"^ +3 #+ +1.25e-05$", text, re.M), "a bar with its rate"
    assert "drawn into learning-rates.png" in text
    assert is_picture(tmp_path / "learning-rates.png")
    assert [path.name for path in tmp_path.iterdir()] == ["learning-rates.png"]


def test_a_picture_that_is_named_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(capsys, "--visualize", "--png", "mine.png")["png"] == "mine.png"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    said(capsys, "--compare")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"], "nobody asked to draw"


def test_what_is_printed_for_a_recipe_stays_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["lr", "--decay", "0.5", "--yaml", "--visualize"]) == 0
    printed = capsys.readouterr()
    assert set(yaml.safe_load(printed.out)) == {"learner"}
    assert printed.err == "drawn into learning-rates.png\n"


@pytest.mark.parametrize("taken", [True, False])
def test_a_folder_that_takes_no_picture_is_a_warning(
    taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    if taken:
        (tmp_path / "learning-rates.png").mkdir()
    monkeypatch.chdir(tmp_path if taken else "/proc")
    assert run(["lr", "--visualize"]) == 0
    printed = capsys.readouterr()
    assert "3.61e-05" in printed.out
    assert "drawn into" not in printed.out
    why = "learning-rates.png is no file to write: folder" if taken else "cannot write: "
    assert printed.err.startswith(f"warning: no picture: {why}")
    assert printed.err.endswith(" (--png FILE writes it elsewhere)\n")
    assert run(["lr", "--visualize", "--json"]) == 0
    assert "png" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rate", "nan"], 2, "--rate nan must be a number > 0 and <= 1"),
        (["--rate", "0"], 2, "--rate 0 must be"),
        (["--rate", "-1"], 2, "--rate -1 must be"),
        (["--decay", "nan"], 2, "--decay nan must be"),
        (["--decay", "0"], 2, "--decay 0 must be"),
        (["--floor", "-0.1"], 2, "--floor -0.1 must be"),
        (["--warmup", "0.6"], 2, "--warmup 0.6 must be a number >= 0 and <= 0.5"),
        (["--horizon", "0"], 2, "--horizon 0 must be a whole number >= 1"),
        (["--horizon", "5000"], 2, "--horizon without --cycles 5000 must be from 1 to 1000"),
        (["--cycles", "0"], 2, "--cycles 0 must be from 1 to 1000"),
        (["--values", ","], 2, "--values needs at least one factor"),
        (["--values", "1,nan"], 2, "--values nan must be numbers from 0 to 100"),
        (["--values", "1;2"], 2, "no list of numbers"),
        (["--schedule", "list"], 2, "a list needs its factors"),
        (["--schedule", "exp"], 2, "--schedule exp must be one of constant, exponential"),
        (["--schedule", "linear", "--decay", "0.5"], 2, "--decay is not read by a linear schedule"),
        (["--by", "week"], 2, "--by week must be one of cycle, budget"),
        (["--yaml"], 2, "--yaml: of which schedule?"),
        (["--recipe", "x", "--warmup", "0.1"], 2, "--warmup does not go with --recipe"),
        (["--png", "/"], 2, "is no file to write: folder"),
        (["--png", "/dev/null"], 2, "is no file to write"),
        (["--png", "/no/such/folder/x.png"], 2, "there is no folder /no/such/folder"),
        (["--png", "/proc/x.png"], 9, "cannot write"),
    ],
)
def test_a_wrong_value_gets_one_clear_message(arguments: list[str], code: int, words: str, capsys: Said) -> None:
    assert run(["lr", *arguments]) == code
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) <= 2


def test_the_example_of_the_documentation_is_what_is_printed(capsys: Said) -> None:
    page = (Path(__file__).parents[2] / "docs/learning-rate.md").read_text()
    command, block = re.findall(r"^raft-agent lr ([^\n]* --yaml)\n```\n\n```yaml\n(.*?)```", page, re.M | re.S)[0]
    assert said(capsys, *command.split()) == block
