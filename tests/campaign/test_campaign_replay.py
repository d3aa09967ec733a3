"""`raft-agent diff` and `replay`: how two recipes differ, and whether an experiment comes out the same again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nights import MACHINE, Night, forked_launch

from agent.campaign.diffs import difference
from agent.campaign.replay import again, changed_files
from agent.campaign.replay_result import result_of
from agent.cli.main import register, run
from agent.errors import Unavailable
from agent.ledger.journal import Journal
from agent.ledger.lock import hold
from agent.ledger.workspace import Workspace
from agent.recipe.files import with_keys
from agent.recipe.yardstick import digest_of
from agent.run.telemetry import RunRecord, read_run

register()


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(judged: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command ends with and prints, with the fake trainer."""
    monkeypatch.setattr("agent.campaign.open.machine_of", lambda workspace: MACHINE)
    monkeypatch.setattr("agent.run.launcher.launch", launch)

    def call(*arguments: str, root: Path = judged.root) -> tuple[int, str, str]:
        monkeypatch.chdir(root)
        code = run(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def launch(request: Any, **ignored: Any) -> Any:
    return forked_launch(request, on_started=lambda identity: None, stop=lambda: None)


def journal_of(root: Path) -> Journal:
    return Journal(Workspace(root).journal_path("night"))


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


# --- diff --------------------------------------------------------------------------------------------------


def test_a_diff_names_the_keys_and_has_the_text_that_show_has(said: Said) -> None:
    code, out, _ = said("diff", "1")
    assert code == 0
    first, second, _, head, row = out.splitlines()[:5]
    assert first.startswith("from  baseline: keep: baseline: 2 seeds")
    assert second.startswith("to    #1 learning-rate: better rate, 0.0005 -> 0.002: keep: gain +27.3pp")
    assert (head.split(), row.split()) == (["key", "from", "to"], ["learner.learning_rate", "0.0005", "0.002"])
    text = out[out.index("diff --git") :]
    assert said("show", "1", "--diff")[1].endswith(text)
    assert said("diff", "best")[1] == out


def test_any_two_recipes_can_be_compared_and_either_way_round(said: Said, judged: Night) -> None:
    told = json.loads(said("diff", "0", "3", "--json")[1])
    assert {one["key"]: (one["from"], one["to"]) for one in told["changed"]} == {
        "learner.learning_rate": (0.001, 0.0005),  # #3 was built on #1, and mended once
        "learner.optimizer": ("sgd", "adamw"),
    }
    assert "learner.optimizer sgd -> adamw" in told["change"].replace("'", "")
    assert (told["from"]["name"], told["to"]["name"]) == ("#3", "baseline")
    assert told["from"]["outcome"].startswith("#3 learning-rate: nan, adamw -> sgd: crash: numeric")
    assert "no key differs" in said("diff", "start", "0")[1]
    assert judged.session is not None
    state = judged.session.state
    there = difference(judged.root, state, "2", "1").moves
    back = difference(judged.root, state, "1", "2").moves
    assert {key: (new, old) for key, (old, new) in there.items()} == back


@pytest.mark.parametrize(
    ("name", "hint"), [("bets", "did you mean best?"), ("9", "there are: 0, 1, 2, 3"), ("-x", "best, lead, start")]
)
def test_what_there_is_not_is_refused_with_what_there_is(said: Said, name: str, hint: str) -> None:
    code, _, err = said("diff", "--", name)
    assert code == 2
    assert hint in err


def test_the_journal_has_the_diff_where_git_no_longer_has_the_commit(said: Said, copy: Path, judged: Night) -> None:
    branch = git(copy, "for-each-ref", "--format=%(refname:short)", "refs/heads/raft/night/exp/002*").strip()
    git(copy, "branch", "-D", branch)
    git(copy, "update-ref", "-d", "refs/notes/raft")
    git(copy, "reflog", "expire", "--expire=now", "--all")
    git(copy, "gc", "--prune=now", "--quiet")
    code, out, _ = said("diff", "2", root=copy)
    assert code == 0
    assert "this diff is from the journal, since git cannot tell: no commit called" in out
    assert "placebo" in out[out.index("--- a/recipes/test.yaml") :]
    code, _, err = said("replay", "2", root=copy)
    assert code == 5
    assert "the commit of #2" in err
    assert "is gone from this repository" in err


# --- replay ------------------------------------------------------------------------------------------------


def test_a_replay_comes_out_the_same_and_leaves_the_campaign_alone(said: Said, copy: Path) -> None:
    before = {path: path.read_bytes() for path in (journal_of(copy).path, copy / "results.tsv")}
    refs = git(copy, "for-each-ref")
    (copy / "recipes/test.yaml").write_text("not: a recipe\n")  # the checkout is not what is run
    code, out, err = said("replay", "1", root=copy)
    assert code == 0, err
    assert "seed 1000, recorded as 001-search-s1000" in out
    assert "search: 200 of 200 prompts answered the same, 200 judged the same" in out
    assert out.splitlines()[-1].startswith("identical: the answers to all prompts (200 of search)")
    folder = copy / ".raft/replays/night/001-s1000"
    assert read_run(folder).summary is not None
    assert {path: path.read_bytes() for path in before} == before
    assert git(copy, "for-each-ref") == refs
    assert [path.name for path in (copy / ".raft/runs").iterdir()] == ["night"]
    again_said = said("replay", "1", root=copy)
    assert again_said[1] == out
    assert "this replay has ended before" in again_said[2]
    assert (folder / "starts").read_text() == "x"


@pytest.mark.slow
def test_what_an_idea_was_compared_with_and_another_seed(said: Said, copy: Path) -> None:
    told = json.loads(said("replay", "1", "--arm", "incumbent", "--json", root=copy)[1])
    assert (told["of"], told["recorded"]["run"], told["verdict"]) == (0, "baseline-s1", "identical")
    told = json.loads(said("replay", "1", "--seed", "1100", "--json", root=copy)[1])
    assert told["recorded"]["run"] == "001-confirm-s1100"
    assert [one["split"] for one in told["splits"]] == ["search", "confirm"]
    told = json.loads(said("replay", "1", "--seed", "77", "--json", root=copy)[1])
    assert told["notes"][0] == "no run of it had the seed 77: compared with 001-search-s1000, whose seed is 1000"
    assert told["verdict"] == "within noise"
    assert "sigma_run 0." in told["sentence"]


def test_it_goes_on_where_it_was_stopped(said: Said, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.05")
    monkeypatch.setenv("FAKE_PACE_ALL", "1")
    folder = copy / ".raft/replays/night/001-s1000"

    def stopping(request: Any, **ignored: Any) -> Any:
        half = lambda: "enough" if (folder / "trained").exists() else None  # noqa: E731
        return forked_launch(request, on_started=lambda identity: None, stop=half)

    monkeypatch.setattr("agent.run.launcher.launch", stopping)
    code, _, err = said("replay", "1", root=copy)
    assert code == 130
    assert "the same command goes on with it" in err
    monkeypatch.setattr("agent.run.launcher.launch", launch)
    code, out, _ = said("replay", "1", root=copy)
    assert code == 0
    assert out.splitlines()[-1].startswith("identical")
    assert (folder / "trained").read_text() == "12345"


def test_a_machine_that_is_busy_is_not_disturbed(said: Said, copy: Path) -> None:
    with hold(Workspace(copy), what="campaign other"):
        code, _, err = said("replay", "1", root=copy)
        assert (code, "campaign other" in err, "--anyway" in err) == (7, True, True)
        assert not (copy / ".raft/replays/night/001-s1000/starts").exists()
        code, _, err = said("replay", "1", "--anyway", root=copy)
        assert code == 0
        assert "timings of both are disturbed" in err


def test_what_is_measured_by_has_to_be_what_it_was(said: Said, copy: Path) -> None:
    edit_start(copy, lambda start: start["lockbox"].update({"file data/rows.jsonl": "0" * 32}))
    code, _, err = said("replay", "1", root=copy)
    assert code == 3
    assert "data/rows.jsonl (gone)" in err
    (copy / "data").mkdir()
    (copy / "data/rows.jsonl").write_text("{}\n")
    code, _, err = said("replay", "1", "--anyway", root=copy)
    assert code == 0
    assert "warning: not what it was when the campaign ran: data/rows.jsonl (another content)" in err


def edit_start(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = journal_of(root).path
    first, *rest = path.read_text().splitlines(keepends=True)
    start = json.loads(first)
    change(start)
    path.write_text(json.dumps(start) + "\n" + "".join(rest))


def test_a_model_that_has_moved_or_changed_is_missed(once_more: Any, tmp_path: Path) -> None:
    recipe = with_keys(once_more[0].recipe, {"model.source": "./model"})
    with pytest.raises(Unavailable, match=r"the model of that run is gone: no folder \./model"):
        list(changed_files(tmp_path, recipe, {}, {}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    known = {"model ./model config.json": "0" * 32, "model ./model set of files": "1" * 32}
    assert list(changed_files(tmp_path, recipe, known, {})) == ["config.json of the model ./model"]
    known["model ./model config.json"] = digest_of(b"{}")
    assert list(changed_files(tmp_path, recipe, known, {})) == []
    recipe = with_keys(once_more[0].recipe, {"model.source": "models/mine"})  # as a hub's would be called
    with pytest.raises(Unavailable, match=r"no folder models/mine"):
        list(changed_files(tmp_path, recipe, {"model models/mine config.json": "0" * 32}, {}))
    assert list(changed_files(tmp_path, recipe, {"model models/mine commit": "0" * 40}, {})) == []
    recipe = with_keys(once_more[0].recipe, {"model.source": "gone.gguf"})
    with pytest.raises(Unavailable, match=r"no file gone\.gguf"):
        list(changed_files(tmp_path, recipe, {}, {}))


def test_a_folder_that_holds_something_else_is_left_alone(said: Said, copy: Path) -> None:
    runs = copy / ".raft/runs/night/001-search-s1000"
    before = sorted(path.name for path in runs.iterdir())
    code, _, err = said("replay", "1", "--out", str(runs), root=copy)
    assert (code, "holds no replay" in err) == (5, True)
    assert sorted(path.name for path in runs.iterdir()) == before
    assert said("replay", "1", "--out", str(copy / "mine"), root=copy)[0] == 0
    code, _, err = said("replay", "0", "--out", str(copy / "mine"), root=copy)
    assert (code, "holds a replay of something else" in err) == (5, True)


def test_the_shared_layer_of_its_time_is_applied(copy: Path) -> None:
    journal = journal_of(copy)
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    change = {"kind": "shared_layer_changed", "time": 1.0, "why": "sdpa is broken"}
    before = change | {"seq": lines[0]["seq"], "values": {"backend.attention": "eager"}, "env": {"TORCH_X": "1"}}
    after = change | {"seq": lines[-1]["seq"], "values": {"backend.compile": True}}
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, before, after]))
    found = again(copy, journal, 1)
    assert (found.recipe.backend.attention, found.recipe.backend.compile) == ("eager", False)
    assert found.env == {"TORCH_X": "1"}
    assert found.notes[0].startswith("with the campaign's change for all runs, backend.attention: eager, TORCH_X: 1")
    assert found.notes[1] == "without 1 change for all runs that the campaign made after that run"
    assert "is read otherwise than 001-search-s1000 was" in found.notes[2]


def test_the_run_that_tried_a_change_for_all_runs_is_replayed_with_it(copy: Path) -> None:
    journal = journal_of(copy)
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    plain = again(copy, journal, 1).recipe
    tried = {"backend.attention": "eager", "backend.env": {"HSA_ENABLE_SDMA": "0"}}
    for line in lines:
        if line.get("run") == "001-search-s1000" and "recipe_signature" in line:
            line["recipe_signature"] = with_keys(plain, tried).signature()
    change = {"kind": "shared_layer_changed", "time": 1.0, "why": "sdpa is broken"}
    adopted = {"values": {"backend.attention": "eager"}, "env": {"HSA_ENABLE_SDMA": "0"}}
    changes = [change | adopted | {"seq": lines[-1]["seq"] + 1}]
    changes.append(change | {"seq": lines[-1]["seq"] + 2, "values": {"backend.compile": True}})
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *changes]))
    found = again(copy, journal, 1)
    assert (found.recipe.backend.attention, found.recipe.backend.compile) == ("eager", False)
    assert (found.recipe.backend.env, found.env) == ({"HSA_ENABLE_SDMA": "0"}, {})
    told = "with the campaign's change for all runs, backend.attention: eager, HSA_ENABLE_SDMA: 0"
    assert [note.partition(" (")[0] for note in found.notes] == [
        told,
        "without 1 change for all runs that the campaign made after that run",
    ]
    assert again(copy, journal, 0).recipe.backend.attention == "auto"  # of a run that had it not


