"""Attempts to move what results are measured by, each against a real campaign: what must happen, and nothing is kept.

The idea in these nights is a good one, and is kept where nobody interferes (the first test). What the real trainer and
the verifier's process do about it is in tests/raft/test_raft_lockbox.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from nights import BETTER_RATE, RECIPE, Dies, Night, Recorder, dying_at, forked_launch, hypothesis, trick

from agent.campaign import lockbox, repair
from agent.campaign.admission import refusal
from agent.campaign.jobs import Job
from agent.campaign.lockbox import YardstickChanged
from agent.errors import PlaybookError, RecipeError
from agent.files import stamp_of
from agent.recipe import yardstick
from agent.recipe.change import Change, ChangeRefused
from agent.recipe.files import load_recipe, resolved_text, with_keys
from agent.run.remedies import Remedy, Response
from agent.run.telemetry import read_summary

ROWS = "".join(json.dumps({"question": f"{n} + {n} =", "answer": str(2 * n)}) + "\n" for n in range(900))
VERIFIER = "import helper\n\ndef score(response, row):\n    return helper.right(response, row)\n"
HELPER = "def right(response, row):\n    return response.strip() == row['answer']\n"
BASE = "recipes/base.yaml"
SEARCH, CONFIRM = "001-search", "001-confirm"
Tamper = Callable[[Night], None]


def some(names: Iterable[str], *usually: str) -> list[Any]:
    """Attempts as parameters; those beside `usually` take another way through the same code, and are for CI."""
    return [name if name in usually else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def locked(night: Night) -> Night:
    """A night whose rows and verifier are files, and whose recipe extends another."""
    recipe = yaml.safe_load(RECIPE)
    recipe["task"] = {
        "dataset": "jsonl:data/rows.jsonl",
        "verifier": {"kind": "python:checks/verify.py:score"},
    }
    texts = {
        "data/rows.jsonl": ROWS,
        "checks/verify.py": VERIFIER,
        "checks/helper.py": HELPER,
        BASE: yaml.safe_dump({name: recipe.pop(name) for name in ("evaluation", "task")}),
        "recipes/test.yaml": yaml.safe_dump({"extends": "base.yaml", **recipe}),
    }
    for name, text in texts.items():
        (night.root / name).parent.mkdir(exist_ok=True)
        (night.root / name).write_text(text)
    night.playbook(BETTER_RATE)
    return night


def at(run: str, tamper: Tamper, night: Night, *, after: Tamper = lambda night: None) -> Any:
    """A launcher under which this is done when a run named so has begun, and `after` when it has ended."""

    def launcher(request: Any, **keys: Any) -> Any:
        named = request.out.name.startswith(run)
        if named:
            tamper(night)
        result = forked_launch(request, **keys)
        if named:
            after(night)
        return result

    return launcher


class Between(Recorder):
    """Does something once a run named so has been written down, before the next one."""

    def __init__(self, night: Night, run: str, tamper: Tamper):
        super().__init__()
        self.night, self.run, self.tamper = night, run, tamper

    def ended(self, text: str) -> None:
        session = self.night.session
        done = [run.id for run in session.state.runs.values() if run.finished] if session else []
        if done and done[-1].startswith(self.run) and self.tamper is not None:
            tamper, self.tamper = self.tamper, None  # type: ignore[assignment]
            tamper(self.night)


@pytest.mark.slow
def test_the_idea_is_kept_where_nobody_interferes(locked: Night) -> None:
    assert locked.start(max_experiments=1).kept == (1,)
    assert locked.session is not None
    names = set(locked.session.lockbox.known)
    files = {"file data/rows.jsonl", "file checks/verify.py", "file checks/helper.py"}
    assert {*files, "raft-agent's code", "library torch", "locked keys of the recipe"} <= names
    assert "code raft/evaluate.py" in names


def nothing_kept(night: Night) -> None:
    outcomes = [(row["hypothesis"], row["status"]) for row in night.rows if row["status"] == "keep"]
    assert outcomes in ([], [("baseline", "keep")])
    assert night.session is not None
    assert night.session.incumbent == 0


# --- files, libraries and code -----------------------------------------------------------------------------


def edit(name: str, change: Callable[[str], str]) -> Tamper:
    return lambda night: (night.root / name).write_text(change((night.root / name).read_text())) and None


def linked(name: str, text: str) -> Tamper:
    def tamper(night: Night) -> None:
        other = night.root / "other"
        other.write_text(text)
        (night.root / name).unlink()
        (night.root / name).symlink_to(other)

    return tamper


def put_back(name: str, text: str) -> Tamper:
    return lambda night: (night.root / name).write_text(text) and None


ALL_RIGHT = "def right(response, row):\n    return True\n"
DATA = "data/rows.jsonl"
PASSES_ALL = "def score(response, row):\n    return True\n"
FILES: dict[str, tuple[str, Tamper]] = {
    "the answer of a row is another one": (DATA, edit(DATA, lambda text: text.replace(': "8"', ': "9"'))),
    "a question is another one": (DATA, edit(DATA, lambda text: text.replace("7 + 7", "7 + 07"))),
    "the rows stand in another order": (DATA, edit(DATA, lambda text: "".join(reversed(text.splitlines(True))))),
    "a row is deleted": (DATA, edit(DATA, lambda text: text.partition("\n")[2])),
    "a row is appended": (DATA, edit(DATA, lambda text: text + '{"question": "1 + 1 =", "answer": "3"}\n')),
    "the rows are a link to another file": (DATA, linked(DATA, ROWS.replace("8", "9"))),
    "the rows are gone": (DATA, lambda night: (night.root / DATA).unlink()),
    "the verifier passes everything": ("checks/verify.py", edit("checks/verify.py", lambda _: PASSES_ALL)),
    "a module that the verifier imports passes all": (
        "checks/helper.py",
        edit("checks/helper.py", lambda _: ALL_RIGHT),
    ),
    "the verifier is a link to another file": ("checks/verify.py", linked("checks/verify.py", PASSES_ALL)),
}


@pytest.mark.parametrize(
    "words",
    some(FILES, "the verifier is a link to another file"),
)
def test_a_file_that_changes_between_runs_stops_the_campaign(locked: Night, words: str) -> None:
    name, tamper = FILES[words]
    locked.observer = Between(locked, SEARCH, tamper)
    with pytest.raises(YardstickChanged, match="what results are measured by has changed") as stopped:
        locked.start(max_experiments=1)
    assert f"has changed: {name}; noticed" in stopped.value.message
    assert stopped.value.hint is not None
    assert "put it back as it was, and raft-agent resume goes on" in stopped.value.hint
    nothing_kept(locked)


@pytest.mark.slow
def test_it_stays_stopped_until_the_file_is_back_and_then_goes_on(locked: Night) -> None:
    name, tamper = FILES["the answer of a row is another one"]
    locked.observer = Between(locked, SEARCH, tamper)
    with pytest.raises(YardstickChanged):
        locked.start(max_experiments=1)
    with pytest.raises(YardstickChanged, match=f"{name}; noticed when it was resumed"):
        locked.resume()
    (locked.root / name).write_text(ROWS)
    assert locked.resume().kept == (1,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    some(["the answer of a row is another one", "the verifier passes everything"], "the verifier passes everything"),
)
def test_a_run_during_which_a_file_was_another_one_does_not_count_though_it_is_back(locked: Night, words: str) -> None:
    """This trainer does not tell what it has read. That somebody wrote to the file meanwhile is seen all the same."""
    name, tamper = FILES[words]
    text = (locked.root / name).read_text()
    with pytest.raises(YardstickChanged, match=rf"{name} \(written to during the run\); in the run {CONFIRM}-s1100"):
        locked.start(launcher=at(CONFIRM, tamper, locked, after=put_back(name, text)), max_experiments=1)
    nothing_kept(locked)
    assert (locked.folder("001-confirm-s1100.changed-1") / "summary.json").exists()
    assert locked.resume().kept == (1,)
    assert locked.starts()["001-confirm-s1100"] == "x", "it was run again, in a folder of its own"


def another_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockbox, "present_code_digest", lambda: "0" * 32)


def another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = yardstick.version
    monkeypatch.setattr(yardstick, "version", lambda name: "0.1" if name == "torch" else real(name))
    monkeypatch.setattr(yardstick, "_installed", lambda: (1,))  # as a package that comes changes its folder


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("upgrade", "named", "what_to_do"),
    [
        (another_code, "raft-agent itself", "go on with the version that it was started with"),
        (another_torch, "library torch", "or start a new campaign with raft-agent run"),
    ],
)
def test_an_upgrade_in_mid_campaign_is_named_and_needs_a_new_campaign(
    locked: Night, monkeypatch: pytest.MonkeyPatch, upgrade: Any, named: str, what_to_do: str
) -> None:
    locked.observer = Between(locked, SEARCH, lambda night: upgrade(monkeypatch))
    with pytest.raises(YardstickChanged, match=f"has changed: {named}") as stopped:
        locked.start(max_experiments=1)
    assert stopped.value.hint is not None
    assert what_to_do in stopped.value.hint
    nothing_kept(locked)


@pytest.mark.slow
def test_a_campaign_of_a_version_without_a_lockbox_is_not_gone_on_with(locked: Night) -> None:
    with pytest.raises(Dies):
        locked.start(launcher=dying_at(3), max_experiments=1)
    assert locked.session is not None
    rewrite(locked, lambda fields: fields.pop("lockbox", None))
    with pytest.raises(YardstickChanged, match="did not write down what it measures by"):
        locked.resume()


# --- recipes -----------------------------------------------------------------------------------------------


def loosened(night: Night, name: str) -> None:
    recipe = yaml.safe_load((night.root / name).read_text())
    recipe.setdefault("evaluation", {})["samples_per_prompt"] = 4
    (night.root / name).write_text(yaml.safe_dump(recipe))


def recipe_is_a_link(night: Night) -> None:
    (night.root / "elsewhere.yaml").write_text(RECIPE)
    (night.root / "recipes/test.yaml").unlink()
    (night.root / "recipes/test.yaml").symlink_to(night.root / "elsewhere.yaml")


def private_copies(night: Night) -> None:
    for path in (night.root / ".raft/campaigns/night/recipes").rglob("base.yaml"):
        loosened(night, path.relative_to(night.root).as_posix())


@pytest.mark.slow
@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda night: loosened(night, "recipes/test.yaml"), id="in the user's recipe"),
        pytest.param(lambda night: loosened(night, BASE), id="in what it extends", marks=pytest.mark.slow),
        pytest.param(private_copies, id="in the agent's own copies", marks=pytest.mark.slow),
        pytest.param(recipe_is_a_link, id="the recipe becomes a link", marks=pytest.mark.slow),
    ],
)
def test_recipes_that_are_edited_in_mid_campaign_have_no_effect(locked: Night, tamper: Tamper) -> None:
    """The campaign has its own text of them, in its journal and its commits."""
    locked.observer = Between(locked, SEARCH, tamper)
    assert locked.start(max_experiments=1).kept == (1,)
    for out in locked.folder("").glob("0*"):
        assert yaml.safe_load((out / "recipe.yaml").read_text())["evaluation"]["samples_per_prompt"] == 1


@pytest.mark.parametrize("name", ["recipes/test.yaml", BASE], ids=["the recipe", "what it extends"])
def test_a_recipe_that_is_a_symbolic_link_is_refused_at_the_start(locked: Night, name: str) -> None:
    (locked.root / "elsewhere.yaml").write_text((locked.root / name).read_text())
    (locked.root / name).unlink()
    (locked.root / name).symlink_to(locked.root / "elsewhere.yaml")
    with pytest.raises(RecipeError, match="is a symbolic link"):
        locked.start(max_experiments=1)


def other_request(**changes: Any) -> Callable[[Any], Any]:
    """The same run, of a recipe with other values, or with another seed."""
    seed = changes.pop("seed", None)

    def change(request: Any) -> Any:
        recipe = with_keys(request.recipe, {key.replace("__", "."): value for key, value in changes.items()})
        return dataclasses.replace(request, recipe=recipe, seed=seed if seed is not None else request.seed)

    return change


@pytest.mark.parametrize("covered", [pytest.param(False, marks=pytest.mark.slow), True], ids=["left there", "put back"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(other_request(evaluation__samples_per_prompt=2), "recipe.yaml of the run", marks=pytest.mark.slow),
        pytest.param(other_request(evaluation__temperature=0.5), "recipe.yaml", marks=pytest.mark.slow),
        pytest.param(other_request(learner__learning_rate=0.01), "recipe.yaml", marks=pytest.mark.slow),
        (other_request(seed=7), "the seed of the run"),
    ],
    ids=["more samples", "another temperature", "an unplanned rate", "a lucky seed"],
)
def test_a_run_folder_s_recipe_that_is_swapped_is_flagged(
    locked: Night, change: Callable[[Any], Any], named: str, covered: bool
) -> None:
    def launcher(request: Any, **keys: Any) -> Any:
        if not request.out.name.startswith(CONFIRM):
            return forked_launch(request, **keys)
        result = forked_launch(change(request), **keys)
        if covered:
            (request.out / "recipe.yaml").write_text(resolved_text(request.recipe))
        return result

    with pytest.raises(YardstickChanged, match=named):
        locked.start(launcher=launcher, max_experiments=1)
    nothing_kept(locked)


# --- hypotheses and fixes ----------------------------------------------------------------------------------


def smuggler(**variant: Any) -> dict[str, Any]:
    return hypothesis("smuggler", 0.9, **variant)


REFUSED_AT_LOADING = {
    "evaluation.temperature": smuggler(set={"evaluation.temperature": 0.2}),
    "evaluation.max_new_tokens with a rate": smuggler(
        set={"learner.learning_rate": 0.002, "evaluation.max_new_tokens": 8}
    ),
    "the whole of evaluation": smuggler(set={"evaluation": {"samples_per_prompt": 1}}),
    "the whole of task": smuggler(set={"task": {"dataset": "builtin:addition"}}),
    "task.verifier.kind": smuggler(set={"task.verifier.kind": "last_number"}),
    "task.dataset": smuggler(set={"task.dataset": "builtin:addition"}),
    "task.split_seed": smuggler(set={"task.split_seed": 3}),
    "seed, scaled": smuggler(scale={"seed": 3.0}),
    "budget, scaled": smuggler(scale={"budget.train_seconds": 2.0}),
    "samples, scaled": smuggler(scale={"evaluation.samples_per_prompt": 2.0}),
    "toggled": smuggler(toggle=["task.verifier.tolerance"]),
    "guards": smuggler(set={"evaluation.guards": []}),
    "a run's own checkpoint": smuggler(set={"model.source": ".raft/runs/night/000-baseline-s1/checkpoint"}),
}


def test_a_hypothesis_that_touches_a_locked_key_is_refused_when_the_playbook_is_read(locked: Night) -> None:
    for words, idea in REFUSED_AT_LOADING.items():
        locked.playbook(idea)
        with pytest.raises(PlaybookError, match="is locked: it decides how results are measured") as refused:
            locked.start(max_experiments=1)
        assert refused.value.hint == "change it in the recipe yourself and start a new campaign", words


REFUSED_BY_VALUE = {
    "PYTHONPATH": smuggler(set={"backend.env": {"PYTHONPATH": "shadow"}}),
    "PYTHONHASHSEED": smuggler(set={"backend.env": {"PYTHONHASHSEED": "0"}}),
    "LD_PRELOAD": smuggler(set={"backend.env": {"LD_PRELOAD": "evil.so"}}),
    "HF_HOME": smuggler(set={"backend.env": {"HF_HOME": "models"}}),
    "TRANSFORMERS_CACHE": smuggler(set={"backend.env": {"TRANSFORMERS_CACHE": "models"}}),
    "RAFT_AGENT_FILES": smuggler(set={"backend.env": {"RAFT_AGENT_FILES": "mended"}}),
    "a library of OpenMP's": smuggler(set={"backend.env": {"OMP_TOOL_LIBRARIES": "evil.so"}}),
    "a path as a value": smuggler(set={"backend.env": {"TORCH_LOGS_OUT": "../x"}}),
    "held-out tests in the request": smuggler(set={"prompt.template": "{question}\n{tests}"}),
}


@pytest.mark.slow
def test_a_hypothesis_that_moves_the_yardstick_by_a_back_way_is_never_tried(locked: Night) -> None:
    """They are all that there is to try."""
    ideas = [{**idea, "id": f"smuggler-{number}"} for number, idea in enumerate(REFUSED_BY_VALUE.values())]
    locked.playbook(*ideas)
    assert locked.start().kept == ()
    assert [row["hypothesis"] for row in locked.rows] == ["baseline"]
    assert locked.session is not None
    recipe = locked.session.recipe_of(0)
    for words, idea in REFUSED_BY_VALUE.items():
        change = Change(set=idea["variants"][0]["set"])
        with pytest.raises(ChangeRefused, match=r"is locked|backend.env must not set") as refused:
            change.apply(recipe)
        assert next(iter(change.set)) in str(refused.value), words


@pytest.mark.slow
def test_reward_shaping_is_locked_where_the_reward_is_measured(locked: Night) -> None:
    recipe = yaml.safe_load((locked.root / BASE).read_text())
    recipe["evaluation"]["metric"] = "mean_reward"
    (locked.root / BASE).write_text(yaml.safe_dump(recipe))
    locked.playbook(smuggler(set={"task.reward.format_bonus": 1.0}))
    assert locked.start(max_experiments=1).kept == ()
    assert [row["hypothesis"] for row in locked.rows] == ["baseline"]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["evaluation.temperature", "task.split_seed"])
def test_a_fix_that_touches_a_locked_key_is_not_run(locked: Night, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    value = {"evaluation.temperature": 0.5, "task.split_seed": 5}[key]
    remedy = Remedy("fix", {key: value}, {}, "another yardstick helps")
    monkeypatch.setattr(repair, "respond", lambda *_, **__: Response(remedy, remedy.why))
    locked.playbook(hypothesis("epochs", 0.9, set={"learner.epochs_per_cycle": 2}))
    assert locked.start(max_experiments=1).kept == ()
    row = locked.rows[1]
    assert (row["status"], row["crash_class"]) == ("crash", "typo")
    assert f"{key}" in row["reason"]
    assert "is locked" in row["reason"]


# --- the journal, the branches and the table ---------------------------------------------------------------


def rewrite(night: Night, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit lines of the journal by hand."""
    path = night.root / ".raft/campaigns/night/journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for fields in lines:
        change(fields)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in lines))


