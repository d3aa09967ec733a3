"""`raft-agent export`: which checkpoint is chosen, what the card says of it, and where the folder is put."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nights import MACHINE, Night, forked_launch

from agent.campaign.comparison import wilson
from agent.campaign.delivered import Delivered, best_run, on_select
from agent.campaign.export import _gains, _is_holdout, _limits, _provisional, lineage
from agent.campaign.export_folder import MANIFEST, building, close, refuse_target
from agent.campaign.recipes import loaded, texts_of
from agent.campaign.stairs import key_of
from agent.cli.main import register, run
from agent.errors import Busy, InvalidFile, ResourceError, UsageError
from agent.ledger.journal import Journal
from agent.recipe.files import load_recipe
from agent.recipe.schema import Evaluation

register()
TOLD = {
    "merged": True,
    "dtype": "float32",
    "parameters": 870_000,
    "checks": {"prompts": 4, "positions": 12, "difference": 1e-6, "allowed": 1e-3, "same_samples": 4, "ties": 0},
    "example": {"text": "12+34=", "ids": [1, 2], "max_new_tokens": 6, "answer": "46"},
    "versions": {"python": "3.11", "torch": "2.6", "transformers": "5.8", "peft": "0.17"},
    "license": None,
}


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command ends with and prints; the model's files are made without torch."""
    monkeypatch.setattr("agent.campaign.open.machine_of", lambda workspace: MACHINE)
    monkeypatch.setattr("agent.run.child.answer_of", made)
    monkeypatch.chdir(copy)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def made(module: str, arguments: list[str], **ignored: Any) -> dict[str, Any]:
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    quality = (Path(given["--checkpoint"]) / "quality").read_text()
    (Path(given["--out"]) / "model.safetensors").write_text(quality)
    return TOLD