def test_the_run_that_showed_a_change_for_all_runs_and_went_on_after_it_is_replayed_with_it(copy: Path) -> None:
    journal = journal_of(copy)
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    tried = with_keys(again(copy, journal, 1).recipe, {"backend.env": {"HSA_ENABLE_SDMA": "0"}})
    for line in lines:
        if line.get("run") == "001-search-s1000" and "recipe_signature" in line:
            line["recipe_signature"] = tried.signature()
    change = {"kind": "shared_layer_changed", "time": 1.0, "why": "it hung", "env": {"HSA_ENABLE_SDMA": "0"}}
    change |= {"seq": lines[0]["seq"], "run": "001-search-s1000"}
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, change]))
    found = again(copy, journal, 1)
    assert found.recipe.backend.env == {"HSA_ENABLE_SDMA": "0"}
    assert [note.partition(" (")[0] for note in found.notes] == [
        "with the campaign's change for all runs, HSA_ENABLE_SDMA: 0"
    ]


def test_a_crash_has_nothing_to_compare_with(said: Said, copy: Path) -> None:
    code, _, err = said("replay", "3", root=copy)
    assert code == 10  # it dies of the same
    assert "003-search-s3000-f1 left no summary: numeric: loss is nan at step 3" in err


# --- the winner outside of its campaign ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--best", "--out", "mine"),
        ("eval", ".raft/runs/night/001-confirm-s1100/checkpoint"),
        (
            "eval",
            ".raft/runs/night/001-confirm-s1100/checkpoint",
            "--recipe",
            ".raft/runs/night/baseline-s1/recipe.yaml",
        ),
    ],
)
def test_what_the_campaign_gave_its_runs_goes_with_its_winner(
    said: Said, copy: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    mended_layer(copy)
    asked: list[Any] = []

    def seeing(request: Any, **ignored: Any) -> Any:
        asked.append(request)
        return launch(request)

    monkeypatch.setattr("agent.run.launcher.launch", seeing)
    code, _, err = said(*command, root=copy)
    assert code == 0, err
    (request,) = asked
    files = request.env["RAFT_AGENT_FILES"]
    assert request.env == {"HSA_ENABLE_SDMA": "0", "RAFT_AGENT_FILES": files}
    assert Path(files) == request.out.absolute() / "files"
    assert (Path(files) / "checks/verify.py").read_text() == "# mended\n"
    assert request.commit == "c" * 40
    assert "with the campaign's change for all runs, HSA_ENABLE_SDMA: 0 (it hung)" in err
    assert "with checks/verify.py as the campaign has mended it" in err
    assert ("backend.compile: False" in err) == (command[0] == "train"), "eval takes the run's recipe as it is"


def test_what_is_of_no_campaign_is_given_nothing(said: Said, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mended_layer(copy)
    asked: list[Any] = []
    monkeypatch.setattr(
        "agent.run.launcher.launch", lambda request, **ignored: asked.append(request) or launch(request)
    )
    assert said("eval", "test", root=copy)[0] == 0
    assert [(request.env, request.commit) for request in asked] == [({}, None)]


def mended_layer(root: Path) -> None:
    """The campaign has changed a variable for all runs, mended the user's verifier, and found the model's commit."""
    edit_start(root, lambda start: start["lockbox"].update({"model builtin:tiny commit": "c" * 40}))
    journal = journal_of(root)
    state = journal.state()
    told = [
        {"kind": "shared_layer_changed", "env": {"HSA_ENABLE_SDMA": "0"}, "why": "it hung"},
        {"kind": "shared_layer_changed", "values": {"backend.compile": False}, "why": "it failed"},
        {
            "kind": "experiment_fixed",
            "experiment": 0,
            "fix": 1,
            "commit": state.baseline_commit,
            "files": {"checks/verify.py": "# mended\n"},
        },
    ]
    with journal.path.open("a") as file:
        for place, line in enumerate(told, state.last_seq + 1):
            file.write(json.dumps({**line, "seq": place, "time": 1.0}) + "\n")


# --- finalize ----------------------------------------------------------------------------------------------


def test_finalize_says_what_is_on_the_branch_and_how_to_take_it(said: Said, copy: Path) -> None:
    out = said("finalize", root=copy)[1].splitlines()
    base = git(copy, "rev-parse", "HEAD").strip()
    assert out[0] == f"branch raft/night/final: 1 commit, on {base[:12]}, recipes/test.yaml"
    assert out[1:] == [
        "  - learning-rate: better rate, 0.0005 -> 0.002",
        f"  look:  git log -p {base[:12]}..raft/night/final",
        "  take:  git merge raft/night/final",
    ]
    assert said("finalize", root=copy)[1].splitlines()[0].startswith("branch raft/night/final: 1 commit, as before, on")
    git(copy, "checkout", "--quiet", "--force", "--orphan", "other")
    git(copy, "-c", "user.name=U", "-c", "user.email=u@e.org", "commit", "--quiet", "--allow-empty", "-m", "anew")
    told = json.loads(said("finalize", "--json", root=copy)[1])
    assert (told["take"], told["finished"]) == (f"git cherry-pick {base[:12]}..raft/night/final", True)


def test_finalize_of_a_campaign_that_goes_on_or_has_kept_nothing(said: Said, copy: Path) -> None:
    path = journal_of(copy).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "campaign_finished" not in line))
    assert "the campaign is not finished: what it keeps later comes on top" in said("finalize", root=copy)[1]
    start = git(copy, "log", "--format=%H", "--reverse", "HEAD..raft/night/best").split()[0]
    git(copy, "update-ref", "refs/heads/raft/night/best", start)
    git(copy, "branch", "-D", "raft/night/final")
    code, _, err = said("finalize", root=copy)
    assert code == 5
    assert "campaign night kept nothing, so there is nothing to take over" in err