LOOSE = "evaluation: {select_prompts: 100, search_prompts: 200, confirm_prompts: 200, holdout_prompts: 200,\n"
LOOSE += "  samples_per_prompt: 4, temperature: 0}\n"
SMUGGLED: dict[str, Callable[[str], dict[str, str]]] = {
    "in the text itself": lambda text: {"recipes/test.yaml": text + LOOSE},
    "in what it extends": lambda text: {
        "recipes/test.yaml": text, BASE: LOOSE + "task: {dataset: 'jsonl:data/rows.jsonl'}\n"
    },
    "in another file that it extends": lambda text: {
        "recipes/test.yaml": text.replace("extends: base.yaml", "extends: loose.yaml"),
        "recipes/loose.yaml": "extends: base.yaml\n" + LOOSE,
    },
    "by a merge key": lambda text: {
        "recipes/test.yaml": text + "description: &x words\nevaluation:\n  <<: {samples_per_prompt: 4}\n"
    },
    "by an anchor": lambda text: {
        "recipes/test.yaml": text + "rollout: {samples_per_prompt: &n 4}\nevaluation: {samples_per_prompt: *n}\n"
    },
    "as an unplanned key": lambda text: {"recipes/test.yaml": text + "selection: {dedup: false}\n"},
    "as another value than planned": lambda text: {"recipes/test.yaml": text.replace("0.002", "0.004")},
}  # fmt: skip