# --- which checkpoint --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_winner_is_the_checkpoint_that_the_end_has_chosen(said: Said, copy: Path, judged: Night) -> None:
    state = Journal(judged.workspace.journal_path("night")).state()
    code, out, err = said("export", "--out", "model")
    assert code == 0, err
    assert "exporting the checkpoint of 001-confirm-s1100" in err
    assert state.result["checkpoint"] == ".raft/runs/night/001-confirm-s1100/checkpoint"
    del state.result["checkpoint"]  # as for a campaign that is not finished
    assert key_of(best_run(judged.root, state, 1)) == "001-confirm-s1100"
    assert key_of(best_run(judged.root, state, 0)).startswith("baseline-")
    assert lineage(state, 2) == [1, 2]
    assert "measure it: raft-agent eval model --recipe .raft/runs/night/001-confirm-s1100/recipe.yaml" in out
    code, _, err = said("eval", "model")
    assert (code, "exported from 001-confirm-s1100: --recipe .raft/runs/night/001-confirm-s1100/rec" in err) == (
        2,
        True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("here", ["", ".raft/runs/night"])
def test_the_folder_of_a_campaigns_run_is_as_good_as_its_name(
    said: Said, copy: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    """Completion in a shell gives the folder, and the card has to say what the campaign says of the run."""
    monkeypatch.chdir(copy / here)
    run = Path(".raft/runs/night/001-confirm-s1100").relative_to(here)
    assert said("export", "--out", str(copy / "model"), "--run", str(run))[0] == 0
    told = json.loads((copy / "model" / MANIFEST).read_text())
    assert (told["campaign"], told["number"], told["run"]) == ("night", 1, "001-confirm-s1100")
    assert "no campaign" not in (copy / "model/README.md").read_text()
    monkeypatch.chdir(copy)
    there = copy / ".raft/runs/night/001-confirm-s1100"
    shutil.copytree(copy / ".raft/campaigns/night", copy / ".raft/campaigns/other")
    code, _, err = said("export", "--out", "others", "--run", str(there), "--campaign", "other")
    assert (code, "is a run of campaign night, and --campaign names other" in err) == (2, True)
    shutil.rmtree(copy / ".raft/campaigns/other")
    shutil.copytree(there, there.with_name(f"{there.name}.changed-1"))  # as a run that counts no more
    assert said("export", "--out", "other", "--run", f"{there}.changed-1")[0] == 2
    shutil.copytree(there, copy / "mine")
    code, out, _ = said("export", "--out", "other", "--run", "mine", "--json")
    assert (code, json.loads(out)["campaign"]) == (0, None)
    shutil.copytree(there, copy.parent / "outside")  # whose recipe no command takes
    code, out, _ = said("export", "--out", "elsewhere", "--run", str(copy.parent / "outside"), "--campaign", "night")
    assert (code, "measure it" in out) == (0, False)
    (there / "checkpoint/quality").write_text("0.9")
    code, _, err = said("export", "--out", "third", "--run", str(there))
    assert (code, "is not what that run delivered" in err) == (3, True)


def test_it_is_measured_again_by_the_recipe_of_its_run(said: Said, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's recipe is what the campaign began with, and an idea may have changed the prompt."""
    asked: list[Any] = []

    def launch(request: Any, **ignored: Any) -> Any:
        asked.append(request)
        return forked_launch(request, on_started=lambda identity: None, stop=lambda: None)

    monkeypatch.setattr("agent.run.launcher.launch", launch)
    out = said("export", "--out", "model")[1]
    (command,) = re.findall(r"measure it: raft-agent (.*)", out)
    assert f"raft-agent {command.replace(' model ', ' FOLDER ')}\n" in (copy / "model/README.md").read_text()
    (copy / "model/quality").write_text("0.7")  # which the fake trainer reads
    assert said(*command.split())[0] == 0
    own = load_recipe(copy / ".raft/runs/night/001-confirm-s1100/recipe.yaml")
    assert own.learner.learning_rate == 0.002
    assert asked[0].recipe == own
    assert (asked[0].evaluate, asked[0].splits) == (str(copy / "model"), ("holdout",))


def test_it_is_merged_with_the_variables_that_its_runs_had(
    said: Said, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("agent.run.child.answer_of", lambda *words, **keys: given.append(keys["env"]) or made(*words))
    journal = copy / ".raft/campaigns/night/journal.jsonl"
    last = json.loads(journal.read_text().splitlines()[-1])
    change = {"kind": "shared_layer_changed", "env": {"HSA_ENABLE_SDMA": "0"}, "why": "it hung"}
    with journal.open("a") as file:
        file.write(json.dumps({**change, "seq": last["seq"] + 1, "time": 1.0}) + "\n")
    assert said("export", "--out", "model")[0] == 0
    assert given == [{"HSA_ENABLE_SDMA": "0"}]


def test_a_metric_that_is_to_fall_has_its_best_run_at_the_other_end() -> None:
    falls = Evaluation(direction="minimize")
    assert sorted([0.3, 0.1, None], key=lambda value: -on_select(value, falls)) == [0.1, 0.3, None]
    assert sorted([0.3, None, 0.9], key=lambda value: -on_select(value, Evaluation())) == [0.9, 0.3, None]


def test_none_of_32_is_no_proof_of_none_at_all() -> None:
    assert wilson(0.0, 32) == (0.0, pytest.approx(0.1072, abs=1e-4))  # z^2 / (n + z^2)
    assert wilson(1.0, 32) == (pytest.approx(0.8928, abs=1e-4), 1.0)


@pytest.mark.slow
def test_what_is_gone_is_said_with_what_is_left(said: Said, copy: Path) -> None:
    code, _, err = said("export", "--out", "model", "--number", "2")
    assert code == 4
    assert "no checkpoint of #2 is left; there are those of 001-confirm-s1100" in err
    assert "raft-agent replay 2" in err
    code, _, err = said("export", "--out", "model", "--run", "002-search-s2000")
    assert code == 4
    assert "the checkpoint of 002-search-s2000 is gone" in err
    code, _, err = said("export", "--out", "model", "--run", "001-confirm-s1109")
    assert (code, "did you mean 001-confirm-s110" in err) == (2, True)
    assert said("export", "--out", "model", "--number", "9")[0] == 2
    assert said("export", "--out", "model", "--number", "1", "--run", "baseline-s1")[0] == 2
    assert not (copy / "model").exists()


def test_a_checkpoint_that_was_changed_is_not_exported(said: Said, copy: Path) -> None:
    (copy / ".raft/runs/night/001-confirm-s1100/checkpoint/quality").write_text("0.9")
    code, _, err = said("export", "--out", "model")
    assert code == 3
    assert "checkpoint/quality of 001-confirm-s1100 is not what that run delivered" in err
    assert [path.name for path in copy.iterdir() if "model" in path.name] == []


# --- the card ----------------------------------------------------------------------------------------------


def test_the_card_has_what_the_campaign_found(said: Said, copy: Path) -> None:
    assert said("export", "--out", "model")[0] == 0
    text = (copy / "model/README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    result = front["model-index"][0]["results"][0]["metrics"][0]
    assert result == {"type": "pass_rate", "name": "pass_rate on holdout", "value": 0.715}
    assert "holdout (n=200): untrained 19.0% -> baseline 42.0% -> winner 71.0%" in text
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    by_arm = {row[0]: row for row in rows}
    assert by_arm["untrained"][2:5] == ["19.0%", "13.5% to 24.5%", "200"]
    assert by_arm["baseline, mean of 2 runs"][2] == "42.0%"
    assert by_arm["winner, mean of 2 runs"][2] == "71.0%"
    assert by_arm["1"][1:3] == [
        "learning-rate: better rate, 0.0005 -> 0.002 (better-rate: learner.learning_rate 0.0005 -> 0.002)",
        "+27.3pp [+21.0pp, +33.5pp]",
    ]
    assert "winner against baseline on the holdout: +29.0pp [+22.6pp, +35.4pp], paired by prompt" in text
    assert "#1 was decided by look 2 of the confirmation" in text
    assert "raft-agent replay 1 --campaign night --seed 1100" in text
    assert "learning_rate: 0.002" in text
    assert "Provisional" not in text
    assert str(copy) not in text
    told = json.loads((copy / "model" / MANIFEST).read_text())
    assert (told["campaign"], told["number"], told["run"]) == ("night", 1, "001-confirm-s1100")
    assert set(told["files"]) == {"README.md", "model.safetensors"}


def test_a_later_winner_has_nothing_of_an_earlier_ones_holdout(judged: Night) -> None:
    state = Journal(judged.workspace.journal_path("night")).state()
    assert any(_is_holdout(run, "winner", 1) for run in state.runs.values())
    assert not any(_is_holdout(run, "winner", 2) for run in state.runs.values())
    what = Delivered(1, "001-confirm-s1100", judged.root, loaded(texts_of(state, 1), "recipes/test.yaml"), {}, True)
    assert len(list(_gains(state, what))) == 2
    state.result["winner"] = 7  # as it was told of the winner before
    assert not list(_gains(state, what))
    assert not any("oldout" in line for line in _limits(state, what))
    state.status = "running"
    assert _provisional(state, what).endswith(
        "; its holdout was looked at for #7, and not for the recipe that leads now"
    )
    state.result["holdout"] = {"skipped": "the budget is spent"}
    assert _provisional(state, what).endswith("; its holdout was not looked at")


def test_what_is_not_the_winner_is_called_provisional(said: Said, copy: Path) -> None:
    told = json.loads(said("export", "--out", "base", "--number", "0", "--json")[1])
    assert told["provisional"] == "campaign night did not choose this recipe; its winner is another"
    assert "Nothing: this is the recipe as the campaign found it." in (copy / "base/README.md").read_text()
    journal = copy / ".raft/campaigns/night/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if "campaign_finished" not in line))
    told = json.loads(said("export", "--out", "early", "--json")[1])
    assert told["provisional"].startswith("campaign night is not finished (running)")
    text = (copy / "early/README.md").read_text()
    assert "**Provisional:** campaign night is not finished" in text
    assert "Provisional: campaign night is not finished" in text.split("## Limits of the claim")[1]


# --- where it is put ---------------------------------------------------------------------------------------


def test_only_an_export_is_replaced_and_only_by_force(said: Said, copy: Path) -> None:
    (copy / "model").mkdir()
    assert said("export", "--out", "model")[0] == 0  # an empty folder is in nobody's way
    code, _, err = said("export", "--out", "model")
    assert (code, "--force replaces one that an export has made" in err) == (2, True)
    assert said("export", "--out", "model", "--force")[0] == 0
    for name, words in (("mine.txt", "mine.txt is not of an export"), ("README.md", "README.md was changed since")):
        (copy / "model" / name).write_text("mine")
        code, _, err = said("export", "--out", "model", "--force")
        assert (code, words in err) == (5, True)
        (copy / "model/mine.txt").unlink(missing_ok=True)
    assert (copy / "model/README.md").read_text() == "mine"
    (copy / "other").mkdir()
    (copy / "other/x").write_text("mine")
    code, _, err = said("export", "--out", "other", "--force")
    assert (code, "no export has made this folder" in err) == (5, True)
    assert not [path.name for path in copy.iterdir() if path.name.startswith((".model", ".other"))]


def test_links_files_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    for name, words in (
        ("link", "is a link"),
        ("dangling", "is a link"),
        ("file", "no folder"),
        ("a/b", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=words):
            refuse_target(tmp_path / name, force=True)


def test_what_fails_leaves_nothing_and_what_was_killed_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fails(error: BaseException) -> None:
        with building(target, force=False) as folder:
            (folder / "model.safetensors").write_text("half")
            raise error

    for error in (ResourceError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fails(error)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / ".model.export/sub").mkdir(parents=True)
    (tmp_path / ".model.export/model.safetensors").write_text("of a killed one")
    with building(target, force=False) as folder:
        assert list(folder.iterdir()) == []
        with pytest.raises(Busy), building(target, force=False):
            pass
        close(folder, "# card\n", {})
    assert sorted(path.name for path in target.iterdir()) == ["README.md", MANIFEST]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "weights.bin").write_text("pickle")
    with pytest.raises(InvalidFile, match=r"weights\.bin has no place"):
        close(tmp_path, "# card\n", {})
    assert (target / "README.md").read_text() == "# card\n"