# --- the comparison ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def once_more(judged: Night) -> tuple[Any, RunRecord, Any]:
    journal = journal_of(judged.root)
    found = again(judged.root, journal, 1)
    assert found.recorded is not None
    return found, read_run(found.recorded.out), journal.state()


def changed(record: RunRecord, failing: set[int], **summary: Any) -> RunRecord:
    """With other answers to some prompts, which then do not pass."""
    rows = [
        row.model_copy(update={"passed": False, "reward": 0.0, "digest": "0"}) if at in failing else row
        for at, row in enumerate(record.evals)
    ]
    assert record.summary is not None
    metric = sum(row.passed for row in rows) / len(rows)
    told = record.summary.model_copy(update={"metrics": {"search": metric}, **summary})
    return dataclasses.replace(record, evals=rows, summary=told)


def test_a_difference_beyond_noise_is_called_so(once_more: tuple[Any, RunRecord, Any]) -> None:
    found, record, state = once_more
    result = result_of(found, changed(record, set(range(60))), state)
    assert result.verdict == "beyond noise"
    assert result.sentence.startswith("differs beyond noise: -")
    assert "two runs of one recipe differ by up to" in result.sentence


def test_a_budget_of_seconds_explains_other_steps_and_versions_are_told(
    once_more: tuple[Any, RunRecord, Any],
) -> None:
    found, record, state = once_more
    assert found.recorded is not None
    then = dict(found.recorded.summary) | {"provenance": {"torch": "2.6", "python": "3.11"}}
    found = dataclasses.replace(found, recorded=dataclasses.replace(found.recorded, summary=then))
    provenance = {"torch": "2.7", "python": "3.11"}
    slower = changed(record, set(), optimizer_steps=10, tokens_per_s=500.0, provenance=provenance)
    result = result_of(found, slower, state)
    assert result.notes == (
        "the budget is 1 seconds of training, which made 20 optimizer steps then and 10 now, at 50% of the speed: a "
        "budget of cycles or tokens makes the same steps on any day",
    )
    assert result.versions == (("torch", "2.6", "2.7"),)
    cut = result_of(found, changed(record, set(), ended_by="time_limit"), state)
    assert cut.notes == ("001-search-s1000 was ended by budget, the replay by time_limit",)
    assert cut.numbers[0] == ("ended by", "budget", "time_limit")


@settings(max_examples=30, deadline=None)
@given(failing=st.sets(st.integers(0, 199), max_size=40))
def test_identical_means_that_every_answer_is_the_same(
    once_more: tuple[Any, RunRecord, Any], failing: set[int]
) -> None:
    found, record, state = once_more
    result = result_of(found, changed(record, failing), state)
    split = result.splits[0]
    assert (split.prompts, split.same_answers) == (200, 200 - len(failing))
    assert (result.verdict == "identical") == (not failing)
    assert split.same_verdicts is not None
    assert split.same_verdicts >= (split.same_answers or 0)