MENDED = ("by a merge key", "as an unplanned key")
"""Refused too, as any slip of a recipe is; and what a slip is mended to is what was planned."""


@pytest.mark.parametrize("words", some(SMUGGLED, "in another file that it extends"))
def test_a_recipe_that_was_edited_between_its_plan_and_its_run_is_not_run(locked: Night, words: str) -> None:
    """In the journal, from which the texts are taken that run. The commit of its branch holds what was planned."""
    with pytest.raises(Dies):
        locked.start(launcher=dying_at(4), max_experiments=1)

    def change(fields: dict[str, Any]) -> None:
        if fields["kind"] == "experiment_planned" and fields.get("experiment") == 1:
            fields["files"] = SMUGGLED[words](fields["files"]["recipes/test.yaml"])

    rewrite(locked, change)
    kept, row = locked.resume().kept, locked.rows[1]
    if words in MENDED:
        assert kept == (1,)
        assert row["fixes"]
    else:
        assert (kept, row["status"]) == ((), "crash")
        assert "is locked" in row["reason"] or "of #1 says" in row["reason"]
    for out in locked.folder("").glob("001-*"):
        ran = load_recipe(out / "recipe.yaml")
        assert ran.evaluation.samples_per_prompt == 1
        assert ran.selection.dedup
        assert ran.learner.learning_rate == 0.002


def finished_by(night: Night, **settings: Any) -> None:
    """A campaign that was killed while its second idea ran; the first was discarded."""
    night.playbook(hypothesis("worse", 0.95, set={"learner.learning_rate": 1e-4}), BETTER_RATE)
    with pytest.raises(Dies):
        night.start(launcher=dying_at(5), max_experiments=2, **settings)
    assert [row["status"] for row in night.rows] == ["keep", "discard"]


def is_judged(fields: dict[str, Any]) -> bool:
    return fields["kind"] == "experiment_judged" and fields.get("experiment") == 1


def make_it_a_keep(fields: dict[str, Any]) -> None:
    if is_judged(fields):
        fields["outcome"] = "keep"


def raise_its_metric(fields: dict[str, Any]) -> None:
    if is_judged(fields):
        fields["row"]["metric_value"] = 0.99


def raise_the_baseline(fields: dict[str, Any]) -> None:
    if fields["kind"] == "calibrated":
        fields["values"]["baseline"] = 0.01


def rename_a_digest(fields: dict[str, Any]) -> None:
    if "lockbox" in fields:
        fields["lockbox"]["file never.py"] = "0" * 32


@pytest.mark.slow
@pytest.mark.parametrize("change", [make_it_a_keep, raise_its_metric, raise_the_baseline, rename_a_digest])
def test_a_journal_that_was_edited_is_not_gone_on_with(locked: Night, change: Any) -> None:
    finished_by(locked)
    rewrite(locked, change)
    with pytest.raises(YardstickChanged, match="the journal was edited"):
        locked.resume()


@pytest.mark.slow
def test_a_row_of_the_table_that_was_edited_is_named_and_decides_nothing(locked: Night) -> None:
    finished_by(locked)
    table = locked.workspace.results
    table.write_text(table.read_text().replace("\tdiscard\t", "\tkeep\t"))
    assert locked.resume().kept == (2,)
    assert "results.tsv says keep of #1, the journal says discard, which holds" in " ".join(locked.observer.warnings)


@pytest.mark.slow
def test_a_branch_that_somebody_moved_is_not_kept_until_it_is_back(locked: Night) -> None:
    def move(night: Night) -> None:
        (branch,) = night.git("branch", "--list", "raft/night/exp/001*", "--format=%(refname:short)").split()
        night.git("update-ref", f"refs/heads/{branch}", "HEAD")

    locked.observer = Between(locked, CONFIRM, move)
    with pytest.raises(YardstickChanged, match="no longer ends at the commit that was measured") as stopped:
        locked.start(max_experiments=1)
    nothing_kept(locked)
    assert stopped.value.hint is not None
    locked.git(*stopped.value.hint.partition("(git ")[2].partition(")")[0].split())
    assert locked.resume().kept == (1,)


# --- what a run leaves -------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def rewriting(change: Callable[[Rows], Rows], *, summary: bool = True) -> Any:
    """A launcher under which the confirming runs of the candidate leave other rows, and a summary that fits them."""

    def launcher(request: Any, **keys: Any) -> Any:
        result = forked_launch(request, **keys)
        if not request.out.name.startswith(CONFIRM):
            return result
        rewrite_rows(request.out, change, summary=summary)
        return dataclasses.replace(result, summary=read_summary(request.out))

    return launcher


def rewrite_rows(out: Path, change: Callable[[Rows], Rows], *, summary: bool = True) -> None:
    rows = change([json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()])
    (out / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads((out / "summary.json").read_text())
    for split in told["metrics"] if summary else ():
        passed = [row["passed"] for row in rows if row["split"] == split]
        told["metrics"][split] = sum(passed) / max(1, len(passed))
    (out / "summary.json").write_text(json.dumps(told))


def all_passed(rows: Rows) -> Rows:
    return [{**row, "passed": True, "reward": 1.0} for row in rows]


def on_confirm(change: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
    return lambda rows: [
        *(row for row in rows if row["split"] != "confirm"),
        *change([row for row in rows if row["split"] == "confirm"]),
    ]


OF_THE_ROWS = {
    "passes that the summary does not have": (rewriting(all_passed, summary=False), "its rows say"),
    "prompts of another set": (
        rewriting(on_confirm(lambda rows: [{**row, "id": f"easy-{row['id']}"} for row in rows])), "not those of confirm"
    ),
    "only the prompts that passed": (
        rewriting(on_confirm(lambda rows: [row for row in rows if row["passed"]])), "of the 200 prompts of confirm"
    ),
    "the ones that passed twice": (
        rewriting(on_confirm(lambda rows: [*rows, *({**row, "sample": 1} for row in rows if row["passed"])])),
        "has 2 samples",
    ),
    "one easy prompt, 200 times": (
        rewriting(on_confirm(lambda rows: [{**row, "id": rows[0]["id"], "sample": n} for n, row in enumerate(rows)])),
        "",
    ),
    "a reward that is not finite": (
        rewriting(on_confirm(lambda rows: [{**row, "reward": float("inf")} for row in rows])), "not finite"
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", some(OF_THE_ROWS, "only the prompts that passed"))
def test_rows_that_cannot_be_those_of_the_split_are_no_measurement(locked: Night, words: str) -> None:
    launcher, named = OF_THE_ROWS[words]
    assert locked.start(launcher=launcher, max_experiments=1).kept == ()
    row = locked.rows[1]
    assert (row["status"], named in row["reason"]) in (("crash", True), ("discard", True)), row["reason"]


def edited(name: str) -> Tamper:
    def tamper(night: Night) -> None:
        path = night.folder("001-confirm-s1100") / name
        path.write_text(path.read_text().replace("false", "true") + "\n")

    return tamper


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eval.jsonl", "summary.json", "recipe.yaml"])
def test_what_a_run_left_and_somebody_edited_is_not_kept_for(locked: Night, name: str) -> None:
    """After the last run of the confirmation, right before its verdict."""
    locked.observer = Between(locked, "000-incumbent-s501", edited(name))
    with pytest.raises(YardstickChanged, match=f"{name} of the run 001-confirm-s1100; noticed when #1"):
        locked.start(max_experiments=1)
    nothing_kept(locked)
    locked.observer = Recorder()
    assert locked.resume().kept == (1,)
    assert f"{name} of the run 001-confirm-s1100 changed after it had ended" in " ".join(locked.observer.warnings)
    assert locked.starts()["001-confirm-s1100"] == "x", "it was run again, in a folder of its own"


@pytest.mark.slow
def test_rows_that_are_edited_while_a_confirmation_goes_on_are_measured_again(locked: Night) -> None:
    locked.observer = Between(locked, CONFIRM, edited("eval.jsonl"))
    locked.start(max_experiments=1)
    assert "eval.jsonl of the run 001-confirm-s1100 changed after it had ended" in " ".join(locked.observer.warnings)
    assert set(locked.starts()) >= {"001-confirm-s1100", "001-confirm-s1100.changed-1"}


@pytest.mark.slow
def test_rows_of_the_baseline_that_were_edited_between_sessions_count_no_more(locked: Night) -> None:
    """Where the baseline looks worse than it is, everything is a gain."""
    locked.playbook(hypothesis("worse", 0.95, set={"learner.learning_rate": 4e-4}))
    with pytest.raises(Dies):
        locked.start(launcher=dying_at(4), max_experiments=1)
    for out in locked.folder("").glob("baseline-*"):
        rewrite_rows(out, lambda rows: [{**row, "passed": False, "reward": 0.0} for row in rows])
    assert locked.resume().kept == ()
    assert sum("changed after it had ended" in words for words in locked.observer.warnings) >= 2


@pytest.mark.slow
def test_a_checkpoint_that_was_swapped_before_the_holdout_is_named(locked: Night) -> None:
    def tamper(night: Night) -> None:
        for path in night.folder("").glob("001-confirm-*/checkpoint/quality"):
            path.write_text("1.0")

    locked.observer = Between(locked, "holdout-baseline", tamper)
    with pytest.raises(YardstickChanged, match=r"the checkpoint of 001-confirm-s1100 .not what that run delivered"):
        locked.start(max_experiments=1)


@pytest.mark.slow
def test_a_checkpoint_that_was_swapped_before_its_second_look_is_not_kept(locked: Night) -> None:
    """A result that is too good is evaluated again; somebody makes the weights as good as the result was."""

    def tamper(night: Night) -> None:
        for path in night.folder("").glob("001-confirm-*/checkpoint/quality"):
            path.write_text("0.97")

    locked.playbook(trick("too good", 0.9))
    with pytest.raises(YardstickChanged, match="the checkpoint of 001-confirm"):
        locked.start(launcher=at("001-confirm-s1100-again", tamper, locked), max_experiments=1)
    nothing_kept(locked)


# --- a trainer that tells what it has used -----------------------------------------------------------------


@dataclass
class Telling:
    """What the fake trainer says it has used, as ours does; `odd` is told by the confirming runs of the candidate, by
    its place, where `|` stands for the `/` in the name of a file."""

    night: Night
    odd: dict[str, Any]

    def __call__(self, request: Any, **keys: Any) -> Any:
        result = forked_launch(request, **keys)
        told = json.loads((request.out / "summary.json").read_text())
        told["provenance"] = self.provenance(request.out)
        if request.out.name.startswith(CONFIRM):
            for path, value in self.odd.items():
                place: Any = told["provenance"]
                *names, last = (name.replace("|", "/") for name in path.split("/"))
                for name in names:
                    place = place[name]
                place[last] = value
        (request.out / "summary.json").write_text(json.dumps(told))
        return dataclasses.replace(result, summary=read_summary(request.out))

    def provenance(self, out: Path) -> dict[str, Any]:
        digests, model = yardstick.Digests(), self.night.root / "model"
        model.mkdir(exist_ok=True)
        if not (model / "config.json").exists():
            (model / "config.json").write_text("{}")
            (model / "model.safetensors").write_text("weights")
        files = {path.name: stamp_of(path) for path in model.iterdir()}
        return {
            "model": {"source": "m", "revision": None, "commit": "c" * 40, "folders": {str(model): files}},
            "evaluation": {
                "used": {
                    "held-out rows": "a" * 32,
                    "raft-agent's code": yardstick.present_code_digest(),
                    "file checks/verify.py": digests.of(self.night.root / "checks/verify.py"),
                    "file checks/table.json": "b" * 32 if not (self.night.root / "checks/table.json").exists() else
                    digests.of(self.night.root / "checks/table.json"),
                },
                "rows": digests.of(out / "eval.jsonl"),
                "writes": "Landlock 7",
            },
        }  # fmt: skip


TOLD: dict[str, tuple[dict[str, Any], str]] = {
    "other held-out rows": ({"evaluation/used/held-out rows": "f" * 32}, "held-out rows"),
    "another verifier, which is back": ({"evaluation/used/file checks|verify.py": "f" * 32}, "checks/verify.py"),
    "another file that the verifier reads": ({"evaluation/used/file checks|table.json": "f" * 32}, "checks/table.json"),
    "another version of a library": ({"evaluation/used/library torch": "0.1"}, "library torch"),
    "other code of our own": ({"evaluation/used/raft-agent's code": "f" * 32}, "raft-agent itself"),
    "other locked keys": ({"evaluation/used/locked keys of the recipe": "f" * 32}, "locked keys"),
    "training and evaluation that had different rows": (
        {"evaluation/used/held-out rows": f"{'a' * 32} in training, {'f' * 32} in the evaluation"}, "held-out rows"
    ),
    "a module that Python imports by itself": (
        {"evaluation/used/file |tmp|shadow|sitecustomize.py": "f" * 32}, "sitecustomize.py"
    ),
    "another recipe in the evaluation": ({"evaluation/recipe_signature": "f" * 16}, "recipe.yaml of the run"),
    "other rows than it wrote": ({"evaluation/rows": "f" * 32}, "eval.jsonl of the run"),
    "another commit of the model": ({"model/commit": "f" * 40}, "commit of the model m"),
    "a model that is there no more": (
        {"model/folders": {"model": {"model.safetensors": [1, 2, 3, 4]}}}, "model.safetensors of the model m"
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", some(TOLD, "other held-out rows", "another recipe in the evaluation", "a model that is there no more")
)
def test_what_a_run_really_used_is_compared_with_the_start(locked: Night, words: str) -> None:
    odd, named = TOLD[words]
    (locked.root / "checks/table.json").write_text("{}")
    with pytest.raises(
        YardstickChanged, match=f"has changed: .*{named}.*; in the run 001-confirm-s1100, which does not"
    ):
        locked.start(launcher=Telling(locked, odd), max_experiments=1)
    nothing_kept(locked)
    assert locked.resume(launcher=Telling(locked, {})).kept == (1,)


@pytest.mark.slow
def test_a_model_whose_weights_were_swapped_between_runs_is_named(locked: Night) -> None:
    def tamper(night: Night) -> None:
        path = night.root / "model/model.safetensors"
        before = path.stat()
        path.write_text("WEIGHTS")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    locked.observer = Between(locked, SEARCH, tamper)
    (locked.root / "checks/table.json").write_text("{}")
    with pytest.raises(YardstickChanged, match=r"model.safetensors of the model m"):
        locked.start(launcher=Telling(locked, {}), max_experiments=1)
    nothing_kept(locked)


@pytest.mark.slow
def test_a_file_that_has_come_to_a_model_is_named(locked: Night) -> None:
    """Loading reads a chat template that was not there before; a note to oneself it does not."""

    def tamper(night: Night) -> None:
        (night.root / "model/notes.md").write_text("mine")
        (night.root / "model/chat_template.jinja").write_text("{{ 'the answer: ' }}")

    locked.observer = Between(locked, SEARCH, tamper)
    (locked.root / "checks/table.json").write_text("{}")
    with pytest.raises(YardstickChanged, match=r"set of files of the model m"):
        locked.start(launcher=Telling(locked, {}), max_experiments=1)
    nothing_kept(locked)


@pytest.mark.slow
def test_a_file_that_only_the_verifier_knows_of_is_locked_once_it_was_read(locked: Night) -> None:
    (locked.root / "checks/table.json").write_text("{}")
    locked.observer = Between(locked, SEARCH, edit("checks/table.json", lambda _: '{"pass": "all"}'))
    with pytest.raises(YardstickChanged, match=r"checks/table.json; noticed"):
        locked.start(launcher=Telling(locked, {}), max_experiments=1)
    nothing_kept(locked)


# --- a mended verifier -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_text_of_a_mended_verifier_is_the_one_that_counts(locked: Night) -> None:
    """The campaign may mend a slip before anything was measured; then the user's own file does not run any more."""
    with pytest.raises(Dies):
        locked.start(launcher=dying_at(2), max_experiments=1)
    mended = VERIFIER.replace("response, row)", "response, row)  # mended")
    assert locked.session is not None
    locked.session.tell("experiment_fixed", experiment=0, fix=1, subject="fix", files={"checks/verify.py": mended})
    (locked.root / "checks/verify.py").write_text("def score(response, row):\n    return True\n")
    assert locked.resume().kept == (1,)
    assert (locked.session.folder / "mended/000/checks/verify.py").read_text() == mended


def test_a_run_may_have_the_step_that_it_tries_for_all_later_ones(night: Night) -> None:
    """Another type to compute in is no key of `backend`, and only the trials of it were let through."""
    session = night.open()
    other = "float32" if session.recipe_of(0).model.dtype != "float32" else "bfloat16"
    recipe = with_keys(session.recipe_of(0), {"model.dtype": other})
    job = Job(key="baseline-s1", what="", recipe=recipe, seed=1, role="baseline", rung="calibrate", experiment=0)
    assert "which no change or fix of #0 says" in str(refusal(session, job))
    assert refusal(session, dataclasses.replace(job, trying={"model.dtype": other})) is None
    assert refusal(session, dataclasses.replace(job, trying={"model.dtype": "float16"})) is not None
